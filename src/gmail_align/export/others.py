"""Exports for open_clip, sentence-transformers and ONNX."""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import AutoTokenizer

from gmail_align.artifacts import write_bytes, write_json
from gmail_align.convert.open_clip_config import OPEN_CLIP_CONFIG, NormOptions, OpenClipConfig
from gmail_align.convert.openai_format import encode_image, encode_text, read_shape, to_openai
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import no_bars
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError, damage_explained
from gmail_align.export.hugging_face import export_hf
from gmail_align.export.source import ExportSource, pixels_of
from gmail_align.extras import require
from gmail_align.leases import TEMPORARY

ONNX = "model.onnx"
OPSET = 18
_OPEN_CLIP = 3
"""The oldest major version that pools texts at ``eos_id`` and takes a folder's own tokenizer."""
_EXTERNAL_BYTES = 1_500_000_000
"""A graph above this has its weights in a file beside it: one file may have 2 GB."""


def export_open_clip(source: ExportSource, out: Path) -> dict[str, float]:
    """Write ``open_clip_model.safetensors`` and ``open_clip_config.json``, as open_clip's own are.

    open_clip is not a dependency. What is written is run from its bare tensors, by the description
    that lies beside them; where open_clip is installed, it loads the folder as well.

    Raises:
        ModelError: open_clip has no name for the activation or for the image transform.
    """
    description, clip = _describe(source), source.merged.plain
    state = to_openai({name: value.float() for name, value in clip.state_dict().items()})
    path = out / "open_clip_model.safetensors"
    write_bytes(path, save(state, {"format": "pt"}))
    write_json(out / OPEN_CLIP_CONFIG, description)
    source.write_processors(out)
    tensors, described = load_file(path), OpenClipConfig.from_folder(out)
    assert described is not None, "it was written above"
    shape = read_shape(tensors)
    options = described.options(shape)
    described.check_shape(shape, stretched=False)
    source.notes.append("open_clip's own image transform may cut one pixel beside ours.")
    what = "open_clip's tensors, run by their description"

    def embed_texts(texts: list[str]) -> Tensor:
        tokenizer: Any = AutoTokenizer.from_pretrained(out, local_files_only=True)
        batch = tokenizer(
            [" ".join(text.split()) for text in texts],
            max_length=described.model_cfg.text_cfg.context_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        return encode_text(tensors, batch["input_ids"], options)

    differences = {
        "image": source.check(what, lambda pixels: encode_image(tensors, pixels, options)),
        "token ids": source.check_ids(what, lambda ids: encode_text(tensors, ids, options)),
        "text": source.check_texts(what, embed_texts),
    }
    return differences | _check_by_open_clip(source, out)


def _check_by_open_clip(source: ExportSource, out: Path) -> dict[str, float]:
    """Load the folder by open_clip itself and compare, where open_clip is installed and works."""
    try:
        open_clip: Any = importlib.import_module("open_clip")
    except Exception:  # a torchvision that does not fit torch raises RuntimeError
        return {}
    if int(open_clip.__version__.split(".")[0]) < _OPEN_CLIP:
        source.notes.append(
            f"It takes open_clip {_OPEN_CLIP} or newer; {open_clip.__version__}, which is "
            "installed here, was not asked."
        )
        return {}
    with damage_explained("what was exported", ModelError, "report which open_clip this was"):
        model, transform = open_clip.create_model_from_pretrained(f"local-dir:{out}")
        tokenize, what = open_clip.get_tokenizer(f"local-dir:{out}"), "open_clip"
    model.eval()
    return {
        "open_clip's photo": source.check_photo(
            what, lambda image: model.encode_image(transform(image)[None])
        ),
        "open_clip's text": source.check_texts(
            what, lambda texts: model.encode_text(tokenize(texts))
        ),
    }


def _describe(source: ExportSource) -> dict[str, Any]:
    """Return what open_clip has to be told: ``model_cfg`` and ``preprocess_cfg``."""
    backbone, pixels = source.merged, source.encoder.preprocess
    vision, text = backbone.vision_config, backbone.text_config
    if {vision.hidden_act, text.hidden_act} not in ({"quick_gelu"}, {"gelu"}):
        raise ModelError(f"open_clip has no CLIP with the activation {vision.hidden_act}")
    if pixels.resize_to is not None or pixels.interpolation not in ("bicubic", "bilinear"):
        raise ModelError(
            "open_clip has no name for this image transform (another size before the crop, or a "
            "filter that is neither bicubic nor bilinear): export it as hf"
        )
    towers: dict[str, dict[str, Any]] = {
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    }
    for name, tower in (("vision_cfg", vision), ("text_cfg", text)):
        if tower.layer_norm_eps != NormOptions().eps:
            towers[name]["norm_kwargs"] = {"eps": tower.layer_norm_eps}
    end = source.probe["input_ids"][1, -1].item()
    if end != text.vocab_size - 1:  # open_clip pools at the largest id unless it is told
        towers["text_cfg"] |= {"pool_type": "eos", "eos_id": end}
        source.notes.append(
            f"It takes open_clip {_OPEN_CLIP} or newer, which pools texts at `eos_id`."
        )
    if source.tokenizer is not None:
        towers["text_cfg"]["hf_tokenizer_name"] = "."
        source.notes.append(
            "open_clip takes the tokenizer of this folder; when you upload the folder, set "
            "`hf_tokenizer_name` in `open_clip_config.json` to the name of the repository. It "
            "repairs texts (ftfy, HTML entities) first, which the encoder does not."
        )
    return {
        "model_cfg": {
            "embed_dim": source.encoder.dim,
            "quick_gelu": vision.hidden_act == "quick_gelu",
            **towers,
        },
        "preprocess_cfg": {
            "size": pixels.size,
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "interpolation": pixels.interpolation,
            "resize_mode": "squash" if pixels.resize == "square" else "shortest",
        },
    }


def export_sentence_transformers(source: ExportSource, out: Path) -> dict[str, float]:
    """Write a folder that ``SentenceTransformer(folder)`` loads, for images and texts.

    Raises:
        ModelError: the base has no tokenizer, without which that library loads nothing.
    """
    require("sentence_transformers", "export")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import Transformer

    if source.tokenizer is None:
        raise ModelError("sentence-transformers takes a tokenizer, which the base does not have")
    padding = {"text": {"padding": "max_length"}} if source.merged.full_length else None
    with (
        tempfile.TemporaryDirectory(dir=out, prefix=".", suffix=TEMPORARY) as name,
        no_bars(),
    ):
        folder = Path(name)
        export_hf(source, folder)
        module = Transformer(str(folder), processing_kwargs=padding)
        whole = SentenceTransformer(modules=[module], device="cpu")
        whole.save(str(out), create_model_card=False)
    with no_bars():
        loaded = SentenceTransformer(str(out), device="cpu", local_files_only=True)
    first: Any = loaded[0]
    inner, what = first.auto_model.eval(), "the model, loaded by sentence-transformers"

    def encode(batch: Any) -> Tensor:
        return torch.from_numpy(np.asarray(loaded.encode(batch, show_progress_bar=False)))

    return {
        "image": source.check(what, lambda pixels: inner.get_image_features(pixels).pooler_output),
        "photo": source.check_photo(what, lambda image: encode([image])),
        "text": source.check_texts(what, encode),
    }


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a library from logging what is not an error."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _ImageTower(nn.Module):
    """One route of an encoder as a module of pixels."""

    def __init__(self, encoder: GmailEncoder, route: Route) -> None:
        super().__init__()
        self.encoder, self.route = encoder, route

    def forward(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.encoder.embed_pixels(pixel_values, self.route)
        return features


def export_onnx(source: ExportSource, out: Path) -> dict[str, float]:
    """Write the image tower as one ONNX graph of any batch size, and run it by onnxruntime.

    Input ``pixel_values``, output ``image_embeds``, which is not normalised.
    """
    onnxruntime: Any = require("onnxruntime", "export")
    require("onnxscript", "export")
    tower = _ImageTower(source.encoder, source.route).eval()
    pixels = source.probe["pixels"]
    large = sum(p.numel() * p.element_size() for p in tower.parameters()) > _EXTERNAL_BYTES
    with warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            tower,
            (pixels,),
            str(out / ONNX),
            input_names=["pixel_values"],
            output_names=["image_embeds"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            external_data=large,
            dynamo=True,
            verbose=False,
        )
    write_json(out / "preprocessor_config.json", source.encoder.preprocess.to_config())
    session = onnxruntime.InferenceSession(str(out / ONNX), providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        features = session.run(["image_embeds"], {"pixel_values": batch.numpy()})[0]
        return torch.from_numpy(np.asarray(features))

    three = torch.cat([pixels, pixels[:1]])
    if not np.allclose(run(three)[2], run(pixels)[0], atol=1e-4):
        raise ModelError("the ONNX graph gives other features in a batch of another size")
    what = "the ONNX graph, run by onnxruntime"
    return {
        "image": source.check(what, run),
        "photo": source.check_photo(what, lambda image: run(pixels_of(out, image))),
    }
