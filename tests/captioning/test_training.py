from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gmail_align.artifacts import Artifact, load, read_jsonl
from gmail_align.captioning import predict, training
from gmail_align.captioning.captioner import load_captioner
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.clipcap.training import CaptionSet, ClipCapTraining
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.training import validation_loss
from gmail_align.config import build
from gmail_align.data.model_outputs import open_predictions
from gmail_align.errors import ArtifactError, ConfigError, DataError, ModelError
from gmail_align.features.store import open_features
from worlds.captioning import build_gpt2, captioned, write_features

from .conftest import ROWS, MakeFeatures, quick, train_clipcap

CPU = PredictConfig(device="cpu")


class Killed(Exception):
    """Stands for the process being killed."""


def test_it_learns_captions_by_heart_and_where_they_end(
    captioner: Artifact, four: Artifact, tmp_path: Path
) -> None:
    predictions = predict_captions(captioner, four, tmp_path / "out", CPU)
    assert open_predictions(predictions).texts == dict(ROWS)
    rows = list(read_jsonl(predictions.path("predictions.jsonl")))
    assert [row["route"] for row in rows] == ["frozen"] * 4
    assert all(-0.1 < row["log_prob"] < 0 for row in rows)
    greedy = predict_captions(
        captioner, four, tmp_path / "greedy", PredictConfig(method="greedy", device="cpu")
    )
    assert open_predictions(greedy).texts == dict(ROWS)
    assert "outputs_cut" not in greedy.manifest["notes"]


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_captions_that_are_stopped_are_counted(
    method: str,
    captioner: Artifact,
    four: Artifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The limit is that of the shortest caption with its end: it is whole, and padded to none."""
    tokenizer = load_captioner(captioner, torch.device("cpu")).language.tokenizer
    lengths = {name: len(tokenizer(text)["input_ids"]) + 1 for name, text in ROWS}
    most = min(lengths.values())
    longer = {name for name, length in lengths.items() if length > most}
    assert 0 < len(longer) < 4
    folder = Path(shutil.copytree(captioner.folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["decoding"]["max_tokens"] = most
    (folder / "config.json").write_text(json.dumps(config))
    how = PredictConfig(method=method, device="cpu")
    made = predict_captions(load(folder), four, tmp_path / "out", how)
    rows = list(read_jsonl(made.path("predictions.jsonl")))
    assert {row["image_id"] for row in rows if row.get("cut")} == longer
    assert made.manifest["notes"]["outputs_cut"] == len(longer)
    told = f"{len(longer)} of 4 texts stopped at the longest length, {most} tokens"
    assert told in capsys.readouterr().err


def test_the_captioner_is_a_folder_that_transformers_reads(captioner: Artifact) -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(captioner.path("language_model"))
    tokenizer = AutoTokenizer.from_pretrained(captioner.path("language_model"))
    assert model.config.eos_token_id == tokenizer.eos_token_id
    config = json.loads(captioner.path("config.json").read_text())
    assert config["mapper"]["feature_width"] == 8
    assert config["trained_on"] == {"encoder": "clip", "weights": "clip", "route": "frozen"}
    assert captioner.kind == "captioner"
    assert captioner.counts == {"captions": 4, "images": 4}
    assert not captioner.path("checkpoint.safetensors").exists()


def test_a_finished_captioner_is_not_trained_again(
    captioner: Artifact, four: Artifact, gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_language_model", pytest.fail)
    again = train_clipcap(quick(120), four, ROWS, gpt2, captioner.folder)
    assert again.fingerprint == captioner.fingerprint
    with pytest.raises(ArtifactError, match="captions"):
        train_clipcap(quick(120), four, ROWS[:3], gpt2, captioner.folder)


def test_a_killed_training_ends_with_the_same_bytes(
    four: Artifact, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(6, checkpoint_every=2, evaluate_every=2)
    validation = (four, ROWS[:2])

    def train(name: str) -> Artifact:
        return train_clipcap(config, four, ROWS, gpt2, tmp_path / name, validation=validation)

    whole, batch = train("whole"), ClipCapTraining.batch

    def killed(self: ClipCapTraining, step: int, seed: int) -> object:
        if step == 5:
            raise Killed
        return batch(self, step, seed)

    monkeypatch.setattr(ClipCapTraining, "batch", killed)
    with pytest.raises(Killed):
        train("resumed")
    monkeypatch.undo()
    assert train("resumed").manifest["files"] == whole.manifest["files"]
    assert len(list(read_jsonl(whole.path("events.jsonl")))) == 6 + 4


def test_the_step_with_the_lowest_validation_loss_is_kept(
    four: Artifact, gpt2: Path, tmp_path: Path
) -> None:
    other = [("a", "HJKQ VXYZ"), ("b", "UVWXYZ 1234567")]
    config = quick(30, evaluate_every=5)
    out = train_clipcap(config, four, ROWS, gpt2, tmp_path / "out", validation=(four, other))
    scores = {row["step"]: row["loss"] for row in out.manifest["notes"]["validation"]}
    best = out.manifest["notes"]["best_step"]
    assert list(scores) == [0, 5, 10, 15, 20, 25, 30]
    assert best == min(scores, key=scores.__getitem__) < 30
    kept = load_captioner(out, torch.device("cpu"))
    held_out = CaptionSet.read([captioned(four, other)], kept.language, 40)
    with torch.no_grad():
        loss = validation_loss(ClipCapTraining(kept, held_out, held_out, config))
    assert loss == pytest.approx(scores[best], abs=1e-5)


def test_bfloat16_trains_and_keeps_float32_weights(
    four: Artifact, gpt2: Path, tmp_path: Path
) -> None:
    config = quick(2).model_copy(update={"precision": "bfloat16"})
    out = train_clipcap(config, four, ROWS, gpt2, tmp_path / "out")
    model = load_captioner(out, torch.device("cpu"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_killed_prediction_goes_on_and_ends_with_the_same_bytes(
    captioner: Artifact, four: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_into(name: str) -> Artifact:
        return predict_captions(
            captioner, four, tmp_path / name, PredictConfig(batch_size=1, device="cpu")
        )

    whole, decode, calls = run_into("whole"), predict.decode, []

    def killed(*args: object, **settings: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise Killed
        return decode(*args, **settings)

    monkeypatch.setattr(predict, "decode", killed)
    with pytest.raises(Killed):
        run_into("resumed")
    resumed = run_into("resumed")
    assert len(calls) == 3 + 2
    assert resumed.manifest["files"] == whole.manifest["files"]
    assert set(whole.manifest["files"]) == {"predictions.jsonl"}


def test_images_can_be_chosen_and_ordered(
    captioner: Artifact, four: Artifact, tmp_path: Path
) -> None:
    chosen = predict_captions(captioner, four, tmp_path / "a", CPU, ids=["c", "a"])
    assert list(open_predictions(chosen).texts) == ["c", "a"]
    with pytest.raises(DataError, match="1 of 2 ids"):
        predict_captions(captioner, four, tmp_path / "b", CPU, ids=["a", "x"])
    with pytest.raises(DataError, match="more than once"):
        predict_captions(captioner, four, tmp_path / "c", CPU, ids=["a", "a"])


def test_another_route_is_recorded_and_another_width_refused(
    captioner: Artifact, four: Artifact, make_features: MakeFeatures, tmp_path: Path
) -> None:
    array = open_features(four).array
    other = make_features("other", list("abcd"), array, weights="aligned", route="real")
    predictions = predict_captions(captioner, other, tmp_path / "out", CPU)
    notes = predictions.manifest["notes"]
    assert (notes["trained_on"]["route"], notes["predicted_from"]["route"]) == ("frozen", "real")
    assert notes["predicted_from"]["weights"] == "aligned"
    wide = make_features("wide", ["a"], torch.randn(1, 24))
    with pytest.raises(DataError, match="24 wide"):
        predict_captions(captioner, wide, tmp_path / "wide-out", CPU)


def test_captions_of_other_images_are_left_out(four: Artifact, gpt2: Path, tmp_path: Path) -> None:
    out = train_clipcap(quick(0), four, [("a", "x"), ("z", "y")], gpt2, tmp_path / "out")
    assert out.counts == {"captions": 1, "images": 1}
    with pytest.raises(DataError, match="captions-"):
        train_clipcap(quick(0), four, [("z", "y")], gpt2, tmp_path / "none")


def test_folders_without_a_usable_language_model_are_refused(
    four: Artifact, gpt2: Path, tmp_path: Path
) -> None:
    def refused(folder: Path, what: str, config: ClipCapConfig | None = None) -> None:
        with pytest.raises(ModelError, match=what):
            train_clipcap(config or quick(1), four, ROWS, folder, tmp_path / what.replace(" ", "_"))

    refused(tmp_path / "absent", "absent")
    refused(build_gpt2(tmp_path / "endless", end=None), "end-of-text")
    refused(build_gpt2(tmp_path / "short", positions=20), "20 positions")
    other = build_gpt2(tmp_path / "bert")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({"vocab_size": 3}))
    refused(other, "model_type")
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").write_bytes(b"broken")
    refused(other, r"bert/model\.safetensors is damaged")


def test_missing_weights_are_not_drawn_at_random(four: Artifact, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_gpt2(tmp_path / "holed")
    weights = load_file(folder / "model.safetensors")
    weights.pop("transformer.h.1.attn.c_attn.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="c_attn.weight"):
        train_clipcap(quick(1), four, ROWS, folder, tmp_path / "out")


def test_one_changed_setting_keeps_the_published_others() -> None:
    config = build(ClipCapConfig, {"optim": {"steps": 7}})
    assert (config.optim.steps, config.optim.lr, config.optim.schedule) == (7, 2e-5, "linear")
    assert config.optim.weight_decay == 0
    assert (config.prefix_length, config.batch_size, config.beam) == (10, 40, 5)


def test_predictions_need_a_captioner(four: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="captioner"):
        predict_captions(four, four, tmp_path / "out", CPU)


def test_a_damaged_captioner_is_refused(
    captioner: Artifact, four: Artifact, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(captioner.folder, folder)
    (folder / "mapper.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="is damaged"):
        predict_captions(load(folder), four, tmp_path / "out", CPU)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged"):
        predict_captions(load(folder), four, tmp_path / "other", CPU)


@pytest.mark.parametrize(
    "wrong", [{"ends": [[]]}, {"ends": [10**30]}, {"beam": 10**30}, {"max_tokens": 0}]
)
def test_a_search_that_no_training_wrote_is_damage(
    wrong: dict[str, object], captioner: Artifact, four: Artifact, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(captioner.folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["decoding"] |= wrong
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="copy is damaged"):
        predict_captions(load(folder), four, tmp_path / "out", CPU)


def test_another_encoder_is_refused_unless_it_is_meant(
    captioner: Artifact, four: Artifact, make_features: MakeFeatures, tmp_path: Path
) -> None:
    array = open_features(four).array
    other = make_features("other", list("abcd"), array, encoder="clip2")
    with pytest.raises(DataError, match="clip2"):
        predict_captions(captioner, other, tmp_path / "out", CPU)
    meant = PredictConfig(device="cpu", any_encoder=True, method="greedy")
    said = predict_captions(captioner, other, tmp_path / "out", meant)
    assert open_predictions(said).texts == dict(ROWS)
    texts = make_features("texts", list("abcd"), array, what="text")
    with pytest.raises(DataError, match="texts"):
        predict_captions(captioner, texts, tmp_path / "texts-out", meant)


def test_default_steps_of_few_captions_are_refused(
    four: Artifact, gpt2: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="4 captions"):
        train_clipcap(
            ClipCapConfig(device="cpu", prefix_length=3, max_tokens=40),
            four,
            ROWS,
            gpt2,
            tmp_path / "out",
        )


def test_a_captioner_that_says_one_sentence_is_named(
    captioner: Artifact, four: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = write_features(
        tmp_path / "many", [f"i{n}" for n in range(20)], open_features(four).array[:1].repeat(20, 1)
    )
    predict_captions(captioner, many, tmp_path / "said")
    assert "100% of captions are the same sentence" in capsys.readouterr().err
