"""The whole pipeline at its smallest size: contract, no-op, and the same result after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gmail_align import pipeline
from gmail_align.errors import ArtifactError, ConfigError
from gmail_align.recipe import read_recipe, recipe_names, shipped_models

CAPTION_METRICS = {"CIDEr", "BLEU4", "METEOR", "ROUGE_L"}


def run_smoke(work: Path) -> list[str]:
    """Return the command; runs that are compared are processes of their own, alike in threads."""
    return [sys.executable, "-m", "gmail_align", "run", "smoke", "--work", str(work), "--quiet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    work = tmp_path_factory.mktemp("runs") / "smoke"
    subprocess.run([*run_smoke(work), "--json"], check=True, stdout=subprocess.DEVNULL)
    return work, pipeline.run("smoke", work)


def test_result_keeps_the_contract(finished: tuple[Path, dict[str, Any]]) -> None:
    work, result = finished
    stored = json.loads((work / "result.json").read_text())
    assert stored == {key: value for key, value in result.items() if key != "report"}
    assert set(stored["captioning"]) == set(pipeline.CAPTIONERS)
    for scores in stored["captioning"].values():
        assert scores.keys() >= CAPTION_METRICS
    for side in ("before", "after"):
        assert stored["gap"][side].keys() >= {"paired_cosine", "gen_to_real_r1", "probe_auc"}
    for route in ("frozen", "deployed"):
        assert stored["retrieval"][route].keys() >= {"i2t_r1", "t2i_r1", "i2t_r10", "t2i_r10"}
        assert stored["zeroshot"][route].keys() >= {"floor", "count"}
    assert stored["paired"]["gmail_minus_raw"]["CIDEr"]["n"] == 20
    estimates = [score for scores in stored["captioning"].values() for score in scores.values()]
    for estimate in estimates:
        assert estimate.keys() == {"value", "low", "high", "n"}
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert stored["real_images"]["generated_raw"] == 0
    assert stored["real_images"]["generated_gmail_scarce"] == 8


def test_report_is_written(finished: tuple[Path, dict[str, Any]]) -> None:
    work, result = finished
    assert result["report"] == str(work / "report" / "index.html")
    assert "<!doctype html>" in Path(result["report"]).read_text().lower()


def test_second_run_does_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    work, result = finished
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    start = time.monotonic()
    assert pipeline.run("smoke", work) == result
    assert time.monotonic() - start < 2
    assert before == {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}


def test_other_settings_are_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    work, _ = finished
    with pytest.raises(
        ArtifactError, match=r"recipe\.align\.temperature was 0\.07 and is now 0\.2"
    ):
        pipeline.run("smoke", work, ["align.temperature=0.2"])


def test_killed_run_ends_with_the_same_result(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """SIGKILL while the alignments are trained, then again later, then to the end."""
    work = tmp_path / "smoke"
    command = run_smoke(work)
    for marker in ("seed-0/encoders/generated_gmail/draft.json", "seed-0/captioners/real"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not (work / marker).exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    again = pipeline.run("smoke", work)
    untimed = {"seconds", "report"}
    first = {key: value for key, value in finished[1].items() if key not in untimed}
    assert {key: value for key, value in again.items() if key not in untimed} == first


def test_recipes_are_valid() -> None:
    names = recipe_names()
    assert {"demo", "smoke", "tabletop-evidence"} <= set(names)
    for name in names:
        read_recipe(name)


def test_unknown_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="shipped are .*demo"):
        read_recipe("nothing")


def test_unknown_key_names_its_neighbour() -> None:
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        read_recipe("demo", ["align.temprature=1"])


def test_shipped_models_are_small_and_safe() -> None:
    files = [path for path in shipped_models().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ""}
