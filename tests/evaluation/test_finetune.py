"""Fine-tuning: what augmentation does, how rates fall with depth, and a tower that learns."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.images import finish_images, shard_name, write_shard
from gmail_align.data.labels import Labels
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.merge import merge
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import DataError, UserError
from gmail_align.evaluation.augment import mixed, random_crops, smoothed
from gmail_align.evaluation.config import FinetuneConfig
from gmail_align.evaluation.finetune import (
    Classifier,
    StartingPoint,
    evaluate_finetune,
    layer_shares,
)
from gmail_align.importing.admission import admit


def test_crops_are_parts_of_the_image_scaled_up() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(200, 3, 32, 32)
    cut = random_crops(ramp, 0.25)
    slopes = cut.diff(dim=-1).mean(dim=(1, 2, 3)) * 31  # width of the part, negative if mirrored
    assert cut.min() >= 0 and cut.max() <= 1
    assert 0.4 < (slopes < 0).float().mean() < 0.6
    assert 0.4 < slopes.abs().min() < slopes.abs().max() <= 1.01
    whole = random_crops(ramp, 1.0)
    assert whole.shape == ramp.shape and (whole.diff(dim=-1).abs().mean() * 31) > 0.8


def test_labels_are_smoothed() -> None:
    result = smoothed(torch.tensor([1]), 4, 0.2)
    assert result.tolist() == [pytest.approx([0.05, 0.85, 0.05, 0.05])]


def test_images_and_labels_are_mixed_in_one_proportion() -> None:
    pixels = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    targets = torch.eye(2)
    assert mixed(pixels, targets, 0.0, 0.0)[0] is pixels
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        both, labels = mixed(pixels, targets, 0.8, 1.0)
        share = float(labels[0, 1])  # how much of the white image is in the black one
        assert float(both[0].mean()) == pytest.approx(share, abs=1e-5)
        assert labels.sum(1).tolist() == pytest.approx([1, 1])
        seen.add("pasted" if set(both.unique().tolist()) <= {0.0, 1.0} else "added")
    assert seen == {"pasted", "added"}


def test_rates_fall_from_the_head_to_the_embeddings() -> None:
    names = ["head.weight", "tower.post_layernorm.weight", "tower.encoder.layers.1.mlp.fc1.weight"]
    names += ["tower.encoder.layers.0.mlp.fc1.weight", "tower.embeddings.patch_embedding.weight"]
    shares = layer_shares(names, 0.5)
    assert list(shares.values()) == [1, 1, 0.5, 0.25, 0.125]


def test_one_epoch_is_as_many_steps_as_images_need() -> None:
    config = FinetuneConfig(epochs=10, warmup_epochs=2, batch_size=32)
    optim = config.optim(320)
    assert (optim.steps, optim.warmup, optim.evaluate_every) == (100, 20, 10)
    assert optim.lr == pytest.approx(5e-5 / 8)
    with pytest.raises(ValueError, match="warmup_epochs"):
        FinetuneConfig(epochs=5, warmup_epochs=5)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT with random weights, as SynCLR's are saved."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "image_size": 16, "patch_size": 8}
    ViTModel(ViTConfig(**shape), add_pooling_layer=False).save_pretrained(folder)
    triple = [0.5, 0.5, 0.5]
    said = {"size": {"height": 16, "width": 16}, "image_mean": triple, "image_std": triple}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def draw(folder: Path, count: int, seed: int) -> tuple[Artifact, dict[str, int]]:
    """Write images with a bright bar, lying (0) or standing (1), on noise."""
    rng, samples, labels = np.random.default_rng(seed), [], {}
    for number in range(count):
        pixels = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
        label = number % 2
        place = slice(number % 12, number % 12 + 4)
        pixels[(place, slice(None)) if label == 0 else (slice(None), place)] += 150
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        name = f"{folder.name}-{number}"
        samples.append(admit(name, stream.getvalue()))
        labels[name] = label
    draft = begin(folder, "images", {"seed": seed})
    write_shard(draft.path(shard_name(0)), samples, [])
    return finish_images(draft), labels


def named(labels: dict[str, int]) -> Labels:
    return Labels({image: str(number) for image, number in labels.items()})


QUICK = {"warmup_epochs": 1, "batch_size": 32, "base_lr": 0.02, "mixup": 0, "cutmix": 0}


def test_a_tower_learns_what_its_features_do_not_show(tower: Path, tmp_path: Path) -> None:
    train, labels = draw(tmp_path / "train", 128, 0)
    test, more = draw(tmp_path / "test", 64, 1)
    start = StartingPoint(GmailEncoder.from_pretrained(tower), Route.REAL)
    config = FinetuneConfig(epochs=20, least_crop=None, **QUICK)
    splits, known = {"train": train, "test": test}, labels | more
    out = tmp_path / "out"
    made = evaluate_finetune(config, splits, named(known), start, out)
    assert made.metrics["accuracy"].value > 0.85
    assert made.protocol == "fine_tune"
    assert made.n == {"train": 103, "images": 64, "classes": 2}
    scores = [row["score"] for row in made.details["validation"]]
    assert scores[0] < 0.7 < scores[-1]
    assert made.details["best_step"] > 0 and not (out / "work").exists()
    assert evaluate_finetune(config, splits, named(known), start, out) == made


@pytest.mark.parametrize("route", [Route.REAL, Route.FROZEN])
def test_fine_tuning_starts_at_the_weights_of_the_route(route: Route) -> None:
    encoder = GmailEncoder.from_clip(model_path("tabletop", "clip"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
        pixels = torch.randn(2, 3, 64, 64)
        wanted = {one: encoder.trunk(pixels, one) for one in (Route.REAL, Route.FROZEN)}
        classifier = Classifier(merge(encoder, route), encoder, 3)
        result = classifier.backbone.trunk(pixels)
        assert classifier.logits(pixels).tolist() == torch.zeros(2, 3).tolist()
    torch.testing.assert_close(result, wanted[route], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(wanted[Route.REAL], wanted[Route.FROZEN], atol=1e-2)
    trained = classifier.trained
    assert len(trained) == len(list(classifier.model.vision_model.parameters())) + 2
    assert all(parameter.requires_grad for parameter in trained.values())


def test_bad_splits_are_refused(tower: Path, tmp_path: Path) -> None:
    train, labels = draw(tmp_path / "train", 8, 0)
    start = StartingPoint(GmailEncoder.from_pretrained(tower), Route.REAL)
    config, splits = FinetuneConfig(epochs=2, **QUICK), {"train": train, "test": train}
    few = named(dict(list(labels.items())[1:]))
    with pytest.raises(DataError, match="1 of 8"):
        evaluate_finetune(config, splits, few, start, tmp_path / "a")
    with pytest.raises(UserError, match="two classes"):
        evaluate_finetune(config, splits, named(dict.fromkeys(labels, 0)), start, tmp_path / "b")
    with pytest.raises(DataError, match="oxford_pets"):
        out = tmp_path / "c"
        evaluate_finetune(config, splits, named(labels), start, out, protocol="oxford_pets")
