"""Extraction: the store holds what the encoder says, whatever the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.captions import Caption, read_captions, write_captions
from gmail_align.data.images import ImageStore
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, DataError
from gmail_align.features import run as module
from gmail_align.features.pixels import prepare_pixels, read_pixels
from gmail_align.features.run import extract_images, extract_texts
from gmail_align.features.store import FEATURES, open_features


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> GmailEncoder:
    """An encoder whose every route is another."""
    encoder = GmailEncoder.from_clip(clip_folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


@torch.no_grad()
def _expected(encoder: GmailEncoder, images: Artifact, route: Route) -> torch.Tensor:
    store = ImageStore(images)
    return encoder.embed_pixels(encoder.preprocess([store.read(i) for i in store.ids]), route)


@pytest.mark.parametrize("route", list(Route))
def test_features_are_the_encoders(
    route: Route, encoder: GmailEncoder, world: Any, tmp_path: Path
) -> None:
    made = extract_images(world.real, encoder, route, tmp_path / "f", batch_size=5)
    result = open_features(made)
    assert list(result.ids) == ImageStore(world.real).ids
    assert torch.allclose(result.array, _expected(encoder, world.real, route), atol=1e-5)
    assert made.counts == {"images": 12, "rows": 12}
    config = made.manifest["config"]
    assert (config["what"], config["route"]) == ("image", route.value)
    assert config["weights"] == encoder.route_fingerprint(route)
    assert config["encoder"] == encoder.base_fingerprint


def test_the_file_is_a_safetensors_file_and_is_mapped(
    encoder: GmailEncoder, world: Any, tmp_path: Path
) -> None:
    made = extract_images(world.real, encoder, Route.FROZEN, tmp_path / "f")
    result = open_features(made)
    assert torch.equal(load_file(made.path(FEATURES))["features"], result.array)
    assert result.rows(["r3", "r0"]).tolist() == [result.ids.index("r3"), result.ids.index("r0")]
    with pytest.raises(DataError, match="2 of 3 ids .* 'x'"):
        result.rows(["r1", "x", "y"])


@pytest.mark.parametrize("fixture", ["clip_folder", "siglip_folder"])
def test_texts_that_the_encoder_does_not_read_to_their_end_are_counted(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = GmailEncoder.from_pretrained(request.getfixturevalue(fixture))
    room = encoder.backbone.text_length - len(encoder.tokenizer(["a"], padding=False).input_ids[0])
    draft = begin(tmp_path / "captions", "captions", {}, {})
    lengths = (1, room + 1, room + 2, 200)
    rows = [Caption(str(number), "a " * words, str(number)) for number, words in enumerate(lengths)]
    write_captions(draft, rows)
    captions = draft.finish({"captions": len(rows)})
    made = extract_texts(captions, encoder, tmp_path / "texts", route=Route.FROZEN, batch_size=1)
    assert made.manifest["notes"] == {"texts_cut": 2}
    assert "2 of 4 texts" in capsys.readouterr().err


def test_half_precision_storage(encoder: GmailEncoder, world: Any, tmp_path: Path) -> None:
    full = extract_images(world.real, encoder, Route.REAL, tmp_path / "32")
    half = extract_images(world.real, encoder, Route.REAL, tmp_path / "16", dtype="float16")
    result = open_features(half).array
    assert result.dtype == torch.float16
    assert torch.equal(result, open_features(full).array.half())


def test_extraction_of_pixels_is_the_same_artifact(
    encoder: GmailEncoder, world: Any, tmp_path: Path
) -> None:
    ids = ["r5", "r1", "r11"]
    pixels = read_pixels(prepare_pixels(world.real, encoder.preprocess, tmp_path / "p"))
    made = extract_images(world.real, encoder, Route.FROZEN, tmp_path / "a", ids=ids, pixels=pixels)
    other = extract_images(world.real, encoder, Route.FROZEN, tmp_path / "b", ids=ids)
    assert made.fingerprint == other.fingerprint
    again = extract_images(world.real, encoder, Route.FROZEN, tmp_path / "a", ids=ids)
    assert again.manifest == made.manifest


def test_texts_of_captions_and_of_pairs(encoder: GmailEncoder, world: Any, tmp_path: Path) -> None:
    made = extract_texts(world.captions, encoder, tmp_path / "c", batch_size=7, route=Route.REAL)
    result = open_features(made)
    captions = read_captions(world.captions)
    assert list(result.ids) == [caption.caption_id for caption in captions]
    with torch.no_grad():
        expected = encoder.embed_texts([caption.text for caption in captions], Route.REAL)
    assert torch.allclose(result.array, expected, atol=1e-5)
    of_pairs = open_features(extract_texts(world.pairs, encoder, tmp_path / "p", route=Route.REAL))
    assert torch.allclose(of_pairs.array[of_pairs.rows(result.ids)], expected, atol=1e-5)
    with pytest.raises(ArtifactError, match="holds images"):
        extract_texts(world.real, encoder, tmp_path / "x", route=Route.REAL)


def test_a_killed_extraction_ends_with_the_same_bytes(
    encoder: GmailEncoder, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract_images(world.generated, encoder, Route.REAL, tmp_path / "a", batch_size=5)
    make, calls = module.image_rows, [0]

    def dying(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return make(*given)

    monkeypatch.setattr(module, "image_rows", dying)
    try:
        extract_images(world.generated, encoder, Route.REAL, tmp_path / "b", batch_size=5)
    except KeyboardInterrupt:
        calls[0] = 10
    made = extract_images(world.generated, encoder, Route.REAL, tmp_path / "b", batch_size=5)
    assert calls[0] == 13
    assert made.fingerprint == whole.fingerprint


def test_another_encoder_route_or_set_is_refused(
    encoder: GmailEncoder, clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    out = tmp_path / "f"
    extract_images(world.real, encoder, Route.REAL, out)
    fresh = GmailEncoder.from_clip(clip_folder)
    for given, message in [
        ((world.real, fresh, Route.REAL), "config.weights"),
        ((world.real, encoder, Route.FROZEN), "config.route"),
        ((world.generated, encoder, Route.REAL), "inputs.images"),
    ]:
        with pytest.raises(ArtifactError, match=f"belongs to another run: {message}"):
            extract_images(*given, out)


def test_frozen_features_are_shared_by_all_encoders_on_one_clip(
    encoder: GmailEncoder, clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    made = extract_images(world.real, encoder, Route.FROZEN, tmp_path / "f")
    plain = GmailEncoder.from_pretrained(clip_folder)
    assert extract_images(world.real, plain, Route.FROZEN, tmp_path / "f") == made


def test_features_that_are_not_finite_are_refused(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    with torch.no_grad():
        encoder.real_head.mul_(1e7)
    with pytest.raises(DataError, match="not finite in float16"):
        extract_images(world.real, encoder, Route.REAL, tmp_path / "f", dtype="float16")


def test_a_damaged_store_is_refused(encoder: GmailEncoder, world: Any, tmp_path: Path) -> None:
    made = extract_images(world.real, encoder, Route.FROZEN, tmp_path / "f")
    lines = made.path("ids.jsonl").read_text().splitlines()
    made.path("ids.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ArtifactError, match="12 rows for 11 ids"):
        open_features(made)
    made.path(FEATURES).write_bytes(b"short")
    with pytest.raises(ArtifactError, match="damaged"):
        open_features(made)
    with pytest.raises(ArtifactError, match="holds images"):
        open_features(world.real)
