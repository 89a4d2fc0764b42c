"""The dataset card: what generated a set of images, from what, and how to read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gmail_align.artifacts import Artifact
from gmail_align.data.images import ImageRecord, read_shard
from gmail_align.synthesis.config import SynthesisConfig

CARD: Final = "README.md"

_HEAD: Final = """---
tags: [synthetic, webdataset, image-text]
task_categories: [text-to-image, zero-shot-image-classification]
configs:
- config_name: default
  data_files: shards/*.tar
---

# Generated images

Every image was generated from a caption; none is a photo. Before they are used as training data,
measure how far they are from real images (`gmail-align gap`).
"""
_FOOT: Final = """
Image `{caption id}-{k}` starts from noise that depends on the seed, the caption's id and `k` alone.
The seed of each image is in `index.parquet`: `torch.Generator().manual_seed(seed)`, given to the
same pipeline with the same settings, draws the same noise. `quarantine.jsonl` names the images that
were left out, and why.

The shards are in WebDataset's layout (`{id}.jpg` or `.png`, and `{id}.json` with the prompt and all
of the above). Whether the images may be used for a purpose is up to the licences of the generator
and of the captions.
"""
_PRECISION: Final = "float16 on a GPU, float32 on a CPU"


@dataclass
class Survey:
    """What a set of shards holds."""

    first: ImageRecord | None = None
    images: int = 0
    left_out: int = 0
    flagged: int = 0
    """Images that a safety checker objects to."""
    cut: int = 0
    """Images whose prompt is longer than the generator's text encoder reads."""


def survey_shards(shards: Path) -> Survey:
    """Count what the shards of a folder hold."""
    survey = Survey()
    for path in sorted(shards.glob("*.tar")):
        records, left_out = read_shard(path) or ([], [])
        survey.first = survey.first or next(iter(records), None)
        survey.images += len(records)
        survey.left_out += len(left_out)
        survey.flagged += sum(record.unsafe is True for record in records)
        survey.cut += sum(record.tokens_cut is not None for record in records)
    return survey


def dataset_card(config: SynthesisConfig, captions: Artifact, survey: Survey) -> str:
    """Describe a finished set of shards in Markdown; the same set gives the same text."""
    record = survey.first
    rows = {
        "images": f"{survey.images}, of {captions.counts['captions']} captions "
        f"({config.images_per_caption} a caption)",
        "left out": f"{survey.left_out} (`quarantine.jsonl`)",
        "captions": f"fingerprint `{captions.fingerprint}`",
    }
    if record is not None:
        rows |= {
            "generator": f"`{record.generator}`, revision `{record.revision}`",
            "weights": f"fingerprint `{record.weights}`",
            "adapter": f"fingerprint `{record.adapter}`" if record.adapter else "none",
            "size": f"{record.width} x {record.height} pixels",
            "sampler": f"{record.scheduler or 'of the pipeline'}, {record.steps} steps",
            "guidance": f"{record.guidance_scale}",
            "safety checker": "none"
            if record.unsafe is None
            else f"objects to {survey.flagged} images",
            "prompts cut": f"{survey.cut}, which are longer than the text encoder reads",
        }
    rows |= {
        "candidates": f"{config.best_of} an image, of which the best by CLIPScore is kept",
        "precision": _PRECISION if config.dtype == "auto" else config.dtype,
        "seed": f"{config.seed}",
        "stored as": "PNG" if config.image_format == "png" else f"JPEG, quality {config.quality}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"{_HEAD}\n| | |\n| --- | --- |\n{table}\n{_FOOT}"
