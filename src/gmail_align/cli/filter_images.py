"""``gmail-align filter``: leave out generated images that are poor, double or copied."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Device, Out, Shared, command, model_of


@command
def filter_images(
    shared: Shared,
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The generated images.")],
    out: Out,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="CLIP for scores and feature distance; tabletop is shipped."
        ),
    ] = None,
    photos: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Images that none may copy, such as a test set; may be repeated."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Score generated images and write them again without those that fail, each with a reason.

    OUT/scores.parquet has the scores of all images, OUT/quarantine.jsonl why some were left out.
    Thresholds: --set min_clip_score=0.5, duplicate_bits, duplicate_cosine, copy_bits, copy_cosine,
    min_spread, keep_duplicates.
    """
    from gmail_align.synthesis.filter_config import FilterConfig

    config = shared.build(FilterConfig)
    images = load(source, "images")
    others = [load(folder, "images") for folder in photos or []]
    if shared.dry_run:
        shared.show_plan("filter", out, images=source, photos=photos or [], config=config)
        return
    from gmail_align.data.images import QUARANTINE
    from gmail_align.synthesis.filter_run import filter_images

    model = None
    if encoder is not None:
        from gmail_align.encoders.encoder import GmailEncoder
        from gmail_align.runtime import resolve_device

        model = GmailEncoder.from_pretrained(model_of(encoder, "clip")).to(resolve_device(device))
    made = filter_images(config, images, others, out, model)
    from gmail_align.artifacts import read_jsonl

    rows = read_jsonl(made.path(QUARANTINE))
    reasons = Counter(str(row["reason"]).partition(" of ")[0].partition(":")[0] for row in rows)
    lines = [f"{out}: {made.counts['images']} images kept, {made.counts['quarantined']} left out"]
    lines += [f"  {count} {reason}" for reason, count in reasons.most_common()]
    shared.show({"folder": str(out), "counts": made.counts, "reasons": reasons}, "\n".join(lines))
