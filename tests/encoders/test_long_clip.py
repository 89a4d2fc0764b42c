"""Long-CLIP's stretched positions, against the paper's rule written another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmail_align.encoders.backbones.clip import stretch_positions
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
    result = stretch_positions(table, old + more, kept)[:, 0]
    scale = (old + more - kept) / (old - kept)
    places = [j if j < kept else kept + (j - kept) / scale for j in range(old + more)]
    assert result.tolist() == pytest.approx([2 * place + 1 for place in places])


@pytest.mark.parametrize(("old", "new"), [(77, 76), (21, 40)])
def test_tables_that_cannot_be_stretched_are_refused(old: int, new: int) -> None:
    with pytest.raises(ModelError, match=f"{old} text positions cannot be stretched to {new}"):
        stretch_positions(torch.zeros(old, 4), new)
