"""Captions with the features of their images, as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmail_align.captioning.inputs import CaptionedImages
from gmail_align.captioning.prompt import CaptionBatch, Prompt
from gmail_align.captioning.provenance import require_finite
from gmail_align.captioning.tokens import TokenTable, tokenise
from gmail_align.data.joins import match_captions
from gmail_align.data.mapped import blocks, distinct, map_spool, spool
from gmail_align.encoders.language import LanguageModel
from gmail_align.errors import DataError
from gmail_align.features.store import Features, open_features


def read_captioned(images: CaptionedImages) -> tuple[Features, Iterator[tuple[str, str]]]:
    """Open features, and match every caption with the id of its image.

    Raises:
        DataError: no caption belongs to any of the images.
    """
    features = open_features(images.features)
    return features, match_captions(features.ids, images.captions)


@dataclass(frozen=True)
class CaptionSet:
    """Captions, tokenised once, and the feature that each belongs to."""

    arrays: tuple[Float[Tensor, "_ d"], ...]
    """The features of each set of images, memory-mapped where the store has them."""
    rows: Int[Tensor, " m"]
    """The feature's row of each caption, counted through all sets."""
    tokens: TokenTable
    """The captions."""

    @classmethod
    def read(
        cls,
        sets: Sequence[CaptionedImages],
        language: LanguageModel,
        max_tokens: int,
        *,
        end: bool = True,
    ) -> CaptionSet:
        """Match captions with features, and tokenise them.

        Raises:
            DataError: no caption belongs to an image, a caption does not hold any text, or sets
                differ in width.
        """
        arrays: list[Tensor] = []
        with spool() as rows:

            def texts() -> Iterator[str]:
                for images in sets:
                    features, matched = read_captioned(images)
                    first = sum(len(array) for array in arrays)
                    arrays.append(features.array)
                    for block in blocks(matched):
                        own = features.rows([name for name, _ in block]).numpy()
                        rows.write((first + own).data)
                        yield from (text for _, text in block)

            tokens = tokenise(texts(), language.tokenizer, max_tokens, end=end)
            places = torch.from_numpy(map_spool(rows, np.int64))
        widths = sorted({array.shape[1] for array in arrays})
        if len(widths) > 1:
            raise DataError(
                f"features of {' and '.join(map(str, widths))} dimensions cannot be mixed: extract"
                " all of them with one encoder"
            )
        return cls(tuple(arrays), places, tokens)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """Width of the features."""
        return int(self.arrays[0].shape[1])

    def mean_norm(self) -> float:
        """Return the mean length of the features that captions belong to, each counted once."""
        rows = self.images()
        total = sum(
            float(self.features(part).norm(dim=-1).double().sum()) for part in rows.split(65_536)
        )
        return total / len(rows)

    def images(self) -> Int[Tensor, " n"]:
        """Return the rows of the features that captions belong to, each once."""
        return torch.from_numpy(distinct(self.rows.numpy()))

    def features(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Return features by row, in float32."""
        if len(self.arrays) == 1:
            return self.arrays[0][rows].float()
        taken = torch.empty(len(rows), self.width)
        first = 0
        for array in self.arrays:
            inside = (rows >= first) & (rows < first + len(array))
            taken[inside] = array[rows[inside] - first].float()
            first += len(array)
        return taken

    def batch(
        self, captions: Int[Tensor, " b"], prompt: Callable[[Float[Tensor, "b d"]], Prompt]
    ) -> CaptionBatch:
        """Return captions by row, behind the prompts that ``prompt`` makes of their features."""
        prompts = prompt(require_finite(self.features(self.rows[captions])))
        return self.tokens.behind(prompts, captions)
