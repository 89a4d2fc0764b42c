from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmail_align.errors import DataError
from gmail_align.importing.formats.coco import coco as coco_source
from gmail_align.importing.staging import Staging
from worlds.files import import_coco

Coco = tuple[Path, Path, dict[str, Any]]
Change = Callable[[dict[str, Any]], None]


def read_coco(path: Path) -> Staging:
    return coco_source(path).staging


def change(data: dict[str, Any], kind: str, entry: int, **values: Any) -> None:
    data[kind][entry].update(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no annotation file at"),
        ("{", "is not json"),
        ("\udcff", "is not json"),
        ("[" * 100_000, "is json but not COCO's"),
        ('{"images": ' + "[" * 100_000, "is not json"),
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
        (lambda d: change(d, "annotations", 3, image_id=5), "31 belongs to image 5, which is not"),
        (lambda d: change(d, "annotations", 3, id=True), "'id'"),
        (lambda d: change(d, "annotations", 3, id=1001), "annotation id 1001 comes twice"),
        (lambda d: change(d, "images", 1, id=100), "image id 100 comes twice"),
        (lambda d: change(d, "images", 1, file_name=None), "image 9 .*'file_name'"),
        (lambda d: change(d, "images", 1, file_name="a\ud800"), "image 9 .*'file_na"),
        (lambda d: d["images"].append(7), "'images' is not a list of objects"),
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
    assert [image.image_id for image in read_coco(path).images()] == ["20", "3", "7", "9", "x1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n", "is empty"),
        (None, "caption"),
        ("a\0", "U+0000"),
        ("a\ud800b", "U+D800"),
        ("x" * 100_000, "100000"),
    ],
)
def test_a_caption_that_cannot_be_used_is_left_out_and_shifts_nothing(
    coco: Coco, text: str | None, reason: str
) -> None:
    path, _, data = coco
    before = {caption.caption_id: caption for caption in read_coco(path).captions()}
    change(data, "annotations", 3, caption=text)
    path.write_text(json.dumps(data))
    stage = read_coco(path)
    (fault,) = stage.left_out("captions")
    assert fault.id == "31"
    assert reason in fault.reason
    after = {caption.caption_id: caption for caption in stage.captions()}
    assert after == {name: caption for name, caption in before.items() if name != "31"}


def test_absent_images_are_left_out_by_name_and_a_wrong_folder_is_named(
    coco: Coco, tmp_path: Path
) -> None:
    path, folder, _ = coco
    (folder / "000000000007.jpg").unlink()
    made = import_coco(path, folder, tmp_path / "out", split_name="v", limit_quarantine=0.2)
    row = json.loads(made[1].path("quarantine.jsonl").read_text())
    assert row == {"id": "7", "reason": "there is no file 000000000007.jpg"}
    (folder / "000000000020.jpg").unlink()
    (folder / "000000000020.jpg").mkdir()
    with pytest.raises(DataError, match="2 of 5 images .* 7: .* no file"):
        import_coco(path, folder, tmp_path / "two", split_name="v", limit_quarantine=0.2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of the 5"):
        import_coco(path, tmp_path / "empty", tmp_path / "none", split_name="v")
    with pytest.raises(DataError, match="there is no folder, zip or tar at"):
        import_coco(path, folder / "nowhere", tmp_path / "no", split_name="v")
