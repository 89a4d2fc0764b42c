from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from gmail_align.artifacts import Artifact, begin
from gmail_align.cli.main import app
from gmail_align.data.decode import encode
from gmail_align.data.images import ImageRecord, ImageStore, finish_images, shard_name, write_shard
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import shipped_models
from gmail_align.errors import ArtifactError, ConfigError, DataError
from gmail_align.synthesis.config import FilterConfig
from gmail_align.synthesis.filters import duplicates, filter_images, spread


def picture(seed: int) -> Image.Image:
    """Draw some boxes; every seed looks different."""
    source = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 96), tuple(source.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        left, top = source.integers(0, 80, 2).tolist()
        wide, tall = source.integers(8, 60, 2).tolist()
        colour = tuple(source.integers(0, 255, 3).tolist())
        draw.rectangle((left, top, left + wide, top + tall), fill=colour)
    return image


def store(folder: Path, pictures: Sequence[tuple[str, Image.Image]], prompt: str = "") -> Artifact:
    draft = begin(folder, "images", {"of": [name for name, _ in pictures]})
    rows = [
        (
            ImageRecord(id=name, width=image.width, height=image.height, prompt=prompt),
            encode(image, "jpeg", 95),
        )
        for name, image in pictures
    ]
    write_shard(draft.path(shard_name(0)), rows)
    return finish_images(draft)


@pytest.fixture
def generated(tmp_path: Path) -> Artifact:
    """Return six images: two alike, one blank, one a copy of a photo at another size."""
    again = picture(1).resize((80, 80)).resize((96, 96))
    rows = [
        ("a-0", picture(1)),
        ("b-0", again),
        ("c-0", Image.new("RGB", (96, 96), (90, 90, 90))),
        ("d-0", picture(2)),
        ("e-0", picture(3).resize((64, 64))),
        ("f-0", picture(4)),
    ]
    return store(tmp_path / "generated", rows, "A red ball.")


@pytest.fixture
def photos(tmp_path: Path) -> Artifact:
    return store(tmp_path / "photos", [("p1", picture(9)), ("p2", picture(3))])


def test_each_image_that_fails_is_left_out_for_its_reason(
    generated: Artifact, photos: Artifact, tmp_path: Path
) -> None:
    kept = filter_images(FilterConfig(), generated, [photos], tmp_path / "out")
    assert ImageStore(kept).ids == ["a-0", "d-0", "f-0"]
    reasons = dict(
        json.loads(line).values() for line in kept.path("quarantine.jsonl").read_text().splitlines()
    )
    assert reasons == {
        "b-0": "a near-duplicate of a-0",
        "c-0": "blank: its grey values spread by 0.00",
        "e-0": f"a copy of p2 in {photos.folder}",
    }
    scores = {row["id"]: row for row in pq.read_table(kept.path("scores.parquet")).to_pylist()}
    assert list(scores) == ImageStore(generated).ids
    assert scores["b-0"]["duplicate_of"] == "a-0"
    assert 0 <= scores["b-0"]["duplicate_bits"] <= 4
    assert scores["e-0"]["copy_of"] == "p2"
    assert scores["d-0"]["reason"] is None
    assert scores["d-0"]["clip_score"] is None
    first, again = ImageStore(generated), ImageStore(kept)
    assert first.read_bytes("d-0") == again.read_bytes("d-0")


def test_an_encoder_scores_and_confirms(
    generated: Artifact, photos: Artifact, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_pretrained(shipped_models() / "clip")
    kept = filter_images(
        FilterConfig(keep_duplicates=True), generated, [photos], tmp_path / "out", encoder
    )
    assert ImageStore(kept).ids == ["a-0", "b-0", "d-0", "f-0"]
    rows = pq.read_table(kept.path("scores.parquet")).to_pylist()
    scores = {row["id"]: row for row in rows}
    image = ImageStore(generated).read("d-0")
    expected = (
        encoder.encode_images([image], Route.FROZEN) @ encoder.encode_texts(["A red ball."]).T
    )
    assert scores["d-0"]["clip_score"] == pytest.approx(2.5 * max(float(expected), 0), abs=1e-5)
    assert scores["e-0"]["copy_cosine"] > 0.9
    assert scores["b-0"]["duplicate_cosine"] > 0.97
    low = sorted(row["clip_score"] for row in rows)[3]
    strict = FilterConfig(min_clip_score=low)
    fewer = filter_images(strict, generated, [], tmp_path / "strict", encoder)
    assert "below" in fewer.path("quarantine.jsonl").read_text()


def test_mistakes(generated: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="min_clip_score needs an encoder"):
        filter_images(FilterConfig(min_clip_score=1), generated, [], tmp_path / "out")
    with pytest.raises(DataError, match="no image would be left"):
        filter_images(FilterConfig(min_spread=200), generated, [], tmp_path / "out")
    captions = begin(tmp_path / "captions", "captions", {}).finish({})
    with pytest.raises(ArtifactError, match="holds captions: images are needed"):
        filter_images(FilterConfig(), generated, [captions], tmp_path / "other")


def test_the_command_counts_reasons(generated: Artifact, photos: Artifact, tmp_path: Path) -> None:
    words = ["filter", str(generated.folder), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--photos", str(photos.folder)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == f"{tmp_path / 'out'}: 3 images kept, 3 left out"
    assert "  1 a near-duplicate" in result.stdout


@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_no_near_duplicate_is_missed(bits: int, seed: int) -> None:
    source = np.random.default_rng(seed)
    centres = source.integers(0, 256, (4, 16), dtype=np.uint8)
    hashes = centres[source.integers(0, 4, 24)]
    flips = source.random((24, 128)) < 0.03
    hashes = np.packbits(np.unpackbits(hashes, axis=1) ^ flips, axis=1)
    unpacked = np.unpackbits(hashes, axis=1)
    expected: dict[int, int] = {}
    for second in range(24):
        for first in range(second):
            near = int((unpacked[first] != unpacked[second]).sum()) <= bits
            if near and first not in expected and second not in expected:
                expected[second] = first
    result = duplicates(hashes, bits, None, 0.0)
    assert {row: match.row for row, match in result.items()} == expected


def test_spread_by_hand() -> None:
    checker = np.zeros((2, 2, 3), dtype=np.uint8)
    checker[0] = 255
    assert spread(checker) == pytest.approx(127.5)


def test_captions_go_through_the_weights_that_images_go_through(
    generated: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = GmailEncoder.from_pretrained(shipped_models() / "clip")
    routes: list[Route] = []
    embed = encoder.embed_texts

    def noted(texts: Sequence[str], route: Route = Route.REAL) -> torch.Tensor:
        routes.append(route)
        return embed(texts, route)

    monkeypatch.setattr(encoder, "embed_texts", noted)
    filter_images(FilterConfig(), generated, [], tmp_path / "out", encoder)
    assert set(routes) == {Route.FROZEN}
