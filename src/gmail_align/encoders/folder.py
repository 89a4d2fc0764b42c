"""Folders of models: where they are, here or on the hub; reading, copying and hashing them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save
from torch import Tensor
from transformers.utils import logging as transformers_logging

from gmail_align.artifacts import (
    DRAFT,
    MANIFEST,
    fingerprint,
    is_unfinished,
    sha256_file,
    write_bytes,
)
from gmail_align.config import build, load_json
from gmail_align.encoders.config import EncoderCard
from gmail_align.encoders.hub import HUB_ID, ask_hub, hub_id, refuse_mistyped
from gmail_align.encoders.probe import PROBE
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import ConfigError, ModelError, damage_explained

CONFIG = "config.json"
DEEPEST = 10_000
"""Most layers of a model, ten times those of the deepest ones that are known."""
COPY_BELOW_BYTES = 100_000_000
"""Base models from the hub that are smaller than this are copied into the encoder's folder."""
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin")
_TABLES = ("*.jsonl",)  # a captioner looks captions up in one
_WEIGHTS = (".safetensors", ".bin")
_GET_AGAIN = "get the model again"
_LOOSE = (*_WEIGHTS, ".pt", ".pth")


def find_folder(path_or_id: str | Path) -> Path:
    """Return the folder of a model: local, shipped, or the local copy of a hub repository.

    A hub id is ``OWNER/NAME`` or ``OWNER/NAME@REVISION``. A copy that this machine holds already is
    taken without asking the hub; :func:`~gmail_align.encoders.hub.ask_hub` decides on the others.

    Raises:
        ModelError: there is no such folder and it cannot be downloaded.
    """
    folder, (name, _, revision) = model_path(path_or_id, "clip"), str(path_or_id).partition("@")
    if os.path.isdir(folder):
        return folder
    if os.path.isfile(folder):
        advice = "the folder that it lies in"
        if folder.suffix in _LOOSE and not (folder.parent / CONFIG).exists():
            advice = f"what 'gmail-align convert {folder} --out FOLDER' makes of it"
        raise ModelError(f"{folder} is a file, and a model is a folder: give {advice}")
    if folder.is_absolute() or not HUB_ID.fullmatch(name):
        raise ModelError(f"there is no model folder at {folder}: give a folder or a hub id")
    refuse_mistyped(name, revision)
    wanted = [*_FILES, *_TABLES]
    options: dict[str, Any] = {"revision": revision or None, "allow_patterns": wanted}
    try:
        copy = Path(snapshot_download(name, local_files_only=True, **options))
        if any(path.suffix in _WEIGHTS and path.exists() for path in model_files(copy)):
            return copy
    except Exception:  # whatever it is: this machine holds no whole copy
        pass
    ask_hub(name, revision, f"{name}@main or another revision")
    try:
        return Path(snapshot_download(name, **options))
    except Exception as error:
        raise ModelError(
            f"{name} is not a folder and cannot be downloaded from the Hugging Face hub "
            f"({type(error).__name__}): check the name and the network, or give a local folder"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's ``config.json``.

    Raises:
        ModelError: it is missing or damaged, or the folder is an unfinished artifact.
    """
    if is_unfinished(folder):
        raise ModelError(f"{folder} is unfinished: run the stage that makes it again")
    if not (folder / CONFIG).exists():
        advice = _advice(folder)
        raise ModelError(f"{folder} is not a model folder: it does not hold {CONFIG}{advice}")
    return read_json(folder / CONFIG)


def _advice(folder: Path) -> str:
    """Say what to do with a folder that holds weights alone, as open_clip's do."""
    weights = sorted(path for path in folder.glob("*.*") if path.suffix in _LOOSE)
    return f"; run gmail-align convert {weights[0]} --out FOLDER" if weights else ""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: the file is missing or damaged, holds something else, or names more layers than
            :data:`DEEPEST`.
    """
    value = load_json(path, ModelError, _GET_AGAIN)
    with damage_explained(path, ModelError, _GET_AGAIN):
        _require_depth(value)
    return value


def require_depth(folder: Path) -> None:
    """Refuse a model folder whose ``config.json`` names more layers than :data:`DEEPEST`.

    Libraries build layer after layer, so without this they would not end. Where there is no such
    file, whoever loads the model says so.

    Raises:
        ModelError: it names more, or is damaged.
    """
    if (folder / CONFIG).exists():
        read_json(folder / CONFIG)


def _require_depth(value: Any, key: str = "") -> None:
    if isinstance(value, dict | list):
        rows = value.items() if isinstance(value, dict) else [(key, one) for one in value]
        for name, own in rows:
            _require_depth(own, name)
    elif isinstance(value, int) and "layer" in key and value > DEEPEST:
        raise ValueError(f"{key} is above {DEEPEST}, which is deeper than any model")


def read_card(folder: Path) -> EncoderCard | None:
    """Return the card of an encoder folder of ours, or None for a plain model folder.

    Raises:
        ModelError: the folder's ``config.json`` is unusable.
    """
    config = read_config(folder)
    if config.get("format") != EncoderCard.model_fields["format"].default:
        return None
    try:
        return build(EncoderCard, config, str(folder / CONFIG))
    except ConfigError as error:
        raise ModelError(str(error)) from error


def model_files(folder: Path) -> list[Path]:
    """Return a model folder's configuration, tokenizer and weight files, sorted."""
    files = {path for pattern in _FILES for path in folder.glob(pattern)}
    return sorted(path for path in files if path.name not in (MANIFEST, DRAFT, PROBE))


def folder_fingerprint(folder: Path) -> str:
    """Return the fingerprint of a model folder's files, without loading the model."""
    return fingerprint({path.name: sha256_file(path) for path in model_files(folder)})


def copy_model(source: Path, target: Path, state: Mapping[str, Tensor]) -> None:
    """Copy the configuration, tokenizer and weight files of a model folder.

    Args:
        source: The folder.
        target: The copy.
        state: The model's weights, written where the source holds none as safetensors.
    """
    files = [path for path in model_files(source) if path.suffix != ".bin"]
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        if not path.name.endswith(".bin.index.json"):
            shutil.copyfile(path, target / path.name)
    if not any(path.suffix == ".safetensors" for path in files):
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        write_bytes(target / "model.safetensors", save(tensors, {"format": "pt"}))


def keep_base(source: Path, target: Path, state: Mapping[str, Tensor]) -> str | None:
    """Copy a base model, or return the hub id and commit of one that is large and on the hub.

    Args:
        source: Its folder.
        target: The copy.
        state: Its weights.
    """
    large = sum(tensor.nbytes for tensor in state.values()) >= COPY_BELOW_BYTES
    name = hub_id(source) if large else None
    if name is None:
        copy_model(source, target, state)
    return name


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of the sha256 of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(data)
    return digest.hexdigest()[:16]


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars of its own."""
    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
