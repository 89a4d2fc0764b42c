from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from gmail_align.cli.main import app
from gmail_align.encoders.shipped import shipped_models
from gmail_align.errors import ConfigError, ModelError
from gmail_align.synthesis.architectures import ARCHITECTURES, read_architecture
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.cost import Cost, _tokens, count_cost, make_plan

PARAMETERS = {"sd2": 866e6, "sdxl": 2567e6, "flux": 11.9e9, "sd3": 2.03e9}
"""Published sizes of the denoisers."""


def test_every_preset_has_an_architecture() -> None:
    families = {name.removesuffix("_fast") for name in SynthesisConfig.presets}
    assert ARCHITECTURES.keys() == families


@pytest.mark.parametrize("name", PARAMETERS)
def test_architectures_have_the_published_sizes(name: str) -> None:
    network = ARCHITECTURES[name].denoiser.build()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(PARAMETERS[name], rel=0.03)


def test_stable_diffusion_2_costs_what_was_counted_elsewhere() -> None:
    config = SynthesisConfig.from_preset("sd2", {"model": "sd2"})
    cost = count_cost(ARCHITECTURES["sd2"], config)
    assert cost.passes == 100
    assert cost.denoiser == pytest.approx(804e9, rel=0.005)
    assert cost.decoder == pytest.approx(2515e9, rel=0.005)
    assert cost.total == pytest.approx(83.0e12, rel=0.005)  # with its text encoder, 0.05
    config = SynthesisConfig.from_preset("sd_turbo", {"model": "turbo"})
    turbo = count_cost(ARCHITECTURES["sd_turbo"], config)
    assert turbo.total == pytest.approx(5.78e12, rel=0.01)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_formulas_agree_with_the_counter_of_pytorch(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    architecture = ARCHITECTURES[name]
    denoiser, vae = architecture.denoiser.build(), architecture.vae.build()
    config = SynthesisConfig(model=name, **SynthesisConfig.preset_keys(name))
    cost = count_cost(architecture, config)
    latent = (cost.height // 8, cost.width // 8)
    arguments = _inputs(denoiser, latent, _tokens(architecture.denoiser))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser(**arguments)
    assert cost.denoiser == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(torch.empty(1, vae.config.latent_channels, *latent, device="meta"))
    assert cost.decoder == counter.get_total_flops()


def _inputs(denoiser: Any, latent: tuple[int, int], tokens: int) -> dict[str, Any]:
    """Return arguments of one pass at batch 1, on the meta device."""
    kind, config = type(denoiser).__name__, denoiser.config

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta")

    if kind == "UNet2DConditionModel":
        arguments: dict[str, Any] = {
            "sample": empty(1, config.in_channels, *latent),
            "timestep": empty(1),
            "encoder_hidden_states": empty(1, tokens, config.cross_attention_dim),
        }
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim
            pooled -= 6 * config.addition_time_embed_dim
            arguments["added_cond_kwargs"] = {
                "text_embeds": empty(1, pooled),
                "time_ids": empty(1, 6),
            }
        return arguments
    text = {
        "encoder_hidden_states": empty(1, tokens, config.joint_attention_dim),
        "pooled_projections": empty(1, config.pooled_projection_dim),
        "timestep": empty(1),
    }
    if kind == "SD3Transformer2DModel":
        return {**text, "hidden_states": empty(1, config.in_channels, *latent)}
    patches = (latent[0] // 2) * (latent[1] // 2)
    return {
        **text,
        "hidden_states": empty(1, patches, config.in_channels),
        "img_ids": empty(patches, 3),
        "txt_ids": empty(tokens, 3),
        **({"guidance": empty(1)} if config.guidance_embeds else {}),
    }


def test_a_plan_follows_from_the_cost() -> None:
    config = SynthesisConfig(model="x")
    plan = make_plan(Cost(0.5e12, 100, 2e12, 512, 512), config, 864_000, card="52", share=0.5)
    assert plan.tflop_per_image == 52
    assert plan.images_per_second_limit == 1
    assert plan.images_per_second == 0.5
    assert plan.gpu_days_limit == pytest.approx(10)
    assert plan.gpu_days == pytest.approx(20)
    with pytest.raises(ConfigError, match="'x200'"):
        make_plan(Cost(1.0, 1, 1.0, 8, 8), config, 1, card="x200")
    with pytest.raises(ConfigError, match="1.5"):
        make_plan(Cost(1.0, 1, 1.0, 8, 8), config, 1, share=1.5)


def test_the_count_is_that_of_the_running_network() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    folder = shipped_models() / "diffusion"
    shape = read_architecture(folder)
    cost = count_cost(shape, SynthesisConfig(model="tabletop", steps=3, guidance_scale=1.0))
    assert (cost.height, cost.width, cost.passes) == (64, 64, 3)
    network = shape.denoiser.build("cpu")
    exact = sdpa_kernel(SDPBackend.MATH)  # the fused kernel of CPUs is not counted
    with exact, FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 8, 8, 8), 1, torch.zeros(1, 77, 128))
    assert cost.denoiser == counter.get_total_flops() > 0


def test_folders_that_cannot_be_counted(tmp_path: Path) -> None:
    index = {"_class_name": "X", "unet": ["diffusers", "StrangeModel"], "vae": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="unet of class StrangeModel"):
        read_architecture(tmp_path)
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"config\.json"):
        read_architecture(tmp_path)


def test_the_command(tmp_path: Path) -> None:
    work = str(tmp_path / "work")  # a run of the demo beside the tests would lower the cost
    result = CliRunner().invoke(app, ["plan", "demo", "--work", work, "--card", "0.04", "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    (made,) = (cost for cost in plan["costs"] if "generates" in cost["what"])
    assert made["amount"] == 600 + 100
    assert made["gpu_hours"] == pytest.approx(made["tflop"] / (0.04 * 0.34) / 3600)
    words = [
        (["--images", "5"], "nothing is named to plan"),
        (["--preset", "sd2"], "give --images"),
        (["--preset", "flx", "--images", "5"], "'flx'"),
        (["--model", "/no/such", "--images", "5"], "there is no folder /no/such"),
    ]
    for mistake, message in words:
        result = CliRunner().invoke(app, ["plan", *mistake])
        assert result.exit_code == 2
        assert message in result.stderr
