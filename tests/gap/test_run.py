from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gmail_align.errors import DataError, UserError
from gmail_align.gap.config import GapConfig
from gmail_align.gap.run import measure_gap
from gmail_align.results import Result

from .conftest import MakeFeatures, pairs_of

QUICK = GapConfig(resamples=50)


def test_pairs_are_found_by_id_whatever_the_order(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    real, generated = pairs_of(40, noise=0.3, shift=0)
    ids = [str(i) for i in range(40)]
    pairs = [(i, f"{i}-0") for i in ids]
    a = make_features("real", ids, real)
    b = make_features("generated", [f"{i}-0" for i in reversed(ids)], generated.flip(0))
    result = measure_gap(a, b, pairs, tmp_path / "out", config=QUICK)
    assert result.protocol == "gap_paired"
    assert (result.n, result.seed, result.unavailable) == ({"pairs": 40}, 0, {})
    assert result.fingerprints == {"real": a.fingerprint, "generated": b.fingerprint}
    assert result.metrics["gen_to_real_r1"].value > 0.8
    again = measure_gap(a, b, pairs, tmp_path / "out", config=QUICK)
    assert again.to_json() == result.to_json() and again.items == {}


def test_pairs_of_one_real_image_are_resampled_together(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    real, generated = pairs_of(40, noise=0.3, shift=0)
    a = make_features("real", [str(i) for i in range(20)], real[:20])
    b = make_features("generated", [f"{i % 20}-{i // 20}" for i in range(40)], generated)
    pairs = [(str(i % 20), f"{i % 20}-{i // 20}") for i in range(40)]
    result = measure_gap(a, b, pairs, config=QUICK)
    assert result.n == {"pairs": 40}
    assert result.metrics["paired_cosine"].n == 20


def test_a_real_image_may_stand_once_for_each_of_its_captions(tmp_path: Path) -> None:
    real, _ = pairs_of(30, noise=0, shift=0)
    every = real.repeat_interleave(5, 0)
    noise = torch.randn(every.shape, generator=torch.Generator().manual_seed(1))
    r = save(tmp_path / "r.npy", every.numpy())
    g = save(tmp_path / "g.npy", (every + 0.2 * noise).numpy())
    pairs = [(str(row), str(row)) for row in range(150)]
    metrics = measure_gap(r, g, pairs, config=QUICK).metrics
    assert metrics["gen_to_real_r1"].value > 0.99
    assert metrics["paired_cosine"].n == 30


def test_without_pairs_the_sets_are_compared(make_features: MakeFeatures) -> None:
    real, generated = pairs_of(40, noise=0.3, shift=0)
    a = make_features("real", [str(i) for i in range(40)], real)
    b = make_features("generated", [str(i) for i in range(30)], generated[:30])
    result = measure_gap(a, b, None, config=QUICK)
    assert (result.protocol, result.n) == ("gap_unpaired", {"images": 30})


def test_pairs_without_features_and_repeated_pairs_are_refused(
    make_features: MakeFeatures,
) -> None:
    real, generated = pairs_of(4, noise=0.3, shift=0)
    a, b = make_features("real", list("abcd"), real), make_features("gen", list("abcd"), generated)
    with pytest.raises(DataError, match="'x'"):
        measure_gap(a, b, [("a", "a"), ("b", "x")])
    with pytest.raises(DataError, match="more than once"):
        measure_gap(a, b, [("a", "a"), ("a", "a")])
    with pytest.raises(UserError):
        measure_gap(a, b, [])


@pytest.mark.parametrize("other", [{"encoder": "siglip"}, {"what": "text"}])
def test_features_of_other_encoders_and_of_texts_are_refused(
    make_features: MakeFeatures, other: dict[str, str]
) -> None:
    real, generated = pairs_of(8, noise=0.3, shift=0)
    a = make_features("real", list("abcdefgh"), real)
    b = make_features("gen", list("abcdefgh"), generated, **other)
    with pytest.raises(DataError, match="gen"):
        measure_gap(a, b, None)


def test_a_page_is_written_before_the_result_is_complete(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    real, generated = pairs_of(8, noise=0.3, shift=0)
    a, b = (
        make_features(name, list("abcdefgh"), one)
        for name, one in (("real", real), ("gen", generated))
    )
    seen = []

    def write(result: Result, features: object, folder: Path) -> None:
        seen.append((folder / "manifest.json").exists())
        (folder / "page.html").write_text(result.protocol)

    for _ in range(2):
        result = measure_gap(a, b, None, tmp_path / "out", config=QUICK, write_page=write)
    assert seen == [False]
    assert result.artifact is not None and "page.html" in result.artifact.manifest["files"]


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_files_give_values_and_intervals(tmp_path: Path) -> None:
    real, generated = (one.numpy() for one in pairs_of(40, noise=0.3, shift=0))
    r, g = save(tmp_path / "r.npy", real), save(tmp_path / "g.npy", generated.astype(np.float16))
    pairs = [(str(row), str(row)) for row in range(40)]
    result = measure_gap(r, g, pairs, config=QUICK)
    assert set(result.details) == {"advice", "floor", "groups"}
    assert result.protocol == "gap_paired"
    one = result.metrics["paired_cosine"]
    assert one.low <= one.value <= one.high
    assert measure_gap(r, g, None, config=QUICK).protocol == "gap_unpaired"
    json.dumps(result.to_json(), allow_nan=False)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    good = save(tmp_path / "good.npy", np.eye(6))
    holed = np.eye(6)
    holed[2, 1] = np.nan
    for path in (
        save(tmp_path / "nan.npy", holed),
        save(tmp_path / "bool.npy", np.eye(6, dtype=bool)),
        save(tmp_path / "flat.npy", np.ones(6)),
        tmp_path / "absent.npy",
    ):
        with pytest.raises(DataError, match=path.name):
            measure_gap(good, path, None)
    with pytest.raises(UserError, match="dimensions"):
        measure_gap(good, save(tmp_path / "narrow.npy", np.eye(6)[:, :4]), None)
