"""The flow-matching generator: its paths by hand, and a pipeline that any other code loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gmail_align.errors import ModelError
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.pipelines import load_pipeline
from gmail_align.tabletop import training
from gmail_align.tabletop.training.flow import flow_of, flow_scheduler, train_flow
from gmail_align.tabletop.training.train import held_out
from gmail_align.training.config import OptimConfig

SHIPPED = Path(training.__file__).parents[1] / "weights" / "diffusion"


def test_paths_are_straight_lines_by_hand() -> None:
    clean, noise = torch.full((2, 1, 1, 1), 1.0), torch.full((2, 1, 1, 1), 3.0)
    point, velocity = flow_of(clean, noise, torch.tensor([0.25, 1.0]))
    assert point.flatten().tolist() == [1.5, 3.0]
    assert velocity.flatten().tolist() == [2.0, 2.0]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
def test_the_scheduler_walks_the_path_back_to_the_image() -> None:
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = flow_scheduler()
    scheduler.set_timesteps(5)
    latents = noise * scheduler.init_noise_sigma
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        ready = scheduler.scale_model_input(latents, time)
        path, velocity = flow_of(clean, noise, sigma.repeat(3))
        assert torch.allclose(ready, path, atol=0.01)  # it starts at .999 of the noise, not at 1
        latents = scheduler.step(velocity, time, latents).prev_sample
    assert torch.allclose(latents, clean, atol=0.01)


@pytest.mark.slow
def test_what_is_trained_is_a_pipeline_for_plain_diffusers(tmp_path: Path) -> None:
    config = OptimConfig(steps=1, lr=1e-4)
    pipeline, report = train_flow(SHIPPED, held_out("train", 4), config, tmp_path / "work")
    assert 0 < report.losses[0]["total"] < 10
    pipeline.save_pretrained(tmp_path / "flow")
    script = (
        "from diffusers import DiffusionPipeline; import sys;"
        "loaded = DiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None);"
        "image = loaded('A red ball.', num_inference_steps=2, guidance_scale=2.0).images[0];"
        "assert 'gmail_align' not in sys.modules; print(image.size)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "flow")]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.stdout.strip() == "(64, 64)", told.stderr
    with pytest.raises(ModelError, match="flow"):
        load_pipeline(tmp_path / "flow", SynthesisConfig(model="flow", scheduler="ddim"))
