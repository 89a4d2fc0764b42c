from __future__ import annotations

import numpy as np
import pytest
import torch

from gmail_align.errors import UserError
from gmail_align.metrics.pair_gap import gap_metrics, gen_to_real_recall, pair_columns

NAMES = ["paired_cosine", "unpaired_cosine", "margin", "gen_to_real_r1", "gen_to_real_r5"]
NAMES += ["probe_auc", "centroid_distance", "norm_ratio"]


def pairs(n: int = 80, d: int = 12, *, shift: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Generated features that resemble their real ones, moved by ``shift`` on every axis."""
    torch.manual_seed(0)
    real = torch.randn(n, d) + 0.3
    return real, 1.3 * (real + 0.6 * torch.randn(n, d) + shift)


def cosines(real: torch.Tensor, generated: torch.Tensor) -> np.ndarray:
    a, b = real.double().numpy(), generated.double().numpy()
    norms = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return (a @ b.T) / norms


def test_values_are_those_of_the_full_cosine_matrix():
    real, generated = pairs()
    matrix = cosines(real, generated)
    off = matrix[~np.eye(80, dtype=bool)].mean()
    result = gap_metrics(real, generated)
    assert list(result) == NAMES
    assert result["paired_cosine"].value == pytest.approx(np.diag(matrix).mean(), abs=1e-6)
    assert result["unpaired_cosine"].value == pytest.approx(off, abs=1e-7)
    assert result["margin"].value == pytest.approx(np.diag(matrix).mean() - off, abs=1e-6)
    means = [torch.nn.functional.normalize(one).mean(0) for one in (real, generated)]
    assert result["centroid_distance"].value == pytest.approx(float((means[0] - means[1]).norm()))
    norms = [float(one.norm(dim=1).mean()) for one in (real, generated)]
    assert result["norm_ratio"].value == pytest.approx(norms[1] / norms[0])
    for name, one in result.items():
        assert one.low <= one.value <= one.high and one.n == 80, name


def test_hand_computed():
    real = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    generated = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    result = {name: one.value for name, one in gap_metrics(real, generated).items()}
    assert result["paired_cosine"] == pytest.approx((1 + 0.8) / 2)
    assert result["unpaired_cosine"] == pytest.approx((0.6 + 0) / 2)
    assert result["margin"] == pytest.approx(0.6)
    assert result["centroid_distance"] == pytest.approx(np.hypot(0.3, 0.1))
    assert result["norm_ratio"] == pytest.approx(3 / 2)


def test_unpaired_interval_is_that_of_a_loop_over_resamples():
    real, generated = pairs(n=12)
    matrix, rng, means = cosines(real, generated), np.random.default_rng(0), []
    for drawn in rng.integers(12, size=(1000, 12)):
        couples = [matrix[i, j] for i in drawn for j in drawn if i != j]
        means.append(np.mean(couples))
    result = gap_metrics(real, generated)["unpaired_cosine"]
    assert [result.low, result.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-6)


def test_no_gap_has_a_centroid_interval_near_zero():
    torch.manual_seed(0)
    result = gap_metrics(torch.randn(300, 16), torch.randn(300, 16))["centroid_distance"]
    assert result.low < 0.05 < result.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_recall_of_a_collapsed_generator_is_chance(value):
    result = gen_to_real_recall(torch.full((50, 6), value), torch.ones(50, 6), ks=(1, 5, 90))
    assert [float(result[k].mean()) for k in (1, 5, 90)] == pytest.approx([1 / 50, 5 / 50, 1])


def test_recall_is_that_of_a_sort():
    real, generated = pairs()
    order = np.argsort(-cosines(generated, real), axis=1)
    for k, hits in gen_to_real_recall(generated, real, ks=(1, 5)).items():
        assert hits.tolist() == [row in order[row, :k] for row in range(80)]


def test_pairs_of_a_group_match_one_another():
    real = torch.eye(4)
    swapped = real[[1, 0, 3, 2]]
    alone = gen_to_real_recall(swapped, real, ks=(1,))[1]
    grouped = gen_to_real_recall(swapped, real, ks=(1,), groups=torch.tensor([7, 7, 3, 3]))[1]
    assert alone.tolist() == [0] * 4 and grouped.tolist() == [1] * 4


def test_groups_are_resampled_whole():
    real, generated = pairs(n=40)
    single = gap_metrics(real, generated)
    groups = torch.arange(40).repeat_interleave(3)
    copied = gap_metrics(real[groups], generated[groups], groups=groups)
    assert copied["margin"].n == 40
    for name in ("paired_cosine", "centroid_distance", "norm_ratio", "gen_to_real_r1"):
        assert copied[name].low == pytest.approx(single[name].low, abs=1e-6)
        assert copied[name].high == pytest.approx(single[name].high, abs=1e-6)


def test_resamples_of_a_single_pair_leave_no_unpaired_couples():
    torch.manual_seed(0)
    real = torch.randn(3, 4)
    result = gap_metrics(real, real + 0.1 * torch.randn(3, 4))["unpaired_cosine"]
    assert -1 <= result.low <= result.value <= result.high <= 1


def test_refuses_one_pair_and_nan():
    with pytest.raises(UserError, match="too few pairs: 1"):
        gap_metrics(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(UserError, match="2 of 2 rows of generated"):
        gap_metrics(torch.eye(2), torch.full((2, 2), torch.nan))


def test_what_each_real_image_adds_gives_the_same_values():
    """Two pairs of one real image are one item."""
    real, generated = pairs(40)
    real[1], groups = real[0], torch.tensor([0, *range(39)])
    result = gap_metrics(real, generated, groups=groups)
    columns = pair_columns(real, generated, groups)
    assert {len(column.values) for column in columns.values()} == {39}
    for name, column in columns.items():
        assert column.value == pytest.approx(result[name].value, abs=1e-6)
