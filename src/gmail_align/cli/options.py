"""Options, written once: parameters and fields become the options of a command.

A command's parameter is one of these:

- a plain value. Its type, default and place in the signature make the option, and the docstring's
  ``Args`` its help; a positional-only parameter becomes an argument. ``Annotated`` may hold bounds
  (pydantic's ``Field``), the word that stands for the value in ``--help``, and other flags than
  the name (a text that begins with ``--``);
- a dataclass: a group of such values, described by its docstring's ``Attributes``;
- a stage's configuration class: its plain keys become options, and it is built from them;
- :class:`Settings` of a configuration class, for a command that has to look before it builds;
- :data:`Overrides`, for a command that reads a recipe.
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
from typing import Protocol as Interface

import typer
from pydantic import Field
from pydantic.fields import FieldInfo
from typer.models import ParameterInfo

from gmail_align.config import Config, apply_overrides, build, leaves, load_toml, merge, table_of

if TYPE_CHECKING:
    from gmail_align.engine import Engine, Part

ConfigT = TypeVar("ConfigT", bound=Config)
Overrides = NewType("Overrides", list[str])
"""``--config`` and ``--set`` of a command that reads a recipe, each as ``a.b=value``."""

Folder = Annotated[Path, "DIR"]
File = Annotated[Path, "FILE"]
Model = Annotated[str, "MODEL"]

Out = Annotated[Folder, Field(description="Folder of the result.")]
OptionalOut = Annotated[
    Folder | None, Field(description="Folder of the result; without it, the result is printed.")
]
Seed = Annotated[int, Field(description="Seed of every random choice.")]
Device = Annotated[str, Field(description="auto, cpu, cuda or cuda:N.")]
Protocol = Annotated[str, Field(description="Name under which the numbers are stored.")]
Subset = Annotated[
    bool, Field(description="Allow fewer items than the protocol; the result says so.")
]
EncoderName = Annotated[
    Model, Field(description="Aligned encoder, or a CLIP; tabletop is shipped.")
]

SETTINGS = "Settings (also --config FILE and --set KEY=VALUE; --keys lists all)"
EVERYWHERE = "Options of every command"


_METAVARS: Mapping[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_SENTENCE_END = re.compile(r"(?<=\.)(?<!App\.)\s+(?=[A-Z]|none:)")  # "App. A" does not end one


@dataclass(frozen=True)
class Place:
    """Where shards run, and which of them.

    Attributes:
        engine: local, ray, or ray://HOST of a cluster.
        workers: Number of processes; by default one per visible GPU.
        shard_of: Make only part I of N; slurm takes both numbers from the job array.
    """

    engine: Annotated[str, "WHERE"] = "local"
    workers: int | None = None
    shard_of: Annotated[str, "I/N"] | None = None

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


class GivenSettings(Interface):
    """What ``--config`` and ``--set`` of a command say."""

    @property
    def config(self) -> Path | None:
        """The TOML file."""

    @property
    def set(self) -> list[str] | None:
        """Each ``--set`` as ``key=value``."""

    def dotted_overrides(self) -> list[str]:
        """Return both as ``a.b=value``."""


@dataclass(frozen=True)
class Expanded:
    """What one parameter of a command becomes on the command line."""

    options: Sequence[inspect.Parameter]
    read: Callable[[Mapping[str, Any], GivenSettings], Any]
    """Makes the parameter's value of the options' values."""
    configurable: bool = False
    """Whether ``--config`` and ``--set`` mean something for it."""
    stage: type[Config] | None = None
    """The configuration class that its options set."""


def expand(parameter: inspect.Parameter, taken: frozenset[str] = frozenset()) -> Expanded:
    """Expand one parameter of a command, whose annotation is resolved.

    Args:
        parameter: The parameter. A positional-only one becomes an argument.
        taken: Names of the command's own options, which win over keys of that name.
    """
    name, hint = parameter.name, parameter.annotation
    if hint is Overrides:
        return Expanded((), lambda _, shared: Overrides(shared.dotted_overrides()), True)
    if get_origin(hint) is Settings:
        return _of_config(get_args(hint)[0], taken, built=False)
    if isinstance(hint, type) and issubclass(hint, Config):
        return _of_config(hint, taken, built=True)
    if isinstance(hint, type) and is_dataclass(hint):
        options = group_options(hint)
        names = [option.name for option in options]
        return Expanded(options, lambda values, _: hint(**{n: values[n] for n in names}))
    return Expanded((_option(parameter),), lambda values, _: values[name])


def described_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return a function's parameters, each described by what ``Args`` says of it."""
    meanings = _read_docstring(function)[1]
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return [_describe(parameter, hints[parameter.name], meanings) for parameter in parameters]


def help_text(function: Callable[..., Any]) -> str:
    """Return a docstring without its sections."""
    return _read_docstring(function)[0].replace("``", "")


def group_options(group: type, section: str | None = None) -> list[inspect.Parameter]:
    """Return the options of a dataclass, each described by what ``Attributes`` says of it."""
    meanings = {k: v for one in group.__mro__[-2::-1] for k, v in _read_docstring(one)[1].items()}
    hints = get_type_hints(group, include_extras=True)
    empty = inspect.Parameter.empty
    options = []
    for field in fields(group):
        default = empty if field.default is MISSING else field.default
        parameter = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default)
        options.append(_option(_describe(parameter, hints[field.name], meanings), section))
    return options


def _describe(
    parameter: inspect.Parameter, hint: Any, meanings: Mapping[str, str]
) -> inspect.Parameter:
    """Put what the docstring says of a parameter into its annotation."""
    if parameter.name in meanings:
        hint = Annotated[hint, Field(description=meanings[parameter.name])]
    return parameter.replace(annotation=hint)


def _read_docstring(owner: Any) -> tuple[str, dict[str, str]]:
    """Return a docstring up to its sections, and what ``Args`` or ``Attributes`` say of names."""
    text = inspect.getdoc(owner) or ""
    entries = re.search(r"\n(?:Args|Attributes):\n((?: .*\n?|\n)*)", text)
    meanings = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", entries[1], re.M) if entries else ()
    summary = re.split(r"\n(?:Args|Attributes|Raises|Returns):\n", text)[0].strip()
    return summary, {name: " ".join(meaning.split()) for name, meaning in meanings}


def option_names(name: str, hint: Any) -> list[str]:
    """Return the names of a parameter's own options, those of a configuration left out."""
    if isinstance(hint, type) and is_dataclass(hint):
        return [field.name for field in fields(hint)]
    config = get_origin(hint) is Settings or (isinstance(hint, type) and issubclass(hint, Config))
    return [] if config else [name]


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

    def read(values: Mapping[str, Any], shared: GivenSettings) -> Any:
        given = {name: values[name] for name in names if values[name] is not None}
        data = merge(load_toml(shared.config) if shared.config else {}, given)
        data = apply_overrides(data, shared.set or [])
        source = str(shared.config) if shared.config else "configuration"
        settings = Settings(stage, values.get("preset"), data, source)
        return settings.build() if built else settings

    return Expanded(options, read, True, stage)


def _option(parameter: inspect.Parameter, section: str | None = None) -> inspect.Parameter:
    """Return a parameter whose annotation typer understands.

    Args:
        parameter: A described parameter.
        section: Heading of the option in ``--help``.
    """
    kind, notes = _unwrap(parameter.annotation)
    if any(isinstance(note, ParameterInfo) for note in notes):
        return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    described = [note for note in notes if isinstance(note, FieldInfo)]
    texts = [note for note in notes if isinstance(note, str)]
    words = [text for text in texts if not text.startswith("--")]
    help_ = next((_plain(note.description) for note in described[::-1] if note.description), None)
    bounds = {key: value for note in described for key, value in _bounds(note).items()}
    extra = next((e for note in described if isinstance(e := note.json_schema_extra, dict)), {})
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY or "argument" in extra:
        word = str(extra.get("argument", words[0] if words else parameter.name.upper()))
        info: ParameterInfo = typer.Argument(help=help_, metavar=word, **bounds)
    else:
        plain = [part for part in _alternatives(kind) if part is not type(None)]
        element = get_args(plain[0])[0] if get_origin(plain[0]) is list else plain[0]
        metavar = words[0] if words else _METAVARS.get(element)
        own = _flag(parameter.name, both=plain == [bool] and parameter.default is not False)
        flags = [flag for text in texts if text.startswith("--") for flag in text.split()] or [own]
        info = typer.Option(*flags, help=help_, metavar=metavar, rich_help_panel=section, **bounds)
    default = [] if parameter.default == () else parameter.default
    return parameter.replace(
        kind=inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _unwrap(hint: Any) -> tuple[Any, list[Any]]:
    """Return a type without ``Annotated`` at any depth, sequences as lists, and its notes."""
    parts = get_args(hint)
    if get_origin(hint) is Annotated:
        kind, notes = _unwrap(parts[0])
        return kind, [*notes, *hint.__metadata__]
    if get_origin(hint) in (Sequence, list):
        kind, notes = _unwrap(parts[0])
        return types.GenericAlias(list, (kind,)), notes
    if len(_alternatives(hint)) > 1:
        unwrapped = [_unwrap(part) for part in parts]
        kind = Union[tuple(part for part, _ in unwrapped)]  # noqa: UP007
        return kind, [note for _, notes in unwrapped for note in notes]
    return hint, []


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
    flag = _flag(name, both=kind is bool)
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
    for key, field, default in leaves(stage):
        lines.append(f"{key}{_default_text(default)}\n    {_plain(field.description)}")
    return "\n".join(lines)


def _default_text(value: Any) -> str:
    """Return `` [default: VALUE]``; nothing where no value is the default."""
    if value is None or value == "":
        return ""
    plain = value.value if isinstance(value, Enum) else value
    return f"  [default: {str(plain).lower() if isinstance(plain, bool) else plain}]"


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """Return the inclusive bounds of a field, as typer names them."""
    bounds = {}
    for limit in field.metadata:
        for ours, theirs in (("ge", "min"), ("le", "max")):
            if getattr(limit, ours, None) is not None:
                bounds[theirs] = getattr(limit, ours)
    return bounds


def _plain(description: str | None) -> str:
    """Return a docstring as text of a terminal; ``None`` is written as users write it."""
    text = " ".join((description or "").replace("``", "").split())
    return re.sub(r"\bNone\b", "none", text)


def _flag(name: str, *, both: bool) -> str:
    """Return the flag of a name; ``both`` adds the one that switches it off."""
    dashed = name.replace("_", "-")
    return f"--{dashed}/--no-{dashed}" if both else f"--{dashed}"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)
