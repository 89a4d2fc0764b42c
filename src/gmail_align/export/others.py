"""Exports for open_clip, sentence-transformers and ONNX."""

from __future__ import annotations

import logging
import shutil
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

from gmail_align.artifacts import write_bytes, write_json
from gmail_align.convert.openai_format import encode_image, encode_text, to_openai
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError
from gmail_align.export.hugging_face import export_hf
from gmail_align.export.ready import Ready
from gmail_align.extras import require

ONNX = "model.onnx"
OPSET = 18
_EXTERNAL_BYTES = 1_500_000_000
"""A graph above this has its weights in a file beside it: one file may have 2 GB."""


def export_open_clip(ready: Ready, out: Path) -> dict[str, float]:
    """Write ``open_clip_model.safetensors`` and ``open_clip_config.json``, as open_clip's own are.

    open_clip is no dependency: what is written is run from its bare tensors by the names that
    open_clip gives them.
    """
    clip: Any = ready.merged.plain
    state = to_openai({name: value.float() for name, value in clip.state_dict().items()})
    path = out / "open_clip_model.safetensors"
    write_bytes(path, save(state, {"format": "pt"}))
    write_json(out / "open_clip_config.json", open_clip_config(ready))
    ready.copy_processors(out)
    read, vision, text = load_file(path), clip.config.vision_config, clip.config.text_config
    what, act = "open_clip's tensors, run by their names", vision.hidden_act
    image = ready.check(
        what, lambda x: encode_image(read, x, act, heads=vision.num_attention_heads)
    )
    texts = ready.check_texts(
        what, lambda ids: encode_text(read, ids, act, heads=text.num_attention_heads)
    )
    return {"image": image, "text": texts}


def open_clip_config(ready: Ready) -> dict[str, Any]:
    """Return what open_clip has to be told: ``model_cfg`` and ``preprocess_cfg``.

    Raises:
        ModelError: open_clip has no name for the activation.
    """
    config: Any = ready.merged.plain.config
    vision, text, pixels = config.vision_config, config.text_config, ready.encoder.preprocess
    if {vision.hidden_act, text.hidden_act} not in ({"quick_gelu"}, {"gelu"}):
        raise ModelError(f"open_clip has no CLIP with the activation {vision.hidden_act}")
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": vision.hidden_act == "quick_gelu",
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
        },
        "preprocess_cfg": {
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "interpolation": pixels.interpolation,
            "resize_mode": "squash" if pixels.resize == "square" else "shortest",
        },
    }


def export_sentence_transformers(ready: Ready, out: Path) -> dict[str, float]:
    """Write a folder that ``SentenceTransformer(folder)`` loads, for images and texts."""
    require("sentence_transformers", "export")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import Transformer

    with tempfile.TemporaryDirectory(dir=out, prefix=".tmp-") as name:
        folder = Path(name)
        export_hf(ready, folder)
        whole = SentenceTransformer(modules=[Transformer(str(folder))], device="cpu")
        whole.save(str(out), create_model_card=False)
    loaded = SentenceTransformer(str(out), device="cpu", local_files_only=True)
    first: Any = loaded[0]
    inner = first.auto_model.eval()
    what = "the CLIP inside, loaded by sentence-transformers"
    image = ready.check(what, lambda x: inner.get_image_features(x).pooler_output)
    texts = ready.check_texts(what, lambda ids: inner.get_text_features(ids).pooler_output)
    return {"image": image, "text": texts}


@contextmanager
def _hushed(name: str) -> Iterator[None]:
    """Keep a library from logging what is no error."""
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


def export_onnx(ready: Ready, out: Path) -> dict[str, float]:
    """Write the image tower as one ONNX graph of any batch size, and run it by onnxruntime.

    Input ``pixel_values``, output ``image_embeds``, which is not normalised.
    """
    onnxruntime: Any = require("onnxruntime", "export")
    require("onnxscript", "export")
    tower = _ImageTower(ready.encoder, ready.route).eval()
    pixels = ready.probe["pixels"]
    large = sum(p.numel() * p.element_size() for p in tower.parameters()) > _EXTERNAL_BYTES
    with warnings.catch_warnings(), _hushed("torch.onnx"):
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
    for path in ready.encoder.base_folder.glob("*processor_config.json"):
        shutil.copyfile(path, out / path.name)
    session = onnxruntime.InferenceSession(str(out / ONNX), providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        found = session.run(["image_embeds"], {"pixel_values": batch.numpy()})[0]
        return torch.from_numpy(np.asarray(found))

    three = torch.cat([pixels, pixels[:1]])
    if not np.allclose(run(three)[2], run(pixels)[0], atol=1e-4):
        raise ModelError("the ONNX graph gives other features in a batch of another size")
    return {"image": ready.check("the ONNX graph, run by onnxruntime", run)}
