"""LLaVA: train it, let it answer questions about images, and ask it one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmail_align.api.places import (
    ModelPlace,
    Place,
    artifact_of,
    config_of,
    model_of,
    open_encoder,
)
from gmail_align.artifacts import Artifact

if TYPE_CHECKING:
    from gmail_align.vlm.sets import ConversationSet


def train_llava(
    sets: Sequence[ConversationSet],
    out: str | os.PathLike[str],
    *,
    encoder: ModelPlace = "tabletop",
    language_model: ModelPlace = "tabletop",
    validation: ConversationSet | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Artifact:
    """Train LLaVA on conversations about images, each set's read by its own route.

    Args:
        sets: Conversations with their images and the route of these.
        out: Folder of the model, which transformers reads, too.
        encoder: A CLIP, aligned or not.
        language_model: A language model of Llama's format, or a LLaVA to train further.
        validation: Held-out conversations, which pick the step.
        preset: ``tabletop``, ``llava15_first``, ``llava15_second``, ...
        settings: Keys of ``LlavaConfig``, on top of the preset.
        seed: Seed of the projector, the rows and dropout.

    Raises:
        ConfigError: a key is wrong, or the tokenizer lacks a control token.
        DataError: a sample cannot be trained on.
        ModelError: the encoder or the language model cannot be used.

    Example:
        >>> from gmail_align.vlm.sets import ConversationSet
        >>> talks = ConversationSet(load("pairs"), real["images"])
        >>> quick = {"optim.steps": 2, "batch_rows": 2}
        >>> train_llava([talks], "llava", preset="tabletop", settings=quick).kind
        'vlm'
    """
    from gmail_align.vlm.config import LlavaConfig
    from gmail_align.vlm.training import train_llava as run

    config, words = config_of(LlavaConfig, preset, settings), model_of(language_model, "llama")
    reader = open_encoder(encoder, config.device)
    return run(config, sets, reader, words, Path(out), validation=validation, seed=seed)


def predict_answers(
    vlm: Place,
    out: str | os.PathLike[str],
    *,
    questions: Place | None = None,
    images: Place | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Artifact:
    """Answer every question of a set, or ask one prompt about every image.

    Args:
        vlm: What :func:`train_llava` made.
        out: Folder of the predictions.
        questions: The questions that an import made; None to ask ``settings["prompt"]``.
        images: The images that they are about.
        settings: Keys of ``AnswerConfig``: ``prompt``, ``max_tokens``, ...

    Raises:
        ConfigError: there are both questions and a prompt, or neither.
        DataError: an image of a question is missing.

    Example:
        >>> short = {"prompt": "Describe the image.", "max_tokens": 4}
        >>> predict_answers("llava", "told", images="real/images", settings=short).counts
        {'images': 24}
    """
    from gmail_align.vlm.answers import predict_answers as run
    from gmail_align.vlm.config import AnswerConfig

    asked = None if questions is None else artifact_of(questions, "questions")
    shown = None if images is None else artifact_of(images, "images")
    config = config_of(AnswerConfig, None, settings)
    return run(artifact_of(vlm, "vlm"), asked, Path(out), config, images=shown)


def ask(
    vlm: Place,
    images: Sequence[str | os.PathLike[str]],
    question: str,
    *,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Answer one question about image files.

    Args:
        vlm: What :func:`train_llava` made.
        images: Image files, in the order in which the question speaks of them.
        question: The question.
        settings: Keys of ``AskConfig``: ``max_tokens`` and ``device``.

    Raises:
        DataError: a file is missing or not an image.

    Example:
        >>> photos = load("real/images")
        >>> photos.read(photos.ids[0]).save("photo.png")
        >>> type(ask("llava", ["photo.png"], "How many objects are there?")).__name__
        'str'
    """
    from gmail_align.vlm.answers import ask as run
    from gmail_align.vlm.config import AskConfig

    config = config_of(AskConfig, None, settings)
    return run(artifact_of(vlm, "vlm"), [Path(image) for image in images], question, config)
