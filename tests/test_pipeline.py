"""The whole pipeline at its smallest: its result, what is shared, and what kills change."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gmail_align import pipeline
from gmail_align.artifacts import MANIFEST
from gmail_align.encoders.shipped import shipped_models
from gmail_align.recipe import read_recipe, recipe_file, recipe_of
from gmail_align.results import read_result
from gmail_align.workflow.steps.encoders import Aligned
from gmail_align.workflow.work import in_order
from worlds.runs import COUNTS, counted_smoke

UNTIMED = ("report", "seconds")
MEASURED = ("seconds", "memory_gb")


def manifests(work: Path, kind: str = "*") -> set[Path]:
    return set(work.glob(f"{kind}/**/{MANIFEST}"))


def untimed(result: dict[str, Any]) -> dict[str, Any]:
    rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in result["rows"]]
    return {k: v for k, v in result.items() if k not in UNTIMED} | {"rows": rows}


@pytest.fixture(scope="module")
def finished(smoke_folder: Path) -> tuple[Path, dict[str, Any]]:
    return smoke_folder, pipeline.run("smoke", smoke_folder)


def test_result_keeps_the_contract(finished: tuple[Path, dict[str, Any]]) -> None:
    work, result = finished
    stored = json.loads((work / "result.json").read_text())
    assert stored == {key: value for key, value in result.items() if key != "report"}
    recipe = read_recipe("smoke")
    assert [row["name"] for row in stored["rows"]] == [row.name for row in recipe.row]
    for row in stored["rows"]:
        assert row["metrics"].keys() >= {"CIDEr", "BLEU4", "METEOR", "ROUGE_L"}
        for estimate in row["metrics"].values():
            assert estimate.keys() == {"value", "low", "high", "n"}
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    names = [encoder["name"] for encoder in stored["encoders"]]
    assert names == ["frozen", "control", "gmail", "gmail on scarce"]
    for encoder in stored["encoders"]:
        assert encoder["gap"].keys() >= {"paired_cosine", "gen_to_real_r1", "probe_auc"}
        (recalls,) = encoder["retrieval"].values()
        assert recalls.keys() >= {"i2t_r1", "t2i_r1", "i2t_r10", "t2i_r10"}
        assert encoder["zeroshot"].keys() >= {"tabletop_floor", "tabletop_count"}
    (claim,) = stored["claims"]
    assert claim["difference"]["n"] == 20
    assert claim["verdict"] in ("holds", "not significant", "reversed")


def test_the_numbers_of_every_step_are_known_before_it_is_made(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    """A row has its captions' scores in ``systems``; WMD lacks word vectors."""
    steps = in_order(pipeline.steps_of(read_recipe("smoke"), Path()).targets)
    judged = {step: read_result(step.place(finished[0])) for step in steps if step.measures}
    assert {type(step).__name__ for step in judged} == {
        *("Gap", "Retrieval", "ZeroShot", "CaptionScores")
    }
    for step, result in judged.items():
        found = [result.metrics, *result.details.get("systems", {}).values()][-1]
        assert set(step.measures) == found.keys() | result.unavailable.keys()


def test_images_are_counted_from_artifacts(finished: tuple[Path, dict[str, Any]]) -> None:
    """Real images that choose a step count as well: 8 of 40 for training, 20 of validation."""
    used = {row["name"]: row for row in finished[1]["rows"]}
    real = {name: row["real_images"] for name, row in used.items()}
    assert real == {
        "generated_raw": 0,
        "generated_lora_only": 0,
        "generated_gmail": 40,
        "generated_gmail_scarce": 8,
        "real_scarce": 8 + 20,
        "real": 40 + 20,
    }
    assert used["generated_raw"]["generated_images"] == 40 + 20
    assert used["real"]["generated_images"] == 0
    assert used["generated_gmail"]["steps"] == 4 + 4


def test_each_image_is_decoded_and_goes_through_the_frozen_tower_once(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    """80 real and 60 generated images; the tower also sees the two pictures that check a save."""
    counts = json.loads(finished[0].with_name(COUNTS).read_text())
    assert counts["decoded"] == [1] * 140
    assert counts["embedded"][:140] == [1] * 140
    assert len(counts["embedded"]) == 140 + 2


def test_four_artifacts_hold_a_caption_before_the_aligner_reads_it(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    work, _ = finished
    steps = json.loads((work / "index.json").read_text())["generated_gmail"]
    names = [step["what"] for step in steps]
    last = next(n for n, name in enumerate(names) if name.startswith("encoder"))
    folders = [Path(step["folder"]) for step in steps[:last] if "world" not in step["what"]]
    (pairs,) = (folder for folder in folders if folder.parts[0] == "pairs")
    row = json.loads((work / pairs / "pairs.jsonl").read_text().splitlines()[0])
    text = row["text"].encode()
    files = {folder: [f for f in (work / folder).rglob("*") if f.is_file()] for folder in folders}
    holding = [one.parts[0] for one in files if any(text in f.read_bytes() for f in files[one])]
    assert sorted(holding) == ["captions", "generated", "imports", "pairs"]


def test_report_and_index_are_written(finished: tuple[Path, dict[str, Any]]) -> None:
    work, result = finished
    assert result["report"] == str(work / "report" / "index.html")
    assert "<!doctype html>" in Path(result["report"]).read_text().lower()
    index = json.loads((work / "index.json").read_text())
    for steps in index.values():
        assert all((work / step["folder"] / MANIFEST).exists() for step in steps)
    before = Path(result["report"]).read_bytes()
    code = (
        "import sys; from pathlib import Path; from gmail_align import pipeline\n"
        "pipeline.report_again(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(work)], check=True)
    assert Path(result["report"]).read_bytes() == before


def test_second_run_does_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    work, result = finished
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    start = time.monotonic()
    assert pipeline.run("smoke", work) == result
    assert time.monotonic() - start < 2
    assert before == {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", ["[]", '{"rows": []}'])
def test_a_result_that_was_changed_is_gathered_again(
    finished: tuple[Path, dict[str, Any]], damage: str, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(finished[0], work)
    made = manifests(work)
    (work / "result.json").write_text(damage)
    assert untimed(pipeline.run("smoke", work)) == untimed(finished[1])
    assert untimed(json.loads((work / "result.json").read_text())) == untimed(finished[1])
    assert manifests(work) == made


def test_a_row_with_another_setting_is_all_that_is_made(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    work = tmp_path / "shared"
    shutil.copytree(finished[0], work)
    before = manifests(work)
    text = recipe_file("smoke").read_text()
    file = tmp_path / "other.toml"
    old = 'mark = "ours"\nlearn = "clipcap"\nalign = "gmail"\n\n'
    assert text.count(old) == 1
    file.write_text(
        text.replace(old, old.rstrip() + '\nset = { "align.gmail.temperature" = 0.2 }\n\n')
    )
    result = pipeline.run(str(file), work)
    made = manifests(work) - before
    counted = {
        kind: len(made & manifests(work, kind))
        for kind in ("imports", "generated", "pairs", "encoders", "captioners", "predictions")
    }
    assert counted == {
        "imports": 0,
        "generated": 0,
        "pairs": 0,
        "encoders": 1,
        "captioners": 1,
        "predictions": 1,
    }
    rows = {row["name"]: row["metrics"] for row in result["rows"]}
    for row in finished[1]["rows"]:
        if row["name"] != "generated_gmail":
            assert rows[row["name"]] == row["metrics"]


def test_overwritten_weights_are_never_complete(tmp_path: Path) -> None:
    model, work = tmp_path / "clip", tmp_path / "work"
    shutil.copytree(shipped_models() / "clip", model)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        [data.train]
        kind = "tabletop"
        images = 20
        [data.validation]
        kind = "tabletop"
        images = 10
        [data.test]
        kind = "tabletop"
        images = 10
        [generator]
        model = "tabletop"
        steps = 1
        [encoder]
        base = "{model}"
        [align.ours]
        batch_size = 8
        optim = {{ steps = 2 }}
        [[row]]
        name = "ours"
        align = "ours"
        [evaluate]
        retrieval = ["test"]
        """
    )
    first = pipeline.run(str(recipe), work)
    tensors = load_file(model / "model.safetensors")
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"].flip(0)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    again = pipeline.run(str(recipe), work)
    assert len(manifests(work, "encoders")) == 2
    assert len(manifests(work, "generated")) == 2  # train and validation, made once
    assert first["encoders"][0]["retrieval"] != again["encoders"][0]["retrieval"]


def test_the_control_has_its_own_settings() -> None:
    """What GMAIL is given does not reach the control, which sees no real image."""
    plain = read_recipe("demo")
    tables = plain.tables | {"align": {n: dict(t) for n, t in plain.tables["align"].items()}}
    tables["align"]["gmail"] |= {"select": "margin", "weights": {"distill_generated": 1.0}}

    def control(recipe: Any) -> Aligned:
        (row,) = pipeline.steps_of(recipe, Path()).rows["generated_lora_only"]
        (step,) = (step for step in in_order(row.targets) if isinstance(step, Aligned))
        return step

    assert control(recipe_of(tables)) == control(plain)
    assert not control(plain).uses_real


def test_a_row_is_named_in_messages_without_its_steps() -> None:
    """An error names the shard that it comes from, and a row is one."""
    (row,) = pipeline.steps_of(read_recipe("smoke"), Path()).rows["generated_gmail"]
    assert "generated_gmail" in str(row) and len(str(row)) < 50


def test_killed_run_ends_with_the_same_result(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """SIGKILL while the alignments are trained, then again later, then to the end.

    It begins with the data and the images of the finished run, which no kill would touch.
    """
    work = tmp_path / "smoke"
    made = ("worlds", "imports", "captions", "generated", "leaks", "pairs")
    for kind in made:
        shutil.copytree(finished[0] / kind, work / kind)
    command = counted_smoke(work, tmp_path / COUNTS)
    for marker in ("encoders/*/draft.json", "captioners/*"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not list(work.glob(marker)):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert untimed(pipeline.run("smoke", work)) == untimed(finished[1])
