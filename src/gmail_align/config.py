"""Strict configuration: frozen models, presets, TOML files and ``--set a.b=value``."""

from __future__ import annotations

import copy
import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from gmail_align.errors import (
    ConfigError,
    UserError,
    damage_explained,
    first_line,
    require_end,
)

_SYNONYMS: Mapping[str, str] = {
    "learning_rate": "lr",
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "epochs": "steps",
    "lora_r": "rank",
    "r": "rank",
    "lora_alpha": "alpha",
    "cfg": "guidance_scale",
    "bs": "batch_size",
}
"""Names that other programs give to keys -> the last part of the key here."""
_DEEPEST = 100
"""Tables and lists in each other that any configuration or manifest may have."""


class Config(BaseModel):
    """Base of every stage's configuration: immutable, and unknown keys are errors.

    The text ``none`` stands for no value wherever a key may be left without one, because TOML
    cannot write it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Name of a preset -> the keys that it sets; all other keys keep their defaults."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        """Read ``none`` as no value where that is possible, and keep what a table's default sets.

        A table's default may differ from its class's, as ``optim`` often does: then the keys that
        are given replace those of that default one by one.
        """
        if not isinstance(data, Mapping):
            return data
        data = {
            key: merge(_default_table(cls, key), value) if isinstance(value, Mapping) else value
            for key, value in data.items()
        }
        absent = {
            key
            for key, value in data.items()
            if isinstance(value, str) and value == "none" and _may_be_none(cls, key)
        }
        return {key: None if key in absent else value for key, value in data.items()}

    @classmethod
    def preset_keys(cls, name: str) -> Mapping[str, Any]:
        """Return the keys that a preset sets, with their values.

        Raises:
            ConfigError: the class does not have this preset.
        """
        if name not in cls.presets:
            raise ConfigError(f"unknown preset {name!r}; {nearest(name, cls.presets)}")
        return cls.presets[name]

    @classmethod
    def from_preset(cls, name: str, changes: Mapping[str, Any] | None = None) -> Self:
        """Build a preset with ``changes`` on top, which replace its keys one by one.

        Raises:
            ConfigError: the class does not have this preset, or a change is wrong.
        """
        return build(cls, merge(cls.preset_keys(name), changes or {}), f"preset {name}")


ConfigT = TypeVar("ConfigT", bound=Config)


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    require_end(path, ConfigError)
    try:
        return _require_shallow(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file at {path}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a TOML file: {first_line(error)}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def load_json(path: Path, error: type[UserError], advice: str) -> dict[str, Any]:
    """Read the object of a JSON file.

    Raises:
        UserError: of class ``error``: the file is missing or damaged, or holds something else.
    """
    with damage_explained(path, error, advice):
        value = json.loads(path.read_bytes())
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate cannot be written again
        if not isinstance(value, dict):
            raise ValueError("it does not hold an object")
        return _require_shallow(value)


def _require_shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what a recursion through it would not survive, and return the rest.

    Raises:
        ValueError: tables and lists lie too deep in each other.
    """
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [
            own
            for one in level
            if isinstance(one, dict | list)
            for own in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError(f"tables and lists lie more than {_DEEPEST} deep in each other")


def parse_value(text: str) -> Any:
    """Read the right-hand side of ``--set``: JSON or TOML where it parses, else a plain string."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        return text


def merge(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with ``changes`` on top; nested tables are merged key by key."""
    result = dict(data)
    for key, value in changes.items():
        old = result.get(key)
        tables = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merge(result[key], value) if tables else value
    return result


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with every ``a.b=value`` of ``overrides`` put in.

    Raises:
        ConfigError: an override lacks ``=``, or leads through a key that holds a value.
    """
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise ConfigError(f"--set {override!r} does not have the form key.subkey=value")
        table = result
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {override!r} leads through {key!r}, which holds a value")
        table[keys[-1]] = parse_value(text)
    try:
        return _require_shallow(result)
    except ValueError as error:
        raise ConfigError(f"--set: {error}") from error


def build(model: type[ConfigT], data: Mapping[str, Any], source: str = "configuration") -> ConfigT:
    """Validate ``data`` as ``model``.

    Raises:
        ConfigError: one sentence naming the first wrong key, its place and, for an unknown key, its
            nearest known neighbour.
    """
    try:
        return model.model_validate(dict(data) if isinstance(data, Mapping) else data)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, source)) from error


def keys(stage: type[BaseModel], above: Sequence[str] = ()) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of a configuration as ``a.b`` with its field; tables come before their keys.

    ``NAME`` stands for a name that the user chooses.
    """
    for name, field in stage.model_fields.items():
        path = (*above, name)
        yield ".".join(path), field
        table = table_of(field.annotation)
        if table is not None:
            named = getattr(field.annotation, "__origin__", None) is dict
            yield from keys(table, (*path, "NAME") if named else path)


def leaves(stage: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Yield every key that is not a table, with its field and its default.

    A stage may set defaults of its own for the keys of a table. None stands for no default.
    """
    for key, field in keys(stage):
        if table_of(field.annotation) is None:
            first, *rest = key.split(".")
            value = stage.model_fields[first].get_default(call_default_factory=True)
            if rest and isinstance(value, BaseModel) and "NAME" not in rest:
                for name in rest:
                    value = getattr(value, name)
            else:
                value = field.get_default(call_default_factory=True)
            yield key, field, None if field.is_required() else value


def table_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a key of this type holds; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    tables = (table_of(part) for part in get_args(annotation))
    return next((table for table in tables if table is not None), None)


def to_toml(config: Config) -> str:
    """Write a configuration as TOML that builds the same configuration when it is read."""
    return "\n".join(_toml_lines(config.model_dump(mode="json"), config, ())) + "\n"


def _toml_lines(data: Mapping[str, Any], owner: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of one table, which ``owner`` was dumped as: values, then tables."""
    named = {_toml_key(key): value for key, value in data.items()}
    known = type(owner).model_fields if isinstance(owner, BaseModel) else {}
    for key, value in named.items():
        if value is None and key in known and known[key].get_default() is not None:
            yield f'{key} = "none"'
        elif value is not None and not isinstance(value, Mapping):
            yield f"{key} = {toml_value(value)}"
    for (name, table), key in zip(data.items(), named, strict=True):
        if isinstance(table, Mapping):
            yield f"\n[{'.'.join((*path, key))}]"
            below = owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)
            yield from _toml_lines(table, below, (*path, key))


def _toml_key(key: str) -> str:
    """Quote a key unless it is a bare one."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_value(value: Any) -> str:
    """Write a plain value; JSON's texts, numbers and lists are TOML's, except for infinity."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _explain(error: ValidationError, stage: type[BaseModel], source: str) -> str:
    """Say in one sentence what the first mistake is, and where."""
    first = error.errors()[0]
    path = [f"#{part + 1}" if isinstance(part, int) else part for part in first["loc"]]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {where!r}; {_suggest(stage, path)}"
    if first["type"] == "missing":
        described = dict(keys(stage)).get(where)
        meaning = (described.description or "").replace("``", "") if described else ""
        meaning = " ".join(meaning.split()) or "give it"
        return f"{source}: the key {where!r} is missing: {meaning}"
    message = first["msg"].removeprefix("Value error, ")
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a table", message)
    message = message[:1].lower() + message[1:].replace("a valid tuple", "a list")
    if not where:
        return f"{source}: {message}"
    return f"{source}: {where}: {message} (got {first.get('input')!r})"


def similar_keys(
    stage: type[BaseModel], name: str, table: Sequence[str] = (), *, cutoff: float = 0.4
) -> list[str]:
    """Return the keys that a wrong one most likely means, of any table; none where none is close.

    Args:
        stage: The configuration.
        name: The last part of the wrong key.
        table: The parts before it. Keys of this table come first.
        cutoff: How alike a key of this table must be at least, from 0 to 1.
    """
    by_name: dict[str, list[str]] = {}
    for key, _ in keys(stage):
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    for same in (name, _SYNONYMS.get(name, "")):
        if same in by_name:
            return by_name[same][:3]
    prefix = "".join(f"{part}." for part in table)
    own = {key: by_name[key] for key in by_name if f"{prefix}{key}" in by_name[key]}
    for names, least in ((own, 0.7), (by_name, 0.7), (own, cutoff)):
        for close in difflib.get_close_matches(name, names, n=1, cutoff=least):
            return [f"{prefix}{close}"] if close in own else by_name[close][:1]
    return []


def _suggest(stage: type[BaseModel], path: Sequence[str]) -> str:
    """Name the keys that an unknown one most likely means, or list those of its table."""
    *table, wrong = (part for part in path if not part.startswith("#"))
    similar = similar_keys(stage, wrong, table)
    if similar:
        return f"did you mean {' or '.join(map(repr, similar))}?"
    prefix = "".join(f"{part}." for part in table)
    inside = [key.removeprefix(prefix) for key, _ in keys(stage) if key.startswith(prefix)]
    return f"known keys are {', '.join(key for key in inside if '.' not in key)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Name the known name that is nearest to a wrong one, or all of them."""
    names = list(known)
    close = _closest(name, names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names) or 'none'}"


def nearest_few(name: str, known: Iterable[str]) -> str:
    """Name the three known names that are nearest to a wrong one, of many."""
    few = ", ".join(_closest(name, list(known), 3, 0.0))
    return f"use one that is, such as {few}" if few else "nothing is"


def _closest(name: str, known: Iterable[str], most: int, cutoff: float) -> list[str]:
    """Return the names that are most alike, upper and lower case alike."""
    spelled = {one.lower(): one for one in reversed(list(known))}
    close = difflib.get_close_matches(name.lower(), spelled, n=most, cutoff=cutoff)
    return [spelled[one] for one in close]


def _default_table(stage: type[BaseModel], key: str) -> dict[str, Any]:
    """Return the keys that the default of a table sets."""
    field = stage.model_fields.get(key)
    default = field.default if field else None
    return default.model_dump(exclude_unset=True) if isinstance(default, Config) else {}


def _may_be_none(stage: type[BaseModel], key: str) -> bool:
    """Tell whether a key may be left without a value."""
    field = stage.model_fields.get(key)
    return field is not None and type(None) in get_args(field.annotation)
