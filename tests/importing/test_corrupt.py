"""Broken input of every kind: each is left out by id and reason, and shifts no other id."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmail_align.artifacts import Artifact
from gmail_align.data.images import ImageStore
from gmail_align.errors import DataError
from gmail_align.importing.admission import admit
from gmail_align.importing.formats.captioned import karpathy
from gmail_align.importing.formats.classes import folder as folder_source
from gmail_align.importing.formats.shards import webdataset
from gmail_align.importing.formats.tables import parquet
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.write import write_import
from worlds.files import add_member

Make = Callable[..., bytes]
GOOD = ("a", "m", "z")


def saved(image: Image.Image, form: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **more)
    return buffer.getvalue()


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (16, 24), dtype=np.uint16))
    return Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).convert(mode)


def bomb() -> bytes:
    """A PNG that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    packer = zlib.compressobj(1)
    row = bytes(30_001)
    pixels = b"".join(packer.compress(row) for _ in range(300))
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", pixels + packer.flush()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def animation() -> bytes:
    frames = [noise(seed) for seed in range(3)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def broken(make_picture: Make) -> dict[str, tuple[bytes, str]]:
    """File name -> bytes and the reason why they are left out."""
    deep = np.random.default_rng(1).integers(0, 65536, (16, 24), dtype=np.uint16)
    return {
        "b_truncated.jpg": (make_picture(1)[:-100], "truncated"),
        "c_empty.jpg": (b"", "the file is empty"),
        "d_suffix.jpg": (make_picture(2, "PNG"), "is PNG, but its name ends in .jpg"),
        "e_text.jpg": (b"<html>404</html>", "image that Pillow can read"),
        "f_bomb.png": (bomb(), "more than 89478485 pixels"),
        "g_animated.gif": (animation(), "frames"),
        "h_cmyk.jpg": (saved(noise(3, "CMYK"), "JPEG"), "is CMYK, not RGB"),
        "i_deep.png": (saved(noise(4, "I;16"), "PNG"), "has more than 8 bits a channel"),
        "j_deep.tif": (saved(Image.fromarray(deep), "TIFF"), "has more than 8 bits a channel"),
        "k_half.png": (make_picture(5, "PNG")[:300], "cannot be decoded"),
        "l_long.png": (saved(Image.new("RGB", (1000, 2)), "PNG"), "one side is over 200 times"),
        "n_float.tif": (saved(Image.new("F", (9, 9)), "TIFF"), "has more than 8 bits a channel"),
    }


def everything(make_picture: Make) -> dict[str, bytes]:
    good = {f"{name}.jpg": make_picture(ord(name)) for name in GOOD}
    return dict(sorted({**good, **{k: v[0] for k, v in broken(make_picture).items()}}.items()))


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "x" / name).write_bytes(data)
    return folder


def as_zip(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(folder / "f.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(f"x/{name}", data)
    return folder / "f.zip"


def as_tar(folder: Path, files: dict[str, bytes], form: str = "") -> Path:
    folder.mkdir()
    path = folder / f"f.tar{form}"
    with tarfile.open(path, f"w:{form.strip('.')}") as tar:
        for name, data in files.items():
            add_member(tar, f"x/{name}", data)
    return path


def as_gz(folder: Path, files: dict[str, bytes]) -> Path:
    return as_tar(folder, files, ".gz")


def quarantine(artifact: Artifact) -> dict[str, str]:
    lines = artifact.path("quarantine.jsonl").read_text().splitlines()
    return {row["id"]: row["reason"] for row in map(json.loads, lines)}


@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar, as_gz])
def test_every_broken_image_is_left_out_by_id_and_reason(
    tmp_path: Path, make_picture: Make, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    files = everything(make_picture)
    place = pack(tmp_path / "in", files)
    made = write_import(
        folder_source([place]), tmp_path / "out", ImportOptions(limit_quarantine=0.9, shard_size=4)
    )
    store = ImageStore(made["images"])
    assert store.ids == list(GOOD)
    for name in GOOD:
        assert store.read_bytes(name) == files[f"{name}.jpg"]
    reasons = quarantine(made["images"])
    expected = {name.rpartition(".")[0]: why for name, (_, why) in broken(make_picture).items()}
    assert reasons.keys() == expected.keys()
    assert all(why in reasons[name] for name, why in expected.items())


def test_above_the_stated_rate_the_run_stops_with_one_sentence(
    tmp_path: Path, make_picture: Make
) -> None:
    place = as_folder(tmp_path / "in", everything(make_picture))
    with pytest.raises(DataError, match="12 of 15 images .* b_trunc") as caught:
        write_import(folder_source([place]), tmp_path / "out", ImportOptions(limit_quarantine=0.5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["d_suffix.jpg", "g_animated.gif", "h_cmyk.jpg", "i_deep.png", "j_deep.tif"]
)
def test_what_converts_is_taken_when_that_is_asked_for(make_picture: Make, name: str) -> None:
    data = broken(make_picture)[name][0]
    with pytest.raises(DataError):
        admit("a", data, name=name)
    record, kept = admit("a", data, name=name, convert=True)
    assert (record.width, record.height) == (24, 16)
    with Image.open(io.BytesIO(kept)) as image:
        shown = np.asarray(image.convert("RGB"))
    with Image.open(io.BytesIO(data)) as image:
        if "deep" in name:
            expected = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        else:
            expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(shown, expected)


def test_tars_with_links_escapes_and_duplicates(tmp_path: Path, make_picture: Make) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/f.tar", "w") as tar:
        add_member(tar, "x/a.jpg", make_picture(1))
        add_member(tar, "../x/evil.jpg", make_picture(2))
        add_member(tar, "/x/root.jpg", make_picture(3))
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard")):
            info = tarfile.TarInfo(f"x/{name}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        add_member(tar, "x/a.jpg", make_picture(4))
        info = tarfile.TarInfo("x/pipe.jpg")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
        add_member(tar, "x/z.jpg", make_picture(5))
    source = folder_source([tmp_path / "in/f.tar"])
    made = write_import(source, tmp_path / "out", ImportOptions(limit_quarantine=0.9))
    store = ImageStore(made["images"])
    assert store.ids == ["a", "z"]
    assert store.read_bytes("a") == make_picture(1)
    assert store.read_bytes("z") == make_picture(5)
    reasons = sorted(quarantine(made["images"]).values())
    assert len(reasons) == 6
    for reason, start in zip(
        reasons,
        ("../x/evil.jpg", "/x/root.jpg", "x/a.jpg", "x/hard.jpg", "x/pipe.jpg", "x/soft.jpg"),
        strict=True,
    ):
        assert reason.startswith(start)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("cut", [700, 3000])
def test_a_tar_that_is_cut_off_gives_what_stands_before(
    tmp_path: Path, make_picture: Make, cut: int
) -> None:
    place = as_tar(tmp_path / "in", {f"{n}.jpg": make_picture(n) for n in range(1, 9)})
    place.write_bytes(place.read_bytes()[:-10240][:-cut])
    source = folder_source([place])
    made = write_import(source, tmp_path / "out", ImportOptions(limit_quarantine=0.9))
    ids = ImageStore(made["images"]).ids
    assert ids == [str(n) for n in range(1, len(ids) + 1)]
    assert 3 <= len(ids) < 8
    said = " ".join(quarantine(made["images"]).values())
    assert "is damaged from here on" in said or "the archive ends after" in said


def test_zips_with_links_escapes_damage_and_duplicates(tmp_path: Path, make_picture: Make) -> None:
    place = tmp_path / "f.zip"
    with zipfile.ZipFile(place, "w") as file:
        file.writestr("x/a.jpg", make_picture(1))
        file.writestr("../evil.jpg", make_picture(2))
        link = zipfile.ZipInfo("x/link.jpg")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("x/a.jpg", make_picture(3))
        file.writestr("x/harm.jpg", make_picture(4))
        file.writestr("x/z.jpg", make_picture(5))
    whole = place.read_bytes()
    at = whole.index(make_picture(4)) + 200
    place.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    made = write_import(
        folder_source([place]), tmp_path / "out", ImportOptions(limit_quarantine=0.9)
    )
    store = ImageStore(made["images"])
    assert store.ids == ["a", "z"]
    assert store.read_bytes("a") in (make_picture(1), make_picture(3))
    reasons = " | ".join(quarantine(made["images"]).values())
    assert "x/link.jpg is a link" in reasons
    assert "../evil.jpg has a name that leaves" in reasons
    assert "x/a.jpg comes twice in the archive" in reasons
    assert "is damaged: Bad CRC-32" in reasons


def test_webdataset_shards_with_broken_samples(tmp_path: Path, make_picture: Make) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        add_member(tar, "000.jpg", make_picture(0))
        add_member(tar, "000.txt", b"a dog")
        add_member(tar, "001.jpg", make_picture(1))
        add_member(tar, "001.txt", b"a c\0at")
        add_member(tar, "002.jpg", make_picture(2))
        add_member(tar, "002.json", json.dumps({"caption": "x" * 100_000}).encode())
        add_member(tar, "003.jpg", make_picture(3))
        add_member(tar, "003.jpg", make_picture(33))
        add_member(tar, "003.txt", b"a bird")
        add_member(tar, "004.txt", b"no image")
        add_member(tar, "005.pkl", b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
        add_member(tar, "000.jpg", make_picture(9))
        info = tarfile.TarInfo("006.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "000.jpg"
        tar.addfile(info)
        add_member(tar, "../007.jpg", make_picture(7))
        add_member(tar, "008.jpg", make_picture(8))
        add_member(tar, "008.json", b'{"caption": "a fish"}')
        add_member(tar, "009.jpg", make_picture(9))
        add_member(tar, "009.txt", b"\xfc not utf-8")
    source = webdataset([tmp_path])
    made = write_import(source, tmp_path / "out", ImportOptions(limit_quarantine=0.9))
    assert ImageStore(made["images"]).ids == ["000", "001", "002", "003", "008", "009"]
    assert ImageStore(made["images"]).read_bytes("000") == make_picture(0)
    lines = made["captions"].path("captions.jsonl").read_text().splitlines()
    texts = {row["image_id"]: row["text"] for row in map(json.loads, lines)}
    assert texts == {"000": "a dog", "003": "a bird", "004": "no image", "008": "a fish"}
    reasons = quarantine(made["images"])
    assert "003.jpg comes twice" in reasons["003"]
    assert "does not have an image" in reasons["004"]
    assert "does not have an image" in reasons["005"]
    assert reasons["000"] == "the key 000 comes twice; the first is kept"
    assert reasons["006"] == "006.jpg is a link"
    assert any(why.startswith("../007.jpg has a name") for why in reasons.values())
    faults = quarantine(made["captions"])
    assert list(faults) == ["001-0", "002-0", "009-0"]
    assert "U+0000" in faults["001-0"]
    assert "100000" in faults["002-0"]
    assert faults["009-0"] == "is not UTF-8"


def test_too_many_broken_captions_stop_the_run(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"image": f"{n}.jpg", "caption": "" if n % 2 else "a"} for n in range(10)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\nnot json\n[1]\n")
    columns = {"image_column": "image", "caption_column": "caption"}
    with pytest.raises(DataError, match="7 of 12 captions .* 1.00%"):
        write_import(parquet([path], [], **columns), tmp_path / "out", ImportOptions())
    made = write_import(
        parquet([path], [], **columns), tmp_path / "two", ImportOptions(limit_quarantine=0.6)
    )
    reasons = quarantine(made["captions"])
    assert reasons["row-10"] == "is not JSON"
    assert "row-11" in reasons
    assert made["captions"].counts == {"captions": 5, "images": 5, "quarantined": 7}


def test_names_that_are_no_text_are_left_out(tmp_path: Path, make_picture: Make) -> None:
    folder = as_folder(tmp_path / "in", {"a.jpg": make_picture(1), "b.jpg": make_picture(2)})
    (folder / "x" / "c\udcff.jpg").write_bytes(make_picture(3))
    made = write_import(
        folder_source([folder]), tmp_path / "o", ImportOptions(limit_quarantine=0.5)
    )
    assert ImageStore(made["images"]).ids == ["a", "b"]
    assert list(quarantine(made["images"]).values()) == ["has a name that is not UTF-8"]
    path = tmp_path / "dataset_coco.json"
    entry = {"filename": "x\ud800.jpg", "split": "test", "sentences": [{"sentid": 1, "raw": "a"}]}
    path.write_text(json.dumps({"images": [entry]}))
    made = write_import(karpathy(path, []), tmp_path / "k", ImportOptions())
    assert made["captions"].counts["captions"] == 1
