from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.captions import Caption, write_captions
from gmail_align.synthesis.config import SynthesisConfig


def tokenizer() -> CLIPTokenizer:
    """Return a tokenizer that knows single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)


def text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def vae() -> AutoencoderTiny:
    width = (8, 8, 8, 8)
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        latent_channels=8,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a StableDiffusionPipeline of random weights that draws 64 x 64 pixels."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def config(model: Path) -> Callable[..., SynthesisConfig]:
    """Return a builder of configurations of the tiny pipeline."""

    def build(**changes: Any) -> SynthesisConfig:
        values = {
            "model": str(model),
            "steps": 2,
            "batch_size": 4,
            "shard_size": 3,
            "device": "cpu",
        }
        return SynthesisConfig(**{**values, **changes})

    return build


@pytest.fixture
def captions(tmp_path: Path) -> Artifact:
    """Return seven captions, two of them alike."""
    texts = ["a cat", "a dog", "a cat", "red ball", "blue ball", "green cube", "two cones"]
    draft = begin(tmp_path / "captions", "captions", {})
    rows = [Caption(str(100 + n), text, str(n)) for n, text in enumerate(texts)]
    return draft.finish({"captions": write_captions(draft, rows)})
