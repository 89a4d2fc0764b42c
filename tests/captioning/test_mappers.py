from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gmail_align.captioning.clipcap.config import MapperShape
from gmail_align.captioning.clipcap.mappers import Attention, TransformerMapper, build_mapper
from gmail_align.captioning.ifcap.model import Fusion, inject_noise


def plain_attention(layer: Attention, states: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Attention written out, one head after the other."""
    size = states.shape[-1] // layer.heads
    queries = layer.to_queries(states)
    keys_values = layer.to_keys_values(others)
    keys, values = keys_values[..., : states.shape[-1]], keys_values[..., states.shape[-1] :]
    heads = []
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(size)
        heads.append(scores.softmax(-1) @ values[..., part])
    return layer.project(torch.cat(heads, dim=-1))


def test_the_mapper_is_the_published_one_written_out() -> None:
    torch.manual_seed(0)
    mapper = TransformerMapper(6, 16, 3, clip_length=2, layers=2, heads=4)
    features = torch.randn(5, 6)
    states = torch.cat(
        [mapper.linear(features).reshape(5, 2, 16), mapper.prefix_const.repeat(5, 1, 1)], dim=1
    )
    for layer in mapper.transformer.layers:
        normed = layer.norm1(states)
        states = states + plain_attention(layer.attn, normed, normed)
        inner = torch.relu(layer.mlp.fc1(layer.norm2(states)))
        states = states + layer.mlp.fc2(inner)
    assert torch.allclose(mapper(features), states[:, 2:], atol=1e-5)


@pytest.mark.parametrize(("length", "millions"), [(10, 41.7), (40, 53.6)])
def test_the_published_transformer_has_the_published_size(length: int, millions: float) -> None:
    with torch.device("meta"):
        shape = MapperShape("transformer", length, length)
        mapper = build_mapper(shape, 512, 768)
    count = sum(p.numel() for p in mapper.parameters())
    assert round(count / 1e6, 1) == millions


def test_fusion_looks_at_retrieved_captions_in_any_order() -> None:
    torch.manual_seed(0)
    fusion = Fusion(6, 16, prefix_length=3, layers=1, heads=4).eval()
    features, retrieved = torch.randn(4, 6), torch.randn(4, 5, 6)
    with torch.no_grad():
        soft = fusion(features, retrieved)
        assert soft.shape == (4, 3, 16)
        assert torch.allclose(fusion(features, retrieved.flip(1)), soft, atol=1e-5)
        other = retrieved.clone()
        other[0] += 1
        changed = (fusion(features, other) - soft).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [True, False, False, False]


def test_the_cross_attention_of_fusion_is_attention_to_what_was_retrieved() -> None:
    torch.manual_seed(0)
    fusion = Fusion(6, 16, prefix_length=3, layers=1, heads=4).eval()
    fusion.transformer = nn.Identity()
    features, retrieved = torch.randn(4, 6), torch.randn(4, 5, 6)
    spread = fusion.linear(features).reshape(4, 3, 16)
    layer, seen = fusion.cross, fusion.retrieved(retrieved)
    states = spread + plain_attention(layer.attn, layer.norm1(spread), seen)
    states = states + layer.mlp(layer.norm2(states))
    assert torch.allclose(fusion.cross(spread, seen), states, atol=1e-5)
    assert torch.equal(fusion(features, retrieved), fusion.prefix_const.expand(4, -1, -1))


def test_noise_has_the_variance_that_was_asked_for_and_unit_length() -> None:
    torch.manual_seed(0)
    features, noise = 9 * torch.randn(2000, 32), torch.randn(2000, 32)
    moved = inject_noise(features, 0.016, noise)
    assert torch.allclose(moved.norm(dim=-1), torch.ones(2000))
    unit = features / features.norm(dim=-1, keepdim=True)
    cosine = float((moved * unit).sum(-1).mean())
    assert cosine == pytest.approx(1 / math.sqrt(1 + 32 * 0.016), abs=0.01)
    assert torch.allclose(inject_noise(features, 0.0, noise), unit, atol=1e-6)
