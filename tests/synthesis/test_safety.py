from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from gmail_align.artifacts import Artifact
from gmail_align.data.images import ImageStore
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.run import synthesize

Build = Callable[..., SynthesisConfig]


@pytest.fixture(scope="module")
def guarded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the tiny pipeline with a checker of random weights that objects to everything."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPConfig(
        vision_config={**small, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        text_config={**small, "num_attention_heads": 2, "vocab_size": 54},
        projection_dim=8,
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-1.0)  # every cosine is above
    pipeline.register_modules(
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
    )
    pipeline.register_to_config(requires_safety_checker=True)
    folder = tmp_path_factory.mktemp("guarded") / "guarded"
    pipeline.save_pretrained(folder)
    return str(folder)


def test_verdicts_are_kept_and_nothing_is_painted_black(
    config: Build, captions: Artifact, guarded: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    flagged = synthesize(config(model=guarded), captions, tmp_path / "flag")
    plain = synthesize(config(model=guarded, safety="off"), captions, tmp_path / "off")
    one, two = ImageStore(flagged), ImageStore(plain)
    assert {one.record(name).unsafe for name in one.ids} == {True}
    assert {two.record(name).unsafe for name in two.ids} == {None}
    assert all(one.record(name).sha256 == two.record(name).sha256 for name in one.ids)
    assert "| safety checker | objects to 7 images |" in flagged.path("README.md").read_text()
    assert "NSFW" not in "".join(capfd.readouterr())


def test_images_that_it_objects_to_can_be_dropped(
    config: Build, captions: Artifact, guarded: str, tmp_path: Path
) -> None:
    from gmail_align.errors import DataError

    with pytest.raises(DataError, match="safety checker"):
        synthesize(config(model=guarded, safety="drop"), captions, tmp_path / "drop")
