"""Folders of models: finding, loading and copying a plain Hugging Face CLIP; hashing weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers.utils import logging as transformers_logging

from gmail_align.artifacts import DRAFT, MANIFEST, fingerprint, is_unfinished, sha256_file
from gmail_align.config import build
from gmail_align.encoders.config import EncoderCard
from gmail_align.encoders.probe import PROBE
from gmail_align.errors import ConfigError, ModelError

CONFIG = "config.json"
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin")


def find_folder(path_or_id: str | Path) -> Path:
    """Return the folder of a model: a local one, or the local copy of a hub repository.

    Raises:
        ModelError: there is no such folder and it cannot be downloaded.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    name = str(path_or_id)
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ModelError(f"there is no model folder at {folder}: give a folder or a hub id")
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:
        raise ModelError(
            f"{name!r} is no folder and no download from the hub ({type(error).__name__}): "
            "check the name and the network, or give a local folder"
        ) from error


def read_config(folder: Path) -> dict[str, object]:
    """Read a model folder's ``config.json``.

    Raises:
        ModelError: it is missing or damaged, or the folder is an unfinished artifact.
    """
    if is_unfinished(folder):
        raise ModelError(f"{folder} is unfinished: run the stage that makes it again")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no model folder: it holds no {CONFIG}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG} is damaged: get the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG} holds no object: get the model again")
    return config


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
    found = {path for pattern in _FILES for path in folder.glob(pattern)}
    return sorted(path for path in found if path.name not in (MANIFEST, DRAFT, PROBE))


def folder_fingerprint(folder: Path) -> str:
    """Return the fingerprint of a model folder's files, without loading the model."""
    return fingerprint({path.name: sha256_file(path) for path in model_files(folder)})


def copy_model(source: Path, target: Path) -> None:
    """Copy the configuration, tokenizer and weight files of a model folder.

    Raises:
        ModelError: the source holds no safetensors weights.
    """
    files = [path for path in model_files(source) if path.suffix != ".bin"]
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(
            f"{source} holds no safetensors: save the model with save_pretrained first"
        )
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, target / path.name)


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
