from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gmail_align.errors import UserError
from gmail_align.evaluation.files import retrieval_of_files, zeroshot_of_files

KEYS = {"metrics", "intervals", "n", "protocol", "unavailable", "seconds"}


def save(path: Path, array: object) -> Path:
    np.save(path, np.asarray(array))
    return path


def test_retrieval_from_arrays(tmp_path: Path) -> None:
    images = save(tmp_path / "i.npy", np.eye(2))
    texts = save(tmp_path / "t.npy", np.array([[1, 0.1], [0.1, 1], [0, 1]], dtype=np.float16))
    found = retrieval_of_files(images, texts, save(tmp_path / "o.npy", [0, 0, 1]), protocol="toy")
    assert set(found) == KEYS
    json.dumps(found, allow_nan=False)
    assert (found["protocol"], found["n"]) == ("toy", {"images": 2, "texts": 3})
    assert found["metrics"]["i2t_r1"] == 1
    assert found["metrics"]["t2i_r1"] == pytest.approx(2 / 3)
    low, high = found["intervals"]["t2i_r1"]
    assert low <= 2 / 3 <= high


def test_zero_shot_from_arrays_with_and_without_prompts(tmp_path: Path) -> None:
    images = save(tmp_path / "i.npy", [[1.0, 0], [0, 1], [0, 1]])
    labels = save(tmp_path / "y.npy", [0, 1, 0])
    flat = zeroshot_of_files(images, labels, save(tmp_path / "c.npy", np.eye(2)))
    deep = zeroshot_of_files(images, labels, save(tmp_path / "p.npy", np.eye(2)[:, None]))
    assert set(flat) == KEYS
    assert flat["metrics"] == deep["metrics"]
    assert flat["metrics"]["accuracy"] == pytest.approx(2 / 3)
    assert flat["n"] == {"images": 3, "classes": 2}


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    good, owner = save(tmp_path / "good.npy", np.eye(3)), save(tmp_path / "owner.npy", [0, 1, 2])
    holed = np.eye(3)
    holed[1, 1] = np.inf
    np.savez(tmp_path / "many.npz", a=np.eye(3))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "empty.npy").write_bytes(b"")
    cases = {
        "hold NaN or infinity": (save(tmp_path / "inf.npy", holed), good, owner),
        "floats": (save(tmp_path / "bools.npy", np.eye(3, dtype=bool)), good, owner),
        "float32 cannot hold": (save(tmp_path / "big.npy", 1e200 * np.eye(3)), good, owner),
        "archive": (tmp_path / "many.npz", good, owner),
        "Object arrays": (tmp_path / "pickle.npy", good, owner),
        "is no .npy file": (tmp_path / "empty.npy", good, owner),
        "No such file": (tmp_path / "absent.npy", good, owner),
        "dimensions": (save(tmp_path / "narrow.npy", np.eye(2)), good, owner),
        "vector of integers": (good, good, save(tmp_path / "f.npy", [0.0, 1, 2])),
        "outside": (good, good, save(tmp_path / "far.npy", [0, 1, 3])),
        "integers are needed": (good, good, save(tmp_path / "few.npy", [0, 1])),
    }
    for message, (images, texts, owners) in cases.items():
        with pytest.raises(UserError, match=message):
            retrieval_of_files(images, texts, owners)
    with pytest.raises(UserError, match="outside"):
        zeroshot_of_files(good, save(tmp_path / "neg.npy", [0, 1, -1]), good)
