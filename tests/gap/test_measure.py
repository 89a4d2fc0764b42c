from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from gmail_align.errors import UserError
from gmail_align.gap.advice import (
    FAR,
    FEWEST,
    INDISTINGUISHABLE,
    NEAR,
    Verdict,
    advise,
    closeness,
)
from gmail_align.gap.config import GapConfig
from gmail_align.gap.feature_sets import FeatureSet, sample_rows
from gmail_align.gap.measure import UNPAIRED, Measured, Texts, measure
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.metrics.diversity import diversity

from .conftest import classes_of, pairs_of

QUICK = GapConfig(resamples=50)


def paired_gap(
    real: Tensor, generated: Tensor, config: GapConfig = QUICK, seed: int = 0
) -> Measured:
    sets = FeatureSet(real), FeatureSet(generated)
    return measure(*sets, paired=True, config=config, seed=seed)


def unpaired_gap(real: Tensor, generated: Tensor) -> Measured:
    return measure(FeatureSet(real), FeatureSet(generated), paired=False, config=QUICK)


def values_of(found: Measured) -> dict[str, float]:
    return {name: one.value for name, one in found.metrics.items()}


def verdict_of(found: Measured) -> str:
    return str(found.details["advice"]["verdict"])


def test_a_set_measured_against_itself_has_no_gap() -> None:
    real, _ = pairs_of(80, noise=0, shift=0)
    result = paired_gap(real, real)
    values = values_of(result)
    assert values["paired_cosine"] == pytest.approx(1, abs=1e-6)
    assert values["centroid_distance"] == pytest.approx(0, abs=1e-6)
    assert values["gen_to_real_r1"] == 1
    assert values["cmmd"] == pytest.approx(0, abs=1e-9)
    assert values["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert verdict_of(result) == "cannot_tell"
    assert "100% of the generated images" in result.details["advice"]["sentence"]


def test_features_of_another_length_are_not_called_alike() -> None:
    real, _ = pairs_of(80, noise=0, shift=0)
    for scale in (1000.0, 0.001):
        assert verdict_of(paired_gap(real, real * scale)) == "cannot_tell"
        assert verdict_of(unpaired_gap(real, real * scale)) == "cannot_tell"


def test_one_image_of_a_kind_is_not_called_a_pair() -> None:
    real, generated = pairs_of(80, noise=0.1, shift=0)
    with pytest.raises(UserError, match="images of a kind"):
        unpaired_gap(real[:1], generated)


def test_negative_seeds_are_seeds() -> None:
    real, generated = pairs_of(30, noise=0.6, shift=1)
    first, again, other = (paired_gap(real, generated, QUICK, seed) for seed in (-1, -1, -2))
    assert first == again != other


@pytest.mark.parametrize(
    ("noise", "shift", "verdict"),
    [(0.1, 0.0, "train_as_is"), (0.6, 1.5, "align_first"), (30.0, 0.0, "cannot_tell")],
)
def test_the_advice_follows_the_gap(noise: float, shift: float, verdict: str) -> None:
    real, generated = pairs_of(200, noise=noise, shift=shift)
    result = paired_gap(real, generated)
    assert verdict_of(result) == verdict
    assert not result.unavailable


def test_intervals_hold_their_values() -> None:
    result = paired_gap(*pairs_of(80, noise=0.6, shift=1))
    for name, one in result.metrics.items():
        assert one.low <= one.value <= one.high, name
    few = paired_gap(*pairs_of(14, noise=0.6, shift=1)).metrics["frechet_distance"]
    assert math.isnan(few.low) and math.isnan(few.high)


def test_the_floor_is_what_chance_alone_does() -> None:
    near = paired_gap(*pairs_of(200, noise=0.1, shift=0))
    far = paired_gap(*pairs_of(200, noise=0.1, shift=3))
    floor = near.details["floor"]
    assert floor == far.details["floor"]
    for name in ("cmmd", "frechet_distance"):
        assert near.metrics[name].value < floor[name]
        assert far.metrics[name].value > 3 * floor[name]


def test_sets_without_pairs_say_what_they_cannot_tell() -> None:
    real, _ = pairs_of(90, noise=0, shift=0)
    _, generated = pairs_of(60, noise=0.6, shift=2)
    result = unpaired_gap(real, generated)
    assert result.metrics["norm_ratio"].n == 60
    assert set(result.metrics) >= {*UNPAIRED, "cmmd", "frechet_distance"}
    assert set(result.unavailable) >= {"paired_cosine", "margin", "gen_to_real_r1"}
    assert verdict_of(result) == "align_first"


def test_the_unpaired_gap_does_not_depend_on_the_order_of_rows() -> None:
    real, generated = pairs_of(80, noise=0.6, shift=1)
    turned = generated[torch.randperm(80, generator=torch.Generator().manual_seed(5))]
    first, second = (values_of(unpaired_gap(real, one)) for one in (generated, turned))
    for name in ("centroid_distance", "norm_ratio", "cmmd", "frechet_distance"):
        assert first[name] == pytest.approx(second[name], rel=1e-6)


def test_no_more_pairs_are_measured_than_asked_for() -> None:
    real, generated = pairs_of(80, noise=0.6, shift=1)
    config = GapConfig(max_pairs=30, resamples=20)
    first, again, other = (paired_gap(real, generated, config, seed) for seed in (0, 0, 1))
    assert first.metrics["paired_cosine"].n == 30
    assert first == again != other


def test_samples_are_ordered_distinct_and_kept_apart_by_name() -> None:
    rows = sample_rows(1000, 50, 0, "real")
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert rows.tolist() != sample_rows(1000, 50, 0, "generated").tolist()
    assert sample_rows(7, 50, 0, "real").tolist() == list(range(7))


def known(value: float, spread: float = 0.0, n: int = 200) -> Estimate:
    return Estimate(value, value - spread, value + spread, n)


def advice(near: float, auc: float, spread: float = 0.0, **more: Estimate) -> Verdict:
    metrics = {
        "margin": known(near, spread),
        "unpaired_cosine": known(0.0),
        "probe_auc": known(auc, spread),
        "text_recall_real": known(0.5),
    }
    return advise(metrics | more, 1 / 150)[0]


def test_the_thresholds_separate_the_verdicts() -> None:
    assert advice(NEAR, INDISTINGUISHABLE) is Verdict.TRAIN_AS_IS
    assert advice(NEAR, INDISTINGUISHABLE + 0.01) is Verdict.ALIGN_FIRST
    assert advice(NEAR - 0.01, 0.5) is Verdict.ALIGN_FIRST
    assert advice(FAR, 1.0) is Verdict.ALIGN_FIRST
    assert advice(FAR - 0.01, 1.0) is Verdict.TOO_FAR
    assert advise({"probe_auc": known(0.55)})[0] is Verdict.TRAIN_AS_IS
    assert advise({"probe_auc": known(0.65)})[0] is Verdict.ALIGN_FIRST
    assert closeness(0.5, 0.16) == pytest.approx(0.595, abs=1e-3)


@pytest.mark.parametrize(
    ("near", "auc"), [(NEAR, 0.5), (0.9, INDISTINGUISHABLE), (FAR, 1.0), (FAR - 0.01, 1.0)]
)
def test_an_interval_across_a_threshold_decides_nothing(near: float, auc: float) -> None:
    assert advice(near, auc, spread=0.05) is Verdict.CANNOT_TELL
    apart = {"probe_auc": known(INDISTINGUISHABLE, 0.05)}
    assert advise(apart)[0] is Verdict.CANNOT_TELL
    unknown = {"probe_auc": Estimate(0.9, math.nan, math.nan, 200)}
    assert advise(unknown)[0] is Verdict.CANNOT_TELL


def test_an_encoder_that_does_not_know_the_real_images_judges_nothing() -> None:
    for near, auc in ((0.05, 0.99), (0.5, 0.99), (0.9, 0.5)):
        assert advice(near, auc) is not Verdict.CANNOT_TELL
        knows, guesses = {"text_recall_real": known(0.5)}, {"text_recall_real": known(1 / 150)}
        assert advice(near, auc, **knows) is advice(near, auc)
        assert advice(near, auc, **guesses) is Verdict.CANNOT_TELL
        unsure = {"text_recall_real": known(0.05, 0.045)}
        assert advice(near, auc, **unsure) is Verdict.CANNOT_TELL
    classes = {"class_margin": known(0.1), "real_class_margin": known(0.01, 0.02)}
    assert advise({"probe_auc": known(0.9), **classes})[0] is Verdict.CANNOT_TELL


def test_without_captions_a_far_generator_and_a_strange_encoder_look_alike() -> None:
    far = {"margin": known(0.01), "unpaired_cosine": known(0.0), "probe_auc": known(0.5)}
    assert advise(far)[0] is Verdict.CANNOT_TELL
    assert advise(far | {"text_recall_real": known(0.5)}, 1 / 150)[0] is Verdict.TOO_FAR


def test_an_encoder_to_which_all_real_images_are_alike_judges_nothing() -> None:
    noise = torch.randn(80, 16) / 1000
    real, generated = torch.eye(16)[0] + noise[:40], torch.eye(16)[1] + noise[40:]
    assert verdict_of(unpaired_gap(real, generated)) == "cannot_tell"
    assert verdict_of(paired_gap(real, generated)) == "cannot_tell"


def test_copies_of_a_few_images_decide_nothing() -> None:
    real, generated = (torch.randn(2, 8).repeat(30, 1) for _ in range(2))
    assert verdict_of(unpaired_gap(real, generated)) == "cannot_tell"
    same = torch.zeros(60, dtype=torch.int64)
    sets = FeatureSet(real), FeatureSet(generated)
    assert verdict_of(measure(*sets, paired=True, groups=same, config=QUICK)) == "cannot_tell"


def test_a_few_images_decide_nothing() -> None:
    real, _ = pairs_of(FEWEST - 1, noise=0, shift=0)
    for generated in (real, real + 3):
        assert verdict_of(paired_gap(real, generated)) == "cannot_tell"
        assert verdict_of(unpaired_gap(real[:2], generated[:2])) == "cannot_tell"


def test_diversity_and_text_cosines_are_measured() -> None:
    real, generated = classes_of(noise=0.3)
    numbers = torch.arange(3).repeat_interleave(40)
    means = torch.stack([real.features[numbers == at].mean(0) for at in range(3)])
    texts = Texts(means, numbers, numbers)
    result = measure(real, generated, paired=False, texts=texts, config=QUICK)
    values = values_of(result)
    rows = [torch.nn.functional.normalize(one.features, dim=-1) for one in (real, generated)]
    wanted = diversity(*rows, resamples=2)
    assert {name: values[name] for name in wanted} == {n: one.value for n, one in wanted.items()}
    assert "coverage" in result.details["groups"]["classes"]["cat"]["metrics"]
    cosines = torch.nn.functional.cosine_similarity(real.features, means[numbers])
    assert values["text_cosine_real"] == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert 0 < values["text_cosine_generated"] < values["text_cosine_real"]


def test_features_that_do_not_fit_are_refused() -> None:
    real, generated = pairs_of(20, noise=1, shift=0)
    with pytest.raises((UserError, TypeCheckError)):
        paired_gap(real, generated[:19])
    with pytest.raises((UserError, TypeCheckError)):
        unpaired_gap(real, generated[:, :8])


def test_classes_stand_in_for_pairs() -> None:
    real, generated = classes_of(noise=0.3)
    result = measure(real, generated, paired=False, config=QUICK)
    values = values_of(result)
    assert values["class_margin"] / values["real_class_margin"] == pytest.approx(1, abs=0.15)
    assert values["class_r1"] > 0.9
    assert verdict_of(result) != "too_far"
    real, lost = (
        classes_of(noise=0.3, follow=follow, each=400)[at]
        for at, follow in enumerate((True, False))
    )
    result = measure(real, lost, paired=False, config=QUICK)
    assert verdict_of(result) == "too_far"
    assert result.metrics["class_r1"].value < 0.6


def test_every_class_and_generator_is_measured_by_itself() -> None:
    real, generated = classes_of(noise=0.3, worse="sd-worse")
    groups = measure(real, generated, paired=False, config=QUICK).details["groups"]
    assert list(groups["classes"]) == ["cat", "dog", "ship"]
    assert groups["classes"]["cat"]["real"] == groups["classes"]["cat"]["generated"] == 40
    good, bad = (groups["generators"][name]["metrics"] for name in ("sd-good", "sd-worse"))
    assert bad["cmmd"]["low"] > good["cmmd"]["high"]
    assert bad["probe_auc"]["value"] > good["probe_auc"]["value"]
    few = QUICK.model_copy(update={"least_in_group": 41})
    assert measure(real, generated, paired=False, config=few).details["groups"]["classes"][
        "cat"
    ] == {
        "real": 40,
        "generated": 40,
        "metrics": {},
    }


def test_both_sides_are_read_by_their_texts() -> None:
    real, generated = classes_of(noise=0.3)
    names = sorted(set(real.classes or ()))
    numbers = torch.tensor([names.index(name) for name in real.classes or ()])
    means = torch.stack([real.features[numbers == at].mean(0) for at in range(3)])
    texts = Texts(means, numbers, numbers)
    scores = measure(real, generated, paired=False, texts=texts, config=QUICK).metrics
    assert scores["text_recall_real"].value > 0.95
    wrong = Texts(means, numbers, (numbers + 1) % 3)
    scores = measure(real, generated, paired=False, texts=wrong, config=QUICK).metrics
    assert scores["text_recall_generated"].value < 0.1


def test_transfer_is_what_generated_images_teach_about_real_ones() -> None:
    real, generated = classes_of(noise=0.3)
    scores = measure(real, generated, paired=False, config=QUICK).metrics
    assert scores["transfer"].value > 0.9 and scores["transfer_real"].value > 0.9
    names = sorted(set(generated.classes or ()))
    turned = [names[(names.index(name) + 1) % 3] for name in generated.classes or ()]
    wrong = FeatureSet(generated.features, turned)
    scores = measure(real, wrong, paired=False, config=QUICK).metrics
    assert scores["transfer"].value < 0.1 < 0.9 < scores["transfer_real"].value
    assert scores["transfer"].low <= scores["transfer"].value <= scores["transfer"].high
    near, _ = pairs_of(40, noise=0, shift=0)
    assert values_of(paired_gap(near, near))["transfer_captions"] == 1
    assert values_of(paired_gap(near, near.flip(0)))["transfer_captions"] < 0.1


def test_classes_that_are_not_shared_are_named() -> None:
    real, generated = classes_of(noise=0.3)
    strange = FeatureSet(generated.features, ["x"] * len(generated))
    result = measure(real, strange, paired=False, config=QUICK)
    assert "fewer than two classes" in result.unavailable["class_margin"]
    assert "class_margin" not in result.metrics
    with pytest.raises(UserError, match="3 classes .* 120 images"):
        FeatureSet(real.features, ["a", "b", "c"])


def test_an_encoder_that_tells_nothing_is_not_taken_for_a_bad_generator() -> None:
    same = torch.ones(30, 4)
    result = paired_gap(same, same + 0)
    assert verdict_of(result) == "cannot_tell"
    assert "another encoder" in result.details["advice"]["sentence"]


def test_features_that_mean_nothing_are_refused() -> None:
    real, generated = pairs_of(30, noise=0.3, shift=0)
    with pytest.raises(UserError, match="the real features are all zero"):
        paired_gap(torch.zeros_like(real), generated)
    with pytest.raises(UserError, match="too large to be normalised"):
        paired_gap(real, generated * 1e30)
