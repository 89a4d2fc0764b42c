"""GPT-2 folders and features that cannot be used are refused, each in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from gmail_align.artifacts import Artifact
from gmail_align.captioning.clipcap.folder import load_gpt2
from gmail_align.captioning.clipcap.run import train_clipcap
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.ifcap.retrieval import nearest
from gmail_align.captioning.predict import predict_captions
from gmail_align.errors import DataError, ModelError

from .conftest import CAPTIONS, MakeFeatures, quick


def narrow(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_embd": 16}))


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    path = folder / "tokenizer_config.json"
    kept = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    path.write_text(json.dumps(kept))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": os.system}, protocol=2))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (narrow, "are not of the shapes that its config.json says"),
        (without_tokenizer, "holds no tokenizer"),
        (cut, "cannot be loaded as GPT-2"),
        (with_a_pickle, "hold more than tensors"),
    ],
)
def test_a_harmed_gpt2_is_refused(
    gpt2: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    harm: object,
    sentence: str,
) -> None:
    folder = tmp_path / "gpt2"
    shutil.copytree(gpt2, folder)
    assert callable(harm)
    harm(folder)
    with pytest.raises(ModelError, match=sentence) as caught:
        load_gpt2(folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_features_that_are_no_numbers_are_refused(
    captioner: Artifact, gpt2: Path, make_features: MakeFeatures, tmp_path: Path
) -> None:
    array = torch.randn(4, 8)
    array[2, 5] = torch.nan
    broken = make_features("broken", list("abcd"), array)
    with pytest.raises(DataError, match="1 of 4 features hold values that are not finite"):
        predict_captions(captioner, broken, tmp_path / "said", PredictConfig(device="cpu"))
    rows = list(zip("abcd", CAPTIONS, strict=True))
    with pytest.raises(DataError, match="1 of 4 features hold values that are not finite"):
        train_clipcap(quick(1), broken, rows, gpt2, tmp_path / "out")
    for queries, store in ((array, torch.randn(9, 8)), (torch.randn(9, 8), array)):
        with pytest.raises(DataError, match="not finite"):
            nearest(queries, store, 2)


def test_captions_that_are_cut_are_counted_aloud(
    four: Artifact, gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(zip("abcd", CAPTIONS, strict=True))
    config = quick(1).model_copy(update={"max_tokens": 10})
    out = train_clipcap(config, four, rows, gpt2, tmp_path / "out")
    cut_captions = out.manifest["notes"]["truncated"]
    assert 0 < cut_captions < 4
    assert (
        f"{cut_captions} of 4 captions are longer than max_tokens (10)" in capsys.readouterr().err
    )
