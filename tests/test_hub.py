"""The Hugging Face hub: what is uploaded, its card, and that it loads again by its id."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from PIL import Image

import gmail_align as ga
from gmail_align.api.hub import model_card
from gmail_align.artifacts import Artifact, begin
from gmail_align.encoders.config import LoraSettings
from gmail_align.errors import ArtifactError, ConfigError, ModelError
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.results import Result
from worlds.encoders import disturb

COMMIT = "c" * 40


class FakeHub:
    """Keeps commits where the cache of the hub keeps its copies."""

    cache: Path
    refuses = False

    def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> None:
        assert exist_ok
        if self.refuses:
            raise PermissionError("401")
        self.folder = self.cache / f"models--{name.replace('/', '--')}"
        (self.folder / "refs").mkdir(parents=True)
        (self.folder / "refs" / "main").write_text(COMMIT)

    def create_commit(self, name: str, operations: list[Any], commit_message: str) -> Any:
        for operation in operations:
            path = self.folder / "snapshots" / COMMIT / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                path.write_bytes(file.read())
        return SimpleNamespace(repo_url=f"https://huggingface.co/{name}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    FakeHub.cache, FakeHub.refuses = tmp_path / "hub", False
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(FakeHub.cache))
    return FakeHub


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The shipped CLIP with an adapter that changes something."""
    folder = tmp_path_factory.mktemp("hub") / "encoder"
    draft = begin(folder, "encoder", {"batch_size": 8})
    model = ga.GmailEncoder.from_clip("tabletop", LoraSettings(rank=2))
    disturb(model)
    model.best_step = 75
    model.save(str(folder))
    return draft.finish({"pairs": 24}, best_step=75)


@pytest.fixture(scope="module")
def captioner(encoder: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    world = tmp_path_factory.mktemp("world")
    ga.write_tabletop(world / "drawn", {"train": 6})
    files = {"annotations": world / "drawn/captions_train.json", "images": [world / "drawn/images"]}
    real = ga.import_data("coco", files, world / "real")
    seen = ga.extract(real["images"], world / "seen", encoder=encoder, route="generated")
    quick = {"batch_size": 4, "optim.steps": 2, "optim.warmup": 0, "max_tokens": 6}
    return ga.train_captioner(
        "clipcap", seen, real["captions"], world / "captioner", settings=quick
    )


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def test_an_encoder_comes_back_from_the_hub(encoder: Artifact, hub: type[FakeHub]) -> None:
    address = ga.push_to_hub(encoder, "me/encoder", license="mit", base_model="openai/clip")
    assert address.endswith("me/encoder")
    again = ga.GmailEncoder.from_pretrained("me/encoder@main")
    assert repr(again) == "GmailEncoder(CLIP 4x128/8, LoRA rank 2, step 75 kept)"
    assert again.fingerprint == ga.load(encoder).fingerprint
    card = (hub.cache / "models--me--encoder/snapshots" / COMMIT / "README.md").read_text()
    assert metadata(card) | {"tags": 0} == {
        "base_model": "openai/clip",
        "license": "mit",
        "library_name": "gmail-align",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": 0,
    }
    assert "step 75 kept" in card


def test_a_captioner_brings_its_encoder(
    captioner: Artifact, encoder: Artifact, hub: type[FakeHub], tmp_path: Path
) -> None:
    ga.push_to_hub(captioner, "me/captioner", license="mit", base_model=(), encoder=encoder)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), (200, 30, 30)).save(photo)
    mine = ga.Captioner.from_pretrained(captioner.folder, encoder=encoder.folder)
    theirs = ga.Captioner.from_pretrained("me/captioner@main")
    assert "LoRA rank 2" in repr(theirs)
    captions = mine.caption([photo, str(photo), Image.open(photo)])
    assert captions == theirs.caption([photo] * 3)
    card = (hub.cache / "models--me--captioner/snapshots" / COMMIT / "README.md").read_text()
    assert metadata(card)["pipeline_tag"] == "image-to-text"
    assert "base_model" not in metadata(card)


def test_an_encoder_that_names_its_base_needs_no_more(
    encoder: Artifact, hub: type[FakeHub], tmp_path: Path
) -> None:
    FakeHub().create_repo("openai/clip", private=None, exist_ok=True)
    base = hub.cache / "models--openai--clip/snapshots" / COMMIT
    shutil.copytree(encoder.path("base"), base)
    copy = shutil.copytree(encoder.folder, tmp_path / "encoder")
    shutil.rmtree(copy / "base")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "base": f"openai/clip@{COMMIT}"}))
    card = model_card(Artifact(copy, encoder.manifest), "me/x", license="mit")
    assert metadata(card)["base_model"] == "openai/clip"
    card = model_card(encoder, "me/x", license="mit", base_model=["a/b", "c/d"])
    assert metadata(card)["base_model"] == ["a/b", "c/d"]


def test_what_cannot_be_uploaded(
    captioner: Artifact, encoder: Artifact, hub: type[FakeHub]
) -> None:
    with pytest.raises(ConfigError, match="base_model"):
        ga.push_to_hub(encoder, "me/x", license="mit")
    with pytest.raises(ConfigError, match="encoder"):
        ga.push_to_hub(captioner, "me/x", license="mit")
    with pytest.raises(ArtifactError, match="features"):
        ga.push_to_hub(captioner.folder.parent / "seen", "me/x", license="mit")
    hub.refuses = True
    with pytest.raises(ModelError, match="me/x"):
        ga.push_to_hub(encoder, "me/x", license="mit", base_model=())


def test_a_captioner_of_another_encoder(captioner: Artifact, tmp_path: Path) -> None:
    other = ga.GmailEncoder.from_clip("tabletop/long_clip")
    other.save(tmp_path / "other")
    with pytest.raises(ga.UserError, match="any_encoder"):
        ga.Captioner.from_pretrained(captioner.folder, encoder=tmp_path / "other")


def test_a_result_says_what_it_holds() -> None:
    result = Result("retrieval", {"images": 24}, {"i2t_r1": Estimate(0.5, 0.25, 0.75, 24)})
    assert repr(result) == "Result(retrieval on 24 images: i2t_r1 0.5 [0.25, 0.75])"
    assert result.to_pandas().to_dict("records") == [
        {"protocol": "retrieval", "metric": "i2t_r1", "value": 0.5, "low": 0.25, "high": 0.75}
        | {"n": 24}
    ]
