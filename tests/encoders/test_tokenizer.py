"""The text tower has to pool where the tokenizer ends a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.errors import ModelError

BuildClip = Callable[..., Path]


def _texts(folder: Path) -> torch.Tensor:
    return GmailEncoder.from_pretrained(folder).encode_texts(["a red image", "a blue image"])


def test_old_configurations_pool_at_the_largest_id(
    clip_folder: Path, build_clip: BuildClip, tmp_path: Path
) -> None:
    old = build_clip(tmp_path, config_eos=2)
    assert torch.equal(_texts(old), _texts(clip_folder))


def test_argmax_pooling_needs_the_largest_id(build_clip: BuildClip, tmp_path: Path) -> None:
    folder = build_clip(tmp_path, eos_last=False, config_eos=2)
    with pytest.raises(ModelError, match="eos_token_id"):
        _texts(folder)


def test_an_end_that_is_not_the_largest_id_works(build_clip: BuildClip, tmp_path: Path) -> None:
    features = _texts(build_clip(tmp_path, eos_last=False))
    assert float((features[0] - features[1]).abs().max()) > 1e-4


def test_pooling_at_another_token_is_refused(build_clip: BuildClip, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="eos_token_id"):
        _texts(build_clip(tmp_path, config_eos=5))


def test_a_tokenizer_without_an_end_is_refused(build_clip: BuildClip, tmp_path: Path) -> None:
    folder = build_clip(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="end-of-text"):
        _texts(folder)


def test_no_tokenizer_matters_only_for_texts(build_clip: BuildClip, tmp_path: Path) -> None:
    folder = build_clip(tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    encoder = GmailEncoder.from_pretrained(folder)
    with pytest.raises(ModelError, match="tokenizer"):
        encoder.encode_texts(["a"])


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    build_clip: BuildClip, tmp_path: Path
) -> None:
    folder = build_clip(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<sks>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=f"{len(tokenizer) - 1}"):
        _texts(folder)


def test_a_damaged_tokenizer_is_refused(build_clip: BuildClip, tmp_path: Path) -> None:
    folder = build_clip(tmp_path)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        GmailEncoder.from_pretrained(folder).encode_texts(["a"])
