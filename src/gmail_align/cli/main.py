"""``gmail-align``: the table of commands, loaded when they are used, and the entry point."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from gmail_align import __version__
from gmail_align.captioning.kinds import CAPTIONERS
from gmail_align.importing.table import IMPORTERS


@dataclass(frozen=True)
class Entry:
    """A command: where its function is, and its line in ``--help``."""

    target: str
    """``module:function`` below ``gmail_align.cli``."""
    help: str
    made_from: str | None = None
    """What the function makes a command from; None for a function that is one."""


@dataclass(frozen=True)
class Group:
    """Commands under one word, and the word's line in ``--help``."""

    help: str
    commands: Mapping[str, Entry] = field(default_factory=dict)
    of_paths: str | None = None
    """The command that is meant when a path stands where a command's name is expected."""


COMMANDS: dict[str, Entry | Group] = {
    "demo": Entry("runs:demo", "Run the whole method on a small world: CPU, offline."),
    "init": Entry("runs:init", "Write a recipe for a folder of your data."),
    "run": Entry("runs:run", "Run a recipe, and skip what is complete."),
    "study": Entry("studies:study", "Run a table of the paper with seeds and verdicts."),
    "recipes": Group(
        "List, show and copy the shipped recipes.",
        {
            "list": Entry("runs:list_recipes", "List the shipped recipes."),
            "show": Entry("runs:show_recipe", "Print a recipe."),
            "copy": Entry("runs:copy_recipe", "Copy a recipe to a file of your own."),
        },
    ),
    "import": Group(
        "Import data sets from folders, archives and tables.",
        {
            "path": Entry("data:import_path", "Recognise what lies in a folder or file."),
            **{n: Entry("data:import_command", row.help, n) for n, row in IMPORTERS.items()},
        },
        of_paths="path",
    ),
    "leaks": Entry("data:leaks", "Find training images that an evaluation contains."),
    "choose": Entry("data:choose", "Keep some of the captions or pairs."),
    "split": Entry("data:split", "Cut captions or pairs into train, validation and test."),
    "plan": Entry("runs:plan", "Say what a run makes, needs and costs."),
    "synthesize": Entry("synthesize:synthesize", "Generate images from captions."),
    "filter": Entry("synthesize:filter_images", "Leave out poor, duplicate or copied images."),
    "pair": Entry("data:pair", "Pair real and generated images of the same caption."),
    "extract": Entry("align:extract", "Compute features of images or captions."),
    "gap": Entry("gap:gap", "Measure the gap between real and generated images."),
    "convert": Entry("align:convert", "Convert a CLIP's weights to Hugging Face's format."),
    "align": Entry("align:align", "Align an encoder to generated images."),
    "align features": Entry("align:align_features", "Align features of any encoder."),
    "export": Entry("align:export", "Write an encoder for other libraries."),
    "train": Group(
        "Train a captioner, LLaVA, or a CLIP.",
        {
            "clip": Entry("align:train_clip", "Train a CLIP from scratch on images and captions."),
            **{
                n: Entry("captioners:train_command", kind.help, n) for n, kind in CAPTIONERS.items()
            },
            "llava": Entry("llava:train_llava", "Train LLaVA on conversations about images."),
        },
    ),
    "predict": Group(
        "Predict captions or answers with a trained model.",
        {
            "captions": Entry("captioners:predict_captions", "Caption images with a captioner."),
            "answers": Entry("llava:predict_answers", "Answer questions with LLaVA."),
        },
    ),
    "caption": Entry("captioners:caption", "Caption image files with a trained captioner."),
    "ask": Entry("llava:ask", "Ask LLaVA a question about image files."),
    "convert-clipcap": Entry("captioners:convert_clipcap", "Convert ClipCap's released weights."),
    "evaluate": Group(
        "Score encoders and predictions, with intervals.",
        {
            "retrieval": Entry("evaluate:retrieval", "Image-text retrieval, R@K."),
            "zeroshot": Entry("evaluate:zeroshot", "Zero-shot classification."),
            "probe": Entry("evaluate:probe", "A linear probe of features."),
            "finetune": Entry("evaluate:finetune", "A tower fine-tuned to classify."),
            "captions": Entry("predictions:captions", "Caption metrics of predictions."),
            "answers": Entry("predictions:answers", "Answers to ScienceQA or MMMU."),
        },
    ),
    "compare": Entry("predictions:compare", "Say how much better one result is than another."),
    "track": Entry("tools:track", "Show a training in TensorBoard, W&B or trackio."),
    "report": Entry("runs:report", "Write a run's tables, figures and page again."),
    "app": Entry("runs:app", "Look at images of your own through a finished run."),
    "tabletop": Group(
        "Draw the small world, and train its models.",
        {
            "write": Entry("tools:tabletop_write", "Draw a set of its scenes to disk."),
            "train": Entry("tools:tabletop_train", "Train its models from scratch."),
        },
    ),
    "doctor": Entry("tools:doctor", "Say what is installed and what is missing."),
}


class _Command(TyperCommand):
    """A command that lists its options in sections, and knows the keys of its configuration."""

    stage: Any = None
    """The configuration class of the command, if it has one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command line; an unknown option may be a key's usual name."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if self.stage is not None and type(error).__name__ == "NoSuchOption":
                _suggest_keys(error, self.stage)
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, the command's own options, then the sections that options name."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            argument = parameter.param_type_name == "argument"
            section = getattr(parameter, "rich_help_panel", None)
            if parameter.name == "help":
                section = next(reversed(sections))
            title = "Arguments" if argument else section or "Options"
            sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


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
        run = getattr(home, function)
        if self.entry.made_from is not None:
            run = run(self.entry.made_from)
        app.command(self.name, cls=_Command)(run)
        command = get_command(app)
        assert isinstance(command, _Command)
        command.stage = getattr(run, "stage", None)
        return command


def _suggest_keys(error: Any, stage: Any) -> None:
    """Add to an unknown option's error how the key that it most likely means is set."""
    from gmail_align.config import keys, similar_keys, table_of

    plain = {key for key, field in keys(stage) if table_of(field.annotation) is None}
    likely = similar_keys(stage, error.option_name.lstrip("-").replace("-", "_"), cutoff=0.7)
    similar = [key for key in likely if key in plain]
    if similar:
        error.possibilities = [
            f"--set {key}=VALUE" if "." in key else f"--{key.replace('_', '-')}" for key in similar
        ]


class _LazyGroup(TyperGroup):
    """A group of placeholders, each replaced by its command on use."""

    of_paths: str | None = None
    """The command that a path stands for."""

    def add(self, table: Mapping[str, Entry | Group]) -> _LazyGroup:
        """Add the commands and groups of ``table``, and return the group itself."""
        for name, row in table.items():
            if isinstance(row, Entry):
                self.commands[name] = _Placeholder(name, row)
            else:
                group = _LazyGroup(
                    name=name, help=row.help, no_args_is_help=True, rich_markup_mode=None
                )
                group.of_paths = row.of_paths
                self.commands[name] = group.add(row.commands)
        return self

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that ``args`` names; import it when it is a placeholder.

        A command's name may be two words, of which the first is a command too.
        """
        both = " ".join(args[:2])
        if both in self.commands:
            args = [both, *args[2:]]
        elif self.of_paths and args[0] not in self.commands and os.path.exists(args[0]):
            args = [self.of_paths, *args]
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, _Placeholder) else command, rest


_HELP = (
    "Generated images as a modality of their own: measure the gap, align encoders, use the result."
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"gmail-align {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


class _Root(_LazyGroup):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add(COMMANDS)


app = typer.Typer(
    name="gmail-align",
    cls=_Root,
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's panels would treble the time of --help
)
app.callback()(_root)


def _open_closed_files() -> None:
    """Open stdin, stdout and stderr on nothing where they are closed, as by ``2>&-``.

    Else the next file that is opened, perhaps one of an artifact, would take their number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def main() -> None:
    """Run the command line and exit.

    0 is done, 1 a failure of ours, 2 the user's mistake, 130 interrupted, 143 terminated.
    """
    _open_closed_files()
    try:
        app(prog_name="gmail-align")
    except KeyboardInterrupt:
        sys.exit(130)
