"""Training-free maps against numpy in float64, and as a method of the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.linalg import matrix_power

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.pair_index import hold_out
from gmail_align.alignment.run import Sources, align
from gmail_align.alignment.training_free import MAPS, Moments, coral, mean_shift, shift_scale
from gmail_align.data.pairs import read_pairs
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.run import extract_images
from gmail_align.features.store import open_features

RIDGE = 1e-3


@pytest.fixture
def two_sets() -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of two modalities, of other sizes, means, scales and axes."""
    rng = np.random.default_rng(0)
    generated = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 3
    real = 0.4 * rng.normal(size=(70, 6)) @ rng.normal(size=(6, 6)) - 1
    return generated, real


def _moments(*two_sets: np.ndarray) -> list[Moments]:
    return [Moments.of(torch.from_numpy(one_set)) for one_set in two_sets]


def test_moments_are_those_of_numpy(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    rows = torch.arange(3, 40)
    for one_set in two_sets:
        for result, given in (
            (_moments(one_set)[0], one_set),
            (_moments(one_set[3:40])[0], one_set[3:40]),
        ):
            assert np.allclose(result.mean.numpy(), given.mean(0), atol=1e-12)
            assert np.allclose(result.covariance.numpy(), np.cov(given.T, bias=True), atol=1e-12)
        some = Moments.of(torch.from_numpy(one_set), rows)
        assert torch.allclose(some.covariance, _moments(one_set[3:40])[0].covariance)
    with pytest.raises(DataError):
        Moments.of(torch.ones(1, 4))
    with pytest.raises(DataError):
        Moments.of(torch.full((3, 4), float("nan")))


def test_a_shift_matches_means(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    generated, real = two_sets
    result = mean_shift(*_moments(*two_sets))(torch.from_numpy(generated)).numpy()
    assert np.allclose(result, generated - generated.mean(0) + real.mean(0), atol=1e-12)


def test_shift_and_scale_match_the_mean_and_the_total_variance(
    two_sets: tuple[np.ndarray, np.ndarray],
) -> None:
    generated, real = two_sets
    result = shift_scale(*_moments(*two_sets))(torch.from_numpy(generated)).numpy()
    scale = np.sqrt(real.var(0).sum() / generated.var(0).sum())
    expected = (generated - generated.mean(0)) * scale + real.mean(0)
    assert np.allclose(result, expected, atol=1e-12)
    assert result.var(0).sum() == pytest.approx(real.var(0).sum())


def test_coral_matches_the_covariance(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    """``A`` is symmetric root times inverse root of both covariances with their ridges."""
    generated, real = two_sets
    fitted = coral(*_moments(*two_sets))
    covariances = [
        np.cov(one_set.T, bias=True) + RIDGE * one_set.var(0).mean() * np.eye(6)
        for one_set in two_sets
    ]
    matrix = fitted.matrix.numpy()
    assert np.allclose(matrix @ covariances[0] @ matrix.T, covariances[1], atol=1e-9)
    root = np.linalg.inv(matrix) @ covariances[1] @ np.linalg.inv(matrix).T
    assert np.allclose(root, covariances[0], atol=1e-9)
    assert np.allclose(matrix_power(_root(covariances[1]), 2), covariances[1])
    assert np.allclose(matrix, _root(covariances[1]) @ np.linalg.inv(_root(covariances[0])))
    result = fitted(torch.from_numpy(generated)).numpy()
    assert np.allclose(result.mean(0), real.mean(0), atol=1e-9)


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root, by Denman and Beavers' iteration."""
    root, inverse = matrix, np.eye(len(matrix))
    for _ in range(60):
        root, inverse = (
            (root + np.linalg.inv(inverse)) / 2,
            (inverse + np.linalg.inv(root)) / 2,
        )
    return root


def test_equal_features_have_no_scale(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    flat = _moments(np.ones((5, 6)))[0]
    real = _moments(two_sets[1])[0]
    for method in (shift_scale, coral):
        with pytest.raises(DataError):
            method(flat, real)
    assert torch.allclose(mean_shift(flat, real)(torch.ones(1, 6).double())[0], real.mean)


@pytest.mark.parametrize("method", MAPS)
def test_the_stage_fits_the_generated_head(
    method: Any, clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    """Generated features by the encoder are the map of frozen ones; real ones do not move."""
    config = AlignConfig(method=method, holdout=0.25, apply="always")
    sources = Sources(world.pairs, world.real, world.generated)
    made = align(config, sources, clip_folder, tmp_path / "encoder", seed=3)
    notes = made.manifest["notes"]
    assert (notes["applied"], notes["best_step"]) == (True, 1)
    assert notes["guard"]["kept"]["align_loss"] != notes["guard"]["start"]["align_loss"]
    encoder = GmailEncoder.from_pretrained(made.folder)
    rows = {
        (name, route): open_features(
            extract_images(getattr(world, name), encoder, route, tmp_path / f"{name}-{route}")
        )
        for name, route in (
            ("generated", Route.FROZEN),
            ("generated", Route.GENERATED),
            ("real", Route.FROZEN),
            ("real", Route.REAL),
        )
    }
    real, deployed = (rows["real", route].array for route in (Route.FROZEN, Route.REAL))
    assert torch.allclose(deployed, real, atol=1e-5)
    frozen, mapped = (rows["generated", way] for way in (Route.FROZEN, Route.GENERATED))
    assert made.counts == {
        "pairs": 18,
        "real_images": 9,
        "held_out_pairs": 6,
        "held_out_real_images": 3,
    }
    trained = _trained_pairs(world)
    statistics = [
        Moments.of(table.array, table.rows(ids))
        for table, ids in (
            (frozen, [pair.generated_image_id for pair in trained]),
            (rows["real", Route.FROZEN], dict.fromkeys(pair.real_image_id for pair in trained)),
        )
    ]
    expected = MAPS[method](*statistics)(frozen.array)
    assert torch.allclose(mapped.array, expected, atol=1e-4)


def _trained_pairs(world: Any) -> list[Any]:
    """The pairs that seed 3 leaves for training."""
    pairs = read_pairs(world.pairs)
    names = list(dict.fromkeys(pair.real_image_id for pair in pairs))
    held = hold_out(np.arange(len(names)), 0.25, 1000, 3)
    return [pair for pair in pairs if not held[names.index(pair.real_image_id)]]


def test_a_map_that_does_not_help_is_not_applied(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    config = AlignConfig(method="coral", holdout=0.25, select="paired_cosine")
    sources = Sources(world.pairs, world.real, world.generated)
    made = align(config, sources, clip_folder, tmp_path / "encoder", seed=3)
    notes = made.manifest["notes"]
    assert (notes["applied"], notes["best_step"]) == (False, 0)
    assert notes["gain"]["value"] < 0
    assert "coral" in notes["message"]
    plain = GmailEncoder.from_pretrained(clip_folder)
    assert GmailEncoder.from_pretrained(made.folder).fingerprint == plain.fingerprint
    with pytest.raises(ConfigError, match="apply"):
        align(
            AlignConfig(apply="always", optim={"steps": 1}),
            sources,
            clip_folder,
            tmp_path / "other",
        )
