"""Exports as people use them: through the tokenizer, the image transform and ``encode``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import normalize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from gmail_align.convert.open_clip_config import OpenClipConfig
from gmail_align.convert.openai_format import encode_text, read_shape
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import shipped_models
from gmail_align.errors import ModelError
from gmail_align.export.config import ExportConfig
from gmail_align.export.run import export

LONG = "a red image of tone 3 " * 20
TEXTS = ["a red image", "A Blue image of tone 3", "a", LONG]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def exported(source: Path, out: Path, format: str) -> Path:
    return export(ExportConfig(format=format, route=Route.FROZEN), source, out).folder


def assert_same_texts(found: Any, source: Path, texts: list[str]) -> None:
    expected = GmailEncoder.from_pretrained(source).encode_texts(texts)
    assert torch.allclose(normalize(torch.as_tensor(found), dim=-1), expected, atol=1e-5)


@torch.no_grad()
def by_transformers(folder: Path, texts: list[str]) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    features: torch.Tensor = AutoModel.from_pretrained(folder).eval().get_text_features(**tokens)
    return features.pooler_output


def by_sentences(folder: Path, texts: list[str]) -> Any:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(texts)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes a key away."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def base(clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny CLIP, to be changed."""
    return Path(shutil.copytree(clip_folder, tmp_path / "base"))


@pytest.mark.parametrize("model", ["clip_folder", "siglip_folder"])
def test_texts_are_embedded_as_the_encoder_does(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A base whose tokenizer names no length; SigLIP pads to the full length, without a mask."""
    source = Path(shutil.copytree(request.getfixturevalue(model), tmp_path / "base"))
    edit(source / "tokenizer_config.json", model_max_length=None)
    assert_same_texts(
        by_transformers(exported(source, tmp_path / "hf", "hf"), TEXTS), source, TEXTS
    )
    out = exported(source, tmp_path / "st", "sentence-transformers")
    assert_same_texts(by_sentences(out, TEXTS), source, TEXTS)
    assert_same_texts(by_sentences(out, TEXTS[:1]), source, TEXTS[:1])


@pytest.mark.parametrize("name", ["clip", "siglip", "long_clip"])
@torch.no_grad()
def test_odd_texts_and_photos_are_what_the_encoder_reads(name: str, tmp_path: Path) -> None:
    """By transformers' processor and by sentence-transformers, on every shipped model."""
    source = shipped_models() / name
    texts = ["A Red BALL", "", "a red ball " * 80, "ein grüner Würfel 猫 🎈", "  two\n cubes "]
    blots = np.random.default_rng(0).integers(0, 256, (9, 23, 3), dtype=np.uint8)
    photo = Image.fromarray(blots).resize((517, 201), Image.Resampling.BICUBIC)
    expected = GmailEncoder.from_pretrained(source).encode_images([photo])
    out = exported(source, tmp_path / "hf", "hf")
    given = AutoProcessor.from_pretrained(out)(
        text=texts, images=[photo], padding="max_length", truncation=True, return_tensors="pt"
    )
    model = AutoModel.from_pretrained(out).eval()
    pixels = given.pop("pixel_values")
    found = [model.get_image_features(pixels).pooler_output]
    assert_same_texts(model.get_text_features(**given).pooler_output, source, texts)
    out = exported(source, tmp_path / "st", "sentence-transformers")
    assert_same_texts(by_sentences(out, texts), source, texts)
    found.append(torch.from_numpy(by_sentences(out, [photo])))
    for features in found:
        assert float((normalize(features, dim=-1) * expected).sum()) > 0.9999


def with_an_added_token(base: Path) -> Path:
    """Add a token behind the end of text, as textual inversion does."""
    model, tokenizer = CLIPModel.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<sks>"])
    old = model.text_model.embeddings.token_embedding.weight.data
    table = torch.nn.Embedding.from_pretrained(torch.cat([old, old.mean(0, keepdim=True)]))
    model.text_model.embeddings.token_embedding = table
    model.config.text_config.vocab_size = len(tokenizer)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    return base


@pytest.mark.parametrize("added", [False, True])
def test_open_clip_takes_the_tokenizer_and_the_end_of_texts(
    added: bool, base: Path, tmp_path: Path
) -> None:
    """It takes the folder's tokenizer where it is named, and pools at the largest id otherwise."""
    source = with_an_added_token(base) if added else base
    out = exported(source, tmp_path / "out", "open_clip")
    described = OpenClipConfig.from_folder(out)
    assert described is not None
    text = described.model_cfg.text_cfg
    assert text.hf_tokenizer_name
    encoder = GmailEncoder.from_pretrained(source)
    assert (text.pool_type, text.eos_id) == (
        ("eos", encoder.tokenizer.eos_token_id) if added else ("argmax", 2)
    )
    texts = [*TEXTS, "a <sks> image"]
    ids = AutoTokenizer.from_pretrained(out)(
        texts,
        max_length=text.context_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids
    state = load_file(out / "open_clip_model.safetensors")
    assert_same_texts(encode_text(state, ids, described.options(read_shape(state))), source, texts)
    assert ("eos_id" in (out / "README.md").read_text()) == added


def test_added_tokens_are_embedded_by_every_format(base: Path, tmp_path: Path) -> None:
    source, texts = with_an_added_token(base), ["a <sks> image", "a red image"]
    assert_same_texts(
        by_transformers(exported(source, tmp_path / "hf", "hf"), texts), source, texts
    )
    out = exported(source, tmp_path / "st", "sentence-transformers")
    assert_same_texts(by_sentences(out, texts), source, texts)


@pytest.fixture
def siglip2(siglip_folder: Path, tmp_path: Path) -> Path:
    """A tiny model with Gemma's tokenizer, of model type ``siglip``, as SigLIP 2 is published."""
    base = tmp_path / "siglip2"
    base.mkdir()
    shutil.copy(siglip_folder / "preprocessor_config.json", base)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,"
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocabulary, [], fuse_unk=True, unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    ends = [("<eos>", 1)]
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=ends)
    backend.save(str(base / "tokenizer.json"))
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")}
    flags = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    settings = {"tokenizer_class": "GemmaTokenizer", "model_max_length": 16, **flags, **special}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2}
    ids = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2}
    text = {**shape, **ids, "vocab_size": len(tokens), "max_position_embeddings": 16}
    config = SiglipConfig(
        text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8}
    )
    SiglipModel(config).save_pretrained(base)
    return base


def test_siglip_2_reads_lower_case(siglip2: Path, tmp_path: Path) -> None:
    encoder = GmailEncoder.from_pretrained(siglip2)
    ids, _ = encoder.tokenize(["A Cat, ", "a cat, "])
    assert torch.equal(ids[0], ids[1])
    assert int(ids[0, -1]) == encoder.tokenizer.pad_token_id
    texts = ["A Cat", "a cat", "TWO " * 30]
    hf = exported(siglip2, tmp_path / "hf", "hf")
    assert_same_texts(by_transformers(hf, texts), siglip2, texts)
    out = exported(siglip2, tmp_path / "st", "sentence-transformers")
    assert_same_texts(by_sentences(out, texts), siglip2, texts)


def test_a_crop_after_a_larger_resize_is_kept_or_refused(base: Path, tmp_path: Path) -> None:
    edit(base / "preprocessor_config.json", size={"shortest_edge": 48})
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    expected = GmailEncoder.from_pretrained(base).encode_images([photo])
    for format, kind in (("hf", CLIPModel), ("llava", CLIPVisionModelWithProjection)):
        out = exported(base, tmp_path / format, format)
        given = AutoImageProcessor.from_pretrained(out)(photo, return_tensors="pt")["pixel_values"]
        model = kind.from_pretrained(out).eval()
        with torch.no_grad():
            result = (
                model.get_image_features(given).pooler_output
                if format == "hf"
                else model(given).image_embeds
            )
        assert torch.allclose(normalize(result, dim=-1), expected, atol=1e-4)
    out = exported(base, tmp_path / "st", "sentence-transformers")
    result = torch.from_numpy(by_sentences(out, [photo]))
    assert torch.allclose(normalize(result, dim=-1), expected, atol=1e-4)
    with pytest.raises(ModelError, match="image transform"):
        exported(base, tmp_path / "open_clip", "open_clip")


@pytest.mark.parametrize("format", ["open_clip", "llava", "sentence-transformers"])
def test_a_vit_is_refused_where_there_is_no_place_for_it(
    format: str, clip_folder: Path, tmp_path: Path
) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**shape, intermediate_size=32, image_size=32, patch_size=8)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    shutil.copy(clip_folder / "preprocessor_config.json", tmp_path / "vit")
    with pytest.raises(ModelError, match=format):
        exported(tmp_path / "vit", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_base_without_a_tokenizer(base: Path, tmp_path: Path) -> None:
    for path in base.glob("tokenizer*"):
        path.unlink()
    out = exported(base, tmp_path / "hf", "hf")
    assert "no tokenizer" in (out / "README.md").read_text()
    with pytest.raises(ModelError, match="tokenizer"):
        exported(base, tmp_path / "st", "sentence-transformers")
