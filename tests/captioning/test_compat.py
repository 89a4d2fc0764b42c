"""ClipCap's faults are mended, and each comes back when it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gmail_align.artifacts import Artifact
from gmail_align.captioning import training
from gmail_align.captioning.captioner import load_captioner
from gmail_align.captioning.clipcap.config import ClipCapConfig, ReleasedFaults
from gmail_align.captioning.clipcap.model import ClipCap, Scaling
from gmail_align.captioning.clipcap.training import CaptionSet
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.prompt import Prompt
from gmail_align.captioning.tokens import tokenise
from gmail_align.config import build
from gmail_align.data.model_outputs import open_predictions
from gmail_align.encoders.language import load_language_model
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.store import open_features
from worlds.captioning import captioned

from .conftest import ROWS, MakeFeatures, quick, train_clipcap

CPU = torch.device("cpu")


def with_faults(steps: int, **faults: bool) -> ClipCapConfig:
    return quick(steps).model_copy(update={"compat": ReleasedFaults(**faults)})


def test_clipcap_stands_for_every_fault() -> None:
    config = build(ClipCapConfig, {"compat": "clipcap"})
    assert config.compat is not None
    assert all(config.compat.model_dump().values())
    assert build(ClipCapConfig, {"compat": {"untrained_end": True}}).compat == ReleasedFaults(
        untrained_end=True
    )
    with pytest.raises(ConfigError, match="compat"):
        build(ClipCapConfig, {"compat": "ifcap"})


def test_without_its_end_a_caption_goes_on(four: Artifact, gpt2: Path, tmp_path: Path) -> None:
    out = train_clipcap(with_faults(120, untrained_end=True), four, ROWS, gpt2, tmp_path / "out")
    how = PredictConfig(device="cpu", method="greedy")
    said = open_predictions(predict_captions(out, four, tmp_path / "said", how)).texts
    assert all(said[name].startswith(text) for name, text in ROWS)
    assert any(len(said[name]) > len(text) for name, text in ROWS)


def test_a_full_stop_ends_a_caption_where_it_is_asked_to(
    four: Artifact, gpt2: Path, tmp_path: Path
) -> None:
    rows = [(name, "a red ball. a blue cube") for name, _ in ROWS]
    how = PredictConfig(device="cpu", method="greedy")
    for stops, expected in ((True, "a red ball."), (False, "a red ball. a blue cube")):
        config = with_faults(60, end_at_full_stop=stops)
        out = train_clipcap(config, four, rows, gpt2, tmp_path / f"out{stops}")
        said = predict_captions(out, four, tmp_path / f"said{stops}", how)
        assert set(open_predictions(said).texts.values()) == {expected}


def test_token_0_counts_unless_it_is_taken_for_padding(
    four: Artifact, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In these tokenizers token 0 is end-of-text, as ``!`` is in GPT-2's."""
    masks = []
    losses = training.token_losses

    def spied(model, prompt, ids, mask) -> torch.Tensor:
        masks.append((ids[mask] == 0).sum().item())
        return losses(model, prompt, ids, mask)

    monkeypatch.setattr(training, "token_losses", spied)
    for fault in (False, True):
        config = with_faults(1, zero_is_padding=fault)
        train_clipcap(config, four, ROWS, gpt2, tmp_path / f"{fault}")
    assert masks == [4, 0]


def test_features_are_scaled_alike_unless_the_mismatch_is_asked_for() -> None:
    features = torch.randn(3, 8) * 7
    unit = F.normalize(features, dim=-1)
    for trained in (True, False):
        assert torch.equal(Scaling()(features, trained), unit)
        assert torch.equal(Scaling(normalise=False)(features, trained), features)
        assert torch.allclose(Scaling(norm=3.0)(features, trained), 3 * unit)
    mismatch = Scaling(raw_in_training=True)
    assert torch.equal(mismatch(features, True), features)
    assert torch.equal(mismatch(features, False), unit)


@pytest.mark.parametrize("fault", [False, True])
def test_the_mapper_reads_raw_features_in_training_alone_under_the_mismatch(
    gpt2: Path,
    make_features: MakeFeatures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: bool,
) -> None:
    long = make_features("long", list("abcd"), 7 * F.normalize(torch.randn(4, 8), dim=-1))
    seen: list[float] = []
    prompt = ClipCap.prompt

    def spied(self: ClipCap, features: torch.Tensor, retrieval: object = None) -> Prompt:
        lengths = self.scaling(features, self.training).norm(dim=-1)
        assert torch.allclose(lengths, lengths[:1])
        seen.append(round(float(lengths[0]), 3))
        return prompt(self, features)

    monkeypatch.setattr(ClipCap, "prompt", spied)
    out = train_clipcap(with_faults(1, norm_mismatch=fault), long, ROWS, gpt2, tmp_path / "out")
    predict_captions(out, long, tmp_path / "said", PredictConfig(device="cpu"))
    assert seen == [7.0 if fault else 1.0, 1.0]


def test_each_fault_alone_leaves_the_others_mended() -> None:
    for name in ReleasedFaults.model_fields:
        config = build(ClipCapConfig, {"compat": {name: True}})
        assert config.compat is not None
        assert [key for key, value in config.compat.model_dump().items() if value] == [name]


def test_a_training_that_gets_no_better_stops_early(
    four: Artifact, gpt2: Path, tmp_path: Path
) -> None:
    """With so large a rate every step is worse than none."""
    config = quick(40, evaluate_every=2, patience=3, lr=1.0)
    out = train_clipcap(config, four, ROWS, gpt2, tmp_path / "out", validation=(four, ROWS))
    notes = out.manifest["notes"]
    assert [row["step"] for row in notes["validation"]] == [0, 2, 4, 6]
    assert notes["best_step"] == 0
    kept = load_captioner(out, CPU).language_model.state_dict()
    start = load_language_model(gpt2).model.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in kept.items())


def test_the_mean_norm_is_that_of_the_training_features(
    four: Artifact, gpt2: Path, tmp_path: Path
) -> None:
    config = quick(1).model_copy(update={"norm": "mean"})
    out = train_clipcap(config, four, ROWS[:3], gpt2, tmp_path / "out")
    expected = open_features(four).array[:3].norm(dim=-1).mean()
    assert load_captioner(out, CPU).scaling.norm == pytest.approx(float(expected))


def test_a_frozen_gpt2_stays_as_it_was(four: Artifact, gpt2: Path, tmp_path: Path) -> None:
    shape = {"mapper": "transformer", "clip_length": 2, "layers": 2, "heads": 4}
    config = ClipCapConfig(**{**quick(4).model_dump(), **shape})
    assert not config.trains_language_model
    out = train_clipcap(config, four, ROWS, gpt2, tmp_path / "out")
    model = load_captioner(out, CPU)
    before = load_language_model(gpt2).model.state_dict()
    after = model.language_model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert not model.train().language_model.training
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"mapper.{name}" for name, _ in model.mapper.named_parameters()}
    none = config.model_copy(update={"optim": config.optim.model_copy(update={"steps": 0})})
    untrained = train_clipcap(none, four, ROWS, gpt2, tmp_path / "untrained")
    drawn = load_captioner(untrained, CPU).mapper.state_dict()
    changed = [
        name
        for name, value in model.mapper.state_dict().items()
        if not torch.equal(value, drawn[name])
    ]
    assert len(changed) == len(drawn)


def test_a_training_that_goes_on_with_another_encoder_says_so(
    captioner: Artifact,
    four: Artifact,
    make_features: MakeFeatures,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = "features of another encoder"
    train_clipcap(quick(0), four, ROWS, captioner, tmp_path / "same")
    assert said not in capsys.readouterr().err
    other = make_features("other", list("abcd"), torch.randn(4, 8), encoder="siglip")
    train_clipcap(quick(0), other, ROWS, captioner, tmp_path / "elsewhere")
    assert said in capsys.readouterr().err


def test_a_training_goes_on_with_a_captioner(
    captioner: Artifact, four: Artifact, tmp_path: Path
) -> None:
    out = train_clipcap(quick(0), four, ROWS, captioner, tmp_path / "out")
    how = PredictConfig(device="cpu", method="greedy")
    assert open_predictions(predict_captions(out, four, tmp_path / "said", how)).texts == dict(ROWS)
    other = quick(0).model_copy(update={"prefix_length": 4})
    with pytest.raises(ConfigError, match="prefix_length"):
        train_clipcap(other, four, ROWS, captioner, tmp_path / "other")


def test_real_and_generated_features_are_mixed(
    four: Artifact, gpt2: Path, make_features: MakeFeatures, tmp_path: Path
) -> None:
    made = make_features("made", ["a", "b"], torch.randn(2, 8), route="generated", weights="lora")
    more = [(made, [("b", "a green thing"), ("a", "x")])]
    out = train_clipcap(quick(1), four, ROWS, gpt2, tmp_path / "out", more=more)
    assert out.counts == {"captions": 6, "images": 6}
    assert load_captioner(out, CPU).identity == {
        "encoder": "clip",
        "weights": "clip+lora",
        "route": "frozen+generated",
    }
    sets = [captioned(four, ROWS), captioned(*more[0])]
    both = CaptionSet.read(sets, load_language_model(gpt2), 40)
    expected = torch.cat([open_features(four).array, open_features(made).array[[1, 0]]])
    assert torch.equal(both.features(both.rows), expected)
    assert both.mean_norm() == pytest.approx(float(expected.norm(dim=-1).mean()))
    odd = make_features("odd", ["a"], torch.randn(1, 8), encoder="siglip")
    with pytest.raises(DataError, match="encoder siglip"):
        train_clipcap(quick(1), four, ROWS, gpt2, tmp_path / "odd-out", more=[(odd, [("a", "x")])])
    wide = make_features("wide", ["a"], torch.randn(1, 9))
    with pytest.raises(DataError, match="8 and 9 dimensions"):
        train_clipcap(
            quick(1), four, ROWS, gpt2, tmp_path / "wide-out", more=[(wide, [("a", "x")])]
        )


def test_cider_picks_the_step_when_it_is_asked_to(
    four: Artifact, gpt2: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pycocoevalcap")
    config = quick(20, evaluate_every=10).model_copy(update={"select": "cider"})
    out = train_clipcap(config, four, ROWS, gpt2, tmp_path / "out", validation=(four, ROWS))
    rows = out.manifest["notes"]["validation"]
    assert [row["score"] for row in rows] == [row["cider"] for row in rows]
    best = max(rows, key=lambda row: row["cider"])
    assert out.manifest["notes"]["best_step"] == best["step"]
    with pytest.raises(ConfigError, match="validation"):
        train_clipcap(config, four, ROWS, gpt2, tmp_path / "none")


def test_presets_are_the_published_variants(capsys: pytest.CaptureFixture[str]) -> None:
    presets = ClipCapConfig.presets
    config = build(ClipCapConfig, presets["clipcap"])
    optim = config.optim.over(566_747, config.batch_size)
    assert (optim.steps, optim.warmup, optim.lr, optim.schedule) == (141_687, 5000, 2e-5, "linear")
    config = build(ClipCapConfig, presets["clipcap_transformer"])
    shape = config.shape
    assert (shape.kind, shape.prefix_length, shape.clip_length) == ("transformer", 40, 40)
    assert (shape.layers, shape.heads, config.trains_language_model) == (8, 8, False)
    assert build(ClipCapConfig, presets["clipcap_original"]).compat is not None
    with pytest.raises(ConfigError, match="epochs"):
        build(ClipCapConfig, {"optim": {"epochs": 2, "steps": 7}})
    with pytest.raises(ConfigError, match="mapper"):
        build(ClipCapConfig, {"layers": 2})
    with pytest.raises(ConfigError, match="normalise"):
        build(ClipCapConfig, {"normalise": False, "norm": "mean"})


def test_a_caption_without_its_end_is_not_cut_one_token_early(gpt2: Path) -> None:
    tokenizer = load_language_model(gpt2).tokenizer
    with_end = tokenise(["a red ball"], tokenizer, 40)
    without = tokenise(["a red ball"], tokenizer, 40, end=False)
    assert without.lengths.item() == with_end.lengths.item() - 1
    assert torch.equal(without.ids[0], with_end.ids[0, :-1])
