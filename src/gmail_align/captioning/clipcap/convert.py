"""ClipCap's released weights as a captioner of ours.

The released files are state dicts of ``clip_project`` (the mapper) and ``gpt``. Reading them does
not run any code that a pickle may hold.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gmail_align.artifacts import Artifact, begin, sha256_file
from gmail_align.captioning.clipcap.config import MapperShape
from gmail_align.captioning.clipcap.model import ClipCap, Scaling
from gmail_align.captioning.decode import Decoding
from gmail_align.encoders.folder import require_depth
from gmail_align.encoders.language import (
    LanguageModel,
    language_model_fingerprint,
    load_tokenizer,
)
from gmail_align.encoders.stored import require_finite
from gmail_align.errors import ConfigError, ModelError

MAX_TOKENS, BEAM = 67, 5
_MAPPER, _GPT2 = "clip_project.", "gpt."
_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$")
_DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError),
    *(ValueError, KeyError, TypeError, IndexError, AttributeError),
)
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")


def convert_clipcap(
    weights: Path,
    gpt2: Path,
    out: Path,
    *,
    normalise: bool | None = None,
    norm: float | None = None,
) -> Artifact:
    """Turn ClipCap's released ``.pt`` into an artifact of kind ``captioner``.

    Args:
        weights: The file.
        gpt2: A folder with GPT-2's configuration and tokenizer; its weights come from the file.
        out: Folder of the captioner.
        normalise: Normalise features. By default as the notebook of that variant does: raw
            features for the MLP, unit features for the transformer.
        norm: Length that features are brought to; implies ``normalise``. It lets a captioner of raw
            features read aligned ones, whose length means nothing.

    Raises:
        ModelError: the file holds more than tensors, is not a ClipCap, or is of another GPT-2.
    """
    if norm is not None and (not norm > 0 or normalise is False):
        raise ConfigError("norm is the positive length of normalised features")
    if not weights.is_file():
        raise ModelError(f"{weights} does not exist: give ClipCap's .pt file")
    inputs = {"weights": sha256_file(weights), "gpt2": language_model_fingerprint(gpt2)}
    given = {"captioner": "clipcap", "converted": True, "normalise": normalise, "norm": norm}
    draft = begin(out, "captioner", given, inputs)
    if draft.complete is not None:
        return draft.complete
    model = _build(weights, gpt2, normalise, norm)
    model.save(out)
    return draft.finish({"parameters": sum(p.numel() for p in model.parameters())})


def _build(weights: Path, gpt2: Path, normalise: bool | None, norm: float | None) -> ClipCap:
    """Build the captioner that a file holds."""
    tensors = read_state_dict(weights)
    mapper = _part(tensors, _MAPPER)
    require_depth(gpt2)
    config = GPT2Config.from_pretrained(gpt2, local_files_only=True)
    shape, width = mapper_shape(mapper, config.n_embd, weights)
    mlp = shape.kind == "mlp"
    unit = norm is not None or (not mlp if normalise is None else normalise)
    language = LanguageModel(GPT2LMHeadModel(config), load_tokenizer(gpt2))
    language.require_positions(shape.prefix_length, MAX_TOKENS)
    stop = language.token_of(".")
    model = ClipCap(
        language,
        width,
        shape,
        scaling=Scaling(unit, norm),
        tuned=mlp,
        decoding=Decoding(beam=BEAM, max_tokens=MAX_TOKENS, ends=(stop,)),
        identity={"encoder": "", "weights": "", "route": ""},
    )
    words = {
        name: value for name, value in _part(tensors, _GPT2).items() if not _BUFFERS.search(name)
    }
    try:
        model.language_model.load_state_dict(words)
        model.mapper.load_state_dict(_part(mapper, "model." if mlp else ""))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{weights} does not fit the GPT-2 of {gpt2}: {reason}") from error
    return model


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors by name, and nothing else.

    Raises:
        ModelError: it is damaged, or holds anything but tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ModelError(
            f"{path} is damaged or holds more than tensors, so it is not opened: give a state dict"
        ) from error
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise ModelError(f"{path} does not hold a state dict: give ClipCap's .pt file")
    require_finite(tensors.items(), path, "get the file again")
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def mapper_shape(
    mapper: Mapping[str, Tensor], hidden: int, source: Path
) -> tuple[MapperShape, int]:
    """Read a mapper's shape and the width of its features off its weights.

    Raises:
        ModelError: it is neither of ClipCap's mappers.
    """
    first, last = mapper.get("model.0.weight"), mapper.get("model.2.weight")
    if first is not None and last is not None and last.shape[0] % hidden == 0:
        return MapperShape("mlp", last.shape[0] // hidden), first.shape[1]
    spread, constants = mapper.get("linear.weight"), mapper.get("prefix_const")
    layers = {int(match[1]) for match in map(_LAYER.match, mapper) if match}
    if spread is not None and constants is not None and layers and spread.shape[0] % hidden == 0:
        shape = MapperShape(
            "transformer", constants.shape[0], spread.shape[0] // hidden, len(layers)
        )
        return shape, spread.shape[1]
    raise ModelError(
        f"{source} does not hold a mapper of ClipCap for a GPT-2 {hidden} wide: give its released"
        " .pt, and the GPT-2 that it was trained with"
    )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
