"""The stage: answers of a multimodal language model to questions about images."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gmail_align.artifacts import Artifact, begin, fingerprint, read_jsonl, write_jsonl
from gmail_align.data.images import ImageStore
from gmail_align.data.model_outputs import PREDICTIONS
from gmail_align.data.questions import (
    ANSWER_BY_LETTER,
    ANSWER_BY_PHRASE,
    Question,
    letter,
    read_questions,
)
from gmail_align.encoders.preprocess import open_image
from gmail_align.errors import ConfigError, DataError
from gmail_align.progress import progress
from gmail_align.runtime import resolve_device
from gmail_align.vlm.config import AnswerConfig
from gmail_align.vlm.conversations import IMAGE, Conversation, Turn
from gmail_align.vlm.model import Llava, load_llava

_PARTS = "parts"


def question_prompt(question: Question) -> str:
    """Lay a question out as LLaVA-1.5's protocols do.

    Images, hint, question and choices are followed by how to answer: by a letter where there are
    choices, else by a word or a phrase.
    """
    lines = [IMAGE] * len(question.image_ids)
    lines += [question.hint] if question.hint else []
    lines.append(question.question.replace(IMAGE, ""))
    lines += [f"{letter(number)}. {choice}" for number, choice in enumerate(question.choices)]
    return "\n".join([*lines, ANSWER_BY_LETTER if question.choices else ANSWER_BY_PHRASE])


@torch.inference_mode()
def answer(
    llava: Llava, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]], most: int
) -> list[str]:
    """Answer prompts together, each by its likeliest tokens.

    Args:
        llava: The model.
        prompts: The prompts; each ``<image>`` stands for the next of its images.
        images: The images of each prompt.
        most: Longest answer in tokens.

    Raises:
        DataError: a prompt has more or fewer places than images.
    """
    layout, model = llava.layout, llava.model
    rows = []
    for number, (prompt, own) in enumerate(zip(prompts, images, strict=True)):
        asked = Conversation(str(number), (Turn(prompt),), tuple(map(str, range(len(own)))))
        rows.append([token for part, _ in layout.segments(asked) for token in part])
    width, end = max(map(len, rows)), layout.end_id()
    ids = torch.tensor([[end] * (width - len(row)) + row for row in rows])
    mask = torch.arange(width) >= width - torch.tensor([[len(row)] for row in rows])
    given: dict[str, Any] = {}
    shown = [image for own in images for image in own]
    if shown:
        given["pixel_values"] = llava.preprocess(shown).to(model.device)
    generated = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.long().to(model.device),
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=end,
        **given,
    )
    texts = llava.tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def predict_answers(
    vlm: Artifact,
    questions: Artifact | None,
    out: Path,
    config: AnswerConfig | None = None,
    *,
    images: Artifact | None = None,
    of: Collection[str] | None = None,
) -> Artifact:
    """Answer every question, or one prompt of every image; returns ``predictions``.

    ``predictions.jsonl`` holds ``{question_id, text, prompt}``, which ``evaluate answers`` reads;
    or, for a prompt, ``{image_id, text, prompt}``, which ``evaluate captions`` reads.

    Args:
        vlm: What :func:`~gmail_align.vlm.training.train_llava` made.
        questions: An artifact of kind ``questions``; None to ask ``config.prompt`` of every image.
        out: Folder of the predictions.
        config: How questions are answered.
        images: The images that the questions are about.
        of: Ids of the images that the prompt is asked of; every image when None.

    Raises:
        DataError: an image of a question is missing; the message names the question.
        ConfigError: a question has images and none are given, or there are both questions and a
            prompt, or neither.
    """
    how = config or AnswerConfig()
    if (questions is None) == (how.prompt is None) or (questions is None and images is None):
        raise ConfigError("give questions, or a prompt and images to ask it of")
    inputs = {"vlm": vlm}
    inputs |= {"questions": questions} if questions else {}
    inputs |= {"images": images} if images else {}
    identity = {"answers": "llava", **how.identity()}
    identity |= {} if of is None else {"images": fingerprint(sorted(of))}
    draft = begin(out, "predictions", identity, inputs)
    if draft.complete is not None:
        return draft.complete
    store = ImageStore(images) if images else None
    asked, key = _asked(questions, store, of), "question_id" if questions else "image_id"
    llava = load_llava(vlm, resolve_device(how.device))
    parts = []
    with progress("answers", len(asked), "questions") as bar:
        for start in range(0, len(asked), how.batch_size):
            batch = asked[start : start + how.batch_size]
            parts.append(draft.path(f"{_PARTS}/{start:08d}.jsonl"))
            if not parts[-1].exists():
                prompts = [
                    question_prompt(question) if questions else f"{IMAGE}\n{how.prompt}"
                    for question in batch
                ]
                shown = [[store.read(n) for n in q.image_ids] if store else [] for q in batch]
                texts = answer(llava, prompts, shown, how.max_tokens)
                write_jsonl(
                    parts[-1],
                    [
                        {key: question.question_id, "text": text, "prompt": prompt}
                        for question, text, prompt in zip(batch, texts, prompts, strict=True)
                    ],
                )
            bar.advance(len(batch))
    write_jsonl(draft.path(PREDICTIONS), (row for part in parts for row in read_jsonl(part)))
    shutil.rmtree(draft.path(_PARTS), ignore_errors=True)
    return draft.finish({"questions" if questions else "images": len(asked)})


def _asked(
    questions: Artifact | None, store: ImageStore | None, of: Collection[str] | None
) -> list[Question]:
    """Return the questions, or one without words for every image.

    Raises:
        DataError: an image of a question is missing.
        ConfigError: a question has images and none are given.
    """
    if questions is None:
        ids = [name for name in (store.ids if store else []) if of is None or name in of]
        return [Question(question_id=n, question="", answers=(), image_ids=(n,)) for n in ids]
    asked = list(read_questions(questions))
    for question in asked:
        if question.image_ids and store is None:
            raise ConfigError(f"question {question.question_id} has an image: give the images")
        missing = [name for name in question.image_ids if store is None or name not in store]
        if missing:
            raise DataError(
                f"question {question.question_id} has the image {missing[0]}, which is not among"
                " the images that are given"
            )
    return asked


def ask(
    vlm: Artifact, images: Sequence[Path], question: str, config: AnswerConfig | None = None
) -> str:
    """Answer one question about image files.

    Raises:
        DataError: a file is missing or not an image.
    """
    how = config or AnswerConfig()
    shown = [open_image(path) for path in images]
    prompt = "\n".join([*[IMAGE] * len(shown), question])
    llava = load_llava(vlm, resolve_device(how.device))
    return answer(llava, [prompt], [shown], how.max_tokens)[0]
