"""A state dict of ClipCap's published key layout, and what it becomes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from gmail_align.artifacts import Artifact
from gmail_align.captioning.captioner import load_captioner
from gmail_align.captioning.clipcap.convert import convert_clipcap
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.predict import predict_captions
from gmail_align.encoders.language import load_language_model
from gmail_align.errors import ConfigError, ModelError
from worlds.captioning import build_gpt2

from .conftest import MakeFeatures

CPU = torch.device("cpu")
FEATURES = 5 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def published(gpt2: Path, mapper: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Lay weights out as the released files do, with the buffers that old transformers kept."""
    torch.manual_seed(3)
    words = load_language_model(gpt2).model.state_dict()
    result = {f"gpt.{name}": torch.randn_like(value) / 20 for name, value in words.items()}
    result["gpt.lm_head.weight"] = result["gpt.transformer.wte.weight"]
    for layer in range(2):
        result[f"gpt.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        result[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return result | {f"clip_project.{name}": value for name, value in mapper.items()}


def mlp() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 96))
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def transformer() -> dict[str, torch.Tensor]:
    """Two layers, 32 wide, that spread a feature over 2 embeddings and make a prefix of 3."""
    torch.manual_seed(5)
    shapes = {"linear.weight": (64, 8), "linear.bias": (64,), "prefix_const": (3, 32)}
    for layer in range(2):
        shapes |= {
            f"transformer.layers.{layer}.{name}": shape
            for name, shape in {
                "norm1.weight": (32,),
                "norm1.bias": (32,),
                "attn.to_queries.weight": (32, 32),
                "attn.to_keys_values.weight": (64, 32),
                "attn.project.weight": (32, 32),
                "attn.project.bias": (32,),
                "norm2.weight": (32,),
                "norm2.bias": (32,),
                "mlp.fc1.weight": (64, 32),
                "mlp.fc1.bias": (64,),
                "mlp.fc2.weight": (32, 64),
                "mlp.fc2.bias": (32,),
            }.items()
        }
    return {name: torch.randn(shape) / 10 for name, shape in shapes.items()}


def original_prefix(weights: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """ClipCap's transformer mapper as its code computes it, with einsum."""
    states = torch.cat(
        [
            (features @ weights["linear.weight"].T + weights["linear.bias"]).view(-1, 2, 32),
            weights["prefix_const"].expand(len(features), -1, -1),
        ],
        dim=1,
    )
    for layer in range(2):
        own = {
            name.removeprefix(f"transformer.layers.{layer}."): value
            for name, value in weights.items()
        }
        normed = nn.functional.layer_norm(states, (32,), own["norm1.weight"], own["norm1.bias"])
        b, n, _ = normed.shape
        queries = (normed @ own["attn.to_queries.weight"].T).reshape(b, n, 8, 4)
        both = (normed @ own["attn.to_keys_values.weight"].T).reshape(b, n, 2, 8, 4)
        scores = torch.einsum("bnhd,bmhd->bnmh", queries, both[:, :, 0]) * 4**-0.5
        seen = torch.einsum("bnmh,bmhd->bnhd", scores.softmax(2), both[:, :, 1]).reshape(b, n, 32)
        states = states + seen @ own["attn.project.weight"].T + own["attn.project.bias"]
        normed = nn.functional.layer_norm(states, (32,), own["norm2.weight"], own["norm2.bias"])
        inner = torch.relu(normed @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"])
        states = states + inner @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"]
    return states[:, 2:]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gpt2(tmp_path_factory.mktemp("roomy"), positions=96)


def convert(roomy: Path, tmp_path: Path, weights: object, **given: object) -> Artifact:
    torch.save(weights, tmp_path / "clipcap.pt")
    return convert_clipcap(tmp_path / "clipcap.pt", roomy, tmp_path / "out", **given)


def test_the_mlp_reads_raw_features_as_its_notebook_does(roomy: Path, tmp_path: Path) -> None:
    weights = published(roomy, mlp())
    opened = load_captioner(convert(roomy, tmp_path, weights), CPU)
    first, last = (weights[f"clip_project.model.{n}.weight"] for n in (0, 2))
    biases = [weights[f"clip_project.model.{n}.bias"] for n in (0, 2)]
    expected = torch.tanh(FEATURES @ first.T + biases[0]) @ last.T + biases[1]
    with torch.no_grad():
        result = opened.prompt(FEATURES).embeddings
    assert torch.allclose(result, expected.view(4, 3, 32), atol=1e-5)
    assert torch.equal(
        opened.language_model.transformer.h[1].attn.c_attn.weight,
        weights["gpt.transformer.h.1.attn.c_attn.weight"],
    )
    assert opened.decoding.ends == (opened.language.token_of("."),)
    assert opened.decoding.max_tokens == 67


def test_the_transformer_reads_unit_features(roomy: Path, tmp_path: Path) -> None:
    own = transformer()
    opened = load_captioner(convert(roomy, tmp_path, published(roomy, own)), CPU)
    unit = FEATURES / FEATURES.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        result = opened.prompt(FEATURES).embeddings
    assert torch.allclose(result, original_prefix(own, unit), atol=1e-5)


def test_aligned_features_are_brought_to_the_length_it_knows(roomy: Path, tmp_path: Path) -> None:
    out = convert(roomy, tmp_path, published(roomy, mlp()), norm=5.0)
    model = load_captioner(out, CPU)
    known = 5 * FEATURES / FEATURES.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        a, b = (model.prompt(f).embeddings for f in (known, 0.01 * FEATURES))
        assert torch.allclose(a, b, atol=1e-5)
        raw = torch.nn.functional.linear(known, model.mapper[0].weight, model.mapper[0].bias)
        expected = model.mapper[2](torch.tanh(raw)).view(4, 3, 32)
    assert torch.allclose(a, expected, atol=1e-5)


def test_its_captions_end_at_a_full_stop(
    roomy: Path, tmp_path: Path, make_features: MakeFeatures
) -> None:
    out = convert(roomy, tmp_path, published(roomy, mlp()))
    features = make_features("features", list("abcd"), FEATURES, encoder="any")
    how = PredictConfig(device="cpu", method="greedy")
    said = predict_captions(out, features, tmp_path / "said", how)
    assert said.counts == {"images": 4}


class Trap:
    """Does something when it is unpickled."""

    def __reduce__(self) -> object:
        return (Path.touch, (Path("trapped"),))


def test_what_is_no_clipcap_is_refused(
    roomy: Path, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(what: str, weights: object, folder: Path = roomy, **given: object) -> None:
        with pytest.raises(ModelError, match=what):
            convert(folder, tmp_path, weights, **given)

    refused("clipcap.pt", {"clip_project": Trap()})
    assert not Path("trapped").exists()
    refused("state dict", [1, 2])
    refused("mapper .* 32 wide", published(roomy, {}))
    whole = published(roomy, mlp())
    del whole["gpt.transformer.h.1.attn.c_attn.weight"]
    refused("does not fit", whole)
    refused("64 positions", published(gpt2, mlp()), gpt2)
    Path("rubbish.pt").write_bytes(pickle.dumps(3)[:2])
    with pytest.raises(ModelError, match="rubbish.pt"):
        convert_clipcap(Path("rubbish.pt"), roomy, tmp_path / "rubbish")
    with pytest.raises(ModelError, match="absent.pt"):
        convert_clipcap(Path("absent.pt"), roomy, tmp_path / "absent")
    with pytest.raises(ConfigError, match="norm"):
        convert_clipcap(Path("clipcap.pt"), roomy, tmp_path / "norm", norm=-1.0)
