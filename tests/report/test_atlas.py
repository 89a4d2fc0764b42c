"""The table of a gap's images, read again as a viewer of maps reads it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from gmail_align.errors import ConfigError
from gmail_align.features.store import Features
from gmail_align.report.atlas import write_atlas
from gmail_align.report.gap_pictures import GapSide


class Store:
    """Pictures of one colour by their ids; what an image store is to the table."""

    def read_bytes(self, image_id: str) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (300, 150), (10 * len(image_id), 90, 60)).save(file, "PNG")
        return file.getvalue()


def real_and_generated(count: int) -> tuple[GapSide, GapSide]:
    rng = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(count, 8, generator=rng) for _ in range(2))
    first = Features([f"r{row}" for row in range(count)], real)
    second = Features([f"g{row}" for row in range(count)], generated)
    return (
        GapSide(first, Store(), {"r0": "cat"}, captions={"r0": "A cat."}),
        GapSide(second, generators={"g1": "sd2"}),
    )


def test_rows_are_images_with_places_pairs_and_pictures(tmp_path: Path) -> None:
    both = real_and_generated(6)
    pairs = [(f"r{row}", f"g{row}") for row in range(5)] + [("r0", "g5")]
    file = write_atlas(tmp_path / "new" / "gap.parquet", both, pairs, most=100)
    table = pq.read_table(file)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(5)] + [f"g{n}" for n in range(6)]
    assert [row["side"] for row in rows] == ["real"] * 5 + ["generated"] * 6
    assert (rows[0]["class"], rows[0]["caption"], rows[6]["generator"]) == ("cat", "A cat.", "sd2")
    assert np.isfinite(table.column("x")).all() and len(set(table.column("y").to_pylist())) == 11
    assert rows[0]["neighbors"]["ids"] == [5, 10] and rows[10]["neighbors"]["ids"] == [0]
    assert rows[0]["pair"] == "g0" and rows[10]["pair"] == "r0"
    cosine = torch.cosine_similarity(both[0].features.array[0], both[1].features.array[5], dim=0)
    assert rows[10]["cosine"] == pytest.approx(float(cosine), abs=1e-6)
    assert rows[0]["neighbors"]["distances"][1] == pytest.approx(1 - float(cosine), abs=1e-6)
    with Image.open(io.BytesIO(rows[3]["image"]["bytes"])) as picture:
        assert picture.size == (96, 48)
    assert rows[3]["image"]["path"] == "r3" and rows[7]["image"] is None


def test_without_pairs_as_many_of_each_side_as_were_measured(tmp_path: Path) -> None:
    rows = pq.read_table(
        write_atlas(tmp_path / "a.parquet", real_and_generated(9), None, most=5)
    ).to_pylist()
    assert [row["side"] for row in rows] == ["real"] * 5 + ["generated"] * 5
    assert {row["pair"] for row in rows} == {None}
    assert rows[0]["neighbors"] == {"ids": [], "distances": []}


def test_a_name_without_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.csv"):
        write_atlas(tmp_path / "a.csv", real_and_generated(5), None, most=5)
