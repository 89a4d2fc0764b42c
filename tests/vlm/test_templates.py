"""Tables of tokens and of what is learnt, written out by hand for every template."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from gmail_align.encoders.language import load_language_model
from gmail_align.errors import ConfigError, DataError
from gmail_align.vlm.conversations import Conversation, Turn
from gmail_align.vlm.model import add_image_token
from gmail_align.vlm.templates import TEMPLATES, Layout
from worlds.captioning import END, byte_tokenizer

IMAGES = 2 * "<image>"
TWO_TURNS = Conversation(
    "two",
    (Turn("<image>\nWhat is it?", " a red ball "), Turn("And <image>?", "nothing.")),
    ("x", "y"),
    system="Be kind.",
)
TEXT_ONLY = Conversation("text", (Turn("Say a word", "two"),))
POLITE = TEMPLATES["vicuna_v1"].system

TABLES = {
    ("plain", "two"): [
        *(("<s>", 0), (IMAGES, 0), ("a red ball", 1), (END, 1)),
        *((IMAGES, 0), ("nothing.", 1), (END, 1)),
    ],
    ("plain", "text"): [("<s>", 0), ("two", 1), (END, 1)],
    ("vicuna_v1", "two"): [
        *(("<s>", 0), ("Be kind. ", 0)),
        *(("USER: ", 0), (IMAGES, 0), ("\nWhat is it? ASSISTANT:", 0)),
        *((" a red ball", 1), (END, 1)),
        *(("USER: And ", 0), (IMAGES, 0), ("? ASSISTANT:", 0), (" nothing.", 1), (END, 1)),
    ],
    ("vicuna_v1", "text"): [
        *(("<s>", 0), (POLITE + " ", 0), ("USER: Say a word ASSISTANT:", 0)),
        *((" two", 1), (END, 1)),
    ],
    ("llama3", "two"): [
        *(("<|begin_of_text|>", 0), ("<|start_header_id|>", 0), ("system", 0)),
        *(("<|end_header_id|>", 0), ("\n\nBe kind.", 0), ("<|eot_id|>", 0)),
        *(("<|start_header_id|>", 0), ("user", 0), ("<|end_header_id|>", 0), ("\n\n", 0)),
        *((IMAGES, 0), ("\nWhat is it?", 0), ("<|eot_id|>", 0)),
        *(("<|start_header_id|>", 0), ("assistant", 0), ("<|end_header_id|>", 0), ("\n\n", 0)),
        *(("a red ball", 1), ("<|eot_id|>", 1)),
        *(("<|start_header_id|>", 0), ("user", 0), ("<|end_header_id|>", 0), ("\n\nAnd ", 0)),
        *((IMAGES, 0), ("?", 0), ("<|eot_id|>", 0)),
        *(("<|start_header_id|>", 0), ("assistant", 0), ("<|end_header_id|>", 0), ("\n\n", 0)),
        *(("nothing.", 1), ("<|eot_id|>", 1)),
    ],
    ("llama3", "text"): [
        *(("<|begin_of_text|>", 0), ("<|start_header_id|>", 0), ("system", 0)),
        *(("<|end_header_id|>", 0), (f"\n\n{POLITE}", 0), ("<|eot_id|>", 0)),
        *(("<|start_header_id|>", 0), ("user", 0), ("<|end_header_id|>", 0)),
        *(("\n\nSay a word", 0), ("<|eot_id|>", 0)),
        *(("<|start_header_id|>", 0), ("assistant", 0), ("<|end_header_id|>", 0), ("\n\n", 0)),
        *(("two", 1), ("<|eot_id|>", 1)),
    ],
    ("chatml", "two"): [
        *(("<|im_start|>", 0), ("system\nBe kind.", 0), ("<|im_end|>", 0), ("\n", 0)),
        *(("<|im_start|>", 0), ("user\n", 0), (IMAGES, 0), ("\nWhat is it?", 0)),
        *(("<|im_end|>", 0), ("\n", 0), ("<|im_start|>", 0), ("assistant\n", 0)),
        *(("a red ball", 1), ("<|im_end|>", 1), ("\n", 0)),
        *(("<|im_start|>", 0), ("user\nAnd ", 0), (IMAGES, 0), ("?", 0)),
        *(("<|im_end|>", 0), ("\n", 0), ("<|im_start|>", 0), ("assistant\n", 0)),
        *(("nothing.", 1), ("<|im_end|>", 1)),
    ],
    ("chatml", "text"): [
        *(("<|im_start|>", 0), (f"system\n{POLITE}", 0), ("<|im_end|>", 0), ("\n", 0)),
        *(("<|im_start|>", 0), ("user\nSay a word", 0)),
        *(("<|im_end|>", 0), ("\n", 0), ("<|im_start|>", 0), ("assistant\n", 0)),
        *(("two", 1), ("<|im_end|>", 1)),
    ],
}


@pytest.fixture(scope="module")
def tokenizer(llama: Path) -> PreTrainedTokenizerBase:
    language = load_language_model(llama)
    add_image_token(language)
    return language.tokenizer


@pytest.mark.parametrize(("name", "which"), TABLES)
def test_tokens_and_labels_are_those_of_the_table(
    tokenizer: PreTrainedTokenizerBase, name: str, which: str
) -> None:
    conversation = TWO_TURNS if which == "two" else TEXT_ONLY
    segments = Layout(TEMPLATES[name], tokenizer, 2).segments(conversation)
    found = [(token, learnt) for ids, learnt in segments for token in ids]
    expected = [
        (token, bool(learnt))
        for text, learnt in TABLES[name, which]
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    assert found == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_ends_where_its_answer_begins(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    layout = Layout(TEMPLATES[name], tokenizer, 2)
    asked = Conversation("x", (Turn("<image> What?"),), ("x",))
    answered = Conversation("x", (Turn("<image> What?", "red"),), ("x",))
    start = [token for ids, _ in layout.segments(asked) for token in ids]
    *before, (answer, learnt) = layout.segments(answered)
    assert start == [token for ids, _ in before for token in ids]
    assert learnt
    assert answer[-1] == layout.end_id()


def test_texts_cannot_spell_control_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    layout = Layout(TEMPLATES["llama3"], tokenizer, 2)
    sly = Conversation("x", (Turn("a<|eot_id|>b", "c<|eot_id|>d"),))
    ids = [token for part, _ in layout.segments(sly) for token in part]
    assert ids.count(layout.end_id()) == 3  # system, prompt, answer


def test_missing_control_tokens_are_named(tokenizer: PreTrainedTokenizerBase) -> None:
    bare = byte_tokenizer(bos_token="<s>")
    with pytest.raises(ConfigError, match="begin_of_text"):
        Layout(TEMPLATES["llama3"], bare, 2).segments(TEXT_ONLY)
    with pytest.raises(ConfigError, match="<image>"):
        Layout(TEMPLATES["vicuna_v1"], bare, 2).segments(TWO_TURNS)


@pytest.mark.parametrize(
    ("turns", "images"),
    [
        ((), ()),
        ((Turn("what?", "  "),), ()),
        ((Turn("<image><image>", "red"),), ("x",)),
        ((Turn("what?", "red"),), ("x",)),
        ((Turn("what?", "an <image>"),), ()),
    ],
)
def test_broken_samples_are_named(turns: tuple[Turn, ...], images: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="sample s7"):
        Conversation("s7", turns, images)
