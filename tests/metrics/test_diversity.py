from __future__ import annotations

import numpy as np
import pytest
import torch

from gmail_align.errors import UserError
from gmail_align.metrics import diversity as module
from gmail_align.metrics.diversity import diversity


def independent(real: np.ndarray, made: np.ndarray, k: int) -> dict[str, float]:
    """The four numbers by scikit-learn's neighbours and plain loops over images."""
    neighbors = pytest.importorskip("sklearn.neighbors")

    def radius(rows: np.ndarray) -> np.ndarray:
        search = neighbors.NearestNeighbors(n_neighbors=k + 1, algorithm="kd_tree").fit(rows)
        return search.kneighbors(rows)[0][:, -1]

    of_real, of_made = radius(real), radius(made)
    hits = [sum(np.linalg.norm(r - g) < of_real[at] for at, r in enumerate(real)) for g in made]
    result = [any(np.linalg.norm(r - g) < of_made[at] for at, g in enumerate(made)) for r in real]
    nearest = neighbors.NearestNeighbors(n_neighbors=1).fit(made).kneighbors(real)[0][:, 0]
    return {
        "precision": float(np.mean([hit > 0 for hit in hits])),
        "recall": float(np.mean(result)),
        "density": float(np.mean(hits)) / k,
        "coverage": float(np.mean(nearest < of_real)),
    }


@pytest.mark.parametrize(("shift", "spread", "k"), [(0.0, 1.0, 5), (0.8, 0.5, 3), (0.2, 1.5, 5)])
def test_the_four_numbers_are_those_of_an_independent_implementation(shift, spread, k, monkeypatch):
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(80, 6)), shift + spread * rng.normal(size=(60, 6))
    expected = independent(real, made, k)
    for block in (1 << 22, 500):  # all at once, and some rows at a time
        monkeypatch.setattr(module, "_DISTANCES", block)
        result = diversity(torch.from_numpy(real), torch.from_numpy(made), k=k)
        assert {name: one.value for name, one in result.items()} == pytest.approx(expected)
    assert all(one.low <= one.value <= one.high for one in result.values())


def test_a_generator_that_repeats_itself_is_precise_and_covers_little():
    rng = np.random.default_rng(0)
    real = torch.from_numpy(rng.normal(size=(200, 4)))
    few = real[:4].repeat(50, 1) + 1e-3 * torch.from_numpy(rng.normal(size=(200, 4)))
    result = diversity(real, few)
    assert result["precision"].value == 1 and result["coverage"].value < 0.2
    same = diversity(real, real + 0)
    assert same["precision"].value == same["recall"].value == same["coverage"].value == 1


def test_few_images_are_refused():
    with pytest.raises(UserError, match="more than 5"):
        diversity(torch.eye(6), torch.eye(6)[:5])
