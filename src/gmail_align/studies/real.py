"""Studies that are functions: of real data in files of their own kind, or of a chain of stages.

``gmail-align study NAME --data DIR`` calls the function that :data:`DATA_STUDIES` names. It takes
the folder and the options, and returns a result like that of any other study; tables, page and
verdicts are written from it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Final

from gmail_align.errors import ConfigError
from gmail_align.studies.result import StudyResult
from gmail_align.studies.run import StudyOptions


@dataclass(frozen=True)
class DataStudy:
    """A study that is a function.

    Attributes:
        title: What it measures.
        target: ``module:function`` below ``gmail_align.studies``; the function is
            ``(data: Path, options: StudyOptions) -> StudyResult``.
        needs_data: Whether it reads a folder of data.
    """

    title: str
    target: str
    needs_data: bool = True


DATA_STUDIES: Final = {
    "cifake": DataStudy("What generated images are worth on real photos", "cifake:cifake"),
    "cifake-clip": DataStudy(
        "What generated images are worth to a CLIP from scratch", "cifake_clip:cifake_clip"
    ),
    "flickr8k": DataStudy("What images of a weak generator are worth", "flickr8k:flickr8k"),
    "collapse": DataStudy("Escaping collapse", "collapse:collapse", needs_data=False),
}
"""Name -> study."""


def run_data_study(name: str, options: StudyOptions) -> StudyResult:
    """Run a study that is a function.

    Raises:
        ConfigError: the folder of the data is not given, does not exist, or is not read.
        UserError: the data cannot be used.
    """
    study = DATA_STUDIES[name]
    if not study.needs_data:
        if options.data is not None:
            raise ConfigError(f"study {name} does not read a folder of data: leave out --data")
    elif options.data is None or not options.data.is_dir():
        given = "is missing" if options.data is None else f"{options.data} does not exist"
        raise ConfigError(f"study {name}: the folder of the data {given}: give --data DIR")
    module, _, function = study.target.partition(":")
    run = getattr(importlib.import_module(f"gmail_align.studies.{module}"), function)
    result: StudyResult = run(options.data, options)
    return result
