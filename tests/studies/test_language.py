"""The language of studies: what every shipped study says, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from gmail_align.config import load_toml
from gmail_align.errors import ConfigError
from gmail_align.studies.language import SCALES, read_study, study_file, study_names, study_of
from gmail_align.studies.run import StudyOptions, plan_study

TABLES = range(1, 18)
SHIPPED = [
    *(f"table-{number}" for number in TABLES),
    "budget",
    "guard",
    "switches",
    "figure-2",
    "figure-3",
]


def test_the_shipped_studies_are_these() -> None:
    assert study_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_study_plans_at_both_scales(name: str, tmp_path: Path) -> None:
    study = read_study(name)
    assert set(study.scale) == set(SCALES)
    for scale in SCALES:
        plan = plan_study(name, StudyOptions(scale, seeds=1, work=tmp_path))
        assert plan["missing_steps"] == len(plan["steps"]) > 0
        assert study.recipe(scale, {"seeds": 2}).seeds == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SHIPPED)
def test_every_study_has_the_controls_and_claims(name: str) -> None:
    study = read_study(name)
    recipe = study.recipe("tabletop")
    assert recipe.seeds >= 3
    assert study.claim
    assert [row.name for row in recipe.row] == [
        r.name for r in study.row if not r.missing_at("tabletop")
    ]


def tables(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(load_toml(study_file("table-6"))), **changes}


def with_row(**keys: Any) -> dict[str, Any]:
    row = {"name": "one", "learn": "clipcap", **keys}
    return tables(row=[row], claim=[])


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (tables(titel="x"), "title"),
        (tables(algin={}), "align"),
        (tables(column=[]), "column"),
        (tables(column=[{"name": "CIDEr", "labell": "x"}]), "label"),
        (tables(scale={"tabletop": {"base": "smoke", "lern": {}}}), "learn"),
        (tables(scale={"tabletop": {}}), "base"),
        (tables(scale={"desktop": {"base": "smoke"}}), "desktop"),
        (with_row(papers={}), "paper"),
        (with_row(algin="gmail"), "align"),
        (with_row(paper={"CIDer": 1.0}), "CIDEr"),
        (with_row(status={"CIDer": "matched source"}), "CIDEr"),
        (with_row(status="certain"), "certain"),
        (tables(claim=[{"name": "a", "better": "onn", "worse": "off"}]), "on"),
    ],
)
def test_what_is_wrong_is_named(made: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        study_of("mine", made)
    assert named in str(error.value) and "mine" in str(error.value)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (with_row(align="gmal"), "gmail"),
        (tables(align={"shift": {"methd": "x"}}), "method"),
        (tables(align={"shift": {"like": "gmal"}}), "gmail"),
        (tables(align={"shift": {"like": ["gmail"]}}), "like"),
        (tables(align={"a": {"like": "shift"}, "shift": {"like": "a"}}), "like"),
        (tables(scale={"tabletop": {"base": "smok"}}), "smoke"),
    ],
)
def test_what_its_recipe_refuses_is_named(made: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        study_of("mine", made).recipe("tabletop")


def test_a_column_that_no_row_fills_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        study_file("table-6").read_text().replace('label = "CIDEr"', 'metric = "CIDerr"', 1)
    )
    with pytest.raises(ConfigError, match="'CIDerr'.*such as CIDEr, "):
        plan_study(str(tmp_path / "mine.toml"), StudyOptions(work=tmp_path))


def test_an_unknown_study_or_scale_names_what_there_is() -> None:
    with pytest.raises(ConfigError, match="table-6"):
        read_study("tabel-6")
    study = study_of("mine", tables(scale={"tabletop": {"base": "smoke"}}))
    with pytest.raises(ConfigError, match="tabletop"):
        study.recipe("paper")


def test_a_study_stands_over_its_base() -> None:
    recipe = study_of("mine", tables()).recipe("tabletop")
    base = load_toml(Path(str(study_file("table-6"))).parents[1] / "recipes/tabletop-study.toml")
    longer, plain = (recipe.learn[name].settings for name in ("longer", "clipcap"))
    assert longer and plain
    assert longer.optim.steps == plain.optim.steps + recipe.align["gmail"].optim.steps
    assert longer.batch_size == plain.batch_size == base["learn"]["clipcap"]["batch_size"]
    paper = study_of("mine", tables()).recipe("paper")
    assert paper.learn["longer"].model == paper.learn["clipcap"].model  # it is like the other
    assert recipe.align["shift"].method == "mean_shift"


def test_a_row_that_cannot_run_is_left_out_with_its_claims() -> None:
    made = tables()
    made["row"][0]["missing"] = {"paper": "nobody has the weights"}
    study = study_of("mine", made)
    assert "off" in [row.name for row in study.recipe("tabletop").row]
    paper = study.recipe("paper")
    assert "off" not in [row.name for row in paper.row]
    assert not any("off" in (claim.better, claim.worse) for claim in paper.claim)
