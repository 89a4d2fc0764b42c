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
    REAL,
    PairIndex,
    first_sentence,
    hold_out,
    index_pairs,
    map_rows,
    without_images,
)
from gmail_align.alignment.task import BatchRequest, Table, Tables, gather
from gmail_align.artifacts import begin, write_jsonl
from gmail_align.data.batches import Batches
from gmail_align.data.captions import iter_numbered, read_captions
from gmail_align.data.mapped import count_up
from gmail_align.data.names import Names
from gmail_align.data.pairs import PAIRS, Pair, read_pairs
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import DataError
from gmail_align.features.cache import Cache
from gmail_align.features.store import open_features


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
    with pytest.raises(DataError, match="3 real images"):
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
    index = PairIndex(index_pairs(made, tmp_path / "index"))
    expected = {
        "generated": ([0, 1, 2, 3], ["1-0", "2-0", "3-0", "1-1"]),
        "real": ([0, 0, 1, 0], ["a", "b"]),
        "caption": ([0, 1, 2, 0], ["1", "2", "3"]),
        "text": ([0, 1, 2, 0], ["x. y", "y", "x. z"]),
        "first": ([0, 1, 0, 0], ["x", "y"]),
    }
    assert list(expected) == list(COLUMNS)
    for place, (name, (numbers, names)) in enumerate(expected.items()):
        assert index.rows[:, place].tolist() == numbers
        assert list(index.names(name)) == names
        assert index.count(name) == len(names)
    assert index.names_of("generated", np.array([2, 0])) == ["3-0", "1-0"]
    numbered = [(row.caption_id, row.text) for row in iter_numbered(index.artifact)]
    assert numbered == [("0", "x. y"), ("1", "y"), ("2", "x. z")]
    short = read_captions(index.first_sentences(tmp_path / "short"))
    assert [(row.caption_id, row.text) for row in short] == [("0", "x"), ("1", "y")]
    others = without_images(index.rows, np.array([True, False]), tmp_path)
    assert others.tolist() == index.rows[2:3].tolist()


def test_the_first_sentence() -> None:
    assert first_sentence("A red ball. It is big.") == "A red ball"
    assert first_sentence("A red ball.") == "A red ball."
    assert first_sentence(". A dot") == ". A dot"


def test_memory_does_not_grow_with_pairs(tmp_path: Path) -> None:
    """Orders, groups and held-out images lie in files too."""
    count, block = 300_000, np.arange(5 * 50_000, dtype=np.int32).reshape(-1, 5)
    pairs = map_rows((block for _ in range(6)), tmp_path)
    assert len(pairs) == count
    tracemalloc.start()
    held_out = hold_out(count_up(count), 0.05, 1000, 0)
    assert np.count_nonzero(held_out) == 1000
    batches = Batches(pairs[:, REAL], 64, 0)
    for step in (*range(50), count // 64, count // 64 + 1):
        assert len(pairs[batches.indices(step)]) == 64
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 3 * count  # flags are small enough to stay in memory
    assert peak < 20_000_000  # a block of clashes is looked at at a time


def test_a_batch_holds_the_rows_of_its_pairs(clip_folder: Path, world: Any, tmp_path: Path) -> None:
    encoder, cache = GmailEncoder.from_pretrained(clip_folder), Cache(tmp_path / "cache")
    index = PairIndex(index_pairs(world.pairs, tmp_path / "index"))
    pixels = {
        "generated": cache.pixels(world.generated, encoder.preprocess),
        "real": cache.pixels(world.real, encoder.preprocess, ["r11", "r6", "r7"]),
    }
    frozen = open_features(cache.image_features(world.real, encoder))
    texts = open_features(cache.text_features(index.artifact, encoder))
    inputs = {
        name: Table(some.array, name, Names.of(some.ids).rows(index.names(name)))
        for name, some in pixels.items()
    }
    known = {
        "frozen": Table(frozen.array, "real", Names.of(frozen.ids).rows(index.names("real"))),
        "texts": Table(texts.array, "text"),
    }
    tables, places = Tables(inputs, known), np.array([13, 22, 12])
    chosen = [read_pairs(world.pairs)[place] for place in places]
    every = frozenset({"generated", "real", "frozen", "texts"})
    batch = gather(tables, index.rows[places], BatchRequest(every))
    real = [pair.real_image_id for pair in chosen]
    for name, ids in (("real", real), ("generated", [pair.generated_image_id for pair in chosen])):
        expected = pixels[name].array[pixels[name].rows(ids)]
        assert torch.equal(batch.inputs[name], expected)
    assert torch.equal(batch.known["frozen"], frozen.array[frozen.rows(real)])
    lines = encoder.embed_texts([pair.text for pair in chosen], Route.FROZEN)
    assert torch.allclose(batch.known["texts"], lines, atol=1e-5)
    alike = (batch.groups[:, None] == batch.groups[None]).any(dim=-1)
    assert alike.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    lean = gather(tables, index.rows[places], BatchRequest(frozenset({"generated"})))
    assert (set(lean.inputs), set(lean.known)) == ({"generated"}, set())
    swapped = BatchRequest(
        frozenset({"generated", "frozen"}), slice(1, 3), replaced=np.array([1, 0, 1]) > 0
    )
    part = gather(tables, index.rows[places], swapped)
    assert torch.equal(part.known["frozen"], batch.known["frozen"])
    assert torch.equal(part.inputs["generated"][0], batch.inputs["generated"][1])
    assert torch.equal(part.inputs["generated"][1], batch.inputs["real"][2])
    with pytest.raises(AssertionError):
        gather(tables, index.rows[:1], BatchRequest(every))
