"""``gmail-align recipes``: list, show and copy the shipped recipes."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import write_bytes
from gmail_align.cli.shared import Shared, command
from gmail_align.errors import ConfigError, UserError

RecipeName = Annotated[str, typer.Argument(metavar="NAME", help="A name that `list` prints.")]


@command
def list_(shared: Shared) -> None:
    """List the shipped recipes, each with the first line of its runbook."""
    shared.refuse_configuration()
    found = {name: _first_line(text) for name, text in shipped().items()}
    width = max(map(len, found), default=0)
    lines = "\n".join(f"{name:{width}}  {line}" for name, line in found.items())
    shared.show({"recipes": found}, lines or "no recipe is shipped")


@command
def show(shared: Shared, name: RecipeName) -> None:
    """Print a shipped recipe."""
    shared.refuse_configuration()
    text = _text(name)
    shared.show({"name": name, "text": text}, text.rstrip("\n"))


@command
def copy(
    shared: Shared,
    name: RecipeName,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write.")],
) -> None:
    """Copy a shipped recipe to a file of your own, to change it."""
    shared.refuse_configuration()
    text = _text(name)
    if path.is_dir():
        path = path / f"{name}.toml"
    if path.exists():
        raise UserError(f"{path} exists already: choose another name")
    if shared.dry_run:
        shared.show_plan("copy", path, recipe=name)
        return
    write_bytes(path, text.encode())
    shared.show({"path": str(path)}, f"{path}: change it, then gmail-align run {path}")


def shipped() -> dict[str, str]:
    """Return the text of every shipped recipe by name."""
    folder = files("gmail_align") / "recipes"
    if not folder.is_dir():
        return {}
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in found
        if file.name.endswith(".toml")
    }


def _text(name: str) -> str:
    recipes = shipped()
    if name in recipes:
        return recipes[name]
    close = difflib.get_close_matches(name, recipes, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(recipes) or 'none'}"
    raise ConfigError(f"no recipe is named {name!r}; {hint}")


def _first_line(text: str) -> str:
    lines = (line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#"))
    return next((line for line in lines if line), "")
