"""Long-CLIP: a CLIP whose text tower reads long captions (Zhang et al. 2024, ECCV).

Its position table is CLIP's, stretched; its loss aligns whole image features with long captions and
the images' principal components with short ones.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

COMPONENTS = 32
"""Principal components that stand for an image beside a short caption."""
_NO_VARIANCE = 1e-5
"""Share of the largest singular value below which there is none but rounding."""
SMOOTHING = 0.1
"""Label smoothing of the released training code."""


def principal_part(
    features: Float[Tensor, "b d"], components: int = COMPONENTS
) -> Float[Tensor, "b d"]:
    """Return what the batch's first principal components keep of normalised features (Sec. 3.2).

    The components are found in fp32 and taken as constants: gradients go through the projection
    only, for those of the components are infinite where two variances are equal (as the many zeros
    are in a batch that is smaller than the dimension). Directions without variance are left out:
    rounding decides which ones they are. The result is not normalised.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = normalize(features.float(), dim=-1)
        mean = unit.mean(dim=0)
        centred = unit - mean
        _, sizes, axes = torch.linalg.svd(centred.detach(), full_matrices=False)
        kept = axes[:components] * (sizes[:components, None] > _NO_VARIANCE * sizes[0])
        found: Tensor = centred @ kept.T @ kept + mean
        return found


def long_short_loss(
    images: Float[Tensor, "b d"],
    long_texts: Float[Tensor, "b d"],
    short_texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    *,
    components: int = COMPONENTS,
    smoothing: float = SMOOTHING,
    same: Bool[Tensor, "b b"] | None = None,
    same_long: Bool[Tensor, "b b"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Return Long-CLIP's loss: ``long``, ``short`` and ``total``, their sum (Sec. 3.2).

    Each is CLIP's symmetric contrastive loss with smoothed labels; short captions see the images'
    principal part only. Pairs that are masked have no part of the label either.

    Args:
        images: Image features; any norm.
        long_texts: Features of their long captions; any norm.
        short_texts: Features of short captions, such as the long ones' first sentences; any norm.
        scale: The inverse temperature.
        components: Principal components of the batch that short captions see.
        smoothing: Share of the label that is spread over the batch.
        same: Pairs (i, j) that share a short caption or an image, and are no negatives of each
            other in the short term.
        same_long: The same of long captions, in the long term.
    """
    whole = normalize(images.float(), dim=-1)
    terms = {
        "long": _symmetric(whole, long_texts, scale, smoothing, same_long),
        "short": _symmetric(
            principal_part(images, components), short_texts, scale, smoothing, same
        ),
    }
    return {**terms, "total": terms["long"] + terms["short"]}


def first_sentence(text: str) -> str:
    """Return a long caption's first sentence, which stands for its short caption."""
    return text.split(". ")[0]


def _symmetric(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    smoothing: float,
    same: Bool[Tensor, "b b"] | None,
) -> Float[Tensor, ""]:
    logits = scale * images @ normalize(texts.float(), dim=-1).T
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    kept = torch.ones_like(own) if same is None else ~same | own
    rows = _smoothed(logits, kept, smoothing)
    return (rows + _smoothed(logits.T, kept.T, smoothing)) / 2


def _smoothed(
    logits: Float[Tensor, "b b"], kept: Bool[Tensor, "b b"], smoothing: float
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy with the diagonal, smoothed over what is kept of each row."""
    shares = logits.masked_fill(~kept, -torch.inf).log_softmax(dim=-1)
    spread = shares.masked_fill(~kept, 0.0).sum(dim=-1) / kept.sum(dim=-1)
    return -((1 - smoothing) * shares.diagonal() + smoothing * spread).mean()
