"""Questions about images, with choices or open, and their right answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gmail_align.artifacts import Artifact, read_jsonl
from gmail_align.data.counted import counted
from gmail_align.errors import ArtifactError, damage_explained

QUESTIONS: Final = "questions.jsonl"
ANSWER_BY_LETTER: Final = "Answer with the option's letter from the given choices directly."
ANSWER_BY_PHRASE: Final = "Answer the question using a single word or phrase."
"""What stands behind a question in a prompt, with choices and without (LLaVA-1.5)."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; without ``choices`` it is open.

    ``answers`` are the right texts, or for a question with choices the right letter (``"B"``).
    ``image_ids`` are in the order in which the question speaks of them (none: text only).
    ``groups`` are what the question counts in besides the whole, such as its subject.
    """

    question_id: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    image_ids: tuple[str, ...] = ()
    hint: str = ""
    groups: tuple[str, ...] = ()
    split: str = ""

    def __post_init__(self) -> None:
        """Check that every text can be written.

        Raises:
            ValueError: one holds half a surrogate pair, which no file can.
        """
        texts = (self.question_id, self.question, self.hint, self.split)
        for text in (*texts, *self.answers, *self.choices, *self.image_ids, *self.groups):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                code = ord(text[error.start])
                raise ValueError(f"it holds half a character, U+{code:04X}: remove it") from error

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Question:
        """Make a question of one line of ``questions.jsonl``."""
        lists = ("answers", "choices", "image_ids", "groups")
        return cls(**{**row, **{name: tuple(row[name]) for name in lists}})


def letter(number: int) -> str:
    """Return the letter of a choice: ``A`` for 0."""
    return chr(ord("A") + number)


def read_questions(artifact: Artifact) -> Iterator[Question]:
    """Yield the questions of an artifact in their order.

    Raises:
        ArtifactError: the artifact holds something else, or its file is damaged.
    """
    if artifact.kind != "questions":
        raise ArtifactError(
            f"{artifact.folder} holds {artifact.kind}, but questions are needed here"
        )
    advice = f"delete {artifact.folder} and import again"
    with damage_explained(artifact.path(QUESTIONS), ArtifactError, advice):
        for row in counted(artifact, read_jsonl(artifact.path(QUESTIONS))):
            yield Question.from_row(row)
