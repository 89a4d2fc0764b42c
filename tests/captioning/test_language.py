"""Language models of any architecture serve; folders that cannot be used are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from gmail_align.artifacts import Artifact
from gmail_align.captioning.captioner import load_captioner
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.decode import prefill
from gmail_align.captioning.ifcap.retrieval import nearest
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.prompt import Prompt, mean_log_prob
from gmail_align.data.model_outputs import open_predictions
from gmail_align.encoders.language import load_language_model
from gmail_align.errors import DataError, ModelError
from worlds.captioning import LANGUAGE_MODELS, byte_tokenizer

from .conftest import ROWS, MakeFeatures, quick, train_clipcap


def narrow(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_embd": 16}))


def endless(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_layer": 10**30}))


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
        (narrow, r"c_attn\.bias of shape"),
        (endless, "n_layer"),
        (without_tokenizer, "tokenizer.json"),
        (cut, r"gpt2/model\.safetensors is damaged"),
        (with_a_pickle, "safetensors"),
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
        load_language_model(folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_features_that_are_no_numbers_are_refused(
    captioner: Artifact, gpt2: Path, make_features: MakeFeatures, tmp_path: Path
) -> None:
    array = torch.randn(4, 8)
    array[2, 5] = torch.nan
    broken = make_features("broken", list("abcd"), array)
    with pytest.raises(DataError, match="1 of 4 features"):
        predict_captions(captioner, broken, tmp_path / "said", PredictConfig(device="cpu"))
    with pytest.raises(DataError, match="1 of 4 features"):
        train_clipcap(quick(1), broken, ROWS, gpt2, tmp_path / "out")
    for queries, store in ((array, torch.randn(9, 8)), (torch.randn(9, 8), array)):
        with pytest.raises(DataError, match="not finite"):
            nearest(queries, store, 2)


def test_captions_that_are_cut_are_counted_aloud(
    four: Artifact, gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick(1).model_copy(update={"max_tokens": 10})
    out = train_clipcap(config, four, ROWS, gpt2, tmp_path / "out")
    cut_captions = out.manifest["notes"]["truncated"]
    assert 0 < cut_captions < 4
    assert f"{cut_captions} of 4 captions" in capsys.readouterr().err


@pytest.fixture(scope="module", params=LANGUAGE_MODELS)
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LANGUAGE_MODELS[request.param](tmp_path_factory.mktemp(request.param))


def test_any_architecture_learns_captions_by_heart(
    architecture: Path, four: Artifact, tmp_path: Path
) -> None:
    out = train_clipcap(quick(150), four, ROWS, architecture, tmp_path / "out")
    for method in ("beam", "greedy"):
        how = PredictConfig(device="cpu", method=method)
        predictions = predict_captions(out, four, tmp_path / method, how)
        assert open_predictions(predictions).texts == dict(ROWS)
    plain = AutoModelForCausalLM.from_pretrained(out.path("language_model"))
    assert plain.generation_config.eos_token_id == 0
    kept = load_captioner(out, torch.device("cpu")).language_model
    ids = torch.arange(9)[None]
    assert torch.allclose(plain(ids).logits, kept(ids).logits, atol=1e-6)


def test_prompts_that_are_padded_score_as_without_padding(architecture: Path) -> None:
    language = load_language_model(architecture)
    model = language.model.eval()
    random = torch.Generator().manual_seed(6)
    embeddings = torch.randn(3, 4, language.width, generator=random)
    mask = torch.arange(4) >= torch.tensor([0, 1, 3])[:, None]
    ids = torch.randint(5, 260, (3, 6), generator=random)
    spoken = torch.arange(6) < torch.tensor([6, 1, 3])[:, None]
    with torch.inference_mode():
        prompt = Prompt(embeddings, mask)
        together = mean_log_prob(model, prompt, ids, spoken)
        cached = mean_log_prob(model, prompt, ids, spoken, prefill(model, prompt))
        alone = []
        for row in range(3):
            tokens = ids[row][spoken[row]]
            words = model.get_input_embeddings()(tokens)
            inputs = torch.cat([embeddings[row][mask[row]], words])[None]
            labels = torch.cat([torch.full((int(mask[row].sum()),), -100), tokens])[None]
            alone.append(-model(inputs_embeds=inputs, labels=labels).loss)
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)
    assert torch.allclose(cached, together, atol=1e-5)


def test_how_a_configuration_wraps_outputs_makes_no_difference(gpt2: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2, tmp_path / "lm")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"return_dict": False}))
    assert load_language_model(folder).model(input_ids=torch.tensor([[1]])).logits.ndim == 3


def test_a_model_that_reads_ahead_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=16, **shape)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="'bert'"):
        load_language_model(tmp_path)
