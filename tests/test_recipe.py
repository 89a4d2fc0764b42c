"""The recipe language: what is refused, and what each refusal names."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gmail_align.encoders.shipped import shipped_models
from gmail_align.errors import ConfigError
from gmail_align.recipe import read_recipe, recipe_names, recipe_of
from gmail_align.recipe_tables import uses_generated_images, uses_real_images

TINY: dict[str, Any] = {
    "data": {
        "train": {"kind": "tabletop", "images": 20, "captions_per_image": 1},
        "validation": {"kind": "tabletop", "images": 10, "captions_per_image": 1},
        "test": {"kind": "tabletop", "images": 10},
    },
    "generator": {"model": "tabletop", "steps": 1},
    "subsets": {"few": {"images": 0.5}},
    "align": {"ours": {"temperature": 0.1}, "control": {"preset": "lora_only"}},
    "learn": {"clipcap": {"kind": "clipcap", "optim": {"steps": 2}}},
    "row": [
        {"name": "raw", "learn": "clipcap"},
        {"name": "ours", "learn": "clipcap", "align": "ours"},
    ],
    "claim": [{"name": "it helps", "better": "ours", "worse": "raw"}],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(TINY), **changes}


def row(**keys: Any) -> dict[str, Any]:
    return changed(row=[{"name": "raw", "learn": "clipcap", **keys}], claim=[])


def test_shipped_recipes_are_valid() -> None:
    assert {"demo", "smoke", "tabletop-evidence"} <= set(recipe_names())
    for name in recipe_names():
        assert read_recipe(name).row


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'demo'"):
        read_recipe("dmo")


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        (changed(titel="x"), "title"),
        (changed(align={"ours": {"temprature": 1}, "control": {}}), "temperature"),
        (changed(generator={"model": "tabletop", "step": 1}), "steps"),
        (changed(generator={"steps": 1}), "model"),
        (changed(generator={"model": "tabletop", "filter": {"reasign": True}}), "reassign"),
        (changed(generator={"model": "tabletop", "filter": {"reassign": True}}), "encoder"),
        (changed(learn={"clipcap": {"kind": "clipcap", "beams": 1}}), "beam"),
        (changed(align={"ours": {"preset": "gmal"}}), "gmail"),
        (changed(evaluate={"retreival": ["x"]}), "retrieval"),
        (row(algin="ours"), "align"),
        (row(align="our"), "ours"),
        (row(learn="clipcapp"), "clipcap"),
        (row(align="ours", pairs="fw"), "few"),
        (row(generator="flux"), "default"),
        (row(pairs="few"), "few"),
        (row(reads="real"), "reads"),
        (row(set={"align.ours.temprature": 0.2}), "temperature"),
        (changed(data={"validation": {"share": 0.1}}), "data.train"),
        (changed(data={"train": {"share": 0.1}}), "data.train"),
        (changed(generator={"model": "tabletop", "filter": 5}), "generator.filter"),
        (changed(data={"train": {"images": 3}}), "data.train"),
        (changed(data={"train": {**TINY["data"]["train"], "prompts": {}}}), "captioner"),
        (changed(data={"train": {"kind": "tabletop", "imagess": 3}}), "images"),
        (changed(claim=[{"name": "a", "better": "our", "worse": "raw"}]), "ours"),
        (changed(claim=TINY["claim"] * 2), "it helps"),
        (changed(row=[TINY["row"][0]] * 2, claim=[]), "raw"),
        (changed(row=[]), "row"),
    ],
)
def test_what_is_wrong_is_named(tables: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_of(tables)
    assert named in str(error.value)


def test_a_claim_over_other_test_images_is_refused() -> None:
    other = {**TINY["row"][1], "set": {"data.test.images": 12}}
    with pytest.raises(ConfigError, match="it helps"):
        recipe_of(changed(row=[TINY["row"][0], other]))


def test_a_row_has_its_own_values() -> None:
    own = {**TINY["row"][1], "set": {"align.ours.temperature": 0.5}}
    recipe = recipe_of(changed(row=[TINY["row"][0], own]))
    plain, special = (recipe.for_row(one).align["ours"] for one in recipe.row)
    assert (plain.temperature, special.temperature) == (0.1, 0.5)


def test_overrides_come_last() -> None:
    assert read_recipe("demo", ["align.gmail.temperature=0.2", "seeds=3"]).seeds == 3


def test_settings_stand_over_a_preset_key_by_key() -> None:
    align = {"control": {"preset": "lora_only", "weights": {"text_generated": 0.5}}}
    settings = recipe_of(row() | {"align": align}).align["control"]
    assert settings.weights.align == 0 and settings.weights.text_generated == 0.5


def test_several_generators_are_named() -> None:
    several = {"model": "tabletop", "flux": {"preset": "flux", "model": "some/flux"}}
    recipe = recipe_of(changed(generator=several))
    assert set(recipe.generator) == {"default", "flux"}


@pytest.mark.parametrize(
    ("settings", "uses"),
    [
        ({"preset": "lora_only"}, False),
        ({"preset": "lora_only", "keep_real": "noise"}, True),
        ({"preset": "lora_only", "keep_real": "none", "select": "margin"}, True),
        (
            {
                "preset": "lora_only",
                "keep_real": "none",
                "weights": {"distill_generated": 1.0},
            },
            True,
        ),
        ({"preset": "gmail"}, True),
        ({"method": "mean_shift"}, True),
    ],
)
def test_an_alignment_knows_whether_it_uses_real_images(
    settings: dict[str, Any], uses: bool
) -> None:
    recipe = recipe_of(row() | {"align": {"any": settings}})
    assert uses_real_images(recipe.align["any"]) == uses


@pytest.mark.parametrize(
    ("settings", "uses"),
    [
        ({"preset": "gmail"}, True),
        ({"preset": "lora_only"}, True),
        ({"method": "mean_shift"}, True),
        ({"weights": {"align": 0.0, "text_generated": 0.0}, "select": "loss"}, False),
        ({"weights": {"align": 0.0, "text_generated": 0.0}}, True),
        ({"data": "real", "select": "retrieval"}, False),
    ],
)
def test_an_alignment_knows_whether_it_uses_generated_images(
    settings: dict[str, Any], uses: bool
) -> None:
    recipe = recipe_of(row() | {"align": {"any": settings}})
    assert uses_generated_images(recipe.align["any"]) == uses


def test_shipped_models_are_small_and_safe() -> None:
    files = [path for path in shipped_models().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ""}
