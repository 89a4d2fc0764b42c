"""All ablations of the alignment on the tabletop world: a table with intervals over seeds.

    gmail-align run demo --work WORK                      # or any other tabletop recipe, once
    python benchmarks/ablations.py --work WORK --out DIR [--seeds 5] [--set optim.steps=100]
        [--full-rate 3e-4]

Alignment on and off (the control with an adapter alone), one head or two, LoRA of rank 2, 4 and 6
or the whole tower, synthetic, real or mixed data. Every cell is an ``encoder`` artifact in DIR, so
a run that is stopped goes on where it was. Figures are those of the kept step on the held-out
pairs, which differ from seed to seed; intervals are t-intervals over seeds. A whole tower needs a
smaller learning rate than an adapter: ``--full-rate`` gives it its own.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.run import Sources, align
from gmail_align.artifacts import load
from gmail_align.config import apply_overrides, build
from gmail_align.encoders.shipped import model_path

FIGURES = ("margin", "paired_cosine", "generated_real_r1", "retrieval", "generated_text_r1")
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Quantiles of Student's t for so many seeds."""


def main() -> None:
    """Align every cell of the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--full-rate", type=float, help="learning rate of full fine-tuning")
    given = parser.parse_args()
    work = given.work
    parts = ("pairs/train", "real/train/images", "generated/train")
    sources = [load(work / part) for part in parts]
    base = model_path("tabletop", "clip")
    notes: dict[tuple[str, ...], list[dict[str, Any]]] = {name: [] for name, _ in cells()}
    for seed, (name, changes) in product(range(given.seeds), cells()):
        config = build(AlignConfig, apply_overrides(changes, given.overrides))
        if config.encoder.tune == "full" and given.full_rate:
            optim = config.optim.model_copy(update={"lr": given.full_rate})
            config = config.model_copy(update={"optim": optim})
        folder = given.out / "-".join(name).replace(" ", "") / str(seed)
        made = align(config, Sources(*sources), base, folder, seed=seed, cache=given.out / "cache")
        notes[name].append(made.manifest["notes"])
    print(f"| {' | '.join(['alignment', 'heads', 'trained', 'data', 'applied', *FIGURES])} |")
    print(f"| {' | '.join(['---'] * (5 + len(FIGURES)))} |")
    for name, found in notes.items():
        print(f"| {' | '.join([*name, *_figures(found)])} |")


def cells() -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield every cell's name and configuration."""
    trained: dict[str, dict[str, Any]] = {
        **{f"rank {rank}": {"lora": {"rank": rank, "alpha": 2.0 * rank}} for rank in (2, 4, 6)},
        "full": {"encoder": {"tune": "full"}},
    }
    for alignment, heads, tuned, data in product(
        ("on", "off"), ("two", "one"), trained, ("synthetic", "real", "mixed")
    ):
        name = "gmail" if alignment == "on" else "lora_only"
        preset = AlignConfig.from_preset(name, {"select": "align"})
        changes = preset.model_dump(mode="json") | trained[tuned]
        changes |= {"dual_heads": heads == "two", "data": data}
        yield (alignment, heads, tuned, data), changes


def _figures(notes: list[dict[str, Any]]) -> list[str]:
    applied = sum(note["applied"] for note in notes)
    kept = [note["guard"]["kept"] for note in notes]
    return [
        f"{applied}/{len(notes)}",
        *(_interval([row[name] for row in kept]) for name in FIGURES),
    ]


def _interval(values: list[float]) -> str:
    """Lay out a mean and its 95% interval; without seeds enough, the mean alone."""
    mean = statistics.fmean(values)
    if len(values) not in T_95:
        return f"{mean:.3f}"
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
