"""The stage: it aligns, resumes with the same bytes, and steps aside when it does not help."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gmail_align.alignment import run as module
from gmail_align.alignment import score
from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.guard import Guard, Measurement
from gmail_align.alignment.pair_index import REAL
from gmail_align.alignment.run import Sources, align
from gmail_align.alignment.score import Score
from gmail_align.alignment.verdict import verdict
from gmail_align.artifacts import Artifact, begin, read_jsonl, write_jsonl
from gmail_align.data.images import ImageStore
from gmail_align.data.pairs import read_pairs
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, ConfigError, DataError, TrainingError
from gmail_align.features import run as features_run
from gmail_align.features.cache import Cache
from gmail_align.features.pixels import PIXELS
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.progress import LOG
from gmail_align.training.config import OptimConfig

OPTIM = OptimConfig(steps=12, lr=2e-3, schedule="constant", checkpoint_every=5, evaluate_every=4)
SMALL = {"batch_size": 6, "holdout": 0.25, "optim": OPTIM, "apply": "best"}
CONFIG = AlignConfig(**SMALL, select="loss")
ANY_GAIN = {"apply": "best", "keep_real": None}
"""For what is not about noise: three images are held out, on which most gains are."""
Run = Callable[..., Artifact]


@pytest.fixture
def run(clip_folder: Path, world: Any, tmp_path: Path) -> Run:
    """Align the tiny world into ``tmp_path / name``."""

    def go(config: AlignConfig, name: str = "encoder", **given: Any) -> Artifact:
        sources = (given.pop("pairs", world.pairs), world.real, world.generated)
        return align(config, Sources(*sources), clip_folder, tmp_path / name, seed=3, **given)

    return go


def _files(folder: Path) -> dict[str, bytes]:
    names = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in names
        if path.name not in ("manifest.json", LOG)
    }


def _die_at(monkeypatch: pytest.MonkeyPatch, step: int, name: str = "loss_terms") -> None:
    """Kill the run at the ``step``-th call of its loss."""
    calls, terms = [0], getattr(module, name)

    def dying(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == step + 1:
            raise KeyboardInterrupt
        return terms(*given)

    monkeypatch.setattr(module, name, dying)


def test_alignment_lowers_the_held_out_loss(run: Run, clip_folder: Path, world: Any) -> None:
    made = run(CONFIG)
    notes, counts = made.manifest["notes"], made.counts
    assert notes["applied"] is True
    assert notes["best_step"] > 0
    assert notes["guard"]["kept"]["align_loss"] < notes["guard"]["start"]["align_loss"]
    assert notes["guard"]["kept"]["score"] == pytest.approx(-notes["guard"]["kept"]["align_loss"])
    assert counts == {
        "pairs": 18,
        "real_images": 9,
        "held_out_pairs": 6,
        "held_out_real_images": 3,
    }
    events = list(read_jsonl(made.path("events.jsonl")))
    losses = [row for row in events if row["event"] == "loss"]
    assert len(losses) == 12
    assert losses[-1]["align"] < losses[0]["align"]
    assert {"align", "text_generated", "text_real", "total"} <= set(losses[0])
    encoder = GmailEncoder.from_pretrained(made.folder)
    assert (encoder.applied, encoder.best_step) == (True, notes["best_step"])
    assert encoder.base_fingerprint == GmailEncoder.from_pretrained(clip_folder).fingerprint
    pixels = torch.randn(3, 3, 32, 32)
    plain = GmailEncoder.from_pretrained(clip_folder)
    with torch.no_grad():
        frozen = plain.embed_pixels(pixels, Route.FROZEN)
        assert torch.equal(encoder.embed_pixels(pixels, Route.FROZEN), frozen)
        assert not torch.allclose(encoder.embed_pixels(pixels, Route.GENERATED), frozen)


def test_only_the_encoder_is_left(run: Run) -> None:
    names = {name.split("/")[0] for name in _files(run(CONFIG).folder)}
    assert names == {"adapter", "base", "config.json", "events.jsonl", "heads.safetensors"}


@pytest.mark.parametrize("step", [3, 7])
def test_a_killed_alignment_ends_with_the_same_bytes(
    step: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(CONFIG, "whole")
    with monkeypatch.context() as patch:
        _die_at(patch, step)
        try:
            run(CONFIG, "killed")
        except KeyboardInterrupt:
            pass
        else:
            pytest.fail("the run was not killed")
    gc.collect()
    again = run(CONFIG, "killed")
    assert _files(again.folder) == _files(whole.folder)
    assert again.fingerprint == whole.fingerprint


@pytest.mark.parametrize("preset", ["gmail", "eq1_only", "lora_only"])
def test_the_guard_refuses_training_that_hurts(
    preset: str,
    world: Any,
    clip_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Generated images that equal the real ones are aligned already; a wild rate can only hurt."""
    draft = begin(tmp_path / "pairs", "pairs", {})
    rows = [
        vars(pair) | {"generated_image_id": pair.real_image_id} for pair in read_pairs(world.pairs)
    ]
    write_jsonl(draft.path("pairs.jsonl"), rows)
    pairs = draft.finish({"pairs": len(rows)})
    wild = OPTIM.model_copy(update={"lr": 30.0, "steps": 4, "evaluate_every": 1})
    changes = {"batch_size": 6, "holdout": 0.25, "optim": wild, "select": "align"}
    config = AlignConfig.from_preset(preset, changes)
    made = align(
        config, Sources(pairs, world.real, world.real), clip_folder, tmp_path / "encoder", seed=3
    )
    notes = made.manifest["notes"]
    assert notes["best_step"] == 0
    assert notes["applied"] is False
    assert "not applied" in notes["message"]
    assert notes["message"] in capsys.readouterr().err
    assert json.loads(made.path("config.json").read_text())["applied"] is False
    encoder, plain = (GmailEncoder.from_pretrained(f) for f in (made.folder, clip_folder))
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = plain.embed_pixels(pixels, Route.FROZEN)
        for route in Route:
            assert torch.equal(encoder.embed_pixels(pixels, route), expected)


def test_a_finished_alignment_is_not_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(CONFIG)
    monkeypatch.setattr(module, "prepare", None)
    assert run(CONFIG) == made
    assert run(CONFIG.model_copy(update={"device": "cpu"})) == made
    with pytest.raises(ArtifactError, match=r"config\.temperature"):
        run(CONFIG.model_copy(update={"temperature": 0.1}))


def test_a_shared_cache_changes_nothing(run: Run, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    alone, shared = run(CONFIG, "alone"), run(CONFIG, "shared", cache=cache)
    assert shared.fingerprint == alone.fingerprint
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    run(CONFIG.model_copy(update={"temperature": 0.1}), "third", cache=cache)
    after = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert after == before


def test_pixels_beyond_the_limit_change_nothing(run: Run, tmp_path: Path) -> None:
    limited = run(CONFIG, "limited", cache=tmp_path / "cache", cache_limit=0)
    assert not list((tmp_path / "cache").rglob(PIXELS))
    assert limited.manifest["files"] == run(CONFIG, "kept").manifest["files"]


def test_without_real_terms_no_real_image_is_trained_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    gather = module.gather

    def spy(tables: Any, rows: Any, wanted: Any) -> Any:
        seen.append(
            (
                wanted.features,
                *(len(t.array) for t in (tables.inputs["real"], tables.known["frozen"])),
            )
        )
        return gather(tables, rows, wanted)

    monkeypatch.setattr(module, "gather", spy)
    made = run(AlignConfig.from_preset("lora_only", SMALL), "control")
    assert all(row == ({"generated", "texts"}, 3, 3) for row in seen)
    encoder = GmailEncoder.from_pretrained(made.folder)
    assert torch.equal(encoder.real_head, encoder.clip.visual_projection.weight)
    seen.clear()
    run(AlignConfig.from_preset("eq1_only", SMALL), "eq1")
    assert all(row == ({"generated", "frozen"}, 3, 12) for row in seen)


def test_training_and_guard_share_no_real_image(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks: list[Any] = []
    prepare = module.prepare
    monkeypatch.setattr(
        module, "prepare", lambda *given: tasks.append(prepare(*given)) or tasks[-1]
    )
    run(CONFIG, cache=tmp_path / "cache")
    trained, held = (
        set(tasks[0].index.names_of("real", rows[:, REAL]))
        for rows in (tasks[0].train, tasks[0].held.pairs)
    )
    assert len(trained) == 9
    assert len(held) == 3
    assert not trained & held


def test_a_batch_larger_than_the_pairs_works(run: Run) -> None:
    short = OPTIM.model_copy(update={"steps": 2})
    made = run(CONFIG.model_copy(update={"batch_size": 50, "optim": short}))
    losses = [row for row in read_jsonl(made.path("events.jsonl")) if row["event"] == "loss"]
    assert [row["step"] for row in losses] == [1, 2]
    assert all(np.isfinite(row["total"]) for row in losses)


def test_one_head_for_both_modalities(run: Run) -> None:
    made = run(CONFIG.model_copy(update={"dual_heads": False}))
    encoder = GmailEncoder.from_pretrained(made.folder)
    assert encoder.generated_head is encoder.real_head
    assert encoder.applied


def test_every_switch_of_the_loss_trains_and_resumes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = AlignWeights(distill_generated=0.5, norm=0.1, patch=0.3, text_real=0.0)
    changes = {"weights": weights, "learn_temperature": True, "positives": "sum"}
    config = CONFIG.model_copy(update={**changes, "select": "objective"})
    whole = run(config, "whole")
    assert "patch_loss" in whole.manifest["notes"]["guard"]["kept"]
    with monkeypatch.context() as patch:
        _die_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run(config, "killed")
    gc.collect()
    assert _files(run(config, "killed").folder) == _files(whole.folder)
    fixed = run(config.model_copy(update={"learn_temperature": False}), "fixed")
    rows = [list(read_jsonl(made.path("events.jsonl"))) for made in (whole, fixed)]
    align = [[row["align"] for row in one if row["event"] == "loss"] for one in rows]
    assert align[0][0] == align[1][0]
    assert align[0][-1] != align[1][-1]


LAYOUTS = {
    "full": {"encoder": {"tune": "full"}},
    "separate": {"encoder": {"trunk": "separate"}},
    "frozen_real": {"encoder": {"trunk": "frozen_real"}},
    "heads": {"encoder": {"tune": "none", "head": "residual"}},
    "mlp": {"encoder": {"head": "mlp"}, "micro_batch": 4},
    "no heads": {"encoder": {"train_heads": False}, "optim": {**OPTIM.model_dump(), "lr": 0.02}},
    "mixed": {"data": "mixed", "real_share": 0.3, "strengths": (0.25, 0.5), "keep_real": 1.0},
}


FAST = "mixed"
"""The layout that is always tested; the others take minutes."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == FAST else pytest.mark.slow) for n in LAYOUTS]
)
def test_every_layout_and_mix_of_data_trains_and_resumes(
    name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AlignConfig(**{**CONFIG.model_dump(), **ANY_GAIN, **LAYOUTS[name]})
    whole = run(config, "whole")
    notes = whole.manifest["notes"]
    assert notes["applied"] is True
    encoder = GmailEncoder.from_pretrained(whole.folder)
    assert encoder.layout == config.encoder
    drift = notes["drift"]
    assert 0 < drift["mean"] <= drift["largest"]
    if name == "mixed":
        rows = notes["strengths"]
        assert [row["strength"] for row in rows] == [0.25, 0.5, 1.0]
        assert max(row["score"] for row in rows) == next(r["score"] for r in rows if r["kept"])
    with monkeypatch.context() as patch:
        _die_at(patch, 9, "piecewise_terms" if config.micro_batch else "loss_terms")
        with pytest.raises(KeyboardInterrupt):
            run(config, "killed")
    gc.collect()
    again = run(config, "killed")
    assert _files(again.folder) == _files(whole.folder)
    assert again.manifest["notes"]["best_step"] == notes["best_step"]


def test_the_guard_starts_at_the_plain_model_whatever_heads_begin_as(
    run: Run, clip_folder: Path
) -> None:
    start = run(CONFIG, "plain").manifest["notes"]["guard"]["start"]
    mlp = AlignConfig(**{**CONFIG.model_dump(), **LAYOUTS["mlp"]})
    assert run(mlp, "mlp").manifest["notes"]["guard"]["start"] == pytest.approx(start, abs=1e-6)


def test_mixed_batches_hold_the_share_they_say(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    gather = module.gather
    monkeypatch.setattr(
        module, "gather", lambda t, r, wanted: seen.append(wanted.replaced) or gather(t, r, wanted)
    )
    long = OPTIM.model_copy(update={"steps": 60, "evaluate_every": 60})
    changes = {"data": "mixed", "real_share": 0.3, "optim": long}
    run(CONFIG.model_copy(update=changes), "mixed")
    share = sum(mask.mean() for mask in seen) / len(seen)
    assert share == pytest.approx(0.3, abs=0.08)
    seen.clear()
    run(CONFIG.model_copy(update={"data": "real"}), "real")
    assert all(mask.all() for mask in seen)


def test_nothing_to_train_is_refused(run: Run) -> None:
    nothing = {"encoder": {"tune": "none", "train_heads": False}}
    with pytest.raises(ConfigError, match="encoder.tune"):
        run(AlignConfig(**{**CONFIG.model_dump(), **nothing}))


def test_no_weight_is_refused(run: Run) -> None:
    nothing = AlignWeights(align=0, text_generated=0, text_real=0, distill_real=0)
    with pytest.raises(ConfigError, match="weight"):
        run(AlignConfig(weights=nothing))


def test_too_few_real_images_are_refused(run: Run, world: Any, tmp_path: Path) -> None:
    draft = begin(tmp_path / "few", "pairs", {})
    rows = [vars(pair) for pair in read_pairs(world.pairs)[:6]]
    write_jsonl(draft.path("pairs.jsonl"), rows)
    with pytest.raises(DataError, match="3 real images"):
        run(CONFIG, pairs=draft.finish({"pairs": 6}))


def test_a_loss_that_breaks_stops_and_names_its_pairs(
    run: Run, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = module.loss_terms
    monkeypatch.setattr(
        module, "loss_terms", lambda *given: {"total": terms(*given)["total"] * float("nan")}
    )
    with pytest.raises(TrainingError, match="loss .* step 0") as raised:
        run(CONFIG)
    assert raised.value.step == 0
    broken = tmp_path / "encoder" / "broken_batch.json"
    assert str(broken) in str(raised.value)
    content = json.loads(broken.read_text())
    assert content["step"] == 0
    known = {(p.generated_image_id, p.real_image_id, p.caption_id) for p in read_pairs(world.pairs)}
    names = ("generated_image_id", "real_image_id", "caption_id")
    result = {tuple(pair[name] for name in names) for pair in content["pairs"]}
    assert len(result) == 6
    assert result <= known


def test_pairs_are_read_once_and_nothing_frozen_is_computed_twice(
    run: Run, world: Any, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, plain = Cache(tmp_path / "cache"), GmailEncoder.from_pretrained(clip_folder)
    for number, images in enumerate((world.real, world.generated)):
        cache.extract_images(images, plain, Route.FROZEN, tmp_path / f"features-{number}")
    opened, decoded, embedded = [], [], []
    open_path, read, embed = Path.open, ImageStore.read, features_run.image_rows
    texts = GmailEncoder.embed_texts

    def counted(path: Path, *given: Any, **options: Any) -> Any:
        opened.append(path.name)
        return open_path(path, *given, **options)

    monkeypatch.setattr(Path, "open", counted)
    monkeypatch.setattr(ImageStore, "read", lambda s, n: decoded.append(n) or read(s, n))
    monkeypatch.setattr(features_run, "image_rows", lambda *g: embedded.append(1) or embed(*g))
    lines: list[str] = []
    monkeypatch.setattr(
        GmailEncoder, "embed_texts", lambda e, t, route: lines.extend(t) or texts(e, t, route)
    )
    run(CONFIG, cache=cache.folder)
    assert opened.count("pairs.jsonl") == 1
    assert decoded == embedded == []
    assert len(lines) == len(set(lines)) == 24
    run(CONFIG.model_copy(update={"temperature": 0.1}), "second", cache=cache.folder)
    assert opened.count("pairs.jsonl") == 1
    assert decoded == embedded == []
    assert len(lines) == 24


def test_a_run_that_is_killed_after_its_last_step_is_still_applied(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**LAYOUTS["mlp"], "strengths": (0.5,), **ANY_GAIN}
    config = AlignConfig(**{**CONFIG.model_dump(), **changes})
    whole = run(config, "whole")
    assert whole.manifest["notes"]["applied"] is True

    def dying(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "choose_strength", dying)
        with pytest.raises(KeyboardInterrupt):
            run(config, "killed")
    gc.collect()
    again = run(config, "killed")
    assert GmailEncoder.from_pretrained(again.folder).applied
    assert _files(again.folder) == _files(whole.folder)


def test_the_notes_hold_the_metrics_of_the_strength_that_was_kept(run: Run) -> None:
    changes = {"strengths": (0.001,), "select": "paired_cosine", **ANY_GAIN}
    notes = run(CONFIG.model_copy(update=changes))
    notes = notes.manifest["notes"]
    chosen = next(row for row in notes["strengths"] if row["kept"])
    kept = notes["guard"]["kept"]
    assert kept["step"] == notes["best_step"]
    assert {name: kept[name] for name in kept if name != "step"} == {
        name: value for name, value in chosen.items() if name not in ("strength", "kept")
    }


def test_a_base_without_safetensors_is_aligned_and_saved(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(clip_folder, base)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    config = CONFIG.model_copy(update={"optim": OPTIM.model_copy(update={"steps": 4})})
    sources = Sources(world.pairs, world.real, world.generated)
    made = align(config, sources, base, tmp_path / "encoder", seed=3)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result, expected = (
        GmailEncoder.from_pretrained(folder).embed_pixels(pixels, Route.FROZEN)
        for folder in (made.folder, clip_folder)
    )
    assert torch.allclose(result, expected)


def test_three_images_cannot_tell(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All held-out images gain, which three do by luck once in eight times."""
    careful = CONFIG.model_copy(update={"apply": "beyond_noise"})
    few = run(careful, "few").manifest["notes"]
    assert few["gain"]["n"] == 3 and few["gain"]["low"] == 0 < few["gain"]["value"]
    assert few["applied"] is False
    assert "cannot tell" in few["message"]
    monkeypatch.setattr(score, "FEWEST", 3)
    assert run(careful, "enough").manifest["notes"]["applied"] is True


def test_a_gain_within_noise_is_not_applied(
    run: Run, clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By R@1 of three held-out images, one image that is found at last is no evidence."""
    config = CONFIG.model_copy(update={"select": "generated_real_r1", "keep_real": None})
    lucky = run(config, "lucky").manifest["notes"]
    assert lucky["applied"] is True
    assert lucky["gain"]["low"] <= 0 < lucky["gain"]["value"]
    made = run(config.model_copy(update={"apply": "beyond_noise"}), "careful")
    notes = made.manifest["notes"]
    assert (notes["applied"], notes["best_step"]) == (False, 0)
    assert notes["guard"]["kept"] == notes["guard"]["start"]
    assert notes["guard"]["refused"]["score"] > notes["guard"]["start"]["score"]
    said = capsys.readouterr().err
    assert "noise" in notes["message"]
    assert notes["message"] in said
    start, refused = (notes["guard"][name]["paired_cosine"] for name in ("start", "refused"))
    assert f"paired cosine {start:.3f} -> {refused:.3f}" in said
    encoder, plain = (GmailEncoder.from_pretrained(f) for f in (made.folder, clip_folder))
    assert not encoder.applied
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        encoder.embed_pixels(pixels, Route.GENERATED), plain.embed_pixels(pixels, Route.FROZEN)
    )


class _Told(Guard):
    """A guard that is told by how much the encoder beats the plain model and a shift."""

    def __init__(self, encoder: GmailEncoder, config: AlignConfig, over: float) -> None:
        self.encoder, self.config, self.over = encoder, config, over

    def measure(self) -> Measurement:
        return Measurement({}, [], [])

    def gain(self, score: Score) -> Estimate:
        return Estimate(0.2, 0.1, 0.3, 40)

    def gain_over_shift(self, score: Score) -> Estimate:
        return Estimate(self.over + 0.05, self.over, self.over + 0.1, 40)


@pytest.mark.parametrize(
    ("over", "apply", "applied"),
    [(0.1, "beyond_noise", True), (-0.01, "beyond_noise", False), (-0.01, "best", True)],
)
def test_what_does_not_beat_a_shift_is_not_applied(
    over: float, apply: Any, applied: bool, clip_folder: Path
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder, LoraSettings())
    encoder.best_step = 4
    start, kept = ({"step": step, "score": step / 10, "eligible": 1.0} for step in (0.0, 4.0))
    notes = verdict(_Told(encoder, AlignConfig(apply=apply), over), start, kept)
    assert (notes["applied"], notes["best_step"]) == (applied, 4 * applied)
    assert (encoder.applied, encoder.best_step) == (applied, 4 * applied)
    assert notes.get("gain_over_shift", {}).get("low") == (over if apply != "best" else None)
    assert applied or "shift" in notes["message"]


def test_default_steps_of_a_small_set_are_refused_with_a_proposal(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"optim\.steps=9,"):
        run(AlignConfig())
