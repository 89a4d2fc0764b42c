from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmail_align.artifacts import Artifact
from gmail_align.importing.formats.coco import coco as coco_source
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.write import write_import


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def picture(seed: int, form: str = "JPEG", size: tuple[int, int] = (24, 16)) -> bytes:
    """Return an encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file of these bytes to an open tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def make_picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture
def coco(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Write a COCO split of five images with two captions each; return json, folder and content."""
    folder = tmp_path / "val"
    folder.mkdir()
    ids = [100, 9, 20, 3, 7]
    for image_id in ids:
        (folder / f"{image_id:012d}.jpg").write_bytes(picture(image_id))
    data = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids],
        "annotations": [
            {"id": i * 10 + k, "image_id": i, "caption": f" caption {k}\n of  image {i} "}
            for k in (1, 0)
            for i in ids
        ],
    }
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(data))
    return path, folder, data


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Return a function that finds a folder of the test data, or skips the test."""

    def find(name: str) -> Path:
        usual = Path(__file__).resolve().parents[3] / "shared" / "data"
        folder = Path(os.environ.get("GMAIL_ALIGN_DATA", usual)) / name
        if not folder.is_dir():
            pytest.skip(f"no {name} data: set GMAIL_ALIGN_DATA")
        return folder

    return find


def import_coco(
    annotations: Path, images: Path, out: Path, *, split_name: str, **write: Any
) -> tuple[Artifact, Artifact]:
    """Import a COCO split without a receipt; return its captions and images."""
    source = coco_source(annotations, [images], split_name)
    made = write_import(source, out, ImportOptions(**write))
    return made["captions"], made["images"]
