"""The exact gradient of a large contrastive batch, a few images at a time (GradCache).

Gao et al. 2021: embed everything without a graph, differentiate the loss by the features, then
embed again part by part and carry each part's feature gradient into the parameters. One more
forward pass buys batches of any size; the gradient is that of the whole batch up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.pairset import Batch
from gmail_align.alignment.terms import Embedded, embed_batch, gathered, terms_of
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.training.loop import PiecewiseLoss


def piecewise_terms(
    encoder: GmailEncoder, batch: Batch, config: AlignConfig, log_scale: Tensor | None = None
) -> PiecewiseLoss:
    """Return what :func:`loss_terms` returns, with its gradient in parts of ``micro_batch`` pairs.

    Args:
        encoder: The encoder.
        batch: The batch, on the encoder's device.
        config: Weights and switches; ``micro_batch`` is set.
        log_scale: The learned ``ln(1 / temperature)``; the fixed temperature when None.
    """
    size = config.micro_batch or len(batch.generated)
    starts = range(0, len(batch.generated), size)

    def embed(start: int) -> list[Tensor]:
        found = embed_batch(encoder, batch, config, slice(start, start + size))
        return [part for part in vars(found).values() if part is not None]

    with torch.no_grad():
        parts = [embed(start) for start in starts]
    leaves = [torch.cat(column).requires_grad_() for column in zip(*parts, strict=True)]
    del parts
    terms = terms_of(gathered(_named(leaves, batch, config)), batch, encoder, config, log_scale)
    learned = [log_scale] if log_scale is not None else []
    slopes = torch.autograd.grad(terms["total"], [*leaves, *learned], allow_unused=True)

    def pieces() -> Iterator[Tensor]:
        if log_scale is not None and slopes[-1] is not None:
            yield log_scale * slopes[-1]
        for start in starts:
            yield torch.stack(
                [
                    (features * slope[start : start + size]).sum()
                    for features, slope in zip(embed(start), slopes, strict=False)
                    if slope is not None
                ]
            ).sum()

    return PiecewiseLoss({name: term.detach() for name, term in terms.items()}, pieces())


def _named(columns: list[Tensor], batch: Batch, config: AlignConfig) -> Embedded:
    """Give the columns their names again, in the order in which they were taken apart."""
    there = {
        "generated": True,
        "real": config.weights.needs_real,
        "patches": config.weights.patch > 0,
        "texts": batch.tokens is not None,
        "short": batch.short_tokens is not None,
    }
    return Embedded(**dict(zip((name for name in there if there[name]), columns, strict=True)))
