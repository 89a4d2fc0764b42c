"""Prompts of ScienceQA and MMMU, written out by hand."""

from __future__ import annotations

import pytest

from gmail_align.data.questions import Question
from gmail_align.errors import DataError
from gmail_align.vlm.answers import Prompt, answer, mmmu_prompt, question_prompt
from gmail_align.vlm.model import Llava

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."


def question(text: str, **more: object) -> Question:
    return Question(question_id="q", question=text, answers=("A",), **more)


def test_scienceqa_is_asked_with_context_and_letters() -> None:
    asked = question("Which?", choices=("a cat", "a dog"), image_ids=("x",), hint="Look closely.")
    expected = ["<image>", "Context: Look closely.", "Which?", "A. a cat", "B. a dog", LETTER]
    assert question_prompt(asked).splitlines() == expected
    assert question_prompt(question("Which <image>?")).splitlines() == ["Which ?", PHRASE]


def test_mmmu_shows_an_image_where_it_is_named() -> None:
    names = ("val_Art_1-1", "val_Art_1-2", "val_Art_1-3")
    asked = question(
        "Compare <image 2> with <image 1>.",
        choices=("like <image 2>", "<image 7>"),
        image_ids=names,
    )
    text = "<image>\nCompare <image> with <image>.\n\n(A) like <image>\n(B) \n\n\n" + LETTER
    assert mmmu_prompt(asked) == Prompt(text, (names[2], names[1], names[0], names[1]))


def test_an_open_question_of_mmmu_asks_for_a_phrase() -> None:
    asked = question("How many in <image 1>?", image_ids=("q-1",))
    assert mmmu_prompt(asked) == Prompt(f"How many in <image>?\n\n{PHRASE}", ("q-1",))


def test_a_prompt_that_does_not_fit_into_the_language_model_is_named(llava: Llava) -> None:
    assert answer(llava, ["Say a word."], [[]], 2)
    with pytest.raises(DataError, match="prompt that begins 'Say it"):
        answer(llava, ["Say it again. " * 50], [[]], 2)
    with pytest.raises(DataError, match="max_tokens"):
        answer(llava, ["Say a word."], [[]], 600)
