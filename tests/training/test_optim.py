"""Schedules against torch's own, and who is decayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gmail_align.training.config import OptimConfig
from gmail_align.training.optim import learning_rate, parameter_groups


@pytest.mark.parametrize(("growth", "floor"), [(1, 0.0), (2, 0.0), (3, 0.25)])
def test_cosine_restarts_are_torchs(growth: int, floor: float) -> None:
    config = OptimConfig(steps=50, lr=0.3, restart_every=7, restart_growth=growth, floor=floor)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=7, T_mult=growth, eta_min=floor * 0.3
    )
    for step in range(50):
        assert learning_rate(step, config) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_cosine_is_torchs() -> None:
    config = OptimConfig(steps=20, lr=0.3, schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert learning_rate(step, config) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("schedule", ["cosine", "cosine_restarts", "linear", "constant"])
def test_warm_up_climbs_to_the_peak(schedule: str) -> None:
    config = OptimConfig(steps=10, lr=1.0, warmup=4, schedule=schedule)
    rates = [learning_rate(step, config) for step in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(rate <= 1 for rate in rates)


def test_linear_goes_down_evenly() -> None:
    config = OptimConfig(steps=4, lr=2.0, schedule="linear")
    assert [learning_rate(step, config) for step in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]


def test_only_matrices_are_decayed() -> None:
    matrix, vector, scalar = (nn.Parameter(torch.zeros(s)) for s in ((2, 2), (2,), ()))
    groups = parameter_groups({"m": matrix, "v": vector, "s": scalar}, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert groups[0]["params"] == [matrix]
    assert len(groups[1]["params"]) == 2
