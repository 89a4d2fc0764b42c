from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gmail_align.captioning.clipcap.mappers import mlp_mapper
from gmail_align.captioning.clipcap.model import ClipCap, Scaling
from gmail_align.captioning.prompt import mean_log_prob, token_losses
from gmail_align.errors import DataError

IDS = torch.tensor([[5, 9, 21, 0], [7, 0, 0, 0], [8, 30, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
FEATURES = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))


def loss_of(model: ClipCap, features=FEATURES, ids=IDS, mask=MASK) -> torch.Tensor:
    return token_losses(model.language_model, model.prompt(features), ids, mask).mean()


def reference_losses(model: ClipCap) -> torch.Tensor:
    """Each caption's loss by transformers' own labels and attention mask, one caption at a time."""
    losses = []
    for feature, ids, mask in zip(FEATURES, IDS, MASK, strict=True):
        unit = feature / feature.norm()
        first, last = model.mapper[0], model.mapper[2]
        hidden = torch.tanh(first.weight @ unit + first.bias)
        prefix = (last.weight @ hidden + last.bias).reshape(3, 32)
        words = model.language_model.transformer.wte.weight[ids]
        labels = torch.cat([torch.full((3,), -100), ids.masked_fill(~mask, -100)])
        attention = torch.cat([torch.ones(3), mask.float()])
        out = model.language_model(
            inputs_embeds=torch.cat([prefix, words])[None],
            attention_mask=attention[None],
            labels=labels[None],
        )
        losses.append(out.loss)
    return torch.stack(losses)


def test_the_loss_is_that_of_plain_transformers(clipcap: ClipCap) -> None:
    with torch.no_grad():
        lengths = MASK.sum(1)
        expected = (reference_losses(clipcap) * lengths).sum() / lengths.sum()
        assert torch.allclose(loss_of(clipcap), expected, atol=1e-6)


def test_the_score_is_the_mean_log_probability_of_a_caption(clipcap: ClipCap) -> None:
    with torch.no_grad():
        score = mean_log_prob(clipcap.language_model, clipcap.prompt(FEATURES), IDS, MASK)
        assert torch.allclose(score, -reference_losses(clipcap), atol=1e-6)


def test_padding_changes_nothing(clipcap: ClipCap) -> None:
    wider = F.pad(IDS, (0, 5), value=17)
    with torch.no_grad():
        loss = loss_of(clipcap)
        assert torch.allclose(
            loss_of(clipcap, FEATURES, wider, F.pad(MASK, (0, 5))), loss, atol=1e-6
        )


def test_the_length_of_a_feature_changes_nothing_when_normalised(clipcap: ClipCap) -> None:
    with torch.no_grad():
        loss = loss_of(clipcap)
        assert torch.allclose(loss_of(clipcap, 7 * FEATURES), loss, atol=1e-5)
        clipcap.scaling = Scaling(normalise=False)
        assert not torch.allclose(loss_of(clipcap, 7 * FEATURES), loss, atol=1e-3)


def test_mapper_and_language_model_are_both_trained(clipcap: ClipCap) -> None:
    loss_of(clipcap).backward()
    without = [name for name, p in clipcap.named_parameters() if p.grad is None]
    assert without == []


def test_the_published_mapper_has_the_published_size() -> None:
    with torch.device("meta"):
        mapper = mlp_mapper(512, 768, 10)
    assert sum(p.numel() for p in mapper.parameters()) == 31_468_800
    assert [tuple(p.shape) for p in mapper.parameters()][0::2] == [(3840, 512), (7680, 3840)]


def test_features_of_another_width_are_refused(clipcap: ClipCap) -> None:
    with pytest.raises(DataError, match="16 wide"):
        clipcap.prompt(torch.randn(3, 16))
