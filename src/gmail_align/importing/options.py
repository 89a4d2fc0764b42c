"""How any source is written: the options that all importers share. It loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How any source is written; every importer takes these options."""

    convert: Annotated[
        bool | None,
        Field(
            description="Convert CMYK, 16-bit, animated and misnamed images instead of leaving "
            "them out. Evaluation sets convert by default, other sets do not."
        ),
    ] = None
    limit_quarantine: Annotated[
        float, Field(ge=0, le=1, description="Largest share that may be left out as unusable.")
    ] = 0.01
    protocol: Annotated[
        str | None, Field(description="Keep what this evaluation uses, and check its counts.")
    ] = None
    subset: Annotated[
        bool,
        Field(description="Allow less than the protocol defines; the result's name records this."),
    ] = False
    shard_size: Annotated[int, Field(ge=1, description="Images in one tar shard.")] = 1000
