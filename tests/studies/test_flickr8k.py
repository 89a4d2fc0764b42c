"""The study of Flickr8k on photos of noise, at the smallest size that has every part."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmail_align.errors import DataError
from gmail_align.studies.cifake_features import NETWORK
from gmail_align.studies.flickr8k import ROWS, FlickrBudget, flickr8k_within
from gmail_align.studies.run import StudyOptions

TINY = FlickrBudget(
    photos=24,
    unseen=8,
    autoencoder=2,
    diffusion=(1, 1),
    denoising=2,
    captioner_steps=2,
    seeds=1,
)
WORDS = ["A dog runs", "Two men sit", "The girl jumps", "A red car waits", "Snow falls on a hill."]


def photos(folder: Path) -> Path:
    """Write photos with five captions each in Flickr8k's layout, and a network of one layer."""
    rng, entries = np.random.default_rng(0), []
    home = folder / "flickr8k_small"
    home.mkdir(parents=True)
    for split, count in (("train", 30), ("val", 6)):
        with zipfile.ZipFile(home / f"{split}.zip", "w") as archive:
            for n in range(count):
                file, name = io.BytesIO(), f"{split}{n}.jpg"
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file, "JPEG")
                archive.writestr(name, file.getvalue())
                said = [
                    {"raw": f"{text} {n}.", "sentid": len(entries) * 5 + k}
                    for k, text in enumerate(WORDS)
                ]
                entries.append({"filename": name, "split": split, "sentences": said})
    text = json.dumps({"images": entries}).encode()
    (home / "dataset_flickr8k.json.gz").write_bytes(gzip.compress(text))
    ops = [
        {"op": "CONV_2D", "inputs": ["in"], "output": "a", "w": "c"}
        | {"stride": 2, "depthwise": False, "act": 3},
        {"op": "AVERAGE_POOL_2D", "inputs": ["a"], "output": "b"},
    ]
    graph = np.frombuffer(json.dumps({"input": "in", "ops": ops}).encode(), np.uint8)
    weights = {"c.w": rng.normal(size=(16, 3, 3, 3)), "c.b": np.zeros(16)}
    (folder / NETWORK).parent.mkdir(parents=True)
    np.savez(folder / NETWORK, **{"graph.json": graph}, **weights)
    return folder


@pytest.mark.slow
def test_every_row_learns_from_the_same_pairs(tmp_path: Path) -> None:
    data, options = photos(tmp_path / "data"), StudyOptions(work=tmp_path / "work")
    result = flickr8k_within(TINY, data, options)
    rows = {row.name: row for row in result.rows}
    assert list(rows) == list(ROWS)
    assert all(row.values["CIDEr"].value is not None for row in result.rows)
    assert all(("retrieval" in row.values) == (row.name != "real") for row in result.rows)
    (home,) = (tmp_path / "work" / "flickr8k").iterdir()
    stores = [home / "seed-0" / name / "features" / "ids.jsonl" for name in ("raw", "gmail")]
    assert stores[0].read_text() == stores[1].read_text()
    assert len(stores[0].read_text().splitlines()) == TINY.photos - TINY.unseen
    assert flickr8k_within(TINY, data, options) == result  # nothing is made again


def test_a_folder_without_the_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset_flickr8k\.json"):
        flickr8k_within(TINY, tmp_path, StudyOptions(work=tmp_path / "work"))
