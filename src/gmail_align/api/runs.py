"""Whole runs: a recipe from data to report, what it will cost, and the tables of the paper."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal


def run(
    recipe: str | os.PathLike[str],
    work: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    engine: str = "local",
) -> dict[str, Any]:
    """Run a recipe and return its result, with the path of the report under ``report``.

    Args:
        recipe: The name of a shipped recipe, or a TOML file.
        work: Work folder. Recipes that share it share every artifact that is the same.
        settings: Keys of the recipe to change, dotted (``{"align.gmail.optim.steps": 50}``).
        engine: ``local``, or ``ray`` inside a Ray job.

    Raises:
        UserError: a key, a model or an input cannot be used.

    Example:
        >>> from gmail_align.pipeline import index
        >>> "generated_gmail" in index("demo")
        True
    """
    from gmail_align import pipeline

    return pipeline.run(os.fspath(recipe), Path(work), _overrides(settings), engine=engine)


def plan(
    recipe: str | os.PathLike[str],
    work: str | os.PathLike[str] = "work",
    *,
    settings: Mapping[str, Any] | None = None,
    card: str = "h200",
) -> dict[str, Any]:
    """Say what a recipe will make, what is missing to run it, and what it costs. Nothing runs.

    Args:
        recipe: The name of a shipped recipe, or a TOML file.
        work: Work folder; what it holds already costs nothing.
        settings: Keys of the recipe to change, dotted.
        card: A card's name, or its half-precision TFLOP/s.

    Raises:
        UserError: a key cannot be used, or the card is not known.

    Example:
        >>> plan("demo")["recipe"]
        'demo'
    """
    from gmail_align import pipeline

    return pipeline.plan(os.fspath(recipe), Path(work), _overrides(settings), card=card)


def study(
    name: str | os.PathLike[str],
    work: str | os.PathLike[str],
    *,
    scale: Literal["tabletop", "paper"] = "tabletop",
    seeds: int | None = None,
    jobs: int | None = None,
    engine: str = "local",
    data: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Run a study, and return its table with the path of its page under ``page``.

    ``rows`` holds ours and the paper's numbers, ``claims`` a verdict for each claim.

    Args:
        name: The name of a shipped study, or a TOML file.
        work: Work folder, which all studies share.
        scale: The shipped small world, or the paper's data and models.
        seeds: Seeds of every training; by default those of the scale's recipe.
        jobs: Rows trained at a time; by default one for each GPU or core.
        engine: ``local``, or ``ray`` inside a Ray job.
        data: Folder of the data, for a study of real data.

    Raises:
        UserError: a key, a model or an input cannot be used.

    Example:
        >>> from gmail_align.studies.language import study_names
        >>> "table-9" in study_names()
        True
    """
    from gmail_align.studies.book import run_one
    from gmail_align.studies.run import StudyOptions

    folder = None if data is None else Path(data)
    options = StudyOptions(scale, seeds, jobs, engine, Path(work), None, folder)
    return run_one(os.fspath(name), options)


def _overrides(settings: Mapping[str, Any] | None) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()]
