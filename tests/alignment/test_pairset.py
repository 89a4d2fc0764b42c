"""Who is held out, and what a batch holds."""

from __future__ import annotations

import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmail_align.alignment.pair_index import (
    COLUMNS,
    ROWS,
    PairFile,
    chosen_pairs,
    index_pairs,
)
from gmail_align.alignment.pairset import Tables, TrainingPairs, Wanted, gather, hold_out
from gmail_align.artifacts import begin, write_jsonl
from gmail_align.data.batches import Batches
from gmail_align.data.pairs import PAIRS, Pair, read_pairs
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.encoders.route import Route
from gmail_align.errors import DataError
from gmail_align.features.pixels import prepare_pixels, read_pixels
from gmail_align.features.run import extract_images, extract_texts
from gmail_align.features.store import read_features


@given(
    st.lists(st.integers(0, 30), min_size=40, max_size=80),
    st.floats(0.01, 0.99),
    st.integers(2, 50),
    st.integers(0, 99),
)
def test_no_image_is_on_both_sides(groups: list[int], share: float, limit: int, seed: int) -> None:
    rows = np.array([*groups, 0, 1, 2, 3])
    held = hold_out(rows, share, limit, seed)
    inside, outside = set(rows[held].tolist()), set(rows[~held].tolist())
    assert not inside & outside
    assert 2 <= len(inside) <= min(limit, len(inside | outside) // 2)
    assert np.array_equal(held, hold_out(rows, share, limit, seed))


def test_the_share_is_of_images_and_the_seed_matters() -> None:
    groups = np.repeat(np.arange(100), 3)
    assert len(set(groups[hold_out(groups, 0.1, 1000, 0)].tolist())) == 10
    assert not np.array_equal(hold_out(groups, 0.1, 99, 0), hold_out(groups, 0.1, 99, 1))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="3 real images: alignment needs at least 4"):
        hold_out(np.array([0, 0, 1, 2, 2]), 0.5, 10, 0)


def test_equal_things_have_one_number(tmp_path: Path) -> None:
    pairs = [
        Pair("1", "x. y", "a", "1-0"),
        Pair("2", "y", "a", "2-0"),
        Pair("3", "x. z", "b", "3-0"),
        Pair("1", "x. y", "a", "1-1"),
    ]
    draft = begin(tmp_path / "pairs", "pairs", {})
    write_jsonl(draft.path(PAIRS), [asdict(pair) for pair in pairs])
    made = draft.finish({"pairs": 4})
    index = index_pairs(made, tmp_path / "index")
    file = PairFile.open(index.path(ROWS))
    expected = {
        "generated": [0, 1, 2, 3],
        "real": [0, 0, 1, 0],
        "caption": [0, 1, 2, 0],
        "text": [0, 1, 2, 0],
        "first": [0, 1, 0, 0],
    }
    assert list(expected) == list(COLUMNS)
    for name, numbers in expected.items():
        assert file.column(name).tolist() == numbers
        assert index.counts[f"{name}s"] == max(numbers) + 1
    assert file.take(np.array([3, 1])).tolist() == [[3, 0, 0, 0, 0], [1, 0, 1, 1, 1]]
    assert chosen_pairs(made, np.array([0, 2])) == [pairs[0], pairs[2]]
    copy = PairFile.of(file.blocks(), tmp_path)
    assert copy.take(np.arange(4)).tolist() == file.take(np.arange(4)).tolist()


def test_memory_does_not_grow_with_pairs(tmp_path: Path) -> None:
    """What batches of a million pairs hold, beside 4 bytes for an order and 4 for groups."""
    count, block = 300_000, np.arange(5 * 50_000, dtype=np.int32).reshape(-1, 5)
    pairs = TrainingPairs(PairFile.of((block for _ in range(6)), tmp_path), None, None)
    assert len(pairs) == count
    tracemalloc.start()
    batches = Batches(pairs.image_group, 64, 0)
    for step in range(50):
        assert len(pairs.take(batches.indices(step)).text) == 64
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 9 * count
    assert peak < 9 * count + 20_000_000  # a block of clashes is looked at at a time


def test_a_batch_holds_the_rows_of_its_pairs(clip_folder: Path, world: Any, tmp_path: Path) -> None:
    encoder, pre = GmailEncoder.from_pretrained(clip_folder), Preprocess(size=32)
    some = [f"r{number}" for number in range(6, 12)]
    tables = Tables(
        read_pixels(prepare_pixels(world.generated, pre, tmp_path / "g")),
        read_pixels(prepare_pixels(world.real, pre, tmp_path / "r", ids=some)),
        read_features(extract_images(world.real, encoder, Route.FROZEN, tmp_path / "f")),
        read_features(extract_texts(world.pairs, encoder, tmp_path / "t", route=Route.REAL)),
    )
    pairs = read_pairs(world.pairs)
    index = index_pairs(world.pairs, tmp_path / "index")
    rows = TrainingPairs(PairFile.open(index.path(ROWS)), np.arange(6, 12), None)
    real_rows = rows.take(np.arange(24)).real
    assert real_rows.tolist() == [-1] * 12 + [n // 2 for n in range(12)]
    places = np.array([13, 20, 12])
    batch = gather(tables, rows.take(places), Wanted(real=True, frozen=True))
    chosen = [pairs[place] for place in places]
    real, generated = tables.real, tables.generated
    assert real is not None
    assert torch.equal(batch.real, real.array[real.rows([p.real_image_id for p in chosen])])
    names = [p.generated_image_id for p in chosen]
    assert torch.equal(batch.generated, generated.array[generated.rows(names)])
    assert batch.frozen is not None
    frozen = tables.frozen
    assert frozen is not None
    assert torch.equal(batch.frozen, frozen.array[frozen.rows([p.real_image_id for p in chosen])])
    texts = tables.texts
    assert texts is not None
    assert torch.equal(batch.texts, texts.array[texts.rows([p.caption_id for p in chosen])])
    assert batch.same is not None
    assert batch.same.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    lean = gather(tables, rows.take(places), Wanted(real=False, frozen=False))
    assert lean.real is None
    assert lean.frozen is None
    swapped = Wanted(
        real=False, frozen=True, part=slice(1, 3), groups=True, replaced=np.array([1, 0, 1]) > 0
    )
    part = gather(tables, rows.take(places), swapped)
    assert part.same is None
    assert part.groups is not None
    alike = part.groups[:, None, :] == part.groups[None, :, :]
    assert torch.equal(alike.any(dim=-1), batch.same)
    assert part.frozen is not None
    assert torch.equal(part.frozen, batch.frozen)
    assert torch.equal(part.generated[0], batch.generated[1])
    assert torch.equal(part.generated[1], batch.real[2])
