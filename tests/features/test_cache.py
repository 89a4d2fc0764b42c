"""The cache: every image is decoded once and every frozen feature is computed once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from gmail_align.data.images import ImageStore
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.features.cache import Cache
from gmail_align.features.pixels import PIXELS
from gmail_align.features.run import extract_images, extract_texts
from gmail_align.features.store import FEATURES, open_features


class Counts:
    """How many images were decoded, and how many images and texts an encoder embedded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: list[str] = []
        self.images = self.texts = 0
        read, trunk, texts = ImageStore.read, GmailEncoder.trunk, GmailEncoder.embed_texts

        def counted_read(store: ImageStore, name: str) -> Any:
            self.decoded.append(name)
            return read(store, name)

        def counted_trunk(encoder: GmailEncoder, pixels: torch.Tensor, *given: Any) -> Any:
            self.images += len(pixels)
            return trunk(encoder, pixels, *given)

        def counted_texts(encoder: GmailEncoder, lines: list[str], *given: Any) -> Any:
            self.texts += len(lines)
            return texts(encoder, lines, *given)

        monkeypatch.setattr(ImageStore, "read", counted_read)
        monkeypatch.setattr(GmailEncoder, "trunk", counted_trunk)
        monkeypatch.setattr(GmailEncoder, "embed_texts", counted_texts)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


def test_images_are_decoded_and_embedded_once(
    clip_folder: Path, world: Any, tmp_path: Path, counts: Counts
) -> None:
    plain = GmailEncoder.from_pretrained(clip_folder)
    cache, other = Cache(tmp_path / "cache"), GmailEncoder.from_clip(clip_folder, seed=1)
    direct = extract_images(world.real, plain, Route.FROZEN, tmp_path / "direct")
    counts.decoded.clear()
    counts.images = 0
    linked = cache.extract_images(world.real, plain, Route.FROZEN, tmp_path / "linked")
    assert (len(counts.decoded), counts.images) == (12, 12)
    assert linked.manifest["config"] == direct.manifest["config"]
    assert linked.fingerprint == direct.fingerprint
    made = cache.image_features(world.real, other)
    some = cache.image_features(world.real, other, ["r3", "r1"])
    assert some.folder == made.folder
    assert os.path.samefile(made.path(FEATURES), linked.path(FEATURES))
    assert len(cache.pixels(world.real, other.preprocess, ["r1"]).ids) == 12
    assert (len(counts.decoded), counts.images) == (12, 12)
    again = cache.extract_images(world.real, plain, Route.REAL, tmp_path / "real")
    assert (len(counts.decoded), counts.images) == (12, 24)
    assert torch.equal(open_features(again).array, open_features(linked).array)


def test_few_images_of_a_store_are_made_alone(
    clip_folder: Path, world: Any, tmp_path: Path, counts: Counts
) -> None:
    encoder, cache = GmailEncoder.from_pretrained(clip_folder), Cache(tmp_path / "cache")
    few = open_features(cache.image_features(world.real, encoder, ["r7", "r2"]))
    assert few.ids == ["r7", "r2"]
    assert sorted(counts.decoded) == ["r2", "r7"]
    whole = open_features(cache.image_features(world.real, encoder, [f"r{n}" for n in range(6)]))
    assert len(whole.ids) == 12
    assert torch.allclose(whole.array[whole.rows(few.ids)], few.array, atol=1e-6)
    patches = open_features(cache.image_features(world.real, encoder, ["r7", "r2"], patches=True))
    assert patches.ids == ["r7", "r2"]
    assert patches.array.shape == (2, encoder.width)
    assert len(counts.decoded) == 14


def test_images_beyond_the_limit_are_decoded_when_they_are_read(
    clip_folder: Path, world: Any, tmp_path: Path, counts: Counts
) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    limit = 12 * 3 * encoder.preprocess.size**2 - 1
    kept, lazy = Cache(tmp_path / "kept"), Cache(tmp_path / "lazy", limit)
    one, other = (cache.pixels(world.real, encoder.preprocess) for cache in (kept, lazy))
    assert list(one.ids) == list(other.ids)
    for rows in (torch.tensor([7, 0, 7]), slice(2, 5), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(one.array[rows], other.array[rows])
    assert len(counts.decoded) == 12  # worker processes decoded the others
    made = [open_features(cache.image_features(world.real, encoder)) for cache in (kept, lazy)]
    assert torch.equal(made[0].array, made[1].array)
    assert not list(lazy.folder.rglob(PIXELS))
    few = lazy.pixels(world.real, encoder.preprocess, ["r3"])
    assert torch.equal(few.array[torch.tensor([0])], one.array[one.rows(["r3"])])


def test_texts_are_embedded_once(
    clip_folder: Path, world: Any, tmp_path: Path, counts: Counts
) -> None:
    encoder, cache = GmailEncoder.from_pretrained(clip_folder), Cache(tmp_path / "cache")
    first = cache.text_features(world.captions, encoder)
    assert cache.text_features(world.captions, encoder) == first
    assert counts.texts == 24
    direct = extract_texts(world.captions, encoder, tmp_path / "direct", route=Route.FROZEN)
    assert direct.fingerprint == first.fingerprint


def test_other_weights_or_images_are_kept_apart(
    clip_folder: Path, siglip_folder: Path, world: Any, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    encoder = GmailEncoder.from_pretrained(clip_folder)
    other = GmailEncoder.from_pretrained(siglip_folder)
    folders = {
        cache.image_features(images, one).folder
        for images in (world.real, world.generated)
        for one in (encoder, other)
    }
    assert len(folders) == 4
