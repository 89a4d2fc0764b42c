from __future__ import annotations

import gzip

import numpy as np
import pytest
from scipy.optimize import linprog

from gmail_align.errors import DataError
from gmail_align.metrics.caption_scores import WordVectors
from gmail_align.metrics.wmd import (
    STOP_WORDS,
    load_word_vectors,
    train_word_vectors,
    wmd_similarity,
)
from worlds.scoring import caption_metrics

models = pytest.importorskip("gensim.models")
pytest.importorskip("ot")
WORDS = ["ball", "cube", "cone", "red", "blue", "floor", "wood", "stands"]


@pytest.fixture(scope="module")
def vectors():
    result = models.KeyedVectors(vector_size=5)
    table = np.random.default_rng(0).normal(size=(len(WORDS), 5)).astype(np.float32)
    result.add_vectors(WORDS, table)
    return result


def by_linear_programme(first, second, vectors, *, normalise):
    """Word mover's distance as Kusner et al. write it, solved by scipy."""
    unit = lambda v: v / np.linalg.norm(v) if normalise else v  # noqa: E731
    bags = [sorted(set(text)) for text in (first, second)]
    tables = [np.array([unit(vectors[word].astype(float)) for word in bag]) for bag in bags]
    shares = [np.array([text.count(word) / len(text) for word in bag])
              for text, bag in zip((first, second), bags, strict=True)]  # fmt: skip
    costs = np.linalg.norm(tables[0][:, None] - tables[1][None], axis=2)
    rows = np.kron(np.eye(len(bags[0])), np.ones(len(bags[1])))
    columns = np.kron(np.ones(len(bags[0])), np.eye(len(bags[1])))
    solved = linprog(costs.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate(shares))
    return solved.fun


@pytest.mark.parametrize("normalise", [True, False])
def test_it_is_the_distance_of_the_definition_and_of_gensim(vectors, normalise):
    rng = np.random.default_rng(1)
    say = lambda: list(rng.choice(WORDS, size=rng.integers(1, 7)))  # noqa: E731
    pairs = [(say(), say()) for _ in range(40)]
    result = wmd_similarity(
        [" ".join(a) for a, _ in pairs], [[" ".join(b)] for _, b in pairs], vectors,
        normalise=normalise,
    )  # fmt: skip
    solved = [by_linear_programme(a, b, vectors, normalise=normalise) for a, b in pairs]
    theirs = [vectors.wmdistance(a, b, norm=normalise) for a, b in pairs]
    assert result == pytest.approx(np.exp(-np.array(solved)), abs=1e-9)
    assert result == pytest.approx(np.exp(-np.array(theirs)), abs=1e-6)


def test_the_best_reference_counts_and_stop_words_do_not(vectors):
    result = wmd_similarity(
        ["the red ball", "a cube", "unseen words", "is it"],
        [["blue cube", "red ball is here"], ["cone"], ["ball"], ["ball"]],
        vectors,
    )
    assert result[0] == 1 and 0 < result[1] < 1
    assert result[2:].tolist() == [0, 0]
    assert len(STOP_WORDS) == 153


def test_vectors_are_read_in_every_usual_form(tmp_path, vectors):
    vectors.save_word2vec_format(str(tmp_path / "v.txt"))
    vectors.save_word2vec_format(str(tmp_path / "v.bin"), binary=True)
    headless = (tmp_path / "v.txt").read_text().split("\n", 1)[1]
    (tmp_path / "glove.txt").write_text(headless)
    with gzip.open(tmp_path / "glove.txt.gz", "wt") as file:
        file.write(headless)
    for name in ("v.txt", "v.bin", "glove.txt", "glove.txt.gz"):
        again = load_word_vectors(tmp_path / name)
        assert np.allclose(again["ball"], vectors["ball"], atol=1e-6)
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "cut.bin").write_bytes((tmp_path / "v.bin").read_bytes()[:60])
    for name in ("other.json", "cut.bin", "absent.txt"):
        with pytest.raises(DataError, match=name):
            load_word_vectors(tmp_path / name)


def test_training_gives_the_same_vectors_every_time():
    captions = ["a red ball on the floor", "a blue cube", "the red cube stands"] * 5
    first, second = train_word_vectors(captions), train_word_vectors(captions)
    assert np.array_equal(first["red"], second["red"])


def test_wmd_among_the_metrics(vectors):
    pytest.importorskip("pycocoevalcap")
    said, human = {"1": "red ball", "2": "cone"}, {"1": ["red ball"], "2": ["cube"]}
    how = {"metrics": ["WMD"], "pretokenized": True}
    result = caption_metrics(said, human, word_vectors=WordVectors(vectors), **how)
    assert 0.5 < result.metrics["WMD"].value < 1
    trained = caption_metrics(said, human, word_vectors=WordVectors(), **how)
    assert trained.metrics["WMD"].value != result.metrics["WMD"].value
    assert "word vectors" in caption_metrics(said, human, **how).unavailable["WMD"]
