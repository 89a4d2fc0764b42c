"""A tiny Llama with control tokens, and the tiny CLIP and world of the other tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.language import load_language_model
from gmail_align.encoders.route import Route
from gmail_align.vlm.config import LlavaConfig
from gmail_align.vlm.model import Llava, build_llava
from worlds.captioning import byte_tokenizer, save_language_model
from worlds.encoders import World, clip_folder, siglip_folder, world

__all__ = ["World", "clip_folder", "siglip_folder", "world"]

CONTROLS = (
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|im_start|>", "<|im_end|>"),
)


def write_llama(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Write a random Llama of 2 layers, 32 wide."""
    tokenizer = tokenizer or byte_tokenizer(bos_token="<s>", controls=CONTROLS)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return save_language_model(folder, LlamaForCausalLM, config, tokenizer)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def encoder(clip_folder: Path) -> GmailEncoder:
    return GmailEncoder.from_pretrained(clip_folder)


@pytest.fixture
def llava(encoder: GmailEncoder, llama: Path) -> Llava:
    """An untrained LLaVA with 16 tokens an image."""
    language = load_language_model(llama)
    built = build_llava(encoder, language, "vicuna_v1", Route.FROZEN, 0)
    built.model.eval()
    return built


def quick(steps: int, **changes: object) -> LlavaConfig:
    """A few steps on the processor."""
    optim = {"steps": steps, "lr": 3e-3, "schedule": "constant", "checkpoint_every": 2}
    settings = {"row_tokens": 256, "batch_rows": 4, "device": "cpu", "tune": "full", **changes}
    return LlavaConfig(optim={**optim, "evaluate_every": 2}, **settings)


def aligned(folder: Path) -> GmailEncoder:
    """An encoder whose generated route differs from the frozen one."""
    encoder = GmailEncoder.from_clip(folder)
    with torch.no_grad():
        for number, parameter in enumerate(encoder.trainable().values()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return encoder
