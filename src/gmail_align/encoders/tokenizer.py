"""Tokenizers of text towers: how they are loaded, and how texts become token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gmail_align.errors import ModelError, damage_explained
from gmail_align.progress import say

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
"""One of these holds a vocabulary; without any, transformers would make up an empty tokenizer."""

_CHUNK = 4096


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds a vocabulary."""
    return any((folder / name).exists() for name in _VOCABULARIES)


def load_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer.

    Args:
        folder: The model's folder.
        vocabulary: Token ids that the text tower has embeddings for.

    Raises:
        ModelError: it is missing or damaged, adds no padding or no end of text, or has tokens that
            the text tower does not have.
    """
    path = next((folder / name for name in _VOCABULARIES if (folder / name).exists()), None)
    if path is None:
        raise ModelError(f"{folder} does not hold a tokenizer: copy the model's own there")
    with damage_explained(path, ModelError, "copy the model's own there"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        ids = tokenizer("a")["input_ids"]
        tokenizer("A snowman: \u2603")  # what no vocabulary has must not stop it
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {folder} has no padding token")
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id not in ids:
        raise ModelError(f"the tokenizer of {folder} puts no end-of-text token behind a text")
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer of {folder} has token ids up to {largest}, but the text tower has "
            f"{vocabulary} embeddings: use the tokenizer that belongs to the model"
        )
    return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, *, full_length: bool
) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
    """Return ids and attention mask, cut at ``length`` tokens.

    Args:
        tokenizer: The tokenizer.
        texts: The texts.
        length: The most tokens.
        full_length: Pad every text to ``length``, instead of to the longest one.
    """
    batch = tokenizer(
        list(texts),
        padding="max_length" if full_length else True,
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    ids = batch["input_ids"]
    return ids, batch.get("attention_mask", torch.ones_like(ids))  # SigLIP's makes no mask


def tell_cut(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> int:
    """Say how many texts are longer than ``length`` tokens, and so are cut; return that."""
    count = 0
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        rows = tokenizer(chunk, truncation=False, padding=False, verbose=False)["input_ids"]
        count += sum(len(row) > length for row in rows)
    if count:
        say(
            f"{count} of {len(texts)} texts are longer than the {length} tokens that the encoder "
            "reads, and are cut"
        )
    return count
