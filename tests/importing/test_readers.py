"""Shards open with the libraries that people read such shards with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.images import finish_images, shard_name, write_shard
from gmail_align.importing.admission import admit

Make = Callable[..., bytes]


def shards(folder: Path, make_picture: Make) -> Artifact:
    draft = begin(folder, "images", {})
    for number in range(2):
        samples = [admit(f"{number}-{k}", make_picture(number * 10 + k)) for k in range(3)]
        write_shard(draft.path(shard_name(number)), samples)
    return finish_images(draft)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_the_shards(tmp_path: Path, make_picture: Make) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards(tmp_path / "i", make_picture)
    pattern = f"{tmp_path}/i/shards/{{00000..00001}}.tar"
    read = webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False)
    found = {sample["__key__"]: sample for sample in read}
    assert list(found) == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert found["1-2"]["jpg"] == make_picture(12)
    assert json.loads(found["1-2"]["json"])["source"] == "real"


def test_plain_datasets_reads_the_shards(
    tmp_path: Path, make_picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    shards(tmp_path / "i", make_picture)
    files = sorted(str(path) for path in (tmp_path / "i/shards").glob("*.tar"))
    read = datasets.load_dataset(
        "webdataset",
        data_files={"train": files},
        split="train",
        streaming=True,
        cache_dir=str(tmp_path / "cache"),
    )
    found = {row["__key__"]: row for row in read}
    assert list(found) == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    with Image.open(io.BytesIO(make_picture(12))) as expected:
        assert np.array_equal(np.asarray(found["1-2"]["jpg"]), np.asarray(expected))
    assert found["1-2"]["json"]["width"] == 24
