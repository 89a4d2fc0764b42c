from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from gmail_align.artifacts import Artifact, read_jsonl
from gmail_align.captioning import training
from gmail_align.captioning.captioner import load_captioner
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.ifcap import datastore
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.captioning.ifcap.training import IFCapTraining
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData, EmbeddedCaptions
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.prompt import token_losses
from gmail_align.captioning.training import train_captioner
from gmail_align.config import build, to_toml
from gmail_align.data.model_outputs import open_predictions
from gmail_align.errors import ArtifactError, ConfigError, DataError, ModelError
from gmail_align.features.store import open_features
from gmail_align.training.config import OptimConfig
from worlds.captioning import Rows, captioned, named_captions_of, write_features

from .conftest import MakeFeatures, quick, train_clipcap

WORDS = ("red ball", "blue cube", "green cone", "grey cylinder")
ROWS = [
    (f"c{number}{twin}", f"{start} {words}.")
    for number, words in enumerate(WORDS)
    for twin, start in enumerate(("a", "one", "there is a", "look, a", "some", "the"))
]
CPU = PredictConfig(device="cpu", method="greedy")


def small(steps: int, **changes: object) -> IFCapConfig:
    """An IFCap for a few steps, of images whose captions all agree."""
    optim = {"lr": 3e-3, "schedule": "constant", "weight_decay": 0.0, "warmup": 0}
    settings = {
        "prefix_length": 2,
        "layers": 1,
        "heads": 2,
        "retrieved": 3,
        "max_tokens": 20,
        "noun_captions": 5,
        "noun_count": 4,
        "vocabulary_count": 2,
        "batch_size": 8,
        "device": "cpu",
        "beam": 2,
        **changes,
    }
    return IFCapConfig(optim=OptimConfig(steps=steps, **optim), **settings)


def text_features(seed: int = 0) -> torch.Tensor:
    """Features of the captions: those of one object lie together."""
    generator = torch.Generator().manual_seed(seed)
    objects = torch.eye(4).repeat_interleave(2, dim=1).repeat_interleave(6, dim=0)
    return 3 * objects + 0.2 * torch.randn(24, 8, generator=generator)


def image_features(seed: int = 1) -> torch.Tensor:
    """Features of one image an object."""
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(4).repeat_interleave(2, dim=1) + 0.05 * torch.randn(4, 8, generator=generator)


def source(
    rows: Rows,
    texts: Artifact,
    retrieval: Artifact | None = None,
    generated: Artifact | None = None,
) -> CaptionerData:
    """Join (caption id, caption) with features of the captions and of generated images."""
    captions = named_captions_of(texts, rows)
    images = (CaptionedImages(generated, captions),) if generated else ()
    return CaptionerData(images, EmbeddedCaptions(captions, texts, retrieval))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("texts")
    return write_features(
        folder / "texts", [name for name, _ in ROWS], text_features(), what="text"
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_features(
        tmp_path_factory.mktemp("images") / "images", list("wxyz"), image_features()
    )


@pytest.fixture(scope="module")
def ifcap(gpt2: Path, texts: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A captioner that was trained on captions alone."""
    out = tmp_path_factory.mktemp("ifcap") / "out"
    return train_captioner(small(150), source(ROWS, texts), gpt2, out)


def test_trained_on_text_alone_it_names_what_images_show(
    ifcap: Artifact, images: Artifact, tmp_path: Path
) -> None:
    said = open_predictions(predict_captions(ifcap, images, tmp_path / "out", CPU)).texts
    assert [WORDS[i].split()[1] in said[name] for i, name in enumerate("wxyz")] == [True] * 4
    assert ifcap.counts == {"captions": 24, "generated": 0}
    assert not ifcap.path("retrieved.safetensors").exists()


def test_captions_predicted_together_are_those_predicted_alone(
    ifcap: Artifact, images: Artifact, tmp_path: Path
) -> None:
    """Hard prompts of different lengths are padded, and padding changes nothing."""
    alone = PredictConfig(device="cpu", batch_size=1, beam=3)
    together = PredictConfig(device="cpu", beam=3)
    one = predict_captions(ifcap, images, tmp_path / "one", alone)
    all_ = predict_captions(ifcap, images, tmp_path / "all", together)
    assert open_predictions(one).texts == open_predictions(all_).texts
    scores = [
        [row["log_prob"] for row in read_jsonl(part.path("predictions.jsonl"))]
        for part in (one, all_)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_the_loss_is_that_of_plain_transformers(ifcap: Artifact, images: Artifact) -> None:
    model = load_captioner(ifcap, torch.device("cpu"))
    words = model.language_model
    rows = torch.tensor([[0, 1, 2, 3, 4], [6, 7, 8, 9, 12]])
    features = normalize(open_features(images).array[:2], dim=-1)
    ids = torch.tensor([[11, 12, 0], [13, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    losses = []
    with torch.no_grad():
        prompt = model.join(features, rows, [["ball"], []])
        loss = token_losses(words, prompt, ids, mask).mean()
        soft = model.mapper(features, model.store.features[rows[:, :3]].float())
        for row, hard in enumerate(("There are ball in image.", "There are something in image.")):
            start = torch.tensor(model.language.tokenizer(hard)["input_ids"])
            tokens = torch.cat([start, ids[row][mask[row]]])
            inputs = torch.cat([soft[row], words.transformer.wte(tokens)])[None]
            labels = torch.cat([torch.full((2 + len(start),), -100), ids[row][mask[row]]])
            losses.append(words(inputs_embeds=inputs, labels=labels[None]).loss * mask[row].sum())
    assert torch.allclose(loss, sum(losses) / int(mask.sum()), atol=1e-5)


def test_objects_that_enough_captions_hold_are_named(ifcap: Artifact) -> None:
    model = load_captioner(ifcap, torch.device("cpu"))
    assert {"ball", "cube", "cone", "cylinder"} <= model.store.vocabulary
    assert model.store.objects([0, 1, 2, 3, 6], model.config) == ["ball"]
    assert model.store.objects([0, 1, 6, 7, 12], model.config) == []
    ids, mask = model.hard([["ball"], []])
    assert ids.shape == mask.shape
    assert model.language.tokenizer.decode(ids[0][mask[0]]) == "There are ball in image."


class StoppedError(Exception):
    """Stops a training before its first step."""


def prepared(
    monkeypatch: pytest.MonkeyPatch, config: IFCapConfig, data: CaptionerData, gpt2: Path, out: Path
) -> IFCapTraining:
    """Return the data of a training that is stopped before its first step."""
    kept: list[IFCapTraining] = []

    def stopped(training: IFCapTraining, *others: object) -> None:
        kept.append(training)
        raise StoppedError

    monkeypatch.setattr(training, "_fit", stopped)
    with pytest.raises(StoppedError):
        train_captioner(config, data, gpt2, out)
    monkeypatch.undo()
    return kept[0]


def test_generated_images_replace_noisy_texts(
    texts: Artifact,
    gpt2: Path,
    make_features: MakeFeatures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"{name}-0" for name, _ in ROWS[:12]]
    array = torch.randn(12, 8)
    made = make_features("made", names, array, route="generated", weights="aligned")
    data = source(ROWS, texts, generated=made)
    rows = torch.arange(24)
    unit = normalize(array, dim=-1)
    only = prepared(monkeypatch, small(1, mode="gen_embed"), data, gpt2, tmp_path / "gen")
    assert only.rows.tolist() == list(range(12))
    assert torch.allclose(only.inputs(rows[:12]), unit)
    mixed = prepared(monkeypatch, small(1, mode="mix"), data, gpt2, tmp_path / "mix")
    assert len(mixed.rows) == 24
    torch.manual_seed(0)
    result = torch.stack([mixed.inputs(rows) for _ in range(40)])
    taken = (result[:, :12] - unit).abs().amax(-1) < 1e-6
    assert 0.4 < float(taken.float().mean()) < 0.6
    noisy = prepared(monkeypatch, small(1), source(ROWS, texts), gpt2, tmp_path / "text")
    cosine = (noisy.inputs(rows) * normalize(text_features(), dim=-1)).sum(-1)
    assert (cosine < 0.999).all()
    assert float(cosine.mean()) > 0.85


def test_training_retrieves_other_captions_and_never_the_same_words(
    texts: Artifact, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = [(name, text.replace("one", "a")) for name, text in ROWS]
    config = small(1, retrieval_noise_variance=0.0)
    data = prepared(monkeypatch, config, source(twice, texts), gpt2, tmp_path / "out")
    store = data.captioner.store
    assert data.retrieved.shape == (24, 3)
    for row, near in enumerate(data.retrieved.tolist()):
        assert store.texts[row] not in [store.texts[other] for other in near]
        assert {other // 6 for other in near} == {row // 6}


def test_another_encoder_can_look_captions_up(
    texts: Artifact, gpt2: Path, images: Artifact, make_features: MakeFeatures, tmp_path: Path
) -> None:
    other = {"encoder": "large", "weights": "large"}
    names = [name for name, _ in ROWS]
    keys = make_features("keys", names, text_features(5)[:, :6], what="text", **other)
    data = source(ROWS, texts, retrieval=keys)
    seen = make_features("seen", list("wxyz"), image_features(6)[:, :6], **other)
    captions = captioned(images, [("w", "a red ball."), ("x", "a blue cube.")])
    data = replace(data, validation=replace(captions, retrieval=seen))
    out = train_captioner(small(4), data, gpt2, tmp_path / "out")
    assert [row["step"] for row in out.manifest["notes"]["validation"]] == [0, 4]
    config = json.loads(out.path("config.json").read_text())
    assert config["trained_on"]["encoder"] == "clip"
    assert config["trained_on"]["retrieval"] == "large"
    said = predict_captions(out, images, tmp_path / "said", CPU, retrieval=seen)
    assert set(open_predictions(said).texts) == set("wxyz")
    with pytest.raises(DataError, match="large"):
        predict_captions(out, images, tmp_path / "no", CPU)


def test_a_killed_training_ends_with_the_same_bytes(
    texts: Artifact, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(4).model_copy(
        update={"optim": small(4).optim.model_copy(update={"checkpoint_every": 2})}
    )
    data = source(ROWS, texts)
    whole = train_captioner(config, data, gpt2, tmp_path / "whole")
    batch = IFCapTraining.batch

    def killed(self: IFCapTraining, step: int, seed: int) -> object:
        if step == 3:
            raise KeyboardInterrupt
        return batch(self, step, seed)

    monkeypatch.setattr(IFCapTraining, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_captioner(config, data, gpt2, tmp_path / "resumed")
    monkeypatch.undo()
    resumed = train_captioner(config, data, gpt2, tmp_path / "resumed")
    assert resumed.manifest["files"] == whole.manifest["files"]


def test_what_does_not_belong_together_is_refused(
    texts: Artifact, images: Artifact, gpt2: Path, make_features: MakeFeatures, tmp_path: Path
) -> None:
    def refused(error: type, what: str, data: CaptionerData, **changes: object) -> None:
        with pytest.raises(error, match=what):
            train_captioner(
                small(1, **changes), data, gpt2, tmp_path / str(len(list(tmp_path.iterdir())))
            )

    plain = source(ROWS, texts)
    refused(ConfigError, "mode is mix", plain, mode="mix")
    refused(DataError, "images", source(ROWS, images))
    refused(DataError, "24 captions, and 23", source(ROWS[:-1], texts))
    refused(ModelError, "3 heads", plain, heads=3)
    refused(ModelError, "64 positions", plain, max_tokens=60)
    refused(ConfigError, "retrieved", plain, retrieved=30)
    refused(ConfigError, "noun_captions", plain, noun_captions=30)
    other = make_features("other", ["c00-0"], torch.randn(1, 8), encoder="else")
    refused(DataError, "encoder else", source(ROWS, texts, generated=other), mode="mix")
    wide = make_features("wide", ["c00-0"], torch.randn(1, 9))
    refused(
        DataError,
        "9 wide",
        source(ROWS, texts, generated=wide),
        mode="mix",
    )
    none = make_features("none", ["unknown-0"], torch.randn(1, 8))
    refused(
        ConfigError,
        "no caption has a generated image",
        source(ROWS, texts, generated=none),
        mode="mix",
    )


def test_chosen_steps_stand_in_place_of_the_default_epochs() -> None:
    assert build(IFCapConfig, {"optim": {"lr": 1e-3}}).optim.epochs == 5
    chosen = build(IFCapConfig, {"optim": {"steps": 7}})
    assert (chosen.optim.steps, chosen.optim.epochs) == (7, None)
    assert build(IFCapConfig, tomllib.loads(to_toml(chosen))) == chosen


def test_more_captions_cannot_agree_than_are_counted() -> None:
    with pytest.raises(ConfigError, match="noun_count"):
        build(IFCapConfig, {"noun_captions": 3, "noun_count": 4})
    build(IFCapConfig, {"noun_captions": 3, "adaptive": "normal"})


def test_a_faiss_index_is_built_once(ifcap: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    store = load_captioner(ifcap, torch.device("cpu")).store
    made = []
    build_one = datastore.build_index
    monkeypatch.setattr(
        datastore, "build_index", lambda keys, index: made.append(index) or build_one(keys, index)
    )
    queries = store.keys[:4].float()
    for _ in range(3):
        assert torch.equal(store.look_up(queries, 2, "Flat"), store.look_up(queries, 2))
    assert made == ["Flat"]


def test_captions_without_an_image_are_counted_aloud(
    texts: Artifact,
    gpt2: Path,
    make_features: MakeFeatures,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = make_features("made", ["c00-0", "c03-0"], torch.randn(2, 8), route="generated")
    data = source(ROWS, texts, generated=made)
    out = train_captioner(small(1, mode="gen_embed"), data, gpt2, tmp_path / "out")
    assert out.counts["captions"] == 2
    assert "22 of 24 captions" in capsys.readouterr().err


def test_a_vocabulary_of_ones_own_is_what_prompts_name(
    texts: Artifact, gpt2: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("ball\n")
    config, data = small(0, vocabulary=words), source(ROWS, texts)
    out = train_captioner(config, data, gpt2, tmp_path / "out")
    model = load_captioner(out, torch.device("cpu"))
    assert model.store.vocabulary == {"ball"}
    assert model.store.objects([6, 7, 8, 9, 10], model.config) == []
    words.write_text("ball\ncube\n")
    with pytest.raises(ArtifactError, match="vocabulary"):
        train_captioner(config, data, gpt2, tmp_path / "out")


def test_captioners_are_not_taken_for_one_another(
    ifcap: Artifact, images: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="kind ifcap"):
        train_clipcap(quick(0), images, [("w", "a ball")], ifcap, tmp_path / "out")
