from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from gmail_align.captioning.clipcap.model import ClipCap
from gmail_align.captioning.decode import Decoding, SeededNucleus, decode, prefill, up_to_end
from gmail_align.captioning.prompt import Prompt, mean_log_prob
from gmail_align.encoders.language import load_language_model

FEATURES = torch.randn(5, 8, generator=torch.Generator().manual_seed(4))
GREEDY = Decoding(method="greedy", max_tokens=9)
BEAM = Decoding(beam=3, max_tokens=9)


def say(model: ClipCap, features, how: Decoding, seeds=None) -> list:
    return decode(model.language, model.prompt(features), how, seeds=seeds)


@torch.no_grad()
def naive_greedy(
    model: ClipCap, feature: torch.Tensor, end: int, most: int
) -> tuple[list[int], float]:
    """Take the likeliest token again and again, without a cache; return tokens and mean score."""
    tokens: list[int] = []
    total = 0.0
    while len(tokens) < most and (not tokens or tokens[-1] != end):
        words = model.language_model.transformer.wte(torch.tensor(tokens, dtype=torch.long))
        inputs = torch.cat([model.prompt(feature[None]).embeddings[0], words])[None]
        scores = model.language_model(inputs_embeds=inputs).logits[0, -1].log_softmax(0)
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
        clipcap.language_model.lm_head.weight.mul_(12)
    return clipcap


def test_greedy_is_the_naive_search(chatty: ClipCap, gpt2: Path) -> None:
    tokenizer = load_language_model(gpt2).tokenizer
    result = say(chatty, FEATURES, GREEDY)
    for feature, caption in zip(FEATURES, result, strict=True):
        tokens, score = naive_greedy(chatty, feature, tokenizer.eos_token_id, 9)
        assert caption.text == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert caption.log_prob == pytest.approx(score, abs=1e-4)


def test_a_batch_predicts_what_single_images_predict(chatty: ClipCap) -> None:
    together = say(chatty, FEATURES, BEAM)
    alone = [say(chatty, f[None], BEAM)[0] for f in FEATURES]
    assert [c.text for c in together] == [c.text for c in alone]
    assert [c.log_prob for c in together] == pytest.approx([c.log_prob for c in alone], abs=1e-5)


@pytest.mark.parametrize(("length", "padded"), [(4, True), (4, False), (1, False)])
def test_a_prompt_that_is_kept_scores_as_one_that_is_run_again(
    clipcap: ClipCap, length: int, padded: bool
) -> None:
    random = torch.Generator().manual_seed(6)
    mask = torch.arange(length) >= torch.tensor([0, 1, 2, 3, 0])[:, None]
    prompt = Prompt(torch.randn(5, length, 32, generator=random), mask if padded else None)
    ids = torch.randint(300, (5, 6), generator=random)
    spoken = torch.arange(6) < torch.tensor([6, 1, 3, 4, 2])[:, None]
    with torch.inference_mode():
        again = mean_log_prob(clipcap.language_model, prompt, ids, spoken)
        kept = mean_log_prob(
            clipcap.language_model, prompt, ids, spoken, prefill(clipcap.language_model, prompt)
        )
    assert torch.allclose(kept, again, atol=1e-5)


def test_gpt2_is_what_transformers_makes_of_it(gpt2: Path) -> None:
    plain, ours = GPT2LMHeadModel.from_pretrained(gpt2), load_language_model(gpt2).model
    ids = torch.arange(12)[None]
    expected = plain(ids, labels=ids)
    result = ours(ids, labels=ids)
    assert torch.allclose(result.logits, expected.logits, atol=1e-5)
    expected.loss.backward()
    result.loss.backward()
    for ours_p, plain_p in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours_p.grad, plain_p.grad, atol=1e-5)


def test_tokens_count_up_to_the_first_end() -> None:
    ids = torch.tensor([[4, 0, 0, 0], [4, 5, 6, 7], [0, 4, 0, 5]])
    assert up_to_end(ids, [0]).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_nucleus_draws_the_same_with_the_same_seed_in_any_batch(chatty: ClipCap) -> None:
    how = Decoding(method="nucleus", top_p=0.95, temperature=1.5, max_tokens=9)
    seeds = [11, 12, 13, 14, 15]
    together = [c.text for c in say(chatty, FEATURES, how, seeds)]
    one = [say(chatty, f[None], how, [s])[0].text for f, s in zip(FEATURES, seeds, strict=True)]
    assert together == one
    other = [c.text for c in say(chatty, FEATURES, how, [s + 90 for s in seeds])]
    assert other != together


def test_nucleus_draws_as_often_as_the_probabilities_say() -> None:
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    draw = SeededNucleus(range(4000), top_p=0.9, temperature=1.0)
    result = draw(torch.zeros(4000, 1).long(), scores).argmax(1).bincount(minlength=4) / 4000
    kept = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    assert torch.allclose(result, kept, atol=0.025)


def test_a_longer_beam_search_finds_a_likelier_caption(chatty: ClipCap) -> None:
    greedy = say(chatty, FEATURES, GREEDY)
    wide = say(chatty, FEATURES, Decoding(beam=6, max_tokens=9))
    mean = [sum(c.log_prob for c in result) / len(result) for result in (greedy, wide)]
    assert mean[1] >= mean[0]
