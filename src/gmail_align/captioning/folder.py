"""A captioner on disk, and the GPT-2 folder it starts from.

    captioner/
    ├── gpt2/                 weights and tokenizer, as transformers saves them
    ├── mapper.safetensors    the mapper's weights
    ├── config.json           its shape, and the encoder and route of its features
    └── events.jsonl          losses and validation scores of the training

Nothing of it is our own format but ``config.json``: transformers and safetensors read the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
)

from gmail_align.artifacts import Artifact, fingerprint, sha256_file, write_bytes, write_json
from gmail_align.captioning.clipcap import ClipCap
from gmail_align.captioning.config import ClipCapConfig
from gmail_align.encoders.folder import no_bars
from gmail_align.errors import ArtifactError, ModelError
from gmail_align.runtime import stable_seed

GPT2 = "gpt2"
MAPPER = "mapper.safetensors"
CONFIG = "config.json"
_GPT2_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")


@dataclass(frozen=True)
class Captioner:
    """A captioner ready to predict."""

    model: ClipCap
    tokenizer: PreTrainedTokenizerBase
    config: dict[str, Any]
    """What ``config.json`` says."""


def gpt2_fingerprint(folder: Path) -> str:
    """Return the identity of a GPT-2 folder's files.

    Raises:
        ModelError: the folder is missing or holds another architecture.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} is no GPT-2 folder (it holds no config.json): get one with"
            f" 'hf download gpt2 --local-dir {folder}'"
        )
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path} is damaged: {error}; download the model again") from error
    if kind != "gpt2":
        raise ModelError(f"{folder} holds a {kind!r} model: ClipCap needs one of type 'gpt2'")
    files = sorted(file for file in folder.iterdir() if file.suffix in _GPT2_FILES)
    return fingerprint({file.name: sha256_file(file) for file in files})


def load_gpt2(folder: Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """Load the language model and the tokenizer of a folder in GPT-2's format, in float32.

    Raises:
        ModelError: files are missing, weights do not fit, or the tokenizer has no end-of-text.
    """
    try:
        with no_bars():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            loaded: Any = GPT2LMHeadModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded as GPT-2: {_first_line(error)}") from error
    model, missing = loaded[0], sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} weights of GPT-2, the first {missing[0]}")
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {folder} has no end-of-text token, so captions could not end:"
            " set eos_token in its tokenizer_config.json"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens and its model"
            f" {model.config.vocab_size}: use a tokenizer that belongs to the model"
        )
    return model, tokenizer


def build(
    config: ClipCapConfig, gpt2: Path, width: int, seed: int
) -> tuple[ClipCap, PreTrainedTokenizerBase]:
    """Put a freshly drawn mapper for features of ``width`` before the GPT-2 of a folder.

    Raises:
        ModelError: the GPT-2 cannot be used or has too few positions.
    """
    model, tokenizer = load_gpt2(gpt2)
    needed, positions = config.prefix_length + config.max_tokens, model.config.n_positions
    if needed > positions:
        raise ModelError(
            f"{gpt2} has {positions} positions and prefix_length + max_tokens is {needed}:"
            f" set max_tokens to {positions - config.prefix_length} or less"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "mapper"))
        clipcap = ClipCap(
            model, width, prefix_length=config.prefix_length, normalise=config.normalise
        )
    return clipcap, tokenizer


def save_captioner(
    folder: Path, model: ClipCap, tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]
) -> None:
    """Write a captioner's files into ``folder``; ``config`` says where its features come from."""
    end = tokenizer.eos_token_id
    settings = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.gpt2.generation_config = settings
    with no_bars():
        model.gpt2.save_pretrained(folder / GPT2)
    tokenizer.save_pretrained(str(folder / GPT2))
    weights = {name: value.cpu().contiguous() for name, value in model.mapper.state_dict().items()}
    write_bytes(folder / MAPPER, save(weights))
    shape = {
        "feature_width": model.width,
        "prefix_length": model.prefix_length,
        "normalise": model.normalise,
    }
    write_json(folder / CONFIG, shape | config)


def load_captioner(artifact: Artifact, device: torch.device) -> Captioner:
    """Open a captioner for prediction.

    Raises:
        ArtifactError: the artifact is no captioner, or its files are damaged.
        ModelError: the GPT-2 inside is damaged.
    """
    if artifact.kind != "captioner":
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}: a captioner is needed here")
    gpt2, tokenizer = load_gpt2(artifact.path(GPT2))
    try:
        config = json.loads(artifact.path(CONFIG).read_text(encoding="utf-8"))
        model = ClipCap(
            gpt2,
            config["feature_width"],
            prefix_length=config["prefix_length"],
            normalise=config["normalise"],
        )
        model.mapper.load_state_dict(load_file(artifact.path(MAPPER)))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{artifact.folder} is damaged: {_first_line(error)}") from error
    return Captioner(model.to(device).eval(), tokenizer, config)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
