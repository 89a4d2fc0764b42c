"""Tokenizers of text towers, and the check that a tower pools where the tokenizer ends a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, PreTrainedTokenizerBase

from gmail_align.errors import ModelError
from gmail_align.extras import require

_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
"""One of these holds a vocabulary; without any, transformers would make up an empty tokenizer."""
_ARGMAX_POOLING = 2
"""The ``eos_token_id`` of old configurations, at which transformers pools at the largest id."""


def load_tokenizer(folder: Path, config: CLIPConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a CLIP folder.

    Raises:
        ModelError: it is missing, or the text tower would not pool at its end-of-text token.
    """
    tokenizer = _load(folder)
    _check_pooling(tokenizer, config, folder)
    return tokenizer


def load_siglip_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a SigLIP folder.

    Raises:
        ModelError: it is missing, or adds no padding or no end of text.
        MissingExtraError: it is a SentencePiece model, which takes an extra to read.
    """
    if (folder / "spiece.model").exists() and not (folder / "tokenizer.json").exists():
        require("sentencepiece", "siglip")
        require("google.protobuf", "siglip")
    tokenizer = _load(folder)
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {folder} has no padding token")
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id not in tokenizer("a")["input_ids"]:
        raise ModelError(f"the tokenizer of {folder} puts no end-of-text token behind a text")
    return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int
) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
    """Return ids and attention mask, padded to the longest text and cut at ``length`` tokens."""
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    return batch["input_ids"], batch["attention_mask"]


def tokenize_full(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int
) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
    """Return ids and attention mask, all padded to and cut at ``length`` tokens, as SigLIP's are.

    The tokenizer may make no mask, for the text tower takes none; then it is all ones.
    """
    batch = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    ids = batch["input_ids"]
    return ids, batch.get("attention_mask", torch.ones_like(ids))


def _load(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).exists() for name in _FILES):
        raise ModelError(f"{folder} holds no tokenizer: copy the model's own there")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder} holds a damaged tokenizer: copy the model's own there"
        ) from error
    return tokenizer


def _check_pooling(tokenizer: PreTrainedTokenizerBase, config: CLIPConfig, folder: Path) -> None:
    """Compare the place where CLIPTextModel pools with that of the tokenizer's end of text."""
    eos, pooled = tokenizer.eos_token_id, cast("Any", config.text_config).eos_token_id
    ids = tokenizer("a")["input_ids"]
    if eos is None or eos not in ids:
        raise ModelError(f"the tokenizer of {folder} puts no end-of-text token behind a text")
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {folder} has no padding token")
    if pooled == _ARGMAX_POOLING and eos != len(tokenizer) - 1:
        raise ModelError(
            f"{folder}: the text configuration has eos_token_id 2, which pools at the largest id, "
            f"but the tokenizer ends texts with {eos} of {len(tokenizer)}: correct eos_token_id"
        )
    if pooled not in (_ARGMAX_POOLING, eos):
        raise ModelError(
            f"{folder}: the text tower pools at token {pooled}, but the tokenizer ends texts with "
            f"{eos}: correct eos_token_id in config.json"
        )
