"""Options, written once: fields and parameters with descriptions become options of a command.

A command's parameter is one of: a value with a typer option; a value with a pydantic ``Field``; a
dataclass, which is a group of such values; a stage's configuration class, whose plain keys become
options; or :class:`Settings` of one, for a command that has to look before it builds.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import typer
from pydantic.fields import FieldInfo
from typer.models import ParameterInfo

from gmail_align.config import Config, apply_overrides, build, keys, load_toml, merge, table_of

if TYPE_CHECKING:
    from gmail_align.cli.shared import Shared
    from gmail_align.engine import Engine, Part

ConfigT = TypeVar("ConfigT", bound=Config)
Overrides = NewType("Overrides", list[str])
"""``--config`` and ``--set`` of a command that reads a recipe, each as ``a.b=value``."""

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the result.")]
OptionalOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder of the result; plain files can do without."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of every random choice.")]
Device = Annotated[str, typer.Option("--device", metavar="TEXT", help="auto, cpu, cuda or cuda:N.")]
Protocol = Annotated[
    str, typer.Option("--protocol", help="Name under which the numbers are stored.")
]
Subset = Annotated[
    bool, typer.Option("--subset", help="Allow fewer items than the protocol; the result says so.")
]
EncoderName = Annotated[
    str,
    typer.Option(
        "--encoder", metavar="MODEL", help="Aligned encoder, or a CLIP; tabletop is shipped."
    ),
]

SETTINGS = "Settings (also --config FILE and --set KEY=VALUE; --keys lists all)"
EVERYWHERE = "Options of every command"


_METAVARS: Mapping[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z`])")


@dataclass(frozen=True)
class Place:
    """Where shards run, and which of them."""

    engine: Annotated[
        str,
        typer.Option("--engine", metavar="WHERE", help="local, ray, or ray://HOST of a cluster."),
    ] = "local"
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Number of processes; by default one per visible GPU."),
    ] = None
    shard_of: Annotated[
        str | None,
        typer.Option(
            "--shard-of",
            metavar="I/N",
            help="Make only part I of N; slurm takes both numbers from the job array.",
        ),
    ] = None

    def open(self) -> tuple[Engine, Part | None]:
        """Return the engine and the part of the shards to make; None for all of them.

        Raises:
            ConfigError: the place, the number of workers or the part is impossible.
        """
        from gmail_align.engine import Engine, Part

        part = None if self.shard_of is None else Part.parse(self.shard_of)
        return Engine(self.engine, self.workers), part


@dataclass(frozen=True)
class Settings(Generic[ConfigT]):
    """What the command line says about a stage's configuration, before it is built."""

    stage: type[ConfigT]
    preset: str | None
    given: Mapping[str, Any]
    """Keys that were set by ``--config``, by their own options and by ``--set``."""
    source: str

    def build(self, preset: str | None = None, changes: Mapping[str, Any] | None = None) -> ConfigT:
        """Build the configuration.

        Args:
            preset: Replaces the preset of the command line.
            changes: Replaces what the command line says, key by key.

        Raises:
            ConfigError: a key or a value is wrong.
        """
        name = preset or self.preset
        settings = {} if name is None else self.stage.preset_keys(name)
        return build(self.stage, merge(merge(settings, self.given), changes or {}), self.source)


@dataclass(frozen=True)
class Expanded:
    """What one parameter of a command becomes on the command line."""

    options: Sequence[inspect.Parameter]
    read: Callable[[Mapping[str, Any], Shared], Any]
    """Makes the parameter's value of the options' values."""
    configurable: bool = False
    """Whether ``--config`` and ``--set`` mean something for it."""
    stage: type[Config] | None = None
    """The configuration class that its options set."""


def expand(
    name: str,
    hint: Any,
    default: Any = inspect.Parameter.empty,
    taken: frozenset[str] = frozenset(),
) -> Expanded:
    """Expand one parameter of a command.

    Args:
        name: The parameter.
        hint: Its annotation.
        default: Its default; ``inspect.Parameter.empty`` without one.
        taken: Names of the command's own options, which win over keys of that name.
    """
    origin = get_origin(hint)
    if hint is Overrides:
        return Expanded((), lambda _, shared: Overrides(shared.dotted_overrides()), True)
    if origin is Settings:
        return _of_config(get_args(hint)[0], taken, built=False)
    if isinstance(hint, type) and issubclass(hint, Config):
        return _of_config(hint, taken, built=True)
    if isinstance(hint, type) and is_dataclass(hint):
        options = group_options(hint)
        names = [option.name for option in options]
        return Expanded(options, lambda values, _: hint(**{n: values[n] for n in names}))
    return Expanded((_option(name, hint, default),), lambda values, _: values[name])


def option_names(name: str, hint: Any) -> list[str]:
    """Return the names of a parameter's own options, those of a configuration left out."""
    if isinstance(hint, type) and is_dataclass(hint):
        return [field.name for field in fields(hint)]
    config = get_origin(hint) is Settings or (isinstance(hint, type) and issubclass(hint, Config))
    return [] if config else [name]


def group_options(group: type) -> list[inspect.Parameter]:
    """Return the options of a dataclass, one for each field."""
    hints = get_type_hints(group, include_extras=True)
    empty = inspect.Parameter.empty
    return [
        _option(field.name, hints[field.name], empty if field.default is MISSING else field.default)
        for field in fields(group)
    ]


def _of_config(stage: type[Config], taken: frozenset[str], *, built: bool) -> Expanded:
    """Turn the plain keys of a configuration into options, all of them optional."""
    options = [
        option
        for name, field in stage.model_fields.items()
        if name not in taken and (option := _key_option(name, field)) is not None
    ]
    names = [option.name for option in options]
    if stage.presets:
        options.insert(0, _preset_option(stage))
    options.append(_keys_option(stage))

    def read(values: Mapping[str, Any], shared: Shared) -> Any:
        given = {name: values[name] for name in names if values[name] is not None}
        data = merge(load_toml(shared.config) if shared.config else {}, given)
        data = apply_overrides(data, shared.overrides or [])
        source = str(shared.config) if shared.config else "configuration"
        settings = Settings(stage, values.get("preset"), data, source)
        return settings.build() if built else settings

    return Expanded(options, read, True, stage)


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    """Return a parameter whose annotation typer understands."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    described = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, FieldInfo)]
    typed = any(isinstance(m, ParameterInfo) for m in getattr(hint, "__metadata__", ()))
    if described and not typed:
        kind, field = get_args(hint)[0], described[0]
        if get_origin(kind) is Sequence:
            kind, default = list[get_args(kind)[0]], [] if default == () else default  # type: ignore[misc]
        hint = Annotated[kind, _described(name, kind, field, default)]
    return inspect.Parameter(name, keyword, default=default, annotation=hint)


def _described(name: str, kind: Any, field: FieldInfo, default: Any) -> ParameterInfo:
    """Return the option that a field describes.

    ``json_schema_extra={"argument": "X"}`` makes it the argument X.
    """
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    text = _plain(field.description)
    if "argument" in extra:
        argument: ParameterInfo = typer.Argument(help=text, metavar=str(extra["argument"]))
        return argument
    alternatives = [part for part in _alternatives(kind) if part is not type(None)]
    flag = f"--{_dashed(name)}"
    if alternatives == [bool]:
        flag = _flag(name, both=default is not False)
    element = get_args(kind)[0] if get_origin(kind) is list else alternatives[0]
    metavar = _METAVARS.get(element)
    option: ParameterInfo = typer.Option(flag, help=text, metavar=metavar, **_bounds(field))
    return option


def _key_option(name: str, field: FieldInfo) -> inspect.Parameter | None:
    """Return the option of a configuration's key; None for a table or a list."""
    kinds = [kind for kind in _alternatives(field.annotation) if kind is not type(None)]
    plain = (bool, int, float, str, Path)
    if table_of(field.annotation) or any(
        kind not in plain and get_origin(kind) is not Literal and not _is_enum(kind)
        for kind in kinds
    ):
        return None
    kind: Any = kinds[0] if len(kinds) == 1 else str
    default = "" if field.is_required() else _default_text(field.get_default())
    text = _SENTENCE_END.split(_plain(field.description))[0] + default
    flag = _flag(name, both=True) if kind is bool else f"--{_dashed(name)}"
    option = typer.Option(
        flag, help=text, metavar=_METAVARS.get(kind), rich_help_panel=SETTINGS, **_bounds(field)
    )
    annotation: Any = Annotated[kind | None, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _preset_option(stage: type[Config]) -> inspect.Parameter:
    names = Literal[tuple(stage.presets)]  # type: ignore[valid-type]
    text = "Settings that --config, other options and --set replace."
    option = typer.Option("--preset", help=text, rich_help_panel=SETTINGS)
    return inspect.Parameter(
        "preset",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[names | None, option],
    )


def _keys_option(stage: type[Config]) -> inspect.Parameter:
    def show(value: bool) -> None:
        if value:
            typer.echo(describe_keys(stage))
            raise typer.Exit

    option = typer.Option(
        "--keys",
        callback=show,
        is_eager=True,
        help="List all keys of the configuration and exit.",
        rich_help_panel=EVERYWHERE,
    )
    return inspect.Parameter(
        "keys", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )


def describe_keys(stage: type[Config]) -> str:
    """List every key of a configuration with its default and its meaning."""
    lines = []
    for key, field in keys(stage):
        if table_of(field.annotation) is None:
            default = "" if field.is_required() else _default_text(field.get_default())
            lines.append(f"{key}{default}\n    {_plain(field.description)}")
    return "\n".join(lines)


def _default_text(value: Any) -> str:
    """Return `` [default: VALUE]``; nothing where no value is the default."""
    if value is None or value == "":
        return ""
    plain = value.value if isinstance(value, Enum) else value
    return f"  [default: {str(plain).lower() if isinstance(plain, bool) else plain}]"


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """Return the inclusive bounds of a field, as typer names them."""
    found = {}
    for limit in field.metadata:
        for ours, theirs in (("ge", "min"), ("le", "max")):
            if getattr(limit, ours, None) is not None:
                found[theirs] = getattr(limit, ours)
    return found


def _plain(description: str | None) -> str:
    """Return a docstring as text of a terminal."""
    return " ".join((description or "").replace("``", "").split())


def _flag(name: str, *, both: bool) -> str:
    dashed = _dashed(name)
    return f"--{dashed}/--no-{dashed}" if both else f"--{dashed}"


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)
