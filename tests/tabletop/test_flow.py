"""The flow-matching generator: its paths by hand, and a pipeline that any other code loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmail_align.errors import ModelError
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.pipelines import load_pipeline
from gmail_align.tabletop import training
from gmail_align.tabletop.training.flow import FlowMatchScheduler, flow_of, train_flow
from gmail_align.tabletop.training.train import held_out
from gmail_align.training.config import OptimConfig

SHIPPED = Path(training.__file__).parents[1] / "weights" / "diffusion"


def test_paths_are_straight_lines_by_hand() -> None:
    clean, noise = torch.full((2, 1, 1, 1), 1.0), torch.full((2, 1, 1, 1), 3.0)
    point, velocity = flow_of(clean, noise, torch.tensor([0.25, 1.0]))
    assert point.flatten().tolist() == [1.5, 3.0]
    assert velocity.flatten().tolist() == [2.0, 2.0]


def test_the_scheduler_walks_the_path_back_to_the_image() -> None:
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = FlowMatchScheduler()
    scheduler.set_timesteps(5)
    latents = noise * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        ready = scheduler.scale_model_input(latents, time)
        path, velocity = flow_of(clean, noise, (time / 1000).repeat(3))
        assert torch.allclose(ready, path, atol=1e-5)
        latents = scheduler.step(velocity, time, latents).prev_sample
    assert torch.allclose(latents, clean, atol=1e-5)


@pytest.mark.slow
def test_what_is_trained_is_a_pipeline_with_its_own_scheduler(tmp_path: Path) -> None:
    config = OptimConfig(steps=1, lr=1e-4)
    pipeline, report = train_flow(SHIPPED, held_out("train", 4), config, tmp_path / "work")
    assert 0 < report.losses[0]["total"] < 10
    pipeline.save_pretrained(tmp_path / "flow")
    loaded = load_pipeline(tmp_path / "flow", SynthesisConfig(model="flow"))
    assert isinstance(loaded.scheduler, FlowMatchScheduler)
    image = loaded(["A red ball."], num_inference_steps=2, guidance_scale=2.0).images[0]
    assert image.size == (64, 64)
    with pytest.raises(ModelError, match="flow"):
        load_pipeline(tmp_path / "flow", SynthesisConfig(model="flow", scheduler="ddim"))
