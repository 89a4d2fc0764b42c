"""Models of transformers, loaded whole: the folder's own files, every weight and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import logging as transformers_logging

from gmail_align.encoders.folder import CONFIG, no_bars, read_json
from gmail_align.errors import ModelError, damage_explained

_ADAPTER: Final = "adapter_config.json"
_WHOLE: Final = {
    "model.safetensors.index.json": ("model.safetensors",),
    "pytorch_model.bin.index.json": ("model.safetensors", "pytorch_model.bin"),
}
"""Index of weights in several files -> the single files that are taken before it."""
_FLOATS: Final = {"F64", "F32", "F16", "BF16"}
_SCALES: Final = ("weight_scale", "weight_scale_inv")
"""Ends of the names of tensors that the weights of a quantised model are multiplied by."""
_DEPTHS: Final = {"num_hidden_layers", "num_layers", "n_layer", "n_layers"}
"""Keys of a configuration that count layers."""
_LAYER: Final = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.\d")
_NUMBER: Final = re.compile(r"\.\d+")
"""The number of a layer, which may be beyond those that are described."""
_HARMLESS: Final = {"position_ids", "mask_token", "masked_bias", "inv_freq"}
"""Last parts of the names of tensors that change no feature: what they hold follows from sizes, or
is used in another task."""


def load_whole(kind: Any, folder: Path, advice: str = "get the model again", **options: Any) -> Any:
    """Load a model, in float32 by default, with every weight that the folder holds for it.

    Libraries draw weights that are missing, leave out those that the configuration does not
    describe, and say so in a report at most.

    Args:
        kind: The class of transformers or diffusers that loads it.
        folder: The model's folder.
        advice: What to do about a damaged one.
        options: What else the class is told.

    Raises:
        ModelError: the files are damaged, or do not hold the model that is described, or hold NaN,
            or an adapter lies beside them.
    """
    if (folder / _ADAPTER).exists():
        raise ModelError(
            f"{folder} holds an adapter of peft ({_ADAPTER}) beside the model, and libraries differ"
            " in whether they apply it: merge it, or move it elsewhere"
        )
    require_weights(folder)
    options |= {"local_files_only": True, "output_loading_info": True}
    if "torch_dtype" not in options:  # as diffusers calls it
        options.setdefault("dtype", torch.float32)
    with damage_explained(folder, ModelError, advice), no_bars(), _no_report():
        try:
            model, report = kind.from_pretrained(folder, **options)
        except RuntimeError as error:
            if "mismatched" in str(error):
                raise _other_shapes(kind, folder, advice, options) from error
            raise
    if missing := report["missing_keys"]:
        raise ModelError(
            f"{folder} lacks {len(missing)} weights of its {type(model).__name__}, such as "
            f"{min(missing)}: {advice}"
        )
    if unused := _left_over(model, report["unexpected_keys"]):
        raise ModelError(
            f"{folder} holds {len(unused)} weights that its {CONFIG} does not describe, such as "
            f"{min(unused)}: {advice}"
        )
    require_finite(model.named_parameters(), folder, advice)
    return model


def require_finite(tensors: Iterable[tuple[str, Tensor]], place: Path, advice: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ModelError: a tensor holds one.
    """
    for name, tensor in tensors:
        if not tensor.detach().float().sum().isfinite():
            raise ModelError(f"{place} holds NaN or infinity in {name}: {advice}")


def _other_shapes(kind: Any, folder: Path, advice: str, options: Mapping[str, Any]) -> ModelError:
    """Return the error that names a weight of another shape than described."""
    odd: list[tuple[str, Any, Any]] = []
    with suppress(Exception):  # what is described may be too large even for a model without weights
        report = kind.from_pretrained(
            folder, device_map="meta", ignore_mismatched_sizes=True, **options
        )[1]
        odd = sorted(report["mismatched_keys"])
    if not odd:
        return ModelError(
            f"{folder} does not hold the shapes that its {CONFIG} describes: {advice}"
        )
    name, stored, described = odd[0]
    return ModelError(
        f"{folder} holds {name} of shape {tuple(stored)}, and its {CONFIG} describes "
        f"{tuple(described)}: {advice}"
    )


def _left_over(model: Any, names: Iterable[str]) -> list[str]:
    """Return those of the unused weights that belong to a part of the model."""
    parts = {_NUMBER.sub(".0", name) for name, _ in model.named_modules()} - {""}
    whole = ("", f"{getattr(model, 'base_model_prefix', '')}.")
    odd = []
    for name in names:
        place, _, own = name.rpartition(".")
        known = any(_NUMBER.sub(".0", prefix + place) in parts for prefix in whole)
        if own not in _HARMLESS and (known or _LAYER.search(name)):
            odd.append(name)
    return odd


@contextmanager
def _no_report() -> Iterator[None]:
    """Keep transformers from listing weights that do not fit: an error of ours says so."""
    logging: Any = transformers_logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def require_weights(folder: Path) -> None:
    """Refuse weights that lie outside the folder, are incomplete, or are not plain floats.

    Libraries read whatever file an index names, take the integers of quantised weights as if they
    were the weights, and build as many layers as are described.

    Raises:
        ModelError: the weights are such, or a file is damaged.
    """
    require_own_files(folder)
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    depth = 0
    for file in _safetensors(folder):
        advice = "get the model again"
        with damage_explained(file, ModelError, advice), safe_open(file, framework="np") as tensors:
            names = tensors.keys()
            kinds = {name: tensors.get_slice(name).get_dtype() for name in names}
        scaled = any(name.endswith(_SCALES) for name in kinds)
        odd = min((n for n, kind in kinds.items() if _is_packed(n, kind, scaled)), default=None)
        if odd is not None:
            raise ModelError(
                f"{file} holds {odd} as {kinds[odd]}, as quantised models do: get the model in "
                "float16, bfloat16 or float32"
            )
        numbers = (int(part) for name in kinds for part in name.split(".") if part.isdecimal())
        depth = max(depth, 1 + max(numbers, default=-1))
    if depth:
        _require_layers(config, depth, folder)


def _require_layers(config: Mapping[str, Any], depth: int, folder: Path) -> None:
    """Refuse a configuration of more layers than the deepest part of the weights has."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _require_layers(value, depth, folder)
        elif key in _DEPTHS and isinstance(value, int) and value > depth:
            raise ModelError(
                f"{folder / CONFIG} says {key} = {value}, and the weights hold {depth} layers: get "
                "the model again"
            )


def require_own_files(folder: Path) -> None:
    """Refuse links to files that are missing, and an index that names files outside its folder.

    The hub's cache links to files that may have been cleaned up, and libraries pass over such links
    as if nothing was there.

    Raises:
        ModelError: there is such a link, or the index does, or is damaged.
    """
    for path in sorted(folder.glob("*.*")):
        if path.is_symlink() and not path.exists():
            raise ModelError(f"{path} links to a file that is missing: get the model again")
    for index in sorted(folder.glob("*.index.json")):
        for name in _names(index):
            if Path(name).name != name or "\\" in name:
                raise ModelError(
                    f"{index} names the file {name!r}, which leaves the folder: get the model again"
                )


def _safetensors(folder: Path) -> Iterator[Path]:
    """Yield the files that a library takes the weights from, where they are safetensors."""
    for index, whole in _WHOLE.items():
        if any((folder / name).exists() for name in whole):
            break
        if (folder / index).exists():
            names = _names(folder / index)
            if absent := [name for name in names if not (folder / name).exists()]:
                raise ModelError(
                    f"{folder} lacks {absent[0]}, which {index} names: get the model again"
                )
            yield from (folder / name for name in names if name.endswith(".safetensors"))
            return
    if (folder / "model.safetensors").exists():
        yield folder / "model.safetensors"


def _names(index: Path) -> list[str]:
    """Return the files that an index names, sorted."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(one, str) for one in table.values()):
        raise ModelError(
            f"{index} is damaged: it does not hold a 'weight_map'; get the model again"
        )
    return sorted(set(table.values()))


def _is_packed(name: str, kind: str, scaled: bool) -> bool:
    """Whether a weight means something else than its numbers; small floats may be no more."""
    plain = kind in _FLOATS or (kind.startswith("F8") and not scaled)
    return name.endswith(".weight") and not plain
