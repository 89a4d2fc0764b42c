"""Logits in parts, and rows laid out as one for kernels that are told where samples begin."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AttentionMaskInterface

from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError
from gmail_align.vlm.config import LlavaConfig
from gmail_align.vlm.connector import Connector, Seen
from gmail_align.vlm.conversations import Conversation, Turn
from gmail_align.vlm.fitting import choose_attention
from gmail_align.vlm.loss import Objective, chunked_loss
from gmail_align.vlm.model import Llava
from gmail_align.vlm.packing import Sample, pack


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_logits_in_parts_have_the_value_and_the_gradient_of_the_whole(at_once: int) -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=False)
    states, ids = torch.randn(50, 6, requires_grad=True), torch.randint(0, 11, (50,))
    expected = cross_entropy(head(states), ids, reduction="sum")
    wanted = torch.autograd.grad(expected, [states, head.weight])
    found = chunked_loss(head, states, ids, at_once)
    given = torch.autograd.grad(found, [states, head.weight])
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(given, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_no_more_logits_than_allowed_are_in_memory() -> None:
    sizes: list[int] = []
    head = nn.Linear(6, 11, bias=False)
    head.register_forward_hook(lambda *values: sizes.append(len(values[2])))
    states = torch.randn(50, 6, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = chunked_loss(head, states, torch.zeros(50, dtype=torch.int64), 8)
    assert max(sizes) == 8
    assert not any(tensor.shape[-1:] == (11,) and tensor.ndim == 2 for tensor in kept)
    loss.backward()
    assert max(sizes) == 8


def knowing_where_samples_begin(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each sample, as flash-attention's kernel for unequal lengths does."""
    assert cu_seq_lens_q is not None and attention_mask is None and len(query) == 1
    assert int(cu_seq_lens_q.diff().max()) == max_length_q
    groups = query.shape[1] // key.shape[1]
    parts = []
    for start, stop in zip(cu_seq_lens_q[:-1].tolist(), cu_seq_lens_q[1:].tolist(), strict=True):
        own = [one[:, :, start:stop] for one in (query, key, value)]
        own[1:] = [one.repeat_interleave(groups, 1) for one in own[1:]]
        scores = (own[0] @ own[1].transpose(2, 3)) * scaling
        future = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
        parts.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ own[2])
    return torch.cat(parts, dim=2).transpose(1, 2), None


def test_rows_as_one_row_have_the_same_loss(llava: Llava) -> None:
    """A kernel that is told where samples begin computes what the mask of packed rows computes."""
    talks = (
        Conversation("a", (Turn("<image>\nWhat?", "a red ball"), Turn("More?", "no.")), ("x",)),
        Conversation("b", (Turn("Say a word", "cone"),)),
        Conversation("c", (Turn("<image>", "two cubes"),), ("y",)),
    )
    a, b, c = (Sample.make(talk, llava.layout, 400) for talk in talks)
    rows = pack([[a, b], [c]])
    seen = Seen(torch.randn(2, 16, 32), (Route.FROZEN,) * 2)
    AttentionInterface.register("told", knowing_where_samples_begin)
    AttentionMaskInterface.register("told", lambda *_, **__: None)
    with torch.no_grad():
        expected = Objective(llava.model, Connector())(rows, seen)
        llava.model.set_attn_implementation({"text_config": "told"})
        found = Objective(llava.model, Connector(), varlen=True)(rows, seen)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_flash_attention_is_refused_where_it_cannot_run() -> None:
    cpu = torch.device("cpu")
    assert choose_attention(LlavaConfig(), cpu) == "sdpa"
    with pytest.raises(ConfigError, match="flash_attention_2"):
        choose_attention(LlavaConfig(attention="flash_attention_2"), cpu)
