"""Command groups that import a command's module when that command is used, not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


@dataclass(frozen=True)
class Entry:
    """A command: where its function is, and its line in ``--help``."""

    target: str
    """``module:function`` below ``gmail_align.cli``."""
    help: str


@dataclass(frozen=True)
class Group:
    """Commands under one word, and the word's line in ``--help``."""

    help: str
    commands: Mapping[str, Entry] = field(default_factory=dict)


class _Placeholder(TyperCommand):
    """Stands for a command in listings, until it is used."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help, rich_markup_mode=None)
        self.entry = entry

    def load(self) -> TyperCommand:
        """Import the command's function and build the command."""
        module, _, function = self.entry.target.partition(":")
        app = typer.Typer(
            add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
        )
        home = importlib.import_module(f"gmail_align.cli.{module}")
        app.command(self.name)(getattr(home, function))
        command = get_command(app)
        assert isinstance(command, TyperCommand)
        return command


class LazyGroup(TyperGroup):
    """A group of placeholders, each replaced by its command on use."""

    def add(self, table: Mapping[str, Entry | Group]) -> LazyGroup:
        """Put the commands and groups of ``table`` in, and return the group itself."""
        for name, row in table.items():
            if isinstance(row, Entry):
                self.commands[name] = _Placeholder(name, row)
            else:
                group = LazyGroup(
                    name=name, help=row.help, no_args_is_help=True, rich_markup_mode=None
                )
                self.commands[name] = group.add(row.commands)
        return self

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that ``args`` names; import it when it is a placeholder."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, _Placeholder) else command, rest
