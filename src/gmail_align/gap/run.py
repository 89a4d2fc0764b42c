"""The stage: measure the gap between features of real and of generated images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gmail_align.artifacts import Artifact, begin, fingerprint, write_json
from gmail_align.data.ids import key_id
from gmail_align.errors import DataError
from gmail_align.features.store import Features, read_features
from gmail_align.gap.config import GapConfig
from gmail_align.gap.measure import Texts, measure_sides
from gmail_align.gap.sides import Known, Side, sample_rows, sampled

RESULT = "result.json"
Pairs = Sequence[tuple[str, str]]


def measure_gap(
    real: Artifact,
    generated: Artifact,
    pairs: Pairs | None,
    out: Path,
    *,
    known: Known | None = None,
    config: GapConfig | None = None,
    seed: int = 0,
) -> Artifact:
    """Measure the gap; returns an artifact of kind ``result``.

    ``result.json`` holds ``protocol`` (``gap_paired`` or ``gap_unpaired``), what
    :func:`gmail_align.gap.measure.measure_sides` returns, ``seed``, ``features`` (encoder and route
    of each side) and ``fingerprints``.

    Args:
        real: Features of real images.
        generated: Features of generated images, of the same width.
        pairs: (real id, generated id) of each pair; None measures the two sets as they are.
        out: Folder of the result.
        known: Classes, generators and texts of the images.
        config: How much is looked at.
        seed: Of the sample, the probe's folds and the bootstrap.

    Raises:
        DataError: an id of a pair has no feature, or an image has no class.
        UserError: features are not finite, of different width, or fewer than two pairs.
    """
    config, known = config or GapConfig(), known or Known()
    identity = {
        **config.model_dump(mode="json"),
        "pairs": None if pairs is None else fingerprint([list(pair) for pair in pairs]),
        "known": known.fingerprint,
    }
    inputs = {"real": real, "generated": generated}
    inputs |= {} if known.texts is None else {"texts": known.texts}
    draft = begin(out, "result", identity, inputs, seed)
    if draft.complete is not None:
        return draft.complete
    measured = _measure(read_features(real), read_features(generated), pairs, known, (config, seed))
    body = {
        "protocol": "gap_unpaired" if pairs is None else "gap_paired",
        **measured,
        "seed": seed,
        "features": {name: _made_with(artifact) for name, artifact in inputs.items()},
        "fingerprints": {name: artifact.fingerprint for name, artifact in inputs.items()},
    }
    write_json(draft.path(RESULT), body)
    return draft.finish({"images" if pairs is None else "pairs": measured["n"]})


def _measure(
    real: Features,
    generated: Features,
    pairs: Pairs | None,
    known: Known,
    how: tuple[GapConfig, int],
) -> dict[str, Any]:
    """Gather the rows and measure them."""
    config, seed = how
    captions = known.captions
    if pairs is None:
        places = sampled(len(real.ids), len(generated.ids), False, config.max_pairs, seed)
    else:
        if len(set(pairs)) != len(pairs):
            raise DataError("a pair comes more than once: give each pair once")
        chosen = sample_rows(len(pairs), config.max_pairs, seed, "pairs").tolist()
        captions = captions and [captions[row] for row in chosen]
        places = real.rows(pairs[r][0] for r in chosen), generated.rows(pairs[r][1] for r in chosen)
    sides = (
        _side(real, places[0], known.real_classes, {}),
        _side(generated, places[1], known.generated_classes, known.generators),
    )
    return measure_sides(
        *sides,
        paired=pairs is not None,
        groups=None if pairs is None else places[0],
        texts=_texts(known, captions, sides, (real, generated), places),
        config=config,
        seed=seed,
    )


def _side(
    source: Features, rows: Tensor, classes: Mapping[str, str], generators: Mapping[str, str]
) -> Side:
    """Gather one side with its labels."""
    ids = [source.ids[row] for row in rows.tolist()]
    labels = [
        _labels(ids, table, what) for table, what in ((classes, "class"), (generators, "generator"))
    ]
    return Side(source.array[rows], *labels)


def _labels(ids: Sequence[str], table: Mapping[str, str], what: str) -> list[str] | None:
    if not table:
        return None
    missing = [name for name in ids if name not in table]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(ids)} images have no {what}, the first of them {missing[0]}"
        )
    return [table[name] for name in ids]


def _texts(
    known: Known,
    captions: Sequence[str] | None,
    sides: tuple[Side, Side],
    features: tuple[Features, Features],
    places: tuple[Tensor, Tensor],
) -> Texts | None:
    """Return the texts of both sides: the pair's caption, the image's own, or the class."""
    if known.texts is None:
        return None
    told = read_features(known.texts)
    if captions is not None:
        rows = told.rows(captions)
        return Texts(told.array, rows, rows)
    beside = known.real_texts, known.generated_texts
    if any(beside):
        return Texts(
            told.array,
            *(
                told.rows(own[side.ids[row]] for row in at.tolist()) if own else None
                for own, side, at in zip(beside, features, places, strict=True)
            ),
        )
    if sides[0].classes is None or sides[1].classes is None:
        return None
    own = (told.rows(map(key_id, side.classes or ())) for side in sides)
    return Texts(told.array, *own)


def _made_with(features: Artifact) -> dict[str, Any]:
    config = features.manifest["config"]
    return {key: config.get(key) for key in ("encoder", "weights", "route")}
