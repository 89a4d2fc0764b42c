from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def fakecap(oracles: Path) -> dict[str, Any]:
    """COCO's own example: 1000 images, their captions, and pycocoevalcap's scores."""
    folder = oracles / "coco_fakecap"
    references: dict[str, list[str]] = {}
    subset = json.loads((folder / "captions_val2014_fakecap_subset.json").read_text())
    for row in subset["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    results = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    return {
        "references": references,
        "predictions": {str(row["image_id"]): row["caption"] for row in results},
        "expected": json.loads((folder / "expected.json").read_text()),
        "tokens": _gzipped(folder / "ptb_tokenised.json.gz"),
        "per_image": _gzipped(folder / "pycocoevalcap_per_image.json.gz"),
    }


def _gzipped(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)
