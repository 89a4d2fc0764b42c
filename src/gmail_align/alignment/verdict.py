"""The guard's verdict: whether the kept step is applied, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gmail_align.alignment.config import FIGURES, AlignConfig
from gmail_align.alignment.guard import Guard
from gmail_align.alignment.score import FEWEST, beyond_noise
from gmail_align.progress import say
from gmail_align.training.distributed import ranks


def verdict(guard: Guard, start: dict[str, float], kept: dict[str, float]) -> dict[str, Any]:
    """Apply the present encoder where its gain is beyond noise, and say so.

    Where it is not, the encoder is set to the plain model; its parameters are left as they are.

    Args:
        guard: The guard, and by it the encoder.
        start: What the guard measured at step 0.
        kept: What it measured of the present encoder, at the step that was kept.

    Returns:
        Notes for the manifest: ``best_step``, ``applied``, ``guard`` (``start``, ``kept`` and,
        where the kept step is not applied, ``refused``), ``gain`` and ``message``.
    """
    encoder, config = guard.encoder, guard.config
    notes: dict[str, Any] = {"guard": {"start": start, "kept": kept}}
    message: str | None = _no_step(config)
    if kept["step"] > 0:
        say(_side_by_side(start, kept))
        score = guard.measure().score if ranks().first else []
        gain = ranks().from_first(lambda: asdict(guard.gain(score)))
        notes["gain"], message = gain, _refusal(config, gain, kept)
        if message is None and config.beats_shift:
            over = ranks().from_first(lambda: asdict(guard.gain_over_shift(score)))
            notes["gain_over_shift"], message = over, _worse_than_shift(over)
    if message is not None:
        notes["message"] = message
        say(message)
        notes["guard"] |= {"kept": start, **({"refused": kept} if kept["step"] else {})}
        encoder.best_step, encoder.applied = 0, False
    return {"best_step": encoder.best_step, "applied": encoder.applied, **notes}


def moved(drift: Mapping[str, float]) -> str:
    """Say in one line what the alignment did to real images."""
    line = f"real images moved by {drift['mean']:.3f} on average (1 - cosine, held out)"
    if "retrieval" not in drift:
        return line
    return f"{line}; their retrieval R@1 went from {drift['retrieval_plain']:.3f} to " + (
        f"{drift['retrieval']:.3f}"
    )


def _goal(config: AlignConfig) -> tuple[str, str]:
    """Say what a step has to do with what to be kept, in the past tense."""
    if config.guarded in FIGURES:
        return "raised", f"the held-out {config.guarded}"
    return "lowered", f"the held-out {config.guarded} loss"


def _no_step(config: AlignConfig) -> str:
    kept = "" if config.keep_real is None else " and kept the retrieval of real images"
    return (
        f"no step {' '.join(_goal(config))}{kept}, so alignment is not applied: the encoder is the "
        "plain model; try a lower rate, more pairs or other weights"
    )


def _refusal(
    config: AlignConfig, gain: Mapping[str, float], kept: Mapping[str, float]
) -> str | None:
    """Say why the kept step is not applied; None where it is."""
    if config.apply == "always":
        return None
    plain = "so it is not applied: the encoder is the plain model"
    if not kept.get("eligible", 1.0):
        return f"the alignment costs real images more retrieval than keep_real allows, {plain}"
    if beyond_noise(gain["low"], gain["n"]) or (config.apply == "best" and gain["value"] > 0):
        return None
    verb, score = _goal(config)
    what = "the best step" if config.method == "gmail" else config.method
    figures = _figures(gain)
    if gain["value"] <= 0:
        return f"{what} has not {verb} {score}: its gain is {figures}, {plain}"
    if gain["n"] < FEWEST:
        return (
            f"{what} has {verb} {score} by {figures}, and fewer than {FEWEST} images cannot tell a "
            f"gain from noise, {plain}; hold out more real images"
        )
    return (
        f"{what} has {verb} {score} by {figures}, which is within noise, {plain}; try more pairs, "
        "a larger holdout or other weights"
    )


def _worse_than_shift(gain: Mapping[str, float]) -> str | None:
    """Say that a shift of the means does as much, if it does."""
    if beyond_noise(gain["low"], gain["n"]):
        return None
    return (
        "the best step does not beat a shift of the means beyond noise: its transfer exceeds that "
        f"by {_figures(gain)}, so it is not applied: the encoder is the plain model; try "
        "method=mean_shift, more pairs or other weights"
    )


def _figures(gain: Mapping[str, float]) -> str:
    return (
        f"{gain['value']:.4f} (95% interval {gain['low']:.4f} to {gain['high']:.4f} over "
        f"{gain['n']:.0f} images)"
    )


def _side_by_side(start: Mapping[str, float], kept: Mapping[str, float]) -> str:
    """Show what the guard measured before training and at the kept step, in one line."""
    shown = ("align_loss", "paired_cosine", "transfer", "retrieval", "zeroshot")
    names = [name for name in shown if name in start and name in kept]
    changes = [f"{name.replace('_', ' ')} {start[name]:.3f} -> {kept[name]:.3f}" for name in names]
    return f"held out, before -> step {kept['step']:.0f}: {', '.join(changes)}"
