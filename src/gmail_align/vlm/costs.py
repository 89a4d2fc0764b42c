"""What a training of LLaVA costs, from the models' configurations alone: operations and memory.

Bytes that a layer keeps for its gradient were counted from transformers' Llama, tensor by tensor;
a test counts them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gmail_align.vlm.config import LlavaConfig

if TYPE_CHECKING:
    from gmail_align.vlm.packing import Sample

LOGITS_AT_ONCE: Final = 1024
"""Tokens whose logits are in memory together."""
_KEPT: Final[Mapping[str, tuple[tuple[int, int], tuple[int, int]]]] = {
    "projector": ((24, 12), (16, 6)),
    "lora": ((32, 16), (28, 8)),
    "dropped": ((72, 20), (52, 12)),
    "full": ((40, 16), (34, 8)),
}
"""Bytes that a layer keeps of a token, per width and per width of the MLP: float32, bfloat16."""
_TARGETS: Final = 7
"""Matrices of a layer, each with an adapter under ``tune = "lora"``."""
_TEXT: Final = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_VISION: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
}
"""Defaults of transformers' Llama and CLIP, for what a configuration leaves out."""
PEAKS: Final[Mapping[str, float]] = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Part of a card's name -> its dense bfloat16 operations a second, by its data sheet."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step takes in one process."""

    weights: float
    updates: float
    """Gradients, AdamW's two means, and the best step's copy."""
    kept: float
    """What the forward pass keeps for the gradient."""
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.updates + self.kept + self.logits

    def sentence(self) -> str:
        """Say it in one line."""
        parts = {"weights": self.weights, "gradients and moments": self.updates}
        parts |= {"activations": self.kept, "logits": self.logits}
        shown = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in parts.items())
        return f"about {self.total / 1e9:.1f} GB of memory in a process at most: {shown}"


@dataclass(frozen=True)
class LlavaShape:
    """The sizes of a LLaVA."""

    width: int
    mlp: int
    layers: int
    query: int
    """Width of all queries of a token."""
    key: int
    """Width of its keys."""
    vocabulary: int
    tied: bool
    seen: int
    """Width of the vision tower."""
    seen_mlp: int
    seen_layers: int
    patches: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LlavaShape:
        """Read the sizes from a LLaVA's configuration, or from one of the same two parts."""
        text = {**_TEXT, **config["text_config"]}
        vision = {**_VISION, **config["vision_config"]}
        width, heads = text["hidden_size"], text["num_attention_heads"]
        size = text.get("head_dim") or width // heads
        return cls(
            width=width,
            mlp=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            query=heads * size,
            key=(text.get("num_key_value_heads") or heads) * size,
            vocabulary=text["vocab_size"],
            tied=bool(text.get("tie_word_embeddings")),
            seen=vision["hidden_size"],
            seen_mlp=vision["intermediate_size"],
            seen_layers=vision["num_hidden_layers"],
            patches=(vision["image_size"] // vision["patch_size"]) ** 2,
        )

    @property
    def layer(self) -> int:
        """Weights of the matrices of one layer of the language model."""
        return 2 * self.width * (self.query + self.key) + 3 * self.width * self.mlp

    @property
    def words(self) -> int:
        """Weights of the language model."""
        tables = self.vocabulary * self.width * (1 if self.tied else 2)
        return self.layers * (self.layer + 2 * self.width) + self.width + tables

    @property
    def projector(self) -> int:
        """Weights of the projector."""
        return self.seen * self.width + self.width**2 + 2 * self.width

    @property
    def tower(self) -> int:
        """Weights of the matrices of the vision tower that are run."""
        return (self.seen_layers - 1) * (4 * self.seen**2 + 2 * self.seen * self.seen_mlp)

    def adapter(self, rank: int) -> int:
        """Weights of adapters of a rank beside all matrices of the language model."""
        ends = 4 * self.width + 2 * self.query + 2 * self.key + 3 * (self.width + self.mlp)
        return self.layers * rank * ends

    def trained(self, config: LlavaConfig) -> int:
        """Weights that a configuration trains."""
        words = {"projector": 0, "lora": self.adapter(config.lora.rank), "full": self.words}
        extra = {"pooled": config.pooled_tokens * (self.seen + 1) * self.width}
        extra["residual"] = self.seen**2
        return self.projector + words[config.tune] + extra.get(config.visual_tokens, 0)

    def tower_share(self, config: LlavaConfig) -> float:
        """Return the vision tower's operations of an image, as a share of the language model's."""
        return self.tower / (self._passes(config) * self.layers * self.layer)

    def memory(self, config: LlavaConfig, *, guarded: bool, processes: int = 1) -> Memory:
        """Return the bytes that a step takes, of rows that are full.

        Args:
            config: What is trained, and how.
            guarded: Whether the best step's parameters are kept.
            processes: Processes that train together.
        """
        half = config.precision == "bfloat16"
        rows = config.rows_at_once or -(-config.batch_rows // processes)
        tokens, size = rows * config.row_tokens, 2 if half else 4
        trained = self.trained(config)
        frozen = (
            self.words + self.projector - (trained if config.tune == "full" else self.projector)
        )
        parts = processes if config.parallel == "shard" else 1
        dropped = config.tune == "lora" and config.lora.dropout > 0
        wide, deep = _KEPT["dropped" if dropped else config.tune][half]
        layer = wide * self.width + deep * self.mlp + size * config.row_tokens + 24
        if config.tune == "lora":
            layer += size * _TARGETS * config.lora.rank
        layers = float(self.layers)
        kept = layers * layer * tokens
        if config.recompute_layers:
            kept = (
                layers * self.width * (2 if half and config.tune != "full" else 4) + layer
            ) * tokens
        copies = 2 * trained if half else 0  # autocast's, of what is trained in float32
        kept += copies / parts + tokens * size * (self.seen + 3 * self.width)
        logits = 3.0 * 4 * min(LOGITS_AT_ONCE, tokens) * self.vocabulary
        weights = (max(frozen, 0) * size + 4 * trained) / parts
        return Memory(weights, trained * (4 + 8 + 4 * guarded) / parts, kept, logits)

    def step_flops(self, rows: Sequence[Sequence[Sample]], config: LlavaConfig) -> float:
        """Return the operations that a step needs: no padding, nothing twice.

        A multiply-add is two. Attention reads half a square of each sample.
        """
        passes, total = self._passes(config), 0.0
        for sample in (sample for row in rows for sample in row):
            length, learnt = len(sample.ids), int(sample.learnt.sum())
            total += 2.0 * passes * self.layers * self.layer * length
            total += 3 * 2.0 * self.layers * self.query * length**2
            total += 2.0 * passes * self.vocabulary * self.width * learnt
            total += 6.0 * self.projector * self.patches * len(sample.image_ids)
            if config.tune == "lora":
                total += 6.0 * self.adapter(config.lora.rank) * length
        return total

    def image_flops(self) -> float:
        """Return the operations that read an image's patches."""
        tokens = self.patches + 1
        return 2.0 * self.tower * tokens + 4.0 * (self.seen_layers - 1) * self.seen * tokens**2

    def _passes(self, config: LlavaConfig) -> int:
        """Forward, backward, and once more where the language model's weights have gradients."""
        return 3 if config.tune == "full" else 2


@dataclass
class Meter:
    """Counts what the steps since the start have done, for the progress line."""

    shape: LlavaShape
    config: LlavaConfig
    peak: float | None
    """Operations a second that all cards could do; None where that is not known."""
    reads: bool
    """Whether images are read at every step."""
    tokens: int = 0
    learnt: int = 0
    places: int = 0
    """Tokens and padding."""
    flops: float = 0.0

    def count(self, rows: Sequence[Sequence[Sample]], at_once: int) -> None:
        """Count a step, whose rows go through the model ``at_once`` at a time."""
        lengths = [sum(len(sample.ids) for sample in row) for row in rows]
        pieces = [lengths[start : start + at_once] for start in range(0, len(lengths), at_once)]
        self.tokens += sum(lengths)
        self.places += sum(max(piece) * len(piece) for piece in pieces)
        self.learnt += sum(int(sample.learnt.sum()) for row in rows for sample in row)
        self.flops += self.shape.step_flops(rows, self.config)
        if self.reads:
            images = sum(len(sample.image_ids) for row in rows for sample in row)
            self.flops += images * self.shape.image_flops()

    def note(self, steps: int, seconds: float) -> str:
        """Return tokens a second, learnt tokens a second, the share of padding, and MFU."""
        padding = 1 - self.tokens / max(self.places, 1)
        shown = (
            f"{self.tokens / seconds:.0f} tokens/s, {self.learnt / seconds:.0f} learnt/s,"
            f" {padding:.0%} padding"
        )
        if self.peak is None:
            return shown
        return f"{shown}, {self.flops / seconds / self.peak:.1%} MFU"


def read_shape(encoder: Path, language: Path) -> LlavaShape | None:
    """Read the sizes from the folders of an encoder and of a language model, or of a LLaVA.

    Returns:
        The sizes; None where a folder does not have a configuration that says them.
    """
    vision = _config(encoder) or {}
    if "vision_config" not in vision:
        vision = _config(encoder / "base") or {}
    text = _config(language) or _config(language / "llava")
    if "vision_config" not in vision or not text:
        return None
    words = text.get("text_config", text)
    return LlavaShape.of({"vision_config": vision["vision_config"], "text_config": words})


def _config(folder: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config
    return None


def known_peak(card: str) -> float | None:
    """Return the bfloat16 operations a second of a card by its name; None where it is unknown."""
    return next((peak for name, peak in PEAKS.items() if name in card), None)
