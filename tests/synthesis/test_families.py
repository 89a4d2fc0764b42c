"""Pipelines of other classes than Stable Diffusion v1 and v2, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.embeddings import Embedder, splits
from gmail_align.synthesis.pipelines import load_pipeline
from gmail_align.synthesis.sampler import Request, Sampler, image_seed

Build = Callable[..., SynthesisConfig]
PROMPTS = ["a cat", "a dog", "a cat", "red ball", "blue"]
REQUESTS = [Request(str(n), 0, text) for n, text in enumerate(PROMPTS)]


def small_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
    )


def projecting_encoder() -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config).eval()


def xl(small: Any) -> Any:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    ).eval()
    return StableDiffusionXLPipeline(
        vae=small_vae(),
        text_encoder=projecting_encoder(),
        text_encoder_2=projecting_encoder(),
        tokenizer=small.tokenizer,
        tokenizer_2=small.tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
    )


def three(small: Any) -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=small_vae(),
        text_encoder=projecting_encoder(),
        tokenizer=small.tokenizer,
        text_encoder_2=projecting_encoder(),
        tokenizer_2=small.tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


@pytest.fixture(scope="module", params=[xl, three], ids=["xl", "three"])
def folder(request: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    small = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    path = tmp_path_factory.mktemp("families") / request.param.__name__
    request.param(small).save_pretrained(path)
    return path


def sample(config: SynthesisConfig, size: int) -> Tensor:
    sampler = Sampler(load_pipeline(Path(config.model), config), config, size)
    starts = range(0, len(REQUESTS), size)
    return torch.cat([sampler(REQUESTS[start : start + size]) for start in starts])


def test_images_are_their_own_whatever_the_batch(config: Build, folder: Path) -> None:
    chosen = config(model=str(folder), height=16, width=16, guidance_scale=4.0)
    two, three = (sample(chosen, size) for size in (2, 3))
    assert two.shape == (5, 3, 16, 16)
    torch.testing.assert_close(two, three, rtol=0, atol=2e-5)
    assert float((two[0] - two[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_plain_pipeline_draws_the_same_from_the_recorded_seed(
    config: Build, folder: Path, guidance: float
) -> None:
    chosen = config(model=str(folder), height=16, width=16, guidance_scale=guidance)
    pipeline = load_pipeline(folder, chosen)
    generators = [
        torch.Generator().manual_seed(image_seed(chosen.seed, item.caption_id, item.k))
        for item in REQUESTS[:2]
    ]
    expected = pipeline(
        prompt=PROMPTS[:2],
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=guidance,
        generator=generators,
        output_type="pt",
    ).images
    torch.testing.assert_close(
        Sampler(pipeline, chosen, 2)(REQUESTS[:2]), expected, rtol=0, atol=2e-5
    )


def test_each_prompt_is_embedded_once(config: Build, folder: Path) -> None:
    chosen = config(model=str(folder))
    pipeline = load_pipeline(folder, chosen)
    calls: list[list[str]] = []
    real = pipeline.encode_prompt

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(named["prompt"])
        return real(*args, **named)

    counted.__signature__ = __import__("inspect").signature(real)  # type: ignore[attr-defined]
    pipeline.encode_prompt = counted
    kind = splits(pipeline)
    assert kind == type(pipeline).__name__
    embed = Embedder(pipeline, kind, 2, guided=True)
    first = embed(["a", "a"])
    embed(["a", "b"])
    embed(["b", "b"])
    assert calls == [["a", "a"], ["b", "b"]]
    assert first["negative_prompt_embeds"].shape == first["prompt_embeds"].shape


def test_sd2_from_the_recorded_seed_too(config: Build, model: Path) -> None:
    chosen = config(guidance_scale=3.0)
    pipeline = load_pipeline(model, chosen)
    seeds = [image_seed(0, item.caption_id, item.k) for item in REQUESTS[:2]]
    expected = pipeline(
        PROMPTS[:2],
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images
    made = Sampler(pipeline, chosen, 2)(REQUESTS[:2])
    torch.testing.assert_close(made, expected, rtol=0, atol=2e-6)


def test_networks_are_compiled_when_asked(
    config: Build, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **how: compiled.append(f"{type(self).__name__} {how}"),
    )
    load_pipeline(model, config(compile=True))
    assert compiled == [
        "UNet2DConditionModel {'dynamic': False}",
        "DecoderTiny {'dynamic': False}",
    ]
