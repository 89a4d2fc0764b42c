from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.model_outputs import open_predictions
from gmail_align.errors import ArtifactError, DataError
from gmail_align.evaluation.captions import CaptionOptions, evaluate_captions, evaluate_seeds
from gmail_align.evaluation.compare import compare_items
from gmail_align.items import read_items

from .conftest import MakePredictions

pytest.importorskip("pycocoevalcap")

REFERENCES = {
    "1": ["a red ball on the floor", "there is a red ball"],
    "2": ["two blue cubes and a cone", "a cone beside two cubes"],
    "3": ["a grey cylinder on grass", "some grass with a cylinder"],
}
GOOD = {
    "1": "a red ball on the floor",
    "2": "two blue cubes and a cone",
    "3": "a cylinder on grass",
}
POOR = {"1": "a red thing", "2": "two cubes", "3": "a floor"}
FAST = CaptionOptions("toy", metrics=("BLEU1", "CIDEr", "ROUGE_L"))


@pytest.fixture
def human(tmp_path: Path) -> Artifact:
    draft = begin(tmp_path / "human", "captions", {})
    rows = [
        Caption(f"{image}-{number}", text, image)
        for image, texts in REFERENCES.items()
        for number, text in enumerate(texts)
    ]
    return draft.finish({"captions": write_captions(draft, rows)})


def test_captioners_are_scored_side_by_side(
    make_predictions: MakePredictions, human: Artifact, tmp_path: Path
) -> None:
    systems = {"good": make_predictions("g", GOOD), "poor": make_predictions("p", POOR)}
    out = tmp_path / "out"
    result = evaluate_captions(systems, human, out, FAST, paired=[("good", "poor")])
    good, poor = result.details["systems"]["good"], result.details["systems"]["poor"]
    assert list(good) == ["BLEU1", "ROUGE_L", "CIDEr"] and not result.metrics
    apart = result.details["paired"]["good - poor"]
    for metric, entry in apart.items():
        assert entry["value"] == pytest.approx(good[metric]["value"] - poor[metric]["value"])
        assert entry["value"] > 0
    with pytest.raises(DataError, match="2 captioners"):
        read_items(out)
    a, b = (read_items(out / f"items/{name}.safetensors") for name in ("good", "poor"))
    again = compare_items(a, b)
    assert {name: one.value for name, one in again.metrics.items()} == {
        metric: pytest.approx(entry["value"]) for metric, entry in apart.items()
    }
    assert result.n == {"images": 3, "references": 6}
    assert result.fingerprints["good"] == systems["good"].fingerprint


def test_one_captioner_has_metrics_of_its_own_and_what_is_unavailable(
    make_predictions: MakePredictions, human: Artifact, tmp_path: Path
) -> None:
    options = CaptionOptions("toy", metrics=("CIDEr", "SPICE", "CLIPScore"))
    systems = {"good": make_predictions("g", GOOD)}
    result = evaluate_captions(systems, human, tmp_path / "out", options)
    assert set(result.metrics) == set(result.details["systems"]["good"]) == {"CIDEr"}
    assert set(result.unavailable) == {"SPICE", "CLIPScore"}
    assert read_items(tmp_path / "out").ids == ("1", "2", "3")


def test_predictions_without_text_are_counted_and_score_nothing(
    make_predictions: MakePredictions, human: Artifact
) -> None:
    systems = {
        "good": make_predictions("g", GOOD),
        "mute": make_predictions("m", GOOD | {"2": " "}),
    }
    result = evaluate_captions(systems, human, None, CaptionOptions("toy", metrics=("ROUGE_L",)))
    assert result.details["empty"] == {"good": 0, "mute": 1}
    tables = result.details["systems"]
    good, mute = (tables[name]["ROUGE_L"]["value"] for name in ("good", "mute"))
    assert mute == pytest.approx(good - 1 / 3, abs=1e-6)


def test_one_seed_gives_the_values_of_a_single_evaluation(
    make_predictions: MakePredictions, human: Artifact, tmp_path: Path
) -> None:
    run = {"good": make_predictions("g", GOOD), "poor": make_predictions("p", POOR)}
    paired = [("good", "poor")]
    single = evaluate_captions(run, human, None, FAST, paired=paired).details
    several = evaluate_seeds([run, run], human, tmp_path / "two", FAST, paired=paired).details
    for name in run:
        for metric, entry in several["systems"][name].items():
            assert entry["value"] == pytest.approx(single["systems"][name][metric]["value"])
            assert several["per_seed"][name][metric] == pytest.approx([entry["value"]] * 2)
    for metric, entry in several["paired"]["good - poor"].items():
        assert entry["value"] == pytest.approx(single["paired"]["good - poor"][metric]["value"])
    with pytest.raises(DataError, match="same captioners"):
        evaluate_seeds([run, {}], human)


def test_every_reference_needs_a_prediction_unless_a_part_is_asked_for(
    make_predictions: MakePredictions, human: Artifact
) -> None:
    few = make_predictions("few", {"1": "a red ball"})
    with pytest.raises(DataError, match="2 images: 2, 3"):
        evaluate_captions({"few": few}, human, None, FAST)
    part = CaptionOptions("captions", metrics=("ROUGE_L",), partial=True)
    result = evaluate_captions({"few": few}, human, None, part)
    assert (result.protocol, result.n) == ("captions", {"images": 1, "references": 2})


def test_two_images_do_not_carry_the_name_of_five_thousand(
    make_predictions: MakePredictions, human: Artifact
) -> None:
    few = make_predictions("few", {"1": "a red ball", "2": "two cubes"})
    whole = CaptionOptions("coco_karpathy_5k", metrics=("ROUGE_L",))
    with pytest.raises(DataError, match="no predictions for 1 image: 3"):
        evaluate_captions({"few": few}, human, None, whole)
    every = make_predictions("every", GOOD)
    with pytest.raises(DataError, match="coco_karpathy_5k"):
        evaluate_captions({"every": every}, human, None, whole)
    part = CaptionOptions("coco_karpathy_5k", metrics=("ROUGE_L",), partial=True)
    result = evaluate_captions({"few": few}, human, None, part)
    assert result.protocol == ("coco_karpathy_5k (subset: 2 of 5000 images, 4 of 25010 captions)")
    assert result.n == {"images": 2, "references": 4}


@pytest.mark.parametrize("name", [None, {"": None}, ["1"], True])
def test_a_prediction_of_an_image_without_a_name_is_refused(
    name: Any, make_predictions: MakePredictions
) -> None:
    said = make_predictions("said", {"1": "a dog", "2": "a cat"})
    path = said.path("predictions.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["image_id"] = name
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="entry 1 of .*image_id"):
        open_predictions(said)


def test_what_cannot_be_compared_is_refused(
    make_predictions: MakePredictions, human: Artifact, tmp_path: Path
) -> None:
    good = make_predictions("g", GOOD)
    with pytest.raises(DataError, match="'bad'"):
        evaluate_captions({"good": good}, human, paired=[("good", "bad")])
    more = make_predictions("more", GOOD | {"4": "a ball"})
    with pytest.raises(DataError, match="1 image: 4"):
        evaluate_captions({"more": more}, human, None, FAST)
    result = evaluate_captions({"good": good}, human, tmp_path / "d", FAST)
    assert result.artifact is not None
    with pytest.raises(ArtifactError, match="result"):
        evaluate_captions({"result": result.artifact}, human)
