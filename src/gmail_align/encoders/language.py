"""Language models in Hugging Face folders: loading, checking, saving.

Any causal language model of transformers serves that reads ``inputs_embeds``. GPT-2 gets one
fused operation; all others run as transformers wrote them.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gmail_align.artifacts import fingerprint, sha256_file
from gmail_align.encoders.folder import no_bars
from gmail_align.encoders.stored import load_whole
from gmail_align.errors import ModelError, damage_explained

_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")
_NEEDED = ("inputs_embeds", "logits_to_keep")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def width(self) -> int:
        """Width of the embeddings that it reads."""
        return int(self.model.get_input_embeddings().embedding_dim)

    def token_of(self, text: str) -> int:
        """Return the first token of a text."""
        return int(self.tokenizer.encode(text, add_special_tokens=False)[0])

    def require_positions(self, prompt: int, max_tokens: int) -> None:
        """Check that a prompt and a caption fit into the model's positions.

        Raises:
            ModelError: they do not; models without a limit take any length.
        """
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is not None and prompt + max_tokens > positions:
            raise ModelError(
                f"the language model has {positions} positions, and a prompt of {prompt} with"
                f" max_tokens {max_tokens} needs {prompt + max_tokens}: set max_tokens to"
                f" {positions - prompt} or less"
            )

    def require_heads(self, heads: int) -> None:
        """Check that a mapper of so many attention heads fits the model's width.

        Raises:
            ModelError: the heads do not divide it.
        """
        if self.width % heads:
            raise ModelError(
                f"the language model is {self.width} wide, and {heads} heads do not divide that:"
                " set heads"
            )

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer as transformers does."""
        end = self.tokenizer.eos_token_id
        self.model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
        with no_bars():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(str(folder))


def language_model_fingerprint(folder: Path) -> str:
    """Return the identity of a language model's files.

    Raises:
        ModelError: the folder does not hold a model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} does not hold a language model (no config.json): download one, for example"
            f" with 'hf download gpt2 --local-dir {folder}'"
        )
    with damage_explained(path, ModelError, "download the model again"):
        json.loads(path.read_text(encoding="utf-8"))["model_type"]
    files = sorted(file for file in folder.iterdir() if file.suffix in _FILES)
    return fingerprint({file.name: sha256_file(file) for file in files})


def load_language_model(folder: Path) -> LanguageModel:
    """Load the model and the tokenizer of a folder, in float32.

    Raises:
        ModelError: files are missing, weights do not fit, the model is not a causal language model,
            or the tokenizer has no end-of-text token.
    """
    tokenizer = load_tokenizer(folder)
    advice = "download the model again, as safetensors"
    model: Any = load_whole(AutoModelForCausalLM, folder, advice, trust_remote_code=False)
    _require_causal(model, folder)
    require_tokens(tokenizer, model, folder)
    model.config.return_dict = True  # how outputs are wrapped, and no part of the model
    model.config.pad_token_id = None  # with one, transformers warns of padding that is masked
    return LanguageModel(fuse_gelu(model), tokenizer)


def require_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, folder: Path
) -> None:
    """Refuse a tokenizer with tokens that its model does not have.

    Raises:
        ModelError: it has some.
    """
    known = int(model.get_input_embeddings().num_embeddings)
    if len(tokenizer) > known:
        raise ModelError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens and its model {known}: use a"
            " tokenizer that belongs to the model"
        )


def _require_causal(model: PreTrainedModel, folder: Path) -> None:
    """Refuse models that read ahead, such as BERT, or that do not read embeddings."""
    kind = model.config.model_type
    both_ways = type(model.config) in MODEL_FOR_MASKED_LM_MAPPING
    if both_ways and not getattr(model.config, "is_decoder", False):
        raise ModelError(
            f"{folder} holds a {kind!r} model, which reads text in both directions: use a causal"
            " language model such as GPT-2 or Llama"
        )
    takes = inspect.signature(model.forward).parameters
    lacking = [name for name in _NEEDED if name not in takes]
    if lacking:
        raise ModelError(
            f"{folder} holds a {kind!r} model, which does not take {lacking[0]}: use another"
            " causal language model such as GPT-2 or Llama"
        )


def fuse_gelu(model: PreTrainedModel) -> PreTrainedModel:
    """Let GPT-2's tanh GELU run as one operation of torch, where transformers takes eight."""
    if isinstance(model, GPT2LMHeadModel) and model.config.activation_function == "gelu_new":
        for block in model.transformer.h:
            block.mlp.act = torch.nn.GELU(approximate="tanh")
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model's folder.

    Raises:
        ModelError: it cannot be loaded, or has no end-of-text token.
    """
    with damage_explained(f"the tokenizer of {folder}", ModelError, "download the model again"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"{folder} does not hold a tokenizer: add the tokenizer.json of its model, or"
            " vocab.json and merges.txt"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {folder} does not have an end-of-text token, so captions could not"
            " end: set eos_token in its tokenizer_config.json"
        )
    return tokenizer
