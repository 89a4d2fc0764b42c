"""The tabletop world's CLIP: contrastive training from scratch, helped by phrase prediction.

Beside CLIP's symmetric loss, the pooled image vector predicts which one- and two-word phrases stand
in the image's five captions (classification from captions, as SuperClass of Huang et al. 2024 does
with subwords). It needs no ground truth and lets a tiny tower learn attributes quickly; the
classifier is thrown away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from gmail_align.runtime import stable_seed
from gmail_align.tabletop.training.corpus import Corpus
from gmail_align.tabletop.training.tokenizers import CLIP_LENGTH
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import FitReport, fit

BATCH = 128
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "do_convert_rgb": True,
}
"""What stands in ``preprocessor_config.json``."""
_PHRASE_SHARE = 0.002
_PHRASE_WEIGHT = 10.0
_LARGEST_SCALE = float(np.log(100.0))


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained CLIP with a 64-pixel, patch-8 vision tower, about 1.4 M parameters."""
    config = CLIPConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
        },
        text_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CLIP_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=128,
    )
    return CLIPModel(config)


def phases(first: int, second: int) -> tuple[OptimConfig, OptimConfig]:
    """Return the recipe of the CLIP: a long cosine, and a shorter one from half the rate."""
    config = OptimConfig(
        steps=first,
        lr=1e-3,
        schedule="cosine",
        warmup=200,
        weight_decay=0.05,
        checkpoint_every=250,
        evaluate_every=250,
    )
    again = {"steps": second, "lr": 5e-4, "warmup": 50, "checkpoint_every": 100}
    return config, config.model_copy(update={**again, "evaluate_every": 100})


def train_clip(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    corpora: tuple[Corpus, Corpus],
    configs: Sequence[OptimConfig],
    folder: Path,
    *,
    seed: int = 0,
) -> list[FitReport]:
    """Train on ``corpora[0]`` in phases; retrieval on ``corpora[1]`` picks the step of each."""
    train, validation = corpora
    phrases = PhraseTargets(train.captions)
    classifier = nn.Linear(model.config.vision_config.hidden_size, len(phrases.names))
    ids = tokenise(tokenizer, [text for row in train.captions for text in row])
    same = caption_numbers(train.captions)

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng(stable_seed(seed, "clip", before + step))
        rows = generator.choice(len(train), BATCH, replace=False)
        which = rows * 5 + generator.integers(0, 5, BATCH)
        vision = model.vision_model(pixel_values=to_pixels(train.images[rows])).pooler_output
        images = F.normalize(model.visual_projection(vision), dim=-1)
        texts = embed_ids(model, ids[which])
        contrast = symmetric_loss(images, texts, model.logit_scale, same[which])
        targets = phrases.rows(rows)
        phrase = F.binary_cross_entropy_with_logits(classifier(vision), targets)
        total = contrast + _PHRASE_WEIGHT * phrase
        return {"total": total, "contrast": contrast, "phrase": phrase}

    def evaluate() -> dict[str, float]:
        return retrieval_scores(model, tokenizer, validation)

    parameters = dict(model.named_parameters())
    parameters |= {f"classifier.{name}": p for name, p in classifier.named_parameters()}
    reports, before = [], 0
    for number, config in enumerate(configs):
        home = folder / str(number)
        home.mkdir(parents=True, exist_ok=True)
        label = f"CLIP, phase {number + 1}"
        reports.append(
            fit(parameters, loss, config, seed=seed, folder=home, evaluate=evaluate, label=label)
        )
        before += config.steps
    return reports


def symmetric_loss(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    log_scale: Tensor,
    captions: Int[Tensor, " b"],
) -> Tensor:
    """CLIP's symmetric InfoNCE; entries with the very same caption leave the denominator."""
    logits = log_scale.clamp(max=_LARGEST_SCALE).exp() * images @ texts.T
    twins = captions[:, None] == captions[None, :]
    twins = twins & ~torch.eye(len(captions), dtype=torch.bool)
    logits = logits.masked_fill(twins, float("-inf"))
    target = torch.arange(len(images))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class PhraseTargets:
    """Which frequent one- and two-word phrases stand in the captions of each image."""

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        phrases = [set().union(*(phrases_of(text) for text in row)) for row in captions]
        counts = Counter(phrase for row in phrases for phrase in row)
        least = _PHRASE_SHARE * len(captions)
        self.names = sorted(phrase for phrase, count in counts.items() if count >= least)
        number = {name: index for index, name in enumerate(self.names)}
        self._rows = [
            np.array([number[p] for p in sorted(row) if p in number], np.int64) for row in phrases
        ]

    def rows(self, indices: NDArray[np.int64]) -> Float[Tensor, "b phrases"]:
        """Return the 0/1 targets of the images ``indices``."""
        targets = torch.zeros(len(indices), len(self.names))
        for row, index in enumerate(indices):
            targets[row, torch.from_numpy(self._rows[index])] = 1.0
        return targets


def phrases_of(text: str) -> set[str]:
    """Return the words of a caption and its pairs of neighbouring words."""
    words = text.lower().rstrip(".").replace(",", " ,").split()
    return {*words, *(" ".join(pair) for pair in pairwise(words))} - {","}


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Int[Tensor, "n length"]:
    """Return padded token ids, as int64."""
    encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return torch.as_tensor(encoded["input_ids"])


def caption_numbers(captions: Sequence[Sequence[str]]) -> Int[Tensor, " n"]:
    """Number captions so that equal texts have equal numbers."""
    number: dict[str, int] = {}
    flat = [text for row in captions for text in row]
    return torch.tensor([number.setdefault(text, len(number)) for text in flat])


def embed_ids(model: CLIPModel, ids: Int[Tensor, "b length"]) -> Float[Tensor, "b d"]:
    """Return normalised text embeddings (causal text tower: padding behind EOS is never seen)."""
    longest = int((ids != model.config.text_config.pad_token_id).sum(1).max()) + 1
    hidden = model.text_model(input_ids=ids[:, :longest]).pooler_output
    return F.normalize(model.text_projection(hidden), dim=-1)


def to_pixels(images: NDArray[np.uint8]) -> Float[Tensor, "b 3 h w"]:
    """Scale uint8 images (b, h, w, 3) as the shipped preprocessing does."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN[0]) / STD[0]


@torch.inference_mode()
def retrieval_scores(
    model: CLIPModel, tokenizer: CLIPTokenizer, corpus: Corpus
) -> dict[str, float]:
    """Return R@1 both ways over a corpus with five captions an image, and their mean."""
    model.eval()
    texts = embed_ids(model, tokenise(tokenizer, [text for row in corpus.captions for text in row]))
    vision = [
        model.vision_model(pixel_values=to_pixels(corpus.images[start : start + 250])).pooler_output
        for start in range(0, len(corpus), 250)
    ]
    images = F.normalize(model.visual_projection(torch.cat(vision)), dim=-1)
    scores = texts @ images.T
    owner = torch.arange(len(texts)) // 5
    t2i = (scores.argmax(1) == owner).float().mean()
    i2t = (owner[scores.argmax(0)] == torch.arange(len(images))).float().mean()
    model.train()
    return {"i2t_r1": float(i2t), "t2i_r1": float(t2i), "score": float(i2t + t2i) / 2}
