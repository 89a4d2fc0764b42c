"""The shipped Llama: its conversations, its weights on disk, and what its record says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from gmail_align.encoders.language import load_language_model
from gmail_align.encoders.shipped import shipped_models
from gmail_align.tabletop.training.llama import losses_on_test, scene_turns, tokens_of
from gmail_align.tabletop.training.train import store_in_8_bits
from gmail_align.vlm.conversations import Conversation, Turn
from gmail_align.vlm.templates import TEMPLATES, Layout

LLAMA = shipped_models() / "llama"


def test_a_conversation_is_laid_out_as_llava_lays_it_out() -> None:
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    turns = scene_turns(7)
    ids, learnt = tokens_of(tokenizer, turns)
    layout = Layout(TEMPLATES["vicuna_v1"], tokenizer, 1)
    segments = layout.segments(Conversation("7", tuple(Turn(*turn) for turn in turns)))
    assert ids == [token for part, _ in segments for token in part]
    assert learnt == [flag for part, flag in segments for _ in part]


def test_the_chat_template_says_the_same_words() -> None:
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    messages = []
    for prompt, said in scene_turns(8):
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == tokenizer.decode(tokens_of(tokenizer, scene_turns(8))[0])
    assert len(tokenizer("<image>", add_special_tokens=False)["input_ids"]) == 1


def test_the_shipped_llama_answers_as_its_record_says() -> None:
    language = load_language_model(LLAMA)
    record = json.loads((LLAMA / "training.json").read_text())
    assert record["parameters"] == language.model.num_parameters() > 1_000_000
    model = language.model
    assert isinstance(model, LlamaForCausalLM)
    scores = losses_on_test(model, language.tokenizer, 200)
    assert scores == pytest.approx(record["test"], abs=0.003)
    assert scores["all"] < record["test_before_rounding"]["all"] + 0.05


def test_only_the_chosen_arrays_are_stored_in_8_bits(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    state = {"a.matrix": torch.full((2, 2), 0.1), "a.vector": torch.ones(2), "b": torch.ones(2, 2)}
    save_file({name: value.half() for name, value in state.items()}, file)
    store_in_8_bits(file, "a.", 2)
    kinds = {name: value.dtype for name, value in load_file(file).items()}
    assert kinds == {
        "a.matrix": torch.float8_e4m3fn,
        "a.vector": torch.float16,
        "b": torch.float16,
    }
    assert float(load_file(file)["a.matrix"].float()[0, 0]) == pytest.approx(0.1, rel=0.04)
