"""The guard of a captioner's training: the loss of held-out captions, and CIDEr of predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from gmail_align.errors import DataError
from gmail_align.metrics.java import tokenize
from gmail_align.metrics.ngrams import cider

VALIDATION_BATCH = 256


def mean_token_loss(batches: Iterable[tuple[Tensor, int]]) -> float:
    """Return the mean loss of a token over (mean loss, number of tokens) of batches."""
    total, count = 0.0, 0
    for loss, tokens in batches:
        total += float(loss) * tokens
        count += tokens
    return total / count


class CiderGuard:
    """CIDEr-D of predicted captions against the validation captions of the same images.

    References are tokenised once. Document frequencies come from the images that are scored.

    Args:
        rows: (id of the image's feature, caption), as training takes them.
        most: Images that are scored, the first ones; all when None.

    Raises:
        DataError: fewer than two images, for which CIDEr is always 0.
        MissingExtraError: Java or pycocoevalcap is not installed.
    """

    def __init__(self, rows: Sequence[tuple[str, str]], most: int | None = None) -> None:
        references: dict[str, list[str]] = {}
        for name, text in rows:
            references.setdefault(name, []).append(text)
        self.ids = list(references)[:most]
        if len(self.ids) < 2:
            raise DataError("CIDEr needs two validation images or more: select by loss instead")
        tokens = tokenize({name: references[name] for name in self.ids})
        self.references = [tokens[name] for name in self.ids]

    def score(self, caption: Callable[[Sequence[str]], list[str]]) -> float:
        """Return CIDEr-D, on the tools' scale of 0..10, of what ``caption`` says of the images."""
        batches = (
            self.ids[start : start + VALIDATION_BATCH]
            for start in range(0, len(self.ids), VALIDATION_BATCH)
        )
        texts = [text for batch in batches for text in caption(batch)]
        tokens = tokenize({"": texts})[""]
        return float(cider(tokens, self.references).mean())


@torch.no_grad()
def evaluated(model: torch.nn.Module, measure: Callable[[], float]) -> float:
    """Measure a model without dropout and without gradient, and leave it as it was."""
    training = model.training
    model.eval()
    try:
        return measure()
    finally:
        model.train(training)
