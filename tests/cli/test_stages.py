"""Every stage's command, one after the other, on two dozen images and the shipped models."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gmail_align.artifacts import load
from gmail_align.cli.main import app
from gmail_align.encoders.shipped import shipped_models

STAGES = {
    "write": "tabletop write --out {w} --count 24",
    "import": "import coco --annotations {w}/captions_train.json --images {w}/images --out {real}",
    "synthesize": "synthesize --captions {real}/captions --model tabletop --out {gen}"
    " --set steps=1 --set batch_size=120",
    "pair": "pair --captions {real}/captions --real {real}/images --generated {gen} --out {pairs}",
    "gap": "gap --real {real}/images --generated {gen} --pairs {pairs} --encoder tabletop"
    " --out {gap} --set resamples=20 --set max_pairs=48",
    "align": "align --pairs {pairs} --real {real}/images --generated {gen} --base tabletop"
    " --out {encoder} --preset eq1_only --config {work}/align.toml --set optim.evaluate_every=2",
    "extract": "extract {real}/images --encoder {encoder} --route real --out {seen}",
    "generated": "extract {gen} --encoder {encoder} --route generated --out {made}",
    "texts": "extract {real}/captions --encoder {encoder} --out {texts}",
    "train": "train clipcap --features {made} --captions {pairs} --language-model tabletop"
    " --out {captioner} --set optim.steps=2 --set batch_size=8 --set max_tokens=20"
    " --validation-features {seen} --validation-captions {real}/captions",
    "predict": "predict captions --captioner {captioner} --features {seen} --out {said} --beam 1",
    "retrieval": "evaluate retrieval --images {seen} --texts {texts} --captions {real}/captions"
    " --out {ranks}",
    "zeroshot": "evaluate zeroshot --images {seen} --labels {work}/labels.json"
    " --classes {work}/classes.json --encoder tabletop --out {classes}",
    "export": "export {encoder} --format hf --route generated --out {exported} --data {pairs}",
    "stretch": "convert {clip} --stretch 120 --out {longer}",
    "scratch": "train clip --captions {real}/captions --images {real}/images --base tabletop"
    " --out {scratch} --set optim.steps=2 --batch-size 8 --holdout 0.25",
    "track": "track {encoder} --to tensorboard --out {tracked} --name run",
    "captions": "evaluate captions a={said} b={said} --references {real}/captions --out {scores}"
    " --metric ROUGE_L",
}
PLACES = [
    *("w", "real", "gen", "pairs", "gap", "encoder", "seen", "made", "texts", "captioner"),
    *("said", "ranks", "classes", "scores", "exported", "longer", "scratch", "tracked"),
]
DRY = ["demo --out {out}", "run smoke --out {out}", "tabletop train --out {out}"]


def call(words):
    return CliRunner().invoke(app, words)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Run every stage once; the folders, the commands and what each printed."""
    work = tmp_path_factory.mktemp("stages")
    places = {name: work / name for name in PLACES} | {"work": work}
    places["clip"] = shipped_models() / "clip"
    (work / "align.toml").write_text("batch_size = 8\n[optim]\nsteps = 2\n")
    (work / "classes.json").write_text(json.dumps({"red": ["a red ball"], "blue": ["a blue ball"]}))
    images = [f"{number}" for number in range(24)]
    labels = dict(zip(images, ["red", "blue"] * 12, strict=True))
    (work / "labels.json").write_text(json.dumps(labels))
    commands = {name: text.format(**places).split() for name, text in STAGES.items()}
    said = {}
    for name, words in commands.items():
        ran = call([*words, "--json"])
        assert ran.exit_code == 0, (name, ran.stderr, ran.exception)
        said[name] = json.loads(ran.stdout)
    return places, commands, said


def test_every_stage_made_what_it_says(world):
    said = world[2]
    counts = {name: value.get("counts") for name, value in said.items()}
    assert counts["synthesize"]["images"] == 120
    assert counts["pair"]["pairs"] == 120
    assert counts["predict"] == {"images": 24}
    assert [one["kind"] for one in said["import"]["artifacts"]] == ["captions", "images"]
    kinds = {name: value["kind"] for name, value in said.items() if "kind" in value}
    assert kinds["align"] == "encoder"
    assert kinds["train"] == "captioner"
    assert (kinds["scratch"], kinds["stretch"]) == ("clip", "backbone")
    assert said["track"]["events"] > 0
    assert {kinds[name] for name in ("gap", "retrieval", "zeroshot", "captions")} == {"result"}
    for value in said.values():
        if "folder" in value:
            assert load(Path(value["folder"])).counts == value["counts"]


def test_results_come_with_their_numbers(world):
    said = world[2]
    assert said["gap"]["protocol"] == "gap_paired"
    assert 0 <= said["zeroshot"]["metrics"]["accuracy"] <= 1
    assert set(said["captions"]["systems"]) == {"a", "b"}
    assert said["captions"]["paired"]["b - a"]["ROUGE_L"]["value"] == 0


def test_config_and_preset_and_set_reach_the_stage(world):
    config = load(world[0]["encoder"]).manifest["config"]
    assert config["weights"]["text_real"] == 0
    assert (config["optim"]["steps"], config["optim"]["evaluate_every"]) == (2, 2)
    assert config["batch_size"] == 8


@pytest.mark.parametrize("name", ["import", "pair", "extract", "retrieval", "predict"])
def test_a_finished_stage_is_not_run_again(world, name):
    _, commands, said = world
    ran = call([*commands[name], "--json"])
    assert json.loads(ran.stdout) == said[name]
    assert ran.stderr == ""


@pytest.mark.parametrize("name", [name for name in STAGES if name != "write"])
def test_a_dry_run_says_what_it_would_do_and_makes_nothing(world, name, tmp_path):
    words = list(world[1][name])
    out = words.index("--out") + 1
    words[out] = str(tmp_path / "out")
    ran = call([*words, "--dry-run"])
    assert ran.exit_code == 0, ran.stderr
    assert f"into {tmp_path / 'out'}" in ran.stdout
    assert list(tmp_path.iterdir()) == []
    planned = json.loads(call([*words, "--dry-run", "--json"]).stdout)
    assert planned["out"] == str(tmp_path / "out")


def test_features_of_a_cache_are_those_without_it(world, tmp_path):
    places, commands, _ = world
    words = [*commands["extract"], "--cache", tmp_path / "cache"]
    words[words.index("--out") + 1] = tmp_path / "out"
    assert call([str(word) for word in words]).exit_code == 0
    assert load(tmp_path / "out").fingerprint == load(places["seen"]).fingerprint
    assert list((tmp_path / "cache").rglob("manifest.json"))
    ran = call([str(word) for word in (*words, "--shard-of", "1/2")])
    assert (ran.exit_code, "--cache" in ran.stderr) == (2, True)


@pytest.mark.parametrize(
    "text",
    [
        "export absent --format hf",
        "convert ./absent.pt",
        "init absent",
        "import coco --annotations absent.json",
        "align features --real absent.npy --generated b.npy --pairs p.npy",
        "evaluate retrieval --images absent --texts t.npy --captions c.json",
    ],
)
def test_a_plan_of_what_is_not_there_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    ran = call([*text.split(), "--out", "out", "--dry-run"])
    assert (ran.exit_code, "absent" in ran.stderr.splitlines()[-1]) == (2, True), ran.stderr


@pytest.mark.parametrize("text", DRY)
def test_what_takes_long_is_planned(tmp_path, text):
    ran = call([*text.format(out=tmp_path / "out").split(), "--dry-run"])
    assert ran.exit_code == 0, ran.output
    assert str(tmp_path / "out") in ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_a_configuration_that_config_reads(world, tmp_path):
    words = [*world[1]["align"], "--select", "margin", "--out", str(tmp_path / "out"), "--dry-run"]
    shown = call(words).stdout
    (tmp_path / "shown.toml").write_text(shown)
    words = [*world[1]["align"], "--out", str(tmp_path / "out"), "--dry-run"]
    words[words.index("--config") + 1] = str(tmp_path / "shown.toml")
    assert call(words).stdout == shown
    assert 'select = "margin"' in shown


def test_a_result_is_printed_with_intervals(world):
    lines = call(world[1]["retrieval"]).stdout.splitlines()
    assert lines[0].endswith("ranks") and lines[1] == "retrieval, 24 images, 120 texts"
    assert all(" to " in line for line in lines[2:])


@pytest.mark.parametrize(
    ("name", "extra", "sentence"),
    [
        ("align", ["--set", "optim.stps=3"], "did you mean 'optim.steps'?"),
        ("align", ["--set", "batch_size=9"], "config.batch_size was 8 and is now 9"),
        ("align", ["--pairs", "{real}/captions"], "holds captions, but pairs are needed here"),
        ("gap", ["--real", "{pairs}"], "holds pairs, but images or features are needed here"),
        ("extract", ["--device", "gpu"], "'gpu'"),
        ("train", ["--captions", "{w}"], "--features and --captions come in pairs"),
        ("predict", ["--features", "{gap}"], "holds result, but features are needed here"),
        ("captions", ["x={gap}"], "holds result, but predictions are needed here"),
        ("captions", ["b={said}"], "two predictions are named 'b'"),
        ("zeroshot", ["--labels", "{work}/align.toml"], "image 0"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(world, name, extra, sentence):
    places, commands, _ = world
    ran = call([*commands[name], *(word.format(**places) for word in extra)])
    assert ran.exit_code == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("gmail-align: ")
    assert sentence in line


def test_images_need_a_route_and_an_encoder(world):
    commands = world[1]
    words = [word for word in commands["extract"] if word not in ("--route", "real")]
    assert "name a --route (frozen, generated, real, real_head)" in call(words).stderr
    words = [word for word in commands["gap"] if word not in ("--encoder", "tabletop")]
    assert "name an --encoder" in call(words).stderr
