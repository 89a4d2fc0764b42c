"""Files of weights from elsewhere, read without running anything that is in them."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gmail_align.encoders.stored import require_finite
from gmail_align.errors import ModelError, damage_explained

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
"""What training on several processes, and compilation, put before every name."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` or of a PyTorch file, by name.

    PyTorch files go through its weights-only unpickler, which makes tensors and plain containers
    (and ``argparse.Namespace``, in which old training scripts keep their settings) and refuses all
    else. A state may lie inside ``state_dict`` or ``model``, and prefixes of
    wrappers (``module.``, ``_orig_mod.``) are removed.

    Raises:
        ModelError: the file is missing, damaged, a TorchScript archive, would have to be unpickled,
            or holds NaN.
    """
    if not path.is_file():
        raise ModelError(f"there is no file of weights at {path}")
    with damage_explained(path, ModelError, "give a file of weights"):
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _unwrap(content)
    if not state:
        raise ModelError(f"{path} does not hold tensors by name: it is not a state dict")
    for prefix in _PREFIXES:
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    require_finite(state.items(), path, "get the weights again")
    return state


def _read_torch(path: Path) -> Any:
    if _is_torchscript(path):
        raise ModelError(
            f"{path} is a TorchScript archive, which holds code: if you trust it, save its "
            "tensors once with safetensors.torch.save_file(torch.jit.load(path).state_dict(), ...)"
            " and convert that file"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds Python objects beside tensors, which are never unpickled here: if you "
            "trust it, load it yourself and save its tensors as safetensors"
        ) from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def _unwrap(content: Any) -> dict[str, Tensor]:
    """Return the tensors by name, out of the wrappers that training scripts put around them."""
    for _ in range(len(_WRAPPERS)):
        if not isinstance(content, Mapping):
            return {}
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
