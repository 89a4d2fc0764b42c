"""The stage: an encoder in, a folder for other people's code out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from gmail_align.artifacts import MANIFEST, Artifact, begin, load
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.feature_map import KIND
from gmail_align.encoders.folder import find_folder, folder_fingerprint, read_card
from gmail_align.encoders.probe import write_probe
from gmail_align.errors import DataError, ModelError
from gmail_align.export.card import Card
from gmail_align.export.config import ExportConfig
from gmail_align.export.feature_heads import export_feature_head
from gmail_align.export.hugging_face import export_hf, export_llava, export_peft
from gmail_align.export.others import (
    export_onnx,
    export_open_clip,
    export_sentence_transformers,
)
from gmail_align.export.source import ExportSource
from gmail_align.runtime import versions

WRITERS: dict[str, Callable[[ExportSource, Path], dict[str, float]]] = {
    "hf": export_hf,
    "peft": export_peft,
    "open_clip": export_open_clip,
    "llava": export_llava,
    "sentence-transformers": export_sentence_transformers,
    "onnx": export_onnx,
}
"""Format -> what writes it, loads it again and returns the largest differences of its features."""
_LOADERS = {
    "hf": "transformers",
    "peft": "peft",
    "llava": "transformers",
    "sentence-transformers": "sentence-transformers",
    "onnx": "onnxruntime",
}
"""Format -> the library that it was loaded with; open_clip's is run by its names."""


def export(
    config: ExportConfig,
    source: Path,
    out: Path,
    *,
    data: Sequence[Artifact] = (),
    results: Sequence[Artifact] = (),
) -> Artifact:
    """Write one route of an encoder, or a head of features, for other people's code.

    The result is an artifact of kind ``export``.

    That code loads what is written, and has to give the features that the encoder gives: on a probe
    that is stored with the export, on a photo and on texts, through its own image transform and
    tokenizer.

    Args:
        config: Format and route.
        source: Folder of an encoder, or of a plain model.
        out: Folder of the export.
        data: Artifacts that the encoder was made of; the model card describes them.
        results: Results that the model card lists.

    Raises:
        ModelError: the format has no place for this encoder, or the features differ.
        DataError: an artifact of ``data`` was no input of the encoder.
        MissingExtraError: a library that the format takes is not installed.
    """
    if (source / MANIFEST).exists() and load(source).kind == KIND:
        return export_feature_head(config, load(source), out)
    folder = find_folder(source)
    artifact = load(folder) if (folder / MANIFEST).exists() else None
    aligned = artifact if artifact is not None and artifact.kind == "encoder" else None
    _check_data(aligned, data)
    inputs: dict[str, Artifact | str] = {
        "encoder": artifact.fingerprint if artifact else folder_fingerprint(folder)
    }
    inputs |= {f"data.{number}": one for number, one in enumerate(data)}
    inputs |= {f"results.{number}": one for number, one in enumerate(results)}
    exported = None  # loaded before the folder is begun: what cannot be exported leaves nothing
    if not (out / MANIFEST).exists():
        exported = _load(folder, config)
    draft = begin(out, "export", config.model_dump(mode="json"), inputs)
    if draft.complete is not None:
        return draft.complete
    assert exported is not None, "begin would have found the manifest"
    differences = WRITERS[config.format](exported, out)
    write_probe(out, exported.probe)
    names = {"transformers", "torch", _LOADERS.get(config.format, "transformers")}
    checked = {
        "versions": {name: versions().get(name) or version(name) for name in sorted(names)},
        "differences": differences,
    }
    card = Card(config, aligned, read_card(folder) is None, exported.notes, checked)
    card.write(out, exported.encoder.backbone.model_class.__name__, data, results)
    return draft.finish({"files": len(draft.files())}, checked=checked)


def _load(folder: Path, config: ExportConfig) -> ExportSource:
    encoder = GmailEncoder.from_pretrained(folder)
    backbone = encoder.backbone
    if config.format not in backbone.formats:
        raise ModelError(
            f"the format {config.format} has no place for a {backbone.name}, on which the encoder "
            f"is built: use one of {', '.join(sorted(backbone.formats))}"
        )
    return ExportSource(encoder, config.route)


def _check_data(encoder: Artifact | None, data: Sequence[Artifact]) -> None:
    inputs = set(encoder.manifest["inputs"].values()) if encoder else set()
    for artifact in data:
        if artifact.fingerprint not in inputs:
            raise DataError(
                f"{artifact.folder} is not an input of the encoder: leave it out, or give the "
                "artifact that is"
            )
