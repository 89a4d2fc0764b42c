from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gmail_align.artifacts import Artifact
from gmail_align.errors import ArtifactError, DataError, UserError
from gmail_align.evaluation.retrieval import evaluate_retrieval
from gmail_align.results import Result, read_result

from .conftest import MakeCaptions, MakeFeatures, SaveArray

ROWS = [("c0", "x"), ("c1", "x"), ("c2", "y"), ("c3", "y")]
TEXTS = torch.tensor([[0, 1, 0], [0, 1, 0.1], [0, 0, 1], [0, 0.9, 0.5]], dtype=torch.float)


@pytest.fixture
def scored(
    make_features: MakeFeatures, make_captions: MakeCaptions, tmp_path: Path
) -> tuple[Artifact, Artifact, Artifact, Result]:
    """Three images, one of them not asked for, and four captions, one nearer to the wrong image."""
    images = make_features("images", ["z", "x", "y"], torch.eye(3))
    texts = make_features("texts", [one for one, _ in ROWS], TEXTS)
    captions = make_captions("captions", ROWS)
    out = tmp_path / "out"
    result = evaluate_retrieval(images, texts, captions, out, protocol="toy", seed=3)
    return images, texts, captions, result


def test_retrieval_ranks_the_images_of_the_captions_alone(
    scored: tuple[Artifact, Artifact, Artifact, Result],
) -> None:
    images, texts, captions, result = scored
    assert result.metrics["i2t_r1"].value == 1
    assert result.metrics["t2i_r1"].value == 0.75
    assert result.metrics["t2i_r5"].value == 1
    assert result.metrics["t2i_r1"].n == 2
    assert (result.protocol, result.seed, result.unavailable) == ("toy", 3, {})
    assert result.n == {"images": 2, "texts": 4}
    inputs = {"images": images, "texts": texts, "captions": captions}
    assert result.fingerprints == {name: one.fingerprint for name, one in inputs.items()}
    assert result.made_with["images"]["route"] == "real"


def test_a_finished_result_is_read_back_and_kept(
    scored: tuple[Artifact, Artifact, Artifact, Result],
) -> None:
    images, texts, captions, result = scored
    assert result.artifact is not None
    folder = result.artifact.folder
    assert read_result(folder) == result
    again = evaluate_retrieval(images, texts, captions, folder, protocol="toy", seed=3)
    assert again == result
    with pytest.raises(ArtifactError, match="protocol"):
        evaluate_retrieval(images, texts, captions, folder, protocol="other", seed=3)


def test_plain_files_give_what_artifacts_do(
    scored: tuple[Artifact, Artifact, Artifact, Result], save_array: SaveArray
) -> None:
    files = save_array("i.npy", np.eye(3)[1:]), save_array("t.npy", TEXTS.numpy())
    result = evaluate_retrieval(*files, save_array("o.npy", [0, 0, 1, 1]), protocol="toy", seed=3)
    assert result.metrics == scored[3].metrics and result.n == scored[3].n
    assert result.artifact is None and result.items[""].ids == ("0", "1")
    whole = evaluate_retrieval(
        save_array("all.npy", np.eye(3)), files[1], save_array("p.npy", [1, 1, 2, 2])
    )
    assert whole.n == {"images": 3, "texts": 4, "images_without_text": 1}


def test_missing_and_repeated_captions_are_refused(
    make_features: MakeFeatures, make_captions: MakeCaptions
) -> None:
    images = make_features("images", ["x"], torch.eye(3)[:1])
    texts = make_features("texts", ["c"], torch.eye(3)[:1])
    for name, captions in (
        ("nowhere", [("c", "nowhere")]),
        ("nothing", [("nothing", "x")]),
    ):
        with pytest.raises(DataError, match=name):
            evaluate_retrieval(images, texts, make_captions(name, captions))
    narrow = make_features("narrow", ["c"], torch.eye(2)[:1])
    with pytest.raises(UserError, match="dimensions"):
        evaluate_retrieval(images, narrow, make_captions("one", [("c", "x")]))


@pytest.mark.parametrize(
    ("of_images", "of_texts", "named"),
    [
        ({}, {"encoder": "siglip"}, "siglip"),
        ({"what": "text"}, {}, "features of texts"),
        ({}, {"what": "image"}, "features of images"),
        (
            {"what": "image", "route": "frozen", "weights": "clip"},
            {"what": "text", "route": "real", "weights": "adapted"},
            "frozen",
        ),
    ],
)
def test_features_that_do_not_belong_together_are_refused(
    make_features: MakeFeatures,
    make_captions: MakeCaptions,
    tmp_path: Path,
    of_images: dict[str, str],
    of_texts: dict[str, str],
    named: str,
) -> None:
    images = make_features("images", ["x", "y"], torch.eye(2), **of_images)
    texts = make_features("texts", ["a", "b"], torch.eye(2), **of_texts)
    captions = make_captions("captions", [("a", "x"), ("b", "y")])
    with pytest.raises(DataError, match=named):
        evaluate_retrieval(images, texts, captions, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_texts_that_no_adapter_changes_fit_every_route(
    make_features: MakeFeatures, make_captions: MakeCaptions
) -> None:
    images = make_features("images", ["x", "y"], torch.eye(2), what="image", weights="adapted")
    plain = {"what": "text", "weights": "clip", "route": "frozen"}
    texts = make_features("texts", ["a", "b"], torch.eye(2), **plain)
    captions = make_captions("captions", [("a", "x"), ("b", "y")])
    assert evaluate_retrieval(images, texts, captions).metrics["i2t_r1"].value == 1


def test_bad_arrays_are_refused(save_array: SaveArray, tmp_path: Path) -> None:
    good, owner = save_array("good.npy", np.eye(3)), save_array("owner.npy", [0, 1, 2])
    holed = np.eye(3)
    holed[1, 1] = np.inf
    np.savez(tmp_path / "many.npz", a=np.eye(3))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "empty.npy").write_bytes(b"")
    nested = b"(" * 300 + b"\n"
    (tmp_path / "nested.npy").write_bytes(
        b"\x93NUMPY\1\0" + len(nested).to_bytes(2, "little") + nested + bytes(64)
    )
    huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 512), }\n"
    (tmp_path / "huge.npy").write_bytes(
        b"\x93NUMPY\1\0" + len(huge).to_bytes(2, "little") + huge + bytes(64)
    )
    cases = [
        (save_array("inf.npy", holed), good, owner),
        (save_array("bools.npy", np.eye(3, dtype=bool)), good, owner),
        (save_array("big.npy", 1e200 * np.eye(3)), good, owner),
        (save_array("narrow.npy", np.eye(2)), good, owner),
        (good, good, save_array("floats.npy", [0.0, 1, 2])),
        (good, good, save_array("far.npy", [0, 1, 3])),
        (good, good, save_array("few.npy", [0, 1])),
    ]
    cases += [
        (tmp_path / f"{name}.npy", good, owner)
        for name in ("pickle", "empty", "absent", "nested", "huge")
    ]
    cases += [(tmp_path / "many.npz", good, owner)]
    for images, texts, owners in cases:
        with pytest.raises(UserError, match=r"\.npy|\.npz|images have"):
            evaluate_retrieval(images, texts, owners)
