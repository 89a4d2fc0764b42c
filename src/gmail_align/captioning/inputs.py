"""What captioners are trained on: features with the captions that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gmail_align.artifacts import Artifact, load

Folder = Annotated[Path, "DIR"]


@dataclass(frozen=True)
class CaptionedImages:
    """Image features, and captions of the same images."""

    features: Artifact
    """Features of real images, or of images generated from the captions."""
    captions: Artifact
    """An artifact of kind ``captions`` or ``pairs``."""
    retrieval: Artifact | None = None
    """Features of the images by the encoder that an IFCap looks captions up with, if another."""


@dataclass(frozen=True)
class EmbeddedCaptions:
    """Captions and their text features."""

    captions: Artifact
    """An artifact of kind ``captions`` or ``pairs``."""
    features: Artifact
    """Their text features, by the encoder whose images the captioner will read."""
    retrieval: Artifact | None = None
    """Their text features by the encoder that looks captions up, if another."""


@dataclass(frozen=True)
class CaptionerData:
    """What a captioner is trained on. ClipCap needs ``images``, IFCap needs ``texts``."""

    images: tuple[CaptionedImages, ...] = ()
    """Images with captions; several sets are trained on together."""
    texts: EmbeddedCaptions | None = None
    """Captions without images."""
    validation: CaptionedImages | None = None
    """Held-out images, on which the best step is picked, step 0 included."""

    def artifacts(self) -> dict[str, Artifact]:
        """Return every artifact by its role, as a manifest lists inputs."""
        names = ["train", *(f"train{number}" for number in range(2, len(self.images) + 1))]
        sets: dict[str, CaptionedImages | EmbeddedCaptions | None] = {
            **dict(zip(names, self.images, strict=False)),
            "texts": self.texts,
            "validation": self.validation,
        }
        return {
            f"{name}_{role}": artifact
            for name, part in sets.items()
            if part is not None
            for role, artifact in vars(part).items()
            if artifact is not None
        }


def load_features(folder: Path | None) -> Artifact | None:
    """Open the features of a folder, if there is one."""
    return None if folder is None else load(folder, "features")
