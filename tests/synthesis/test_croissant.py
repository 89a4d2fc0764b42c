"""The Croissant metadata beside a dataset card: what it names is there."""

from __future__ import annotations

import fnmatch
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gmail_align.artifacts import Artifact, sha256_file
from gmail_align.data.images import ImageStore
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.run import synthesize


@pytest.fixture
def images(config: Callable[..., SynthesisConfig], captions: Artifact, tmp_path: Path) -> Artifact:
    return synthesize(config(), captions, tmp_path / "out")


def _ids(value: Any) -> Iterator[str]:
    """Yield every id that a node defines, which is one with a type."""
    if isinstance(value, dict):
        if "@type" in value and "@id" in value:
            yield value["@id"]
        value = list(value.values())
    for one in value if isinstance(value, list) else ():
        yield from _ids(one)


def test_every_file_column_and_name_that_it_speaks_of_exists(images: Artifact) -> None:
    said = json.loads(images.path("croissant.json").read_text())
    assert said["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    nodes = {key: said[key] for key in ("distribution", "recordSet")}
    ids = list(_ids(nodes))
    assert len(ids) == len(set(ids))
    index, shards, inside = said["distribution"]
    assert index["sha256"] == sha256_file(images.path(index["contentUrl"]))
    tars = sorted(images.folder.glob(shards["includes"]))
    assert len(tars) == images.counts["shards"] and inside["containedIn"]["@id"] == shards["@id"]
    (rows,) = said["recordSet"]
    columns = [field["source"]["extract"]["column"] for field in rows["field"]]
    assert columns == pq.read_schema(images.path(index["contentUrl"])).names
    assert {field["source"]["fileObject"]["@id"] for field in rows["field"]} == {index["@id"]}
    assert rows["key"]["@id"] == rows["field"][columns.index("id")]["@id"]
    types = {field["@id"]: field["dataType"] for field in rows["field"]}
    assert types["images/seed"] == "sc:Integer" and types["images/prompt"] == "sc:Text"
    assert types["images/clip_scores"] == "sc:Float" and types["images/unsafe"] == "sc:Boolean"
    files = []
    for tar in tars:
        with tarfile.open(tar) as opened:
            files += opened.getnames()
    shown = fnmatch.filter(files, inside["includes"])
    assert [Path(name).stem for name in shown] == ImageStore(images).ids


def test_mlcroissant_reads_it(images: Artifact) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    records = mlcroissant.Dataset(str(images.path("croissant.json"))).records("images")
    assert {row["images/id"].decode() for row in records} == set(ImageStore(images).ids)
