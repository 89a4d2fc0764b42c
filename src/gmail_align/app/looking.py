"""What a finished run says of one new image: captions of every row, routes and neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from gmail_align.captioning.captioner import load_captioner
from gmail_align.captioning.predict import caption_batch
from gmail_align.data.images import ImageStore
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, DataError
from gmail_align.features.store import Features, open_features
from gmail_align.pipeline import read_run
from gmail_align.runtime import resolve_device
from gmail_align.workflow.rows import JudgedEncoder
from gmail_align.workflow.steps.encoders import Gap, ImageFeatures, open_encoder
from gmail_align.workflow.steps.learners import Predictions
from gmail_align.workflow.work import Work

NEIGHBOURS: Final = 6
_DREW: Final = "drew"  # every captioner draws with the seed of this name, so that captions repeat


@dataclass(frozen=True)
class Side:
    """Images of one kind with their features."""

    features: Features
    images: ImageStore

    def nearest(self, query: Float[Tensor, " d"]) -> list[dict[str, Any]]:
        """Return the images whose features have the highest cosine to ``query``."""
        cosines = normalize(self.features.array.float(), dim=1) @ normalize(query, dim=0)
        best = cosines.topk(min(NEIGHBOURS, len(cosines)))
        return [
            {"id": self.features.ids[row], "cosine": round(value, 4)}
            for value, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


class FinishedRun:
    """A finished run that is asked about images.

    Args:
        folder: Work folder of the run.

    Raises:
        ArtifactError: the folder does not hold a finished run.
    """

    def __init__(self, folder: Path) -> None:
        recipe, self._steps = read_run(folder)
        self.title = recipe.title
        self._work = Work(folder)
        self._sides = dict(self._open_sides())

    def image(self, kind: str, name: str) -> bytes:
        """Return the encoded file of one of the run's images.

        Raises:
            DataError: the run does not show such an image.
        """
        for (_, own), side in self._sides.items():
            if own == kind and name in side.images:
                return side.images.read_bytes(name)
        raise DataError(f"this run does not show a {kind} image {name!r}")

    def look(self, image: Image.Image) -> dict[str, Any]:
        """Return captions, routes and neighbours of an image, as JSON values."""
        return {"captions": list(self._captions(image)), "routes": list(self._routes(image))}

    def _captions(self, image: Image.Image) -> Iterator[dict[str, str]]:
        """Caption the image with every row's captioner of the first seed."""
        for seeds in self._steps.rows.values():
            row, output = seeds[0].row, seeds[0].output
            if isinstance(output, Predictions) and isinstance(output.features, ImageFeatures):
                encoder = open_encoder(self._work, output.features.encoder)
                features = _embed(encoder, image, Route(output.features.route))
                device = resolve_device(output.settings.device)
                captioner = load_captioner(self._work.get(output.captioner), device)
                (caption,) = caption_batch(
                    captioner, [_DREW], features[None], None, output.settings
                )
                yield {"row": row.title, "mark": row.mark, "text": caption.text}

    def _routes(self, image: Image.Image) -> Iterator[dict[str, Any]]:
        """Embed the image by every route of every encoder, and find its neighbours."""
        for name, judged in self._judged().items():
            encoder = open_encoder(self._work, judged.encoder)
            frozen = _embed(encoder, image, Route.FROZEN)
            for route in Route if encoder.applied else (Route.FROZEN,):
                query = _embed(encoder, image, route)
                yield {
                    "encoder": name,
                    "route": route.value,
                    "cosine": round(float(torch.cosine_similarity(query, frozen, dim=0)), 4),
                    **{
                        kind: self._sides[name, kind].nearest(query)
                        for kind in ("real", "generated")
                    },
                }

    def _judged(self) -> Mapping[str, JudgedEncoder]:
        """Return the encoders whose gap was measured, by name."""
        aligned = [rows[0].judged for rows in self._steps.rows.values() if rows[0].judged]
        every = [*self._steps.frozen[:1], *aligned]
        return {one.name: one for one in every if isinstance(one.gap, Gap)}

    def _open_sides(self) -> Iterator[tuple[tuple[str, str], Side]]:
        judged = self._judged()
        if not judged:
            raise ArtifactError(
                "this run did not measure a gap, so it has no images to compare with: set "
                "evaluate.gap = true and run it again"
            )
        for name, one in judged.items():
            assert isinstance(one.gap, Gap)
            for kind, step in (("real", one.gap.real), ("generated", one.gap.generated)):
                assert isinstance(step, ImageFeatures)
                images = ImageStore(self._work.get(step.images))
                yield (name, kind), Side(open_features(self._work.get(step)), images)


@torch.no_grad()
def _embed(encoder: GmailEncoder, image: Image.Image, route: Route) -> Float[Tensor, " d"]:
    pixels = encoder.preprocess([image]).to(encoder.device)
    return encoder.embed_pixels(pixels, route).float().cpu()[0]
