from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmail_align.captioning.tokens import tokenise
from gmail_align.encoders.language import load_language_model
from gmail_align.errors import DataError


def test_every_caption_ends_with_end_of_text(gpt2: Path) -> None:
    tokenizer = load_language_model(gpt2).tokenizer
    table = tokenise(["a red ball", "nothing."], tokenizer, 40)
    for row, length in zip(table.ids, table.lengths, strict=True):
        assert row[length - 1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in row[: length - 1]
    assert table.truncated == 0


def test_a_caption_cannot_end_itself(gpt2: Path) -> None:
    tokenizer = load_language_model(gpt2).tokenizer
    table = tokenise([f"a {tokenizer.eos_token} ball"], tokenizer, 40)
    assert tokenizer.eos_token_id not in table.ids[0, :-1]
    assert tokenizer.decode(table.ids[0, :-1]) == f"a {tokenizer.eos_token} ball"


def test_a_caption_that_is_cut_does_not_end(gpt2: Path) -> None:
    tokenizer = load_language_model(gpt2).tokenizer
    long = "zqzqzqzqzq"
    pieces = tokenizer(long)["input_ids"]
    table = tokenise([long, "a"], tokenizer, 4)
    assert table.truncated == 1
    assert table.ids[0].tolist() == pieces[:4]
    exact = tokenise([long], tokenizer, len(pieces) + 1)
    assert exact.truncated == 0
    assert exact.ids[0, -1] == tokenizer.eos_token_id


def test_a_batch_is_as_wide_as_its_longest_caption(gpt2: Path) -> None:
    tokenizer = load_language_model(gpt2).tokenizer
    table = tokenise(["a", "a red ball on a wooden floor."], tokenizer, 40)
    ids, mask = table.batch(torch.tensor([0, 0]))
    assert ids.shape == mask.shape == (2, 2)
    assert mask.all()
    ids, mask = table.batch(torch.tensor([1, 0]))
    assert mask.sum(1).tolist() == [ids.shape[1], 2]


def test_white_space_is_folded(gpt2: Path) -> None:
    tokenizer = load_language_model(gpt2).tokenizer
    plain, spaced = (tokenise([t], tokenizer, 40) for t in ("a red ball", " a\n red\t ball "))
    assert torch.equal(plain.ids, spaced.ids)


def test_captions_without_text_are_refused(gpt2: Path) -> None:
    tokenizer = load_language_model(gpt2).tokenizer
    with pytest.raises(DataError, match="number 1"):
        tokenise(["a", "", " \n"], tokenizer, 40)
    with pytest.raises(DataError, match="no captions"):
        tokenise([], tokenizer, 40)
