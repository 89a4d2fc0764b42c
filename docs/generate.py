"""Pages that come from the code: every command with its options, and every configuration key.

    python docs/generate.py

writes them into ``docs/reference``, where readers of the repository find them too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import click
import typer.main
from pydantic import BaseModel

from gmail_align.cli.main import app
from gmail_align.config import leaves
from gmail_align.recipe_tables import Claim, Encoder, Evaluate, Filter, Prompts, Row, Subset
from gmail_align.studies.language import Column, Plot, StudyClaim, StudyRow

RECIPE_TABLES = {
    "prompts of [data.NAME]": Prompts,
    "[subsets] NAME": Subset,
    "filter of [generator]": Filter,
    "[encoder]": Encoder,
    "[[row]]": Row,
    "[evaluate]": Evaluate,
    "[[claim]]": Claim,
}
STUDY_TABLES = {"column": Column, "[[row]]": StudyRow, "[[claim]]": StudyClaim, "[[plot]]": Plot}
SHARED = ("--config", "--set", "--dry-run", "--json", "--quiet", "--verbose")
"""Options that every command takes; the page of the command line explains them once."""


def pages() -> dict[str, str]:
    """Return the name of each page and what it says."""
    return {"commands.md": commands_page(), "keys.md": keys_page()}


def commands_page() -> str:
    """Return one section for each command: what it does, and a table of its options."""
    lines = ["# Commands", ""]
    lines += ["Every command also takes the options of [the command line](../command-line.md)."]
    lines += ["A command with settings lists its [keys](keys.md) with `--keys`.", ""]
    for path, command in commands():
        lines += [f"## {path}", "", inspect.cleandoc(command.help or ""), ""]
        own = [one for one in command.params if one.name != "help" and one.opts[0] not in SHARED]
        if own:
            lines += ["| option | default | meaning |", "| --- | --- | --- |"]
            lines += [_option_row(option) for option in own] + [""]
    return "\n".join(lines)


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with the words that call it."""
    root = typer.main.get_command(app)
    yield from _commands(root, click.Context(root, info_name="gmail-align"))


def _commands(group: Any, context: click.Context) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(context):
        _, command, _ = group.resolve_command(context, [name])
        inner = click.Context(command, parent=context, info_name=name)
        if hasattr(command, "list_commands"):
            yield from _commands(command, inner)
        else:
            yield inner.command_path, command


def _option_row(option: Any) -> str:
    names = " ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    default = "" if callable(option.default) else _shown(option.default)
    help_text = getattr(option, "help", None) or ""
    return f"| {names} | {default} | {_cell(help_text)} |"


def keys_page() -> str:
    """Return the keys of each command's settings, then those of recipes and of studies."""
    lines = ["# Configuration keys", ""]
    lines += ["Set a key of a command with `--set KEY=VALUE`, with its own option, or in a TOML"]
    lines += ["file with `--config FILE`. In a recipe, `[align.NAME]`, `[learn.NAME]` and"]
    lines += ["`[generator]` take the keys of `align`, `train` and `synthesize`.", ""]
    seen: dict[Any, str] = {}
    # plan takes the keys of synthesize, which is where a reader looks for them
    for path, command in sorted(commands(), key=lambda one: one[0].endswith(" plan")):
        stage = getattr(command, "stage", None)
        if stage in seen:
            lines += [f"## {path}", "", f"The keys are those of `{seen[stage]}`.", ""]
        elif stage is not None:
            seen[stage] = path
            lines += [f"## {path}", "", inspect.cleandoc(stage.__doc__ or ""), ""]
            if stage.presets:
                lines += [f"Presets: {', '.join(f'`{one}`' for one in stage.presets)}.", ""]
            lines += _key_table(stage)
    for of, page, tables in (
        ("A recipe", "../recipes.md", RECIPE_TABLES),
        ("A study", "../studies.md", STUDY_TABLES),
    ):
        lines += [f"## {of}", "", f"[{page[3:-3].capitalize()}]({page}) explains every table.", ""]
        for name, table in tables.items():
            lines += [f"### {of}: {name}", "", inspect.cleandoc(table.__doc__ or ""), ""]
            lines += _key_table(table)
    return "\n".join(lines)


def _key_table(stage: type[BaseModel]) -> list[str]:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for name, field, own in leaves(stage):
        default = "required" if field.is_required() else _shown(own)
        rows.append(f"| `{name}` | {default} | {_cell(field.description or '')} |")
    return [*rows, ""]


def _shown(value: Any) -> str:
    """Return a default as TOML would write it; nothing where no value is the default."""
    plain = value.value if isinstance(value, Enum) else value
    if plain is None or plain in ("", (), [], {}):
        return ""
    if isinstance(plain, bool):
        return f"`{str(plain).lower()}`"
    if isinstance(plain, (list, tuple)):
        return f"`[{', '.join(map(str, plain))}]`"
    return f"`{plain}`".replace("|", "\\|")


def _cell(text: str) -> str:
    plain = re.sub(r"\bNone\b", "`none`", " ".join(text.replace("``", "`").split()))
    return plain.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(__file__).parent / "reference" / name).write_text(text, encoding="utf-8")
