from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from gmail_align.errors import ConfigError, MissingExtraError, ModelError
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.pipelines import choose_dtype, load_pipeline
from gmail_align.synthesis.sampler import Request, Sampler

Build = Callable[..., SynthesisConfig]
REQUESTS = [
    Request(str(n), 0, text)
    for n, text in enumerate(["a cat", "a dog", "a cat", "red ball", "blue", "cube", "x"])
]


def sample(config: SynthesisConfig, size: int, requests: Sequence[Request]) -> Tensor:
    sampler = Sampler(load_pipeline(Path(config.model), config), config, size)
    starts = range(0, len(requests), size)
    return torch.cat([sampler(requests[start : start + size]) for start in starts])


@pytest.fixture(scope="module")
def drawn(model: Path) -> Tensor:
    config = SynthesisConfig(model=str(model), steps=2, device="cpu")
    return sample(config, 4, REQUESTS)


def test_images_are_finite_and_differ(drawn: Tensor) -> None:
    assert drawn.shape == (7, 3, 64, 64)
    assert drawn.dtype == torch.float32
    assert torch.isfinite(drawn).all()
    assert 0 <= float(drawn.min()) < float(drawn.max()) <= 1
    assert float((drawn[0] - drawn[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("size", [2, 3])
def test_the_batch_size_changes_rounding_at_most(config: Build, drawn: Tensor, size: int) -> None:
    torch.testing.assert_close(sample(config(), size, REQUESTS), drawn, rtol=0, atol=2e-6)


def test_neighbours_and_padding_change_nothing(config: Build, drawn: Tensor) -> None:
    assert torch.equal(sample(config(), 4, REQUESTS[::-1]).flip(0), drawn)
    assert torch.equal(sample(config(), 4, REQUESTS[5:6])[0], drawn[5])


def test_embeddings_equal_the_pipelines_own(config: Build) -> None:
    chosen = config(guidance_scale=7.5, steps=2)
    pipeline = load_pipeline(Path(chosen.model), chosen)
    sampler = Sampler(pipeline, chosen, 2)
    latents = sampler._latents(REQUESTS[:2])
    expected = pipeline(
        [request.prompt for request in REQUESTS[:2]],
        latents=latents,
        num_inference_steps=2,
        guidance_scale=7.5,
        output_type="pt",
    ).images
    torch.testing.assert_close(sampler(REQUESTS[:2]), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pipeline", "DDIMScheduler"),
        ("ddim", "DDIMScheduler"),
        ("dpmpp", "DPMSolverMultistepScheduler"),
        ("euler", "EulerDiscreteScheduler"),
    ],
)
def test_schedulers(config: Build, name: str, kind: str) -> None:
    chosen = config(scheduler=name, guidance_scale=1.0, steps=3)
    assert type(load_pipeline(Path(chosen.model), chosen).scheduler).__name__ == kind
    assert torch.isfinite(sample(chosen, 2, REQUESTS[:2])).all()


def test_size_follows_the_configuration(config: Build) -> None:
    assert sample(config(height=32, width=48), 1, REQUESTS[:1]).shape == (1, 3, 32, 48)
    assert sample(config(height=32), 1, REQUESTS[:1]).shape == (1, 3, 32, 64)
    with pytest.raises(ModelError, match="cannot be sampled: .*divisible by 8"):
        sample(config(height=33), 1, REQUESTS[:1])


def test_loading_is_quiet(config: Build, capfd: pytest.CaptureFixture[str]) -> None:
    long = Request("1", 0, "a long caption of many more letters than the text encoder reads")
    sample(config(), 1, [long])
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_noise_of_the_steps_is_the_images_own(config: Build) -> None:
    def ancestral(size: int) -> Tensor:
        chosen = config(steps=3)
        pipeline = load_pipeline(Path(chosen.model), chosen)
        own = pipeline.scheduler.config
        pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(own)
        sampler = Sampler(pipeline, chosen, size)
        return torch.cat([sampler(REQUESTS[n : n + size]) for n in range(0, 4, size)])

    torch.testing.assert_close(ancestral(2), ancestral(4), rtol=0, atol=2e-6)


class Other:
    """A pipeline of another kind, which takes prompts and draws its own noise."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int,
        generator: list[torch.Generator],
        output_type: str,
        height: int = 8,
    ) -> Any:
        self.calls.append({"prompt": prompt, "steps": num_inference_steps, "height": height})
        images = [torch.rand(3, height, 8, generator=source) for source in generator]
        return type("Output", (), {"images": torch.stack(images)})


def test_other_pipelines_get_prompts_and_a_generator_an_image(config: Build) -> None:
    chosen, other = config(height=16), Other()
    three = Sampler(other, chosen, 3)(REQUESTS[:2])
    assert other.calls == [{"prompt": ["a cat", "a dog", "a dog"], "steps": 2, "height": 16}]
    assert three.shape == (2, 3, 16, 8)
    assert torch.equal(Sampler(other, chosen, 1)(REQUESTS[1:2])[0], three[1])


def tiny_flux(folder: Path) -> str:
    """Write a FluxPipeline of random weights; both its tokenizers are the tiny one's."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.3,
    )
    small = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    t5 = T5EncoderModel(T5Config(vocab_size=54, d_model=32, d_ff=32, d_kv=8, num_layers=1))
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=small.text_encoder,
        tokenizer=small.tokenizer,
        text_encoder_2=t5,
        tokenizer_2=small.tokenizer,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder.parent / "flux")
    return str(folder.parent / "flux")


def test_flux_is_sampled_from_each_images_own_noise(config: Build, model: Path) -> None:
    chosen = config(model=tiny_flux(model), height=32, width=32)
    two, three = (sample(chosen, size, REQUESTS[:3]) for size in (2, 3))
    assert two.shape == (3, 3, 32, 32)
    torch.testing.assert_close(two, three, rtol=0, atol=5e-6)
    assert float((two[0] - two[2]).abs().max()) > 1e-3
    with pytest.raises(ModelError, match="samples only with its own scheduler"):
        load_pipeline(Path(chosen.model), config(model=chosen.model, scheduler="ddim"))


def test_a_batch_that_does_not_fit_says_what_does(config: Build) -> None:
    class Full(Other):
        def __call__(self, *_: object, **__: object) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match="with a batch_size of 8"):
        Sampler(Full(), config(), 16)(REQUESTS[:1])


def test_a_pipeline_that_cannot_be_loaded_is_named(config: Build, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(config().model, tmp_path / "copy"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "NoSuchPipeline"}))
    with pytest.raises(ModelError, match="copy is damaged: .*NoSuchPipeline"):
        load_pipeline(copy, config())


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(part: str, copy: Path, config: Build) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(ModelError, match=f"lacks {part}"):
        load_pipeline(copy, config())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_of_a_part_that_do_not_fit_are_named(part: str, copy: Path, config: Build) -> None:
    """diffusers would draw a text encoder's missing weights, and leave out what is too much."""
    (path,) = (copy / part).glob("*.safetensors")
    tensors = load_file(path)
    name = max(name for name in tensors if name.endswith(".bias"))
    place = name.removesuffix(".bias")
    spoilt = {name: torch.full_like(tensors[name], torch.nan)}
    for change, said in (
        ({**tensors, **spoilt}, f"NaN or infinity in .*{name}"),
        ({key: tensors[key] for key in tensors if key != name}, "lacks 1 weights"),
        ({**tensors, f"{place}.extra": torch.ones(2)}, "does not describe.*extra"),
    ):
        save_file(change, path, {"format": "pt"})
        with pytest.raises(ModelError, match=rf"copy/{part} .*{said}"):
            load_pipeline(copy, config())


def test_a_tokenizer_that_does_not_fit_its_tower_is_named(copy: Path, config: Build) -> None:
    """diffusers would make up an empty one, or fail as soon as it reads a text."""
    path = copy / "tokenizer/tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "model_max_length": 10**6}))
    with pytest.raises(ModelError, match="texts of up to 1000000"):
        load_pipeline(copy, config())
    for file in (copy / "tokenizer").iterdir():
        if file != path:
            file.unlink()
    with pytest.raises(ModelError, match="tokenizer does not hold a tokenizer"):
        load_pipeline(copy, config())


def test_parts_without_files_of_a_variant_are_taken_plain(copy: Path, config: Build) -> None:
    (path,) = (copy / "unet").glob("*.safetensors")
    path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    load_pipeline(copy, config(variant="fp16"))


def test_a_checker_that_is_off_may_be_missing(copy: Path, config: Build) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (copy / "model_index.json").write_text(json.dumps(index))
    load_pipeline(copy, config(safety="off"))
    with pytest.raises(ModelError, match="lacks (safety_checker|feature_extractor)"):
        load_pipeline(copy, config())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, value: {name: value / 0}, "NaN"),
        (lambda name, value: {name.replace("blocks.0", "blocks.7"): value.clone()}, "of which"),
    ],
)
def test_an_adapter_that_does_not_fit_as_a_whole_is_refused(
    change: Callable[[str, Tensor], dict[str, Tensor]], said: str, tmp_path: Path, config: Build
) -> None:
    """Layers that the pipeline does not have would be left out, and the others added."""
    pipeline = load_pipeline(Path(config().model), config())
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    layers = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    (path,) = tmp_path.iterdir()
    load_pipeline(Path(config().model), config(adapter=str(path)))
    tensors = load_file(path)
    first = min(tensors)
    pair = (first, first.replace("lora_A", "lora_B"))
    for name in pair:
        tensors |= change(name, tensors[name])
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=said):
        load_pipeline(Path(config().model), config(adapter=str(path)))


@pytest.mark.parametrize(
    ("part", "key"), [("text_encoder", "num_hidden_layers"), ("unet", "layers_per_block")]
)
def test_layers_without_end_are_refused_before_they_are_built(
    part: str, key: str, config: Build, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(config().model, tmp_path / "copy"))
    path = copy / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: 10**30}))
    with pytest.raises(ModelError, match=f"{part}/config.json is damaged: {key}"):
        load_pipeline(copy, config())


def test_without_diffusers_the_extra_is_named(
    config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gmail-align\[synthesis\]'"):
        load_pipeline(Path(config().model), config())


def test_precision(config: Build) -> None:
    assert choose_dtype(config()) == torch.float32
    assert choose_dtype(config(dtype="bfloat16")) == torch.bfloat16
    assert sample(config(dtype="bfloat16"), 1, REQUESTS[:1]).dtype == torch.float32
