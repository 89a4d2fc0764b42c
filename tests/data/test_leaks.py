from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.captions import Caption, read_captions, write_captions
from gmail_align.data.hashes import difference_hash, near_pairs
from gmail_align.data.images import ImageStore, finish_images, shard_name, write_shard
from gmail_align.data.leaks import drop_leaks, find_leaks, photo_key, refuse_leaks
from gmail_align.errors import ArtifactError, DataError
from gmail_align.importing.admission import admit


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A smooth picture, as photos are: noise of a few pixels, enlarged and blurred."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    return image.filter(ImageFilter.GaussianBlur(2))


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def store(folder: Path, images: dict[str, bytes], **config: str) -> Artifact:
    draft = begin(folder, "images", config)
    samples = [admit(name, data) for name, data in images.items()]
    write_shard(draft.path(shard_name(0)), samples)
    return finish_images(draft)


def captions(folder: Path, ids: list[str], **config: str) -> Artifact:
    draft = begin(folder, "captions", config)
    rows = [Caption(f"c{n}", "a", name) for n, name in enumerate(ids)]
    return draft.finish({"captions": write_captions(draft, rows)})


@pytest.mark.parametrize(
    ("image_id", "config", "key"),
    [
        ("391895", {"format": "coco", "split": "val2014"}, "coco:391895"),
        ("000000391895", {"format": "coco", "split": "train2017"}, "coco:391895"),
        ("391895", {"format": "karpathy", "dataset": "coco"}, "coco:391895"),
        ("coco--train2017--000000391895", {"format": "sharegpt4v"}, "coco:391895"),
        ("COCO_val2014_000000391895", {"format": "folder"}, "coco:391895"),
        (
            "1000268201_693b08cb0e",
            {"format": "karpathy", "dataset": "flickr8k"},
            "flickr:1000268201",
        ),
        ("1000268201", {"format": "flickr30k"}, "flickr:1000268201"),
        ("391895", {"format": "cc"}, None),
        ("dog--1", {"format": "folder"}, None),
    ],
)
def test_one_photo_has_one_key_in_every_set(
    image_id: str, config: dict[str, str], key: str | None
) -> None:
    assert photo_key(image_id, config) == key


def test_hashes_tell_copies_from_other_photos() -> None:
    def differ(one: Image.Image, other: Image.Image) -> int:
        both = difference_hash(one) ^ difference_hash(other)
        return int(np.unpackbits(both).sum())

    for seed in range(20):
        image = photo(seed)
        again = Image.open(io.BytesIO(jpeg(image.resize((90, 70)), 60)))
        assert differ(image, again) <= 10
        assert differ(image, photo(seed + 1000)) >= 25


@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 30), st.integers(0, 64))
def test_near_pairs_are_those_of_counting_every_bit(
    seed: int, n: int, m: int, distance: int
) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    second = rng.integers(0, 256, (m, 16), dtype=np.uint8)
    if n and m:
        second[0] = first[-1]
    expected = {
        (i, j, d)
        for i in range(n)
        for j in range(m)
        if (d := bin(int.from_bytes((first[i] ^ second[j]).tobytes(), "big")).count("1"))
        <= distance
    }
    assert set(near_pairs(first, second, distance)) == expected


@pytest.mark.parametrize(("distance", "alike"), [(0, 0), (4, 1), (10, 1), (10, 60), (25, 1)])
def test_no_near_pair_is_missed_among_thousands(distance: int, alike: int) -> None:
    rng = np.random.default_rng(distance)
    first = rng.integers(0, 256, (3000, 16), dtype=np.uint8)
    second = rng.integers(0, 256, (2000, 16), dtype=np.uint8)
    first[: alike * 10] = first[0]  # as many blank images are
    for row in range(1500):  # copies that differ in 0 to distance + 1 bits
        bits = np.unpackbits(first[row])
        flipped = rng.choice(128, min(row % (distance + 2), 128), replace=False)
        bits[flipped] ^= 1
        second[rng.integers(2000)] = np.packbits(bits)
    wide = [np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1 for hashes in (first, second)]
    differing = (128 - wide[0] @ wide[1].T) / 2
    rows, columns = np.nonzero(differing <= distance)
    expected = list(
        zip(rows.tolist(), columns.tolist(), differing[rows, columns].tolist(), strict=True)
    )
    assert len(expected) > 500
    assert list(near_pairs(first, second, distance)) == expected


def test_leaks_by_id_and_by_looks_are_named_and_stop(tmp_path: Path) -> None:
    train = store(
        tmp_path / "train",
        {"000000000007": jpeg(photo(1)), "8": jpeg(photo(2)), "9": jpeg(photo(3))},
        format="coco",
        split="train2014",
    )
    by_id = store(tmp_path / "val", {"7": jpeg(photo(50))}, format="coco", split="val2017")
    copy = jpeg(photo(3).resize((100, 80)), 70)
    by_looks = store(tmp_path / "other", {"x": copy, "y": jpeg(photo(60))}, format="folder")
    leaks = find_leaks(train, [by_id, by_looks])
    assert [(leak.image_id, leak.evaluation_id, leak.how) for leak in leaks.leaks] == [
        ("000000000007", "7", "id"),
        ("9", "x", "looks"),
    ]
    assert leaks.to_dict()["leaking"] == 2
    assert (leaks.train, leaks.evaluation) == (3, 3)
    with pytest.raises(DataError, match=r"2 of 3 training images .* \(1 by id, 1 by looks; the fi"):
        refuse_leaks(leaks, train)
    kept = drop_leaks(train, leaks, tmp_path / "kept")
    assert ImageStore(kept).ids == ["8"]
    assert ImageStore(kept).record("8").sha256 == ImageStore(train).record("8").sha256
    refuse_leaks(find_leaks(kept, [by_id, by_looks]), kept)
    assert drop_leaks(train, leaks, tmp_path / "kept") == kept


def test_captions_leak_by_id_and_equal_names_of_other_sets_do_not(tmp_path: Path) -> None:
    train = captions(tmp_path / "t", ["1", "2", "2", "3"], format="coco")
    test = captions(tmp_path / "e", ["2", "4"], format="karpathy", dataset="coco")
    leaks = find_leaks(train, [test])
    assert leaks.ids == {"2"}
    assert not leaks.hashed
    kept = drop_leaks(train, leaks, tmp_path / "k")
    assert [row.image_id for row in read_captions(kept)] == ["1", "3"]
    other = captions(tmp_path / "cc", ["1", "2"], format="cc")
    told = find_leaks(other, [test])
    assert (told.leaks, told.not_compared) == ([], (str(test.folder),))
    assert not leaks.not_compared
    with pytest.raises(ArtifactError, match="holds result: images, captions or pairs"):
        find_leaks(begin(tmp_path / "r", "result", {}).finish({}), [test])


def test_flickr8k_leaks_none_of_its_own_splits_and_all_of_a_copy(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    import zipfile

    source = shared_data("flickr8k_224") / "val.zip"
    with zipfile.ZipFile(source) as file:
        names = sorted(file.namelist())[:80]
        images = {name.partition(".")[0]: file.read(name) for name in names}
    first, second = dict(list(images.items())[:40]), dict(list(images.items())[40:])
    train = store(tmp_path / "a", first, format="folder")
    assert not find_leaks(train, [store(tmp_path / "b", second, format="folder")]).leaks
    shrunk = {
        f"copy{number}": jpeg(Image.open(io.BytesIO(data)).resize((128, 96)), 60)
        for number, data in enumerate(first.values())
    }
    leaks = find_leaks(train, [store(tmp_path / "c", shrunk, format="folder")])
    assert [leak.evaluation_id for leak in leaks.leaks] == list(shrunk)
    json.dumps(leaks.to_dict())
