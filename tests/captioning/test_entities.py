from __future__ import annotations

import math
from pathlib import Path

import pytest

from gmail_align.captioning.ifcap.entities import (
    adaptive,
    common,
    count_nouns,
    frequent,
    hard_prompt,
    nouns,
    read_vocabulary,
)
from gmail_align.errors import DataError, MissingExtraError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "A black dog runs through the green grass with a ball in its mouth.",
            ["dog", "grass", "ball", "mouth"],
        ),
        ("Two children are playing soccer on the beach.", ["person", "soccer", "beach"]),
        ("A man and a woman ride bikes past dogs.", ["person", "bike", "dog"]),
        ("Running quickly!", []),
    ],
)
def test_nouns_are_singular_and_people_are_persons(text: str, expected: list[str]) -> None:
    result = nouns(text)
    assert [noun for noun in result if noun in expected] == expected
    assert len(result) <= len(expected) + 1


def test_the_tagger_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from gmail_align.captioning.ifcap.entities import _language

    _language.cache_clear()
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    monkeypatch.setitem(sys.modules, "textblob", None)
    with pytest.raises(MissingExtraError, match=r"gmail-align\[ifcap\]"):
        nouns("a dog")
    monkeypatch.undo()
    _language.cache_clear()
    assert nouns("a dog") == ["dog"]


def test_counts_are_of_captions_that_hold_an_object() -> None:
    captions = [["dog", "ball"], ["dog", "sky"], ["person", "dog"], ["ball"]]
    counts = count_nouns(captions, {"dog", "ball"})
    assert counts == {"dog": 3, "ball": 2, "person": 1}
    assert frequent(counts, 2) == ["dog", "ball"]
    assert frequent(counts, 4) == []
    assert common(captions, 2) == {"dog", "ball"}


def test_equally_frequent_nouns_are_in_the_order_of_the_alphabet() -> None:
    assert frequent({"tree": 2, "ball": 2, "dog": 3}, 2) == ["dog", "ball", "tree"]


def test_the_adaptive_threshold_is_mean_and_deviations() -> None:
    counts = {"dog": 9, "ball": 2, "sky": 1, "tree": 1}
    mean = 13 / 4
    deviation = math.sqrt(sum((c - mean) ** 2 for c in (9, 2, 1, 1)) / 4)
    assert mean + deviation < 9
    assert adaptive(counts, 1.0, "normal") == ["dog"]
    assert adaptive(counts, -0.4, "normal") == [
        n for n in counts if counts[n] > mean - 0.4 * deviation
    ]
    logs = [math.log(c) for c in (9, 2, 1, 1)]
    middle = sum(logs) / 4
    assert adaptive(counts, 0.0, "log_normal") == [
        n for n in counts if math.log(counts[n]) > middle
    ]
    assert adaptive({}, 1.0, "normal") == []


def test_the_hard_prompt_is_that_of_ifcap() -> None:
    assert hard_prompt(["dog", "ball"]) == "There are dog, ball in image."
    assert hard_prompt([]) == "There are something in image."


def test_a_vocabulary_is_a_file_of_words(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Dog\n\n ball \n")
    assert read_vocabulary(tmp_path / "words.txt") == {"dog", "ball"}
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="empty.txt"):
        read_vocabulary(tmp_path / "empty.txt")
    with pytest.raises(DataError, match="absent"):
        read_vocabulary(tmp_path / "absent.txt")
