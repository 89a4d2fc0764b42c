from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmail_align.data.batches import Batches, batch_indices, unique_batches

SEEDS = st.integers(0, 2**32)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 60), size=st.integers(1, 70), seed=SEEDS)
def test_every_index_comes_exactly_once_an_epoch(count: int, size: int, seed: int) -> None:
    steps = -(-3 * count // size)
    stream = np.concatenate([batch_indices(step, size, count, seed) for step in range(steps)])
    assert stream.dtype == np.int64
    assert len(stream) == steps * size
    for epoch in range(3):
        part = stream[epoch * count : (epoch + 1) * count]
        assert np.array_equal(np.sort(part), np.arange(count))
    if size <= count:
        batches = stream.reshape(-1, size)
        assert all(len(np.unique(batch)) == size for batch in batches)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(2, 60), size=st.integers(1, 20), step=st.integers(0, 50), seed=SEEDS)
def test_a_batch_depends_on_seed_and_step_alone(
    count: int, size: int, step: int, seed: int
) -> None:
    groups = np.arange(count) // 2
    fresh = Batches(groups, size, seed).indices(step)
    walked = Batches(groups, size, seed)
    for earlier in range(step):
        walked.indices(earlier)
    assert np.array_equal(walked.indices(step), fresh)
    assert np.array_equal(walked.indices(0), Batches(groups, size, seed).indices(0))


def test_epochs_and_seeds_differ() -> None:
    epochs = [batch_indices(step, 50, 50, 3).tolist() for step in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert batch_indices(0, 50, 50, 4).tolist() != epochs[0]


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=30), size=st.integers(1, 12), seed=SEEDS
)
def test_no_group_comes_twice_where_possible(sizes: list[int], size: int, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    order = unique_batches(groups, size, seed)
    assert np.array_equal(np.sort(order), np.arange(len(groups)))
    if max(sizes) <= len(groups) // size:
        for start in range(0, len(order), size):
            batch = groups[order[start : start + size]]
            assert len(np.unique(batch)) == len(batch)


def test_five_captions_an_image_never_meet_even_between_epochs() -> None:
    images = np.repeat([f"image-{n}" for n in range(203)], 5)
    batches = Batches(images, 64, 7)
    drawn: Counter[int] = Counter()
    for step in range(3 * len(images) // 64):
        indices = batches.indices(step)
        drawn.update(indices.tolist())
        assert len(np.unique(images[indices])) == 64
    assert max(drawn.values()) <= 3


def test_taken_groups_stay_out_of_the_first_batch() -> None:
    groups = np.arange(10)
    for seed in range(20):
        order = unique_batches(groups, 6, seed, taken=np.array([1, 2]))
        assert not {1, 2} & set(groups[order[:4]].tolist())
    tight = unique_batches(np.array([0, 0, 1, 1, 2, 2, 3, 3]), 4, 0, taken=np.array([0, 1]))
    assert set(np.array([0, 0, 1, 1, 2, 2, 3, 3])[tight[:2]].tolist()) == {2, 3}


def test_impossible_sizes_are_refused() -> None:
    for count, size in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="batches of size"):
            Batches(np.arange(count), size, 0)
