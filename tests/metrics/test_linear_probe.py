"""The probe against its objective's gradient, and against plain fits of every weight decay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gmail_align.errors import UserError
from gmail_align.metrics import linear_probe as module
from gmail_align.metrics.linear_probe import GRID, Labelled, linear_probe

linear_model = pytest.importorskip("sklearn.linear_model")


def split(count: int, seed: int, *, noise: float = 1.5, scale: float = 1.0) -> Labelled:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.eye(3, 8) * 2
    rows = centres[labels] + noise * torch.randn(count, 8, generator=rng)
    return Labelled(rows * torch.linspace(scale, 1, 8) + 5, labels)


def test_the_grid_is_synclrs():
    assert len(GRID) == 45
    assert (GRID[0], GRID[-1]) == (pytest.approx(1e-6), pytest.approx(1e5))


def test_a_fit_is_where_the_gradient_of_the_objective_is_zero():
    data, decay = split(90, 0), 3.0
    model = module._Model(data).fit(decay)
    weights, bias = model.model.coef_, model.model.intercept_
    logits = model.rows @ weights.T + bias
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    apart = chances - np.eye(3)[model.labels]
    gradient = apart.T @ model.rows + decay * weights
    start = (np.full_like(chances, 1 / 3) - np.eye(3)[model.labels]).T @ model.rows
    assert np.abs(gradient).max() < 1e-2 * np.abs(start).max()
    assert np.abs(apart.sum(0)).max() < 0.2
    assert model.rows.mean(0) == pytest.approx(np.zeros(8), abs=1e-9)
    assert model.rows.std(0) == pytest.approx(np.ones(8))


def test_the_choice_and_the_hits_are_those_of_plain_fits():
    train, validation, test = split(60, 1), split(45, 2), split(60, 3)
    result = linear_probe(train, validation, test, grid=(1e-3, 1.0, 30.0, 1e4))

    def plain(fit_on, score_on, decay):
        rows, labels = fit_on.arrays()
        model = linear_model.LogisticRegression(C=1 / decay, max_iter=5000, tol=1e-8)
        model.fit((rows - rows.mean(0)) / rows.std(0), labels)
        wanted = score_on.arrays()
        return model.predict((wanted[0] - rows.mean(0)) / rows.std(0)) == wanted[1]

    scores = {decay: plain(train, validation, decay).mean() for decay in result.validation}
    assert result.validation == pytest.approx(scores)
    assert result.weight_decay == min(d for d, one in scores.items() if one == max(scores.values()))
    both = Labelled(
        torch.cat([train.features, validation.features]),
        torch.cat([train.labels, validation.labels]),
    )
    assert result.hits.astype(bool).tolist() == plain(both, test, result.weight_decay).tolist()
    assert result.unconverged == 0


def test_dimensions_count_alike_whatever_their_scale():
    splits = [split(60, seed) for seed in (1, 2, 3)]
    wide = [split(60, seed, scale=1000.0) for seed in (1, 2, 3)]
    first, second = (linear_probe(*three, grid=(1.0, 100.0)) for three in (splits, wide))
    assert first.hits.tolist() == second.hits.tolist()


def test_a_fifth_is_held_out_without_validation_images():
    result = linear_probe(split(100, 1), None, split(60, 3), grid=(1.0, 1e5))
    again = linear_probe(split(100, 1), None, split(60, 3), grid=(1.0, 1e5))
    assert result.validation == again.validation
    assert all(round(20 * score, 6) == round(20 * score) for score in result.validation.values())
    assert 0.5 < result.hits.mean() < 1


def test_the_choice_may_be_by_class():
    labels = torch.tensor([0] * 80 + [1] * 8)
    rng = torch.Generator().manual_seed(0)
    rows = labels[:, None] + 0.8 * torch.randn(88, 4, generator=rng)
    data = Labelled(rows, labels)
    by_image = linear_probe(data, data, data, grid=(1.0, 1e5))
    by_class = linear_probe(data, data, data, grid=(1.0, 1e5), by_class=True)
    assert by_class.validation[1e5] == pytest.approx(0.5)
    assert by_image.validation[1e5] == pytest.approx(80 / 88)


def test_fits_that_do_not_converge_are_counted(monkeypatch):
    monkeypatch.setattr(module, "_MOST_STEPS", 1)
    assert (
        linear_probe(split(60, 1), split(60, 2), split(60, 3), grid=(1e-6, 1e-5)).unconverged == 3
    )


def test_refuses():
    good = split(30, 1)
    narrow = Labelled(good.features[:, :4], good.labels)
    short = Labelled(good.features, good.labels[:-1])
    negative = Labelled(good.features, good.labels - 1)
    one = Labelled(good.features, torch.zeros(30, dtype=torch.int64))
    for splits, words in (
        ((good, None, narrow), "dimensions"),
        ((good, short, good), "30 integers are needed"),
        ((negative, None, good), "outside"),
        ((one, None, good), "at least two classes"),
    ):
        with pytest.raises(UserError, match=words):
            linear_probe(*splits)
    with pytest.raises(UserError, match="positive numbers"):
        linear_probe(good, None, good, grid=(0.0,))
