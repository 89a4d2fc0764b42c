"""One page of results, gaps and encoders that were made one by one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gmail_align.artifacts import begin, write_jsonl
from gmail_align.cli.main import app
from gmail_align.errors import ArtifactError
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.gather import gather
from gmail_align.results import begin_result


@dataclass(frozen=True)
class Labels:
    """An input that has a fingerprint and nothing else."""

    fingerprint: str = "abc"


def result(out: Path, protocol: str, role: str = "images", details=None, **metrics: float) -> Path:
    draft = begin_result(out, {role: Labels()}, {}, protocol=protocol, task=None, n={"images": 40})
    numbers = {
        name: Estimate(value, value - 0.1, value + 0.1, 40) for name, value in metrics.items()
    }
    draft.finish(numbers, details=details, unavailable={"SPICE": "no jars"})
    return out


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    scores = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 40}
    systems = {"raw": {"CIDEr": scores}, "gmail": {"CIDEr": {**scores, "value": 0.55}}}
    draft = begin(tmp_path / "aligned", "encoder", {})
    events = [{"event": "loss", "step": step, "total": 1.0 / step} for step in (1, 2, 3)]
    write_jsonl(draft.path("events.jsonl"), [*events, {"event": "score", "step": 2, "score": 0.4}])
    draft.finish({}, best_step=2, applied=True)
    return [
        result(tmp_path / "gap", "gap_paired", paired_cosine=0.4, unpaired_cosine=0.2, margin=0.2),
        result(tmp_path / "a" / "retrieval", "coco", i2t_r1=0.3, t2i_r1=0.2),
        result(tmp_path / "b" / "retrieval", "coco", i2t_r1=0.35, t2i_r1=0.25),
        result(tmp_path / "dtd", "dtd", "classes", accuracy=0.7),
        result(tmp_path / "probe", "cifake", "train", accuracy=0.9),
        result(tmp_path / "captions", "karpathy", details={"systems": systems}),
        draft.folder,
    ]


def test_each_number_is_shown_by_its_kind_and_folder(folders: list[Path]) -> None:
    out = folders[0].parent / "page"
    ran = CliRunner().invoke(app, ["report", *map(str, folders), "--out", str(out), "--json"])
    assert ran.exit_code == 0, ran.stderr
    page = Path(json.loads(ran.stdout)["report"]).read_text()
    assert "7 results and encoders" in page and "SPICE of gap is missing: no jars" in page
    tables = {path.stem: path.read_text() for path in (out / "tables").glob("*.csv")}
    retrieval = tables["retrieval-coco"]
    assert all(str(folder) in retrieval for folder in folders[1:3]) and "After" not in retrieval
    assert "dtd" in tables["zeroshot"] and "70.0" in tables["zeroshot"]
    assert "captions: gmail" in tables["rows"] and "probe" in tables["rows"]
    assert "aligned" in tables["alignment"] and "Margin" in tables["gap"]
    assert (out / "figures" / "curves.svg").exists()


def test_what_is_no_result_is_refused(tmp_path: Path, folders: list[Path]) -> None:
    captions = begin(tmp_path / "words", "captions", {}).finish({}).folder
    with pytest.raises(ArtifactError, match="words holds captions"):
        gather([*folders, captions], "title", "command")
