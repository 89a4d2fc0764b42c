"""Features and captions written by hand, and tiny random language models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gmail_align.artifacts import Artifact, begin, write_bytes, write_jsonl
from gmail_align.captioning.inputs import CaptionedImages
from gmail_align.data.captions import Caption, write_captions

CAPTIONS = (
    "a red ball on a wooden floor.",
    "two cubes, one of them blue!",
    "A small shiny cone next to a grey cylinder, on grass",
    "nothing.",
)
END = "<|endoftext|>"
Rows = Sequence[tuple[str, str]]


def write_features(folder: Path, ids: list[str], array: Tensor, **config: str) -> Artifact:
    """Write a ``features`` artifact."""
    source = {"what": "image", "encoder": "clip", "weights": "clip", "route": "frozen"}
    draft = begin(folder, "features", source | config)
    write_jsonl(draft.path("ids.jsonl"), ids)
    write_bytes(draft.path("features.safetensors"), save({"features": array.contiguous()}))
    return draft.finish({"rows": len(ids)})


def captions_of(features: Artifact, rows: Rows) -> Artifact:
    """Write (image id, caption) as a ``captions`` artifact next to features of the images."""
    captions = [Caption(f"caption{n}", text, name) for n, (name, text) in enumerate(rows)]
    return _write_captions(features.folder.parent, captions)


def named_captions_of(features: Artifact, rows: Rows) -> Artifact:
    """Write (caption id, caption) as a ``captions`` artifact next to features of the captions."""
    return _write_captions(features.folder.parent, [Caption(n, text, "image") for n, text in rows])


def captioned(features: Artifact, rows: Rows) -> CaptionedImages:
    """Join features with (image id, caption)."""
    return CaptionedImages(features, captions_of(features, rows))


def _write_captions(parent: Path, captions: list[Caption]) -> Artifact:
    name = hashlib.sha256(json.dumps([vars(one) for one in captions]).encode()).hexdigest()
    draft = begin(parent / f"captions-{name[:12]}", "captions", {"content": name})
    if draft.complete is not None:
        return draft.complete
    return draft.finish({"captions": write_captions(draft, captions)})


def byte_tokenizer(
    end: str | None = END, controls: Sequence[str] = (), **special: str
) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer on the captions; ``controls`` are control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END, *special.values(), *controls],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, **special)


def build_gpt2(folder: Path, *, end: str | None = END, positions: int = 64) -> Path:
    """Write a random GPT-2 (2 layers, 32 wide, no dropout) and a byte-level tokenizer."""
    tokenizer = byte_tokenizer(end)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": positions}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=len(tokenizer), **ends, **shape, **quiet)
    return save_language_model(folder, GPT2LMHeadModel, config, tokenizer)


def build_llama(folder: Path) -> Path:
    """Write a random Llama with grouped keys, whose padding token is its end-of-text token."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = END
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=0,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return save_language_model(folder, LlamaForCausalLM, config, tokenizer)


def build_opt(folder: Path) -> Path:
    """Write a random OPT, whose embeddings are narrower than its states, with a padding token."""
    tokenizer = byte_tokenizer(pad_token="<pad>", bos_token="<s>")
    config = OPTConfig(
        vocab_size=len(tokenizer),
        pad_token_id=1,
        hidden_size=32,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        dropout=0.0,
        bos_token_id=2,
        eos_token_id=0,
    )
    return save_language_model(folder, OPTForCausalLM, config, tokenizer)


def build_neox(folder: Path) -> Path:
    """Write a random GPT-NeoX, whose output embeddings are weights of their own."""
    tokenizer = byte_tokenizer()
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return save_language_model(folder, GPTNeoXForCausalLM, config, tokenizer)


LANGUAGE_MODELS: Mapping[str, Callable[[Path], Path]] = {
    "gpt2": build_gpt2,
    "llama": build_llama,
    "opt": build_opt,
    "gpt_neox": build_neox,
}


def save_language_model(
    folder: Path, model: type[PreTrainedModel], config: object, tokenizer: PreTrainedTokenizerFast
) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(config).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder
