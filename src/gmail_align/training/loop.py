"""The one training loop: it knows steps, gradients, checkpoints and the guard, but no model.

The batch of a step is a pure function of the step, and so is the random state, so a run that is
killed and started again goes on from its last checkpoint and ends with the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gmail_align.artifacts import read_jsonl, write_bytes, write_jsonl
from gmail_align.errors import TrainingError
from gmail_align.progress import Progress
from gmail_align.runtime import stable_seed
from gmail_align.training.config import OptimConfig
from gmail_align.training.optim import learning_rate, parameter_groups

CHECKPOINT = "checkpoint.safetensors"
EVENTS = "events.jsonl"

LossTerms = Mapping[str, Tensor]
"""Scalar terms by name; ``total`` is what is minimised."""


@dataclass
class FitReport:
    """What a run of :func:`fit` did."""

    best_step: int
    """The step whose parameters were kept: the guard's choice, or the last step without a guard."""
    scores: list[dict[str, float]] = field(default_factory=list)
    """The guard's metrics, one row an evaluation, each with its ``step``."""
    losses: list[dict[str, float]] = field(default_factory=list)
    """Loss terms, one row a step, each with its ``step``."""


@dataclass
class _State:
    """Everything beside parameters that a checkpoint has to hold."""

    step: int = 0
    best_step: int = -1
    best_score: float = -math.inf
    stale: int = 0


def fit(
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[int], LossTerms],
    config: OptimConfig,
    *,
    seed: int = 0,
    folder: Path | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    select: str = "score",
    label: str = "training",
) -> FitReport:
    """Minimise ``loss`` over ``parameters`` with AdamW.

    Args:
        parameters: What is trained, by name; changed in place.
        loss: Step -> scalar terms, with gradient in ``total``.
        config: Steps, rates, clipping and intervals.
        seed: Seed of the run; torch's generator is set from it at every step.
        folder: Where checkpoints and ``events.jsonl`` go; None keeps nothing.
        evaluate: The guard: metrics of the present parameters. It runs at step 0, every
            ``config.evaluate_every`` steps and at the end, and the best parameters are kept.
        select: The metric of the guard that is maximised.
        label: Name shown with the progress.

    Raises:
        TrainingError: the loss, the gradient or the guard's metric is not finite.
    """
    optimizer = torch.optim.AdamW(parameter_groups(parameters, config.weight_decay), lr=config.lr)
    best: dict[str, Tensor] = {}
    state = _restore(folder, parameters, optimizer, best)
    report = _reread(folder, state)
    bar = Progress(label, config.steps, "steps", state.step)

    def guard() -> None:
        if evaluate is None:
            return
        with torch.no_grad():
            scores = {"step": float(state.step), **evaluate()}
        if not math.isfinite(scores[select]):
            raise TrainingError(
                f"{select} is {scores[select]} at step {state.step}: check the data"
            )
        report.scores.append(scores)
        state.stale += 1
        if scores[select] > state.best_score:
            state.best_score, state.best_step, state.stale = scores[select], state.step, 0
            best.update({name: p.detach().clone() for name, p in parameters.items()})

    if state.step == 0:
        guard()
    while state.step < config.steps and not (0 < config.patience <= state.stale):
        torch.manual_seed(stable_seed(seed, "step", state.step))
        terms = loss(state.step)
        _descend(terms["total"], parameters, optimizer, state.step, config)
        state.step += 1
        row = {name: float(term.detach()) for name, term in terms.items()}
        report.losses.append({"step": float(state.step), **row})
        if state.step % config.evaluate_every == 0 or state.step == config.steps:
            guard()
        if folder is not None and state.step % config.checkpoint_every == 0:
            _save(folder, parameters, optimizer, best, state, report)
        bar.advance(note=f"loss {row['total']:.3f}")
    bar.close()
    if folder is not None:
        _save(folder, parameters, optimizer, best, state, report)
    if best:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(best[name])
    report.best_step = state.best_step if best else state.step
    return report


def _descend(
    total: Tensor,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    config: OptimConfig,
) -> None:
    """Take one optimiser step down ``total``."""
    if not torch.isfinite(total):
        value = float(total.detach())
        raise TrainingError(f"the loss is {value} at step {step}: lower the learning rate")
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm)
    if not torch.isfinite(norm):
        raise TrainingError(f"the gradient is not finite at step {step}: lower the learning rate")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    optimizer.step()


def _save(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    state: _State,
    report: FitReport,
) -> None:
    """Write one checkpoint file that holds everything, then the events up to it."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.contiguous()
    tensors |= {f"best.{name}": value.contiguous() for name, value in best.items()}
    events = [{"event": "loss", **row} for row in report.losses]
    events += [{"event": "score", **row} for row in report.scores]
    write_jsonl(folder / EVENTS, events)
    write_bytes(folder / CHECKPOINT, save(tensors, {"state": json.dumps(vars(state))}))


def _restore(
    folder: Path | None,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
) -> _State:
    """Load the last checkpoint of ``folder`` into everything; a fresh state when there is none."""
    if folder is None or not (folder / CHECKPOINT).exists():
        return _State()
    with safe_open(folder / CHECKPOINT, framework="pt") as file, torch.no_grad():
        keys = set(file.keys())
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"parameter.{name}"))
            if f"exp_avg.{name}" in keys:
                optimizer.state[parameter] = {
                    key: file.get_tensor(f"{key}.{name}").to(
                        "cpu" if key == "step" else parameter.device, copy=True
                    )
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
            if f"best.{name}" in keys:
                best[name] = file.get_tensor(f"best.{name}").to(parameter.device, copy=True)
        return _State(**json.loads(file.metadata()["state"]))


def _reread(folder: Path | None, state: _State) -> FitReport:
    """Return the report up to the checkpoint that was restored."""
    report = FitReport(best_step=state.best_step)
    if folder is None or state.step == 0 or not (folder / EVENTS).exists():
        return report
    kept: dict[str, list[dict[str, float]]] = {"loss": report.losses, "score": report.scores}
    rows: list[dict[str, Any]] = list(read_jsonl(folder / EVENTS))
    for row in rows:
        if row["step"] <= state.step:
            kept[row.pop("event")].append(row)
    return report
