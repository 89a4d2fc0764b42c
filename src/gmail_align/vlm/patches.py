"""What the encoder makes of the images of a training: computed at every step, or once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.data.images import ImageStore
from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.merge import merge
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError
from gmail_align.features.rows import RowFile, fill_rows
from gmail_align.progress import say
from gmail_align.training.distributed import ranks
from gmail_align.vlm.config import VisualTokens
from gmail_align.vlm.connector import Seen, read_tokens, reads_the_same
from gmail_align.vlm.packing import Sample
from gmail_align.vlm.sets import ConversationSet

_AT_ONCE = 32
_KEPT = "patches.bin"


class PatchReader:
    """Reads the patches of images, each set's by its own route.

    Args:
        sets: The sets of images.
        encoder: The encoder.
        samples: The samples whose images will be read.
        out: Folder where patches may be kept until the training is complete.
        design: What is read of an image.

    Raises:
        ConfigError: a route of the encoder differs from the frozen one in nothing that is read.
    """

    def __init__(
        self,
        sets: Sequence[ConversationSet],
        encoder: GmailEncoder,
        samples: Sequence[Sample],
        out: Path,
        design: VisualTokens = "patches",
    ) -> None:
        self.encoder, self.design, self.path = encoder, design, out / _KEPT
        self.preprocess = encoder.preprocess
        self.stores = [ImageStore(part.images) if part.images else None for part in sets]
        self.routes = [part.route for part in sets]
        self.towers: dict[Route, Backbone] = {
            route: merge(encoder, route) for route in dict.fromkeys(self.routes)
        }
        self._refuse_idle_routes()
        for tower in self.towers.values():
            tower.module.to(encoder.device)
        wanted = ((sample.source, name) for sample in samples for name in sample.image_ids)
        self.place = {image: row for row, image in enumerate(dict.fromkeys(wanted))}
        self.kept: np.ndarray[Any, np.dtype[np.float32]] | None = None
        self.half = False
        """Whether the encoder runs in bfloat16."""

    @property
    def tokens(self) -> int:
        """Tokens that are read of an image."""
        vision = self.encoder.backbone.vision_config
        extra = 1 if self.design == "pooled" else 0
        return int((vision.image_size // vision.patch_size) ** 2) + extra

    def read(self, samples: Sequence[Sample]) -> Seen:
        """Return what is read of the samples' images, in order."""
        images = [(sample.source, name) for sample in samples for name in sample.image_ids]
        routes = tuple(self.routes[source] for source, _ in images)
        if self.kept is None or not images:
            return Seen(self._compute(images), routes)
        rows = np.stack([self.kept[self.place[image]] for image in images])
        return Seen(torch.from_numpy(rows), routes)

    def keep_where_it_pays(self, chosen: bool | None, share: float) -> None:
        """Compute everything once, if that is chosen or saves at least a tenth of the work.

        Args:
            chosen: What the user says; None lets ``share`` decide.
            share: The vision tower's work, as a share of the language model's.
        """
        if not self.place:
            return
        work = f"the vision tower's work is {share:.0%} of the language model's"
        if not (share > 0.1 if chosen is None else chosen):
            say(f"{work}: images are read at every step")
            return
        width = self.encoder.width
        size = len(self.place) * 4 * self.tokens * width
        say(f"{work}: patches are computed once and kept, {size / 1e9:.1f} GB")
        images, target = (
            list(self.place),
            RowFile(self.path, len(self.place), 4 * self.tokens * width),
        )

        def make(rows: object) -> np.ndarray[Any, np.dtype[np.float32]]:
            assert isinstance(rows, range)
            return self._compute([images[row] for row in rows]).cpu().numpy()

        ranks().first_alone(
            lambda: fill_rows(
                target, _AT_ONCE, lambda rows: rows, make, label="patches", unit="images"
            )
        )
        shape = (len(images), self.tokens, width)
        self.kept = np.memmap(self.path, np.float32, "r", shape=shape)

    def remove_kept(self) -> None:
        """Remove what was kept."""
        self.kept = None
        self.path.unlink(missing_ok=True)

    def _compute(self, images: Sequence[tuple[int, str]]) -> Float[Tensor, "i t w"]:
        """Read images of one route together, at most 32."""
        device = self.encoder.device
        seen: list[Tensor] = [torch.zeros(0, self.tokens, self.encoder.width, device=device)]
        for route, group in groupby(images, lambda image: self.routes[image[0]]):
            own = list(group)
            for start in range(0, len(own), _AT_ONCE):
                pictures = [self._store(n).read(name) for n, name in own[start : start + _AT_ONCE]]
                pixels = self.preprocess(pictures).to(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=self.half):
                    seen.append(read_tokens(self.towers[route], pixels, self.design).float())
        return torch.cat(seen)

    def _store(self, source: int) -> ImageStore:
        store = self.stores[source]
        assert store is not None  # reading the conversations refuses that
        return store

    def _refuse_idle_routes(self) -> None:
        """Refuse an alignment that changes nothing of what LLaVA reads.

        Raises:
            ConfigError: see above.
        """
        if not self.encoder.applied or self.design == "residual":
            return
        plain = merge(self.encoder, Route.FROZEN)
        for route, tower in self.towers.items():
            if route is not Route.FROZEN and reads_the_same(plain, tower, self.design):
                raise ConfigError(
                    f"the route {route} of this encoder changes nothing that LLaVA reads with"
                    f" visual_tokens={self.design}: align the patches too, use visual_tokens=pooled"
                    " or dense, or read by the route frozen"
                )
