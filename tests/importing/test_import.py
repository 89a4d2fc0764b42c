from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gmail_align.data.captions import Caption, read_captions
from gmail_align.data.images import ImageStore
from gmail_align.errors import ArtifactError, DataError
from gmail_align.importing import write as import_run
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data
from worlds.files import import_coco

Coco = tuple[Path, Path, dict[str, Any]]


def test_images_by_id_and_captions_by_image_then_annotation(coco: Coco, tmp_path: Path) -> None:
    captions, images = import_coco(*coco[:2], tmp_path / "out", split_name="val2017", shard_size=2)
    assert ImageStore(images).ids == ["3", "7", "9", "20", "100"]
    read = read_captions(captions)
    assert [caption.caption_id for caption in read] == [
        *("30", "31", "70", "71", "90", "91", "200", "201", "1000", "1001")
    ]
    assert read[0] == Caption("30", "caption 0 of image 3", "3")
    assert captions.manifest["config"] == {"format": "coco", "split": "val2017"}
    assert images.counts == {"images": 5, "quarantined": 0, "shards": 3}
    assert ImageStore(images).read_bytes("20") == (coco[1] / "000000000020.jpg").read_bytes()


def test_a_second_import_does_nothing_and_changed_inputs_are_refused(
    coco: Coco, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = import_coco(*coco[:2], out, split_name="val", shard_size=2)
    stamp = (out / "images/manifest.json").stat().st_mtime_ns
    assert import_coco(*coco[:2], out, split_name="val", shard_size=2) == first
    assert (out / "images/manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(ArtifactError, match=r"config\.split .*'val' .*'train'"):
        import_coco(*coco[:2], out, split_name="train", shard_size=2)
    (coco[1] / "000000000003.jpg").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"inputs\.files was"):
        import_coco(*coco[:2], out, split_name="val", shard_size=2)


def test_a_killed_import_goes_on_and_ends_with_the_same_bytes(
    coco: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = import_coco(*coco[:2], tmp_path / "a", split_name="val", shard_size=2)[1]
    written: list[str] = []
    real = import_run.write_shard

    def killed(path: Path, *rest: Any) -> Any:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr(import_run, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        import_coco(*coco[:2], tmp_path / "b", split_name="val", shard_size=2)
    written.append("resumed")
    resumed = import_coco(*coco[:2], tmp_path / "b", split_name="val", shard_size=2)[1]
    assert written == ["00000.tar", "resumed", "00001.tar", "00002.tar"]
    assert resumed.manifest["files"] == whole.manifest["files"]


def test_a_truncated_image_is_quarantined_and_shifts_nothing(coco: Coco, tmp_path: Path) -> None:
    victim = coco[1] / "000000000009.jpg"
    victim.write_bytes(victim.read_bytes()[:-200])
    captions, images = import_coco(
        *coco[:2], tmp_path / "out", split_name="val", limit_quarantine=0.2
    )
    assert ImageStore(images).ids == ["3", "7", "20", "100"]
    row = json.loads(images.path("quarantine.jsonl").read_text())
    assert row["id"] == "9"
    assert "truncated" in row["reason"]
    assert captions.counts == {"captions": 10, "images": 5}


def test_too_many_broken_images_stop_the_import(coco: Coco, tmp_path: Path) -> None:
    (coco[1] / "000000000009.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 5 images .* 9: .* empty"):
        import_coco(*coco[:2], tmp_path / "out", split_name="val")


def test_what_changes_pixels_is_counted(tmp_path: Path, make_picture: Callable[..., bytes]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    frames = [Image.new("L", (20, 16), grey) for grey in (10, 200)]
    (tmp_path / "set").mkdir()
    frames[0].save(tmp_path / "set/turned.jpg", exif=exif)
    frames[0].save(tmp_path / "set/frames.gif", save_all=True, append_images=frames[1:])
    frames[0].convert("CMYK").save(tmp_path / "set/print.jpg")
    Image.new("I;16", (20, 16)).save(tmp_path / "set/deep.png")
    (tmp_path / "set/tail.jpg").write_bytes(make_picture(1) + b"tail")
    (tmp_path / "set/plain.jpg").write_bytes(make_picture(2))
    write = ImportOptions(convert=True, shard_size=2)
    made = import_data("folder", {"source": tmp_path / "set"}, tmp_path / "out", write)
    assert made["images"].counts["images"] == 6
    assert made["images"].manifest["notes"]["changed"] == {
        "16 bits a channel to 8": 1,
        "CMYK to RGB": 1,
        "bytes behind the image's end": 1,
        "first of several frames": 1,
        "turned upright": 1,
    }
