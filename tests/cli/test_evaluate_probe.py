"""``evaluate probe`` on plain files and on artifacts."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from gmail_align.artifacts import begin, write_bytes, write_jsonl
from gmail_align.cli.main import app


def call(*words):
    return CliRunner().invoke(app, ["evaluate", "probe", *(str(word) for word in words)])


def draw(count, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return (np.eye(3, 6)[labels] * 2 + rng.standard_normal((count, 6))).astype(np.float32), labels


@pytest.fixture
def files(tmp_path):
    options = []
    for name, count, seed in (("train", 60, 0), ("validation", 30, 1), ("test", 45, 2)):
        rows, labels = draw(count, seed)
        np.save(tmp_path / f"{name}.npy", rows)
        np.save(tmp_path / f"{name}_y.npy", labels)
        options += [f"--{name}", tmp_path / f"{name}.npy"]
        options += [f"--{name}-labels", tmp_path / f"{name}_y.npy"]
    return options


def test_files(files, tmp_path):
    ran = call(*files, "--json", "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["n"] == {"train": 60, "images": 45, "classes": 3}
    assert 0.6 < result["metrics"]["accuracy"] < 1 and len(result["validation"]) == 45
    assert result["weight_decay"] > 0 and result["protocol"] == "linear_probe"
    assert (tmp_path / "out" / "items.safetensors").exists()
    without = files[:4] + files[8:]
    assert call(*without).exit_code == 0
    assert call(*files, "--dry-run", "--out", tmp_path / "dry").exit_code == 0
    assert not (tmp_path / "dry").exists()


def test_labels_may_be_any_numbers(files, tmp_path):
    plain = json.loads(call(*files, "--json").stdout)
    for name in ("train", "validation", "test"):
        labels = np.load(tmp_path / f"{name}_y.npy")
        np.save(tmp_path / f"{name}_y.npy", labels.astype(np.int64) * 10**12 + 7)
    far = json.loads(call(*files, "--json", "--out", tmp_path / "far").stdout)
    for key in ("metrics", "n", "weight_decay"):
        assert far[key] == plain[key]


def test_artifacts(tmp_path):
    table, options = {}, []
    for name, count, seed in (("train", 60, 0), ("test", 45, 2)):
        rows, labels = draw(count, seed)
        draft = begin(tmp_path / name, "features", {"encoder": "clip", "route": "frozen"})
        ids = [f"{name}-{row}" for row in range(count)]
        write_jsonl(draft.path("ids.jsonl"), ids)
        write_bytes(draft.path("features.safetensors"), save({"features": torch.from_numpy(rows)}))
        draft.finish({"rows": count})
        table |= {one: "abc"[label] for one, label in zip(ids, labels, strict=True)}
        options += [f"--{name}", tmp_path / name]
    (tmp_path / "labels.json").write_text(json.dumps(table))
    options += ["--labels", tmp_path / "labels.json", "--out", tmp_path / "out"]
    ran = call(*options, "--json")
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["n"] == {"train": 60, "images": 45, "classes": 3}
    assert json.loads(call(*options, "--json").stdout) == result
    del table["test-3"]
    (tmp_path / "labels.json").write_text(json.dumps(table))
    ran = call(*options[:-1], tmp_path / "other")
    assert ran.exit_code == 2 and "1 of 45 images" in ran.stderr


def test_mistakes_are_explained_in_a_sentence(files, tmp_path):
    np.save(tmp_path / "bad.npy", np.full((45, 6), np.nan))
    for words, sentence in (
        (files[:2] + files[8:], "--train-labels"),
        ([*files, "--protocol", "oxford_pets"], "oxford_pets"),
        ([*files[:-4], "--test", tmp_path / "bad.npy", *files[-2:]], "bad.npy"),
        ([*files, "--labels", tmp_path / "no.json"], "no.json"),
    ):
        ran = call(*words)
        assert ran.exit_code == 2, ran.stderr
        (line,) = ran.stderr.splitlines()
        assert sentence in line


def test_fine_tuning_is_planned_without_being_run(tmp_path):
    draft = begin(tmp_path / "images", "images", {})
    images = draft.finish({"images": 0}).folder
    (tmp_path / "labels.json").write_text('{"a": "cat", "b": "dog"}')
    words = ("evaluate", "finetune", "--train", images, "--test", images, "--encoder", "tabletop")
    words += ("--labels", tmp_path / "labels.json", "--out", tmp_path / "out", "--dry-run")
    ran = CliRunner().invoke(app, [str(word) for word in (*words, "--set", "epochs=30")])
    assert ran.exit_code == 0 and "epochs = 30.0" in ran.stdout, ran.output
    assert not (tmp_path / "out").exists()
    ran = CliRunner().invoke(app, [str(word) for word in (*words, "--set", "epochs=3")])
    assert ran.exit_code == 2 and "have to be fewer than epochs" in ran.stderr
