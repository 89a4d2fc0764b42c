"""The alignment of features: what is learnt, what the guard chooses, and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmail_align.alignment import feature_run
from gmail_align.alignment.feature_config import FeatureAlignConfig
from gmail_align.alignment.feature_data import FeatureSources, open_task
from gmail_align.alignment.feature_guard import choose
from gmail_align.alignment.feature_head import Residual, Rows, Space
from gmail_align.alignment.feature_run import ALIGNED, align_features
from gmail_align.alignment.training_free import MAPS, Moments
from gmail_align.config import build
from gmail_align.encoders.feature_map import FeatureMap
from gmail_align.errors import ArtifactError, ConfigError, DataError
from gmail_align.training.loop import trained_parameters

CLASSES, DIM = 4, 12
QUICK: dict[str, Any] = {"batch_size": 64, "folds": 2, "optim": {"steps": 20, "evaluate_every": 10}}


def config(**changes: Any) -> FeatureAlignConfig:
    return build(FeatureAlignConfig, {**QUICK, **changes}, "test")


def classes(folder: Path, *, turned: float = 0.3, count: int = 60, seed: int = 0) -> FeatureSources:
    """Two sides that share classes; the axes of the generated one are turned, and it is moved."""
    rng = np.random.default_rng(seed)
    centres = 1.6 * np.random.default_rng(5).normal(size=(CLASSES, DIM))
    turn = np.eye(DIM) + turned * np.random.default_rng(6).normal(size=(DIM, DIM))
    labels = np.repeat(np.arange(CLASSES), count)
    folder.mkdir(parents=True, exist_ok=True)
    for side, matrix, offset in (("real", np.eye(DIM), 0.0), ("generated", turn, 2.0)):
        rows = centres[labels] + rng.normal(size=(len(labels), DIM))
        np.save(folder / f"{side}.npy", (rows @ matrix + offset).astype(np.float32))
        (folder / f"{side}.txt").write_text("".join(f"class {one}\n" for one in labels))
    names = ("real.npy", "generated.npy", "real.txt", "generated.txt")
    real, generated, *labels = (folder / name for name in names)
    return FeatureSources(real, generated, None, *labels)


def pairs(folder: Path, count: int = 40) -> FeatureSources:
    """Row i of the generated side belongs to row count - 1 - i of the real one."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    real = rng.normal(size=(count, DIM)).astype(np.float32)
    generated = real[::-1] + 0.3 * rng.normal(size=real.shape) + 3
    np.save(folder / "real.npy", real)
    np.save(folder / "generated.npy", generated.astype(np.float32))
    np.save(folder / "pairs.npy", np.stack([np.arange(count)[::-1], np.arange(count)], axis=1))
    return FeatureSources(*(folder / f"{name}.npy" for name in ("real", "generated", "pairs")))


def test_a_head_that_carries_over_is_applied(tmp_path: Path) -> None:
    sources = classes(tmp_path / "data")
    made = align_features(config(), sources, tmp_path / "head", apply=[sources.generated])
    notes = made.manifest["notes"]
    assert notes["kept"].startswith("step ")
    assert notes["gains"]["raw"]["low"] > 0 < notes["gains"]["shift"]["low"]
    aligned = np.load(made.path(ALIGNED))
    head = FeatureMap.load(made.folder)
    given = np.load(tmp_path / "data" / "generated.npy")
    by_hand = given @ head.matrix.numpy().T + head.shift.numpy()
    assert aligned == pytest.approx(by_hand, abs=1e-4)
    applied = np.load(tmp_path / "head-applied" / "generated.npy")
    assert np.array_equal(applied, aligned)
    assert sorted(made.manifest["files"]) == ["generated.npy", "head.safetensors"]


def test_further_files_are_checked_before_anything_is_learnt(tmp_path: Path) -> None:
    sources = classes(tmp_path / "data")
    narrow = tmp_path / "narrow.npy"
    np.save(narrow, np.ones((4, 2)))
    for file in (narrow, tmp_path / "absent.npy"):
        with pytest.raises(DataError, match=file.name):
            align_features(config(), sources, tmp_path / "head", apply=[file])
        assert not (tmp_path / "head").exists()


def test_the_careless_settings_are_refused(tmp_path: Path) -> None:
    """Many steps of a full matrix from the identity, with nothing that holds it."""
    sources = classes(tmp_path / "data", turned=0.1)
    careless = config(
        head="linear",
        start="identity",
        weights={"hold": 0.0},
        optim={"steps": 100, "evaluate_every": 100, "lr": 0.3},
    )
    made = align_features(careless, sources, tmp_path / "head")
    notes = made.manifest["notes"]
    assert notes["kept"] in ("raw", "shift")
    assert notes["scores"]["step 100"] < notes["scores"][notes["kept"]]
    assert "refused" in notes["message"]
    given = np.load(tmp_path / "data" / "generated.npy")
    change = np.load(made.path(ALIGNED)) - given
    assert change == pytest.approx(np.broadcast_to(change[:1], change.shape), abs=1e-4)


@pytest.mark.parametrize(
    ("head", "raw", "shift", "kept"),
    [(0.9, 0.5, 0.6, "step 5"), (0.62, 0.5, 0.6, "shift"), (0.2, 0.5, 0.4, "raw")],
)
def test_what_is_applied_beats_both_beyond_noise(
    head: float, raw: float, shift: float, kept: str
) -> None:
    rng = np.random.default_rng(0)
    shares = {"raw": raw, "shift": shift, "step 5": head}
    values = {
        name: (rng.random(200) < share).astype(float).tolist() for name, share in shares.items()
    }
    choice = choose(values, 0, "hits")
    assert choice.kept == kept
    assert choice.step == (5 if kept == "step 5" else 0)
    assert choice.notes()["applied"] == (kept != "raw")


@pytest.mark.parametrize(("images", "kept"), [(2, "shift"), (5, "shift"), (6, "step 5")])
def test_a_few_images_cannot_tell(images: int, kept: str) -> None:
    """All of them gain the same, so that the interval is narrow; luck may still do that."""
    values = {"raw": [0.1] * images, "shift": [0.2] * images, "step 5": [0.3] * images}
    choice = choose(values, 0, "hits")
    assert choice.kept == kept
    assert ("cannot tell" in choice.message) == (images < 6)


def test_no_step_at_all_leaves_raw_and_shift() -> None:
    assert choose({"raw": [0.0, 1.0], "shift": [1.0, 1.0]}, 0, "hits").kept == "shift"


@pytest.mark.parametrize("name", ["shift_scale", "coral"])
def test_a_start_alone_is_the_training_free_map(name: str, tmp_path: Path) -> None:
    sources = classes(tmp_path / "data")
    task = open_task(sources)
    space = Space.of(task.real, task.generated, 0, 0)
    rows = Rows(*(space.project(one.array) for one in (task.real, task.generated)))
    every = torch.arange(len(rows.real))
    head = space.lift(rows.start(name, every, every), None, moved=True)
    moments = [Moments.of(one.array) for one in (task.generated, task.real)]
    expected = MAPS[name](*moments)(task.generated.array)
    assert torch.allclose(head(task.generated.array), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["low_rank", "linear", "mlp"])
def test_a_lifted_head_is_the_head_in_its_space(kind: str, tmp_path: Path) -> None:
    """Inside the space a head does what was learnt; outside it features are shifted."""
    task = open_task(classes(tmp_path / "data"))
    space = Space.of(task.real, task.generated, 5, 0)
    rows = Rows(*(space.project(one.array) for one in (task.real, task.generated)))
    every = torch.arange(len(rows.real))
    start = rows.start("shift", every, every)
    residual = Residual(kind, 5, 3, 0)
    with torch.no_grad():
        for own in trained_parameters(residual).values():
            own.add_(0.3 * torch.randn(own.shape, generator=torch.Generator().manual_seed(1)))
        inside = start(rows.generated) + residual(rows.generated)
    head = space.lift(start, residual, moved=True)
    whole = head(task.generated.array)
    assert torch.allclose(space.project(whole), inside, atol=1e-3)
    outside = torch.eye(DIM) - space.axes @ space.axes.T
    moved = (whole - task.generated.array) @ outside
    assert torch.allclose(moved, (space.gap @ outside).expand_as(moved), atol=1e-3)
    head.save(tmp_path)
    assert torch.equal(FeatureMap.load(tmp_path)(task.generated.array), whole)


def test_pairs_are_judged_by_retrieval(tmp_path: Path) -> None:
    made = align_features(config(), pairs(tmp_path / "data"), tmp_path / "head")
    notes = made.manifest["notes"]
    assert notes["scores"]["raw"] < 0.7 < 0.9 < notes["scores"]["shift"]
    assert notes["kept"] != "raw"
    other = align_features(config(select="align"), pairs(tmp_path / "data"), tmp_path / "other")
    assert other.manifest["notes"]["scores"]["shift"] > other.manifest["notes"]["scores"]["raw"]


def test_classes_without_real_images_are_judged_by_held_out_classes(tmp_path: Path) -> None:
    sources = classes(tmp_path / "data")
    labels = (tmp_path / "data" / "generated.txt").read_text().replace("class 3", "class 9")
    labels = labels.replace("class 9\n", "class 3\n", 30)
    (tmp_path / "data" / "generated.txt").write_text(labels)
    made = align_features(config(), sources, tmp_path / "head")
    assert "held-out classes" in made.manifest["notes"]["message"]


def test_a_finished_head_is_left_and_a_killed_one_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = classes(tmp_path / "data")
    made = align_features(config(), sources, tmp_path / "whole")
    before = made.path("head.safetensors").stat().st_mtime_ns
    align_features(config(), sources, tmp_path / "whole")
    assert made.path("head.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError):
        align_features(config(rank=2), sources, tmp_path / "whole")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(feature_run, "_fitted", killed)
        align_features(config(), sources, tmp_path / "killed")
    fold = tmp_path / "killed" / "work" / "fold-0.json"
    assert set(json.loads(fold.read_bytes())) == {"raw", "shift", "step 10", "step 20"}
    again = align_features(config(), sources, tmp_path / "killed")
    assert again.manifest["files"] == made.manifest["files"]


def test_texts_are_trained_on_where_there_are_some(tmp_path: Path) -> None:
    sources = pairs(tmp_path / "data")
    texts = tmp_path / "data" / "texts.npy"
    np.save(texts, np.load(tmp_path / "data" / "real.npy")[::-1].copy())
    with_texts = FeatureSources(**{**vars(sources), "texts": texts})
    plain = align_features(config(), sources, tmp_path / "plain")
    made = align_features(config(), with_texts, tmp_path / "texts")
    scores = [one.manifest["notes"]["scores"] for one in (plain, made)]
    assert scores[0]["shift"] == scores[1]["shift"]
    task = open_task(with_texts)
    assert task.groups.texts is not None
    assert task.groups.texts.tolist() == list(range(40))


def _break(folder: Path, what: str) -> FeatureSources:
    sources = pairs(folder) if what.startswith("pair") else classes(folder)
    rows = np.load(folder / "pairs.npy") if what.startswith("pair") else None
    if what == "pairs and classes":
        (folder / "c.txt").write_text("a\n")
        return FeatureSources(sources.real, sources.generated, sources.pairs, folder / "c.txt")
    if what == "pair outside":
        rows[0, 1] = 99
    if what == "pair twice":
        rows[1, 1] = rows[0, 1]
    if what == "width":
        np.save(folder / "generated.npy", np.ones((CLASSES * 60, 3), np.float32))
    if what == "other classes":
        (folder / "real.txt").write_text("x\n" * CLASSES * 60)
    if rows is not None:
        np.save(folder / "pairs.npy", rows)
    return sources


@pytest.mark.parametrize(
    ("what", "error", "named"),
    [
        ("pairs and classes", ConfigError, "--pairs"),
        ("pair outside", DataError, "row 99"),
        ("pair twice", DataError, "1 generated rows"),
        ("width", DataError, "generated.npy 3"),
        ("other classes", DataError, "real.txt"),
    ],
)
def test_bad_input_leaves_nothing(
    what: str, error: type[Exception], named: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=named):
        align_features(config(), _break(tmp_path / "data", what), tmp_path / "head")
    assert not (tmp_path / "head").exists()


def test_settings_that_train_nothing_and_files_of_one_name(tmp_path: Path) -> None:
    sources = classes(tmp_path / "data")
    nothing = {"align": 0.0, "text_generated": 0.0}
    with pytest.raises(ConfigError, match="weight"):
        align_features(config(weights=nothing), sources, tmp_path / "head")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    twice = [tmp_path / name / "generated.npy" for name in ("data", "copy")]
    with pytest.raises(ConfigError, match="generated.npy"):
        align_features(config(), sources, tmp_path / "head", apply=twice)
