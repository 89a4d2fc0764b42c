from __future__ import annotations

import json
import posixpath
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.captions import (
    Caption,
    CaptionShard,
    cut_captions,
    iter_captions,
    read_captions,
    tidy,
    write_captions,
)
from gmail_align.data.ids import name_id, safe_id
from gmail_align.errors import ArtifactError, DataError


def store(folder: Path, captions: list[Caption]) -> Artifact:
    draft = begin(folder, "captions", {})
    return draft.finish({"captions": write_captions(draft, captions)})


def test_captions_come_back_in_their_order(tmp_path: Path) -> None:
    captions = [Caption("2", "zwei „Bälle“", "b"), Caption("1", "a cat\u00a0", "a")]
    artifact = store(tmp_path / "c", captions)
    assert read_captions(artifact) == captions == list(iter_captions(artifact))
    assert artifact.counts == {"captions": 2}


def test_white_space_is_collapsed() -> None:
    assert tidy("  a\tred \n\n ball\u3000here ") == "a red ball here"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        *((sign * 2, "is empty") for sign in "\u200b\u00ad\u2800\u3164\ufe0f\u034f\u0301"),
        ("a\0b", r"U\+0000"),
        ("a\x07b", r"U\+0007"),
        ("a\ud800b", r"U\+D800"),
        ("x" * 20_001, "20001 characters: at most 20000"),
    ],
)
def test_unusable_texts_are_refused_with_their_reason(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tidy(text)


@pytest.mark.parametrize("text", ["\u2615\ufe0f", "?", "e\u0301", "\u2800 x", "\ua9c1\u0e01"])
def test_what_shows_something_is_a_caption(text: str) -> None:
    assert tidy(text) == text


@pytest.mark.parametrize(
    "value", ["", "../a", "a/b", "a.b", "-a", "a b", "a\0", "é", "x" * 91, "a\n"]
)
def test_unsafe_ids_are_refused(value: str) -> None:
    with pytest.raises(DataError, match="ids are"):
        safe_id(value, "an image")


@pytest.mark.parametrize("value", ["0", "000000391895", "a_b-c", "Z" * 90])
def test_safe_ids_pass(value: str) -> None:
    assert safe_id(value, "an image") == value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1000268201_693b08cb0e.jpg", "1000268201_693b08cb0e"),
        ("apple_pie/1005649.jpg", "apple_pie--1005649"),
        ("a/b/c.d/e.png", None),
        ("a--b.jpg", None),
        ("dir.x/one", None),
        ("two words.jpg", None),
        ("été/Ü.jpg", None),
        ("_.jpg", None),
        ("x" * 200 + ".jpg", None),
    ],
)
def test_names_become_ids(name: str, expected: str | None) -> None:
    made = safe_id(name_id(name), "an image")
    assert len(made) <= 80
    assert made == expected or (expected is None and made[-11] == "-")


@given(st.sets(st.text("ab-_/. é", min_size=1, max_size=12), min_size=2))
def test_different_names_never_give_one_id(names: set[str]) -> None:
    stems = {posixpath.splitext(name)[0] for name in names}
    assert len({name_id(stem + ".jpg") for stem in stems}) == len(stems)


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="caption id 1 comes twice"):
        store(tmp_path / "c", [Caption("1", "a", "a"), Caption("1", "b", "b")])


def test_other_and_damaged_artifacts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds pairs"):
        read_captions(begin(tmp_path / "p", "pairs", {}).finish({}))
    artifact = store(tmp_path / "c", [Caption("1", "a", "a")])
    artifact.path("captions.jsonl").write_text('{"caption_id": "1"')
    with pytest.raises(ArtifactError, match="damaged"):
        read_captions(artifact)


@given(st.lists(st.text("aé\u3000 b", min_size=1), max_size=12), st.integers(1, 5))
def test_shards_of_captions_hold_each_caption_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int
) -> None:
    captions = [Caption(str(n), text, str(n)) for n, text in enumerate(texts)]
    artifact = store(tmp_path_factory.mktemp("captions") / "c", captions)
    shards = cut_captions(artifact, size)
    assert [caption for shard in shards for caption in shard.read(artifact)] == captions
    assert [shard.index for shard in shards] == list(range(-(-len(captions) // size)))


@pytest.mark.parametrize("value", [None, 3, [], {"a": "b"}, "\ud800"])
@pytest.mark.parametrize("key", ["caption_id", "text", "image_id"])
def test_values_that_are_not_text_are_damage(tmp_path: Path, key: str, value: object) -> None:
    artifact = store(tmp_path / "c", [Caption("1", "a", "a")])
    row = {"caption_id": "1", "text": "a", "image_id": "a", key: value}
    artifact.path("captions.jsonl").write_text(json.dumps(row))
    with pytest.raises(ArtifactError, match=r"captions\.jsonl"):
        read_captions(artifact)


def test_a_shard_of_a_damaged_file_is_refused(tmp_path: Path) -> None:
    artifact = store(tmp_path / "c", [Caption("1", "a", "a")])
    with pytest.raises(ArtifactError, match=r"captions\.jsonl"):
        CaptionShard(0, 3, 1).read(artifact)
    artifact.path("captions.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"captions\.jsonl"):
        read_captions(artifact)
