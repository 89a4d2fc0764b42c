from __future__ import annotations

import numpy as np
import pytest

from gmail_align.errors import UserError
from gmail_align.metrics.clipscore import clip_score, ref_clip_score

RNG = np.random.default_rng(0)


def test_it_is_two_and_a_half_cosines_and_never_negative():
    images, captions = np.array([[3.0, 0], [1, 0], [1, 0]]), np.array([[4.0, 3], [0, 2], [-1, 0]])
    assert clip_score(images, captions) == pytest.approx([2.0, 0, 0])


def test_the_reference_score_is_the_published_formula():
    images, captions, references = (RNG.normal(size=(n, 8)) + 1 for n in (4, 4, 9))
    owner = np.array([0, 0, 1, 2, 3, 3, 3, 1, 2])
    scores = clip_score(images, captions)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    expected = []
    for row in range(4):  # as the authors' script: candidate against its own references
        best = (unit(captions)[row] @ unit(references)[owner == row].T).max()
        expected.append(2 * scores[row] * best / (scores[row] + best))
    assert ref_clip_score(scores, captions, references, owner) == pytest.approx(expected)


def test_nothing_in_common_scores_zero():
    captions, references = np.array([[1.0, 0]]), np.array([[-1.0, 0]])
    assert ref_clip_score(np.zeros(1), captions, references, np.array([0])).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clip_score(np.ones((2, 3)), np.ones((3, 3))), "do not pair"),
        (lambda: clip_score(np.ones((2, 3)), np.zeros((2, 3))), "2 caption features are zero"),
        (
            lambda: ref_clip_score(np.ones(2), np.ones((2, 3)), np.ones((1, 2)), np.array([0])),
            "fit",
        ),
        (
            lambda: ref_clip_score(np.ones(2), np.ones((2, 3)), np.ones((1, 3)), np.array([0])),
            "1 captions have no reference",
        ),
    ],
)
def test_refuses(call, words):
    with pytest.raises(UserError, match=words):
        call()
