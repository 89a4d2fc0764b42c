"""Conversations about one side of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmail_align.artifacts import Artifact, read_jsonl
from gmail_align.data.pairs import Pair, read_pairs
from gmail_align.errors import DataError
from gmail_align.vlm.conversations import Turn, read_conversations
from gmail_align.vlm.instructions import talks_of, write_instructions
from gmail_align.vlm.training import ConversationSet
from worlds.encoders import World


def about(pair: Pair) -> list[Turn]:
    return [Turn("Who?", pair.real_image_id), Turn("Which?", pair.caption_id)]


def test_captions_and_answers_are_said_about_one_side(world: World, tmp_path: Path) -> None:
    made = write_instructions(
        world.pairs, "generated", tmp_path / "said", prompt="What?", asked=about
    )
    pairs = read_pairs(world.pairs)
    rows = list(read_conversations(made))
    assert [row.image_ids for row in rows] == [(pair.generated_image_id,) for pair in pairs]
    places = set()
    for pair, row in zip(pairs, rows, strict=True):
        answers = {turn.prompt.removeprefix("<image>\n"): turn.answer for turn in row.turns}
        assert answers == {
            "What?": pair.text,
            "Who?": pair.real_image_id,
            "Which?": pair.caption_id,
        }
        assert row.turns[0].prompt.startswith("<image>\n")
        places.add([turn.answer for turn in row.turns].index(pair.text))
    assert places == {0, 1, 2}
    sets = ConversationSet(made, world.generated)
    assert len(list(sets.read(""))) == len(pairs)
    with pytest.raises(DataError, match=rows[0].image_ids[0]):
        list(ConversationSet(made, world.real).read(""))


def test_a_file_about_real_images_speaks_once_of_each(world: World, tmp_path: Path) -> None:
    file = tmp_path / "talks.json"

    def said(*images: str) -> Artifact:
        talk = [{"from": "human", "value": "<image>\nHow?"}, {"from": "gpt", "value": "so"}]
        rows = [{"id": name, "image": f"{name}.jpg", "conversations": talk} for name in images]
        file.write_text(json.dumps(rows))
        out = tmp_path / "-".join(images)
        return write_instructions(world.pairs, "generated", out, asked=talks_of(file))

    first = next(p for p in read_pairs(world.pairs) if p.real_image_id == "r1")
    (row,) = read_jsonl(said("r1").path("conversations.jsonl"))
    assert row["image"] == first.generated_image_id
    assert [turn["value"] for turn in row["conversations"]] == ["<image>\nHow?", "so"]
    with pytest.raises(DataError, match="nothing is asked"):
        said("absent")


def test_a_sample_about_two_images_is_refused(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "so"}]
    file = tmp_path / "talks.json"
    file.write_text(json.dumps([{"id": "both", "image": ["a", "b"], "conversations": talk}]))
    with pytest.raises(DataError, match="both"):
        talks_of(file)
