"""The model card: what an export is, where it comes from, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact
from gmail_align.encoders.probe import TOLERANCE
from gmail_align.export.config import ExportConfig

LOADING = {
    "hf": "transformers.CLIPModel.from_pretrained(folder)",
    "peft": "peft.PeftModel.from_pretrained(CLIPModel.from_pretrained(folder / 'base'), folder)",
    "open_clip": "open_clip.create_model_from_pretrained('local-dir:' + folder)",
    "llava": "--vision_tower folder",
    "sentence-transformers": "sentence_transformers.SentenceTransformer(folder)",
    "onnx": "onnxruntime.InferenceSession(folder + '/model.onnx')",
}
"""How each format is loaded."""


def write_card(
    out: Path,
    config: ExportConfig,
    encoder: Artifact | None,
    data: Sequence[Artifact],
    results: Sequence[Artifact],
    checked: Mapping[str, Any],
    *,
    plain: bool,
) -> None:
    """Write ``README.md`` of an export.

    Args:
        out: The export's folder.
        config: Format and route.
        encoder: The encoder's artifact; None for a plain model, or a folder without a manifest.
        data: Artifacts that the encoder was made of, to be described.
        results: Results to be listed.
        checked: ``versions`` that it was checked with, and the largest ``differences``.
        plain: Whether it is a plain model, not one of our encoders.
    """
    lines = [
        "---",
        "tags: [gmail-align, clip]",
        "---",
        "",
        f"# Encoder for generated and real images, by the route `{config.route}`",
        "",
        f"Written by gmail-align as `{config.format}`. Load it with `{LOADING[config.format]}`.",
        "The route's adapter and head are baked in; there is no other route in this folder.",
        "",
        *_origin(encoder, plain),
        *_data(encoder, data),
        *_results(results),
        *_checked(checked),
    ]
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _origin(encoder: Artifact | None, plain: bool) -> list[str]:
    if encoder is None:
        said = "An encoder without a manifest: how it was aligned is not known here."
        return ["## Recipe", "", "A plain model, not aligned." if plain else said, ""]
    notes, config = encoder.manifest.get("notes", {}), encoder.manifest["config"]
    guard = notes.get("guard", {})
    applied = notes.get("applied", True)
    said = "" if applied else " **The guard kept step 0: this is the plain base model.**"
    lines = [
        "## Recipe",
        "",
        f"Alignment after GMAIL (Mo & Yun, ICML 2025), step {notes.get('best_step', 0)} kept."
        f"{said} Seed {encoder.manifest['seed']}.",
        "",
        "```json",
        json.dumps(config, indent=2, ensure_ascii=False),
        "```",
        "",
    ]
    start, kept = guard.get("start", {}), guard.get("kept", {})
    if kept:
        lines += ["On held-out pairs:", "", "| measure | before | kept |", "| --- | --- | --- |"]
        lines += [
            f"| {name} | {_number(start.get(name))} | {_number(value)} |"
            for name, value in kept.items()
            if name != "step"
        ]
        lines += [""]
    return lines


def _data(encoder: Artifact | None, data: Sequence[Artifact]) -> list[str]:
    if encoder is None:
        return []
    counts = ", ".join(f"{value} {_words(name)}" for name, value in encoder.counts.items())
    roles = {value: name for name, value in encoder.manifest["inputs"].items()}
    lines = ["## Data", "", f"{counts}. Fingerprints of what it was made of:", ""]
    lines += [f"- {name}: `{value}`" for name, value in encoder.manifest["inputs"].items()]
    for artifact in data:
        role = roles[artifact.fingerprint]
        held = ", ".join(f"{value} {_words(name)}" for name, value in artifact.counts.items())
        lines += ["", f"**{role}** ({artifact.kind}; {held}), made with:", "", "```json"]
        lines += [json.dumps(artifact.manifest["config"], indent=2, ensure_ascii=False), "```"]
    return [*lines, ""]


def _results(results: Sequence[Artifact]) -> list[str]:
    if not results:
        return ["## Results", "", "None was given.", ""]
    lines = ["## Results", "", "| protocol | measure | value | 95% interval | n |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for artifact in results:
        result = json.loads(artifact.path("result.json").read_text(encoding="utf-8"))
        for name, metric in result.get("metrics", {}).items():
            low, high = _number(metric.get("low")), _number(metric.get("high"))
            lines.append(
                f"| {result.get('protocol', '')} | {name} | {_number(metric.get('value'))} | "
                f"{low} to {high} | {result.get('n', '')} |"
            )
    return [*lines, ""]


def _checked(checked: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {value}" for name, value in checked["versions"].items())
    worst = ", ".join(f"{name} {value:.1e}" for name, value in checked["differences"].items())
    return [
        "## Checked",
        "",
        f"Loaded with {versions}, its features on `probe.safetensors` differ from the encoder's by",
        f"at most {worst} of their size; more than {TOLERANCE:.0e} would have been an error. With",
        "other versions, run the probe again: libraries that load weights wrongly often only warn.",
        "",
    ]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"


def _words(name: str) -> str:
    return name.replace("_", " ")
