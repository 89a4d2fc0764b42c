"""Conversations as tokens, segment by segment, each learnt or not.

A conversation is never laid out as one text and searched for its answers afterwards. Every piece is
tokenised by itself, so which tokens are learnt follows from how they were made: answers and the
token that ends each of them, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from transformers import PreTrainedTokenizerBase

from gmail_align.errors import ConfigError, DataError
from gmail_align.vlm.config import TemplateName
from gmail_align.vlm.conversations import IMAGE, Conversation

Segment = tuple[list[int], bool]
"""Tokens, and whether they are learnt."""

_POLITE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Control:
    """A control token of the tokenizer, which no text can spell out."""

    name: str
    """Its text, or ``bos`` or ``eos`` for the tokenizer's own."""


Piece = str | Control


@dataclass(frozen=True)
class Template:
    """How a conversation is laid out.

    ``{}`` in a piece stands for the system message or for a prompt.
    """

    opening: tuple[Piece, ...]
    """What stands before the first turn."""
    prompt: tuple[Piece, ...]
    """A prompt and what leads over to its answer."""
    end: Control = Control("eos")
    """Ends an answer; it is learnt."""
    gap: tuple[Piece, ...] = ()
    """What stands between an answer and the next prompt."""
    answer: str = "{}"
    """The answer's text."""
    system: str = _POLITE
    """The system message where a conversation does not have one."""
    image_alone: bool = False
    """Leave everything but the images out of a prompt."""


def _llama3(role: str) -> tuple[Piece, ...]:
    marks = Control("<|start_header_id|>"), role, Control("<|end_header_id|>")
    return (*marks, "\n\n{}", Control("<|eot_id|>"))


TEMPLATES: dict[str, Template] = {
    "plain": Template((Control("bos"),), ("{}",), image_alone=True),
    "vicuna_v1": Template((Control("bos"), "{} "), ("USER: {} ASSISTANT:",), answer=" {}"),
    "llama3": Template(
        (Control("<|begin_of_text|>"), *_llama3("system")),
        (*_llama3("user"), *_llama3("assistant")[:-2], "\n\n"),
        Control("<|eot_id|>"),
    ),
    "chatml": Template(
        (Control("<|im_start|>"), "system\n{}", Control("<|im_end|>"), "\n"),
        (
            *(Control("<|im_start|>"), "user\n{}", Control("<|im_end|>"), "\n"),
            *(Control("<|im_start|>"), "assistant\n"),
        ),
        Control("<|im_end|>"),
        ("\n",),
    ),
}
"""LLaVA's first stage, Vicuna v1.5, Llama 3 and ChatML."""
assert set(TEMPLATES) == set(get_args(TemplateName))


@dataclass(frozen=True)
class Layout:
    """A template with the tokenizer that it is used with."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    image_tokens: int
    """Tokens that stand for one image."""

    def image_id(self) -> int:
        """Return the one token that stands for a place of an image.

        Raises:
            ConfigError: ``<image>`` is not a token of the tokenizer.
        """
        return self._control(Control(IMAGE))[0]

    def end_id(self) -> int:
        """Return the token that ends an answer."""
        return self._control(self.template.end)[0]

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Return a conversation's tokens, in order.

        A last turn without an answer ends where the answer has to begin.

        Raises:
            DataError: an answer does not hold any token; the message names the sample.
            ConfigError: the tokenizer lacks a control token.
        """
        template = self.template
        system = template.system if conversation.system is None else conversation.system
        segments: list[Segment] = [(self._ids(template.opening, system), False)]
        for number, turn in enumerate(conversation.turns):
            if number:
                segments.append((self._ids(template.gap, ""), False))
            prompt = turn.prompt
            if template.image_alone:
                prompt = IMAGE * prompt.count(IMAGE)
            segments.append((self._ids(template.prompt, prompt), False))
            if turn.answer is not None:
                answer = self._text(template.answer.format(turn.answer.strip()))
                if not answer:
                    raise DataError(f"sample {conversation.sample_id} has an answer without tokens")
                segments.append((answer + self._control(template.end), True))
        return [segment for segment in segments if segment[0]]

    def _ids(self, pieces: Sequence[Piece], text: str) -> list[int]:
        return [token for piece in pieces for token in self._piece(piece, text)]

    def _piece(self, piece: Piece, text: str) -> Iterator[int]:
        if isinstance(piece, Control):
            yield from self._control(piece)
            return
        for number, part in enumerate(piece.replace("{}", text).split(IMAGE)):
            if number:
                yield from [self.image_id()] * self.image_tokens
            yield from self._text(part)

    def _text(self, text: str) -> list[int]:
        """Tokenise a text, in which nothing is a control token."""
        if not text:
            return []
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        ids: list[int] = self.tokenizer(text, **plain)["input_ids"]
        return ids

    def _control(self, control: Control) -> list[int]:
        if control.name == "bos":
            first = self.tokenizer.bos_token_id
            return [] if first is None else [first]
        if control.name == "eos":
            return [self.tokenizer.eos_token_id]
        token = self.tokenizer.convert_tokens_to_ids(control.name)
        if token is None or token == self.tokenizer.unk_token_id:
            raise ConfigError(
                f"the tokenizer does not have the token {control.name}: choose another template"
            )
        return [int(token)]
