"""What an importer takes and returns: places of images, and the source that it lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from gmail_align.importing.archives import open_several
from gmail_align.importing.members import Members
from gmail_align.importing.staging import Staging

TEMPLATE: Final = "a photo of a {}."
"""Caption of an image that has a class and nothing else."""

Images = Annotated[
    Sequence[Path],
    Field(
        description="Folder, zip or tar of the images, read in place; may be repeated. Without "
        "it, captions alone are imported."
    ),
]
Places = Annotated[
    Sequence[Path],
    Field(description="Folder, zip or tar, read in place; may be repeated.", min_length=1),
]
Template = Annotated[
    str, Field(description="Caption of an image of a class; {} stands for the class.")
]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an importer lists.

    Attributes:
        config: What the user asked for; part of every manifest.
        inputs: Hashes of the files that say what there is; part of every manifest.
        staging: The images, captions, questions and faults.
        members: Where the images are; None for captions alone.
        names: Classes of the images, key -> name; None where images have none.
        templates: Prompts of the classes.
        record: What every image's record says besides, such as its generator.
        convert: Whether images are converted where the options do not say.
        protocol: The protocol whose counts are checked where the options name none.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    staging: Staging
    members: Members | None = None
    names: Mapping[str, str] | None = None
    templates: Sequence[str] = ()
    record: Mapping[str, str] = field(default_factory=dict)
    convert: bool = False
    protocol: str | None = None


def image_places(images: Sequence[Path]) -> Members | None:
    """Open the places of ``--images``; None without any."""
    return open_several(images) if images else None


def whole_source(staging: Staging, members: Members, config: Mapping[str, Any]) -> Source:
    """Make a source of a folder or archive that holds everything, and no list of it."""
    inputs = {"listed": staging.fingerprint()}
    return Source(config=config, inputs=inputs, staging=staging, members=members)
