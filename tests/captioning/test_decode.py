from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmail_align.captioning.clipcap import ClipCap
from gmail_align.captioning.decode import Decoding, decode, up_to_end
from gmail_align.captioning.folder import load_gpt2

FEATURES = torch.randn(5, 8, generator=torch.Generator().manual_seed(4))
GREEDY = Decoding(method="greedy", max_tokens=9)
BEAM = Decoding(beam=3, max_tokens=9)


def say(model: ClipCap, tokenizer, features, how: Decoding, seeds=None) -> list:
    return decode(model.gpt2, tokenizer, model.prompt(features), how, seeds=seeds)


@torch.no_grad()
def naive_greedy(
    model: ClipCap, feature: torch.Tensor, end: int, most: int
) -> tuple[list[int], float]:
    """Take the likeliest token again and again, without a cache; return tokens and mean score."""
    tokens: list[int] = []
    total = 0.0
    while len(tokens) < most and (not tokens or tokens[-1] != end):
        words = model.gpt2.transformer.wte(torch.tensor(tokens, dtype=torch.long))
        inputs = torch.cat([model.prompt(feature[None]).embeddings[0], words])[None]
        scores = model.gpt2(inputs_embeds=inputs).logits[0, -1].log_softmax(0)
        if not tokens:
            scores[end] = -torch.inf
        tokens.append(int(scores.argmax()))
        total += float(scores.max())
    return tokens, total / len(tokens)


@pytest.fixture
def chatty(clipcap: ClipCap) -> ClipCap:
    """Captions of this captioner end, some early and some late."""
    with torch.no_grad():
        clipcap.mapper[2].weight.mul_(4)
        clipcap.gpt2.lm_head.weight.mul_(12)
    return clipcap


def test_greedy_is_the_naive_search(chatty: ClipCap, gpt2: Path) -> None:
    tokenizer = load_gpt2(gpt2)[1]
    found = say(chatty, tokenizer, FEATURES, GREEDY)
    for feature, caption in zip(FEATURES, found, strict=True):
        tokens, score = naive_greedy(chatty, feature, tokenizer.eos_token_id, 9)
        assert caption.text == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert caption.log_prob == pytest.approx(score, abs=1e-4)


def test_a_batch_predicts_what_single_images_predict(chatty: ClipCap, gpt2: Path) -> None:
    tokenizer = load_gpt2(gpt2)[1]
    together = say(chatty, tokenizer, FEATURES, BEAM)
    alone = [say(chatty, tokenizer, f[None], BEAM)[0] for f in FEATURES]
    assert [c.text for c in together] == [c.text for c in alone]
    assert [c.log_prob for c in together] == pytest.approx([c.log_prob for c in alone], abs=1e-5)


def test_tokens_count_up_to_the_first_end() -> None:
    ids = torch.tensor([[4, 0, 0, 0], [4, 5, 6, 7], [0, 4, 0, 5]])
    assert up_to_end(ids, [0]).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
