"""Pages that come from the code: every command with its options, and every configuration key."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import click
import typer.main
from mkdocs.structure.files import File, Files

import gmail_align
from gmail_align.cli.main import app
from gmail_align.config import Config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to the site (a hook of mkdocs)."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/keys.md", content=keys_page()))
    return files


def commands_page() -> str:
    """Return one section for each command: what it does, and a table of its options."""
    root = typer.main.get_command(app)
    lines = ["# Commands", "", "Every command prints its result as JSON with `--json`.", ""]
    for path, command in _commands(root, click.Context(root, info_name="gmail-align")):
        lines += [f"## {path}", "", inspect.cleandoc(command.help or ""), ""]
        options = [p for p in command.params if p.name != "help"]
        if options:
            lines += ["| option | default | meaning |", "| --- | --- | --- |"]
            lines += [_option_row(option) for option in options] + [""]
    return "\n".join(lines)


def _commands(group: Any, context: click.Context) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(context):
        _, command, _ = group.resolve_command(context, [name])
        inner = click.Context(command, parent=context, info_name=name)
        if hasattr(command, "list_commands"):
            yield from _commands(command, inner)
        else:
            yield inner.command_path, command


def _option_row(option: Any) -> str:
    names = " ".join(f"`{name}`" for name in option.opts)
    default = option.default
    shown = "" if default is None or callable(default) or default == () else f"`{default}`"
    help_text = getattr(option, "help", None) or ""
    return f"| {names} | {shown} | {_cell(help_text)} |"


def keys_page() -> str:
    """Return one section for each stage's configuration: key, default, meaning."""
    lines = ["# Configuration keys", ""]
    lines += ["Set a key with `--set KEY=VALUE`, or in a TOML file with `--config FILE`.", ""]
    for kind in sorted(_configs(), key=lambda kind: kind.__module__ + kind.__name__):
        lines += [f"## {kind.__name__}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
        lines += ["| key | default | meaning |", "| --- | --- | --- |"]
        for name, field in kind.model_fields.items():
            default = "required" if field.is_required() else f"`{field.get_default()!r}`"
            if isinstance(field.get_default(), Config):
                default = f"see {type(field.get_default()).__name__}"
            lines.append(f"| `{name}` | {default} | {_cell(field.description or '')} |")
        lines.append("")
    return "\n".join(lines)


def _configs() -> set[type[Config]]:
    """Import every module that defines configurations, and return those with keys."""
    for module in pkgutil.walk_packages(gmail_align.__path__, "gmail_align."):
        if module.name.endswith("config") or module.name.endswith("recipe"):
            importlib.import_module(module.name)
    found: set[type[Config]] = set()
    queue = [Config]
    while queue:
        kind = queue.pop()
        queue += kind.__subclasses__()
        if kind.model_fields and kind.__module__.startswith("gmail_align."):
            found.add(kind)
    return found


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
