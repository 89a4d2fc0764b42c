"""The choices that the paper's text leaves open: each by hand, and all of them across a kill."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from gmail_align.alignment import run as module
from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.embedding import Batch, loss_terms
from gmail_align.alignment.losses import alignment_loss
from gmail_align.alignment.run import Sources, align
from gmail_align.alignment.terms import needed_features
from gmail_align.artifacts import Artifact
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError
from gmail_align.progress import LOG
from gmail_align.training.config import OptimConfig
from worlds.encoders import disturb

OPTIM = OptimConfig(steps=8, lr=2e-3, schedule="constant", checkpoint_every=3, evaluate_every=4)
SMALL = {"batch_size": 6, "holdout": 0.25, "optim": OPTIM, "apply": "best", "keep_real": None}
Run = Callable[..., Artifact]


@pytest.fixture
def run(clip_folder: Path, world: Any, tmp_path: Path) -> Run:
    """Align the tiny world into ``tmp_path / name``."""

    def go(name: str, **changes: Any) -> Artifact:
        config = AlignConfig(**{**SMALL, **changes})
        sources = Sources(world.pairs, world.real, world.generated)
        cache = tmp_path / "cache"
        return align(config, sources, clip_folder, tmp_path / name, seed=3, cache=cache)

    return go


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What is trained, as it was when each step began."""
    states, terms = [], module.loss_terms

    def spy(encoder: GmailEncoder, *given: Any) -> Any:
        states.append({n: p.detach().clone() for n, p in encoder.trainable().items()})
        return terms(encoder, *given)

    monkeypatch.setattr(module, "loss_terms", spy)
    return states


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("route", [Route.REAL_HEAD, Route.REAL])
def test_eq1_may_read_real_images_by_another_route(
    route: Route, stop: bool, clip_folder: Path
) -> None:
    encoder = disturb(GmailEncoder.from_clip(clip_folder))
    rng = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=rng)
    inputs = {"generated": images[0], str(route): images[1]}
    batch = Batch(inputs, {}, torch.tensor([[n, n, n] for n in range(4)]))
    eq1 = {"text_generated": 0.0, "text_real": 0.0}
    config = AlignConfig(weights=eq1, target=route.value, stop_gradient=stop, temperature=0.2)
    assert needed_features(config) == {"generated", route.value}
    term = loss_terms(encoder, batch, config)["align"]
    made, real = (encoder.preprocess.normalise(pixels) for pixels in images)
    expected = alignment_loss(
        encoder.embed_pixels(made, Route.GENERATED),
        encoder.embed_pixels(real, route),
        temperature=0.2,
    )
    assert torch.allclose(term, expected, atol=1e-5)
    term.backward()
    assert (encoder.real_head.grad is None) == stop
    assert encoder.generated_head.grad is not None


def test_heads_may_have_a_rate_of_their_own(run: Run, seen: list[dict[str, torch.Tensor]]) -> None:
    """Adam's first step moves every weight by its rate, whatever the gradient."""
    optim = OPTIM.model_copy(update={"steps": 2, "weight_decay": 0.0})
    run("rates", lr_heads=1e-4, optim=optim)
    moved = {n: float((seen[1][n] - before).abs().max()) for n, before in seen[0].items()}
    assert moved["generated_head"] == pytest.approx(1e-4, rel=0.01)
    assert moved["real_head"] == pytest.approx(1e-4, rel=0.01)
    (lora,) = {round(m, 5) for n, m in moved.items() if ".lora_B." in n}
    assert lora == pytest.approx(2e-3, rel=0.01)


@pytest.mark.parametrize("micro", [None, 4])
def test_the_adapter_first_and_then_the_heads(
    micro: int | None, run: Run, seen: list[dict[str, torch.Tensor]], monkeypatch: Any
) -> None:
    if micro:  # the spy looks at whichever function the run calls
        monkeypatch.setattr(module, "piecewise_terms", _spied(seen))
    optim = OPTIM.model_copy(update={"steps": 3})
    run("phases", phases="lora_then_heads", lora_steps=1, optim=optim, micro_batch=micro)
    heads = {"generated_head", "real_head"}
    moved = [
        {name for name, value in after.items() if not torch.equal(value, before[name])}
        for before, after in pairwise(seen)
    ]
    assert all(".lora_" in name for name in moved[0])
    assert moved[0]
    assert moved[1] == heads


def _spied(states: list[dict[str, torch.Tensor]]) -> Callable[..., Any]:
    terms = module.piecewise_terms

    def spy(encoder: GmailEncoder, *given: Any) -> Any:
        states.append({n: p.detach().clone() for n, p in encoder.trainable().items()})
        return terms(encoder, *given)

    return spy


def test_all_of_them_together_end_with_the_same_bytes_after_a_kill(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {
        "encoder": {"norm": "batch"},
        "target": "real",
        "stop_gradient": False,
        "lr_heads": 5e-3,
        "phases": "lora_then_heads",
        "lora_steps": 4,
    }
    whole = run("whole", **every)
    assert whole.manifest["notes"]["applied"] is True
    calls, terms = [0], module.loss_terms

    def dying(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return terms(*given)

    with monkeypatch.context() as patch:
        patch.setattr(module, "loss_terms", dying)
        with pytest.raises(KeyboardInterrupt):
            run("killed", **every)
    gc.collect()
    killed = run("killed", **every)
    for path in (
        p for p in whole.folder.rglob("*") if p.is_file() and p.name not in ("manifest.json", LOG)
    ):
        again = killed.folder / path.relative_to(whole.folder)
        assert again.read_bytes() == path.read_bytes(), path.name
    layers = GmailEncoder.from_pretrained(whole.folder).heads.norms
    means = [layers[name].statistics["mean"] for name in ("real", "generated")]
    assert not torch.equal(*means)  # each modality has its own


def test_norms_begin_by_undoing_themselves(
    run: Run, seen: list[dict[str, torch.Tensor]], clip_folder: Path
) -> None:
    run("layer", encoder={"norm": "layer"}, optim=OPTIM.model_copy(update={"steps": 1}))
    gain, shift = (seen[0][f"norm.generated.{name}"] for name in ("weight", "bias"))
    assert len(gain.unique()) == len(shift.unique()) == 1  # one number each, for all dimensions
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pooled = GmailEncoder.from_clip(clip_folder).trunk(pixels)
    again = gain * torch.nn.functional.layer_norm(pooled, pooled.shape[1:]) + shift
    assert torch.cosine_similarity(again, pooled).min() > 0.95


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"encoder": {"norm": "batch"}, "micro_batch": 2}, "norm=batch"),
        ({"encoder": {"norm": "batch"}, "dual_heads": False}, "norm=batch"),
        ({"encoder": {"tune": "none"}, "phases": "lora_then_heads"}, "lora_then_heads"),
        ({"phases": "lora_then_heads", "lora_steps": 8}, "lora_steps"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], named: str, run: Run
) -> None:
    with pytest.raises(ConfigError, match=named):
        run("refused", **changes)


def test_defaults_leave_no_trace_in_what_is_written() -> None:
    """So that encoders and work folders from before these settings stay as they are."""
    written = AlignConfig().model_dump(mode="json")
    new = {"target", "stop_gradient", "lr_heads", "phases", "lora_steps"}
    assert not new & written.keys()
    assert "norm" not in written["encoder"]
    changed = AlignConfig(encoder={"norm": "layer"}, stop_gradient=False).model_dump(mode="json")
    assert changed["encoder"]["norm"] == "layer"
    assert changed["stop_gradient"] is False
