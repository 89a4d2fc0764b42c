"""A small made-up run, and the page that it makes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmail_align.report.data import Curve, PairFigure, ReportData, Sample, StageSummary
from gmail_align.report.names import CAPTIONERS
from gmail_align.report.page import write_report

EVIL = '<script>alert("x")</script> & =HYPERLINK("http://x") | $\\alpha$ _a_'


def encoded(kind: str = "PNG", size: int = 8, shade: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 120, 60)).save(file, kind)
    return file.getvalue()


def est(value: float, half: float = 0.02, n: int = 40) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def captioning() -> dict[str, Any]:
    names = [item.key for item in CAPTIONERS]
    return {
        name: {
            "CIDEr": est(0.6 + 0.05 * at),
            "BLEU4": est(0.2),
            "METEOR": est(0.25),
            "ROUGE_L": est(0.5),
        }
        for at, name in enumerate(names)
    }


def full_result() -> dict[str, Any]:
    measures = ("paired_cosine", "unpaired_cosine", "margin", "gen_to_real_r1", "probe_auc")
    recalls = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    return {
        "captioning": captioning(),
        "paired": {
            "gmail_minus_raw": {"CIDEr": est(0.062)},
            "gmail_minus_lora_only": {"CIDEr": est(0.01)},
            "gmail_scarce_minus_real_scarce": {"CIDEr": est(-0.05)},
        },
        "gap": {
            "before": {name: est(0.5) for name in measures},
            "after": {name: est(0.6) for name in measures} | {"unpaired_cosine": est(0.52)},
        },
        "retrieval": {route: {r: est(0.3) for r in recalls} for route in ("frozen", "deployed")},
        "zeroshot": {route: {"colour": est(0.8)} for route in ("frozen", "deployed")},
        "seconds": {"align": 12.0},
        "seed": 0,
        "seeds": 1,
        "counts": {"captions": 1000, "real_images": 200, "generated_images": 200},
        "real_images": {
            "generated_raw": 0,
            "generated_lora_only": 0,
            "generated_gmail": 200,
            "generated_gmail_scarce": 40,
            "real_scarce": 40,
            "real": 200,
        },
        "alignment": {
            "generated_gmail": {"best_step": 20, "applied": True, "steps": 30},
            "generated_lora_only": {"best_step": 0, "applied": False},
        },
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
        curves={"generated_gmail": curve, EVIL: curve},
        pairs=[PairFigure(f"{EVIL} 山 {k}", encoded(), encoded("JPEG")) for k in range(3)],
        embeddings={"before": (features, features + 5), "after": (features, features + 0.01)},
        samples=[
            Sample(encoded(), [EVIL, "a ball"], {"generated_gmail": EVIL, "somebody": "=1+1"}),
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
