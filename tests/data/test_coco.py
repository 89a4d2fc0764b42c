from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmail_align.data.captions import Caption
from gmail_align.data.coco import CocoImage, coco_captions, coco_images, file_sizes, load_coco
from gmail_align.errors import DataError

Coco = tuple[Path, Path, dict[str, Any]]
Change = Callable[[dict[str, Any]], None]


def read_coco(path: Path) -> tuple[list[CocoImage], list[Caption]]:
    data = load_coco(path)
    images = coco_images(data, path)
    return images, coco_captions(data, path, images)


def change(data: dict[str, Any], kind: str, entry: int, **values: Any) -> None:
    data[kind][entry].update(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no annotation file at"),
        ("{", "is not json"),
        ("\udcff", "is not json"),
        ("[" * 100_000, "is not json"),
        ("[1]", "is json but not COCO's"),
        ('{"images": []}', "is json but not COCO's"),
        ('{"images": {}, "annotations": []}', "'images' is not a list of objects"),
        ('{"images": [3], "annotations": []}', "'images' is not a list of objects"),
        ('{"images": [], "annotations": []}', "lists no images"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 1, "bbox": []}]}',
            "COCO json but not of captions",
        ),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: change(d, "annotations", 3, caption=" \n"),
            "annotation 31 has an empty caption",
        ),
        (lambda d: change(d, "annotations", 3, caption=None), "annotation 31 has no 'caption'"),
        (lambda d: change(d, "annotations", 3, caption="a\0"), r"annotation 31 .* U\+0000"),
        (lambda d: change(d, "annotations", 3, image_id=5), "31 belongs to image 5, which is not"),
        (lambda d: change(d, "annotations", 3, id=True), "has no 'id'"),
        (lambda d: change(d, "annotations", 3, id="../x"), r"has the id '\.\./x'"),
        (lambda d: change(d, "annotations", 3, id=1001), "annotation id 1001 comes twice"),
        (lambda d: change(d, "images", 1, id=100), "image id 100 comes twice"),
        (lambda d: change(d, "images", 1, file_name="../x.jpg"), "outside the image folder"),
        (lambda d: change(d, "images", 1, file_name="/x.jpg"), "outside the image folder"),
        (lambda d: change(d, "images", 1, file_name=None), "image 9 has no usable 'file_name'"),
    ],
)
def test_bad_entries_are_named(coco: Coco, edit: Change, message: str) -> None:
    path, _, data = coco
    edit(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=message):
        read_coco(path)


def test_ids_that_are_strings_sort_as_text(coco: Coco) -> None:
    path, _, data = coco
    change(data, "images", 0, id="x1")
    for entry in (0, 5):
        change(data, "annotations", entry, image_id="x1")
    path.write_text(json.dumps(data))
    assert [image.image_id for image in read_coco(path)[0]] == ["20", "3", "7", "9", "x1"]


def test_listed_but_absent_images_are_counted_and_the_first_named(coco: Coco) -> None:
    path, folder, _ = coco
    for number in (7, 20):
        (folder / f"{number:012d}.jpg").unlink()
    (folder / "000000000020.jpg").mkdir()
    with pytest.raises(DataError, match=r"2 of 5 listed images are not in .* 000000000007.jpg\)"):
        file_sizes(read_coco(path)[0], folder)
    with pytest.raises(DataError, match="there is no image folder"):
        file_sizes(read_coco(path)[0], folder / "nowhere")
