"""The stage: measure the gap between features of real and of generated images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, begin, fingerprint, write_json
from gmail_align.errors import DataError
from gmail_align.features.store import Features, read_features
from gmail_align.gap.config import GapConfig
from gmail_align.gap.measure import paired_gap, unpaired_gap
from gmail_align.gap.sides import sample_rows

RESULT = "result.json"


def measure_gap(
    real: Artifact,
    generated: Artifact,
    pairs: Sequence[tuple[str, str]] | None,
    out: Path,
    *,
    config: GapConfig | None = None,
    seed: int = 0,
) -> Artifact:
    """Measure the gap; returns an artifact of kind ``result``.

    ``result.json`` holds ``protocol`` (``gap_paired`` or ``gap_unpaired``), ``metrics``, ``n``,
    ``seed``, ``unavailable``, ``advice`` and ``fingerprints``.

    Args:
        real: Features of real images.
        generated: Features of generated images, of the same width.
        pairs: (real id, generated id) of each pair; None measures the two sets as they are.
        out: Folder of the result.
        config: How much is looked at.
        seed: Of the sample, the probe's folds and the bootstrap.

    Raises:
        DataError: an id of a pair has no feature.
        UserError: features are not finite, of different width, or fewer than two pairs.
    """
    config = config or GapConfig()
    named = None if pairs is None else fingerprint([list(pair) for pair in pairs])
    identity = {**config.model_dump(mode="json"), "pairs": named}
    draft = begin(out, "result", identity, {"real": real, "generated": generated}, seed)
    if draft.complete is not None:
        return draft.complete
    measured = _measure(read_features(real), read_features(generated), pairs, config, seed)
    body = {
        "protocol": "gap_unpaired" if pairs is None else "gap_paired",
        **measured,
        "seed": seed,
        "fingerprints": {"real": real.fingerprint, "generated": generated.fingerprint},
    }
    write_json(draft.path(RESULT), body)
    return draft.finish({"pairs": measured["n"]})


def _measure(
    real: Features,
    generated: Features,
    pairs: Sequence[tuple[str, str]] | None,
    config: GapConfig,
    seed: int,
) -> dict[str, Any]:
    """Gather the rows and measure them."""
    if pairs is None:
        return unpaired_gap(real.array, generated.array, config=config, seed=seed)
    if len(set(pairs)) != len(pairs):
        raise DataError("a pair comes more than once: give each pair once")
    chosen = [pairs[row] for row in sample_rows(len(pairs), config.max_pairs, seed, "pairs")]
    left, right = real.rows(a for a, _ in chosen), generated.rows(b for _, b in chosen)
    return paired_gap(
        real.array[left], generated.array[right], groups=left, config=config, seed=seed
    )
