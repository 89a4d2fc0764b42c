from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gmail_align.data.images import ImageStore
from gmail_align.data.pairs import make_pairs, read_pairs
from gmail_align.errors import DataError
from gmail_align.importing.formats.classes import cifake, classification, folder
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.write import write_import

Make = Callable[..., bytes]


def put(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def layout(name: str, root: Path, make: Make) -> dict[str, str]:
    """Write two test images of a set as its authors lay it out; return image id -> class."""
    one, two = make(1), make(2)
    if name == "dtd":
        files = {"dtd/labels/test1.txt": "banded/banded_0002.jpg\npolka-dotted/p_1.jpg\n"}
        images = {"dtd/images/banded/banded_0002.jpg": one, "dtd/images/polka-dotted/p_1.jpg": two}
        labels = {"banded--banded_0002": "banded", "polka-dotted--p_1": "polka-dotted"}
    elif name == "food101":
        listed = {"apple_pie": ["apple_pie/1"], "waffles": ["waffles/2"]}
        files = {"food-101/meta/test.json": json.dumps(listed)}
        images = {"food-101/images/apple_pie/1.jpg": one, "food-101/images/waffles/2.jpg": two}
        labels = {"apple_pie--1": "apple_pie", "waffles--2": "waffles"}
    elif name == "fgvc_aircraft":
        base = "fgvc-aircraft-2013b/data/"
        files = {base + "images_variant_test.txt": "0034309 707-320\n0034958 F/A-18\n"}
        images = {base + "images/0034309.jpg": one, base + "images/0034958.jpg": two}
        labels = {"0034309": "707-320", "0034958": "F/A-18"}
    elif name == "oxford_pets":
        text = "Abyssinian_201 1 1 1\namerican_pit_bull_terrier_7 3 2 2\n"
        files = {"oxford-iiit-pet/annotations/test.txt": text}
        images = {
            f"oxford-iiit-pet/images/{line.split()[0]}.jpg": one for line in text.splitlines()
        }
        labels = {"Abyssinian_201": "Abyssinian"}
        labels["american_pit_bull_terrier_7"] = "american_pit_bull_terrier"
    elif name == "sun397":
        files = {"SUN397/Testing_01.txt": "/a/abbey/sun_a.jpg\n/a/apse/indoor/sun_b.jpg\n"}
        images = {"SUN397/a/abbey/sun_a.jpg": one, "SUN397/a/apse/indoor/sun_b.jpg": two}
        labels = {"sun_a": "abbey", "sun_b": "apse_indoor"}
    elif name == "caltech101":
        files = {}
        base = "caltech101/101_ObjectCategories/"
        images = {base + "Faces_easy/image_0001.jpg": one, base + "yin_yang/image_0001.jpg": two}
        images[base + "BACKGROUND_Google/image_0001.jpg"] = two
        labels = {"Faces_easy--image_0001": "Faces_easy", "yin_yang--image_0001": "yin_yang"}
    elif name == "imagenet":
        files = {}
        images = {"val/n01440764/ILSVRC2012_val_00000293.JPEG": one, "val/n15075141/x.JPEG": two}
        images["train/n01440764/y.JPEG"] = two
        labels = {
            "n01440764--ILSVRC2012_val_00000293": "n01440764",
            "n15075141--x": "n15075141",
        }
    else:
        scipy_io = pytest.importorskip("scipy.io")
        kinds = [("class", "O"), ("fname", "O")]
        rows = np.array([(1, "00001.jpg"), (196, "00002.jpg")], dtype=kinds)
        (root / "stanford_cars").mkdir(parents=True)
        scipy_io.savemat(
            root / "stanford_cars/cars_test_annos_withlabels.mat", {"annotations": rows}
        )
        files = {}
        base = "stanford_cars/cars_test/"
        images = {base + "00001.jpg": one, base + "00002.jpg": two}
        labels = {
            "00001": "AM General Hummer SUV 2000",
            "00002": "smart fortwo Convertible 2012",
        }
    put(root, {**files, **images})
    return labels


SETS = (
    *("dtd", "stanford_cars", "sun397", "food101"),
    *("fgvc_aircraft", "oxford_pets", "caltech101", "imagenet"),
)


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_read_in_the_layout_of_its_authors(
    tmp_path: Path, make_picture: Make, name: str
) -> None:
    labels = layout(name, tmp_path / "in", make_picture)
    options = ImportOptions(protocol=name, subset=True, convert=True)
    made = write_import(classification(name, [tmp_path / "in"]), tmp_path / "out", options)
    assert json.loads(made["classes"].path("labels.json").read_text()) == labels
    assert sorted(ImageStore(made["images"]).ids) == sorted(labels)
    prompts = json.loads(made["classes"].path("classes.json").read_text())
    assert set(labels.values()) <= prompts.keys()
    assert len(prompts) == made["classes"].counts["classes"]
    said = made["images"].manifest["notes"]["protocol"]
    assert said.startswith(f"{name} (subset: 2 of ")
    with pytest.raises(DataError, match=rf"{name} has \d+ images and \d+ classes, but here are 2"):
        write_import(
            classification(name, [tmp_path / "in"]),
            tmp_path / "whole",
            ImportOptions(protocol=name),
        )


def test_a_set_is_read_from_a_packed_tar(tmp_path: Path, make_picture: Make) -> None:
    labels = layout("dtd", tmp_path / "in", make_picture)
    with tarfile.open(tmp_path / "dtd.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "in/dtd", "dtd")
    source = classification("dtd", [tmp_path / "dtd.tar.gz"])
    made = write_import(source, tmp_path / "out", ImportOptions())
    assert json.loads(made["classes"].path("labels.json").read_text()).keys() == labels.keys()


def test_unknown_classes_sets_and_missing_lists_are_refused(
    tmp_path: Path, make_picture: Make
) -> None:
    with pytest.raises(DataError, match="named 'cifar'"):
        classification("cifar", [tmp_path])
    with pytest.raises(DataError, match=r"labels/test1.txt"):
        classification("dtd", [tmp_path])
    put(tmp_path, {"labels/test1.txt": "silk/a.jpg\n", "images/silk/a.jpg": make_picture(1)})
    with pytest.raises(DataError, match="'silk'.* dtd"):
        classification("dtd", [tmp_path])


def test_class_folders_below_a_shared_one(tmp_path: Path, make_picture: Make) -> None:
    files = {
        f"set/train/{name}/{n}.jpg": make_picture(n) for name in ("red_fox", "owl") for n in (1, 2)
    }
    put(tmp_path / "in", {**files, "set/train/readme.txt": "no image"})
    source = folder([tmp_path / "in"], template="this is a {}")
    made = write_import(source, tmp_path / "out", ImportOptions())
    assert ImageStore(made["images"]).ids == ["owl--1", "owl--2", "red_fox--1", "red_fox--2"]
    prompts = json.loads(made["classes"].path("classes.json").read_text())
    assert prompts == {"owl": ["this is a owl"], "red_fox": ["this is a red fox"]}
    put(tmp_path / "in", {"set/train/loose.jpg": make_picture(9)})
    with pytest.raises(DataError, match="loose.jpg is in no class folder"):
        folder([tmp_path / "in"])


def test_images_in_one_folder_have_no_class(tmp_path: Path, make_picture: Make) -> None:
    put(tmp_path / "in", {f"x/{n}.png": make_picture(n, "PNG") for n in range(3)})
    made = write_import(folder([tmp_path / "in"]), tmp_path / "out", ImportOptions())
    assert list(made) == ["images"]
    with pytest.raises(DataError, match="source"):
        folder([put(tmp_path / "empty", {"a.txt": "a"})])


def test_cifake_both_layouts_and_pairs_by_class(tmp_path: Path, make_picture: Make) -> None:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as file:
        for number, mark in ((0, ""), (1, " (6)"), (2, " (6)")):
            file.writestr(f"train/REAL/{number:04d}{mark}.jpg", make_picture(number))
            file.writestr(f"train/FAKE/{number + 1000}{mark}.jpg", make_picture(number + 10))
    imported = {
        modality: write_import(
            cifake(
                [tmp_path / "archive.zip"],
                generated=modality == "generated",
                real=modality == "real",
            ),
            tmp_path / modality,
            ImportOptions(),
        )
        for modality in ("real", "generated")
    }
    real, generated = (
        ImageStore(imported[modality]["images"]) for modality in ("real", "generated")
    )
    assert real.ids == ["airplane-00000", "dog-00000", "dog-00001"]
    assert generated.ids == ["airplane-00000-0-0", "dog-00000-0-0", "dog-00001-0-0"]
    record = generated.record("dog-00001-0-0")
    assert (record.source, record.prompt) == ("generated", "a photo of a dog.")
    assert generated.read_bytes("dog-00001-0-0") == make_picture(12)
    pairs = make_pairs(
        imported["real"]["captions"],
        imported["real"]["images"],
        imported["generated"]["images"],
        tmp_path / "pairs",
    )
    assert [(one.real_image_id, one.generated_image_id) for one in read_pairs(pairs)] == [
        (name, f"{name}-0-0") for name in real.ids
    ]
    put(tmp_path / "k", {"5_dog/0.jpg": make_picture(1), "9_truck/1.jpg": make_picture(2)})
    made = write_import(cifake([tmp_path / "k"], real=True), tmp_path / "o", ImportOptions())
    assert ImageStore(made["images"]).ids == ["dog-00000", "truck-00000"]
    put(tmp_path / "bad", {"x/1 (11).jpg": make_picture(1)})
    with pytest.raises(DataError, match="names no class of CIFAKE"):
        cifake([tmp_path / "bad"], real=True)
