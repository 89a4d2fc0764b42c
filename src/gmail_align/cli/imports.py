"""``gmail-align import NAME``: one command for every importer, made of its annotated options."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from gmail_align.cli.shared import Shared, command
from gmail_align.importing.run import import_data, option_fields
from gmail_align.importing.source import ImportOptions
from gmail_align.importing.table import find_importer

ORDER = ("captions", "images", "classes", "questions")


def __getattr__(name: str) -> Callable[..., None]:
    """Return the command of the importer of that name."""
    if name.startswith("__"):
        raise AttributeError(name)
    function = find_importer(name).load()

    def run(shared: Shared, **values: Any) -> None:
        shared.refuse_configuration()
        out = values.pop("out")
        write = {field.name: values.pop(field.name) for field in fields(ImportOptions)}
        own = {key: value for key, value in values.items() if value is not None}
        if shared.dry_run:
            shared.show_plan(f"import {name}", out, **own)
            return
        made = import_data(name, own, out, ImportOptions(**write))
        shared.show_artifact(*(made[kind] for kind in ORDER if kind in made))

    own = [_typer_option(one) for one in option_fields(function).values()]
    hints = typing.get_type_hints(ImportOptions, include_extras=True)
    write = [
        _typer_option(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
        )
        for field in fields(ImportOptions)
    ]
    out = inspect.Parameter(
        "out",
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[
            Path, typer.Option(metavar="DIR", help="Gets captions/, images/ and the like.")
        ],
    )
    shared = inspect.Parameter("shared", inspect.Parameter.KEYWORD_ONLY, annotation=Shared)
    parameters = [shared, *own, out, *write]
    run.__doc__ = function.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return command(run)


def _typer_option(parameter: inspect.Parameter) -> inspect.Parameter:
    """Turn a parameter with a pydantic ``Field`` into one that typer reads."""
    kind, *notes = typing.get_args(parameter.annotation)
    field = next(note for note in notes if isinstance(note, FieldInfo))
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = parameter.default
    if typing.get_origin(kind) is Sequence:
        kind = types.GenericAlias(list, typing.get_args(kind))
        default = [] if default == () else default
    bounds = {
        name: getattr(note, sign)
        for note in field.metadata
        for name, sign in (("min", "ge"), ("max", "le"))
        if hasattr(note, sign)
    }
    if "argument" in extra:
        note: Any = typer.Argument(help=field.description, metavar=str(extra["argument"]))
    else:
        note = typer.Option(help=field.description, **bounds)
    return parameter.replace(
        annotation=Annotated[kind, note], default=default, kind=inspect.Parameter.KEYWORD_ONLY
    )
