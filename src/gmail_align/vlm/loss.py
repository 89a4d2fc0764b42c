"""The loss of packed rows: logits where something is learnt, and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from gmail_align.vlm.connector import Connector, Seen
from gmail_align.vlm.costs import LOGITS_AT_ONCE
from gmail_align.vlm.packing import PackedRows


class Objective(nn.Module):
    """LLaVA and its loss in one forward pass, as FSDP2 needs it.

    Args:
        model: The model.
        connector: What stands before its projector.
        varlen: Lay all rows out as one and name where samples begin, as flash-attention wants it.
    """

    def __init__(
        self, model: LlavaForConditionalGeneration, connector: Connector, *, varlen: bool = False
    ) -> None:
        super().__init__()
        self.model, self.connector, self.varlen = model, connector, varlen

    def forward(
        self, rows: PackedRows, seen: Seen, at_once: int = LOGITS_AT_ONCE
    ) -> Float[Tensor, ""]:
        """Return the summed cross-entropy of the learnt tokens, in nats.

        Divide it by the learnt tokens of the whole global batch, and not of a part of it: then
        every token weighs the same however the batch is cut.

        Args:
            rows: Packed samples.
            seen: What the encoder makes of their images, in the order of the images' places.
            at_once: Tokens whose logits are in memory together; the value is the same.
        """
        device, given = self.model.device, {}
        ids, positions, learnt = (one.to(device) for one in rows[:3])
        if self.varlen:
            ids, positions, learnt = (one.reshape(1, -1) for one in (ids, positions, learnt))
            given = _sample_bounds(positions)
        moved = Seen(seen.tokens.to(device), seen.routes)
        images = self.connector(self.model.model.multi_modal_projector, moved)
        if len(images):
            encoded = BaseModelOutputWithPooling(pooler_output=list(images))
            given["mm_encoder_outputs"] = {"image": encoded}
        states = self.model.model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,  # with a cache, packed samples would see each other
            **given,
        ).last_hidden_state
        predicting = F.pad(learnt[:, 1:], (0, 1))  # a state predicts the next token
        loss = chunked_loss(self.model.lm_head, states[predicting], ids[learnt], at_once)
        # Without an image the projector's gradient is zero, in every process alike.
        return loss if len(images) else loss + images.sum()


def chunked_loss(
    head: nn.Module, states: Float[Tensor, "n w"], ids: Int[Tensor, " n"], at_once: int
) -> Float[Tensor, ""]:
    """Return the summed cross-entropy, with the logits of ``at_once`` tokens in memory.

    Where there are more, the logits are computed again for the gradient.
    """

    def part(states: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), ids, reduction="sum")

    if len(states) <= at_once:
        return part(states, ids)
    parts = zip(states.split(at_once), ids.split(at_once), strict=True)
    losses: list[Tensor] = [checkpoint(part, *one, use_reentrant=False) for one in parts]
    return torch.stack(losses).sum()


def _sample_bounds(positions: Int[Tensor, "1 t"]) -> dict[str, Any]:
    """Return where samples begin in a single row, as flash-attention's kernels are told."""
    starts: Bool[Tensor, " t"] = positions[0] == 0
    bounds = F.pad(starts.nonzero()[:, 0], (0, 1), value=positions.shape[1]).int()
    longest = int(bounds.diff().max())
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
