"""The model card: what an export is, where it comes from, and what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact
from gmail_align.encoders.probe import TOLERANCE
from gmail_align.export.config import ExportConfig
from gmail_align.export.source import PHOTO_TOLERANCE
from gmail_align.results import read_result

_LOADING = {
    "hf": "transformers.AutoModel.from_pretrained(folder)",
    "peft": "peft.PeftModel.from_pretrained({model}.from_pretrained(folder / 'base'), folder)",
    "open_clip": "open_clip.create_model_from_pretrained('local-dir:' + folder)",
    "llava": "--vision_tower folder",
    "sentence-transformers": "sentence_transformers.SentenceTransformer(folder)",
    "onnx": "onnxruntime.InferenceSession(folder + '/model.onnx')",
}
"""How each format is loaded."""


_IMAGES = (
    "The encoder read photos turned by their EXIF tag, transparent images on white, and 8 bits a "
    "channel. Some libraries leave this to you; `PIL.ImageOps.exif_transpose` turns a photo."
)


@dataclass(frozen=True)
class Card:
    """What the model card of an export tells."""

    config: ExportConfig
    """Format and route."""
    encoder: Artifact | None
    """The encoder's artifact; None for a plain model, or a folder without a manifest."""
    plain: bool
    """Whether it is a plain model, not one of our encoders."""
    notes: Sequence[str]
    """What whoever loads the export has to know."""
    checked: Mapping[str, Any]
    """``versions`` that it was checked with, and the largest ``differences``."""

    def write(
        self, out: Path, model: str, data: Sequence[Artifact], results: Sequence[Artifact]
    ) -> None:
        """Write ``README.md``.

        Args:
            out: The export's folder.
            model: Class of transformers that loads the base.
            data: Artifacts that the encoder was made of, to be described.
            results: Results to be listed.
        """
        loading = _LOADING[self.config.format].format(model=model)
        lines = [
            "---",
            "tags: [gmail-align, clip]",
            "---",
            "",
            f"# Encoder for generated and real images, by the route `{self.config.route}`",
            "",
            f"Written by gmail-align as `{self.config.format}`. Load it with `{loading}`.",
            "The route's adapter and head are baked in; this folder holds no other route.",
            "",
            *(f"- {note}" for note in (*self.notes, _IMAGES)),
            "",
            *recipe_lines(self.encoder, self.plain),
            *self._data(data),
            *_results(results),
            *self._checks(),
        ]
        (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _data(self, data: Sequence[Artifact]) -> list[str]:
        if self.encoder is None:
            return []
        inputs = self.encoder.manifest["inputs"]
        roles = {value: name for name, value in inputs.items()}
        lines = ["## Data", "", f"{_counts(self.encoder)}. Fingerprints of its inputs:", ""]
        lines += [f"- {name}: `{value}`" for name, value in inputs.items()]
        for artifact in data:
            role = roles[artifact.fingerprint]
            lines += ["", f"**{role}** ({artifact.kind}; {_counts(artifact)}), made with:", ""]
            lines += ["```json"]
            lines += [json.dumps(artifact.manifest["config"], indent=2, ensure_ascii=False), "```"]
        return [*lines, ""]

    def _checks(self) -> list[str]:
        differences = self.checked["differences"].items()
        versions = ", ".join(f"{name} {value}" for name, value in self.checked["versions"].items())
        worst = ", ".join(f"{name} {value:.1e}" for name, value in differences)
        return [
            "## Checked",
            "",
            f"Loaded with {versions}, its features differ from the encoder's by at most {worst} of",
            f"their size. More than {TOLERANCE:.0e} ({PHOTO_TOLERANCE} on a photo, which libraries",
            "resize with other rounding) would have been an error. With other versions, run",
            "`probe.safetensors` again: libraries that load weights wrongly often only warn.",
            "",
        ]


def recipe_lines(encoder: Artifact | None, plain: bool = False) -> list[str]:
    """Return a model card's section on how an encoder was aligned, and what that changed.

    Args:
        encoder: The encoder's artifact; None without a manifest.
        plain: Whether it is a plain model, not one of our encoders.
    """
    if encoder is None:
        unknown = "An encoder without a manifest: how it was aligned is unknown."
        return ["## Recipe", "", "A plain model, not aligned." if plain else unknown, ""]
    notes, config = encoder.manifest.get("notes", {}), encoder.manifest["config"]
    applied = notes.get("applied", True)
    kept_none = "" if applied else " **The guard kept step 0: this is the plain base model.**"
    strengths = [row["strength"] for row in notes.get("strengths", []) if row["kept"]]
    strength = f", applied at strength {strengths[0]:g}" if strengths else ""
    lines = [
        "## Recipe",
        "",
        f"Alignment after GMAIL (Mo & Yun, ICML 2025), step {notes.get('best_step', 0)} kept"
        f"{strength}.{kept_none} Seed {encoder.manifest['seed']}.",
        "",
        "```json",
        json.dumps(config, indent=2, ensure_ascii=False),
        "```",
        "",
    ]
    guard = notes.get("guard", {})
    start, kept = guard.get("start", {}), guard.get("kept", {})
    if kept:
        lines += ["On held-out pairs:", "", "| measure | before | kept |"]
        lines += ["| --- | --- | --- |"]
        lines += [
            f"| {name} | {_number(start.get(name))} | {_number(value)} |"
            for name, value in kept.items()
            if name != "step"
        ]
        lines += [""]
    return lines


def _results(results: Sequence[Artifact]) -> list[str]:
    if not results:
        return ["## Results", "", "None was given.", ""]
    lines = ["## Results", "", "| protocol | measure | value | 95% interval | n |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for artifact in results:
        result = read_result(artifact)
        counts = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in result.n.items())
        for name, metric in result.metrics.items():
            low, high = _number(metric.low), _number(metric.high)
            lines.append(
                f"| {result.protocol} | {name} | {_number(metric.value)} | {low} to {high} | "
                f"{counts} |"
            )
    return [*lines, ""]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _counts(artifact: Artifact) -> str:
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in artifact.counts.items())
