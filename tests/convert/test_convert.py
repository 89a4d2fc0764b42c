"""Conversions: the features of the model as its authors wrote it, or an error."""

from __future__ import annotations

import argparse
import gzip
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import CLIPModel, ViTModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.run import Sources, align
from gmail_align.artifacts import Artifact
from gmail_align.convert.config import ConvertConfig
from gmail_align.convert.convert import convert
from gmail_align.convert.openai_format import to_openai
from gmail_align.encoders.backbones.clip import stretch_positions
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, ModelError, UserError
from gmail_align.training.config import OptimConfig
from worlds.openai_model import OpenAIModel, TimmViT

QUICK = ConvertConfig(activation="quick_gelu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def texts(vocabulary: int, length: int) -> torch.Tensor:
    ids = torch.randint(1, vocabulary - 2, (3, length))
    ids[:, -1] = vocabulary - 1
    ids[1, 4:] = vocabulary - 1
    return ids


def assert_same(made: Artifact, model: Any, pixels: torch.Tensor, ids: torch.Tensor) -> None:
    loaded = CLIPModel.from_pretrained(made.folder).eval()
    encoder = GmailEncoder.from_pretrained(made.folder)
    with torch.no_grad():
        images, words = model.visual(pixels), model.text(ids)
        assert torch.allclose(loaded.get_image_features(pixels).pooler_output, images, atol=1e-5)
        assert torch.allclose(loaded.get_text_features(ids).pooler_output, words, atol=1e-5)
        assert torch.allclose(encoder.embed_pixels(pixels, Route.FROZEN), images, atol=1e-5)
    assert torch.equal(loaded.logit_scale, model.logit_scale)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["pt", "safetensors", "wrapped"])
def test_openai_and_open_clip(act: str, kind: str, pixels: torch.Tensor, tmp_path: Path) -> None:
    model = OpenAIModel(act=act).eval()
    state = dict(model.state_dict())
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "pt":
        torch.save(state, path)
    else:
        prefixed = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "state_dict": prefixed, "args": argparse.Namespace(lr=1)}, path)
    made = convert(path, tmp_path / "out", ConvertConfig(activation=act))
    assert_same(made, model, pixels, texts(60, 77))
    assert made.manifest["notes"]["activation"] == act
    assert made.manifest["notes"]["largest_difference"] < 1e-5
    config = json.loads((made.folder / "config.json").read_text())
    assert config["vision_config"]["hidden_act"] == config["text_config"]["hidden_act"] == act
    assert convert(path, tmp_path / "out", ConvertConfig(activation=act)) == made
    other = ConvertConfig(activation="gelu" if act == "quick_gelu" else "quick_gelu")
    with pytest.raises(ArtifactError, match="config.activation"):
        convert(path, tmp_path / "out", other)


def test_the_map_back_is_the_inverse(tmp_path: Path) -> None:
    state = OpenAIModel().state_dict()
    torch.save(dict(state), tmp_path / "weights.pt")
    made = convert(tmp_path / "weights.pt", tmp_path / "out", QUICK)
    back = to_openai(load_file(made.folder / "model.safetensors"))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_long_clip(pixels: torch.Tensor, tmp_path: Path) -> None:
    """248 positions: 20 of the one table, the rest of the other; QuickGELU is known."""
    model = OpenAIModel(long=True, positions=248).eval()
    torch.save(dict(model.state_dict()), tmp_path / "longclip-B.pt")
    made = convert(tmp_path / "longclip-B.pt", tmp_path / "out", ConvertConfig())
    assert_same(made, model, pixels, texts(60, 248))
    assert made.manifest["notes"]["format"] == "Long-CLIP"
    config = json.loads((made.folder / "config.json").read_text())
    assert config["text_config"]["max_position_embeddings"] == 248


def test_stretching_weights_and_folders_is_the_same(tmp_path: Path) -> None:
    model = OpenAIModel().eval()
    torch.save(dict(model.state_dict()), tmp_path / "weights.pt")
    long = ConvertConfig(activation="quick_gelu", stretch=248)
    first = convert(tmp_path / "weights.pt", tmp_path / "first", long)
    short = convert(tmp_path / "weights.pt", tmp_path / "short", QUICK)
    second = convert(short.folder, tmp_path / "second", ConvertConfig(stretch=248))
    one, two = (load_file(made.folder / "model.safetensors") for made in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in {*one, *two})
    table = "text_model.embeddings.position_embedding.weight"
    assert torch.equal(one[table], stretch_positions(model.positional_embedding.detach(), 248))


def test_a_stretched_clip_keeps_its_short_texts(clip_folder: Path, tmp_path: Path) -> None:
    """The tiny CLIP has 12 positions: too few to keep 20."""
    with pytest.raises(ModelError, match="12 text positions"):
        convert(clip_folder, tmp_path / "out", ConvertConfig(stretch=40))
    tabletop = Path(__file__).parents[2] / "src/gmail_align/tabletop/weights/clip"
    made = convert(tabletop, tmp_path / "long", ConvertConfig(stretch=68))
    encoder, short = (GmailEncoder.from_pretrained(f) for f in (made.folder, tabletop))
    words = ["A red ball on the grass.", "A blue cube."]
    assert torch.allclose(encoder.encode_texts(words), short.encode_texts(words), atol=1e-5)
    assert encoder.tokenizer.model_max_length == 68
    long = "A red ball on the grass. " * 8
    assert not torch.allclose(
        encoder.encode_texts([long]), encoder.encode_texts([long[:120]]), atol=1e-4
    )


@pytest.mark.parametrize("prefix", ["visual.", "module.visual.", ""])
def test_syn_clr(prefix: str, pixels: torch.Tensor, tmp_path: Path) -> None:
    model = TimmViT().eval()
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    if prefix:
        state[f"{prefix.removesuffix('visual.')}image_mlp.0.weight"] = torch.zeros(4, 4)
    torch.save({"model": state, "epoch": 1}, tmp_path / "synclr.pth")
    made = convert(tmp_path / "synclr.pth", tmp_path / "out", ConvertConfig(heads=2))
    plain = ViTModel.from_pretrained(made.folder, add_pooling_layer=False).eval()
    encoder = GmailEncoder.from_pretrained(made.folder)
    with torch.no_grad():
        expected = model(pixels)
        result = plain(pixels).last_hidden_state[:, 0]
        assert torch.allclose(result, expected, atol=1e-5)
        assert torch.allclose(encoder.embed_pixels(pixels), expected, atol=1e-5)
        pooled, patches = encoder.trunk_and_patches(pixels)
        before = plain(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.allclose(pooled, expected, atol=1e-5)
    assert torch.allclose(patches, before.mean(dim=1), atol=1e-6)
    assert not encoder.has_texts
    with pytest.raises(ModelError, match="no text tower"):
        encoder.encode_texts(["a"])


def test_syn_clr_is_aligned_without_texts(world: Any, tmp_path: Path) -> None:
    state = {f"visual.{name}": tensor for name, tensor in TimmViT().state_dict().items()}
    torch.save({"model": state}, tmp_path / "synclr.pth")
    base = convert(tmp_path / "synclr.pth", tmp_path / "base", ConvertConfig(heads=2)).folder
    weights = AlignWeights(text_generated=0, text_real=0)
    optim = OptimConfig(steps=8, lr=2e-3, schedule="constant", evaluate_every=4)
    config = AlignConfig(batch_size=6, holdout=0.25, optim=optim, weights=weights)
    sources = (world.pairs, world.real, world.generated)
    made = align(config, Sources(*sources), base, tmp_path / "encoder", seed=3)
    guard = made.manifest["notes"]["guard"]
    assert guard["kept"]["align_loss"] <= guard["start"]["align_loss"]
    encoder = GmailEncoder.from_pretrained(made.folder)
    adapter = [name for name in encoder.trainable() if ".lora_" in name]
    assert all("clip.vision_model.layers." in name for name in adapter)
    assert len(adapter) == 2 * 2 * 2
    with pytest.raises(UserError, match=r"weights\.text_generated"):
        align(
            AlignConfig(batch_size=6, optim=optim),
            Sources(*sources),
            base,
            tmp_path / "texts",
            seed=3,
        )


def test_openai_merges_make_the_tokenizer(tmp_path: Path) -> None:
    """The ids of OpenAI's own tokenizer, for a list of merges that is cut short."""
    merges = ["a c", "a t</w>", "c at</w>"]
    letters = list(bytes_to_unicode().values())
    filler = [f"{x} {y}" for x in letters for y in letters if f"{x} {y}" not in merges]
    lines = ["#version: 0.2", *merges, *filler[: 48894 - len(merges)], ""]
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    torch.save(dict(OpenAIModel(vocabulary=49408).state_dict()), tmp_path / "weights.pt")
    made = convert(tmp_path / "weights.pt", tmp_path / "out", QUICK, tokenizer=path)
    encoder = GmailEncoder.from_pretrained(made.folder)
    ids = encoder.tokenizer(["A cat"])["input_ids"][0]
    assert ids == [49406, 256 + 64, 512 + 2, 49407]  # <start>, "a</w>", the third merge, <end>
    features = encoder.encode_texts(["a cat", "a"])
    assert not torch.allclose(features[0], features[1], atol=1e-3)


def test_real_openai_merges(tmp_path: Path) -> None:
    path = Path(__file__).parents[3] / "shared/data/tokenizers/bpe_simple_vocab_16e6.txt.gz"
    if not path.exists():
        pytest.skip("OpenAI's merges are not here")
    torch.save(dict(OpenAIModel(vocabulary=49408).state_dict()), tmp_path / "weights.pt")
    made = convert(tmp_path / "weights.pt", tmp_path / "out", QUICK, tokenizer=path)
    tokenizer = GmailEncoder.from_pretrained(made.folder).tokenizer
    assert tokenizer("a photo of a cat")["input_ids"] == [
        *(49406, 320, 1125, 539, 320, 2368, 49407)
    ]


def test_open_clip_describes_its_activation_and_pixels(tmp_path: Path) -> None:
    torch.save(dict(OpenAIModel(act="gelu").state_dict()), tmp_path / "open_clip_model.pt")
    described = {
        "model_cfg": {"embed_dim": 24},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    made = convert(tmp_path / "open_clip_model.pt", tmp_path / "out", ConvertConfig())
    preprocess = GmailEncoder.from_pretrained(made.folder).preprocess
    assert (preprocess.mean, preprocess.resize, preprocess.size) == ((0.5,) * 3, "square", 32)
    assert made.manifest["notes"]["activation"] == "gelu"


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_folder_in_the_layout_of_open_clip_is_told_the_command(name: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(ModelError, match=rf"gmail-align convert .*{name}"):
        convert(tmp_path, tmp_path / "out", ConvertConfig())
    assert not (tmp_path / "out").exists()


def test_heads_of_another_width_are_read_from_open_clips_description(tmp_path: Path) -> None:
    """The tabletop CLIP has heads of 32 channels; without its description it would have half."""
    weights = Path(__file__).parents[2] / "src/gmail_align/tabletop/weights/clip"
    state = {k: v.float() for k, v in load_file(weights / "model.safetensors").items()}
    save_file(to_openai(state), tmp_path / "open_clip_model.safetensors")
    described = {
        "model_cfg": {
            "quick_gelu": True,
            "vision_cfg": {"width": 128, "head_width": 32},
            "text_cfg": {"heads": 4},
        }
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    source = tmp_path / "open_clip_model.safetensors"
    made = convert(source, tmp_path / "out", ConvertConfig(), tokenizer=weights)
    result, plain = (GmailEncoder.from_pretrained(folder) for folder in (made.folder, weights))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain.embed_pixels(pixels)
        assert torch.allclose(result.embed_pixels(pixels), expected, atol=1e-5)
    words = ["A red ball.", "A blue cube on the grass."]
    assert torch.allclose(result.encode_texts(words), plain.encode_texts(words), atol=1e-5)
    with pytest.raises(ModelError, match="activation"):
        convert(source, tmp_path / "other", ConvertConfig(activation="gelu"))


def test_heads_of_texts_that_are_left_out_are_open_clips_own(
    tmp_path: Path, pixels: torch.Tensor
) -> None:
    """open_clip takes 8, whatever the width; a tower of this width would usually have 1."""
    model = OpenAIModel(act="gelu", text_heads=8).eval()
    save_file(dict(model.state_dict()), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"text_cfg": {"width": 64}}}')
    source = tmp_path / "open_clip_model.safetensors"
    made = convert(source, tmp_path / "out", ConvertConfig())
    assert_same(made, model, pixels, texts(60, 77))
    assert made.manifest["notes"]["heads"] == [2, 8]


def _described(folder: Path, vision: Any = None, text: Any = None, **preprocess: Any) -> Path:
    """Write random weights of open_clip's with a description; return the file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(OpenAIModel(act="gelu").state_dict()), folder / "open_clip_model.safetensors")
    text = {"heads": 1, **(text or {})}
    model = {"embed_dim": 24, "vision_cfg": vision or {}, "text_cfg": text}
    described = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return folder / "open_clip_model.safetensors"


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("vision_cfg.pool_type", {"vision": {"pool_type": "avg"}}),
        ("vision_cfg.attentional_pool", {"vision": {"attentional_pool": True}}),
        ("vision_cfg.no_ln_pre", {"vision": {"no_ln_pre": True}}),
        ("vision_cfg.ls_init_value", {"vision": {"ls_init_value": 1e-4}}),
        ("vision_cfg.qk_norm", {"vision": {"qk_norm": True}}),
        ("vision_cfg.act_kwargs", {"vision": {"act_kwargs": {"approximate": "tanh"}}}),
        ("vision_cfg.timm_model_name", {"vision": {"timm_model_name": "vit_base"}}),
        ("vision_cfg.layers", {"vision": {"layers": 3}}),
        ("vision_cfg.image_size", {"vision": {"image_size": 64}}),
        ("vision_cfg.rope", {"vision": {"rope": True}}),
        ("text_cfg.pool_type", {"text": {"pool_type": "last"}}),
        ("text_cfg.eos_id", {"text": {"pool_type": "eos", "eos_id": 2}}),
        ("text_cfg.no_causal_mask", {"text": {"no_causal_mask": True}}),
        ("text_cfg.embed_cls", {"text": {"embed_cls": True}}),
        ("text_cfg.proj_type", {"text": {"proj_type": "none"}}),
        ("text_cfg.hf_model_name", {"text": {"hf_model_name": "roberta-base"}}),
        ("text_cfg.tokenizer_mode", {"text": {"tokenizer_mode": "clips"}}),
        ("text_cfg.vocab_size", {"text": {"vocab_size": 61}}),
        ("text_cfg.norm_kwargs.bias", {"text": {"norm_kwargs": {"bias": False}}}),
        ("preprocess_cfg.resize_mode", {"resize_mode": "longest"}),
        ("preprocess_cfg.size", {"size": 48}),
        ("preprocess_cfg.mode", {"mode": "L"}),
        ("preprocess_cfg.mean", {"mean": [0.5]}),
    ],
)
def test_what_a_description_says_beyond_our_models_is_refused_by_name(
    key: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=re.escape(key.rpartition(".")[2])):
        convert(_described(tmp_path, **settings), tmp_path / "out", ConvertConfig())
    assert not (tmp_path / "out").exists()


def test_a_description_that_changes_nothing_is_taken(tmp_path: Path, pixels: torch.Tensor) -> None:
    """Keys of training, of the order of one token's norm and pooling, and defaults in full."""
    vision = {"width": 128, "layers": 2, "patch_size": 8, "image_size": [32, 32], "head_width": 64}
    vision |= {"patch_dropout": 0.5, "final_ln_after_pool": True, "output_tokens": True}
    vision |= {"ls_init_value": None, "attentional_pool": False, "timm_model_name": None}
    text = {"width": 64, "heads": 1, "layers": 2, "context_length": 77, "vocab_size": 60}
    text |= {"hf_tokenizer_name": "x/y", "pad_id": 1, "no_causal_mask": False}
    source = _described(tmp_path, vision, text, size=32, interpolation="random", mean=0.5)
    made = convert(source, tmp_path / "out", ConvertConfig())
    model = OpenAIModel(act="gelu").eval()
    model.load_state_dict(load_file(source))
    assert_same(made, model, pixels, texts(60, 77))
    preprocess = GmailEncoder.from_pretrained(made.folder).preprocess
    assert (preprocess.mean, preprocess.interpolation) == ((0.5, 0.5, 0.5), "bicubic")


def test_the_end_of_texts_and_the_norms_are_those_described(
    tmp_path: Path, pixels: torch.Tensor
) -> None:
    norms = {"norm_kwargs": {"eps": 1e-2}}
    source = _described(tmp_path, norms, {**norms, "pool_type": "eos", "eos_id": 7})
    made = convert(source, tmp_path / "out", ConvertConfig())
    model = OpenAIModel(act="gelu").eval()
    model.load_state_dict(load_file(source))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-2
    ids = torch.randint(8, 58, (3, 77), generator=torch.Generator().manual_seed(4))
    ids[:, 30] = 7
    ids[:, 40:] = 59  # larger ids behind the end do not count
    loaded = CLIPModel.from_pretrained(made.folder).eval()
    with torch.no_grad():
        hidden = model.token_embedding(ids) + model.positional_embedding
        hidden = model.transformer.resblocks(hidden.permute(1, 0, 2)).permute(1, 0, 2)
        expected = model.ln_final(hidden)[:, 30] @ model.text_projection
        result = loaded.get_text_features(ids, torch.ones_like(ids)).pooler_output
        assert torch.allclose(result, expected, atol=1e-4)
        images = loaded.get_image_features(pixels).pooler_output
        assert torch.allclose(images, model.visual(pixels), atol=1e-4)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_cfg": 3}', '{"model_cfg": {"embed": 1}}'])
def test_a_damaged_description_is_named(text: str, tmp_path: Path) -> None:
    source = _described(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"open_clip_config\.json"):
        convert(source, tmp_path / "out", ConvertConfig())


def test_heads_that_weights_do_not_tell_are_asked_for(tmp_path: Path) -> None:
    save_file(dict(TimmViT().state_dict()), tmp_path / "vit.safetensors")
    for heads in (None, 3):
        with pytest.raises(ModelError, match="heads"):
            convert(tmp_path / "vit.safetensors", tmp_path / "out", ConvertConfig(heads=heads))
    made = convert(tmp_path / "vit.safetensors", tmp_path / "out", ConvertConfig(heads=4))
    assert json.loads(made.path("config.json").read_text())["num_attention_heads"] == 4


def _timm(folder: Path, **changes: Any) -> Path:
    """Write a ViT as the hub has timm's: its weights and its description."""
    transform = {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
    transform |= {"input_size": [3, 32, 32], "crop_pct": 0.9, "crop_mode": "center"}
    described = {"architecture": "vit_tiny_patch16_224", "num_features": 192, "num_classes": 0}
    described |= {
        "global_pool": "token",
        "pretrained_cfg": transform | changes.pop("transform", {}),
    }
    save_file(dict(TimmViT(width=192, layers=1).state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(described | changes))
    return folder / "model.safetensors"


@pytest.mark.parametrize("arguments", [{}, {"in_chans": 3, "img_size": [32, 32]}])
def test_a_description_of_timm_is_honoured(arguments: dict[str, Any], tmp_path: Path) -> None:
    arguments |= {"num_classes": 9, "global_pool": "token"}  # newer timm names every argument
    source = _timm(tmp_path, model_args=arguments)
    made = convert(source, tmp_path / "out", ConvertConfig())
    assert json.loads(made.path("config.json").read_text())["num_attention_heads"] == 3
    mean, std = (0.1,) * 3, (0.2,) * 3
    expected = Preprocess(32, mean=mean, std=std, interpolation="bilinear", resize_to=35)
    assert Preprocess.from_folder(made.folder) == expected


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("global_pool", {"global_pool": "avg"}),
        ("architecture", {"architecture": "vit_tiny_patch16_clip_quickgelu_224"}),
        ("model_args", {"model_args": {"qk_norm": True}}),
        ("model_args", {"model_args": {"global_pool": "avg"}}),
        ("in_chans", {"model_args": {"in_chans": 1}}),
        ("num_features", {"num_features": 9}),
        ("crop_mode", {"transform": {"crop_mode": "squash"}}),
        ("interpolation", {"transform": {"interpolation": "lanczos"}}),
        ("input_size", {"transform": {"input_size": [3, 32, 48]}}),
        ("input_size", {"transform": {"input_size": [1, 32, 32]}}),
        ("patch_dropout", {"transform": {"patch_dropout": 0.5}}),
    ],
)
def test_what_a_description_of_timm_says_beside_is_refused(
    named: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=named):
        convert(_timm(tmp_path, **changes), tmp_path / "out", ConvertConfig())
    assert not (tmp_path / "out").exists()


def test_a_probe_that_differs_is_an_error(tmp_path: Path) -> None:
    torch.save(dict(OpenAIModel().state_dict()), tmp_path / "weights.pt")
    made = convert(tmp_path / "weights.pt", tmp_path / "out", QUICK)
    config = made.folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace("quick_gelu", "gelu"))
    with pytest.raises(ModelError, match=re.escape(str(made.folder))):
        GmailEncoder.from_pretrained(made.folder)
    config.write_text(text)
    GmailEncoder.from_pretrained(made.folder)
    (made.folder / "probe.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"probe\.safetensors"):
        GmailEncoder.from_pretrained(made.folder)


class _Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = dict(OpenAIModel().state_dict())
    torch.save({"state_dict": state, "extra": _Evil()}, "evil.pt")
    Path("plain.pt").write_bytes(pickle.dumps({"a": _Evil()}))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ModelError, match=name):
            convert(name, tmp_path / "out", QUICK)
    assert not Path("ran").exists()


@pytest.mark.filterwarnings(r"ignore:.*torch\.jit.* is deprecated")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(ModelError, match="TorchScript"):
        convert(tmp_path / "ViT-B-32.pt", tmp_path / "out", QUICK)


def _refused(state: Any, message: str, tmp_path: Path, config: ConvertConfig = QUICK) -> None:
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=message) as caught:
        convert(tmp_path / "weights.pt", tmp_path / "out", config)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = dict(OpenAIModel().state_dict())
    _refused({"a": 1}, "weights.pt", tmp_path)
    _refused([1, 2], "weights.pt", tmp_path)
    _refused({"layer1.weight": torch.zeros(1)}, "layer1.weight", tmp_path)
    _refused(state, "--activation", tmp_path, ConvertConfig())
    _refused({**state, "logit_bias": torch.zeros(1)}, "logit_bias", tmp_path)
    _refused(state | {"visual.proj": torch.zeros(5, 24)}, "visual_projection.weight", tmp_path)
    for name, odd in (("visual.conv1.weight", 3), ("positional_embedding", 0)):
        _refused(state | {name: torch.zeros((2,) * odd)}, "damaged", tmp_path)
    del state["visual.ln_pre.bias"]
    _refused(state, "vision_model.pre_layrnorm.bias", tmp_path)
    del state["token_embedding.weight"]
    _refused(state, "token_embedding.weight", tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"short")
    for name in ("bad.safetensors", "absent.pt"):
        with pytest.raises(ModelError, match=name):
            convert(tmp_path / name, tmp_path / "out", QUICK)


def test_openai_archives_tell_their_activation(pixels: torch.Tensor, tmp_path: Path) -> None:
    """Their tensors, saved out of the archive, keep three numbers that open_clip's never have."""
    model = OpenAIModel().eval()
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 60}
    state = dict(model.state_dict()) | {k: torch.tensor(v) for k, v in numbers.items()}
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(halves, tmp_path / "weights.safetensors")
    made = convert(tmp_path / "weights.safetensors", tmp_path / "out", ConvertConfig())
    result = GmailEncoder.from_pretrained(made.folder).embed_pixels(pixels).detach()
    expected = model.visual(pixels).detach()
    assert float((normalize(result, dim=-1) * normalize(expected, dim=-1)).sum(-1).min()) > 0.999
