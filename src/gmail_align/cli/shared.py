"""What all commands share: options, exit codes and the way results are printed."""

from __future__ import annotations

import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from gmail_align import progress
from gmail_align.artifacts import Artifact
from gmail_align.errors import UserError, full_disk_explained

if TYPE_CHECKING:
    from gmail_align.config import Config

    ConfigT = TypeVar("ConfigT", bound=Config)

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of what is made.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Protocol = Annotated[str, typer.Option("--protocol", help="Name that the numbers are kept under.")]
EncoderName = Annotated[
    str,
    typer.Option(
        "--encoder", metavar="MODEL", help="Aligned encoder, or a CLIP; tabletop is shipped."
    ),
]


@dataclass(frozen=True)
class Shared:
    """The options that every command takes."""

    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Configuration, as TOML."),
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="K=V",
            help="Override one key, for example optim.steps=2000; may be repeated.",
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print what would be done.")
    ] = False
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = (
        False
    )
    quiet: Annotated[bool, typer.Option("--quiet", help="Write errors only, and JSON.")] = False

    def build(
        self, stage: type[ConfigT], preset: Mapping[str, Any] | None = None, **given: Any
    ) -> ConfigT:
        """Validate a stage's configuration.

        What stands later wins, key by key: ``preset``, ``--config``, ``given`` (unless None),
        ``--set``.
        """
        from gmail_align.config import apply_overrides, build

        data = apply_overrides(preset or {}, self.config_overrides())
        data |= {name: value for name, value in given.items() if value is not None}
        source = str(self.config) if self.config else "configuration"
        return build(stage, apply_overrides(data, self.overrides or []), source)

    def config_overrides(self) -> list[str]:
        """Return what ``--config`` says in the form of ``--set``."""
        from gmail_align.config import load_toml

        return list(_flatten(load_toml(self.config), ())) if self.config else []

    def refuse_configuration(self) -> None:
        """Say so when ``--config`` or ``--set`` is given to a command that has nothing to set."""
        if self.config or self.overrides:
            raise UserError("this command has no configuration: leave out --config and --set")

    def show(self, value: Mapping[str, Any], lines: str) -> None:
        """Print a result: ``value`` under ``--json``, else ``lines`` unless quiet."""
        if self.json:
            typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
        elif not self.quiet:
            typer.echo(lines)

    def show_plan(self, stage: str, out: Path, **details: Any) -> None:
        """Print what a stage would do (``--dry-run``)."""
        plain = json.loads(json.dumps(details, default=_plain))
        lines = [f"would {stage} into {out}"]
        for name, value in plain.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f"  {name}: {text}")
        self.show({"stage": stage, "out": str(out), **plain}, "\n".join(lines))

    def show_artifact(self, *artifacts: Artifact) -> None:
        """Print where artifacts are and what they hold; a result is printed whole."""
        described = [_describe(artifact) for artifact in artifacts]
        value = described[0] if len(described) == 1 else {"artifacts": described}
        self.show(value, "\n".join(_lines(one) for one in described))


def model_of(name: str, part: str) -> Path:
    """Resolve a model's folder or id; ``tabletop`` is the shipped model ``part``."""
    from gmail_align.recipe import model_path

    return model_path(name, part)


def _flatten(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield ``a.b=value`` for every value of nested tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, (*path, key))
        else:
            yield f"{'.'.join((*path, key))}={json.dumps(value, default=str)}"


def _plain(value: Any) -> Any:
    """Turn a configuration into its keys and values, and anything else into text."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def _describe(artifact: Artifact) -> dict[str, Any]:
    described = {
        "folder": str(artifact.folder),
        "kind": artifact.kind,
        "fingerprint": artifact.fingerprint,
        "counts": artifact.counts,
    }
    if artifact.kind == "result":
        described["result"] = json.loads(artifact.path("result.json").read_text(encoding="utf-8"))
    return described


def _lines(described: Mapping[str, Any]) -> str:
    """Lay out what :func:`_describe` found, with one line for each metric of a result."""
    counts = ", ".join(f"{count} {name}" for name, count in described["counts"].items())
    lines = [f"{described['folder']}: {described['kind']}" + (f", {counts}" if counts else "")]
    result = described.get("result", {})
    tables = result.get("systems") or {"": result.get("metrics", {})}
    for system, metrics in tables.items():
        lines += [f"  {f'{system} {name}'.strip():32} {_number(m)}" for name, m in metrics.items()]
    return "\n".join(lines)


def _number(estimate: Mapping[str, Any]) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    interval = "" if low is None or high is None else f"  ({low:.4f} to {high:.4f})"
    return ("undefined" if value is None else f"{value:.4f}") + interval


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give ``function(shared, ...)`` the shared options and the exit codes."""
    hints = get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in list(inspect.signature(function).parameters.values())[1:]
    ]
    shared_hints = get_type_hints(Shared, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=shared_hints[field.name],
        )
        for field in fields(Shared)
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared

    def wrapped(**values: Any) -> None:
        with exit_codes():
            options = Shared(**{field.name: values.pop(field.name) for field in fields(Shared)})
            progress.set_quiet(options.quiet)
            function(options, **values)

    wrapped.__doc__ = function.__doc__
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what is raised inside into one line on stderr and an exit code.

    2 is the user's mistake, 1 a failure of ours (with its traceback), 130 an interruption.
    """
    try:
        with full_disk_explained("the output"):
            yield
    except KeyboardInterrupt:
        _complain("interrupted; run the same command again to go on")
        raise typer.Exit(130) from None
    except (UserError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        _complain(_sentence(error))
        raise typer.Exit(2) from None
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise
    except Exception as error:
        if "No space left on device" in str(error):
            _complain("no space is left to write the output: free some and run again")
            raise typer.Exit(2) from None
        progress.end_line()
        sys.stderr.write("".join(traceback.format_exception(error)))
        _complain(f"this is a failure of gmail-align: {type(error).__name__}: {_sentence(error)}")
        raise typer.Exit(1) from None


def _sentence(error: BaseException) -> str:
    """Return an error's message and notes on one line."""
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    return " ".join(" ".join([text, *getattr(error, "__notes__", [])]).split())


def _complain(sentence: str) -> None:
    progress.end_line()
    sys.stderr.write(f"gmail-align: {sentence}\n")
