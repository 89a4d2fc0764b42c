from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gmail_align.data.classes import CLASS_SETS, class_set
from gmail_align.errors import DataError

Shared = Callable[[str], Path]

SIZES = {
    "dtd": (47, 8),
    "stanford_cars": (196, 8),
    "sun397": (397, 2),
    "food101": (101, 1),
    "fgvc_aircraft": (100, 2),
    "oxford_pets": (37, 1),
    "caltech101": (101, 34),
    "imagenet": (1000, 80),
}
OPENAI = {
    "dtd": "DescribableTextures",
    "stanford_cars": "StanfordCars",
    "sun397": "SUN397",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "oxford_pets": "OxfordPets",
    "caltech101": "Caltech101",
}


@pytest.mark.parametrize("name", CLASS_SETS)
def test_as_many_classes_and_templates_as_published(name: str) -> None:
    own = class_set(name)
    assert (len(own.keys), len(own.templates)) == SIZES[name]
    assert len(set(own.templates)) == len(own.templates)
    assert all(template.count("{}") == 1 for template in own.templates)
    prompts = own.prompts()
    assert {len(texts) for texts in prompts.values()} == {SIZES[name][1]}
    assert not any("{" in text or "  " in text for texts in prompts.values() for text in texts)


@pytest.mark.parametrize("name", OPENAI)
def test_names_and_templates_are_those_that_openai_published(
    name: str, shared_data: Shared
) -> None:
    path = shared_data("oracles") / "openai_prompts_7datasets.json"
    published = json.loads(path.read_text())[OPENAI[name]]
    own = class_set(name)
    names = [" ".join(text.split()) for text in published["classes"] if text != "background"]
    assert list(own.names.values()) == names
    assert list(own.templates) == published["templates"]


def test_imagenet_has_its_thousand_names_of_which_two_come_twice(shared_data: Shared) -> None:
    folder = shared_data("annotations") / "zeroshot"
    own = class_set("imagenet")
    assert list(own.keys) == sorted(own.keys)
    assert list(own.names.values()) == _json(folder / "en_classnames.json")["imagenet1k"]
    templates = _json(folder / "en_zeroshot_classification_templates.json")["imagenet1k"]
    assert [one.replace("{}", "{c}") for one in own.templates] == templates
    assert len(set(own.names.values())) == 998


def _json(path: Path) -> dict[str, list[str]]:
    content: dict[str, list[str]] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize(
    ("name", "said", "key"),
    [
        ("oxford_pets", "american_bulldog", "american_bulldog"),
        ("oxford_pets", "American Bulldog", "american_bulldog"),
        ("oxford_pets", "Egyptian_Mau", "Egyptian_Mau"),
        ("fgvc_aircraft", "F-A-18", "F/A-18"),
        ("sun397", "a/apse/indoor".partition("/")[2], "apse_indoor"),
        ("caltech101", "Faces_easy", "Faces_easy"),
        ("caltech101", "yin_yang", "yin_yang"),
        ("imagenet", "n01440764", "n01440764"),
        ("imagenet", "tench", "n01440764"),
        ("imagenet", "missile", None),
        ("dtd", "silk", None),
        ("caltech101", "BACKGROUND_Google", None),
    ],
)
def test_classes_are_found_as_files_name_them(name: str, said: str, key: str | None) -> None:
    assert class_set(name).key(said) == key


def test_prompts_hold_the_name() -> None:
    assert class_set("food101").prompts()["apple_pie"] == ["a photo of apple pie, a type of food."]


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(DataError, match="no class set is named 'cifar10'; use one of dtd"):
        class_set("cifar10")
