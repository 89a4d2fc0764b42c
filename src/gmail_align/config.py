"""Strict configuration: frozen models, TOML files and ``--set a.b=value``."""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from gmail_align.errors import ConfigError


class Config(BaseModel):
    """Base of every stage's configuration: immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


ConfigT = TypeVar("ConfigT", bound=Config)


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file at {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def parse_value(text: str) -> Any:
    """Read the right-hand side of ``--set``: JSON or TOML where it parses, else a plain string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with every ``a.b=value`` of ``overrides`` put in.

    Raises:
        ConfigError: an override without ``=`` or through a key that holds no table.
    """
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise ConfigError(f"--set {override!r} is not of the form key.subkey=value")
        table = result
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {override!r} goes through {key!r}, which is no table")
        table[keys[-1]] = parse_value(text)
    return result


def build(model: type[ConfigT], data: Mapping[str, Any], source: str = "configuration") -> ConfigT:
    """Validate ``data`` as ``model``.

    Raises:
        ConfigError: one sentence naming the first wrong key, its place and, for an unknown key, its
            nearest known neighbour.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(_explain(error, model, source)) from error


def _explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path)
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if not where:
            return f"{source}: {message}"
        return f"{source}: {where}: {message} (got {first.get('input')!r})"
    known = _fields_at(model, path[:-1])
    close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(known)}"
    return f"{source}: unknown key {where!r}; {hint}"


def _fields_at(model: type[BaseModel], path: Iterable[str]) -> list[str]:
    """Return the field names of the nested model that ``path`` leads to."""
    for key in path:
        field = model.model_fields.get(key)
        annotation = field.annotation if field else None
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
                break
    return list(model.model_fields)
