"""``gmail-align doctor``, ``track`` and ``tabletop``: the machine, trackers, the small world."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import Field

from gmail_align.cli.options import Folder, Out, Seed
from gmail_align.cli.shared import Shared, command
from gmail_align.extras import DISABLES, EXTRAS, missing
from gmail_align.runtime import gpus, versions
from gmail_align.training.trackers import Tracker

_CORE = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "pyarrow")


@command
def doctor(shared: Shared) -> None:
    """Say what is installed and what each missing thing disables.

    Exits with 2 when something that every command needs is missing.
    """
    machine = _examine()
    shared.show(machine, "\n".join(_machine_lines(machine)))
    if machine["missing"]:
        raise typer.Exit(2)


def _examine() -> dict[str, Any]:
    """Look at the machine and at what is installed."""
    from gmail_align.metrics.java import java_version

    return {
        "versions": versions(),
        "missing": [name for name in _CORE if importlib.util.find_spec(name) is None],
        "extras": {name: {"missing": missing(name), "disables": DISABLES[name]} for name in EXTRAS},
        "java": java_version(),
        "gpus": gpus(),
        "cpus": os.cpu_count(),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }


def _machine_lines(machine: dict[str, Any]) -> list[str]:
    lines = [f"{name:13} {version}" for name, version in machine["versions"].items()]
    lines += [f"{name:13} MISSING: every command needs it" for name in machine["missing"]]
    for name, extra in machine["extras"].items():
        absent = ", ".join(extra["missing"])
        state = (
            f"{absent} missing, which disables {extra['disables']}: "
            f"pip install 'gmail-align[{name}]'"
            if absent
            else "installed"
        )
        lines.append(f"{f'[{name}]':13} {state}")
    java = machine["java"]
    lines.append(
        f"{'java':13} {java['version']} ({java['source']})"
        if java
        else f"{'java':13} missing, which disables METEOR, SPICE and the reference tokenizer"
    )
    gpus = [f"{gpu['name']}, {gpu['memory_gb']} GB" for gpu in machine["gpus"]]
    lines.append(f"{'gpu':13} {'; '.join(gpus) or 'not found: everything runs on the CPU, slowly'}")
    lines.append(f"{'cpu':13} {machine['cpus']} cores")
    lines.append(f"{'disk':13} {machine['free_disk_gb']} GB free here")
    return lines


@command
def track(
    shared: Shared,
    run: Folder,
    /,
    to: Tracker = "tensorboard",
    out: Folder = Path("tracking"),
    name: str | None = None,
    follow: bool = False,
) -> None:
    """Send the events of a training to a tracker, during the training or afterwards.

    Every training keeps events.jsonl in its folder: the losses of each step and the guard's
    figures. wandb sends them to its server unless WANDB_MODE=offline is set.

    Args:
        run: Folder of a training, running or finished.
        to: The tracker.
        out: Folder of the tracker's local files.
        name: Name of the run in the tracker; by default the folder's name.
        follow: Go on until the training is finished.
    """
    from gmail_align.training.trackers import publish

    label = name or os.path.basename(os.path.realpath(run))
    if shared.dry_run:
        shared.show_plan("track", out, run=run, to=to, name=label)
        return
    count = publish(run, to, out, name=label, follow=follow)
    shared.show({"events": count, "to": to, "name": label}, f"{count} events sent to {to}")


@command
def tabletop_write(
    shared: Shared,
    out: Folder,
    count: Annotated[int, Field(ge=1)] = 1000,
    split: Literal["train", "val", "test"] = "train",
    start: Annotated[int, Field(ge=0)] = 0,
    size: Annotated[int, Field(ge=16)] = 64,
    workers: Annotated[int, Field(ge=1)] = 1,
    questions: bool = False,
) -> None:
    """Draw scenes with captions (COCO's format) or with questions (ScienceQA's), for import.

    Captions come with conversations in LLaVA's format and open questions in MMMU's.

    Args:
        out: Folder; it may hold other splits.
        count: Number of images.
        split: Name of the split.
        start: Seed of the first scene.
        size: Pixels along a side.
        workers: Number of processes.
        questions: Write one question for each image in place of captions.
    """
    if shared.dry_run:
        shared.show_plan("tabletop write", out, split=split, images=count)
        return
    from gmail_align.tabletop.world import write_coco, write_scienceqa, write_talks

    if questions:
        path = write_scienceqa(out, {split: count}, start, size, workers)
    else:
        path = write_coco(out, split, count, start, size, workers)
        write_talks(out, split, count, start)
    what = "questions" if questions else "captions"
    shared.show(
        {"annotations": str(path), "images": str(out / "images"), "count": count},
        f"{path}: {what} of {count} images in {out / 'images'}",
    )


@command
def tabletop_train(
    shared: Shared,
    out: Out,
    work: Folder = Path("runs/tabletop"),
    only: Literal["clip", "gpt2", "diffusion", "long_clip", "siglip", "llama", "flow"]
    | None = None,
    seed: Seed = 0,
) -> None:
    """Train the shipped models in the tabletop world from scratch: hours on a CPU.

    ``flow`` is a second generator, by flow matching; it is not shipped.

    Args:
        work: Folder of the corpus and the checkpoints, from which an interrupted training goes on.
        only: Train only this model.
    """
    if shared.dry_run:
        shared.show_plan(
            "tabletop train", out, work=str(work), only=only or "everything", seed=seed
        )
        return
    from gmail_align.tabletop.training.train import train_models

    records = train_models(work, out, seed=seed, only=only)
    shared.show(records, "\n".join(f"{out / name}" for name in records))
