"""``gmail-align``: the table of commands and the entry point."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from gmail_align import __version__
from gmail_align.cli.lazy import Entry, Group, LazyGroup
from gmail_align.importing.table import IMPORTERS

COMMANDS: dict[str, Entry | Group] = {
    "demo": Entry("demo:demo", "Run the whole pipeline on the tabletop world: CPU, offline."),
    "run": Entry("run:run", "Run the stages of a recipe, skipping what is complete."),
    "recipes": Group(
        "List, show and copy the shipped recipes.",
        {
            "list": Entry("recipes:list_", "List the shipped recipes."),
            "show": Entry("recipes:show", "Print a recipe."),
            "copy": Entry("recipes:copy", "Copy a recipe to a file of your own."),
        },
    ),
    "import": Group(
        "Bring data sets in, read in place from folders, zips, tars, tables and shards.",
        {name: Entry(f"imports:{name}", row.help) for name, row in IMPORTERS.items()},
    ),
    "leaks": Entry("leaks:leaks", "Find training images that an evaluation also has."),
    "choose": Entry("choose:choose", "Keep some of the captions, or of the pairs."),
    "plan": Entry("plan:plan", "Count what generating images will cost, before anything runs."),
    "synthesize": Entry("synthesize:synthesize", "Generate images from captions."),
    "filter": Entry("filter_images:filter_images", "Leave out poor, double or copied images."),
    "pair": Entry("pair:pair", "Pair real and generated images of the same caption."),
    "extract": Entry("extract:extract", "Compute features of images or captions once."),
    "gap": Entry("gap:gap", "Measure the gap between real and generated images."),
    "convert": Entry("convert:convert", "Bring a CLIP's weights into Hugging Face's format."),
    "align": Entry("align:align", "Align an encoder to generated images."),
    "export": Entry("export:export", "Write an encoder for other people's code."),
    "train": Group(
        "Train a model on (aligned) features.",
        {
            "clip": Entry("train_clip:clip", "Train a CLIP from scratch on images and captions."),
            "clipcap": Entry("train_clipcap:clipcap", "Train a ClipCap captioner."),
            "ifcap": Entry("train_ifcap:ifcap", "Train an IFCap captioner on captions."),
        },
    ),
    "predict": Group(
        "Write predictions of a trained model.",
        {"captions": Entry("predict_captions:captions", "Caption images with a captioner.")},
    ),
    "caption": Entry("caption:caption", "Caption image files with a trained captioner."),
    "convert-clipcap": Entry(
        "convert_clipcap:convert_clipcap", "Bring ClipCap's released weights in."
    ),
    "evaluate": Group(
        "Score encoders and predictions, with confidence intervals.",
        {
            "retrieval": Entry("evaluate_retrieval:retrieval", "Image-text retrieval, R@K."),
            "zeroshot": Entry("evaluate_zeroshot:zeroshot", "Zero-shot classification."),
            "probe": Entry("evaluate_probe:probe", "A linear probe of features."),
            "finetune": Entry("evaluate_finetune:finetune", "A tower fine-tuned to classify."),
            "captions": Entry("evaluate_captions:captions", "Caption metrics of predictions."),
            "answers": Entry("evaluate_answers:answers", "Answers to ScienceQA or MMMU."),
        },
    ),
    "compare": Entry("compare:compare", "Paired differences between two results."),
    "track": Entry("track:track", "Show a training in TensorBoard, W&B or trackio."),
    "report": Entry("report:report", "Write a run's tables, figures and page again."),
    "tabletop": Group(
        "The small world that is shipped with the package.",
        {
            "write": Entry("tabletop_write:write", "Draw a set of its scenes to disk."),
            "train": Entry("tabletop_train:train", "Train its models from scratch."),
        },
    ),
    "doctor": Entry("doctor:doctor", "Say what is installed and what each missing thing disables."),
}

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


class _Root(LazyGroup):
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


def main() -> None:
    """Run the command line and exit: 0 done, 1 a failure of ours, 2 the user's, 130 interrupted."""
    try:
        app(prog_name="gmail-align")
    except KeyboardInterrupt:
        sys.exit(130)
