"""Zero-shot accuracy in the guard: by hand, from captions or a file of classes, and as its goal."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.guard import Guard
from gmail_align.alignment.held_out_classes import (
    HeldOutClasses,
    find_classes,
    probe_hits,
    zero_shot_hits,
)
from gmail_align.alignment.run import Sources, align
from gmail_align.alignment.task import prepare
from gmail_align.artifacts import Artifact, begin, write_json, write_jsonl
from gmail_align.data.pairs import PAIRS, read_pairs
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, ConfigError
from gmail_align.features.cache import Cache
from gmail_align.metrics.transfer import class_transfer
from gmail_align.training.config import OptimConfig

COLOURS = ("red", "green", "blue", "grey")
OPTIM = OptimConfig(steps=4, lr=2e-3, schedule="constant", evaluate_every=2)


def _classes(folder: Path, count: int = 12) -> Artifact:
    draft = begin(folder, "classes", {})
    write_json(draft.path("labels.json"), {f"r{n}": COLOURS[n % 4] for n in range(count)})
    write_json(draft.path("classes.json"), {c: [f"a {c} image", f"{c} tone"] for c in COLOURS})
    return draft.finish({"images": count, "classes": 4})


def _class_pairs(world: Any, folder: Path) -> Artifact:
    """The pairs with class captions: the colour alone."""
    draft = begin(folder, "pairs", {}, {"pairs": world.pairs})
    rows = [
        asdict(replace(pair, text=" ".join(pair.text.split()[:3])))
        for pair in read_pairs(world.pairs)
    ]
    write_jsonl(draft.path(PAIRS), rows)
    return draft.finish({"pairs": len(rows)})


@torch.no_grad()
def test_accuracy_by_hand(clip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(clip_folder, LoraSettings(towers="text"))
    prompts = (("a red image", "red tone"), ("a blue image", "blue tone"))
    rows = [[encoder.embed_texts([text], Route.REAL)[0] for text in own] for own in prompts]
    weights = torch.stack([sum(normalize(row, dim=0) for row in own) / 2 for own in rows])
    red, blue = normalize(weights, dim=-1)
    classes = HeldOutClasses(torch.tensor([0, 1, 1, -1]), prompts, torch.stack([red, blue]))
    images = {"real": torch.stack([red, red, blue, red]), "generated": torch.stack([blue, red])}
    hits = zero_shot_hits(encoder, classes, images, torch.tensor([1, 1]))
    assert hits["real"][:3].tolist() == [1.0, 0.0, 1.0]
    assert hits["real"][3].isnan()
    assert hits["generated"].tolist() == [1.0, 0.0]
    for parameter in encoder.trainable().values():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    moved = torch.stack([encoder.embed_texts([prompts[0][0]], Route.REAL)[0]] * 4)
    again = zero_shot_hits(
        encoder, replace(classes, prompts=(("a red image",), ("a blue image",))), {"real": moved},
        torch.arange(4),
    )  # fmt: skip
    assert again["real"][:3].tolist() == [1.0, 0.0, 0.0]  # by the text tower as it is now


def test_what_captions_say_of_classes(clip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)

    def found(texts: list[tuple[str, str]]) -> HeldOutClasses | None:
        return find_classes(encoder, list(dict.fromkeys(image for image, _ in texts)), texts)

    two = found([("a", "red"), ("b", "blue"), ("c", "red"), ("d", "blue"), ("d", "blue")])
    assert two is not None
    assert two.labels.tolist() == [1, 0, 1, 0]
    assert two.prompts == (("blue",), ("red",))
    assert found([("a", "red"), ("b", "blue"), ("c", "grey"), ("d", "blue")]) is None
    assert found([("a", "red"), ("a", "blue"), ("b", "red"), ("c", "blue"), ("d", "red")]) is None
    assert found([("a", "red"), ("b", "red"), ("c", "red")]) is None


def test_a_probe_of_generated_images_as_scikit_learn_fits_it() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, -1]).repeat(15)
    image_of = torch.arange(60).repeat_interleave(2)
    centres = torch.randn(4, 8, generator=rng)
    real = centres[labels] + torch.randn(60, 8, generator=rng)
    generated = centres[labels][image_of] + torch.randn(120, 8, generator=rng)
    classes = HeldOutClasses(labels, (("a",), ("b",), ("c",)), None)
    hits = probe_hits(classes, {"real": real, "generated": generated}, image_of)
    assert hits is not None
    made = labels[image_of] >= 0
    rows = generated[made].double().numpy()
    centre, scale = rows.mean(axis=0), np.sqrt(rows.var(axis=0).mean())
    peer = LogisticRegression(C=1 / (0.1 * len(rows)), max_iter=1000)
    peer.fit((rows - centre) / scale, labels[image_of][made])
    known = (labels >= 0).numpy()
    expected = (
        peer.predict((real.double().numpy()[known] - centre) / scale) == labels[known].numpy()
    )
    assert hits[known].tolist() == expected.astype(float).tolist()
    assert 0.4 < hits[known].mean() < 1
    assert hits[~known].isnan().all()
    broken = {"real": real, "generated": generated * torch.nan}
    lost = probe_hits(classes, broken, image_of)
    assert lost is not None
    assert lost.isnan().all()
    one = HeldOutClasses(torch.where(labels == 0, 0, -1), (("a",),), None)
    assert probe_hits(one, {"real": real, "generated": generated}, image_of) is None


def test_the_probe_also_learns_from_generated_images_of_training_pairs() -> None:
    rng = torch.Generator().manual_seed(1)
    labels, more = torch.tensor([0, 1, 2]).repeat(6), torch.tensor([2, -1, 0, 1]).repeat(12)
    image_of, centres = torch.arange(18), 0.4 * torch.randn(3, 8, generator=rng)
    real, generated = (centres[labels] + torch.randn(18, 8, generator=rng) for _ in range(2))
    learnt = centres[more.clamp(min=0)] + torch.randn(48, 8, generator=rng)
    images = {"real": real, "generated": generated, "learnt": learnt}
    classes = HeldOutClasses(torch.cat([labels, more]), (("a",), ("b",), ("c",)), None)
    classes = classes.of_first(18)
    hits = probe_hits(classes, images, image_of)
    rows = torch.cat([generated, learnt[more >= 0]]), torch.cat([labels, more[more >= 0]])
    assert hits is not None
    assert hits.tolist() == class_transfer(*rows, real, labels).tolist()
    alone = probe_hits(classes, {"real": real, "generated": generated}, image_of)
    assert alone is not None
    assert alone.tolist() == class_transfer(generated, labels, real, labels).tolist()
    assert hits.tolist() != alone.tolist()


def test_the_guard_shows_its_probe_training_images_where_it_selects_by_transfer(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    sources = Sources(_class_pairs(world, tmp_path / "pairs"), world.real, world.generated)
    given = {name: one for name, one in sources._asdict().items() if one is not None}
    encoder = GmailEncoder.from_clip(clip_folder)
    tasks = {}
    for select in ("transfer", "loss"):
        config = AlignConfig(batch_size=6, holdout=0.5, optim=OPTIM, select=select)
        tasks[select] = prepare(config, given, encoder, Cache(tmp_path / select), 2)
    assert tasks["loss"].held.learnt is None
    held, config = tasks["transfer"].held, config.model_copy(update={"select": "transfer"})
    assert held.classes is not None and held.classes.learnt is not None
    assert len(held.classes.learnt) == len(tasks["transfer"].train)
    guard = Guard(encoder, held, config, tasks["transfer"].train)
    with torch.no_grad():
        images, pairs = guard._features()
    labels = held.classes.labels
    rows = torch.cat([pairs["generated"], pairs["learnt"]])
    known = torch.cat([labels[held.image_of], held.classes.learnt])
    by_hand = class_transfer(rows, known, images["real"], labels).mean()
    assert guard.metrics()["transfer"] == pytest.approx(float(by_hand))


def test_with_classes_the_guard_goes_by_a_probe(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    """A whole number of images is right; the R@1 of single images would not be that number."""
    config = AlignConfig(batch_size=6, holdout=0.5, optim=OPTIM)
    sources = Sources(_class_pairs(world, tmp_path / "pairs"), world.real, world.generated)
    notes = align(config, sources, clip_folder, tmp_path / "out", seed=2).manifest["notes"]
    start = notes["guard"]["start"]
    assert start["score"] == start["transfer"]
    assert (6 * start["transfer"]) % 1 == pytest.approx(0)
    assert ("gain_over_shift" in notes) == ("gain" in notes and notes["gain"]["low"] > 0)


@pytest.mark.parametrize("given", ["a file", "captions"])
def test_the_guard_measures_and_selects_it(
    given: str, clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    config = AlignConfig(batch_size=6, holdout=0.5, optim=OPTIM, select="zeroshot")
    pairs = world.pairs if given == "a file" else _class_pairs(world, tmp_path / "pairs")
    classes = _classes(tmp_path / "classes") if given == "a file" else None
    sources, out = (pairs, world.real, world.generated), tmp_path / "out"
    seed = 2  # with it, three colours are held out, of two images each
    made = align(config, Sources(*sources, classes), clip_folder, out, seed=seed)
    start = made.manifest["notes"]["guard"]["start"]
    assert start["score"] == start["zeroshot"]
    assert 0 <= start["zeroshot_generated"] <= 1
    assert ("classes" in made.manifest["inputs"]) == (given == "a file")


def test_without_classes_it_cannot_be_the_goal(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    config = AlignConfig(batch_size=6, holdout=0.25, optim=OPTIM, select="zeroshot")
    sources = (world.pairs, world.real, world.generated)
    with pytest.raises(ConfigError, match="--classes"):
        align(config, Sources(*sources), clip_folder, tmp_path / "out")
    broken = _classes(tmp_path / "classes")
    broken.path("labels.json").write_text("[1")
    with pytest.raises(ArtifactError, match="is damaged"):
        align(config, Sources(*sources, broken), clip_folder, tmp_path / "other")


def test_classes_may_have_different_numbers_of_prompts(clip_folder: Path, tmp_path: Path) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    draft = begin(tmp_path / "classes", "classes", {})
    prompts = {"red": ["a red image", "red tone"], "blue": ["a blue image"]}
    write_json(draft.path("labels.json"), {"r0": "red", "r1": "blue"})
    write_json(draft.path("classes.json"), prompts)
    classes = find_classes(encoder, ["r0", "r1"], [], draft.finish({"images": 2}))
    assert classes is not None
    for row, own in zip(classes.features, prompts.values(), strict=True):
        mean = normalize(encoder.embed_texts(own, Route.FROZEN), dim=-1).mean(0)
        assert torch.allclose(row, normalize(mean, dim=0), atol=1e-5)
    draft = begin(tmp_path / "none", "classes", {})
    write_json(draft.path("labels.json"), {"r0": "red"})
    write_json(draft.path("classes.json"), {"red": ["a red image"], "blue": []})
    with pytest.raises(ArtifactError, match="'blue'"):
        find_classes(encoder, ["r0"], [], draft.finish({"images": 1}))
