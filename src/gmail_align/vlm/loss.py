"""The loss of packed rows: logits where something is learnt, and nowhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from gmail_align.vlm.packing import PackedRows


def labelled_loss(
    model: LlavaForConditionalGeneration,
    rows: PackedRows,
    images: Float[Tensor, "i p w"] | None,
) -> Float[Tensor, ""]:
    """Return the summed cross-entropy of the learnt tokens, in nats.

    Divide it by the learnt tokens of the whole global batch, and not of a part of it: then every
    token weighs the same however the batch is cut.

    Args:
        model: The model; its projector reads ``images``.
        rows: Packed samples.
        images: Patches, in the order of the images' places; None without images.
    """
    device = model.device
    learnt = rows.learnt.to(device)
    nowhere = torch.zeros(len(learnt), 1, dtype=torch.bool, device=device)
    predicting = torch.cat([learnt[:, 1:], nowhere], dim=1)  # a state predicts the next token
    outputs = None
    if images is not None:
        projected = model.model.multi_modal_projector(images.to(device))
        outputs = {"image": BaseModelOutputWithPooling(pooler_output=list(projected))}
    logits = model(
        input_ids=rows.ids.to(device),
        position_ids=rows.positions.to(device),
        mm_encoder_outputs=outputs,
        logits_to_keep=predicting,
        use_cache=False,  # with a cache, packed samples would see each other
    ).logits
    return F.cross_entropy(logits.float(), rows.ids.to(device)[learnt], reduction="sum")
