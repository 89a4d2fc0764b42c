from __future__ import annotations

from pathlib import Path

import pytest

from gmail_align.artifacts import Artifact, begin, write_jsonl
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.ids import ByCaption
from gmail_align.data.joins import caption_texts, match_captions
from gmail_align.data.pairs import PAIRS
from gmail_align.errors import ArtifactError, DataError


@pytest.fixture
def captions(tmp_path: Path) -> Artifact:
    draft = begin(tmp_path / "captions", "captions", {})
    rows = [("c1", "a ball", "x"), ("c2", "the ball", "x"), ("c3", "a ball", "x"), ("d", "on", "y")]
    count = write_captions(draft, [Caption(*row) for row in rows])
    return draft.finish({"captions": count})


@pytest.fixture
def pairs(tmp_path: Path) -> Artifact:
    draft = begin(tmp_path / "pairs", "pairs", {})
    keys = ("caption_id", "text", "real_image_id", "generated_image_id")
    rows = [
        ("c1", "a ball", "x", "c1-0"),
        ("c1", "a ball", "x", "c1-1"),
        ("c3", "a ball", "x", "c3-0"),
        ("d", "on", "y", "d-0"),
    ]
    write_jsonl(draft.path(PAIRS), [dict(zip(keys, row, strict=True)) for row in rows])
    return draft.finish({"pairs": len(rows)})


def test_captions_of_real_images_come_once_each(captions: Artifact, pairs: Artifact) -> None:
    """Two captions of one image may have the same words; both count."""
    assert list(match_captions(["y", "x", "z"], captions)) == [
        ("x", "a ball"),
        ("x", "the ball"),
        ("x", "a ball"),
        ("y", "on"),
    ]
    assert list(match_captions(["x"], pairs)) == [("x", "a ball"), ("x", "a ball")]


def test_generated_images_have_the_caption_that_they_were_made_from(
    captions: Artifact, pairs: Artifact
) -> None:
    names = ["d-0", "c1-10", "c1-2", "c2-0", "other-0", "c1"]
    assert list(match_captions(names, captions)) == [
        ("c1-2", "a ball"),
        ("c1-10", "a ball"),
        ("c2-0", "the ball"),
        ("d-0", "on"),
    ]
    assert list(match_captions(["d-0", "c1-1", "c9-0"], pairs)) == [
        ("c1-1", "a ball"),
        ("d-0", "on"),
    ]


def test_generated_ids_are_grouped_by_caption_and_sorted_by_number() -> None:
    images = ByCaption(["a-b-10", "a-b-9", "a-b", "plain", "c-x"])
    assert images.names(["a-b", "a", "c", ""]) == [["a-b-9", "a-b-10"], [], [], []]
    assert images.rows(["c", "a-b"]) == [[], [1, 0]]


def test_images_without_captions_are_refused(captions: Artifact, pairs: Artifact) -> None:
    for artifact in (captions, pairs):
        with pytest.raises(DataError, match=artifact.folder.name):
            list(match_captions(["c9-0", "w"], artifact))


def test_texts_of_captions_or_of_pairs(captions: Artifact, pairs: Artifact) -> None:
    assert caption_texts(captions) == {"c1": "a ball", "c2": "the ball", "c3": "a ball", "d": "on"}
    assert caption_texts(pairs) == {"c1": "a ball", "c3": "a ball", "d": "on"}


def test_other_artifacts_are_refused(tmp_path: Path) -> None:
    other = begin(tmp_path / "images", "images", {}).finish({})
    with pytest.raises(ArtifactError, match="images"):
        list(match_captions(["x"], other))
