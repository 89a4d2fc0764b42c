"""A small made-up run, and the page that it makes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmail_align.report.data import (
    CaptionedImage,
    Curve,
    PairFigure,
    ReportData,
    Sample,
    StageSummary,
)
from gmail_align.report.page import write_report

EVIL = '<script>alert("x")</script> & =HYPERLINK("http://x") | $\\alpha$ _a_'


def encoded(kind: str = "PNG", size: int = 8, shade: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 120, 60)).save(file, kind)
    return file.getvalue()


def est(value: float, half: float = 0.02, n: int = 40) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


NAMES = ("raw", "control", "gmail", "gmail_scarce", "real_scarce", "real")
MARKS = {"gmail": "ours", "gmail_scarce": "ours", "real": "bound"}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "label": f"Row {name}",
            "detail": f"what {name} stands for",
            "mark": MARKS.get(name, ""),
            "real_images": 10 * at,
            "generated_images": 200,
            "metrics": {
                "CIDEr": est(0.6 + 0.05 * at),
                "BLEU4": est(0.2),
                "METEOR": est(0.25),
                "ROUGE_L": est(0.5),
            },
        }
        for at, name in enumerate(NAMES)
    ]


def claim(better: str, worse: str, difference: Any, verdict: str) -> dict[str, Any]:
    metrics = {} if difference is None else {"CIDEr": difference}
    return {
        "name": f"{better} beats {worse}",
        "better": better,
        "worse": worse,
        "metric": "CIDEr",
        "verdict": verdict,
        "metrics": metrics,
    }


def full_result() -> dict[str, Any]:
    measures = ("paired_cosine", "unpaired_cosine", "margin", "gen_to_real_r1", "probe_auc")
    recalls = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    judged: dict[str, Any] = {
        "retrieval": {"some_5k": {recall: est(0.3) for recall in recalls}},
        "zeroshot": {"colour": est(0.8)},
    }
    before = {"name": "frozen", "gap": {name: est(0.5) for name in measures}}
    after = {
        "name": "gmail",
        "gap": {name: est(0.6) for name in measures} | {"unpaired_cosine": est(0.52)},
        "steps": 30,
        "best_steps": [20],
        "applied": [True],
    }
    refused = {"name": "control", "gap": {}, "steps": 900, "best_steps": [0], "applied": [False]}
    return {
        "rows": rows(),
        "claims": [
            claim("gmail", "raw", est(0.062), "holds"),
            claim("gmail", "control", est(0.01), "not significant"),
            claim("gmail_scarce", "real_scarce", est(-0.05), "reversed"),
        ],
        "encoders": [before | judged, after | judged, refused],
        "seconds": {"align": 12.0},
        "seed": 0,
        "seeds": 1,
        "counts": {"captions": 1000, "real_images": 200, "generated_images": 200},
        "unavailable": {"SPICE": "no jar"},
    }


def full_data() -> ReportData:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 6))
    curve = Curve(
        losses=[{"step": k + 1, "total": 3.0 - k / 20, "align": 2.0 - k / 20} for k in range(30)],
        scores=[{"step": k, "score": 0.5 + k / 100} for k in (0, 10, 20, 30)],
        best_step=20,
    )
    return ReportData(
        title=f"A made-up run {EVIL}",
        command=f"gmail-align demo --out {EVIL}",
        result=full_result(),
        stages=[StageSummary("Align", 75.0, f"Thirty steps {EVIL}"), StageSummary("Caption", 3.4)],
        curves={"gmail": curve, EVIL: curve},
        pairs=[PairFigure(f"{EVIL} 山 {k}", encoded(), encoded("JPEG")) for k in range(3)],
        embeddings={"Before": (features, features + 5), "After": (features, features + 0.01)},
        embedded=[PairFigure(f"{EVIL} pair {k}", encoded(), encoded()) for k in range(12)],
        captioned=[
            CaptionedImage(f"i{k}", EVIL, {"gmail": f"ball {k}", "somebody": EVIL})
            for k in range(3)
        ],
        samples=[
            Sample(encoded(), [EVIL, "a ball"], {"gmail": EVIL, "somebody": "=1+1"}),
        ],
        provenance={EVIL: EVIL, "torch": "2.13.0"},
    )


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert write_report(full_data(), out) == out / "index.html"
    return out


@pytest.fixture(scope="session")
def page(report: Path) -> str:
    return (report / "index.html").read_text(encoding="utf-8")
