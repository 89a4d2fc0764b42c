"""One translator makes options of fields, of groups and of configurations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner, Result

from gmail_align.alignment.config import ScratchConfig
from gmail_align.cli.options import File, Folder, Overrides, Settings, describe_keys
from gmail_align.cli.shared import Shared, command
from gmail_align.config import Config
from gmail_align.training.config import OptimConfig


class Optim(Config):
    steps: int = 10
    """Steps."""


class Stage(Config):
    rows: int = Field(4, ge=1)
    """Rows a batch, as in Eq. 1. More text that --keys shows."""
    kind: Literal["a", "b"] = "a"
    """``a`` or ``b``."""
    share: float | Literal["mean"] | None = 0.5
    """A share, or ``mean``."""
    on: bool = True
    """A switch."""
    optim: Optim = Optim()
    """A table."""
    many: tuple[int, ...] = (1,)
    """A list."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "big": {"rows": 100, "optim": {"steps": 100}}
    }


@dataclass(frozen=True)
class Group:
    """A group.

    Attributes:
        limit: A limit.
    """

    place: Annotated[Folder, Field(description="Where.")]
    limit: Annotated[float, Field(ge=0, le=1)] = 0.1
    swap: Annotated[bool, "--swap/--keep", Field(description="A switch.")] = False


@command
def placed(
    shared: Shared,
    name: Annotated[str, "WORD"],
    more: list[File] | None = None,
    /,
    *,
    kind: Literal["x", "y"] | None = None,
    folders: Sequence[Folder] = (),
) -> None:
    """Show words and options.

    Args:
        name: A word.
        more: Files.
        kind: A kind.
        folders: Folders.

    Raises:
        Nothing: at all.
    """
    shared.show({"name": name, "more": more, "kind": kind, "folders": folders}, "")


@command
def stage(shared: Shared, config: Stage, rows_read: int = 0) -> None:
    """Show a configuration.

    Args:
        rows_read: Rows that
            were read.
    """
    shared.show({**config.model_dump(mode="json"), "rows_read": rows_read}, "")


@command
def pending(shared: Shared, settings: Settings[Stage]) -> None:
    built = settings.build(changes={"kind": "b"})
    shared.show({"preset": settings.preset, "given": settings.given, "kind": built.kind}, "")


@command
def grouped(shared: Shared, group: Group) -> None:
    shared.show({"place": group.place, "limit": group.limit, "swap": group.swap}, "")


@command
def recipe(shared: Shared, overrides: Overrides) -> None:
    shared.show({"overrides": overrides}, "")


def call(function: Callable[..., None], *words: object) -> Result:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(function)
    return CliRunner().invoke(app, [str(word) for word in words])


def read(function: Callable[..., None], *words: object) -> Any:
    ran = call(function, *words, "--json")
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_plain_keys_are_options_with_default_bounds_and_help() -> None:
    shown = " ".join(call(stage, "--help").stdout.split())
    assert "--rows N Rows a batch, as in Eq. 1. [default: 4] [x>=1]" in shown
    assert "--kind <a|b> a or b. [default: a]" in shown
    assert "--on / --no-on" in shown
    assert "--rows-read N Rows that were read. [default: 0]" in shown
    assert "--optim" not in shown
    assert "--many" not in shown


def test_what_stands_later_wins_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "stage.toml"
    file.write_text('rows = 7\nkind = "b"\n[optim]\nsteps = 7\n')
    assert read(stage, "--rows-read", 3)["rows_read"] == 3
    big = read(stage, "--preset", "big")
    assert (big["rows"], big["optim"]["steps"]) == (100, 100)
    over = read(stage, "--preset", "big", "--config", file)
    assert (over["rows"], over["kind"], over["optim"]["steps"]) == (7, "b", 7)
    assert read(stage, "--config", file, "--rows", 8)["rows"] == 8
    words = ["--rows", 8, "--set", "rows=9", "--no-on", "--share", "mean"]
    last = read(stage, "--config", file, *words)
    assert (last["rows"], last["kind"], last["on"], last["share"]) == (9, "b", False, "mean")
    assert read(stage, "--share", 0.25)["share"] == 0.25


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--preset", "bgi"], "bgi"),
        (["--rows", "0"], "--rows"),
        (["--kind", "c"], "--kind"),
        (["--set", "optim.stps=1"], "optim.steps"),
        (["--set", "steps=1"], "optim.steps"),
        (["--roows", "1"], "--rows"),
    ],
)
def test_a_mistake_names_the_option_or_the_key(words: list[str], named: str) -> None:
    ran = call(stage, *words)
    assert ran.exit_code == 2
    assert named in ran.stderr


def test_keys_are_listed_with_default_and_meaning() -> None:
    ran = call(stage, "--keys")
    assert ran.exit_code == 0
    assert "rows  [default: 4]\n    Rows a batch, as in Eq. 1. More text" in ran.stdout
    assert "optim.steps  [default: 10]\n    Steps." in ran.stdout


def test_a_command_may_build_its_configuration_later() -> None:
    said = read(pending, "--preset", "big", "--rows", 3)
    assert said == {"preset": "big", "given": {"rows": 3}, "kind": "b"}


def test_a_group_is_a_dataclass_of_described_values() -> None:
    assert read(grouped, "--place", "x") == {"place": "x", "limit": 0.1, "swap": False}
    assert read(grouped, "--place", "x", "--limit", 1, "--swap")["swap"] is True
    assert call(grouped, "--place", "x", "--limit", 2).exit_code == 2
    assert "--place" in call(grouped).stderr


def test_the_signature_and_the_docstring_make_options_and_arguments() -> None:
    shown = " ".join(call(placed, "--help").stdout.split())
    assert "Show words and options. Arguments: WORD" in shown
    assert "--kind <x|y> A kind." in shown
    assert "--folders DIR Folders." in shown
    assert "Nothing: at all" not in shown
    said = read(placed, "a", "b", "c", "--kind", "y", "--folders", "d", "--folders", "e")
    assert said == {"name": "a", "more": ["b", "c"], "kind": "y", "folders": ["d", "e"]}
    assert read(placed, "a") == {"name": "a", "more": None, "kind": None, "folders": []}


def test_a_recipe_gets_overrides(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[a]\nb = 1\n")
    said = read(recipe, "--config", file, "--set", "c=2")
    assert said == {"overrides": ["a.b=1", "c=2"]}


def test_a_command_without_a_configuration_refuses_one() -> None:
    ran = call(grouped, "--place", "x", "--set", "a=1")
    assert ran.exit_code == 2
    assert "--config and --set" in ran.stderr


def test_keys_show_the_defaults_of_the_stage_itself() -> None:
    """A stage may set defaults of its own for a table that several stages share."""
    shown = describe_keys(ScratchConfig)
    assert f"optim.lr  [default: {ScratchConfig().optim.lr}]" in shown
    assert ScratchConfig().optim.lr != OptimConfig.model_fields["lr"].default
