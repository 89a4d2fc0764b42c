"""The tabletop CLIP's small siblings: a Long-CLIP and a SigLIP, so that each backbone is alive.

Both are trained from scratch on the same images, with the phrase classifier's help, as the CLIP is.
They have an eighth of its size, see images at 32 pixels and cost minutes of one core: they are
meant to be run and read, not to be good.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel

from gmail_align.runtime import stable_seed
from gmail_align.tabletop.scenes import sample_scene
from gmail_align.tabletop.text import long_caption
from gmail_align.tabletop.training.clip import (
    BATCH,
    MEAN,
    PREPROCESSOR,
    STD,
    PhraseTargets,
    caption_numbers,
    to_pixels,
    tokenise,
)
from gmail_align.tabletop.training.corpus import FIRST_SCENE, Corpus
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import FitReport, fit
from gmail_align.training.losses import long_short_losses, sigmoid_text_losses

SIZE = 32
"""Side of the images, in pixels."""
IMAGES = 10_000
"""They are trained on the first so many images of the corpus."""
SHORT_LENGTH, LONG_LENGTH = 48, 132
"""Text positions before and after stretching: 20 kept, the other 28 by 4, as Long-CLIP does."""
SIGLIP_LENGTH = 24
"""Tokens that every text is padded to."""
SIGLIP_PREPROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "do_convert_rgb": True,
}
"""What stands in ``preprocessor_config.json`` of the SigLIP."""
CLIP_PREPROCESSOR = {
    **PREPROCESSOR,
    "size": {"shortest_edge": SIZE},
    "crop_size": {"height": SIZE, "width": SIZE},
}
"""What stands in ``preprocessor_config.json`` of the Long-CLIP."""
_SHAPE = {"hidden_size": 48, "intermediate_size": 144, "num_attention_heads": 4}
_VISION = {**_SHAPE, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 8}
_PHRASE_WEIGHT = 10.0


def build_short_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained CLIP of about 0.17 M parameters; Long-CLIP is made by stretching it."""
    text = {
        **_SHAPE,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": SHORT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPModel(CLIPConfig(vision_config=_VISION, text_config=text, projection_dim=64))


def build_siglip(tokenizer: CLIPTokenizer) -> SiglipModel:
    """Return an untrained SigLIP of about 0.16 M parameters, with its paper's scale and bias."""
    text = {
        **_SHAPE,
        "num_hidden_layers": 1,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": SIGLIP_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = SiglipModel(SiglipConfig(vision_config=_VISION, text_config=text))
    with torch.no_grad():
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model


def optimisation(steps: int, rate: float = 2e-3) -> OptimConfig:
    """Return one cosine."""
    return OptimConfig(
        steps=steps,
        lr=rate,
        schedule="cosine",
        warmup=min(100, steps // 4),
        weight_decay=0.05,
        checkpoint_every=100,
        evaluate_every=200,
    )


def train_long_clip(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    corpora: tuple[Corpus, Corpus],
    config: OptimConfig,
    folder: Path,
    *,
    seed: int = 0,
) -> FitReport:
    """Train a stretched CLIP with Long-CLIP's loss; long and short retrieval pick the step.

    The short caption of an image is one of its five.
    """
    train, validation = corpora
    long_ids = tokenise_to(tokenizer, long_captions(len(train)), LONG_LENGTH)
    short_ids = tokenise(tokenizer, [text for row in train.captions for text in row])
    numbers = caption_numbers(train.captions)
    phrases, classifier = _phrases(train)
    held = [long_caption(sample_scene(i, "val")) for i in range(len(validation))]

    def loss(step: int) -> dict[str, Tensor]:
        rows, which = _draw(len(train), seed, "long", step)
        vision = model.vision_model(pixel_values=to_pixels(train.images[rows])).pooler_output
        images = model.visual_projection(vision)
        texts = [_clip_texts(model, ids) for ids in (long_ids[rows], short_ids[which])]
        same = _equal(numbers[which])
        scale = model.logit_scale.exp()
        losses = long_short_losses(images, texts[0], texts[1], scale, smoothing=0.0, same=same)
        terms = {name: values.mean() for name, values in losses.items()}
        phrase = F.binary_cross_entropy_with_logits(classifier(vision), phrases.rows(rows))
        return {**terms, "total": terms["total"] + _PHRASE_WEIGHT * phrase, "phrase": phrase}

    def evaluate() -> dict[str, float]:
        return long_scores(model, tokenizer, validation, held)

    parameters = _parameters(model, classifier)
    label = "Long-CLIP"
    return fit(parameters, loss, config, seed=seed, folder=folder, evaluate=evaluate, label=label)


def train_siglip(
    model: SiglipModel,
    tokenizer: CLIPTokenizer,
    corpora: tuple[Corpus, Corpus],
    config: OptimConfig,
    folder: Path,
    *,
    seed: int = 0,
) -> FitReport:
    """Train a SigLIP with the sigmoid loss; retrieval on ``corpora[1]`` picks the step."""
    train, validation = corpora
    texts = [text for row in train.captions for text in row]
    ids = tokenise_to(tokenizer, texts, SIGLIP_LENGTH)
    numbers = caption_numbers(train.captions)
    phrases, classifier = _phrases(train)

    def loss(step: int) -> dict[str, Tensor]:
        rows, which = _draw(len(train), seed, "siglip", step)
        images = model.vision_model(pixel_values=to_pixels(train.images[rows])).pooler_output
        texts = model.text_model(input_ids=ids[which]).pooler_output
        scale, bias = model.logit_scale.exp(), model.logit_bias
        same = _equal(numbers[which])
        losses = sigmoid_text_losses(images, texts, scale.reshape(()), bias.reshape(()), same)
        sigmoid = losses.mean()
        phrase = F.binary_cross_entropy_with_logits(classifier(images), phrases.rows(rows))
        return {
            "total": sigmoid + _PHRASE_WEIGHT * phrase,
            "sigmoid": sigmoid,
            "phrase": phrase,
        }

    def evaluate() -> dict[str, float]:
        return siglip_scores(model, tokenizer, validation)

    parameters = _parameters(model, classifier)
    return fit(
        parameters, loss, config, seed=seed, folder=folder, evaluate=evaluate, label="SigLIP"
    )


@torch.inference_mode()
def siglip_scores(model: SiglipModel, tokenizer: CLIPTokenizer, corpus: Corpus) -> dict[str, float]:
    """Return R@1 both ways over a corpus with five captions an image, and their mean."""
    ids = tokenise_to(tokenizer, [text for row in corpus.captions for text in row], SIGLIP_LENGTH)
    texts = _in_parts(lambda part: model.text_model(input_ids=part).pooler_output, ids)
    images = _in_parts(lambda part: model.vision_model(pixel_values=part).pooler_output, corpus)
    scores = recall(images, texts)
    return {**scores, "score": (scores["i2t_r1"] + scores["t2i_r1"]) / 2}


@torch.inference_mode()
def long_scores(
    model: CLIPModel, tokenizer: CLIPTokenizer, corpus: Corpus, long_texts: list[str]
) -> dict[str, float]:
    """Return R@1 both ways with long and with short captions; ``score`` is the mean of all four."""
    images = _in_parts(
        lambda part: model.visual_projection(model.vision_model(pixel_values=part).pooler_output),
        corpus,
    )
    flat = [text for row in corpus.captions for text in row]
    recalls: dict[str, float] = {}
    for name, texts in (("long", long_texts), ("short", flat)):
        ids = tokenise_to(tokenizer, texts, LONG_LENGTH)
        embedded = _in_parts(lambda part: _clip_texts(model, part), ids)
        recalls |= {f"{name}_{key}": value for key, value in recall(images, embedded).items()}
    return {**recalls, "score": sum(recalls.values()) / len(recalls)}


def recall(images: Float[Tensor, "n d"], texts: Float[Tensor, "m d"]) -> dict[str, float]:
    """Return R@1 both ways; each image has the same number of texts, in its order."""
    scores = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    owner = torch.arange(len(texts)) // (len(texts) // len(images))
    t2i = (scores.argmax(1) == owner).float().mean()
    i2t = (owner[scores.argmax(0)] == torch.arange(len(images))).float().mean()
    return {"i2t_r1": float(i2t), "t2i_r1": float(t2i)}


def shrink(corpus: Corpus, count: int = IMAGES) -> Corpus:
    """Return the first ``count`` images at the siblings' size, resized as they preprocess."""
    square = (SIZE, SIZE)
    images = [
        np.asarray(Image.fromarray(image).resize(square, Image.Resampling.BICUBIC))
        for image in corpus.images[:count]
    ]
    return Corpus(np.stack(images), corpus.captions[:count])


def long_captions(count: int) -> list[str]:
    """Return the long captions of the corpus's first ``count`` images."""
    return [long_caption(sample_scene(FIRST_SCENE + i, "train")) for i in range(count)]


def tokenise_to(tokenizer: CLIPTokenizer, texts: list[str], length: int) -> Int[Tensor, "n length"]:
    """Return token ids, padded to and cut at ``length``."""
    encoded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return torch.as_tensor(encoded["input_ids"])


def _clip_texts(model: CLIPModel, ids: Int[Tensor, "b length"]) -> Float[Tensor, "b d"]:
    longest = int((ids != model.config.text_config.pad_token_id).sum(1).max()) + 1
    hidden = model.text_model(input_ids=ids[:, :longest]).pooler_output
    embedded: Tensor = model.text_projection(hidden)
    return embedded


def _phrases(train: Corpus) -> tuple[PhraseTargets, nn.Linear]:
    targets = PhraseTargets(train.captions)
    return targets, nn.Linear(int(_VISION["hidden_size"]), len(targets.names))


def _parameters(model: nn.Module, classifier: nn.Linear) -> dict[str, nn.Parameter]:
    own = {f"classifier.{name}": p for name, p in classifier.named_parameters()}
    return dict(model.named_parameters()) | own


def _draw(count: int, seed: int, label: str, step: int) -> tuple[Any, Any]:
    """Return a batch's images and, for each, one of its five captions."""
    generator = np.random.default_rng(stable_seed(seed, label, step))
    rows = generator.choice(count, min(BATCH, count), replace=False)
    return rows, rows * 5 + generator.integers(0, 5, len(rows))


def _equal(numbers: Int[Tensor, " b"]) -> Bool[Tensor, "b b"]:
    return numbers[:, None] == numbers[None, :]


def _in_parts(embed: Callable[[Tensor], Tensor], source: Any, size: int = 250) -> Tensor:
    """Embed the images of a corpus, or the rows of token ids, a few hundred at a time."""
    starts = range(0, len(source), size)
    if isinstance(source, Corpus):
        return torch.cat([embed(to_pixels(source.images[i : i + size])) for i in starts])
    return torch.cat([embed(source[i : i + size]) for i in starts])
