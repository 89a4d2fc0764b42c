"""A recipe for a folder of someone's data: what lies there, what is assumed, and sizes that fit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import write_bytes
from gmail_align.config import toml_value
from gmail_align.encoders.shipped import SHIPPED
from gmail_align.errors import DataError, UserError
from gmail_align.extras import missing
from gmail_align.progress import printable
from gmail_align.report.names import HEADLINE
from gmail_align.workflow.costs import KNOWN_ENCODERS, KNOWN_LANGUAGE_MODELS
from gmail_align.workflow.layout import Layout
from gmail_align.workflow.layouts import find_layout
from gmail_align.workflow.work import cached_snapshot

SMALL_TRAIN, SMALL_TEST, SMALL_VALIDATION = 600, 300, 100
"""Images that a run without a GPU uses, so that it takes minutes."""
LEAST_TRAIN = 4
_FEW_IMAGES: Final = 5000
"""Below this many real images with classes, a fifth is held out: a probe's accuracy is noisy."""
_SUBSETS: Final = (
    "# A part of the real images, for rows that may see few of them.\n"
    "[subsets]\nscarce = { images = 0.2 }"
)
_FAMILIES: Final = {
    "sd2": r"stable-diffusion-2|sd2",
    "sd_turbo": r"turbo",
    "sdxl": r"xl",
    "sd3": r"stable-diffusion-3|sd3",
    "flux_schnell": r"schnell",
    "flux": r"flux",
}
"""Preset of synthesis -> names of models that it suits."""


@dataclass(frozen=True)
class Models:
    """The models of a new recipe; None is the best that this machine has."""

    generator: str | None = None
    encoder: str | None = None
    language_model: str | None = None


@dataclass(frozen=True)
class NewRecipe:
    """What was written, and why.

    Attributes:
        path: The file.
        contents: What the folder holds, in words.
        images: Split -> number of images.
        notes: What was seen and what is assumed, a sentence each.
    """

    path: Path
    contents: str
    images: Mapping[str, int]
    notes: Sequence[str]


def init_recipe(folder: Path, out: Path, models: Models | None = None) -> NewRecipe:
    """Look at a folder of data and write a recipe that runs as it is.

    Args:
        folder: The data.
        out: The recipe's file; it must not exist.
        models: Models to use instead of those that this machine has.

    Raises:
        UserError: the file exists already.
        DataError: the folder holds nothing that is known, or too few images.
    """
    if out.exists():
        raise UserError(f"{out} exists already: choose another name")
    layout = find_layout(folder)
    if layout.images["train"] < LEAST_TRAIN or not all(layout.images.values()):
        held = ", ".join(f"{layout.images[name]} {name}" for name in layout.data)
        raise DataError(
            f"{folder} holds too few images ({held}): a run trains on {LEAST_TRAIN} at least, and "
            "tests and validates on 1 each"
        )
    chosen, notes = _choose_models(models or Models(), layout)
    small = SHIPPED in (chosen.generator, chosen.encoder) or not has_gpu()
    notes = [*layout.notes, *layout.left_out, *notes, *_sizes(layout, small=small)]
    text = _write(layout, chosen, notes, out, small=small)
    write_bytes(out, text.encode())
    return NewRecipe(out, layout.kind, layout.images, notes)


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, as far as its files tell."""
    return os.path.exists("/dev/nvidia0") or os.path.exists("/proc/driver/nvidia/gpus")


def _choose_models(models: Models, layout: Layout) -> tuple[Models, list[str]]:
    """Fill in the models that are not named, and say which ones were taken."""
    notes = []
    generator = models.generator
    if generator is None:
        able = has_gpu() and not missing("synthesis")
        generator = (_cached_pipeline() if able else None) or SHIPPED
        if layout.generated is None:
            notes.append(f"The generator is {generator}. Name another with --generator.")
    encoder = models.encoder or _first_cached(KNOWN_ENCODERS)
    if models.encoder is None:
        notes.append(f"The encoder is {encoder}. Name another with --encoder.")
    language = models.language_model or _first_cached(KNOWN_LANGUAGE_MODELS)
    if models.language_model is None and not layout.classes:
        notes.append(f"The language model is {language}. Name another with --language-model.")
    return Models(generator, encoder, language), notes


def _first_cached(known: Mapping[str, object]) -> str:
    return next((name for name in known if cached_snapshot(name)), SHIPPED)


def _cached_pipeline() -> str | None:
    """Return the hub id of a diffusers pipeline in the Hugging Face cache."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    for index in sorted(home.glob("hub/models--*/snapshots/*/model_index.json")):
        return index.parents[2].name.removeprefix("models--").replace("--", "/")
    return None


def _sizes(layout: Layout, *, small: bool) -> list[str]:
    """Limit the sets of a run without a GPU; return what was limited, in words."""
    if not small:
        return []
    times = 1 if layout.generated is None else 2  # nothing is generated
    most = {"train": SMALL_TRAIN, "test": SMALL_TEST, "validation": SMALL_VALIDATION}
    most = {split: times * limit for split, limit in most.items()}
    limited = []
    for split, limit in most.items():
        if layout.images[split] > limit:
            layout.data[split]["limit"] = limit
            limited.append(f"{limit} of {layout.images[split]} {split} images")
            layout.images[split] = limit
    if not limited:
        return []
    return [f"For a run of minutes it uses {', '.join(limited)}: delete the limits to use all."]


def _write(layout: Layout, models: Models, notes: Sequence[str], out: Path, *, small: bool) -> str:
    """Write the recipe, with a runbook at its top."""
    total = layout.images["train"]
    runbook = [
        f"Made by gmail-align init. The folder holds {layout.kind}.",
        *notes,
        "",
        "What it will make, what it needs and what it costs:",
        f"  gmail-align plan {out.name}",
        "From these files to the report; the same command goes on after a stop:",
        f"  gmail-align run {out.name}",
    ]
    parts = [
        "\n".join(f"# {printable(' '.join(line.split()))}".rstrip() for line in runbook),
        f"title = {toml_value(f'GMAIL on {Path(out).stem}')}\nseed = 0\nseeds = 1",
        *(
            f"[data.{split}]\n" + _table(layout.data[split], split)
            for split in ("train", "validation", "test")
        ),
        *([] if layout.classes else [_SUBSETS]),
        _generator(layout, models),
        f"[encoder]\nbase = {toml_value(models.encoder)}",
        _alignments(models, total, classes=layout.classes > 0),
        _learner(layout, models, total, small=small),
        _rows(layout),
        _evaluate(layout),
        _claims(layout),
    ]
    return "\n\n".join(parts) + "\n"


def _table(table: Mapping[str, Any], split: str) -> str:
    lines = [f"{key} = {toml_value(value)}" for key, value in table.items()]
    counts = table.get("expect") or table.get("about") or {}
    if split != "test" and counts and counts["captions"] > counts["images"]:
        lines.append(
            "captions_per_image = 1  # an image is generated from each of so many captions"
        )
    return "\n".join(lines)


def _generator(layout: Layout, models: Models) -> str:
    if layout.generated is not None:
        lines = [f"{key} = {toml_value(value)}" for key, value in layout.generated.items()]
        return "# Images that exist already; nothing is generated.\n[generator]\n" + "\n".join(
            lines
        )
    name = str(models.generator)
    if name == SHIPPED:
        settings = 'steps = 8\nscheduler = "dpmpp"\nguidance_scale = 4.5\nbatch_size = 50'
        return f"[generator]\nmodel = {toml_value(name)}\n{settings}\nshard_size = 100"
    family = next((f for f, words in _FAMILIES.items() if re.search(words, name.lower())), "sd2")
    return f"[generator]\npreset = {toml_value(family)}\nmodel = {toml_value(name)}"


def _alignments(models: Models, images: int, *, classes: bool) -> str:
    tabletop = str(models.encoder).startswith(SHIPPED)
    batch = max(8, min(64 if tabletop else 256, images // 8))
    if tabletop:
        steps = max(50, min(300, 10 * images // batch))
        shared = (
            "lora = { rank = 16, alpha = 32.0, targets = "
            "'vision_model\\..*\\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)' }\n"
            'encoder.trunk = "frozen_real"  # real images keep the frozen tower\n'
            f'optim = {{ steps = {steps}, lr = 2e-3, schedule = "cosine", warmup = {steps // 10}, '
            f"checkpoint_every = {max(1, steps // 2)}, evaluate_every = {max(1, steps // 4)} }}"
        )
        gmail = "temperature = 0.12\nweights = { text_generated = 0.5, text_real = 0.0 }\n"
        control = "temperature = 0.12\n"
    else:
        steps = max(200, min(50_000, 20 * images // batch))
        every = max(50, steps // 20)
        shared = (
            f"optim = {{ steps = {steps}, checkpoint_every = {every}, evaluate_every = {every} }}"
        )
        gmail = control = ""
    if classes and images < _FEW_IMAGES:
        gmail += "holdout = 0.2  # real images that judge; a tenth of few is too few to tell\n"
    return (
        f"[align.gmail]\nbatch_size = {batch}\n{gmail}{shared}\n\n"
        "# The control: the same adapter and budget without any real image.\n"
        '[align.control]\npreset = "lora_only"\nkeep_real = "none"\n'
        f"batch_size = {batch}\n{control}{shared}\n\n"
        "# The cheapest alignment: the means are matched, and nothing is trained.\n"
        '[align.shift]\nmethod = "mean_shift"\napply = "always"'
    )


def _learner(layout: Layout, models: Models, images: int, *, small: bool) -> str:
    if layout.classes:
        return '[learn.probe]\nkind = "probe"'
    lines = ["[learn.clipcap]", 'kind = "clipcap"', f"model = {toml_value(models.language_model)}"]
    batch = max(8, min(50, images // 4))
    if small:
        steps = max(60, min(300, 20 * images // batch))
        lines.append(f"batch_size = {batch}")
        lines.append(
            f'optim = {{ steps = {steps}, lr = 1e-3, schedule = "linear", warmup = {steps // 10}, '
            f"checkpoint_every = {steps // 2}, evaluate_every = {steps // 2} }}"
        )
    else:
        lines += ["optim = { epochs = 10 }"]
    return "\n".join(lines)


def _rows(layout: Layout) -> str:
    learner = "probe" if layout.classes else "clipcap"
    rows: list[dict[str, Any]] = [
        {"name": "raw", "label": "Generated as real", "detail": "no alignment at all"},
        {"name": "control", "label": "Generated with LoRA", "align": "control"},
        {"name": "shift", "label": "Mean shift", "detail": "training-free", "align": "shift"},
        {"name": "gmail", "label": "GMAIL", "mark": "ours", "align": "gmail"},
        {"name": "real", "label": "All real", "mark": "bound", "images": "real"},
    ]
    if not layout.classes:
        scarce = {"align": "gmail", "pairs": "scarce", "mark": "ours"}
        rows.insert(4, {"name": "gmail_scarce", "label": "GMAIL, few real images", **scarce})
    tables = []
    for row in rows:
        whole = {**row, "learn": learner}
        lines = "\n".join(f"{key} = {toml_value(value)}" for key, value in whole.items())
        tables.append(f"[[row]]\n{lines}")
    return "\n\n".join(tables)


def _evaluate(layout: Layout) -> str:
    if layout.classes:
        return '[evaluate]\nzeroshot = ["test"]\nprobe = "test"'
    return '[evaluate]\ncaptions = "test"\nretrieval = ["test"]'


def _claims(layout: Layout) -> str:
    metric = "accuracy" if layout.classes else HEADLINE
    claims = [
        ("Alignment beats generated images taken for real", "gmail", "raw"),
        ("Alignment beats the control", "gmail", "control"),
        ("Alignment beats a shift of the means", "gmail", "shift"),
    ]
    return "\n\n".join(
        f"[[claim]]\nname = {toml_value(name)}\nbetter = {toml_value(better)}\n"
        f"worse = {toml_value(worse)}\nmetric = {toml_value(metric)}"
        for name, better, worse in claims
    )
