"""SigLIP: equal to transformers' own, with the same routes, and aligned like CLIP."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipModel

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.run import Sources, align
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError
from gmail_align.training.config import OptimConfig
from gmail_align.training.losses import sigmoid_text_losses
from worlds.encoders import disturb

TEXTS = ["a red image", "a blue image of tone 3", "a"]


@pytest.fixture(scope="module")
def plain(siglip_folder: Path) -> SiglipModel:
    return SiglipModel.from_pretrained(siglip_folder).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_features_equal_transformers(siglip_folder: Path, plain: SiglipModel) -> None:
    """Images of odd shapes, squeezed into the square; texts padded to the full length."""
    rng = np.random.default_rng(1)
    sizes = [(40, 50), (64, 33), (32, 32)]
    photos = [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]
    encoder = GmailEncoder.from_pretrained(siglip_folder)
    processor = SiglipImageProcessorPil.from_pretrained(siglip_folder)
    tokens = AutoTokenizer.from_pretrained(siglip_folder)
    ids = tokens(TEXTS, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = plain(ids, processor(photos, return_tensors="pt")["pixel_values"])
    images, texts = encoder.encode_images(photos), encoder.encode_texts(TEXTS)
    assert torch.allclose(images, output.image_embeds, atol=1e-5)
    assert torch.allclose(texts, output.text_embeds, atol=1e-5)
    logits = encoder.logit_scale * texts @ images.T + encoder.backbone.logit_bias
    assert torch.allclose(logits, output.logits_per_text, atol=1e-4)
    assert float(encoder.backbone.logit_bias) == -10.0


def test_padding_is_to_the_full_length(siglip_folder: Path) -> None:
    """A text's features do not depend on the texts beside it, and are not those without padding."""
    encoder = GmailEncoder.from_pretrained(siglip_folder)
    in_a_batch = encoder.encode_texts([TEXTS[2], "a red image of tone 3 4 5 6 7"])[0]
    assert torch.allclose(encoder.encode_texts([TEXTS[2]])[0], in_a_batch, atol=1e-6)
    short = encoder.tokenizer([TEXTS[2]], return_tensors="pt")
    with torch.no_grad():
        bare = encoder.embed_text_ids(short["input_ids"], short["attention_mask"], Route.REAL)
    assert not torch.allclose(normalize(bare[0], dim=-1), in_a_batch, atol=1e-3)


def test_routes(siglip_folder: Path, plain: SiglipModel, pixels: torch.Tensor) -> None:
    """Equal to SigLIP before training; afterwards FROZEN still is, and the others are its maps."""
    encoder = GmailEncoder.from_clip(siglip_folder)
    with torch.no_grad():
        expected = plain.get_image_features(pixels).pooler_output
        for route in Route:
            assert torch.equal(encoder.embed_pixels(pixels, route), expected)
        assert (encoder.dim, encoder.width) == (32, 32)
        disturb(encoder)
        assert torch.equal(encoder.embed_pixels(pixels, Route.FROZEN), expected)
        assert torch.equal(
            encoder.embed_pixels(pixels, Route.REAL_HEAD), expected @ encoder.real_head.T
        )
        assert not torch.allclose(encoder.trunk(pixels, Route.REAL), expected, atol=1e-3)
        assert torch.equal(encoder.lean_trunk(pixels), encoder.trunk(pixels))
        pooled, patches = encoder.trunk_and_patches(pixels, Route.FROZEN)
        hidden = plain.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(pooled, expected)
    assert torch.equal(patches, hidden.mean(dim=1))


def test_the_adapter_is_in_the_vision_layers_and_learns(
    siglip_folder: Path, pixels: torch.Tensor
) -> None:
    encoder = GmailEncoder.from_clip(siglip_folder)
    disturb(encoder)
    adapter = {name for name in encoder.trainable() if ".lora_" in name}
    assert len(adapter) == 2 * 2 * 2
    assert all(name.startswith("clip.vision_model.encoder.layers.") for name in adapter)
    encoder.embed_pixels(pixels, Route.GENERATED).square().sum().backward()
    for name, parameter in encoder.trainable().items():
        assert (parameter.grad is None) == (name == "real_head"), name


@pytest.mark.parametrize("targets", [r"vision_model\..*out_proj", r".*head\.attention\.out_proj"])
def test_an_adapter_in_the_pooling_head_is_refused(targets: str, siglip_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"head\.attention\.out_proj.*would never learn"):
        GmailEncoder.from_clip(siglip_folder, LoraSettings(targets=targets))


def test_round_trip(siglip_folder: Path, pixels: torch.Tensor, tmp_path: Path) -> None:
    encoder = GmailEncoder.from_clip(siglip_folder)
    disturb(encoder)
    encoder.save(tmp_path / "encoder")
    again = GmailEncoder.from_pretrained(tmp_path / "encoder")
    with torch.no_grad():
        for route in Route:
            result = again.embed_pixels(pixels, route)
            assert torch.equal(result, encoder.embed_pixels(pixels, route))
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(again.encode_texts(TEXTS), encoder.encode_texts(TEXTS))


def test_alignment(siglip_folder: Path, world: Any, tmp_path: Path) -> None:
    """The whole stage, with text terms: the kept step lowers the loss on held-out pairs."""
    optim = OptimConfig(steps=12, lr=2e-3, schedule="constant", evaluate_every=4)
    how = {"apply": "best", "select": "loss", "keep_real": "none"}
    config = AlignConfig.model_validate({"batch_size": 6, "holdout": 0.25, "optim": optim, **how})
    sources = (world.pairs, world.real, world.generated)
    made = align(config, Sources(*sources), siglip_folder, tmp_path / "encoder", seed=3)
    guard = made.manifest["notes"]["guard"]
    assert made.manifest["notes"]["applied"]
    assert guard["kept"]["align_loss"] < guard["start"]["align_loss"]
    encoder = GmailEncoder.from_pretrained(made.folder)
    start = GmailEncoder.from_pretrained(siglip_folder)
    assert encoder.base_fingerprint == start.base_fingerprint
    assert encoder.applied and encoder.fingerprint != start.fingerprint


def test_a_sentencepiece_tokenizer_is_read(siglip_folder: Path, tmp_path: Path) -> None:
    """Google's own folders hold a SentencePiece model and nothing else."""
    folder = Path(shutil.copytree(siglip_folder, tmp_path / "siglip"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red image of tone", "a blue image", "green grey"] * 9),
        model_writer=model,
        vocab_size=20,
        bos_id=-1,
        pad_id=-1,
        eos_id=1,
        unk_id=2,
        control_symbols=["<x>"],
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "SiglipTokenizer", "model_max_length": 12})
    )
    encoder = GmailEncoder.from_pretrained(folder)
    ids = encoder.tokenize(["A red image!", "a red image"])[0]
    assert ids.shape == (2, 12)
    assert torch.equal(ids[0], ids[1])  # SigLIP's texts lose case and punctuation
    assert int(ids[0, -1]) == encoder.tokenizer.eos_token_id


@pytest.mark.parametrize("missing", ["end", "padding"])
def test_a_tokenizer_that_does_not_fit_is_refused(
    missing: str, siglip_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(siglip_folder, tmp_path / "siglip"))
    name = "tokenizer.json" if missing == "end" else "tokenizer_config.json"
    content = json.loads((folder / name).read_text())
    content.pop("pad_token", None) if missing == "padding" else content.update(post_processor=None)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"no {missing}"):
        GmailEncoder.from_pretrained(folder).encode_texts(["a"])


def test_a_siglip_without_its_pooling_head_is_refused(siglip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(siglip_folder, tmp_path / "siglip"))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="without its pooling head"):
        GmailEncoder.from_pretrained(folder)


def test_the_sigmoid_loss_is_that_of_transformers(siglip_folder: Path, plain: SiglipModel) -> None:
    encoder = GmailEncoder.from_pretrained(siglip_folder)
    ids, mask = encoder.tokenize(TEXTS)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = plain(ids, pixels, return_loss=True).loss
        images, texts = encoder.embed_pixels(pixels), encoder.embed_text_ids(ids, mask, Route.REAL)
    scale, bias = encoder.logit_scale, encoder.backbone.logit_bias
    assert float(sigmoid_text_losses(images, texts, scale, bias).mean()) == pytest.approx(
        float(expected), rel=1e-5
    )
    nothing = torch.ones(3, 3, dtype=torch.bool)
    own = torch.nn.functional.cosine_similarity(images, texts) * scale + bias
    only_pairs = float(-torch.nn.functional.logsigmoid(own).mean())
    result = float(sigmoid_text_losses(images, texts, scale, bias, nothing).mean())
    assert result == pytest.approx(only_pairs, rel=1e-5)
