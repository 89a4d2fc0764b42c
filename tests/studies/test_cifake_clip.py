"""The study of CIFAKE with a CLIP from scratch, on a few small images."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmail_align.artifacts import load
from gmail_align.data.captions import read_captions
from gmail_align.errors import DataError
from gmail_align.items import read_items
from gmail_align.studies.cifake_clip import COLUMNS, ROWS, ClipBudget, cifake_clip_within
from gmail_align.studies.run import StudyOptions

CLASSES, EACH = ("0_airplane", "1_automobile", "2_bird"), 20
TINY = ClipBudget(
    clip_steps=2,
    side=16,
    patch=8,
    width=32,
    layers=1,
    photos=30,
    few=9,
    judged=6,
    align_steps=2,
    seeds=1,
)


def zips(folder: Path) -> Path:
    """Write real and generated images of three colours."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for kind in ("real", "fake"):
        with zipfile.ZipFile(folder / f"train_{kind}.zip", "w") as archive:
            for channel, name in enumerate(CLASSES):
                for n in range(EACH):
                    pixels = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
                    pixels[..., channel] += np.uint8(120)
                    file = io.BytesIO()
                    Image.fromarray(pixels).save(file, "PNG")
                    archive.writestr(f"{name}/{n:04}.png", file.getvalue())
    return folder


def test_every_row_is_tested_on_photos_that_the_clip_has_not_seen(tmp_path: Path) -> None:
    data, options = zips(tmp_path / "data"), StudyOptions(work=tmp_path / "work", jobs=1)
    result = cifake_clip_within(TINY, data, options)
    assert [row.name for row in result.rows] == [name for name, *_ in ROWS]
    assert all(set(row.values) == {column.name for column in COLUMNS} for row in result.rows)
    assert {claim.verdict for claim in result.claims} <= {"holds", "not significant", "reversed"}
    (home,) = (tmp_path / "work" / "cifake-clip").iterdir()
    learnt = {row.image_id for row in read_captions(load(home / "learnt"))}
    probes = list((home / "work" / "probes").iterdir())
    tested = {name for probe in probes for name in read_items(probe).ids}
    assert len(tested) == TINY.judged
    assert not learnt & tested
    assert cifake_clip_within(TINY, data, options) == result  # nothing is made again


def test_a_folder_without_zips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"real\.zip"):
        cifake_clip_within(TINY, tmp_path, StudyOptions(work=tmp_path / "work"))
