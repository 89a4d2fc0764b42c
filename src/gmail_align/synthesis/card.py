"""The dataset card: what generated a set of images, from what, and how to read it."""

from __future__ import annotations

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


def dataset_card(config: SynthesisConfig, captions: Artifact, shards: Path) -> str:
    """Describe a finished set of shards in Markdown; the same set gives the same text."""
    record, count, flagged, left_out = _survey(shards)
    rows = {
        "images": f"{count}, of {captions.counts['captions']} captions "
        f"({config.images_per_caption} a caption)",
        "left out": f"{left_out} (`quarantine.jsonl`)",
        "captions": f"fingerprint `{captions.fingerprint}`",
    }
    if record is not None:
        rows |= {
            "generator": f"`{record.generator}`, revision `{record.revision}`",
            "weights": f"fingerprint `{record.weights}`",
            "size": f"{record.width} x {record.height} pixels",
            "sampler": f"{record.scheduler or 'of the pipeline'}, {record.steps} steps",
            "guidance": f"{record.guidance_scale}",
            "safety checker": "none" if flagged is None else f"objects to {flagged} images",
        }
    rows |= {
        "precision": config.dtype,
        "seed": f"{config.seed}",
        "stored as": "PNG" if config.image_format == "png" else f"JPEG, quality {config.quality}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"{_HEAD}\n| | |\n| --- | --- |\n{table}\n{_FOOT}"


def _survey(shards: Path) -> tuple[ImageRecord | None, int, int | None, int]:
    """Return the first record, and how many images there are, are flagged and were left out."""
    first: ImageRecord | None = None
    count = flagged = left_out = 0
    for path in sorted(shards.glob("*.tar")):
        records, missing = read_shard(path) or ([], [])
        first = first or next(iter(records), None)
        count, left_out = count + len(records), left_out + len(missing)
        flagged += sum(record.unsafe is True for record in records)
    return first, count, None if first is None or first.unsafe is None else flagged, left_out
