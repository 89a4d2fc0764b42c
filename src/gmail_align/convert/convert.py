"""The stage: weights from elsewhere in, a folder in Hugging Face's format out.

OpenAI's and open_clip's CLIPs, Long-CLIP, SynCLR, and any CLIP folder whose text positions shall be
stretched. What is written is loaded again and compared, on a probe, with the bare tensors as they
came.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gmail_align.artifacts import MANIFEST, Artifact, begin, sha256_file, write_json
from gmail_align.convert import openai_format, timm_format
from gmail_align.convert.config import ConvertConfig
from gmail_align.convert.open_clip_config import OPEN_CLIP_CONFIG, OpenClipConfig
from gmail_align.convert.openai_format import ClipOptions, TowerOptions
from gmail_align.convert.timm_config import TimmConfig
from gmail_align.convert.weights import read_weights
from gmail_align.encoders.backbones import load_backbone
from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.backbones.clip import KEPT, ClipBackbone, stretch_positions
from gmail_align.encoders.backbones.vit import VitBackbone
from gmail_align.encoders.folder import find_folder, folder_fingerprint, no_bars, read_config
from gmail_align.encoders.preprocess import PREPROCESSOR, Preprocess
from gmail_align.encoders.probe import compare, probe_ids, write_probe
from gmail_align.errors import ModelError, damage_explained
from gmail_align.progress import say

KIND = "backbone"
SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}
"""Names of files of weights end so."""
_MERGES = 49152 - 256 - 2
"""Merges of OpenAI's vocabulary file that its tokenizer uses."""
_LARGEST = 64 * 2**20
"""Most bytes of that file that are read."""


@dataclass
class Converted:
    """A model, and what its features are by the weights that it was made from."""

    backbone: Backbone
    probe: dict[str, Tensor]
    """``pixels``, ``image_features`` and, with a text tower, ``input_ids``, ``text_features``."""
    preprocessor: dict[str, Any]
    positions: int | None = None
    """Text positions; None without a text tower."""
    notes: dict[str, Any] = field(default_factory=dict)


def convert(
    source: str | Path, out: Path, config: ConvertConfig, *, tokenizer: Path | None = None
) -> Artifact:
    """Convert weights to a Hugging Face folder; an artifact of kind ``backbone``.

    Args:
        source: A file of weights, or the folder or hub id of a CLIP that shall be stretched.
        out: Folder of what is made.
        config: The activation, and the text positions to stretch to.
        tokenizer: The model's tokenizer: a folder in Hugging Face's format, or OpenAI's
            ``bpe_simple_vocab_16e6.txt.gz``. Without one, a folder keeps its own, and a model from
            a file takes no texts.

    Raises:
        ModelError: the weights or the tokenizer cannot be used, the activation is not known, or
            what was written does not give the same features when it is loaded again.
    """
    path = Path(source)
    is_file = path.suffix in SUFFIXES and not path.is_dir()
    folder = None if is_file else find_folder(source)
    if is_file and not path.exists():
        raise ModelError(f"there is no file of weights at {path}")
    inputs = {
        "source": folder_fingerprint(folder) if folder else sha256_file(path),
        "tokenizer": _fingerprint(tokenizer) if tokenizer else "",
    }
    made = None  # read before the folder is begun, so that what cannot be read leaves nothing
    if not (out / MANIFEST).exists():
        with damage_explained(source, ModelError, "give the weights of a CLIP"):
            made = _stretched(folder, config) if folder else _from_file(path, config)
    draft = begin(out, KIND, config.model_dump(mode="json"), inputs)
    if draft.complete is not None:
        return draft.complete
    assert made is not None, "begin would have found the manifest"
    with no_bars():
        made.backbone.plain.save_pretrained(out)
    write_json(out / PREPROCESSOR, made.preprocessor)
    has_tokenizer = _write_tokenizer(tokenizer or folder, out, made.positions)
    difference = _check(made, out)
    write_probe(out, made.probe)
    parameters = sum(p.numel() for p in made.backbone.plain.parameters())
    return draft.finish(
        {"parameters": parameters},
        model=type(made.backbone.plain).__name__,
        tokenizer=has_tokenizer,
        largest_difference=difference,
        **made.notes,
    )


def _from_file(path: Path, config: ConvertConfig) -> Converted:
    state = read_weights(path)
    if timm_format.is_timm(state):
        return _syn_clr(path, state, config)
    plain = openai_format.normalise_state(state)
    if not openai_format.is_openai(plain):
        some = ", ".join(sorted(state)[:3])
        raise ModelError(
            f"{path} holds neither a CLIP in OpenAI's naming nor a ViT in timm's (it begins "
            f"with {some}): only these can be converted"
        )
    return _open_ai(path, state, plain, config)


def _open_ai(
    path: Path, state: dict[str, Tensor], plain: dict[str, Tensor], config: ConvertConfig
) -> Converted:
    if config.stretch:
        table = plain["positional_embedding"]
        plain["positional_embedding"] = stretch_positions(table, config.stretch)
    shape, described = openai_format.read_shape(plain), OpenClipConfig.from_folder(path.parent)
    if described is None:
        described = OpenClipConfig()
        options = _undescribed(path, state, shape, config)
    else:
        described.check_shape(shape, stretched=config.stretch is not None)
        options = described.options(shape)
        _refuse_contradiction(path, options, config)
    backbone = ClipBackbone(openai_format.build_hf(plain, options))
    probe = backbone.probe_inputs()
    probe |= {
        "image_features": openai_format.encode_image(plain, probe["pixels"], options),
        "text_features": openai_format.encode_text(plain, probe["input_ids"], options),
    }
    long = openai_format.RESIDUAL in state
    notes = {
        "format": "Long-CLIP" if long else "OpenAI",
        "activation": options.activation,
        "heads": [options.vision.heads, options.text.heads],
    }
    preprocessor = described.preprocess(shape.image_size).to_config()
    return Converted(backbone, probe, preprocessor, shape.positions, notes)


def _syn_clr(path: Path, state: dict[str, Tensor], config: ConvertConfig) -> Converted:
    if config.stretch or config.activation == "quick_gelu":
        raise ModelError("a ViT in timm's naming has no texts to stretch, and uses GELU")
    described = TimmConfig.from_folder(path.parent)
    heads = config.heads if described is None else described.heads(config.heads)
    if heads is None:
        raise ModelError(
            f"{path} does not tell how many attention heads its ViT has: give --heads (12 for the "
            "usual ViT-B, 16 for ViT-L)"
        )
    plain = timm_format.vision_state(state)
    backbone = VitBackbone.of(timm_format.build_vit(plain, heads))
    probe = backbone.probe_inputs()
    probe["image_features"] = timm_format.encode_image(plain, probe["pixels"], heads)
    notes = {
        "format": "timm",
        "activation": "gelu",
        "heads": [heads],
        "left_behind": len(state) - len(plain),
    }
    size, width = backbone.vision_config.image_size, backbone.vision_config.hidden_size
    if described is None:
        steps = Preprocess(size)
        say(
            "images are normalised as CLIP's: if others were used, correct preprocessor_config.json"
        )
    else:
        steps = described.preprocess(size, width)
    return Converted(backbone, probe, steps.to_config(), None, notes)


def _stretched(folder: Path, config: ConvertConfig) -> Converted:
    """Stretch a CLIP in Hugging Face's format; texts within the kept positions stay the same."""
    read_config(folder)
    if config.stretch is None or config.activation is not None:
        raise ModelError(
            f"{folder} is in Hugging Face's format already: all that can be done is to --stretch it"
        )
    before = load_backbone(folder)
    after = before.stretch(config.stretch)
    inputs = after.probe_inputs()
    kept = probe_ids(after.text_config.vocab_size, KEPT)
    with torch.no_grad():
        features = before.image_features(inputs["pixels"])
        old, new = (b.text_features(kept, torch.ones_like(kept)) for b in (before, after))
        compare(new, old, f"texts of up to {KEPT} tokens after stretching")
        texts = after.text_features(inputs["input_ids"], torch.ones_like(inputs["input_ids"]))
    probe = {**inputs, "image_features": features, "text_features": texts}
    activation = after.text_config.hidden_act
    notes = {"format": "Hugging Face", "activation": activation}
    config_file = json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
    return Converted(after, probe, config_file, config.stretch, notes)


def _undescribed(
    path: Path, state: dict[str, Tensor], shape: openai_format.Shape, config: ConvertConfig
) -> ClipOptions:
    """Return what weights without a description need, by OpenAI's rules or as it was given."""
    activation = config.activation
    if openai_format.RESIDUAL in state or openai_format.SCALARS & set(state):
        activation = activation or "quick_gelu"
    if activation is None:
        raise ModelError(
            f"{path} does not tell its activation, and the wrong one spoils every feature: give "
            "--activation quick_gelu (OpenAI's weights, and open_clip's whose name says quickgelu) "
            "or gelu (all other of open_clip's)"
        )
    heads = config.heads or shape.heads
    return ClipOptions(activation, TowerOptions(heads), TowerOptions(shape.text_heads))


def _refuse_contradiction(path: Path, options: ClipOptions, config: ConvertConfig) -> None:
    """Refuse settings that differ from the description beside the weights."""
    described = {"activation": options.activation, "heads": options.vision.heads}
    for name, value in described.items():
        given = getattr(config, name)
        if given not in (None, value):
            raise ModelError(
                f"{OPEN_CLIP_CONFIG} beside {path} says {name} = {value}, but --{name} {given} was "
                "given: leave it out"
            )


@torch.no_grad()
def _check(made: Converted, out: Path) -> float:
    """Load what was written and return the largest difference of its features on the probe."""
    backbone = type(made.backbone).load(out)
    probe, what = made.probe, "what was converted, loaded again"
    worst = compare(backbone.image_features(probe["pixels"]), probe["image_features"], what)
    if "input_ids" in probe:
        ids = probe["input_ids"]
        texts = backbone.text_features(ids, torch.ones_like(ids))
        worst = max(worst, compare(texts, probe["text_features"], what))
    return worst


def _write_tokenizer(source: Path | None, out: Path, positions: int | None) -> bool:
    """Save the tokenizer, cut to the text positions; whether there is one."""
    if positions is None:
        return False
    if source is None:
        say("no tokenizer was given, so the model takes no texts: give --tokenizer to change that")
        return False
    if source.is_file():
        tokenizer: Any = _open_ai_tokenizer(source)
    else:
        with damage_explained(f"the tokenizer of {source}", ModelError):
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    tokenizer.model_max_length = positions
    tokenizer.save_pretrained(out)
    return True


def _open_ai_tokenizer(path: Path) -> CLIPTokenizer:
    """Build CLIP's tokenizer of OpenAI's list of merges."""
    with damage_explained(path, ModelError, "give OpenAI's list of merges, compressed by gzip"):
        with gzip.open(path) as file:
            lines = file.read(_LARGEST).decode("utf-8").split("\n")
        merges = [(left, right) for left, right in (x.split() for x in lines[1 : _MERGES + 1])]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)


def _fingerprint(tokenizer: Path) -> str:
    if not tokenizer.exists():
        raise ModelError(f"there is no tokenizer at {tokenizer}")
    return sha256_file(tokenizer) if tokenizer.is_file() else folder_fingerprint(tokenizer)
