from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gmail_align.artifacts import Artifact, begin, load, write_jsonl
from gmail_align.cli.main import app
from gmail_align.data.captions import Caption, read_captions, write_captions
from gmail_align.data.pairs import PAIRS, read_pairs
from gmail_align.data.subsets import choose_captions, choose_pairs, split
from gmail_align.errors import UserError


@pytest.fixture
def captions(tmp_path: Path) -> Artifact:
    """Three captions of each of twenty images, which do not come together."""
    draft = begin(tmp_path / "captions", "captions", {}, {})
    rows = [Caption(f"{n}-{k}", f"text {n} {k}", str(n)) for k in range(3) for n in range(20)]
    return draft.finish({"captions": write_captions(draft, rows)})


@pytest.fixture
def pairs(tmp_path: Path) -> Artifact:
    draft = begin(tmp_path / "pairs", "pairs", {}, {})
    rows = [
        {
            "caption_id": f"{n}-{k}",
            "text": "a text",
            "real_image_id": str(n),
            "generated_image_id": f"{n}-{k}-0",
        }
        for n in range(20)
        for k in range(2)
    ]
    write_jsonl(draft.path(PAIRS), rows)
    return draft.finish({"pairs": len(rows)})


def images(artifact: Artifact) -> set[str]:
    return {row.image_id for row in read_captions(artifact)}


def test_some_captions_of_every_image(captions: Artifact, tmp_path: Path) -> None:
    chosen = choose_captions(captions, 1, tmp_path / "out")
    rows = list(read_captions(chosen))
    assert [row.image_id for row in rows].count("7") == 1
    assert len(rows) == 20 == chosen.manifest["counts"]["captions"]
    before = [row.caption_id for row in read_captions(captions)]
    assert [before.index(row.caption_id) for row in rows] == sorted(
        before.index(row.caption_id) for row in rows
    )


def test_a_larger_choice_of_images_contains_a_smaller_one(
    captions: Artifact, tmp_path: Path
) -> None:
    five = choose_captions(captions, None, tmp_path / "a", images=5.0)
    half = choose_captions(captions, None, tmp_path / "b", images=0.5)
    other = choose_captions(captions, None, tmp_path / "c", images=5.0, seed=1)
    assert five.manifest["counts"] == {"captions": 15, "images": 5}
    assert len(images(half)) == 10 and images(five) < images(half)
    assert images(other) != images(five)
    assert images(choose_captions(captions, None, tmp_path / "d", images=99.0)) == images(captions)


def test_pairs_of_the_same_images_as_the_captions(
    captions: Artifact, pairs: Artifact, tmp_path: Path
) -> None:
    chosen = choose_pairs(pairs, 5.0, tmp_path / "a")
    result = {row.real_image_id for row in read_pairs(chosen)}
    assert result == images(choose_captions(captions, None, tmp_path / "b", images=5.0))
    assert chosen.manifest["counts"] == {"pairs": 10, "real_images": 5}


def test_the_rest_is_what_the_same_choice_leaves(
    captions: Artifact, pairs: Artifact, tmp_path: Path
) -> None:
    every = {row.caption_id for row in read_captions(captions)}
    for name, each, some in (("images", None, 5), ("each", 1, None), ("both", 2, 5)):
        parts = [
            choose_captions(captions, each, tmp_path / f"{name}{rest}", images=some, rest=rest)
            for rest in (False, True)
        ]
        first, second = ({row.caption_id for row in read_captions(part)} for part in parts)
        assert first | second == every and not first & second
        assert parts[1].counts == {"captions": len(second), "images": len(images(parts[1]))}
    words = ["choose", str(pairs.folder), "--images", "5", "--rest", "--out", str(tmp_path / "p")]
    assert CliRunner().invoke(app, words).exit_code == 0
    left = {row.real_image_id for row in read_pairs(load(tmp_path / "p"))}
    assert left == images(captions) - images(load(tmp_path / "imagesFalse"))
    with pytest.raises(UserError, match="captions"):
        choose_captions(captions, None, tmp_path / "all", images=1.0, rest=True)


@pytest.mark.parametrize("number", [0.0, -1.0])
def test_a_number_above_zero_is_asked_for(pairs: Artifact, tmp_path: Path, number: float) -> None:
    with pytest.raises(UserError, match="above 0"):
        choose_pairs(pairs, number, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("captions", [], "nothing says how many"),
        ("pairs", ["--each", "1"], "with --images"),
        ("captions", ["--images", "-1"], "above 0"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    captions: Artifact, pairs: Artifact, tmp_path: Path, kind: str, words: list[str], said: str
) -> None:
    call = ["choose", str(tmp_path / kind), "--out", str(tmp_path / "out"), *words]
    ran = CliRunner().invoke(app, call)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_share_of_one_keeps_all_images_and_the_number_one_keeps_one(
    captions: Artifact, pairs: Artifact, tmp_path: Path
) -> None:
    assert len(images(choose_captions(captions, None, tmp_path / "a", images=1.0))) == 20
    assert len(images(choose_captions(captions, None, tmp_path / "b", images=1))) == 1
    for text, count in (("1.0", 20), ("1", 1), ("0.25", 5)):
        words = ["choose", str(pairs.folder), "--images", text, "--out", str(tmp_path / text)]
        assert CliRunner().invoke(app, words).exit_code == 0
        assert load(tmp_path / text).counts["real_images"] == count
    ran = CliRunner().invoke(app, ["choose", str(pairs.folder), "--images", "x", "--out", "o"])
    assert ran.exit_code == 2


def test_a_split_shares_no_image_and_loses_none(captions: Artifact, tmp_path: Path) -> None:
    made = split(captions, {"test": 0.2, "validation": 0.1}, tmp_path / "cut")
    assert {name: len(images(one)) for name, one in made.items()} == {
        "test": 4,
        "validation": 2,
        "train": 14,
    }
    assert set().union(*map(images, made.values())) == images(captions)
    assert sum(one.counts["captions"] for one in made.values()) == 60
    other = split(captions, {"test": 0.2}, tmp_path / "other", seed=1)
    assert images(other["test"]) != images(made["test"])


def test_pairs_are_split_by_their_real_images(pairs: Artifact, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["split", str(pairs.folder), "--out", str(tmp_path / "cut")])
    assert ran.exit_code == 0, ran.stderr
    parts = [read_pairs(load(tmp_path / "cut" / name)) for name in ("train", "validation", "test")]
    assert [len({row.real_image_id for row in rows}) for rows in parts] == [16, 2, 2]


@pytest.mark.parametrize("shares", [{"test": 1.0}, {"test": 0.6, "validation": 0.4}, {"x": 0.01}])
def test_a_split_that_leaves_a_part_empty(
    captions: Artifact, tmp_path: Path, shares: dict[str, float]
) -> None:
    with pytest.raises(UserError, match="share"):
        split(captions, shares, tmp_path / "cut")
