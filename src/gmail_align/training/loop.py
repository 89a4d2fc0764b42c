"""The one training loop: it knows steps, gradients, checkpoints and the guard, but no model.

The batch of a step is a pure function of the step, and so is the random state, so a run that is
killed and started again goes on from its last checkpoint and ends with the same bytes.

Under torchrun every process runs the same loop. Gradients are averaged over processes, so a loss
that shares its rows out among them multiplies their gradient by the number of processes (as
:meth:`Ranks.gather` does), and one that does not is trained redundantly, with the same result. The
first process's guard decides, and it alone writes.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gmail_align.errors import Terminated, TrainingError
from gmail_align.progress import Progress
from gmail_align.runtime import stable_seed, termination_deferred
from gmail_align.training.checkpoints import CHECKPOINT as CHECKPOINT
from gmail_align.training.checkpoints import is_sharded, load_checkpoint, save_checkpoint, whole
from gmail_align.training.config import OptimConfig
from gmail_align.training.distributed import ranks
from gmail_align.training.events import EVENTS as EVENTS
from gmail_align.training.events import EventLog
from gmail_align.training.optim import learning_rate, parameter_groups

LossTerms = Mapping[str, Tensor]
"""Scalar terms by name; ``total`` is what is minimised."""


@dataclass(frozen=True)
class PiecewiseLoss:
    """A loss whose gradient is added up from pieces, each small enough to be held in memory."""

    terms: LossTerms
    """The terms of the whole batch, without gradient."""
    pieces: Iterable[Tensor]
    """Scalars, made one at a time; their gradients add up to that of ``total``."""


@dataclass
class FitReport:
    """What a run of :func:`fit` did."""

    best_step: int
    """The step whose parameters were kept: the guard's choice, or the last step without a guard."""
    scores: list[dict[str, float]] = field(default_factory=list)
    """The guard's metrics, one row an evaluation, each with its ``step``."""
    losses: list[dict[str, float]] = field(default_factory=list)
    """Loss terms, one row a step, each with its ``step``."""
    stopped_early: bool = field(default=False, compare=False)
    """Whether the guard's patience ended the run."""
    speed: dict[str, float] = field(default_factory=dict, compare=False)
    """``steps_per_second`` of this process's steps and ``peak_memory_gb``; not in the log."""


@dataclass
class _State:
    """Everything that a checkpoint holds except tensors."""

    step: int = 0
    best_step: int = -1
    best_score: float = -math.inf
    stale: int = 0


def fit(
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[int], LossTerms | PiecewiseLoss],
    config: OptimConfig,
    *,
    seed: int = 0,
    folder: Path | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    label: str = "training",
    rate: Callable[[int, float], str] | None = None,
) -> FitReport:
    """Minimise ``loss`` over ``parameters`` with AdamW.

    Args:
        parameters: What is trained, by name; changed in place.
        loss: Step -> scalar terms, with gradient in ``total``, or in pieces.
        config: Steps, rates, clipping and intervals.
        seed: Seed of the run; torch's generator is set from it at every step.
        folder: Where checkpoints and ``events.jsonl`` go; None keeps nothing.
        evaluate: The guard: metrics of the present parameters. It runs at step 0, every
            ``config.evaluate_every`` steps and at the end, and the parameters of the highest
            ``score`` are kept; those that are not ``eligible`` (0) never are.
        label: Name shown with the progress.
        rate: Steps and the seconds that they took -> what is shown with the progress.

    Raises:
        Terminated: the system asked the process to end; the last step is saved.
        TrainingError: the loss, the gradient or the guard's score is not finite; its ``step`` says
            where.
    """
    group = parameter_groups(parameters, config.weight_decay, config.rate_shares)
    optimizer = torch.optim.AdamW(group, lr=config.lr, betas=config.betas)
    best: dict[str, Tensor] = {}
    here = ranks()
    state = _State()
    if folder is not None:
        state = load_checkpoint(folder, parameters, optimizer, best, _State) or state
    here.wait()

    def keep() -> None:
        if folder is not None:
            log.sync()  # the events up to a checkpoint are safe before it is
            save_checkpoint(folder, parameters, optimizer, best, vars(state))

    with (
        EventLog(folder if here.first else None, state.step) as log,
        termination_deferred() as ends,
    ):
        report = _reread(log, state)
        bar, began = (
            Progress(label, config.steps, "steps", state.step),
            (time.monotonic(), state.step),
        )

        def guard() -> None:
            if evaluate is None:
                return
            with torch.no_grad():
                measured = evaluate() if is_sharded(parameters) else here.from_first(evaluate)
            scores = {"step": float(state.step), **measured}
            if not math.isfinite(scores["score"]):
                raise TrainingError(
                    f"score is {scores['score']} at step {state.step}: check the data", state.step
                )
            report.scores.append(scores)
            log.add("score", scores)
            state.stale += 1
            if scores.get("eligible", 1.0) and scores["score"] > state.best_score:
                state.best_score, state.best_step, state.stale = scores["score"], state.step, 0
                best.update({name: p.detach().clone() for name, p in parameters.items()})

        if state.step == 0:
            guard()
        while state.step < config.steps and not _out_of_patience(state, config):
            torch.manual_seed(stable_seed(seed, "step", state.step))
            terms = _descend(loss(state.step), parameters, optimizer, state.step, config)
            state.step += 1
            report.losses.append({"step": float(state.step), **terms})
            log.add("loss", report.losses[-1])
            if state.step % config.evaluate_every == 0 or state.step == config.steps:
                guard()
            ending = here.any(ends())
            if state.step % config.checkpoint_every == 0 or ending:
                keep()
            if ending:
                raise Terminated
            if here.first:
                bar.advance(note=_note(terms, began, state.step, rate))
        if here.first:
            bar.close()
        keep()
    if best:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(best[name])
    report.best_step = state.best_step if best else state.step
    report.stopped_early = state.step < config.steps
    per_second = (state.step - began[1]) / max(time.monotonic() - began[0], 1e-9)
    report.speed = {"steps_per_second": per_second, "peak_memory_gb": peak_memory()}
    return report


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained of a model, by name."""
    return {name: own for name, own in model.named_parameters() if own.requires_grad}


def peak_memory() -> float:
    """Return the most memory that was in use so far, in GB: the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _out_of_patience(state: _State, config: OptimConfig) -> bool:
    return 0 < config.patience <= state.stale


def pairs_rate(batch_size: int) -> Callable[[int, float], str]:
    """Return what shows the pairs a second of a training with so many pairs a step."""
    return lambda steps, seconds: f"{steps * batch_size / seconds:.0f} pairs/s"


def _note(
    terms: Mapping[str, float],
    began: tuple[float, int],
    step: int,
    rate: Callable[[int, float], str] | None,
) -> str:
    """Lay out the last step's terms, the rate and the memory for the progress line."""
    rest = ", ".join(f"{name} {value:.3f}" for name, value in terms.items() if name != "total")
    shown = f"loss {terms['total']:.3f}" + (f" ({rest})" if rest else "")
    seconds = max(time.monotonic() - began[0], 1e-9)
    fast = [rate(step - began[1], seconds)] if rate else []
    return ", ".join([shown, *fast, f"{peak_memory():.1f} GB"])


def _descend(
    loss: LossTerms | PiecewiseLoss,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    config: OptimConfig,
) -> dict[str, float]:
    """Take one optimiser step down the loss and return its terms."""
    terms, pieces = (
        (loss.terms, loss.pieces) if isinstance(loss, PiecewiseLoss) else (loss, [loss["total"]])
    )
    optimizer.zero_grad(set_to_none=True)
    for piece in pieces:
        piece.backward()
    if not is_sharded(parameters):  # sharded ones are averaged as they are made
        ranks().average_gradients(parameters.values())
    norm = whole(nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm))
    # A GPU is waited for once a step: everything that is read of it comes in one tensor.
    numbers = [norm, *(term.detach() for term in terms.values())]
    values = torch.stack([number.to(norm.device, torch.float64) for number in numbers]).tolist()
    shown = dict(zip(terms, values[1:], strict=True))
    for name, value in (("loss", shown["total"]), ("gradient", values[0])):
        if not math.isfinite(value):
            advice = "lower the learning rate"
            if step == 0:  # nothing was learnt yet
                advice = "check the data and the temperature, not the learning rate"
            raise TrainingError(f"the {name} is {value} at step {step}: {advice}", step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config) * group["share"]
    optimizer.step()
    return shown


def _reread(log: EventLog, state: _State) -> FitReport:
    """Return the report up to the checkpoint that was restored."""
    report = FitReport(best_step=state.best_step)
    kept: dict[str, list[dict[str, float]]] = {"loss": report.losses, "score": report.scores}
    for row in log.rows:
        kept[row["event"]].append({name: row[name] for name in row if name != "event"})
    return report
