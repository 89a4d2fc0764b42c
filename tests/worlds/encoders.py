"""A tiny CLIP and a tiny world, shared by tests; everything is made here, nothing is downloaded."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.images import ImageRecord, finish_images, shard_name, write_shard
from gmail_align.data.pairs import make_pairs
from gmail_align.encoders.encoder import GmailEncoder

COLOURS = ("red", "green", "blue", "grey")
WORDS = (*COLOURS, "a", "image", "of", "tone", *map(str, range(40)))
BuildClip = Callable[..., Path]


def write_clip(
    folder: Path,
    *,
    eos_last: bool = True,
    config_eos: int | None = None,
    image_size: int = 32,
    patch_size: int = 8,
    positions: int = 12,
) -> Path:
    """Write a tiny random CLIP with tokenizer and image processor, in Hugging Face's format."""
    special = ["<pad>", "<start>", "<unk>"]
    order = [*special, *WORDS, "<end>"] if eos_last else ["<end>", *special, *WORDS]
    _write_tokenizer(folder, order)
    start, end = order.index("<start>"), order.index("<end>")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    shape |= {"num_hidden_layers": 2, "projection_dim": 24}
    text = CLIPTextConfig(
        **shape,
        vocab_size=len(order),
        max_position_embeddings=positions,
        bos_token_id=start,
        eos_token_id=end if config_eos is None else config_eos,
        pad_token_id=order.index("<pad>"),
    )
    vision = CLIPVisionConfig(**shape, image_size=image_size, patch_size=patch_size)
    towers = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(**towers, projection_dim=24))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    side = image_size
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    return folder


def write_siglip(folder: Path) -> Path:
    """Write a tiny random SigLIP with tokenizer and image processor, in Hugging Face's format."""
    order = ["<pad>", "<start>", "<unk>", *WORDS, "<end>"]
    _write_tokenizer(folder, order, single="$A <end>")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    shape |= {"num_hidden_layers": 2}
    ends = {"eos_token_id": order.index("<end>"), "pad_token_id": 0, "bos_token_id": 1}
    text = {**shape, "vocab_size": len(order), "max_position_embeddings": 12, **ends}
    vision = {**shape, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            model.logit_scale.fill_(2.3)
            model.logit_bias.fill_(-10.0)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_vit(folder: Path) -> Path:
    """Write a tiny random ViT with its image processor, as a converted SynCLR is stored."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = ViTConfig(**shape, num_hidden_layers=2, image_size=32, patch_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path, order: list[str], single: str = "<start> $A <end>") -> None:
    vocabulary = {word: place for place, word in enumerate(order)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, vocabulary[word]) for word in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    names = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **names)
    fast.save_pretrained(folder)


@torch.no_grad()
def disturb(encoder: GmailEncoder, amount: float = 0.2, seed: int = 9) -> GmailEncoder:
    """Change every parameter that training would change; return the encoder."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.trainable().values():
        parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return encoder


@pytest.fixture(scope="session")
def build_clip() -> BuildClip:
    """Return :func:`write_clip`."""
    return write_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP: 2 layers, 32 px, patches of 8."""
    torch.set_num_threads(1)
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SigLIP: 2 layers, 32 px, patches of 8."""
    torch.set_num_threads(1)
    return write_siglip(tmp_path_factory.mktemp("siglip"))


class World(NamedTuple):
    """A data set of 12 real images, two captions each and one generated image a caption."""

    captions: Artifact
    real: Artifact
    generated: Artifact
    pairs: Artifact


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Coloured noise as real images; noisier ones whose colours run as generated ones."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    real, generated, captions = [], [], []
    for number in range(12):
        pixels = _coloured(number, rng)
        real.append(_sample(f"r{number}", pixels, "real"))
        for copy in range(2):
            name = f"c{number}-{copy}"
            text = f"a {COLOURS[number % 4]} image of tone {number} {copy}"
            captions.append(Caption(name, text, f"r{number}"))
            off = 0.5 * (pixels.astype(float) + np.roll(pixels, 1, axis=-1)) + rng.normal(
                0, 8, pixels.shape
            )
            made = np.clip(off, 0, 255).astype(np.uint8)
            generated.append(_sample(f"{name}-0", made, "generated", text))
    images = [_store(folder / "real", real), _store(folder / "generated", generated)]
    draft = begin(folder / "captions", "captions", {})
    texts = draft.finish({"captions": write_captions(draft, captions)})
    return World(texts, *images, make_pairs(texts, *images, folder / "pairs"))


def _coloured(number: int, rng: np.random.Generator) -> np.ndarray:
    pixels = rng.integers(0, 60, (40, 48, 3))
    channel = number % 4
    pixels[..., channel if channel < 3 else slice(None)] += 60 + 10 * number
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _sample(
    name: str, pixels: np.ndarray, source: str, prompt: str = ""
) -> tuple[ImageRecord, bytes]:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.save(buffer, format="PNG")
    record = ImageRecord(
        id=name, width=image.width, height=image.height, source=source, prompt=prompt
    )
    return record, buffer.getvalue()


def _store(folder: Path, samples: list[tuple[ImageRecord, bytes]]) -> Artifact:
    draft = begin(folder, "images", {})
    write_shard(draft.path(shard_name(0)), samples)
    return finish_images(draft)
