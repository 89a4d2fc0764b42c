"""Long-CLIP's stretched positions and its loss, against the paper's rules written another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from gmail_align.encoders.backbones.clip import stretch_positions
from gmail_align.encoders.long_clip import (
    first_sentence,
    long_short_loss,
    principal_part,
)
from gmail_align.errors import ModelError


def released_rule(table: np.ndarray) -> np.ndarray:
    """77 rows to 248, row by row: quarters between neighbours, the last slope goes on."""
    rows = [table[i] for i in range(20)]
    for i in range(20, 76):
        rows += [((4 - q) * table[i] + q * table[i + 1]) / 4 for q in range(4)]
    last = (table[76] - table[75]) / 4
    rows += [table[76] + q * last for q in range(4)]
    return np.stack(rows)


def test_77_positions_become_248_by_the_released_rule() -> None:
    table = torch.randn(77, 6, generator=torch.Generator().manual_seed(0))
    stretched = stretch_positions(table, 248)
    assert stretched.shape == (248, 6)
    assert torch.equal(stretched[:20], table[:20])
    expected = released_rule(table.double().numpy())
    assert np.abs(stretched.numpy() - expected).max() < 1e-6


@given(st.integers(3, 40), st.integers(0, 60), st.integers(1, 5))
def test_other_lengths_interpolate(old: int, more: int, kept: int) -> None:
    """A linear table stays linear: row kept + j is at kept + j / s, also behind the old end."""
    old = max(old, kept + 2)
    table = torch.arange(old, dtype=torch.float64)[:, None] * 2 + 1
    found = stretch_positions(table, old + more, kept)[:, 0]
    scale = (old + more - kept) / (old - kept)
    places = [j if j < kept else kept + (j - kept) / scale for j in range(old + more)]
    assert found.tolist() == pytest.approx([2 * place + 1 for place in places])


@pytest.mark.parametrize(("old", "new"), [(77, 76), (21, 40)])
def test_tables_that_cannot_be_stretched_are_refused(old: int, new: int) -> None:
    with pytest.raises(ModelError, match=f"{old} text positions cannot be stretched to {new}"):
        stretch_positions(torch.zeros(old, 4), new)


def test_the_principal_part_is_that_of_an_eigendecomposition() -> None:
    features = torch.randn(12, 7, generator=torch.Generator().manual_seed(1))
    unit = normalize(features, dim=-1).double().numpy()
    centred = unit - unit.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    for count in (1, 3, 7):
        best = axes[:, -count:]
        expected = centred @ best @ best.T + unit.mean(0)
        assert np.abs(principal_part(features, count).numpy() - expected).max() < 1e-5
    assert torch.allclose(principal_part(features, 7), normalize(features, dim=-1), atol=1e-5)


def test_a_batch_smaller_than_the_dimension_has_finite_gradients() -> None:
    features = torch.randn(4, 16, requires_grad=True)
    principal_part(features, 32).square().sum().backward()
    assert torch.isfinite(features.grad).all()


def plain_loss(images: np.ndarray, texts: np.ndarray, scale: float, smoothing: float) -> float:
    """Symmetric cross-entropy with smoothed labels, from the definition."""
    count, total = len(images), 0.0
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    for logits in (scale * images @ texts.T, scale * texts @ images.T):
        for i, row in enumerate(logits):
            label = np.full(count, smoothing / count)
            label[i] += 1 - smoothing
            log_share = row - np.log(np.exp(row).sum())
            total -= float(label @ log_share) / count / 2
    return total


def test_the_loss_is_long_plus_short() -> None:
    generator = torch.Generator().manual_seed(2)
    images, long_texts, short_texts = (torch.randn(6, 5, generator=generator) for _ in range(3))
    terms = long_short_loss(images, long_texts, short_texts, 4.0, components=2)
    unit = normalize(images, dim=-1)
    long = plain_loss(unit.numpy(), long_texts.numpy(), 4.0, 0.1)
    short = plain_loss(principal_part(images, 2).numpy(), short_texts.numpy(), 4.0, 0.1)
    assert float(terms["long"]) == pytest.approx(long, abs=1e-5)
    assert float(terms["short"]) == pytest.approx(short, abs=1e-5)
    assert float(terms["total"]) == pytest.approx(long + short, abs=1e-5)


def test_masked_pairs_leave_the_short_term() -> None:
    """Three pairs, the first two with one short caption: row 0 has row 2 as its only negative."""
    features = torch.eye(3)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    terms = long_short_loss(features, features, features, 1.0, smoothing=0.0, same=same)
    e = np.e
    expected = (2 * np.log((e + 1) / e) + np.log((e + 2) / e)) / 3
    assert float(terms["short"]) == pytest.approx(expected, abs=1e-6)


def test_masked_pairs_have_no_part_of_a_smoothed_label() -> None:
    """With pairs 0 and 1 masked, row 0 is the loss of the columns 0 and 2 alone."""
    generator = torch.Generator().manual_seed(3)
    images, long_texts, short_texts = (torch.randn(3, 5, generator=generator) for _ in range(3))
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    found = long_short_loss(images, long_texts, short_texts, 4.0, same_long=same)["long"]
    table = 4.0 * normalize(images, dim=-1) @ normalize(long_texts, dim=-1).T
    losses = []
    for logits in (table, table.T):
        for row, columns in ((0, [0, 2]), (1, [1, 2]), (2, [0, 1, 2])):
            kept, label = logits[row, columns][None], torch.tensor([columns.index(row)])
            losses.append(torch.nn.functional.cross_entropy(kept, label, label_smoothing=0.1))
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_the_first_sentence() -> None:
    assert first_sentence("A red ball. It is big.") == "A red ball"
    assert first_sentence("A red ball.") == "A red ball."


def test_directions_without_variance_have_no_gradient() -> None:
    """Four images span three directions; the fourth axis of the decomposition is any other."""
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(5)).requires_grad_()
    weights = torch.randn(4, 16, generator=torch.Generator().manual_seed(6))
    gradients = []
    for noise in (0.0, 1e-7):
        found = principal_part(features + noise * weights.flip(0), 32)
        gradients.append(torch.autograd.grad((found * weights).sum(), features)[0])
    assert torch.allclose(*gradients, atol=1e-4)
