"""The two rules against their definitions, written out as loops over whole score matrices."""

from __future__ import annotations

import pytest
import torch

from gmail_align.errors import UserError
from gmail_align.metrics import compat
from gmail_align.metrics.compat import Compat, compat_hits, parse_compat
from gmail_align.metrics.retrieval_hits import retrieval_hits

KS = (1, 5, 10)


def features(kind: str, images: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(len(kind))
    owner = torch.arange(images).repeat_interleave(5)
    seen = torch.randn(images, 24, generator=rng)
    if kind == "tied":
        seen = torch.ones(images, 24)
    if kind == "clustered":
        seen = seen[:7][torch.arange(images) % 7]
    noise = 0.0 if kind != "random" else 3.0
    return seen, seen[owner] + noise * torch.randn(len(owner), 24, generator=rng), owner


def by_the_book(scores, positive, k):
    """Any positive in the first k of torch.topk, row by row."""
    return torch.stack(
        [own[row.topk(k).indices].any() for row, own in zip(scores, positive, strict=True)]
    )


@pytest.mark.parametrize("kind", ["random", "tied", "clustered"])
@pytest.mark.parametrize("rule", list(Compat))
def test_hits_are_those_of_the_rule(kind, rule):
    images, texts, owner = features(kind)
    if rule is Compat.LONG_CLIP:
        a, b = (x.half() / x.half().norm(dim=-1, keepdim=True) for x in (images, texts))
        to_images, to_texts = (b @ a.T).softmax(-1), (a @ b.T).softmax(-1)
    else:
        a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (images, texts))
        to_images = b @ a.T
        to_texts = to_images.T
    positive = owner[:, None] == torch.arange(len(images))
    i2t, t2i = compat_hits(images, texts, owner, KS, rule)
    for k in KS:
        assert torch.equal(i2t[k].bool(), by_the_book(to_texts, positive.T, k))
        assert torch.equal(t2i[k].bool(), by_the_book(to_images, positive, k))


def test_blocks_change_nothing_where_scores_differ(monkeypatch):
    whole = [compat_hits(*features("random"), KS, rule) for rule in Compat]
    monkeypatch.setattr(compat, "_SCORES", 3000)
    for rule, before in zip(Compat, whole, strict=True):
        for one, other in zip(before, compat_hits(*features("random"), KS, rule), strict=True):
            assert all(torch.equal(one[k], other[k]) for k in KS)


def test_without_ties_the_rules_agree_with_ours():
    given = features("random")
    ours = retrieval_hits(*given).estimates(resamples=5)
    theirs = retrieval_hits(*given, compat=Compat.CLIP_BENCHMARK).estimates(resamples=5)
    assert {name: one.value for name, one in ours.items()} == pytest.approx(
        {name: one.value for name, one in theirs.items()}, abs=1e-9
    )


def test_with_ties_only_ours_is_chance():
    given = features("tied")
    ours = retrieval_hits(*given, ks=(5,)).estimates(resamples=5)
    theirs = retrieval_hits(*given, ks=(5,), compat=Compat.CLIP_BENCHMARK).estimates(resamples=5)
    assert ours["t2i_r5"].value == pytest.approx(5 / 40)
    assert theirs["i2t_r5"].value != pytest.approx(ours["i2t_r5"].value, abs=1e-3)


def test_more_places_than_candidates_and_unknown_rules():
    images, texts, owner = features("random", images=2)
    i2t, t2i = compat_hits(images, texts, owner, (50,), Compat.LONG_CLIP)
    assert bool((i2t[50] == 1).all()) and bool((t2i[50] == 1).all())
    assert parse_compat("long_clip") is Compat.LONG_CLIP
    with pytest.raises(UserError, match="'longclip'"):
        parse_compat("longclip")
