"""``evaluate captions``, ``evaluate answers`` and ``compare`` on plain files."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gmail_align.cli.main import app

pytest.importorskip("pycocoevalcap")

KEYS = {"metrics", "intervals", "n", "protocol", "unavailable", "seconds"}
NOUNS = ["ball", "cube", "cone", "cylinder"]
HUMAN = {
    "annotations": [
        {"id": 10 * image + at, "image_id": image, "caption": f"{text} {NOUNS[image % 4]}"}
        for image in range(1, 9)
        for at, text in enumerate(["a small red", "one tiny reddish"])
    ]
}
SAID = [{"image_id": image, "caption": f"a red {NOUNS[image % 4]}"} for image in range(1, 9)]
WORSE = [row | {"caption": "a small cube"} if row["image_id"] % 2 else row for row in SAID]
FAST = ("--metrics", "ROUGE_L,CIDEr")  # further words are further metrics


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def files(tmp_path):
    def write(name, value):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    write("human.json", HUMAN)
    write("said.json", SAID)
    write("worse.json", WORSE)
    return write


@pytest.fixture
def scored(files, tmp_path):
    """Evaluate captions with these words; the options that every call needs are given."""

    def run(*words, said="said.json"):
        start = ("evaluate", "captions", "--references", tmp_path / "human.json")
        return call(*start, "--predictions", tmp_path / said, *FAST, *words)

    return run


def test_captions_of_files_are_scored_and_kept(scored, tmp_path):
    ran = scored("--json", "--out", tmp_path / "a")
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert set(result) >= KEYS and set(result["metrics"]) == {"ROUGE_L", "CIDEr"}
    assert result["n"] == {"images": 8, "references": 16}
    kept = json.loads((tmp_path / "a/result.json").read_text())
    assert kept.items() <= result.items()
    assert "ROUGE_L" in scored().stdout
    more = json.loads(scored("BLEU1", "BLEU2", "--json").stdout)["metrics"]
    assert set(more) == {"ROUGE_L", "CIDEr", "BLEU1", "BLEU2"}
    again = scored("--out", tmp_path / "a")
    assert again.exit_code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    refused = scored("--out", tmp_path / "mine")
    assert refused.exit_code == 2 and "mine" in refused.stderr


def test_a_comparison_of_predictions_is_that_of_kept_results(scored, tmp_path):
    for name in ("said", "worse"):
        assert scored("--out", tmp_path / name, said=f"{name}.json").exit_code == 0
    kept = json.loads(call("compare", tmp_path / "said", tmp_path / "worse", "--json").stdout)
    predictions = tmp_path / "said.json", tmp_path / "worse.json"
    ran = call("compare", *predictions, "--references", tmp_path / "human.json", *FAST, "--json")
    fresh = json.loads(ran.stdout)
    assert set(fresh) >= KEYS | {"a", "b", "verdicts"}
    for key in ("metrics", "intervals", "a", "b"):
        assert kept[key] == fresh[key]
    assert kept["metrics"]["CIDEr"] > 0
    shown = call("compare", tmp_path / "said", tmp_path / "worse").stdout
    assert "CIDEr" in shown and "(" in shown


def test_words_learnt_from_the_references_are_mentioned(files, tmp_path):
    pytest.importorskip("gensim")
    words = ("--references", tmp_path / "human.json", "--metrics", "wmd", "--json")
    ran = call("evaluate", "captions", "--predictions", tmp_path / "said.json", *words)
    assert ran.exit_code == 0 and "trained on the human captions" in ran.stderr
    result = json.loads(ran.stdout)
    assert result["word_vectors"] == {"source": "trained on the references", "unit_length": True}
    assert 0 < result["metrics"]["WMD"] <= 1 and result["unavailable"] == {}


def test_only_what_both_predicted_is_compared_in_part(scored, files):
    fewer, more = files("fewer.json", SAID[1:]), files("more.json", SAID)
    how = ("--references", files("human.json", HUMAN), "--metrics", "BLEU4", "--json")
    ran = call("compare", more, fewer, *how)
    assert ran.exit_code == 2 and f"B ({fewer})" in ran.stderr and "1 image: 1" in ran.stderr
    result = json.loads(call("compare", more, fewer, *how, "--partial").stdout)
    assert result["metrics"] == {"BLEU4": 0} and result["n"] == {"items": len(SAID) - 1}
    strange = files("strange.json", [*SAID, {"image_id": 99, "caption": "a"}])
    ran = call("compare", strange, fewer, *how, "--partial")
    assert ran.exit_code == 2 and "1 image: 99" in ran.stderr
    ran = call("compare", more, fewer)
    assert ran.exit_code == 2 and str(more) in ran.stderr


def test_clip_scores_follow_the_order_of_the_files(scored, files, tmp_path):
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(8, 4)) + 1 for name in ("images", "captions")}
    features["references"] = rng.normal(size=(16, 4)) + 1
    paths = {name: tmp_path / f"{name}.npy" for name in features}
    for name, path in paths.items():
        np.save(path, features[name])
    words = [word for name in paths for word in (f"--clip-{name}", paths[name])]
    result = json.loads(scored("--json", *words).stdout)["metrics"]
    order = rng.permutation(8)
    files("said.json", [SAID[at] for at in order])
    for name in ("images", "captions"):
        np.save(paths[name], features[name][order])
    again = json.loads(scored("--json", *words).stdout)["metrics"]
    assert again == pytest.approx(result)
    assert 0 < result["RefCLIPScore"] < result["CLIPScore"]
    np.save(paths["images"], features["images"][:7])
    short = scored(*words)
    assert short.exit_code == 2 and "7 rows for 8 predictions" in short.stderr
    alone = scored("--clip-images", paths["images"])
    assert alone.exit_code == 2 and "both --clip-images and --clip-captions" in alone.stderr


@pytest.mark.parametrize(
    ("said", "words", "named"),
    [
        (SAID[1:], (), "1 image: 1"),
        ([*SAID, {"image_id": 99, "caption": "a"}], (), "1 image: 99"),
        ([*SAID, SAID[0]], (), "1 image: 1"),
        ([{**SAID[0], "caption": " "}, *SAID[1:]], (), "1 image: 1"),
        (json.dumps(SAID)[:-20], (), "said.json"),
        (HUMAN, (), "said.json"),
        (SAID, ("--metrics", "WER"), "WER"),
        (SAID, ("WER",), "WER"),
        (SAID, ("--raw-vectors",), "--word-vectors"),
        (SAID, ("--word-vectors", "nowhere.bin"), "nowhere.bin"),
        (SAID, ("--encoder", "tabletop"), "--images"),
        (SAID, ("--protocol", "coco_karpathy_5k"), "coco_karpathy_5k"),
    ],
)
def test_bad_input_is_one_sentence(said, words, named, scored, files):
    files("said.json", said)
    ran = scored(*words)
    assert ran.exit_code == 2, ran.output
    assert named in ran.stderr and ran.stderr.count("\n") == 1


def test_predictions_are_given_once(files, tmp_path):
    human = ("--references", tmp_path / "human.json")
    said = ("--predictions", tmp_path / "said.json")
    for words in (human, (tmp_path, *human, *said)):
        ran = call("evaluate", "captions", *words)
        assert ran.exit_code == 2 and "--predictions" in ran.stderr


def test_several_files_are_compared_in_pairs(files, tmp_path):
    words = ("--references", tmp_path / "human.json", *FAST, "--json")
    named = (f"a={tmp_path / 'said.json'}", f"b={tmp_path / 'worse.json'}")
    ran = call("evaluate", "captions", *named, *words, "--out", tmp_path / "both")
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert set(result["systems"]) == {"a", "b"}
    assert result["paired"]["b - a"]["CIDEr"]["value"] < 0
    shown = call("evaluate", "captions", *named, *words[:-1]).stdout
    assert "a CIDEr" in shown and "b - a CIDEr" in shown


def test_a_dry_run_asks_only_whether_its_inputs_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ("evaluate", "captions", "--predictions", "a", "--references", "b"),
        ("evaluate", "answers", "--protocol", "mmmu_val", "--predictions", "a", "--answers", "b"),
        ("compare", "a", "b"),
    ):
        Path("a").write_text("")
        Path("b").write_text("")
        assert call(*words, "--dry-run").exit_code == 0
        Path("b").unlink()
        ran = call(*words, "--dry-run")
        assert (ran.exit_code, "b does not exist" in ran.stderr) == (2, True)


def test_answers_and_their_comparison(files, tmp_path):
    gold = files("gold.json", {str(n): "AB"[n % 2] for n in range(20)})
    said = files("answers.json", {str(n): "AB"[n % 2] if n < 15 else "dunno" for n in range(20)})
    all_a = files("all_a.json", {str(n): "A" for n in range(20)})
    how = ("--protocol", "own", "--answers", gold)
    ran = call(
        "evaluate", "answers", *how, "--predictions", said, "--json", "--out", tmp_path / "x"
    )
    result = json.loads(ran.stdout)
    assert set(result) >= KEYS | {"groups", "unparsed", "rule"}
    assert (result["metrics"]["accuracy"], result["unparsed"]) == (0.75, 5)
    assert (
        "5 responses without an answer"
        in call("evaluate", "answers", *how, "--predictions", said).stdout
    )
    apart = json.loads(call("compare", said, all_a, *how, "--json").stdout)
    assert apart["metrics"] == {"accuracy": pytest.approx(0.25)}
    for words, message in (
        (("evaluate", "answers", *how, "--predictions", said, "--rule", "lax"), "--rule"),
        (("compare", said, all_a), "answers.json"),
        (("compare", said, said, "--references", gold, "--answers", gold), "--answers"),
        (("compare", tmp_path / "x", tmp_path / "nothing"), "nothing"),
        (("compare", tmp_path / "x", tmp_path / "x", "--protocol", "p"), "--protocol"),
    ):
        ran = call(*words)
        assert ran.exit_code == 2 and message in ran.stderr, ran.output


def test_a_set_of_another_size_does_not_carry_the_protocol_s_name(files):
    gold = files("gold.json", {"1": "A"})
    said = files("one.json", {"1": "A"})
    how = ("--protocol", "scienceqa_img_test", "--answers", gold, "--predictions", said)
    part = json.loads(call("evaluate", "answers", *how, "--subset", "--json").stdout)
    assert part["protocol"] == "scienceqa_img_test (subset: 1 of 2017 questions)"


def test_one_result_is_compared_with_several(files, tmp_path):
    for name in ("said", "worse"):
        made = ("--predictions", tmp_path / f"{name}.json", "--out", tmp_path / name)
        call("evaluate", "captions", *made, "--references", tmp_path / "human.json", *FAST)
    said, worse = tmp_path / "said", tmp_path / "worse"
    ran = call("compare", said, worse, said, "--out", tmp_path / "both", "--json")
    assert ran.exit_code == 0, ran.stderr
    first, second = json.loads(ran.stdout)["comparisons"]
    assert first["metrics"]["CIDEr"] > 0 == second["metrics"]["CIDEr"]
    assert (tmp_path / "both" / "worse" / "result.json").exists()
    assert call("compare", said).exit_code == 2
