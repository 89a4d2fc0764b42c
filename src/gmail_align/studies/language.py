"""The language of studies: a recipe with a table, the paper's numbers, and a base at each scale.

A study is a TOML file. Its own keys say what the table shows. All other keys are those of a recipe,
and stand over the recipe that the scale names as its base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import Field

from gmail_align.config import Config, build, load_toml, merge, nearest
from gmail_align.errors import ConfigError
from gmail_align.recipe import Recipe, recipe_file, recipe_of, shipped_file, shipped_names
from gmail_align.recipe_tables import Claim, Row, Table
from gmail_align.report.names import HEADLINE

Scale = Literal["tabletop", "paper"]
"""The small world that is shipped, or the paper's data, models and sizes."""
Status = Literal["matched source", "no match found", "inconsistent text"]
"""What is known of a number of the paper: it equals the one in the work that it comes from; no
other work has it; or the paper's own text says something else."""
SCALES: Final[tuple[Scale, ...]] = get_args(Scale)
_NAMED: Final = ("align", "learn", "generator", "encoder")
"""Tables of a recipe whose members may be ``like`` another member."""


class Column(Config):
    """One column of a study's table."""

    name: str
    """Its name in the study; the paper's numbers are filed under it."""
    label: str = ""
    """Its heading; the name when empty."""
    metric: str | dict[Scale, str] = ""
    """What a row holds in it: a metric (``CIDEr``, ``t2i_r1``, ``paired_cosine``), one of a
    protocol (``flickr30k_31k/t2i_r1``), or a cost (``steps``); the name when empty. A table of
    scales leaves the column out at the others."""
    unit: Literal["percent", "plain", "count"] = "percent"
    """How values are written: times 100, as they are, or as whole numbers."""

    def metric_at(self, scale: Scale) -> str | None:
        """Return the metric at a scale; None where the column does not exist there."""
        if isinstance(self.metric, str):
            return self.metric or self.name
        return self.metric.get(scale)


class StudyRow(Config):
    """What a study says of a row besides what a recipe says."""

    name: str
    """Name of the row."""
    label: str = ""
    """Name in the table; the row's name when empty."""
    detail: str = ""
    """A second, quieter line: what the row stands for."""
    mark: Literal["", "ours", "bound"] = ""
    """How figures show it: the method under test, or a bound that does not compete."""
    paper: dict[str, float] = Field(default_factory=dict)
    """Column -> the paper's number, as printed; a row that the paper lacks does not have any."""
    status: Status | dict[str, Status] = "no match found"
    """What is known of the paper's numbers, or of those of each column."""
    note: str = ""
    """A sentence under the table."""
    missing: str | dict[Scale, str] = ""
    """Why the row cannot be run, everywhere or at a scale: its cells are dashes."""

    def missing_at(self, scale: Scale) -> str:
        """Return why the row cannot be run at a scale; nothing where it can."""
        return self.missing if isinstance(self.missing, str) else self.missing.get(scale, "")

    def status_of(self, column: str) -> Status:
        """Return what is known of the paper's number in a column."""
        if isinstance(self.status, str):
            return self.status
        return self.status.get(column, "no match found")


class StudyClaim(Config):
    """A sentence that a study tests: one row is better than another by one metric."""

    name: str
    """The sentence."""
    better: str
    """Name of the row that is claimed to score more."""
    worse: str
    """Name of the row that it is compared with."""
    metric: str | dict[Scale, str] = HEADLINE
    """What both rows are compared by: one name, or one at each scale where the claim is tested."""


class Plot(Config):
    """A plot beside the table: a line for each list of rows."""

    x: str
    """Column of the places."""
    y: str
    """Column of the values, which are drawn with their intervals."""
    lines: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Name of a line -> its rows."""


class Base(Config):
    """What a study stands on at one scale."""

    base: str
    """Name of a shipped recipe, or a TOML file: its rows and claims are left out."""
    tables: dict[str, Any] = Field(default_factory=dict)
    """Tables of a recipe over the study's own, at this scale alone."""


class Study(Config):
    """A table: its rows, its columns, the paper's numbers and its claims."""

    name: str
    title: str
    number: str = ""
    """Number in the ICML paper, such as ``Table 9``; empty for a table that the paper lacks."""
    about: str = ""
    """What the table asks, in a sentence or two."""
    column: tuple[Column, ...] = Field(min_length=1)
    row: tuple[StudyRow, ...] = Field(min_length=1)
    claim: tuple[StudyClaim, ...] = ()
    plot: tuple[Plot, ...] = ()
    report: bool = False
    """Whether the report of the run is written beside the table: maps of features, galleries of
    pairs, captions and curves."""
    scale: dict[Scale, Base] = Field(min_length=1)
    recipe_rows: tuple[dict[str, Any], ...]
    """Rows as the recipe reads them."""
    tables: dict[str, Any] = Field(default_factory=dict)
    """Tables of a recipe over the base."""

    def at(self, scale: Scale) -> Base:
        """Return the base at a scale.

        Raises:
            ConfigError: the study does not have the scale.
        """
        if scale not in self.scale:
            raise ConfigError(
                f"study {self.name} does not have the scale {scale!r}: take "
                f"{' or '.join(self.scale)}"
            )
        return self.scale[scale]

    def columns_at(self, scale: Scale) -> list[Column]:
        """Return the columns that exist at a scale."""
        return [column for column in self.column if column.metric_at(scale) is not None]

    def claims_at(self, scale: Scale) -> list[Claim]:
        """Return the claims of a scale."""
        metrics = [m.get(scale) if isinstance(m := c.metric, dict) else m for c in self.claim]
        return [
            Claim(name=claim.name, better=claim.better, worse=claim.worse, metric=metric)
            for claim, metric in zip(self.claim, metrics, strict=True)
            if metric is not None
        ]

    def recipe(self, scale: Scale, changes: Table | None = None) -> Recipe:
        """Return the recipe of a scale: the base, the study's tables, the scale's, the changes.

        Raises:
            ConfigError: a key or a value is wrong.
        """
        chosen = self.at(scale)
        base = load_toml(recipe_file(chosen.base))
        data = {key: value for key, value in base.items() if key not in ("row", "claim")}
        for tables in (self.tables, chosen.tables, changes or {}):
            data = merge(data, tables)
        for part in _NAMED:
            data |= {part: _inherit(part, data[part])} if part in data else {}
        absent = {row.name for row in self.row if row.missing_at(scale)}
        data["title"] = ": ".join(filter(None, (self.number, self.title)))
        data["row"] = [row for row in self.recipe_rows if row["name"] not in absent]
        claims = [one for one in self.claims_at(scale) if not {one.better, one.worse} & absent]
        data["claim"] = [one.model_dump() for one in claims]
        try:
            return recipe_of(data)
        except ConfigError as error:
            message = str(error).removeprefix(": ")
            raise ConfigError(f"study {self.name}, scale {scale}: {message}") from error


def read_study(name: str) -> Study:
    """Read a shipped study by name, or a study's TOML file.

    Raises:
        ConfigError: there is no such study, or a key or a value is wrong.
    """
    return study_of(Path(name).stem, load_toml(study_file(name)))


def study_of(name: str, tables: Table) -> Study:
    """Return the study that the tables of a file say.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    place = f"study {name}"
    own = {key: value for key, value in tables.items() if key in _OWN}
    recipe = _recipe_tables(place, {k: v for k, v in tables.items() if k not in _OWN}, _OWN)
    rows = [_split_row(place, row) for row in _list_of_tables(place, own, "row")]
    scales = {
        scale: {
            "base": table.get("base"),
            "tables": _scale_tables(f"{place}: scale.{scale}", table),
        }
        for scale, table in _tables_of_scales(place, own).items()
    }
    data = {**own, "name": name, "scale": scales, "tables": recipe}
    data |= {"row": [row for row, _ in rows], "recipe_rows": [row for _, row in rows]}
    study = build(Study, data, place)
    _require_names(study)
    return study


def study_names() -> list[str]:
    """Return the names of the shipped studies, tables by their number first."""
    return sorted(shipped_names("gmail_align.studies"), key=lambda name: (*_place(name), name))


def study_file(name: str) -> Path:
    """Return the file of a study: a path that ends in ``.toml``, or a shipped study's name.

    Raises:
        ConfigError: no shipped study has this name.
    """
    return shipped_file(name, "study", "gmail_align.studies")


_OWN: Final = ("title", "number", "about", "column", "row", "claim", "plot", "report", "scale")
_ROW_ONLY: Final = ("paper", "status", "note", "missing")
_SHARED: Final = ("name", "label", "detail", "mark")


def _place(name: str) -> tuple[int, int]:
    kind, _, number = name.partition("-")
    return (0 if kind == "table" else 1, int(number) if number.isdigit() else 0)


def _list_of_tables(place: str, tables: Table, key: str) -> Sequence[Table]:
    value = tables.get(key, ())
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        raise ConfigError(f"{place}: {key} must hold tables, such as [[{key}]]")
    return value


def _tables_of_scales(place: str, tables: Table) -> dict[str, Table]:
    value = tables.get("scale", {})
    if not isinstance(value, Mapping) or not all(isinstance(v, Mapping) for v in value.values()):
        raise ConfigError(f"{place}: scale must hold tables, such as [scale.tabletop]")
    return dict(value)


def _scale_tables(place: str, table: Table) -> dict[str, Any]:
    return _recipe_tables(place, {k: v for k, v in table.items() if k != "base"}, ("base",))


def _recipe_tables(place: str, tables: Table, also: Sequence[str]) -> dict[str, Any]:
    """Return tables of a recipe; refuse other keys, and those that only the study itself sets."""
    known = [key for key in Recipe.model_fields if key not in ("row", "claim", "title")]
    for key in tables:
        if key not in known:
            raise ConfigError(f"{place}: unknown key {key!r}; {nearest(key, [*known, *also])}")
    return dict(tables)


def _split_row(place: str, row: Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the study says of a row, and what its recipe says."""
    for key in row:
        if key not in Row.model_fields and key not in _ROW_ONLY:
            known = [*Row.model_fields, *_ROW_ONLY]
            raise ConfigError(f"{place}: unknown key 'row.{key}'; {nearest(key, known)}")
    own = {key: value for key, value in row.items() if key in (*_ROW_ONLY, *_SHARED)}
    return own, {key: value for key, value in row.items() if key not in _ROW_ONLY}


def _require_names(study: Study) -> None:
    """Refuse numbers and statuses of columns that do not exist, and claims over unknown rows."""
    columns = [column.name for column in study.column]
    rows = [row.name for row in study.row]
    for row in study.row:
        statuses = row.status if isinstance(row.status, dict) else {}
        for name in (*row.paper, *statuses):
            if name not in columns:
                raise ConfigError(
                    f"study {study.name}: row {row.name!r} has a number in the column {name!r}; "
                    f"{nearest(name, columns)}"
                )
    named: list[tuple[str, tuple[str, ...]]] = [
        (f"claim {one.name!r}", (one.better, one.worse)) for one in study.claim
    ]
    for plot in study.plot:
        named += [(f"the line {line!r} of a plot", own) for line, own in plot.lines.items()]
        for name in (plot.x, plot.y):
            if name not in columns:
                raise ConfigError(
                    f"study {study.name}: a plot names the column {name!r}; "
                    f"{nearest(name, columns)}"
                )
    for what, names in named:
        for name in names:
            if name not in rows:
                raise ConfigError(
                    f"study {study.name}: {what} names the row {name!r}; {nearest(name, rows)}"
                )


def _inherit(part: str, tables: Table) -> dict[str, Any]:
    """Put the keys of every member that is ``like`` another over those of the other."""

    def whole(name: str, above: tuple[str, ...] = ()) -> Any:
        table = tables[name]
        if not isinstance(table, Mapping) or "like" not in table:
            return table
        other = table["like"]
        if not isinstance(other, str) or other not in tables or other in (*above, name):
            others = [known for known in tables if known != name]
            raise ConfigError(f"{part}.{name} is like {other!r}; {nearest(str(other), others)}")
        own = {key: value for key, value in table.items() if key != "like"}
        return merge(whole(other, (*above, name)), own)

    return {name: whole(name) for name in tables}
