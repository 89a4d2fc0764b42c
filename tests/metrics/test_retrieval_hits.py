from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmail_align.errors import UserError
from gmail_align.metrics import retrieval_hits as module
from gmail_align.metrics.retrieval_hits import retrieval_hits, retrieval_ranks


def uneven(images: int, seed: int = 0) -> torch.Tensor:
    """One to four captions an image, in shuffled order."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), rng.integers(1, 5, size=images))
    return torch.from_numpy(rng.permutation(owner))


def naive_recalls(images, texts, owner, k):
    """R@k of CLIP_benchmark's definition, with sorted score matrices in float64."""
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    scores = texts @ images.T
    first_texts, first_images = np.argsort(-scores.T, 1)[:, :k], np.argsort(-scores, 1)[:, :k]
    i2t = [image in owner[result] for image, result in enumerate(first_texts)]
    t2i = [owner[text] in result for text, result in enumerate(first_images)]
    return np.mean(i2t), np.mean(t2i)


@pytest.mark.parametrize("tile", [(256, 2048), (7, 5)])
def test_recalls_of_distinct_scores_are_those_of_a_sort(monkeypatch, tile):
    monkeypatch.setattr(module, "_TILE_CPU", tile)
    torch.manual_seed(0)
    owner = uneven(60)
    images = torch.randn(60, 16)
    texts = 2 * images[owner] + 5 * torch.randn(len(owner), 16)
    result = retrieval_hits(images, texts, owner).estimates()
    for k in (1, 5, 10):
        i2t, t2i = naive_recalls(images.numpy(), texts.numpy(), owner.numpy(), k)
        assert result[f"i2t_r{k}"].value == pytest.approx(i2t)
        assert result[f"t2i_r{k}"].value == pytest.approx(t2i)
        assert result[f"t2i_r{k}"].low < t2i < result[f"t2i_r{k}"].high
    assert {one.n for one in result.values()} == {60}


def test_hand_computed():
    # Text 0 and 2 are of image 0; text 2 looks like image 1.
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.0, 1.0]])
    to_text, to_image = retrieval_ranks(images, texts, torch.tensor([0, 1, 0]))
    assert to_text.expected.tolist() == [1, 2]
    assert to_image.expected.tolist() == [1, 1, 2]
    result = retrieval_hits(images, texts, torch.tensor([0, 1, 0]), ks=(1, 2)).estimates()
    assert result["i2t_r1"].value == 0.5 and result["t2i_r1"].value == pytest.approx(2 / 3)
    assert result["i2t_r2"].value == result["t2i_r2"].value == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1.0, 0.0, 0.3])
def test_a_collapsed_model_scores_chance(dtype, value):
    owner = uneven(300)
    m = len(owner)
    images = torch.full((300, 17), value, dtype=dtype)
    result = retrieval_hits(images, images[owner], owner).estimates()
    own = torch.bincount(owner)
    for k in (1, 5, 10):
        chance = np.mean([1 - comb(m - int(p), k) / comb(m, k) for p in own])
        assert result[f"t2i_r{k}"].value == pytest.approx(k / 300)
        assert result[f"i2t_r{k}"].value == pytest.approx(chance)


def test_collapse_with_rounding_noise_still_scores_chance():
    torch.manual_seed(0)
    images = torch.ones(200, 64) + 1e-7 * torch.randn(200, 64)
    result = retrieval_hits(images, images.clone(), torch.arange(200), ks=(1,)).estimates()
    assert result["t2i_r1"].value == pytest.approx(1 / 200)


@settings(deadline=None)
@given(st.data())
def test_ties_are_counted_like_a_loop(data):
    images = data.draw(st.integers(1, 4))
    image_kind = data.draw(st.lists(st.integers(0, 2), min_size=images, max_size=images))
    captions = data.draw(st.lists(st.integers(1, 3), min_size=images, max_size=images))
    owner = torch.arange(images).repeat_interleave(torch.tensor(captions))
    owner = owner[torch.tensor(data.draw(st.permutations(range(len(owner)))))]
    text_kind = data.draw(st.lists(st.integers(0, 2), min_size=len(owner), max_size=len(owner)))
    axes = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8]])
    to_text, to_image = retrieval_ranks(axes[image_kind], axes[text_kind], owner)
    scores = np.round((axes[text_kind] @ axes[image_kind].T).double().numpy(), 4)
    positive = owner.numpy()[:, None] == np.arange(images)
    _check_counts(to_image, scores, positive)
    _check_counts(to_text, scores.T, positive.T)


def _check_counts(ranks, scores, positive):
    for query, (row, own) in enumerate(zip(scores, positive, strict=True)):
        best = row[own].max()
        assert int(ranks.above[query]) == (row[~own] > best).sum()
        assert int(ranks.tied[query]) == (row[~own] == best).sum()
        assert int(ranks.positives[query]) == (row[own] == best).sum()


def test_length_of_features_is_of_no_matter():
    torch.manual_seed(1)
    owner, images = uneven(20), torch.randn(20, 8)
    texts = images[owner] + torch.randn(len(owner), 8)
    stretched = retrieval_ranks(images * torch.rand(20, 1) * 50, texts * 0.01, owner)
    for one, other in zip(retrieval_ranks(images, texts, owner), stretched, strict=True):
        assert torch.equal(one.above, other.above)


def test_inputs_are_left_as_they_were():
    images, owner = torch.randn(5, 4), torch.arange(5)
    before = images.clone()
    retrieval_ranks(images, images, owner)
    assert torch.equal(images, before)


def test_no_score_matrix_is_built(monkeypatch):
    sizes = []
    real = module.tally
    monkeypatch.setattr(module, "_TILE_CPU", (8, 16))
    monkeypatch.setattr(
        module,
        "tally",
        lambda scores, best, dim: (sizes.append(scores.numel()), real(scores, best, dim=dim))[1],
    )
    retrieval_ranks(torch.randn(100, 4), torch.randn(100, 4), torch.arange(100))
    assert max(sizes) <= 8 * 16


def test_more_captions_of_an_image_widen_no_certainty():
    """Five copies of each caption give the interval of one: captions are drawn by image."""
    torch.manual_seed(0)
    images = torch.randn(80, 8)
    texts = images + 1.5 * torch.randn(80, 8)
    single = retrieval_hits(images, texts, torch.arange(80)).estimates()["t2i_r1"]
    owner = torch.arange(80).repeat_interleave(5)
    copied = retrieval_hits(images, texts[owner], owner).estimates()["t2i_r1"]
    assert (copied.value, copied.low, copied.high) == pytest.approx(
        (single.value, single.low, single.high)
    )


@pytest.mark.parametrize(
    ("images", "texts", "owner", "words"),
    [
        (torch.eye(2), torch.full((2, 2), torch.nan), [0, 1], "2 of 2 rows of texts"),
        (torch.eye(2), torch.eye(2), [0, 2], "outside 0..1"),
        (1e-20 * torch.eye(2), torch.eye(2), [0, 1], "too small to be normalised"),
    ],
)
def test_refuses(images, texts, owner, words):
    with pytest.raises(UserError, match=words):
        retrieval_hits(images, texts, torch.tensor(owner)).estimates()


@given(data=st.data())
def test_images_without_a_text_are_never_found_and_stand_in_the_way(data):
    n, m = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    owner = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=m, max_size=m)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    images, texts = torch.randn(n, 4), torch.randn(m, 4)
    result = retrieval_hits(images, texts, owner, (1, 3, 9))
    scores = torch.nn.functional.normalize(texts) @ torch.nn.functional.normalize(images).T
    for k in (1, 3, 9):
        first = scores.T.argsort(1, descending=True)[:, :k]
        i2t = [float((owner[row] == image).any()) for image, row in enumerate(first)]
        assert result.i2t[f"i2t_r{k}"].tolist() == i2t
        first = scores.argsort(1, descending=True)[:, :k]
        t2i = [float((row == image).any()) for image, row in zip(owner, first, strict=True)]
        assert result.t2i[f"t2i_r{k}"].tolist() == t2i
    for name, column in result.columns().items():
        assert column.value == pytest.approx(result.estimates(resamples=2)[name].value)
