from __future__ import annotations

from pathlib import Path

import pytest

from gmail_align.errors import ArtifactError, DataError, UserError
from gmail_align.evaluation import seeds
from gmail_align.evaluation.captions import evaluate_captions
from gmail_align.evaluation.compare import compare_items
from gmail_align.evaluation.items import read_items
from gmail_align.evaluation.result import read_result

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
FAST = ("BLEU1", "CIDEr", "ROUGE_L")


def test_captioners_are_scored_side_by_side(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    systems = {"good": make_predictions("g", GOOD), "poor": make_predictions("p", POOR)}
    result = evaluate_captions(
        systems,
        REFERENCES,
        tmp_path / "out",
        protocol="toy",
        paired=[("good", "poor")],
        metrics=FAST,
    )
    body = read_result(result)
    good, poor = body["systems"]["good"], body["systems"]["poor"]
    assert set(good) == set(FAST)
    for metric, entry in body["paired"]["good - poor"].items():
        assert entry["value"] == pytest.approx(good[metric]["value"] - poor[metric]["value"])
        assert entry["value"] > 0
    assert "metrics" not in body
    with pytest.raises(DataError, match="holds 2 captioners: name one"):
        read_items(result.folder)
    a, b = (read_items(result.path(f"items/{name}.safetensors")) for name in ("good", "poor"))
    again = compare_items(a, b)
    assert again["metrics"] == {
        metric: pytest.approx(entry["value"])
        for metric, entry in body["paired"]["good - poor"].items()
    }
    assert body["n"] == {"images": 3, "references": 6}
    assert body["fingerprints"] == {name: a.fingerprint for name, a in systems.items()}


def test_one_captioner_has_its_metrics_on_top_and_what_is_unavailable(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    systems = {"good": make_predictions("g", GOOD)}
    result = evaluate_captions(
        systems, REFERENCES, tmp_path / "out", protocol="toy", metrics=("CIDEr", "SPICE")
    )
    body = read_result(result)
    assert body["metrics"] == body["systems"]["good"]
    assert set(body["metrics"]) == {"CIDEr"}
    assert set(body["unavailable"]) == {"SPICE"}
    assert read_items(result.folder).ids == ("1", "2", "3")


def test_predictions_without_text_are_counted_and_score_nothing(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    systems = {
        "good": make_predictions("g", GOOD),
        "mute": make_predictions("m", GOOD | {"2": " "}),
    }
    result = evaluate_captions(
        systems, REFERENCES, tmp_path / "out", protocol="toy", metrics=("ROUGE_L",)
    )
    body = read_result(result)
    assert body["empty"] == {"good": 0, "mute": 1}
    good, mute = (body["systems"][name]["ROUGE_L"]["value"] for name in ("good", "mute"))
    assert mute == pytest.approx(good - 1 / 3, abs=1e-6)


def test_one_seed_gives_the_values_of_a_single_evaluation(
    make_predictions: MakePredictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds, "SEEDED_METRICS", FAST)
    run = {"good": make_predictions("g", GOOD), "poor": make_predictions("p", POOR)}
    settings = {"protocol": "toy", "paired": [("good", "poor")]}
    single = evaluate_captions(run, REFERENCES, tmp_path / "one", metrics=FAST, **settings)
    several = seeds.evaluate_seeds([run, run], REFERENCES, tmp_path / "two", **settings)
    one, two = read_result(single), read_result(several)
    for name in run:
        for metric, entry in two["systems"][name].items():
            assert entry["value"] == pytest.approx(one["systems"][name][metric]["value"])
            assert two["per_seed"][name][metric] == pytest.approx([entry["value"]] * 2)
    for metric, entry in two["paired"]["good - poor"].items():
        assert entry["value"] == pytest.approx(one["paired"]["good - poor"][metric]["value"])
    with pytest.raises(DataError, match="same captioners"):
        seeds.evaluate_seeds([run, {}], REFERENCES, tmp_path / "uneven", protocol="toy")


def test_what_cannot_be_compared_is_refused(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    good = make_predictions("g", GOOD)
    with pytest.raises(DataError, match="no captioner 'bad'"):
        evaluate_captions(
            {"good": good}, REFERENCES, tmp_path / "a", protocol="toy", paired=[("good", "bad")]
        )
    few = make_predictions("few", {"1": "a ball"})
    with pytest.raises(UserError, match="no prediction for 2 images: 2, 3"):
        evaluate_captions({"few": few}, REFERENCES, tmp_path / "b", protocol="toy")
    more = make_predictions("more", GOOD | {"4": "a ball"})
    with pytest.raises(UserError, match="no references for 1 image: 4"):
        evaluate_captions({"more": more}, REFERENCES, tmp_path / "c", protocol="toy")
    result = evaluate_captions(
        {"good": good}, REFERENCES, tmp_path / "d", protocol="toy", metrics=("BLEU1",)
    )
    with pytest.raises(ArtifactError, match="predictions are needed"):
        evaluate_captions({"result": result}, REFERENCES, tmp_path / "e", protocol="toy")
