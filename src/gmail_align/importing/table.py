"""The importers: one line each. A new importer is a function in a file and a line here."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gmail_align.errors import ConfigError

if TYPE_CHECKING:
    from gmail_align.importing.source import Source


@dataclass(frozen=True)
class Importer:
    """One importer.

    Attributes:
        target: ``module:function`` below ``gmail_align.importing.formats``.
        help: One line for ``gmail-align import --help``.
    """

    target: str
    help: str

    def load(self) -> Callable[..., Source]:
        """Import the function. Its annotated parameters are the importer's options."""
        module, _, name = self.target.partition(":")
        home = importlib.import_module(f"gmail_align.importing.formats.{module}")
        function: Callable[..., Source] = getattr(home, name)
        return function


IMPORTERS: Final[dict[str, Importer]] = {
    "coco": Importer("coco:coco", "COCO-style caption annotations and their images."),
    "karpathy": Importer("captioned:karpathy", "Karpathy's splits of COCO and Flickr."),
    "flickr30k": Importer("captioned:flickr30k", "Flickr30k's token file, with all its images."),
    "cc": Importer("captioned:cc", "CC3M or CC12M: the TSV, or img2dataset's shards."),
    "sharegpt4v": Importer("captioned:sharegpt4v", "ShareGPT4V's long captions."),
    "urban1k": Importer("image_folders:urban1k", "Urban-1k, or images with captions beside."),
    "folder": Importer("classes:folder", "Folders of images named by their class."),
    "cifake": Importer("classes:cifake", "The real or the generated images of CIFAKE."),
    "classification": Importer(
        "classes:classification", "DTD, Cars, SUN397, Food-101, ... ImageNet."
    ),
    "webdataset": Importer("shards:webdataset", "WebDataset shards of any origin."),
    "parquet": Importer("tables:parquet", "Parquet, JSON, JSON lines, CSV or TSV by columns."),
    "csv": Importer("tables:parquet", "CSV or TSV by columns, and the images that rows name."),
    "jsonl": Importer("tables:parquet", "JSON lines by fields, and the images that lines name."),
    "imagefolder": Importer("image_folders:urban1k", "A folder of images and their metadata file."),
    "scienceqa": Importer("questions:scienceqa", "ScienceQA's questions and images."),
    "mmmu": Importer("questions:mmmu", "MMMU's questions and images."),
}
"""Name of the importer -> its function and its help."""


def find_importer(name: str) -> Importer:
    """Return the importer of that name.

    Raises:
        ConfigError: there is none; the nearest name is offered.
    """
    if name in IMPORTERS:
        return IMPORTERS[name]
    close = difflib.get_close_matches(name, IMPORTERS, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(IMPORTERS)}"
    raise ConfigError(f"there is no importer {name!r}; {hint}")
