"""Exports: what other libraries make of a folder is what the encoder makes of the image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ViTForImageClassification,
    ViTModel,
)

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.run import Sources, align
from gmail_align.artifacts import Artifact
from gmail_align.convert.config import ConvertConfig
from gmail_align.convert.convert import convert
from gmail_align.encoders.config import EncoderLayout, LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, DataError, ModelError
from gmail_align.export.config import ExportConfig
from gmail_align.export.run import export
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.results import begin_result
from gmail_align.training.config import OptimConfig
from worlds.encoders import disturb
from worlds.openai_model import OpenAIModel, TimmViT

TEXTS = ["a red image", "a blue image of tone 3", "a"]
ROUTES = [Route.REAL, Route.GENERATED]


def disturbed(
    base: Path, out: Path, layout: EncoderLayout | None = None, lora: LoraSettings | None = None
) -> Path:
    """Save an encoder every weight of which has been changed."""
    encoder = disturb(GmailEncoder.from_clip(base, lora, layout=layout))
    encoder.save(out)
    return out


@pytest.fixture(scope="module")
def folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disturbed(clip_folder, tmp_path_factory.mktemp("encoder") / "encoder")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    sizes = [(40, 50), (64, 33), (32, 32)]
    return [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]


def features(folder: Path, pixels: torch.Tensor, route: Route) -> torch.Tensor:
    with torch.no_grad():
        return GmailEncoder.from_pretrained(folder).embed_pixels(pixels, route)


def made(folder: Path, out: Path, format: str, route: Route = Route.REAL) -> Artifact:
    return export(ExportConfig(format=format, route=route), folder, out)


@pytest.mark.parametrize("route", ROUTES)
def test_hf(route: Route, folder: Path, photos: list[Image.Image], tmp_path: Path) -> None:
    artifact = made(folder, tmp_path / "hf", "hf", route)
    model = CLIPModel.from_pretrained(artifact.folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(artifact.folder)
    encoder = GmailEncoder.from_pretrained(folder)
    with torch.no_grad():
        given = processor(photos, return_tensors="pt")["pixel_values"]
        images = normalize(model.get_image_features(given).pooler_output, dim=-1)
    assert torch.allclose(images, encoder.encode_images(photos, route), atol=1e-5)
    assert not torch.allclose(images, encoder.encode_images(photos, "frozen"), atol=1e-2)
    again = GmailEncoder.from_pretrained(artifact.folder)
    assert torch.allclose(again.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-6)
    assert not any(".lora_" in name for name in load_file(artifact.path("model.safetensors")))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("route", ROUTES)
def test_peft(route: Route, folder: Path, pixels: torch.Tensor, tmp_path: Path) -> None:
    artifact = made(folder, tmp_path / "peft", "peft", route)
    base = CLIPModel.from_pretrained(artifact.folder / "base").eval()
    model = peft.PeftModel.from_pretrained(base, str(artifact.folder)).eval()
    with torch.no_grad():
        result = model.base_model.model.get_image_features(pixels).pooler_output
        assert torch.allclose(result, features(folder, pixels, route), atol=1e-5)
        merged = model.merge_and_unload().get_image_features(pixels).pooler_output
    assert torch.allclose(merged, result, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("towers", ["both", "text"])
@torch.no_grad()
def test_an_adapted_text_tower_goes_along(towers: Any, clip_folder: Path, tmp_path: Path) -> None:
    """Merged, as an adapter and in sentence-transformers; not on the frozen route."""
    source = disturbed(clip_folder, tmp_path / "e", lora=LoraSettings(towers=towers))
    encoder = GmailEncoder.from_pretrained(source)
    ids, mask = encoder.tokenize(TEXTS)
    expected = encoder.embed_texts(TEXTS, Route.REAL)
    frozen = encoder.embed_texts(TEXTS, Route.FROZEN)
    assert not torch.allclose(expected, frozen, atol=1e-2)
    plain = CLIPModel.from_pretrained(made(source, tmp_path / "hf", "hf").folder).eval()
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert torch.allclose(plain.get_text_features(**inputs).pooler_output, expected, atol=1e-5)
    out = made(source, tmp_path / "peft", "peft").folder
    adapted = peft.PeftModel.from_pretrained(
        CLIPModel.from_pretrained(out / "base"), str(out)
    ).eval()
    inner = adapted.base_model.model
    assert torch.allclose(inner.get_text_features(**inputs).pooler_output, expected, atol=1e-5)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    image = inner.get_image_features(pixels).pooler_output
    assert torch.allclose(image, encoder.embed_pixels(pixels, Route.REAL), atol=1e-5)
    sentences = SentenceTransformer(
        str(made(source, tmp_path / "st", "sentence-transformers").folder), device="cpu"
    )
    result = normalize(torch.from_numpy(sentences.encode(TEXTS)), dim=-1)
    assert torch.allclose(result, normalize(expected, dim=-1), atol=1e-5)
    unmoved = made(source, tmp_path / "frozen", "hf", Route.FROZEN).folder
    texts = CLIPModel.from_pretrained(unmoved).eval().get_text_features(**inputs).pooler_output
    assert torch.allclose(texts, frozen, atol=1e-5)


@pytest.mark.parametrize("route", ROUTES)
def test_llava_reads_its_patches(
    route: Route, folder: Path, pixels: torch.Tensor, tmp_path: Path
) -> None:
    """As LLaVA's own tower does: a CLIPVisionModel, hidden_states[-2], without the class token."""
    artifact = made(folder, tmp_path / "tower", "llava", route)
    config = json.loads(artifact.path("config.json").read_text())
    assert config["architectures"] == ["CLIPVisionModelWithProjection"]
    assert all(
        name.startswith(("vision_model.", "visual_projection."))
        for name in load_file(artifact.path("model.safetensors"))
    )
    tower = CLIPVisionModel.from_pretrained(artifact.folder).eval()
    whole = CLIPVisionModelWithProjection.from_pretrained(artifact.folder).eval()
    encoder = GmailEncoder.from_pretrained(folder)
    with torch.no_grad():
        patches = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:].mean(dim=1)
        expected = encoder.trunk_and_patches(pixels, route)[1]
        assert torch.allclose(patches, expected, atol=1e-5)
        embeds = whole(pixels).image_embeds
    assert torch.allclose(embeds, features(folder, pixels, route), atol=1e-5)
    assert artifact.path("preprocessor_config.json").exists()


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_open_clip(act: str, pixels: torch.Tensor, tmp_path: Path) -> None:
    """The state dict of an encoder on a CLIP of OpenAI's shape, run by torch's own modules."""
    torch.manual_seed(0)
    plain = OpenAIModel(act=act).eval()
    torch.save(dict(plain.state_dict()), tmp_path / "weights.pt")
    base = convert(tmp_path / "weights.pt", tmp_path / "base", ConvertConfig(activation=act))
    folder = disturbed(base.folder, tmp_path / "encoder")
    artifact = made(folder, tmp_path / "out", "open_clip")
    state = load_file(artifact.path("open_clip_model.safetensors"))
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert {name: tensor.shape for name, tensor in state.items()} == shapes
    plain.load_state_dict(state)
    with torch.no_grad():
        result = plain.visual(pixels)
    assert torch.allclose(result, features(folder, pixels, Route.REAL), atol=1e-4)
    described = json.loads(artifact.path("open_clip_config.json").read_text())
    assert described["model_cfg"]["quick_gelu"] is (act == "quick_gelu")
    assert described["model_cfg"]["vision_cfg"] == {
        "image_size": 32,
        "layers": 2,
        "width": 128,
        "patch_size": 8,
        "head_width": 64,
        "mlp_ratio": 4.0,
    }
    again = convert(artifact.path("open_clip_model.safetensors"), tmp_path / "b", ConvertConfig())
    assert again.manifest["notes"]["activation"] == act
    back = features(again.folder, pixels, Route.FROZEN)
    assert torch.allclose(back, result, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_sentence_transformers(folder: Path, photos: list[Image.Image], tmp_path: Path) -> None:
    artifact = made(folder, tmp_path / "st", "sentence-transformers", Route.GENERATED)
    model = SentenceTransformer(str(artifact.folder), device="cpu", local_files_only=True)
    encoder = GmailEncoder.from_pretrained(folder)
    squares = [photo.resize((32, 32)) for photo in photos]  # its resizing is torchvision's or none
    images = torch.from_numpy(model.encode(squares, normalize_embeddings=True))
    texts = torch.from_numpy(model.encode(TEXTS, normalize_embeddings=True))
    assert torch.allclose(images, encoder.encode_images(squares, "generated"), atol=1e-4)
    assert torch.allclose(texts, encoder.encode_texts(TEXTS), atol=1e-4)


def test_onnx(folder: Path, pixels: torch.Tensor, tmp_path: Path) -> None:
    artifact = made(folder, tmp_path / "onnx", "onnx", Route.GENERATED)
    session = onnxruntime.InferenceSession(str(artifact.path("model.onnx")))
    for count in (1, 3, 5):
        result = session.run(None, {"pixel_values": pixels[:count].numpy()})[0]
        expected = features(folder, pixels[:count], Route.GENERATED).numpy()
        assert np.abs(result - expected).max() < 1e-4


def test_siglip(siglip_folder: Path, pixels: torch.Tensor, tmp_path: Path) -> None:
    """Its trained head has no place in a SiglipModel: peft brings it beside, onnx inside."""
    folder = disturbed(siglip_folder, tmp_path / "encoder")
    expected = features(folder, pixels, Route.REAL)
    adapter = made(folder, tmp_path / "peft", "peft")
    assert load_file(adapter.path("head.safetensors"))["weight"].shape == (32, 32)
    graph = made(folder, tmp_path / "onnx", "onnx")
    session = onnxruntime.InferenceSession(str(graph.path("model.onnx")))
    result = session.run(None, {"pixel_values": pixels.numpy()})[0]
    assert np.abs(result - expected.numpy()).max() < 1e-4
    with pytest.raises(ModelError, match="onnx or peft"):
        made(folder, tmp_path / "hf", "hf")
    with pytest.raises(ModelError, match="llava"):
        made(folder, tmp_path / "llava", "llava")
    plain = made(siglip_folder, tmp_path / "plain", "hf", Route.FROZEN)
    again = features(plain.folder, pixels, Route.FROZEN)
    assert torch.equal(again, features(siglip_folder, pixels, Route.FROZEN))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_syn_clr(pixels: torch.Tensor, tmp_path: Path) -> None:
    """Its features are the logits of a ViT for classification; peft finds its layers by name."""
    torch.manual_seed(0)
    save_file(dict(TimmViT().state_dict()), tmp_path / "weights.safetensors")
    base = convert(tmp_path / "weights.safetensors", tmp_path / "base", ConvertConfig(heads=2))
    folder = disturbed(base.folder, tmp_path / "encoder")
    expected = features(folder, pixels, Route.GENERATED)
    whole = made(folder, tmp_path / "hf", "hf", Route.GENERATED)
    model = ViTForImageClassification.from_pretrained(whole.folder).eval()
    adapter = made(folder, tmp_path / "peft", "peft", Route.GENERATED)
    vit = ViTModel.from_pretrained(adapter.folder / "base", add_pooling_layer=False).eval()
    loaded = peft.PeftModel.from_pretrained(vit, str(adapter.folder)).eval()
    head = load_file(adapter.path("head.safetensors"))["weight"]
    with torch.no_grad():
        assert torch.allclose(model(pixels).logits, expected, atol=1e-4)
        pooled = loaded.base_model.model(pixels).last_hidden_state[:, 0]
    assert torch.allclose(pooled @ head.T, expected, atol=1e-4)
    with pytest.raises(ModelError, match="open_clip"):
        made(folder, tmp_path / "open_clip", "open_clip")


@pytest.mark.parametrize(
    "layout",
    [
        {"tune": "full"},
        {"trunk": "separate"},
        {"trunk": "frozen_real"},
        {"tune": "none"},
        {"tune": "none", "norm": "batch"},
    ],
    ids=lambda layout: "-".join(layout.values()),
)
def test_every_layout_is_baked_in(
    layout: dict[str, str], clip_folder: Path, pixels: torch.Tensor, tmp_path: Path
) -> None:
    folder = disturbed(clip_folder, tmp_path / "encoder", EncoderLayout(**layout))
    for route in ROUTES:
        artifact = made(folder, tmp_path / route, "hf", route)
        model = CLIPModel.from_pretrained(artifact.folder).eval()
        with torch.no_grad():
            result = model.get_image_features(pixels).pooler_output
        assert torch.allclose(result, features(folder, pixels, route), atol=1e-5)
    if layout.get("tune"):
        with pytest.raises(ModelError, match="has no adapter"):
            made(folder, tmp_path / "peft", "peft")


@pytest.mark.parametrize(
    ("layout", "format"),
    [({"head": "residual"}, "hf"), ({"norm": "layer"}, "hf"), ({"norm": "batch"}, "peft")],
)
def test_a_head_with_more_than_a_matrix_is_refused(
    layout: dict[str, Any], format: str, clip_folder: Path, tmp_path: Path
) -> None:
    folder = disturbed(clip_folder, tmp_path / "encoder", EncoderLayout(**layout))
    with pytest.raises(ModelError, match="hidden layer.*export it as onnx"):
        made(folder, tmp_path / "out", format)


@pytest.mark.parametrize("head", ["residual", "affine"])
def test_a_head_that_is_more_than_a_matrix_is_exported_as_onnx(
    head: Any, clip_folder: Path, tmp_path: Path
) -> None:
    folder = disturbed(clip_folder, tmp_path / "encoder", EncoderLayout(head=head))
    artifact = made(folder, tmp_path / "onnx", "onnx", Route.GENERATED)
    assert artifact.path("model.onnx").exists()
    with pytest.raises(ModelError, match="onnx"):
        made(folder, tmp_path / "hf", "hf", Route.GENERATED)


def test_a_load_that_differs_is_an_error(folder: Path, tmp_path: Path) -> None:
    artifact = made(folder, tmp_path / "hf", "hf")
    tensors = load_file(artifact.path("model.safetensors"))
    tensors["visual_projection.weight"] *= 1.01
    save_file(tensors, artifact.path("model.safetensors"), {"format": "pt"})
    with pytest.raises(ModelError, match="features of the probe differ by"):
        GmailEncoder.from_pretrained(artifact.folder)


def test_a_finished_export_is_not_repeated(folder: Path, tmp_path: Path) -> None:
    artifact = made(folder, tmp_path / "hf", "hf")
    assert made(folder, tmp_path / "hf", "hf") == artifact
    with pytest.raises(ArtifactError, match=r"config\.route .*'real' .*'generated'"):
        made(folder, tmp_path / "hf", "hf", Route.GENERATED)


@pytest.fixture(scope="module")
def aligned(clip_folder: Path, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    optim = OptimConfig(steps=6, lr=2e-3, schedule="constant", evaluate_every=3)
    config = AlignConfig(batch_size=6, holdout=0.25, optim=optim)
    out = tmp_path_factory.mktemp("aligned") / "encoder"
    return align(
        config, Sources(world.pairs, world.real, world.generated), clip_folder, out, seed=3
    )


def test_the_card_tells_recipe_data_and_results(
    aligned: Artifact, world: Any, tmp_path: Path
) -> None:
    begun = begin_result(
        tmp_path / "result", {}, {}, protocol="retrieval", task=None, n={"images": 12}
    )
    result = begun.finish({"R@1": Estimate(0.4, 0.3, 0.5, 12)}).artifact
    assert result is not None
    config = ExportConfig(format="hf")
    artifact = export(
        config, aligned.folder, tmp_path / "hf", data=[world.generated], results=[result]
    )
    card = artifact.path("README.md").read_text()
    guard = aligned.manifest["notes"]["guard"]["kept"]["align_loss"]
    for words in (
        "by the route `real`",
        '"temperature": 0.07',
        f"{guard:.4f}",
        world.generated.fingerprint,
        "**generated** (images",
        "| retrieval | R@1 | 0.4000 | 0.3000 to 0.5000 | 12 images |",
        "transformers ",
        "turned by their EXIF tag",
    ):
        assert words in card, words
    with pytest.raises(DataError, match=str(world.captions.folder)):
        export(config, aligned.folder, tmp_path / "other", data=[world.captions])
    checked = artifact.manifest["notes"]["checked"]
    assert set(checked["versions"]) == {"torch", "transformers"}
    assert checked["differences"]["image"] < 1e-5


def test_the_card_shows_what_was_saved_of_an_alignment_at_part_of_its_strength(
    aligned: Artifact, tmp_path: Path
) -> None:
    """The guard's row is that of the strength that was kept."""
    source = Path(shutil.copytree(aligned.folder, tmp_path / "encoder"))
    manifest = json.loads((source / "manifest.json").read_text())
    kept = {**manifest["notes"]["guard"]["kept"], "align_loss": 0.6262}
    manifest["notes"]["guard"]["kept"] = kept
    rows = [(0.5, 0.6262, 1.0), (1.0, 0.6736, 0.0)]
    manifest["notes"]["strengths"] = [
        {"strength": strength, "align_loss": loss, "kept": chosen}
        for strength, loss, chosen in rows
    ]
    (source / "manifest.json").write_text(json.dumps(manifest))
    card = made(source, tmp_path / "hf", "hf").path("README.md").read_text()
    assert "strength 0.5" in card
    assert "0.6262" in card
    assert "0.6736" not in card


def test_the_card_of_an_encoder_without_a_manifest(folder: Path, tmp_path: Path) -> None:
    card = made(folder, tmp_path / "tower", "llava").path("README.md").read_text()
    assert "An encoder without a manifest" in card


def test_a_plain_clip_can_be_exported(
    clip_folder: Path, pixels: torch.Tensor, tmp_path: Path
) -> None:
    artifact = made(clip_folder, tmp_path / "tower", "llava")
    assert "A plain model, not aligned." in artifact.path("README.md").read_text()
