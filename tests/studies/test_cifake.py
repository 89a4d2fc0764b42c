"""The study of CIFAKE, on small images and a network of two operations."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gmail_align.errors import DataError
from gmail_align.studies.cifake import _result
from gmail_align.studies.cifake_features import NETWORK, cifake_features, image_pixels, mobilenet
from gmail_align.studies.numbers import mean_over
from gmail_align.studies.real import run_data_study
from gmail_align.studies.run import StudyOptions

CLASSES, EACH = ("0_red", "1_green", "2_blue", "3_grey"), 16


def jpeg(colour: int, shade: int, rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
    channels = slice(None) if colour == 3 else colour
    pixels[..., channels] += np.uint8(90 + shade)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("cifake"), np.random.default_rng(0)
    for kind, shade in (("real", 0), ("fake", 50)):
        with zipfile.ZipFile(folder / f"test_{kind}.zip", "w") as archive:
            for k, name in enumerate(CLASSES):
                for n in range(EACH):
                    place = f"{name}/{n:05}.jpg" if kind == "real" else f"test/{name}/{n:05}.JPEG"
                    archive.writestr(place, jpeg(k, shade, rng))
            archive.writestr("read.me", "not an image")
    network = folder / NETWORK
    network.parent.mkdir()
    graph = {
        "input": "in",
        "ops": [
            {
                "op": "CONV_2D",
                "inputs": ["in"],
                "output": "a",
                "w": "c",
                "stride": 2,
                "depthwise": False,
                "act": 3,
            },
            {"op": "AVERAGE_POOL_2D", "inputs": ["a"], "output": "b"},
            {"op": "FULLY_CONNECTED", "inputs": ["b"], "output": "d"},
        ],
    }
    weights = rng.normal(size=(12, 3, 3, 3)).astype(np.float16)
    text = np.frombuffer(json.dumps(graph).encode(), dtype=np.uint8)
    np.savez(network, **{"c.w": weights, "c.b": np.ones(12, np.float16), "graph.json": text})
    return folder


def test_the_network_is_the_convolution_that_its_file_says(data: Path) -> None:
    file = np.load(data / NETWORK)
    layer = torch.nn.Conv2d(3, 12, 3, stride=2)
    layer.weight.data = torch.from_numpy(file["c.w"].astype(np.float32))
    layer.bias.data = torch.from_numpy(file["c.b"].astype(np.float32))
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    padded = torch.nn.functional.pad(images, (0, 1, 0, 1))
    expected = layer(padded).clamp(0, 6).detach().numpy()
    pooled, places = mobilenet(data / NETWORK), mobilenet(data / NETWORK, pooled=False)
    np.testing.assert_allclose(pooled(images), expected.mean((2, 3)), atol=1e-5)
    np.testing.assert_allclose(places(images), expected, atol=1e-5)


def test_features_are_made_once_and_by_class(data: Path, tmp_path: Path) -> None:
    read = cifake_features(data, tmp_path)
    assert read.real.shape == read.generated.shape == (4, EACH, 12)
    with zipfile.ZipFile(data / "test_real.zip") as archive:
        own = mobilenet(data / NETWORK)(image_pixels([archive.read("1_green/00003.jpg")]))
    np.testing.assert_allclose(read.real[1, 3], own[0], atol=1e-5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert torch.equal(cifake_features(data, tmp_path).real, read.real)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_draws_become_means_over_seeds_and_paired_claims() -> None:
    names = ("real", "raw", "control", "mean_shift", "shift_scale", "coral", "gmail")
    draws: dict[str, Any] = {}
    for seed in range(3):
        base = dict.fromkeys(names, 0.5 + 0.1 * seed) | {"kept": "step 50", "message": ""}
        base |= {f"real + {name}": 0.6 for name in names[1:]}
        gained = base | {"gmail": base["raw"] + 0.01 * (seed + 1)}
        draws |= {f"same 5 {seed}": gained, f"strict 5 {seed}": base | {"kept": "shift"}}
    result = _result(draws, [5], 3, "x")
    rows = {row.name: row for row in result.rows}
    assert rows["raw"].values["alone_5"].value == pytest.approx(0.6)
    assert rows["real"].values.keys() == {"alone_5", "strict"}
    alone, shift, strict, mixed = result.claims
    assert alone.difference is not None and alone.difference.low is not None
    half = 4.3027 * 0.01 / 3**0.5  # Student's t of two degrees of freedom
    assert alone.difference.value == pytest.approx(0.02)
    assert alone.difference.low == pytest.approx(0.02 - half, rel=1e-3)
    assert [one.verdict for one in (alone, shift)] == ["not significant"] * 2
    assert strict.difference is not None and strict.difference.value == 0
    assert mixed.metric == "mixed_5" and "shift, shift, shift" in result.notes[1]


@pytest.mark.slow
def test_the_study_compares_every_row_on_the_same_draws(data: Path, tmp_path: Path) -> None:
    options = StudyOptions(work=tmp_path, seeds=2, data=data)
    result = run_data_study("cifake", options)
    rows = {row.name: row for row in result.rows}
    assert set(rows) == {"real", "raw", "control", "mean_shift", "shift_scale", "coral", "gmail"}
    assert rows["real"].values["alone_8"].value == 1.0  # the colours are told apart
    claim = next(one for one in result.claims if one.worse == "raw" and one.metric == "alone_8")
    gains = np.subtract(rows["gmail"].seeds["alone_8"], rows["raw"].seeds["alone_8"])
    assert claim.difference is not None
    assert claim.difference.value == pytest.approx(gains.mean())
    assert run_data_study("cifake", options) == result


def test_an_interval_over_seeds_is_students(data: Path) -> None:
    number = mean_over([1.0, 2.0, 3.0, 4.0, 5.0])  # t of 4 degrees of freedom: 2.776
    assert number.value == 3.0 and number.low is not None
    assert number.value - number.low == pytest.approx(2.7764 * 2.5**0.5 / 5**0.5, rel=1e-4)


@pytest.mark.parametrize("missing", ["test_fake.zip", NETWORK])
def test_what_is_missing_is_named(data: Path, tmp_path: Path, missing: str) -> None:
    for path in (*data.glob("*.zip"), data / NETWORK):
        name = str(path.relative_to(data))
        if name != missing:
            target = tmp_path / "some" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    with pytest.raises(DataError, match=missing.rpartition("_")[2]):
        cifake_features(tmp_path / "some", tmp_path / "home")
