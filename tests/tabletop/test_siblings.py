"""The small siblings: they train, and their scores are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmail_align.encoders.backbones.clip import ClipBackbone
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.tabletop.scenes import sample_scene
from gmail_align.tabletop.text import captions, long_caption
from gmail_align.tabletop.training import siblings
from gmail_align.tabletop.training.corpus import Corpus
from gmail_align.tabletop.training.tokenizers import train_clip_tokenizer
from gmail_align.training.config import OptimConfig

OPTIM = OptimConfig(steps=6, lr=3e-3, schedule="constant", evaluate_every=6, weight_decay=0.0)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    return Corpus(images, [captions(sample_scene(i, "train")) for i in range(8)])


def test_a_siglip_learns_and_loads_as_one(corpus: Corpus, tmp_path: Path) -> None:
    tokenizer = train_clip_tokenizer([text for row in corpus.captions for text in row])
    tokenizer.model_max_length = siblings.SIGLIP_LENGTH
    torch.manual_seed(0)
    model = siblings.build_siglip(tokenizer)
    report = siblings.train_siglip(model, tokenizer, (corpus, corpus), OPTIM, tmp_path)
    assert report.losses[-1]["sigmoid"] < report.losses[0]["sigmoid"]
    assert report.losses[-1]["phrase"] < report.losses[0]["phrase"]
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(siblings.SIGLIP_PREPROCESSOR))
    encoder = GmailEncoder.from_pretrained(folder)
    images = encoder.encode_images([Image.fromarray(image) for image in corpus.images])
    texts = encoder.encode_texts([text for row in corpus.captions for text in row])
    result = siblings.siglip_scores(model, tokenizer, corpus)
    assert siblings.recall(images, texts) == pytest.approx(
        {key: result[key] for key in ("i2t_r1", "t2i_r1")}, abs=0.2
    )


def test_a_long_clip_learns_from_long_captions(corpus: Corpus, tmp_path: Path) -> None:
    tokenizer = train_clip_tokenizer([text for row in corpus.captions for text in row])
    torch.manual_seed(0)
    model = ClipBackbone(siblings.build_short_clip(tokenizer)).stretch(siblings.LONG_LENGTH).module
    assert model.config.text_config.max_position_embeddings == 132 == 4 * 48 - 3 * 20
    report = siblings.train_long_clip(model, tokenizer, (corpus, corpus), OPTIM, tmp_path)
    assert report.losses[-1]["total"] < report.losses[0]["total"]
    assert {"long", "short", "phrase"} <= set(report.losses[0])
    assert set(report.scores[0]) == {
        *("step", "score", "long_i2t_r1", "long_t2i_r1", "short_i2t_r1", "short_t2i_r1")
    }


def test_long_captions_fit() -> None:
    texts = [text for i in range(60) for text in captions(sample_scene(i, "train"))]
    tokenizer = train_clip_tokenizer(texts)
    long = [long_caption(sample_scene(i, "test")) for i in range(60)]
    lengths = [len(ids) for ids in tokenizer(long, truncation=False)["input_ids"]]
    assert siblings.SHORT_LENGTH < max(lengths) <= siblings.LONG_LENGTH


def test_recall_by_hand() -> None:
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.1], [0.2, 1.0], [0.1, 1.0], [0.9, 1.0]])
    assert siblings.recall(images, texts) == {"i2t_r1": 1.0, "t2i_r1": 0.75}


def test_shrinking_is_the_siblings_preprocessing(corpus: Corpus, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    large = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    small = siblings.shrink(Corpus(large, corpus.captions[:2]))
    for name in ("SIGLIP_PREPROCESSOR", "CLIP_PREPROCESSOR"):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(getattr(siblings, name)))
        pixels = Preprocess.from_folder(tmp_path).pixels([Image.fromarray(i) for i in large])
        assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), small.images)
