"""Files of a model's weights, looked at before a library loads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from safetensors import safe_open

from gmail_align.encoders.folder import read_json
from gmail_align.errors import ModelError, damage_explained

_WHOLE: Final = {
    "model.safetensors.index.json": ("model.safetensors",),
    "pytorch_model.bin.index.json": ("model.safetensors", "pytorch_model.bin"),
}
"""Index of weights in several files -> the single files that are taken before it."""
_FLOATS: Final = {"F64", "F32", "F16", "BF16"}
_SCALES: Final = ("weight_scale", "weight_scale_inv")
"""Ends of the names of tensors that the weights of a quantised model are multiplied by."""


def require_weights(folder: Path) -> None:
    """Refuse weights that lie outside the folder, are incomplete, or are not plain floats.

    Libraries read whatever file an index names, and take the integers of quantised weights as
    if they were the weights.

    Raises:
        ModelError: the weights are such, or a file is damaged.
    """
    require_own_files(folder)
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


def require_own_files(folder: Path) -> None:
    """Refuse an index of weights that names files outside its folder.

    Raises:
        ModelError: it does, or is damaged.
    """
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
