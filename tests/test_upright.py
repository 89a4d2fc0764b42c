"""A photo that lies on its side in its file is the upright one, whichever way it comes in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from gmail_align.app.server import HOST, make_server
from gmail_align.artifacts import begin
from gmail_align.captioning import pretrained
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.decode import Decoded
from gmail_align.data.images import ImageStore
from gmail_align.data.leaks import find_leaks
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.features.run import extract_images
from gmail_align.features.store import open_features
from gmail_align.gap.prepare import Source, prepare
from gmail_align.importing.run import import_data
from gmail_align.vlm import answers

ORIENTATION, ON_ITS_SIDE = 0x0112, 6
Patch = pytest.MonkeyPatch
Door = Callable[[Path, Path, GmailEncoder, Patch], Tensor]


def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a wide picture that is clearer to the right, RGBA."""
    low = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    rgb = np.asarray(Image.fromarray(low).resize((61, 43), Image.Resampling.BICUBIC))
    alpha = np.broadcast_to(np.linspace(255, 40, 61).astype(np.uint8), (43, 61))
    return np.dstack([rgb, alpha])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """The picture as a phone stores it: on its side, with a tag that says so."""
    path, exif = tmp_path / "phone" / "photo.png", Image.Exif()
    exif[ORIENTATION] = ON_ITS_SIDE
    path.parent.mkdir()
    Image.fromarray(pixels()).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


def imported(importer: str, out: Path, encoder: GmailEncoder, **options: Any) -> Tensor:
    made = import_data(importer, options, out / "import")["images"]
    return open_features(extract_images(made, encoder, Route.FROZEN, out / "features")).array


def by_folder(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    return imported("folder", out, encoder, source=photo.parent)


def by_zip(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    source = shutil.make_archive(str(out / "photos"), "zip", photo.parent)
    return imported("folder", out, encoder, source=Path(source))


def by_shard(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    photo.with_suffix(".txt").write_text("a ball")
    shutil.make_archive(str(out / "shard/00000"), "tar", photo.parent)
    return imported("webdataset", out, encoder, source=out / "shard")


def by_table(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    row = {"id": "a", "caption": "a ball", "image": photo.read_bytes()}
    pq.write_table(pa.Table.from_pylist([row]), out / "table.parquet")
    return imported("parquet", out, encoder, source=out / "table.parquet", id_column="id")


def by_metadata(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    row = {"file_name": photo.name, "text": "a ball"}
    (photo.parent / "metadata.jsonl").write_text(json.dumps(row))
    return imported("imagefolder", out, encoder, source=photo.parent)


def by_coco(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    rows = {
        "images": [{"id": 1, "file_name": photo.name}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a ball"}],
    }
    (out / "captions.json").write_text(json.dumps(rows))
    named = {"annotations": out / "captions.json", "images": photo.parent}
    return imported("coco", out, encoder, **named)


def by_gap(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    (out / "drawn").mkdir()
    Image.fromarray(pixels()[:, ::-1, :3]).save(out / "drawn/other.png")
    prepared = prepare(Source(photo.parent, out / "drawn", out / "home"), encoder)
    return open_features(prepared.real).array


def by_file(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    return encoder.encode_images([photo])


def by_image(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    return encoder.encode_images([Image.open(photo)])


def by_preprocess(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    return encoder.embed_pixels(encoder.preprocess(Image.open(photo)), Route.FROZEN)


def by_caption(photo: Path, out: Path, encoder: GmailEncoder, patch: Patch) -> Tensor:
    read: list[Tensor] = []

    def caption(_: Any, __: Any, features: Tensor, *___: Any) -> list[Decoded]:
        read.append(features)
        return [Decoded("a ball", 0.0)]

    patch.setattr(pretrained, "caption_batch", caption)
    captioner = object.__new__(pretrained.Captioner)
    captioner.encoder, captioner.route, captioner.retrieval = encoder, Route.FROZEN, None
    captioner.how = PredictConfig()
    captioner._model = SimpleNamespace(decoding=SimpleNamespace(max_tokens=9))  # type: ignore[assignment]
    captioner.caption([photo])
    return read[0]


def by_question(photo: Path, out: Path, encoder: GmailEncoder, patch: Patch) -> Tensor:
    read: list[Image.Image] = []

    def answer(_: Any, __: Any, images: list[list[Image.Image]], ___: int) -> list[answers.Answer]:
        read.extend(images[0])
        return [answers.Answer("a ball", cut=False)]

    patch.setattr(answers, "load_llava", lambda *_: None)
    patch.setattr(answers, "answer", answer)
    model = begin(out / "vlm", "vlm", {}).finish({})
    answers.ask(model, [photo], "What is this?")
    return encoder.embed_pixels(encoder.preprocess(read), Route.FROZEN)


def by_upload(photo: Path, out: Path, encoder: GmailEncoder, _: Patch) -> Tensor:
    class Run:
        title = "a run"

        def look(self, image: Image.Image) -> list[float]:
            features = encoder.embed_pixels(encoder.preprocess([image]), Route.FROZEN)
            return [float(value) for value in features[0]]

    run: Any = Run()
    with make_server(run, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        connection = HTTPConnection(HOST, int(server.server_address[1]), timeout=60)
        said = {"X-Gmail-Align": "look"}
        connection.request("POST", "/look", body=photo.read_bytes(), headers=said)
        answer = json.loads(connection.getresponse().read())
        server.shutdown()
    return torch.tensor([answer])


DOORS: list[Door] = [
    *(by_folder, by_zip, by_shard, by_table, by_metadata, by_coco, by_gap),
    *(by_file, by_image, by_preprocess, by_caption, by_question, by_upload),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
@torch.no_grad()
def test_a_photo_on_its_side_has_the_features_of_the_upright_one(
    door: Door, photo: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    encoder = GmailEncoder.from_pretrained("tabletop")
    clear = pixels()[..., 3:].astype(float) / 255
    shown = np.round(pixels()[..., :3] * clear + 255 * (1 - clear)).astype(np.uint8)
    upright = encoder.encode_images([Image.fromarray(shown)])
    lying = encoder.encode_images([Image.fromarray(shown).transpose(Image.Transpose.ROTATE_90)])
    (tmp_path / "door").mkdir()
    found = normalize(door(photo, tmp_path / "door", encoder, monkeypatch).float(), dim=-1)
    assert float((found * upright).sum()) > 0.9999
    assert float((lying * upright).sum()) < 0.999


def test_a_copy_on_its_side_is_a_leak(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "upright").mkdir()
    Image.fromarray(pixels()).save(tmp_path / "upright/same.png")
    train, test = (
        import_data("folder", {"source": folder}, tmp_path / f"{folder.name}-import")["images"]
        for folder in (photo.parent, tmp_path / "upright")
    )
    (leak,) = find_leaks(train, [test]).leaks
    assert (leak.how, leak.distance) == ("looks", 0)
    assert ImageStore(train).read("photo").size == ImageStore(test).read("same").size
