"""Configuration of the gap measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gmail_align.config import Config
from gmail_align.errors import ConfigError


class GapConfig(Config):
    """How much is looked at, and how often it is resampled."""

    max_pairs: int = Field(default=5_000, ge=2)
    """Pairs (or images of each set) measured, drawn by the seed; recall and Frechet distance change
    with this number, so compare results of equal n."""
    resamples: int = Field(default=1_000, ge=1)
    """Bootstrap resamples behind the 95% intervals."""
    least_in_group: int = Field(default=20, ge=4)
    """Images that a class or a generator needs on each side to be measured by itself."""
    max_groups: int = Field(default=50, ge=0)
    """Largest number of classes, and of generators, that are measured by themselves; the first by
    name."""


@dataclass(frozen=True)
class RowLabels:
    """What is known of the rows of plain files.

    Attributes:
        real_classes: The class of each real row, one on each line.
        generated_classes: The class of each generated row, one on each line.
        generators: The generator of each generated row, one on each line.
        text_features: Features of texts: one for each pair, or for each class in the order of their
            names.
    """

    real_classes: Annotated[Path | None, "FILE"] = None
    generated_classes: Annotated[Path | None, "FILE"] = None
    generators: Annotated[Path | None, "FILE"] = None
    text_features: Annotated[Path | None, "T.npy"] = None


def require_parquet(file: Path) -> None:
    """Refuse a name by which viewers of maps would not know the format.

    Raises:
        ConfigError: see above.
    """
    if file.suffix != ".parquet":
        raise ConfigError(f"the atlas {file} is a Parquet table: let its name end in .parquet")
