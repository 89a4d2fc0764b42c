"""The recipe language: one TOML file that says what data, models, rows and claims a run has.

A recipe names its parts (data sets, generators, encoders, alignments, learners), and each row
combines them. No name of a row, an alignment or a learner has a meaning here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from gmail_align.alignment.config import AlignConfig
from gmail_align.config import Config, apply_overrides, build, load_toml, nearest
from gmail_align.errors import ConfigError
from gmail_align.recipe_tables import (
    Claim,
    Encoder,
    Evaluate,
    Generator,
    Learner,
    Row,
    Source,
    Subset,
    Table,
    with_preset,
)


class Recipe(Config):
    """One run of the whole method."""

    title: str = "GMAIL"
    seed: int = 0
    """Seed of every choice of data, and of the first training."""
    seeds: int = Field(1, ge=1, le=1000)
    """How often everything that is trained is trained, each time with a seed of its own."""
    workers: int | None = Field(None, ge=1)
    """Rows trained at a time; by default one for each GPU, or for each core up to eight."""
    data: dict[str, Source]
    subsets: dict[str, Subset] = Field(default_factory=dict)
    generator: dict[str, Generator] = Field(default_factory=dict)
    encoder: dict[str, Encoder] = Field(default_factory=dict)
    align: dict[str, AlignConfig] = Field(default_factory=dict)
    learn: dict[str, Learner] = Field(default_factory=dict)
    row: tuple[Row, ...]
    evaluate: Evaluate = Evaluate()
    claim: tuple[Claim, ...] = ()
    _tables_read: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def tables(self) -> dict[str, Any]:
        """The tables that the recipe was read from."""
        return self._tables_read

    @field_validator("data", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        tables = _tables("data", value)
        tables.setdefault("validation", {"share": 0.1})
        tables.setdefault("test", {"share": 0.1})
        return {name: Source.parse(f"data.{name}", table) for name, table in tables.items()}

    @field_validator("generator", mode="before")
    @classmethod
    def _generators(cls, value: Any) -> Any:
        several = _one_or_several("generator", value, ("filter",)) if value else {}
        return {name: Generator.parse(place, table) for name, (place, table) in several.items()}

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoders(cls, value: Any) -> Any:
        several = _one_or_several("encoder", value)
        return {name: build(Encoder, table, place) for name, (place, table) in several.items()}

    @field_validator("align", mode="before")
    @classmethod
    def _alignments(cls, value: Any) -> Any:
        places = {name: f"align.{name}" for name in _tables("align", value)}
        return {
            name: build(AlignConfig, with_preset(place, value[name], AlignConfig), place)
            for name, place in places.items()
        }

    @field_validator("learn", mode="before")
    @classmethod
    def _learners(cls, value: Any) -> Any:
        tables = {"none": {"kind": "none"}, **_tables("learn", value)}
        return {name: Learner.parse(f"learn.{name}", table) for name, table in tables.items()}

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if "train" not in self.data or self.data["train"].share is not None:
            raise ValueError("data.train is missing: say where images and captions come from")
        _refuse_twins("row", [row.name for row in self.row])
        _refuse_twins("claim", [claim.name for claim in self.claim])
        if not self.row:
            raise ValueError("there is no [[row]]: add at least one")
        for row in self.row:
            self._check_row(row)
        names = [row.name for row in self.row]
        for claim in self.claim:
            for row_name in (claim.better, claim.worse):
                _require_name(f"claim {claim.name!r}", "row", row_name, names)
        return self

    def _check_row(self, row: Row) -> None:
        place = f"row {row.name!r}"
        _require_name(place, "learner", row.learn, self.learn)
        _require_name(place, "encoder", row.encoder, self.encoder)
        if row.align is not None:
            _require_name(place, "alignment", row.align, self.align)
        if row.pairs is not None:
            _require_name(place, "subset", row.pairs, self.subsets)
        if row.images != "real" or row.align is not None:
            _require_name(place, "generator", row.generator, self.generator)
        if row.reads != "frozen" and row.align is None:
            raise ValueError(f'{place} has reads = "{row.reads}" and no alignment: add align')
        if row.pairs is not None and row.images == "generated" and row.align is None:
            raise ValueError(f"{place} sees no real image: leave out pairs = {row.pairs!r}")

    def for_row(self, row: Row) -> Recipe:
        """Return the recipe as this row sees it, with the row's own values of keys.

        Raises:
            ConfigError: one of them does not fit.
        """
        if not row.set:
            return self
        data = copy.deepcopy(self.tables)
        for dotted, value in row.set.items():
            table = data
            *keys, last = dotted.split(".")
            if not all((*keys, last)):
                raise ConfigError(f"row {row.name!r}: set has the key {dotted!r}: write a.b.c")
            for key in keys:
                table = table.setdefault(key, {})
                if not isinstance(table, dict):
                    raise ConfigError(f"row {row.name!r}: set goes through {key!r}, a single value")
            table[last] = value
        return build(Recipe, data, f"row {row.name!r}")


def read_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a recipe file by path, with ``--set`` overrides on top.

    Raises:
        ConfigError: there is no such recipe, or a key or value is wrong.
    """
    try:
        return recipe_of(apply_overrides(load_toml(recipe_file(name)), overrides))
    except ConfigError as error:
        raise ConfigError(f"recipe {name}: {str(error).removeprefix(': ')}") from error


def recipe_of(tables: Table) -> Recipe:
    """Return the recipe that the tables of a file say.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    recipe = build(Recipe, tables, "")
    recipe.tables.update(tables)
    _refuse_unlike_claims(recipe)
    return recipe


def recipe_file(name: str) -> Path:
    """Return the file of a recipe: a path that ends in ``.toml``, or a shipped recipe's name.

    Raises:
        ConfigError: no shipped recipe has this name.
    """
    return shipped_file(name, "recipe", "gmail_align.recipes")


def shipped_file(name: str, what: str, package: str) -> Path:
    """Return a TOML file: a path that ends in ``.toml``, or a file that a package ships.

    Raises:
        ConfigError: the package does not ship this name.
    """
    if name.endswith(".toml"):
        return Path(name)
    path = Path(str(resources.files(package))) / f"{name}.toml"
    if not path.exists():
        raise ConfigError(f"there is no {what} {name!r}; {nearest(name, shipped_names(package))}")
    return path


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return shipped_names("gmail_align.recipes")


def recipe_title(name: str) -> str:
    """Return the first line of a shipped recipe's runbook."""
    text = recipe_file(name).read_text(encoding="utf-8")
    lines = (line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#"))
    return next((line for line in lines if line), "")


def runbook_commands(name: str) -> dict[str, str]:
    """Return folder -> the command that makes it, of the comments of a recipe's file."""
    text = re.sub(r"\\\n#\s*", "", recipe_file(name).read_text(encoding="utf-8-sig"))
    made = re.findall(r"^#.*?\b((?:gmail-align|hf) .*--(?:out|local-dir) ([^\s,;)]+))", text, re.M)
    return {folder: command for command, folder in made}


def shipped_names(package: str) -> list[str]:
    """Return the names of the TOML files that a package ships, in their order."""
    names = [file.name for file in resources.files(package).iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _tables(place: str, value: Any) -> dict[str, Table]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} must hold tables, such as [{place}.NAME]")
    for name, table in value.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"unknown key '{place}.{name}': {place} holds tables [{place}.NAME]")
    return dict(value)


def _one_or_several(
    place: str, value: Any, tables: Collection[str] = ()
) -> dict[str, tuple[str, Table]]:
    """Return name -> (place, table): keys of the table itself make the one named ``default``.

    Among its keys, ``tables`` are tables.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} must be a table")
    several = {k: one for k, one in value.items() if isinstance(one, Mapping) and k not in tables}
    own = {key: one for key, one in value.items() if key not in several}
    named = {name: (f"{place}.{name}", table) for name, table in several.items()}
    return {"default": (place, own), **named} if own or not several else named


def _refuse_twins(what: str, names: list[str]) -> None:
    twins = [name for name in names if names.count(name) > 1]
    if twins:
        raise ValueError(f"two {what}s have the name {twins[0]!r}: rename one")


def _require_name(place: str, what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"{place} names the {what} {name!r}; {nearest(name, known)}")


def _refuse_unlike_claims(recipe: Recipe) -> None:
    """Refuse a claim over rows that are not judged on the same test images."""
    rows = {row.name: row for row in recipe.row}
    for claim in recipe.claim:
        compared = [recipe.for_row(rows[name]) for name in (claim.better, claim.worse)]
        if _test_set(compared[0]) != _test_set(compared[1]):
            raise ConfigError(
                f"claim {claim.name!r} compares {claim.better!r} and {claim.worse!r}, which do not "
                "share their test images: give both rows the same data.test"
            )
    for row in recipe.row:
        recipe.for_row(row)


def _test_set(recipe: Recipe) -> Any:
    test = recipe.data["test"]
    return (test, recipe.data["train"], recipe.seed) if test.share is not None else test
