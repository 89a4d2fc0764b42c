"""CLIPScore by an encoder: the shipped CLIP on four plain images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.images import finish_images, shard_name, write_shard
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.shipped import shipped_models
from gmail_align.errors import DataError
from gmail_align.evaluation.captions import CaptionOptions, score
from gmail_align.evaluation.clipscore import ClipEncoder, clip_features
from gmail_align.importing.admission import admit
from worlds.scoring import per_item

COLOURS = {"a": "red", "b": "blue", "c": "green", "d": "grey"}
SAID = {name: f"a {colour} ball" for name, colour in COLOURS.items()}
HUMAN = {name: [f"the {colour} ball", "a thing"] for name, colour in COLOURS.items()}


@pytest.fixture
def images(tmp_path: Path) -> Artifact:
    draft = begin(tmp_path / "images", "images", {})
    samples = []
    for name, colour in COLOURS.items():
        file = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(file, "png")
        samples.append(admit(name, file.getvalue()))
    write_shard(draft.path(shard_name(0)), samples)
    return finish_images(draft)


def test_an_encoder_gives_the_scores_of_its_features(images: Artifact) -> None:
    source = ClipEncoder(str(shipped_models() / "clip"), images.folder, device="cpu")
    options = CaptionOptions(metrics=("CLIPScore", "RefCLIPScore"), clip=source)
    result = score({"one": SAID}, HUMAN, options)["one"].columns
    encoder = GmailEncoder.from_pretrained(shipped_models() / "clip")
    seen = encoder.encode_images(
        [Image.new("RGB", (64, 64), colour) for colour in COLOURS.values()], route="frozen"
    )
    said = encoder.encode_texts([f"A photo depicts {text}" for text in SAID.values()])
    expected = 2.5 * (seen * said).sum(1).clamp(min=0).numpy()
    assert per_item(result["CLIPScore"]) == pytest.approx(expected, abs=1e-5)
    human = encoder.encode_texts([f"A photo depicts {t}" for some in HUMAN.values() for t in some])
    best = (said[:, None] * human.reshape(4, 2, -1)).sum(-1).amax(1).clamp(min=0).numpy()
    both = np.where(expected > 0, 2 * expected * best / (expected + best), 0)
    assert per_item(result["RefCLIPScore"]) == pytest.approx(both, abs=1e-5)


def test_frozen_images_meet_frozen_texts(images: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain = GmailEncoder.encode_texts

    def recorded(self: GmailEncoder, texts: list[str], route: str = "real", **more: int) -> object:
        asked.append(route)
        return plain(self, texts, route, **more)

    monkeypatch.setattr(GmailEncoder, "encode_texts", recorded)
    for route in ("frozen", "real"):
        source = ClipEncoder(str(shipped_models() / "clip"), images.folder, route, "cpu")
        clip_features(source, {"one": SAID}, HUMAN)
    assert set(asked[:2]) == {"frozen"} and set(asked[2:]) == {"real"}


def test_images_that_are_not_there_are_named(images: Artifact) -> None:
    source = ClipEncoder(str(shipped_models() / "clip"), images.folder, device="cpu")
    with pytest.raises(DataError, match="1 of the images: e"):
        clip_features(source, {"one": SAID | {"e": "a"}}, HUMAN | {"e": ["a"]})
