"""Eq. 1 and its companions against hand-made values and an independent float64 implementation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from gmail_align.alignment.losses import (
    alignment_loss,
    alignment_losses,
    distillation_losses,
    norm_losses,
)
from gmail_align.errors import ConfigError, DataError
from gmail_align.training.losses import contrastive_text_losses, sigmoid_text_losses

REFUSED = (DataError, TypeCheckError)
"""What shapes that do not fit raise: ours, or jaxtyping's where its checks are switched on."""


def naive_eq1(
    generated: np.ndarray, real: np.ndarray, temperature: float, same: np.ndarray | None = None
) -> float:
    """Eq. 1, one pair after another, in Python floats."""
    total = 0.0
    for i, row in enumerate(generated):
        parts = []
        for j, other in enumerate(real):
            if i != j and same is not None and same[i, j]:
                continue
            cosine = float(row @ other) / math.sqrt(float(row @ row) * float(other @ other))
            parts.append((i == j, cosine / temperature))
        top = max(value for _, value in parts)
        denominator = sum(math.exp(value - top) for _, value in parts)
        positive = next(value for own, value in parts if own)
        total -= positive - top - math.log(denominator)
    return total / len(generated)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Features of a batch, groups of its pairs and a temperature."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, dim = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    groups = rng.integers(0, draw(st.integers(1, 9)), size)
    temperature = draw(st.sampled_from([0.01, 0.07, 0.5, 3.0]))
    left, right = rng.normal(size=(2, size, dim)) * draw(st.sampled_from([0.1, 1.0, 30.0]))
    return left, right, groups[:, None] == groups[None, :], temperature


def _torch(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def test_a_batch_of_three_by_hand() -> None:
    generated = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, -3.0]])
    real = torch.tensor([[5.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    # cosines: [1 0 1], [0 1 0], [0 -1 0]; temperature 1
    e = math.e
    rows = [math.log(e / (2 * e + 1)), math.log(e / (e + 2)), math.log(1 / (2 + 1 / e))]
    result = alignment_loss(generated, real, temperature=1.0)
    assert float(result) == pytest.approx(-sum(rows) / 3, abs=1e-6)
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    rows = [math.log(e / (e + 1)), math.log(e / (e + 2)), math.log(1 / (1 + 1 / e))]
    result = alignment_loss(generated, real, temperature=1.0, same=same)
    assert float(result) == pytest.approx(-sum(rows) / 3, abs=1e-6)


@given(batches())
@settings(max_examples=60, deadline=None)
def test_equals_the_naive_implementation(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray, float],
) -> None:
    left, right, same, temperature = batch
    generated, real, mask = _torch(left, right, same)
    for given_mask, naive_mask in ((None, None), (mask, same)):
        result = alignment_loss(generated, real, temperature=temperature, same=given_mask)
        expected = naive_eq1(left, right, temperature, naive_mask)
        assert float(result) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    scale = 1 / temperature
    expected = naive_eq1(left, right, temperature, same)
    expected = (expected + naive_eq1(right, left, temperature, same.T)) / 2
    text = contrastive_text_losses(generated, real, scale, mask).mean()
    assert float(text) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(batches())
@settings(max_examples=25, deadline=None)
def test_gradients_equal_finite_differences(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray, float],
) -> None:
    left, right, same, _ = batch
    generated, real, mask = _torch(left, right, same)
    generated.requires_grad_()
    alignment_loss(generated, real, temperature=0.5, same=mask).backward()
    rng = np.random.default_rng(0)
    towards = rng.normal(size=left.shape)
    step = 1e-6 * np.abs(left).max()
    up = naive_eq1(left + step * towards, right, 0.5, same)
    down = naive_eq1(left - step * towards, right, 0.5, same)
    slope = float((generated.grad.numpy() * towards).sum())
    assert slope == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("size", [2, 64, 256])
def test_chance_is_ln_b(size: int) -> None:
    one = torch.ones(size, 8)
    assert float(alignment_loss(one, one)) == pytest.approx(math.log(size), abs=1e-5)


def test_neither_norm_nor_order_of_pairs_matters() -> None:
    generator = torch.Generator().manual_seed(0)
    generated, real = torch.randn(2, 6, 5, generator=generator)
    loss = alignment_loss(generated, real)
    scales = torch.rand(6, 1, generator=generator) + 0.1
    assert torch.allclose(alignment_loss(generated * scales, real / scales), loss, atol=1e-6)
    order = torch.randperm(6, generator=generator)
    assert torch.allclose(alignment_loss(generated[order], real[order]), loss, atol=1e-6)


def test_generated_images_are_no_negatives() -> None:
    """A generated image that equals another one changes nothing for that other one."""
    real = torch.eye(3)
    first = alignment_loss(torch.eye(3), real)
    twin = torch.eye(3)
    twin[2] = twin[0]
    both = naive_eq1(twin.numpy(), real.numpy(), 0.07)
    assert float(alignment_loss(twin, real)) == pytest.approx(both, abs=1e-5)
    assert float(first) < both


def test_everything_masked_leaves_the_positive_alone() -> None:
    generated, real = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    every = torch.ones(4, 4, dtype=torch.bool)
    assert float(alignment_loss(generated, real, same=every)) == 0.0


def test_directions() -> None:
    generator = torch.Generator().manual_seed(2)
    generated, real = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    same = torch.rand(5, 5, generator=generator) < 0.3
    there = alignment_loss(generated, real, direction="g2r", same=same)
    back = alignment_loss(generated, real, direction="r2g", same=same)
    both = alignment_loss(generated, real, direction="both", same=same)
    assert torch.equal(there, alignment_loss(generated, real, same=same))
    assert torch.equal(back, alignment_loss(real, generated, same=same.T))
    assert torch.allclose(both, (there + back) / 2)
    by_text = contrastive_text_losses(generated, real, 1 / 0.07, same).mean()
    assert torch.allclose(both, by_text)


def test_the_text_loss_is_clips() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    images, texts = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(3))
    cosines = torch.nn.functional.normalize(texts) @ torch.nn.functional.normalize(images).T
    expected = image_text_contrastive_loss(cosines * 14.3)
    result = contrastive_text_losses(images, texts, torch.tensor(14.3)).mean()
    assert torch.allclose(result, expected, atol=1e-6)


def test_half_precision_features_are_compared_in_fp32() -> None:
    generated, real = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(4))
    low, high = generated.bfloat16(), real.bfloat16()
    expected = alignment_loss(low.float(), high.float())
    with torch.autocast("cpu", torch.bfloat16):
        result = alignment_loss(low, high)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_distillation_is_one_minus_cosine() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    frozen = torch.tensor([[3.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    expected = (0 + 2 + 1 - 1 / math.sqrt(2)) / 3
    assert float(distillation_losses(features, frozen).mean()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((0, 3), (0, 3)), ((3,), (3,))]
)
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    left, right = (torch.ones(shape) for shape in shapes)
    for loss in (alignment_loss, distillation_losses, norm_losses):
        with pytest.raises(REFUSED, match="shapes|Type-check"):
            loss(left, right)
    with pytest.raises(REFUSED, match="shapes|Type-check"):
        contrastive_text_losses(left, right, 10.0).mean()


def test_a_mask_or_temperature_that_does_not_fit_is_refused() -> None:
    one = torch.ones(3, 2)
    with pytest.raises(REFUSED, match="same has shape|Type-check"):
        alignment_loss(one, one, same=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ConfigError, match="temperature"):
        alignment_loss(one, one, temperature=0.0)


def naive_summed(
    left: np.ndarray, right: np.ndarray, temperature: float, same: np.ndarray
) -> float:
    """Eq. 1 whose numerator is the sum over all positives, one pair after another."""
    total = 0.0
    for i, row in enumerate(left):
        parts = [
            float(row @ other) / math.sqrt(float(row @ row) * float(other @ other)) / temperature
            for other in right
        ]
        top = max(parts)
        shares = [math.exp(value - top) for value in parts]
        own = math.fsum(share for j, share in enumerate(shares) if i == j or same[i, j])
        total -= math.log(own / math.fsum(shares))
    return total / len(left)


@given(batches())
@settings(max_examples=40, deadline=None)
def test_summed_positives_equal_the_naive_implementation(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray, float],
) -> None:
    left, right, same, temperature = batch
    temperature = max(temperature, 0.07)
    generated, real, mask = _torch(left, right, same)
    given_all = {"temperature": temperature, "same": mask, "positives": "sum"}
    expected = naive_summed(left, right, temperature, same)
    assert float(alignment_loss(generated, real, **given_all)) == pytest.approx(expected, abs=1e-8)
    back = naive_summed(right, left, temperature, same.T)
    text = contrastive_text_losses(generated, real, 1 / temperature, mask, "sum").mean()
    assert float(text) == pytest.approx((expected + back) / 2, abs=1e-8)
    generated.requires_grad_()
    alignment_loss(generated, real, **given_all).backward()
    assert torch.isfinite(generated.grad).all()


def test_without_shared_pairs_summing_and_masking_are_the_same() -> None:
    generated, real = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(5))
    eye = torch.eye(6, dtype=torch.bool)
    plain = alignment_loss(generated, real)
    for positives in ("mask", "sum"):
        result = alignment_loss(generated, real, same=eye, positives=positives)
        assert torch.allclose(result, plain, atol=1e-6)


def test_a_learned_temperature_has_the_slope_of_finite_differences() -> None:
    generated, real = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(6)).double()
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    alignment_loss(generated, real, temperature=temperature).backward()
    up, down = (alignment_loss(generated, real, temperature=0.2 + off) for off in (1e-6, -1e-6))
    assert float(temperature.grad) == pytest.approx(float(up - down) / 2e-6, rel=1e-5)


def test_the_norm_penalty_by_hand() -> None:
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, -2.0]])
    frozen = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])  # mean norm 2
    assert float(norm_losses(features, frozen).mean()) == pytest.approx(
        (0.5 + 0.5 + 0) / 3, abs=1e-6
    )


def test_every_pair_has_a_loss_of_its_own() -> None:
    generated, real = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(7)).double()
    same = torch.tensor([0, 1, 2, 0, 3, 4])[:, None] == torch.tensor([0, 1, 2, 0, 3, 4])[None]
    losses = alignment_losses(generated, real, same=same)
    assert torch.allclose(losses.mean(), alignment_loss(generated, real, same=same))
    for row in range(6):
        others = [j for j in range(6) if j == row or not same[row, j]]
        cosines = torch.cosine_similarity(generated[row], real[others], dim=-1) / 0.07
        expected = torch.logsumexp(cosines, 0) - cosines[others.index(row)]
        assert float(losses[row]) == pytest.approx(float(expected))


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 12),
    chunk=st.integers(1, 13),
    direction=st.sampled_from(["g2r", "r2g", "both"]),
    positives=st.sampled_from(["mask", "sum"]),
)
@settings(max_examples=25)
def test_chunks_of_rows_and_groups_give_the_losses_and_gradients_of_the_whole_table(
    seed: int, size: int, chunk: int, direction: Any, positives: Any
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, size, 6, generator=generator)
    groups = torch.randint(0, 5, (size, 2), generator=generator)
    same = (groups[:, None] == groups[None]).any(dim=-1)
    results = []
    for how in ({"same": groups, "chunk": chunk}, {"same": same}):
        rows, columns = left.clone().requires_grad_(), right.clone().requires_grad_()
        temperature = torch.tensor(0.2, requires_grad=True)
        how = {**how, "positives": positives}
        eq1 = alignment_loss(rows, columns, direction=direction, temperature=temperature, **how)
        text = contrastive_text_losses(rows, columns, 5.0, **how)
        text = text + sigmoid_text_losses(rows, columns, 5.0, -2.0, **how)
        (eq1 + 3 * text.mean()).backward()
        results.append([eq1, text, rows.grad, columns.grad, temperature.grad])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-6)


def test_a_chunked_loss_holds_no_table_of_all_pairs() -> None:
    """What autograd keeps between forward and backward grows with the batch, not its square."""
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    size, rows = 256, torch.randn(256, 4, requires_grad=True)
    groups = torch.arange(size)[:, None].repeat(1, 2)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alignment_loss(rows, torch.randn(size, 4), temperature=0.1, same=groups, chunk=16)
    assert max(kept) <= 8 * size
