"""Captions that get the image of another: which one, what is kept, and what the record says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.decode import encode
from gmail_align.data.images import ImageRecord, ImageStore, finish_images, shard_name, write_shard
from gmail_align.data.pairs import make_pairs, read_pairs
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError, DataError
from gmail_align.synthesis.config import FilterConfig
from gmail_align.synthesis.filters import filter_images
from gmail_align.synthesis.reassign import REASSIGNED, best_images
from gmail_align.tabletop.render import render
from gmail_align.tabletop.scenes import sample_scene
from gmail_align.tabletop.text import captions as scene_captions

SCENES = [sample_scene(seed) for seed in range(6)]
TEXTS = [scene_captions(scene, 1)[0] for scene in SCENES]


def store(folder: Path, names: Sequence[str], scenes: Sequence[int], texts: list[str]) -> Artifact:
    draft = begin(folder, "images", {"of": list(names), "scenes": list(scenes)})
    rows = []
    for name, scene, text in zip(names, scenes, texts, strict=True):
        image = Image.fromarray(render(SCENES[scene]))
        record = ImageRecord(id=name, width=64, height=64, source="generated", prompt=text)
        rows.append((record, encode(image, "png", 95)))
    write_shard(draft.path(shard_name(0)), rows)
    return finish_images(draft)


@pytest.fixture(scope="module")
def encoder() -> GmailEncoder:
    return GmailEncoder.from_pretrained("tabletop")


def test_the_best_image_is_the_nearest_and_rivals_are_counted() -> None:
    torch.manual_seed(0)
    texts, images = torch.randn(40, 8), torch.randn(50, 8)
    images[7] = 3 * images[2]  # as near as an earlier one: the earlier is taken
    best = best_images(texts, images)
    cosines = torch.nn.functional.cosine_similarity(texts[:, None], images[None], dim=-1)
    nearest = cosines.argmax(1)
    nearest[nearest == 7] = 2
    assert torch.equal(best.image, nearest)
    own = cosines[torch.arange(40), nearest]
    torch.testing.assert_close(best.cosine, own)
    assert torch.equal(best.before, (cosines[:, nearest] > own + 1e-6).sum(0))


def test_swapped_images_come_back_to_their_captions(tmp_path: Path, encoder: GmailEncoder) -> None:
    names = [f"{n}-0" for n in range(6)]
    images = store(tmp_path / "in", names, [1, 0, 3, 2, 5, 4], TEXTS)
    config = FilterConfig(reassign=True, found_within=6, keep_duplicates=True, duplicate_bits=0)
    made = filter_images(config, images, [], tmp_path / "out", encoder)
    rows = pq.read_table(made.path(REASSIGNED)).to_pylist()
    before, after = ImageStore(images), ImageStore(made)
    texts = encoder.encode_texts(TEXTS, Route.FROZEN)
    pictures = encoder.encode_images([before.read(name) for name in names], Route.FROZEN)
    best = (texts @ pictures.T).argmax(1).tolist()
    assert [row["image_id"] for row in rows] == [names[row] for row in best]
    assert sum(row["image_id"] == names[n ^ 1] for n, row in enumerate(rows)) >= 4
    for row in rows:
        record = after.record(f"{row['caption_id']}-0")
        assert record.text == row["text"] and row["kept"]
        assert record.prompt == before.record(row["image_id"]).prompt
        assert after.read_bytes(record.id) == before.read_bytes(row["image_id"])
    captions = begin(tmp_path / "captions", "captions", {})
    write_captions(captions, [Caption(str(n), text, str(n)) for n, text in enumerate(TEXTS)])
    real = store(tmp_path / "real", list("012345"), range(6), TEXTS)
    paired = make_pairs(captions.finish({"captions": 6}), real, made, tmp_path / "pairs")
    assert [pair.generated_image_id for pair in read_pairs(paired)] == names


def test_an_image_that_does_not_find_its_caption_is_left_out(
    tmp_path: Path, encoder: GmailEncoder
) -> None:
    """One image serves all captions, and only those that suit it best keep it."""
    names = [f"{n}-0" for n in range(6)]
    images = store(tmp_path / "in", names, [0] * 6, TEXTS)
    config = FilterConfig(reassign=True, found_within=1)
    made = filter_images(config, images, [], tmp_path / "out", encoder)
    picture = encoder.encode_images([ImageStore(images).read("0-0")], Route.FROZEN)
    best = int((encoder.encode_texts(TEXTS, Route.FROZEN) @ picture.T).argmax())
    assert ImageStore(made).ids == [f"{best}-0"]
    assert made.path("quarantine.jsonl").read_text().count("0-0 finds") == 5


def test_what_cannot_be_reassigned_is_refused(tmp_path: Path, encoder: GmailEncoder) -> None:
    images = store(tmp_path / "in", ["photo"], [0], [""])
    with pytest.raises(ConfigError, match="reassign"):
        filter_images(FilterConfig(reassign=True), images, [], tmp_path / "out")
    with pytest.raises(DataError, match="photo"):
        filter_images(FilterConfig(reassign=True), images, [], tmp_path / "out", encoder)
