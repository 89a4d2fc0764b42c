from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmail_align.data.ids import key_id
from gmail_align.errors import DataError
from gmail_align.vlm.conversations import (
    Conversation,
    Turn,
    caption_conversations,
    read_conversations,
)
from worlds.encoders import World


def write(path: Path, samples: object) -> Path:
    path.write_text(json.dumps(samples))
    return path


def said(*values: str) -> list[dict[str, str]]:
    roles = ("human", "gpt")
    return [{"from": roles[n % 2], "value": value} for n, value in enumerate(values)]


def test_llavas_format_is_read(tmp_path: Path) -> None:
    samples = [
        {"id": 7, "image": "coco/train/1.jpg", "conversations": said("<image>\nWhat?", "red")},
        {"conversations": [{"from": "system", "value": "Be kind."}, *said("a", "b", "c", "d")]},
    ]
    expected = [
        Conversation("7", (Turn("<image>\nWhat?", "red"),), ("coco--train--1",)),
        Conversation("1", (Turn("a", "b"), Turn("c", "d")), (), "Be kind."),
    ]
    assert list(read_conversations(write(tmp_path / "a.json", samples))) == expected
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, samples)) + "\n\n")
    assert list(read_conversations(lines)) == expected


@pytest.mark.parametrize(
    ("sample", "named"),
    [
        ({"id": "s7", "conversations": said("a")}, "sample s7 .* without an answer"),
        ({"id": "s7", "conversations": said("a", "b", "c")}, "sample s7 .* without an answer"),
        ({"id": "s7", "conversations": said("a", "b")[::-1]}, "sample s7 .* alternate"),
        ({"id": "s7", "conversations": said("a", "b")[1:]}, "sample s7 .* alternate"),
        ({"id": "s7", "conversations": [{"from": "human"}, {"from": "gpt"}]}, "s7 .* not text"),
        ({"id": "s7", "conversations": [said("a")[0], {"from": "gpt", "value": 3}]}, "not text"),
        ({"id": "s7", "conversations": ["a", "b"]}, "sample s7 .* not text"),
        ({"id": "s7", "image": "x.jpg", "conversations": said("a", "b")}, "sample s7"),
        ({"id": "s7", "image": 5, "conversations": said("a", "b")}, "sample s7"),
        ({"id": "s7", "image": [{"path": "x"}], "conversations": said("a", "b")}, "sample s7"),
        ({"id": "s7", "image": True, "conversations": said("a", "b")}, "sample s7"),
        ({"id": "s7"}, "sample 0"),
        ("text", "sample 0"),
    ],
)
def test_what_is_not_a_conversation_is_named(tmp_path: Path, sample: object, named: str) -> None:
    with pytest.raises(DataError, match=named):
        list(read_conversations(write(tmp_path / "a.json", [sample])))


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"conversations": said("one\u2028two\x85", "three")}] * 2
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8-sig")
    turns = [sample.turns[0].prompt for sample in read_conversations(tmp_path / "a.jsonl")]
    assert turns == ["one\u2028two\x85"] * 2


def test_of_two_images_that_differ_in_their_suffix_each_has_its_own_sample(tmp_path: Path) -> None:
    names = ["1.jpg", "1.png", "2.png"]
    samples = [{"image": name, "conversations": said("<image>", name)} for name in names]
    known = {"1": "1.jpg", key_id("1.png"): "1.png", "2": "2.png"}
    for sample in read_conversations(write(tmp_path / "a.json", samples), known):
        assert known[sample.image_ids[0]] == sample.turns[0].answer


def test_files_that_are_not_lists_are_refused(tmp_path: Path) -> None:
    for content in ("{}", "[]", "nothing", "[" * 10**5, '[{"id": "\\ud800"}]'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=r"bad\.json"):
            list(read_conversations(tmp_path / "bad.json"))
    with pytest.raises(DataError, match=r"absent\.json"):
        list(read_conversations(tmp_path / "absent.json"))


def test_captions_become_instructions(world: World) -> None:
    rows = list(caption_conversations(("r3", "r0"), world.captions, "Describe it."))
    assert [row.image_ids for row in rows] == [("r0",), ("r0",), ("r3",), ("r3",)]
    assert rows[0].turns == (Turn("<image>\nDescribe it.", "a red image of tone 0 0"),)
    assert len({row.sample_id for row in rows}) == 4
