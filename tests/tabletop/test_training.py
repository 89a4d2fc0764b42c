"""How the shipped models are trained, and what they reached."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer, SiglipModel

from gmail_align.tabletop import training
from gmail_align.tabletop.ceiling import retrieval_ceiling
from gmail_align.tabletop.scenes import sample_scene
from gmail_align.tabletop.text import captions, long_caption
from gmail_align.tabletop.training.autoencoder import reconstruction_terms
from gmail_align.tabletop.training.clip import (
    PhraseTargets,
    phrases_of,
    retrieval_scores,
    symmetric_loss,
)
from gmail_align.tabletop.training.corpus import Corpus
from gmail_align.tabletop.training.siblings import long_scores, shrink, siglip_scores
from gmail_align.tabletop.training.tokenizers import train_clip_tokenizer, train_gpt2_tokenizer
from gmail_align.tabletop.training.train import held_out

WEIGHTS = Path(training.__file__).parents[1] / "weights"
_VOCABULARY = """
import hashlib, json, sys
from gmail_align.tabletop.training.tokenizers import train_clip_tokenizer
texts = json.load(sys.stdin)
vocabulary = sorted(train_clip_tokenizer(texts).get_vocab().items())
print(hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest())
"""


def texts_of(count: int) -> list[str]:
    return [text for i in range(count) for text in captions(sample_scene(i, "train"))]


def test_tokenizers_are_alike_in_every_process() -> None:
    texts = json.dumps(texts_of(40))
    command = [sys.executable, "-c", _VOCABULARY]
    seen = {
        subprocess.run(command, input=texts, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(seen) == 1


def test_tokenizers_read_back_what_they_write() -> None:
    texts = texts_of(40)
    clip, gpt2 = train_clip_tokenizer(texts), train_gpt2_tokenizer(texts)
    for text in texts[:20]:
        assert gpt2.decode(gpt2(text)["input_ids"]) == text
        words = clip.decode(clip(text)["input_ids"], skip_special_tokens=True).split()
        assert words == text.lower().replace(".", " .").replace(",", " ,").split()


def test_phrases_are_words_and_neighbours() -> None:
    assert phrases_of("A red ball.") == {"a", "red", "ball", "a red", "red ball"}
    targets = PhraseTargets([["A red ball."], ["A blue ball."]])
    rows = targets.rows(np.array([1]))
    assert {name for name, on in zip(targets.names, rows[0], strict=True) if on} == {
        "a",
        "blue",
        "ball",
        "a blue",
        "blue ball",
    }


def test_symmetric_loss_leaves_twins_out() -> None:
    images, texts = torch.eye(3), torch.eye(3)
    scale = torch.tensor(0.0)
    apart = symmetric_loss(images, texts, scale, torch.tensor([0, 1, 2]))
    twins = symmetric_loss(images, texts, scale, torch.tensor([0, 0, 1]))
    e = np.e
    assert float(apart) == pytest.approx(np.log((e + 2) / e))
    assert float(twins) == pytest.approx((2 * np.log((e + 1) / e) + np.log((e + 2) / e)) / 3)


def test_reconstruction_of_itself_costs_only_the_prior() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    terms = reconstruction_terms(pixels, pixels, torch.zeros(2, 8, 1, 1), torch.zeros(2, 8, 1, 1))
    assert float(terms["total"]) == 0


@pytest.fixture(scope="module")
def unseen() -> Corpus:
    """1,000 test images, which no shipped model was trained on."""
    return held_out("test", 1000)


def test_shipped_clip_reaches_its_share_of_the_ceiling(unseen: Corpus) -> None:
    """At least 60% of what the captions' own ambiguity allows."""
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "clip")
    model = CLIPModel.from_pretrained(WEIGHTS / "clip", dtype=torch.float32)
    scores = retrieval_scores(model, tokenizer, unseen)
    ceiling = retrieval_ceiling([sample_scene(i, "test") for i in range(1000)])
    record = json.loads((WEIGHTS / "clip" / "training.json").read_text())
    for name in ("i2t_r1", "t2i_r1"):
        assert scores[name] >= 0.6 * ceiling[name]
        assert scores[name] == pytest.approx(record["test"][name], abs=0.003)


def test_shipped_siglip_finds_images_and_captions(unseen: Corpus) -> None:
    """Far above chance (0.001), and as its record says."""
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "siglip")
    model = SiglipModel.from_pretrained(WEIGHTS / "siglip", dtype=torch.float32)
    scores = siglip_scores(model, tokenizer, shrink(unseen))
    record = json.loads((WEIGHTS / "siglip" / "training.json").read_text())["test"]
    assert scores["i2t_r1"] > 0.15 and scores["t2i_r1"] > 0.1
    assert scores == pytest.approx(record, abs=0.003)


def test_shipped_long_clip_reads_long_captions(unseen: Corpus) -> None:
    """A long caption says more than a short one, so it finds its image more often."""
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "long_clip")
    model = CLIPModel.from_pretrained(WEIGHTS / "long_clip", dtype=torch.float32)
    texts = [long_caption(sample_scene(i, "test")) for i in range(len(unseen))]
    scores = long_scores(model, tokenizer, shrink(unseen), texts)
    record = json.loads((WEIGHTS / "long_clip" / "training.json").read_text())["test"]
    assert scores["long_t2i_r1"] > scores["short_t2i_r1"] > 0.01
    assert scores == pytest.approx(record, abs=0.003)
