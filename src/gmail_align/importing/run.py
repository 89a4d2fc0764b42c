"""The stage: import a data set by the name of its importer and that importer's options.

``import.json`` beside the artifacts records the options, the size and time of change of every
input, and what was made. Where all of it is still the same, the import is done and nothing is read.
Otherwise the inputs are read again; no artifact's identity depends on this file.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from gmail_align.artifacts import Artifact, canonical_json, load, write_json
from gmail_align.data.protocols import find_protocol
from gmail_align.errors import ArtifactError, ConfigError
from gmail_align.importing.members import Folder
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.source import Source
from gmail_align.importing.table import find_importer
from gmail_align.importing.write import write_import
from gmail_align.remote import shown, state_of, url_of
from gmail_align.runtime import versions

RECEIPT: Final = "import.json"
_KINDS: Final = ("captions", "images", "classes", "questions")


def import_data(
    importer: str,
    options: Mapping[str, Any],
    out: Path,
    write: ImportOptions | None = None,
) -> dict[str, Artifact]:
    """Import a data set; what is made lies in ``out/captions``, ``out/images`` and so on.

    Example:
        >>> made = import_data(
        ...     "coco",
        ...     {"annotations": "captions_val2017.json", "images": ["val2017.zip"]},
        ...     Path("coco"),
        ... )  # doctest: +SKIP
        >>> made["captions"].counts  # doctest: +SKIP

    Args:
        importer: A name in :data:`gmail_align.importing.table.IMPORTERS`.
        options: The importer's own options. ``source`` names the first one for every importer, and
            one path may stand where a list of paths is expected.
        out: Folder of the artifacts.
        write: What every importer takes: conversion, protocol, limit of what is left out.

    Returns:
        Kind (``captions``, ``images``, ``classes``, ``questions``) -> artifact.

    Raises:
        ConfigError: the importer or an option does not exist, or a value is wrong.
        DataError: a source is missing, damaged or of another kind, or too much is unusable.
        ArtifactError: ``out`` belongs to other inputs.
    """
    write = write or ImportOptions()
    function = find_importer(importer).load()
    checked = check_options(importer, function, options)
    receipt = ImportReceipt.of(importer, out, {**checked, **asdict(write)})
    made = receipt.made()
    if made is None:
        source = _list_source(importer, function, checked, write)
        made = write_import(source, out, _completed(write, source))
        receipt.write(made)
    return {kind: made[kind] for kind in _KINDS if kind in made}


def option_fields(function: Callable[..., Source]) -> dict[str, inspect.Parameter]:
    """Return an importer's options: the parameters that have a pydantic ``Field``.

    The annotation of each is resolved, so that ``Annotated[type, Field(...)]`` can be read off it.
    """
    hints = get_type_hints(function, include_extras=True)
    return {
        name: parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if get_origin(hints[name]) is Annotated
        and any(isinstance(one, FieldInfo) for one in get_args(hints[name]))
    }


def check_options(
    importer: str, function: Callable[..., Source], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Validate an importer's options and fill in the defaults.

    Raises:
        ConfigError: an option is unknown, missing or of a wrong type; the message names it.
    """
    fields = option_fields(function)
    given = dict(options)
    first = next(iter(fields))
    if "source" in given and "source" not in fields and first not in given:
        given[first] = given.pop("source")
    for name in given:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(fields)}"
            raise ConfigError(f"import {importer} has no option {name!r}; {hint}")
    checked = {}
    for name, parameter in fields.items():
        if name in given:
            checked[name] = _checked(importer, name, parameter.annotation, given[name])
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"import {importer} needs the option {name!r}")
        else:
            checked[name] = parameter.default
    return checked


def _checked(importer: str, name: str, annotation: Any, value: Any) -> Any:
    kind = get_args(annotation)[0]
    many = get_origin(kind) is not None and issubclass(get_origin(kind), Sequence)
    if many and isinstance(value, str | Path):
        value = [value]
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        reason = message[:1].lower() + message[1:]
        raise ConfigError(f"import {importer}: {name}: {reason} (got {value!r})") from error


def _list_source(
    importer: str, function: Callable[..., Source], options: Mapping[str, Any], write: ImportOptions
) -> Source:
    """Call the importer; one that has protocols is told which is asked for."""
    if "protocol" in inspect.signature(function).parameters:
        protocol = None if write.protocol is None else find_protocol(write.protocol)
        return function(**options, protocol=protocol)
    if write.protocol is not None:
        raise ConfigError(f"import {importer} has no protocols: leave out {write.protocol!r}")
    return function(**options)


def _completed(write: ImportOptions, source: Source) -> ImportOptions:
    """Put in what the importer's own defaults say where the options say nothing."""
    convert = source.convert if write.convert is None else write.convert
    return replace(write, convert=convert, protocol=write.protocol or source.protocol)


@dataclass(frozen=True)
class ImportReceipt:
    """The record of one import: its options and the state of its inputs before they are read."""

    out: Path
    options: Mapping[str, Any]
    inputs: Mapping[str, Any]

    @classmethod
    def of(cls, importer: str, out: Path, options: Mapping[str, Any]) -> ImportReceipt:
        """Record the options; every path among them, alone or in a list, is an input."""
        inputs: dict[str, Any] = {}
        plain: dict[str, Any] = {"import": importer, "version": versions().get("gmail-align")}
        for name, value in options.items():
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, Path):
                    inputs[_name(one)] = _state(one)
            plain[name] = json.loads(json.dumps(value, default=_name))
        return cls(out, plain, inputs)

    def made(self) -> dict[str, Artifact] | None:
        """Return what the same import made before; None when there is none or anything changed."""
        try:
            before = json.loads((self.out / RECEIPT).read_text(encoding="utf-8"))
            if before["options"] != self.options or before["inputs"] != self.inputs:
                return None
            made = {name: load(self.out / name) for name in before["made"]}
        except (OSError, ValueError, KeyError, TypeError, ArtifactError):
            return None
        same = all(made[name].fingerprint == was for name, was in before["made"].items())
        return made if same and made and None not in self.inputs.values() else None

    def write(self, made: Mapping[str, Artifact]) -> None:
        """Write the record of a finished import."""
        prints = {name: artifact.fingerprint for name, artifact in made.items()}
        row = {"options": self.options, "inputs": self.inputs, "made": prints}
        write_json(self.out / RECEIPT, row)


def _name(path: Path) -> str:
    """Return the name by which an input is recorded: the whole path, or a URL without secrets."""
    return str(path.absolute()) if url_of(path) is None else shown(path)


def _state(path: Path) -> list[Any] | None:
    """Return what changes with a file, or with any file in a folder; None when unknown."""
    if (url := url_of(path)) is not None:
        return state_of(url)
    try:
        if not os.path.isdir(path):
            state = path.stat()
            return [state.st_size, state.st_mtime_ns]
        digest = hashlib.sha256()
        for name, fault in Folder(path).listing():
            state = os.stat(path / name)
            row = canonical_json([name, fault, state.st_size, state.st_mtime_ns])
            digest.update(row.encode(errors="surrogateescape"))
        return [digest.hexdigest()[:16]]
    except (OSError, ValueError):
        return None
