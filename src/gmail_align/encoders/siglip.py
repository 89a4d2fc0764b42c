"""SigLIP's own loss of images and texts (Zhai et al. 2023, ICCV)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize


def sigmoid_text_loss(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    same: Bool[Tensor, "b b"] | None = None,
    *,
    positives: Literal["mask", "sum"] = "mask",
) -> Float[Tensor, ""]:
    """Return the sigmoid loss: every image and text of the batch is one yes-or-no question.

    ``-1/b sum_ij log sigmoid(z_ij (scale cos(x_i, t_j) + bias))`` with ``z_ij`` 1 for pairs and -1
    otherwise (Alg. 1); nothing is normalised over the batch.

    Args:
        images: Image features; any norm.
        texts: Text features, row by row; any norm.
        scale: ``exp(logit_scale)``.
        bias: ``logit_bias``.
        same: Pairs that share an image or a text.
        positives: ``mask``: no question is asked about those; ``sum``: their answer is yes too.
    """
    with torch.autocast(images.device.type, enabled=False):
        cosines = normalize(images.float(), dim=-1) @ normalize(texts.float(), dim=-1).T
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    yes = own | same if positives == "sum" and same is not None else own
    signs = 2.0 * yes - 1.0
    terms = logsigmoid(signs * (scale * cosines + bias))
    if same is not None and positives == "mask":
        terms = terms.masked_fill(same & ~own, 0.0)
    return -terms.sum(dim=-1).mean()
