"""What all commands share: options, exit codes and the way results are printed."""

from __future__ import annotations

import errno
import inspect
import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from gmail_align import progress
from gmail_align.artifacts import Artifact
from gmail_align.cli.options import (
    EVERYWHERE,
    Expanded,
    File,
    OptionalOut,
    Seed,
    Subset,
    described_parameters,
    expand,
    group_options,
    help_text,
    option_names,
)
from gmail_align.config import Config, load_toml, to_toml
from gmail_align.encoders.hub import HUB_ID
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import (
    ConfigError,
    GmailAlignError,
    Terminated,
    UserError,
    full_disk_explained,
    is_out_of_memory,
)
from gmail_align.leases import ended_if_failed
from gmail_align.progress import printable
from gmail_align.remote import url_of
from gmail_align.runtime import termination_raised

if TYPE_CHECKING:
    from gmail_align.engine import Part
    from gmail_align.results import Result


_MODELS = {"base", "encoder", "language_model", "model", "gpt2", "source"}
"""Details of a plan that name models."""


@dataclass(frozen=True)
class Shared:
    """The options that every command takes.

    Attributes:
        config: Read the configuration from a TOML file.
        set: Replace one key, for example optim.steps=2000; may be repeated.
        dry_run: Check the inputs and print the plan.
        json: Print the result as JSON on stdout.
        quiet: Print nothing but errors and JSON.
        verbose: Print the time of every line, every finished job, and the traceback of any error.
    """

    config: File | None = None
    set: list[Annotated[str, "KEY=VALUE"]] | None = None
    dry_run: bool = False
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def dotted_overrides(self) -> list[str]:
        """Return ``--config`` and then ``--set``, each as ``a.b=value``."""
        table = load_toml(self.config) if self.config else {}
        return [*_flatten(table, ()), *(self.set or [])]

    def show(self, value: Mapping[str, Any], lines: str) -> None:
        """Print a result: ``value`` under ``--json``, else ``lines`` unless quiet."""
        if self.json:
            text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        elif self.quiet:
            return
        else:
            text = lines
        try:
            typer.echo(printable(text))
        except OSError as error:
            if error.errno == errno.EBADF:
                raise UserError(
                    "standard output cannot be written: it is not open to write"
                ) from None
            raise

    def show_plan(
        self, stage: str, out: Path | None, config: Config | None = None, /, **details: Any
    ) -> None:
        """Print what a stage would do (``--dry-run``).

        Without ``--json`` this is a TOML file: comments, then the configuration for ``--config``.
        Of ``details``, a path is an input, and so is a model's name.

        Raises:
            UserError: an input is not there.
        """
        for name, value in {**details, "model": getattr(config, "model", None)}.items():
            require_there(value, model=name in _MODELS)
        plain = json.loads(json.dumps(details, default=str))
        target = "standard output" if out is None else str(out)
        lines = [f"# would {stage} into {target}"]
        for name, value in plain.items():
            one_line = isinstance(value, str) and value.isprintable()
            text = value if one_line else json.dumps(value, ensure_ascii=False)
            lines.append(f"#   {name}: {text}")
        if config is not None:
            plain["config"] = config.model_dump(mode="json")
            lines.append(to_toml(config).rstrip())
        self.show({"stage": stage, "out": target, **plain}, "\n".join(lines))

    def show_part(self, made: Artifact | None, part: Part | None, out: Path, what: str) -> None:
        """Print an artifact, or that one part of its shards is done."""
        if made is not None:
            self.show_artifact(made)
        elif part is not None:
            done = f"{out}: part {part} is done; {what} are complete when all {part.of} parts are"
            self.show({"folder": str(out), "part": str(part), "complete": False}, done)

    def show_artifact(self, *artifacts: Artifact) -> None:
        """Print where artifacts are and what they hold."""
        described = [_describe(artifact) for artifact in artifacts]
        value = described[0] if len(described) == 1 else {"artifacts": described}
        self.show(value, "\n".join(_line(one) for one in described))

    def show_result(self, result: Result, *more: str) -> None:
        """Print a result, and where it is kept.

        Args:
            result: The result; ``--json`` prints what ``result.json`` holds.
            more: Further lines for people.
        """
        body = result.to_json()
        kept = {} if result.artifact is None else _describe(result.artifact)
        lines = [kept["folder"]] if kept else []
        lines += [*result_lines(body), *more]
        self.show({**kept, **body, "seconds": result.seconds}, "\n".join(lines))


@dataclass(frozen=True)
class Scoring:
    """What every evaluation takes."""

    out: OptionalOut = None
    subset: Subset = False
    seed: Seed = 0


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Turn ``function(shared, ...)`` into a command: options of its parameters, and exit codes."""
    _, *own = described_parameters(function)
    taken = frozenset(name for p in own for name in option_names(p.name, p.annotation))
    return make_command(function, {p.name: expand(p, taken) for p in own})


def make_command(
    function: Callable[..., None], parts: Mapping[str, Expanded]
) -> Callable[..., None]:
    """Make a command that calls ``function(shared, ...)`` with each of its ``parts``.

    Args:
        function: Its docstring, without ``Args``, is the command's help.
        parts: Parameter of ``function`` -> what it becomes on the command line.
    """
    shared_options = group_options(Shared, EVERYWHERE)
    options = [option for part in parts.values() for option in part.options] + shared_options
    configurable = any(part.configurable for part in parts.values())
    positional = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is inspect.Parameter.POSITIONAL_ONLY and p.name in parts
    ]

    def run(**values: Any) -> None:
        with exit_codes(), termination_raised(), ended_if_failed():
            shared = Shared(**{option.name: values[option.name] for option in shared_options})
            progress.set_quiet(shared.quiet)
            progress.set_verbose(shared.verbose)
            if not configurable and (shared.config or shared.set):
                raise UserError(
                    "this command does not have a configuration: leave out --config and --set"
                )
            _require_place(values.get("out"))
            given = {name: part.read(values, shared) for name, part in parts.items()}
            function(shared, *(given.pop(name) for name in positional), **given)

    stages = [part.stage for part in parts.values() if part.stage is not None]
    run.stage = stages[0] if stages else None  # type: ignore[attr-defined]
    run.__doc__ = help_text(function)
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def require_there(value: Any, *, model: bool = False) -> None:
    """Refuse a path, or one of several, that is neither here nor a URL; a model may be a hub id.

    Raises:
        UserError: a file or folder is not there.
    """
    if isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            require_there(one, model=model)
    elif isinstance(value, Path) or (model and isinstance(value, str)):
        path, (name, _, _) = model_path(value, "clip").expanduser(), str(value).partition("@")
        on_hub = model and not path.is_absolute() and HUB_ID.fullmatch(name)
        if not (name == "none" or url_of(value) or on_hub or path.exists()):
            raise UserError(f"{value} does not exist: check the path")


def _require_place(out: Path | None) -> None:
    """Refuse a place that cannot be written, before a model is loaded."""
    if out is None or out.exists():
        return
    there = next(above for above in out.absolute().parents if above.exists())
    if not there.is_dir():
        raise UserError(f"{out} cannot be made: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"{out} cannot be made: {there} may not be written; choose another folder")


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what is raised inside into one line on stderr and an exit code.

    2 is the user's mistake; 1 a failure of ours, with its traceback unless we foresaw it; 130 an
    interruption; 143 a termination.
    """
    try:
        with full_disk_explained("the output"):
            yield
    except (KeyboardInterrupt, Terminated) as error:
        terminated = isinstance(error, Terminated)
        what = "terminated" if terminated else "interrupted"
        _complain(f"{what}; run the same command again to go on")
        raise typer.Exit(143 if terminated else 130) from None
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise
    except Exception as error:
        raise typer.Exit(_report(_permission_denied(error) or error)) from None


def _report(error: Exception) -> int:
    """Write what went wrong to stderr, and return the exit code."""
    if progress.is_verbose():
        progress.end_line()
        progress.write_stderr(printable("".join(traceback.format_exception(error))))
    if isinstance(error, UserError) or _names_a_path(error):
        _complain(_sentence(error))
        return 2
    if "No space left on device" in str(error):
        _complain("no space is left to write the output: free some and run again")
        return 2
    if is_out_of_memory(error):
        _complain(
            "not enough memory: take a smaller batch or fewer workers, or close other programs, "
            f"and run the same command again ({_sentence(error)[:200]})"
        )
    elif isinstance(error, GmailAlignError):
        _complain(_sentence(error))
    else:
        progress.end_line()
        progress.write_stderr(printable("".join(traceback.format_exception(error))))
        _complain(f"this is a failure of gmail-align: {type(error).__name__}: {_sentence(error)}")
    return 1


def _permission_denied(error: BaseException | None) -> PermissionError | None:
    """Return the refusal that an error comes from: what may not be read is not damaged."""
    while error is not None and not isinstance(error, PermissionError):
        error = error.__cause__
    return error if _path_of(error) is not None else None


def _names_a_path(error: Exception) -> bool:
    """Tell whether the operating system refused a path, which is then the user's, not ours."""
    path = _path_of(error)
    return path is not None and not Path(path).is_relative_to(Path(__file__).parents[1])


def _path_of(error: BaseException | None) -> str | None:
    """Return the path that the operating system names; None for other errors."""
    name = error.filename if isinstance(error, OSError) else None
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else None


def _flatten(table: Mapping[str, Any], path: Sequence[str]) -> Iterator[str]:
    """Yield ``a.b=value`` for every value of nested tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, (*path, key))
        else:
            yield f"{'.'.join((*path, key))}={json.dumps(value, default=str)}"


def _describe(artifact: Artifact) -> dict[str, Any]:
    return {
        "folder": str(artifact.folder),
        "kind": artifact.kind,
        "fingerprint": artifact.fingerprint,
        "counts": artifact.counts,
    }


def _line(described: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in described["counts"].items())
    return f"{described['folder']}: {described['kind']}" + (f", {counts}" if counts else "")


def result_lines(body: Mapping[str, Any]) -> list[str]:
    """Lay out a result: its protocol and counts, then one line a metric."""
    counts = [f"{number} {what}" for what, number in body["n"].items()]
    lines = [", ".join([body["protocol"], *counts])]
    verdicts = body.get("verdicts", {})
    for name, value in body["metrics"].items():
        low, high = body["intervals"][name]
        text = _number({"value": value, "low": low, "high": high})
        lines.append(f"  {name:24} {text}  {verdicts.get(name, '')}".rstrip())
    for name, one in body.get("groups", {}).items():
        if "value" in one:
            lines.append(f"    {name:38} {one['value']:.4f} of {one['n']}")
    for part in ("systems", "paired"):
        for name, metrics in body.get(part, {}).items():
            lines += [f"  {f'{name} {metric}':32} {_number(m)}" for metric, m in metrics.items()]
    if "unparsed" in body:
        lines.append(f"  {body['unparsed']} responses without an answer (rule: {body['rule']})")
    lines += [f"  {name:24} unavailable: {why}" for name, why in body["unavailable"].items()]
    return lines


def _number(estimate: Mapping[str, Any]) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    interval = "" if low is None or high is None else f"  ({low:.4f} to {high:.4f})"
    return ("undefined" if value is None else f"{value:.4f}") + interval


def _sentence(error: BaseException) -> str:
    """Return an error's message and notes on one line."""
    text, path = str(error), _path_of(error)
    if path is not None and isinstance(error, OSError):
        text = f"{path} cannot be used: {error.strerror}"
    return " ".join(" ".join([text, *getattr(error, "__notes__", [])]).split())


@dataclass(frozen=True)
class CacheLimit:
    """How much is kept.

    Attributes:
        cache_limit: Decoded pixels that may be kept of one set of images, such as 200GB; images
            that take more are decoded whenever they are read.
    """

    cache_limit: Annotated[str, "SIZE"] | None = None

    @property
    def limit(self) -> int | None:
        """The limit in bytes; None where none is given.

        Raises:
            ConfigError: it is not a size.
        """
        size = self.cache_limit
        try:
            return None if size is None else int(TypeAdapter(ByteSize).validate_python(size))
        except ValidationError as error:
            raise ConfigError(
                f"{size!r} is not a size: give a number and a unit, as 200GB"
            ) from error


def _complain(sentence: str) -> None:
    progress.end_line()
    progress.write_to_logs(f"error: {sentence}")
    progress.write_stderr(printable(f"gmail-align: {sentence}\n"))
