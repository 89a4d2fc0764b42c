"""The tokenizer of a CLIP and the check that the text tower pools at the end of the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, PreTrainedTokenizerBase

from gmail_align.errors import ModelError

_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
"""One of these holds a vocabulary; without any, transformers would make up an empty tokenizer."""
_ARGMAX_POOLING = 2
"""The ``eos_token_id`` of old configurations, at which transformers pools at the largest id."""


def load_tokenizer(folder: Path, config: CLIPConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a CLIP folder.

    Raises:
        ModelError: it is missing, or the text tower would not pool at its end-of-text token.
    """
    if not any((folder / name).exists() for name in _FILES):
        raise ModelError(f"{folder} holds no tokenizer: copy the model's own there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder} holds a damaged tokenizer: copy the model's own there"
        ) from error
    _check_pooling(tokenizer, config, folder)
    return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int
) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
    """Return ids and attention mask, padded to the longest text and cut at ``length`` tokens."""
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    return batch["input_ids"], batch["attention_mask"]


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
