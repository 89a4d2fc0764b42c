"""The loop: it minimises, keeps what the guard chose, and resumes with the same bytes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from gmail_align.artifacts import read_jsonl
from gmail_align.errors import ArtifactError, Terminated, TrainingError
from gmail_align.runtime import stable_seed, termination_raised
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import CHECKPOINT, EVENTS, FitReport, PiecewiseLoss, fit

CONFIG = OptimConfig(
    steps=20, lr=0.05, schedule="cosine", warmup=3, checkpoint_every=4, evaluate_every=3
)


class Toy:
    """A linear model on data that is a pure function of the step, with dropout."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.truth = torch.randn(3, 2, generator=generator)
        self.weight = nn.Parameter(torch.zeros(3, 2))
        self.bias = nn.Parameter(torch.ones(2))
        self.parameters = {"weight": self.weight, "bias": self.bias}
        self.die_at: int | None = None

    def loss(self, step: int) -> dict[str, Tensor]:
        if step == self.die_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        kept = nn.functional.dropout(x, 0.2)
        error = (kept @ self.weight + self.bias - x @ self.truth).square().mean()
        return {"error": error, "total": error}

    def score(self) -> dict[str, float]:
        distance = float((self.weight - self.truth).square().sum())
        return {"score": -distance, "distance": distance}


def _run(toy: Toy, folder: Path | None = None, config: OptimConfig = CONFIG) -> FitReport:
    return fit(toy.parameters, toy.loss, config, seed=5, folder=folder, evaluate=toy.score)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_lowers_the_loss_and_reports_every_step() -> None:
    toy = Toy()
    report = _run(toy)
    assert report.losses[-1]["total"] < report.losses[0]["total"]
    assert [row["step"] for row in report.losses] == list(range(1, 21))
    assert [row["step"] for row in report.scores] == [0, 3, 6, 9, 12, 15, 18, 20]


def test_equals_a_plain_adamw_loop() -> None:
    toy, plain = Toy(), Toy()
    config = OptimConfig(steps=12, lr=0.03, schedule="constant", weight_decay=0.2, clip_norm=0.5)
    groups = [{"params": [plain.weight], "weight_decay": 0.2}]
    groups += [{"params": [plain.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.03)
    generator_free = [_deterministic(step) for step in range(12)]
    fit(toy.parameters, lambda step: {"total": generator_free[step](toy)}, config)
    for step in range(12):
        optimizer.zero_grad()
        generator_free[step](plain).backward()
        nn.utils.clip_grad_norm_([plain.weight, plain.bias], 0.5)
        optimizer.step()
    assert torch.equal(toy.weight, plain.weight)
    assert torch.equal(toy.bias, plain.bias)


def _deterministic(step: int) -> Callable[[Toy], Tensor]:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return lambda toy: (x @ toy.weight + toy.bias - x @ toy.truth).square().mean()


@pytest.mark.parametrize("kills", [[0], [1], [4], [5], [11, 17], [7, 7, 19]])
def test_a_killed_run_ends_with_the_same_bytes(kills: list[int], tmp_path: Path) -> None:
    whole = Toy()
    expected = _run(whole, tmp_path / "whole")
    for step in kills:
        victim = Toy()
        victim.die_at = step
        with pytest.raises(KeyboardInterrupt):
            _run(victim, tmp_path / "killed")
    last = Toy()
    report = _run(last, tmp_path / "killed")
    assert torch.equal(last.weight, whole.weight)
    assert torch.equal(last.bias, whole.bias)
    assert report == expected
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")


def test_a_terminated_run_saves_its_last_step_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = Toy()
    _run(whole, tmp_path / "whole")
    toy = Toy()

    def loss(step: int) -> dict[str, Tensor]:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.loss(step)

    with pytest.raises(Terminated), termination_raised():
        fit(toy.parameters, loss, CONFIG, seed=5, folder=tmp_path / "cut", evaluate=toy.score)
    with safe_open(tmp_path / "cut" / CHECKPOINT, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 7
    _run(Toy(), tmp_path / "cut")
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")


def test_events_are_there_while_the_run_goes_on(tmp_path: Path) -> None:
    toy, seen = Toy(), []

    def loss(step: int) -> dict[str, Tensor]:
        seen.append([(row["event"], row["step"]) for row in read_jsonl(tmp_path / EVENTS)])
        return toy.loss(step)

    fit(toy.parameters, loss, CONFIG, folder=tmp_path, evaluate=toy.score)
    assert seen[0] == [("score", 0.0)]
    assert seen[3][-2:] == [("loss", 3.0), ("score", 3.0)]
    assert [len(rows) for rows in seen] == [1 + step + step // 3 for step in range(20)]


def test_a_line_that_was_cut_by_a_kill_is_written_again(tmp_path: Path) -> None:
    whole, victim = Toy(), Toy()
    _run(whole, tmp_path / "whole")
    victim.die_at = 10
    with pytest.raises(KeyboardInterrupt):
        _run(victim, tmp_path / "cut")
    path = tmp_path / "cut" / EVENTS
    path.write_bytes(path.read_bytes()[:-5])
    _run(Toy(), tmp_path / "cut")
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")


def test_a_log_that_a_crash_damaged_does_not_stop_the_training(tmp_path: Path) -> None:
    whole, victim = Toy(), Toy()
    report = _run(whole, tmp_path / "whole")
    victim.die_at = 10
    with pytest.raises(KeyboardInterrupt):
        _run(victim, tmp_path / "damaged")
    path = tmp_path / "damaged" / EVENTS
    data = bytearray(path.read_bytes())
    data[5:20] = bytes(15)
    path.write_bytes(data)
    assert _run(Toy(), tmp_path / "damaged").scores[-1] == report.scores[-1]
    rows = list(read_jsonl(tmp_path / "whole" / EVENTS))
    assert list(read_jsonl(path)) == rows[1:]


@pytest.mark.parametrize("harm", [lambda whole: whole[: len(whole) // 2], lambda whole: b""])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    victim = Toy()
    victim.die_at = 10
    with pytest.raises(KeyboardInterrupt):
        _run(victim, tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ArtifactError, match="checkpoint.safetensors is damaged: .*delete it"):
        _run(Toy(), tmp_path)
    path.unlink()
    whole = _run(Toy(), tmp_path / "whole")
    assert _run(Toy(), tmp_path) == whole


def test_a_loss_in_pieces_trains_like_the_whole() -> None:
    whole, parts = Toy(), Toy()

    def pieces(step: int) -> PiecewiseLoss:
        terms = parts.loss(step)
        shares = (0.25, 0.75)
        return PiecewiseLoss(
            {name: term.detach() for name, term in terms.items()},
            (share * terms_again["total"] for share in shares for terms_again in [again(step)]),
        )

    def again(step: int) -> dict[str, Tensor]:
        torch.manual_seed(stable_seed(5, "step", step))
        return parts.loss(step)

    expected = _run(whole)
    result = fit(parts.parameters, pieces, CONFIG, seed=5, evaluate=parts.score)
    assert torch.allclose(parts.weight, whole.weight, atol=1e-6)
    assert [row["total"] for row in result.losses] == pytest.approx(
        [row["total"] for row in expected.losses], abs=1e-6
    )


def test_a_report_says_how_fast_it_was_and_whether_it_stopped() -> None:
    report = _run(Toy())
    assert report.speed["steps_per_second"] > 0
    assert report.speed["peak_memory_gb"] > 0.05
    assert not report.stopped_early


def test_a_finished_run_is_read_back_without_a_step(tmp_path: Path) -> None:
    first, second = Toy(), Toy()
    expected = _run(first, tmp_path)
    second.die_at = 0
    assert _run(second, tmp_path) == expected
    assert torch.equal(first.weight, second.weight)


def test_the_guard_keeps_the_start_when_training_only_hurts() -> None:
    toy = Toy()
    with torch.no_grad():
        toy.weight.copy_(toy.truth)
        toy.bias.zero_()
    report = _run(toy, config=CONFIG.model_copy(update={"lr": 3.0}))
    assert report.best_step == 0
    assert torch.equal(toy.weight, toy.truth)
    assert torch.equal(toy.bias, torch.zeros(2))


def test_without_a_guard_the_last_step_is_kept() -> None:
    toy = Toy()
    report = fit(toy.parameters, toy.loss, CONFIG)
    assert report.best_step == 20
    assert report.scores == []


def test_patience_stops_early_and_every_event_is_written(tmp_path: Path) -> None:
    toy = Toy()
    config = CONFIG.model_copy(update={"patience": 2, "checkpoint_every": 100})
    report = fit(toy.parameters, toy.loss, config, folder=tmp_path, evaluate=lambda: {"score": 1.0})
    assert report.best_step == 0
    assert report.stopped_early
    assert len(report.losses) == 6
    events = list(read_jsonl(tmp_path / EVENTS))
    assert sum(row["event"] == "loss" for row in events) == 6
    assert sum(row["event"] == "score" for row in events) == 3
    again = fit(
        Toy().parameters, toy.loss, config, folder=tmp_path, evaluate=lambda: {"score": 1.0}
    )
    assert again == report


def test_no_step_at_all_still_writes_its_score(tmp_path: Path) -> None:
    toy = Toy()
    report = _run(toy, tmp_path, OptimConfig(steps=0))
    assert report.best_step == 0
    assert [row["event"] for row in read_jsonl(tmp_path / EVENTS)] == ["score"]


def test_parameters_without_gradient_stay_and_survive_a_restart(tmp_path: Path) -> None:
    for die_at in (6, None):
        toy = Toy()
        unused = nn.Parameter(torch.ones(2, 2))
        toy.die_at = die_at
        try:
            fit({**toy.parameters, "unused": unused}, toy.loss, CONFIG, folder=tmp_path)
        except KeyboardInterrupt:
            assert (tmp_path / CHECKPOINT).exists()
    assert torch.equal(unused, torch.ones(2, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(value: float) -> None:
    toy = Toy()
    with pytest.raises(TrainingError, match="step 0: .*, not the learning rate") as raised:
        fit(toy.parameters, lambda step: {"total": toy.weight.sum() * value}, CONFIG)
    assert raised.value.step == 0


def test_a_loss_that_diverges_names_the_learning_rate() -> None:
    toy = Toy()

    def loss(step: int) -> dict[str, torch.Tensor]:
        return {"total": toy.weight.sum() * (float("nan") if step else 1.0)}

    with pytest.raises(TrainingError, match="step 1: lower the learning rate"):
        fit(toy.parameters, loss, CONFIG)


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    toy = Toy()
    with pytest.raises(TrainingError, match="gradient .* step 0"):
        fit(toy.parameters, lambda step: {"total": toy.weight.abs().sqrt().sum()}, CONFIG)


def test_a_score_that_is_not_finite_stops_the_run() -> None:
    toy = Toy()
    with pytest.raises(TrainingError, match="score is nan at step 0"):
        fit(toy.parameters, toy.loss, CONFIG, evaluate=lambda: {"score": float("nan")})
