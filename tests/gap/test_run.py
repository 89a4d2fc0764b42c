from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gmail_align.errors import DataError, UserError
from gmail_align.gap.config import GapConfig
from gmail_align.gap.files import gap_of_files
from gmail_align.gap.run import measure_gap

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
    body = json.loads(result.path("result.json").read_text())
    assert result.kind == "result"
    assert body["protocol"] == "gap_paired"
    assert (body["n"], body["seed"], body["unavailable"]) == (40, 0, {})
    assert body["fingerprints"] == {"real": a.fingerprint, "generated": b.fingerprint}
    assert body["metrics"]["gen_to_real_r1"]["value"] > 0.8
    assert measure_gap(a, b, pairs, tmp_path / "out", config=QUICK).manifest == result.manifest


def test_pairs_of_one_real_image_are_resampled_together(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    real, generated = pairs_of(40, noise=0.3, shift=0)
    a = make_features("real", [str(i) for i in range(20)], real[:20])
    b = make_features("generated", [f"{i % 20}-{i // 20}" for i in range(40)], generated)
    pairs = [(str(i % 20), f"{i % 20}-{i // 20}") for i in range(40)]
    result = measure_gap(a, b, pairs, tmp_path / "out", config=QUICK)
    body = json.loads(result.path("result.json").read_text())
    assert body["n"] == 40
    assert body["metrics"]["paired_cosine"]["n"] == 20


def test_without_pairs_the_sets_are_compared(make_features: MakeFeatures, tmp_path: Path) -> None:
    real, generated = pairs_of(40, noise=0.3, shift=0)
    a = make_features("real", [str(i) for i in range(40)], real)
    b = make_features("generated", [str(i) for i in range(30)], generated[:30])
    result = measure_gap(a, b, None, tmp_path / "out", config=QUICK)
    body = json.loads(result.path("result.json").read_text())
    assert (body["protocol"], body["n"]) == ("gap_unpaired", 30)


def test_pairs_without_features_and_repeated_pairs_are_refused(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    real, generated = pairs_of(4, noise=0.3, shift=0)
    a, b = make_features("real", list("abcd"), real), make_features("gen", list("abcd"), generated)
    with pytest.raises(DataError, match="1 of 2 ids have no features"):
        measure_gap(a, b, [("a", "a"), ("b", "x")], tmp_path / "missing")
    with pytest.raises(DataError, match="more than once"):
        measure_gap(a, b, [("a", "a"), ("a", "a")], tmp_path / "twice")
    with pytest.raises(UserError):
        measure_gap(a, b, [], tmp_path / "none")


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_files_give_values_and_intervals(tmp_path: Path) -> None:
    real, generated = (side.numpy() for side in pairs_of(40, noise=0.3, shift=0))
    r, g = save(tmp_path / "r.npy", real), save(tmp_path / "g.npy", generated.astype(np.float16))
    found = gap_of_files(r, g, paired=True, config=QUICK)
    assert set(found) == {
        *("metrics", "intervals", "n", "protocol", "unavailable", "advice", "seconds"),
        *("floor", "groups"),
    }
    assert found["protocol"] == "gap_paired"
    low, high = found["intervals"]["paired_cosine"]
    assert low <= found["metrics"]["paired_cosine"] <= high
    assert set(found["metrics"]) == set(found["intervals"])
    assert gap_of_files(r, g, config=QUICK)["protocol"] == "gap_unpaired"
    json.dumps(found, allow_nan=False)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    good = save(tmp_path / "good.npy", np.eye(6))
    holed = np.eye(6)
    holed[2, 1] = np.nan
    bad = {
        "hold NaN": save(tmp_path / "nan.npy", holed),
        "floats": save(tmp_path / "bool.npy", np.eye(6, dtype=bool)),
        "shape": save(tmp_path / "flat.npy", np.ones(6)),
        "cannot be read": tmp_path / "absent.npy",
        "dimensions": save(tmp_path / "narrow.npy", np.eye(6)[:, :4]),
    }
    for message, path in bad.items():
        with pytest.raises(UserError, match=message):
            gap_of_files(good, path, paired=True)
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        gap_of_files(good, pickled)
