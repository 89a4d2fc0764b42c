from __future__ import annotations

from itertools import permutations
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmail_align.errors import UserError
from gmail_align.metrics import ranks as module
from gmail_align.metrics.ranks import (
    Ranks,
    full_precision,
    label_ranks,
    recall_at,
    require_features,
    require_labels,
    require_pairs,
)


def every_order(above: int, tied: int, positives: int) -> tuple[float, dict[int, float]]:
    """Expected rank and hit probabilities by listing all orders of the tied group."""
    group = "p" * positives + "n" * tied
    first = [above + 1 + order.index("p") for order in permutations(group)]
    total = above + len(group)
    return float(np.mean(first)), {k: float(np.mean(np.array(first) <= k)) for k in range(1, total)}


@pytest.mark.parametrize("above", [0, 2])
@pytest.mark.parametrize("tied", [0, 1, 4])
@pytest.mark.parametrize("positives", [1, 2, 3])
def test_ties_are_broken_in_every_possible_order(above, tied, positives):
    rank, hits = every_order(above, tied, positives)
    result = Ranks(*(torch.tensor([count]) for count in (above, tied, positives)))
    assert float(result.expected) == pytest.approx(rank)
    for k, hit in hits.items():
        assert float(recall_at(result, k)) == pytest.approx(hit)
    assert float(recall_at(result, above + tied + 1)) == 1


@given(
    above=st.integers(0, 20),
    tied=st.integers(0, 200),
    positives=st.integers(1, 50),
    k=st.integers(1, 40),
)
def test_recall_is_hypergeometric(above, tied, positives, k):
    places = min(max(k - above, 0), tied + positives)
    expected = 1 - comb(tied, places) / comb(tied + positives, places)
    result = Ranks(*(torch.tensor([count]) for count in (above, tied, positives)))
    assert float(recall_at(result, k)) == pytest.approx(expected)


def test_recall_of_no_queries_is_empty():
    nothing = torch.zeros(0, dtype=torch.long)
    assert recall_at(Ranks(nothing, nothing, nothing), 3).shape == (0,)


@settings(deadline=None)
@given(st.data())
def test_label_ranks_counts_like_a_loop(data):
    # Directions in a plane, multiples of 30 degrees: equal cosines are frequent and clear-cut.
    angles = st.lists(st.integers(0, 11), min_size=1, max_size=9)
    queries, candidates = data.draw(angles), data.draw(angles)
    labels = data.draw(
        st.lists(st.integers(0, 3), min_size=len(candidates), max_size=len(candidates))
    )
    wanted = data.draw(
        st.lists(st.sampled_from(labels), min_size=len(queries), max_size=len(queries))
    )
    result = label_ranks(
        _directions(queries), _directions(candidates), torch.tensor(wanted), torch.tensor(labels)
    )
    for row, (angle, label) in enumerate(zip(queries, wanted, strict=True)):
        scores = [round(np.cos((angle - other) * np.pi / 6), 4) for other in candidates]
        own = [s for s, other in zip(scores, labels, strict=True) if other == label]
        others = [s for s, other in zip(scores, labels, strict=True) if other != label]
        assert int(result.above[row]) == sum(score > max(own) for score in others)
        assert int(result.tied[row]) == others.count(max(own))
        assert int(result.positives[row]) == own.count(max(own))


def _directions(angles: list[int]) -> torch.Tensor:
    turns = torch.tensor(angles) * torch.pi / 6
    return torch.stack([turns.cos(), turns.sin()], 1)


def test_blocks_do_not_change_ranks(monkeypatch):
    torch.manual_seed(0)
    queries, candidates = torch.randn(13, 4), torch.randn(9, 4)
    wanted, labels = torch.randint(0, 3, (13,)), torch.arange(9) % 3
    whole = label_ranks(queries, candidates, wanted, labels)
    monkeypatch.setattr(module, "_SCORES", 9 * 4)
    parts = label_ranks(queries, candidates, wanted, labels)
    assert torch.equal(whole.above, parts.above)


def test_full_precision_leaves_the_setting_as_it_was():
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision(torch.device("cpu")), pytest.raises(ZeroDivisionError):
            assert torch.get_float32_matmul_precision() == "highest"
            1 / 0  # noqa: B018
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"a": torch.ones(2, 3), "b": torch.ones(2, 4)}, "b have 4 dimensions and a have 3"),
        ({"a": torch.ones(2, 3, dtype=torch.long)}, "int64"),
        ({"a": torch.ones(3)}, r"shape \(3,\)"),
        ({"a": torch.ones(0, 3)}, "at least one row"),
        ({"a": torch.tensor([[1.0], [torch.nan]])}, "1 of 2 rows of a"),
        ({"a": torch.tensor([[torch.inf]], dtype=torch.float16)}, "1 of 1 rows of a"),
        ({"a": torch.ones(1, 2), "b": torch.ones(1, 2, device="meta")}, "b are on meta"),
    ],
)
def test_refuses_features(features, words):
    with pytest.raises(UserError, match=words):
        require_features(**features)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 3]), "1 of 2 labels are outside 0..2, for example 3"),
        (torch.tensor([-1, 0]), "for example -1"),
        (torch.tensor([0]), "2 integers"),
        (torch.tensor([0.0, 1.0]), "float32"),
        (torch.tensor([True, False]), "bool"),
    ],
)
def test_refuses_labels(labels, words):
    with pytest.raises(UserError, match=words):
        require_labels("labels", labels, 2, 3)


def test_refuses_what_is_no_pair():
    with pytest.raises(UserError, match="3 real and 2 generated"):
        require_pairs(torch.eye(3), torch.eye(3)[:2])
    with pytest.raises(UserError, match="1 group labels .* 2 pairs"):
        require_pairs(torch.eye(2), torch.eye(2), groups=torch.tensor([0]))


def test_refuses_a_query_without_a_match():
    with pytest.raises(UserError, match="1 of 2 queries"):
        label_ranks(torch.eye(2), torch.eye(2), torch.tensor([0, 5]), torch.tensor([0, 1]))
