"""The images of a gap as one Parquet table, a row an image, for viewers such as Embedding Atlas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gmail_align.artifacts import write_bytes
from gmail_align.gap.config import require_parquet
from gmail_align.gap.feature_sets import sample_rows, sampled
from gmail_align.report.gap_pictures import GapSide
from gmail_align.report.images import small_file
from gmail_align.report.projection import lay_out, unit_rows

Pairs = Sequence[tuple[str, str]]
SIDES: Final = ("real", "generated")
_LONGEST: Final = 96
_SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "side", "class", "generator", "caption")),
        *((name, pa.float32()) for name in ("x", "y")),
        ("pair", pa.string()),
        ("cosine", pa.float32()),
        (
            "neighbors",
            pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))]),
        ),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)


def write_atlas(
    file: Path,
    sides: tuple[GapSide, GapSide],
    pairs: Pairs | None,
    *,
    most: int,
    seed: int = 0,
) -> Path:
    """Write the images that a gap was measured on, each with its place on a map and its pair.

    ``x`` and ``y`` are places by t-SNE. ``pair`` is the first image that an image is paired with,
    and ``cosine`` their likeness. ``neighbors`` lists the rows of all of them.

    Args:
        file: The table; its folder is made when absent.
        sides: The real and the generated images.
        pairs: (real id, generated id) of each pair; None without pairs.
        most: Pairs, or images of each side, that were measured.
        seed: Seed of the measurement, which drew them.

    Raises:
        DataError: an image cannot be read, or a pair's image does not have features.
        ConfigError: the file is not named ``.parquet``.
    """
    require_parquet(file)
    ids, kept = _measured(sides, pairs, most, seed)
    arrays = [
        side.features.array[side.features.rows(own)].float().numpy()
        for side, own in zip(sides, ids, strict=True)
    ]
    rows = [_row(sides[k], SIDES[k], image) for k in (0, 1) for image in ids[k]]
    units, where = np.concatenate([unit_rows(one) for one in arrays]), lay_out(*arrays)
    for at, others in enumerate(_linked(ids, kept)):
        cosines = [float(units[at] @ units[other]) for other in others]
        rows[at] |= {
            "x": None if where is None else where[at, 0],
            "y": None if where is None else where[at, 1],
            "pair": rows[others[0]]["id"] if others else None,
            "cosine": cosines[0] if others else None,
            "neighbors": {"ids": others, "distances": [1 - cosine for cosine in cosines]},
        }
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), buffer, compression="zstd")
    write_bytes(file, buffer.getvalue().to_pybytes())
    return file


def _measured(
    sides: tuple[GapSide, GapSide], pairs: Pairs | None, most: int, seed: int
) -> tuple[list[list[str]], Pairs]:
    """Return the images of both sides that the measurement drew, and their pairs."""
    if pairs is None:
        first, second = (len(side.features.ids) for side in sides)
        drawn = sampled(first, second, False, most, seed)
        every = zip(sides, drawn, strict=True)
        return [[side.features.ids[row] for row in rows.tolist()] for side, rows in every], []
    kept = [pairs[row] for row in sample_rows(len(pairs), most, seed, "pairs").tolist()]
    return [list(dict.fromkeys(pair[k] for pair in kept)) for k in (0, 1)], kept


def _row(side: GapSide, kind: str, image: str) -> dict[str, Any]:
    picture = None
    if side.images is not None:
        small, _ = small_file(side.read(image), f"the {kind} image {image}", _LONGEST)
        picture = {"bytes": small, "path": image}
    return {
        "id": image,
        "side": kind,
        "class": side.classes.get(image),
        "generator": side.generators.get(image),
        "caption": side.captions.get(image),
        "image": picture,
    }


def _linked(ids: Sequence[Sequence[str]], pairs: Pairs) -> list[list[int]]:
    """Return, for each row, the rows of the images that it is paired with."""
    first = {name: row for row, name in enumerate(ids[0])}
    second = {name: len(ids[0]) + row for row, name in enumerate(ids[1])}
    linked: list[list[int]] = [[] for _ in range(len(first) + len(second))]
    for real, generated in pairs:
        linked[first[real]].append(second[generated])
        linked[second[generated]].append(first[real])
    return linked
