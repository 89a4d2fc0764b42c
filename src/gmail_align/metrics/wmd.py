"""WMD: similarity of captions by word mover's distance, with gensim's vectors and POT's solver.

Kusner et al. (2015) measure how far the words of one text must travel to become another's;
Kilickaya et al. (2017) made a caption metric of it: exp(-distance), 0..1, higher is better.
"""

from __future__ import annotations

import gzip
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gmail_align.errors import DataError, damage_explained
from gmail_align.extras import require
from gmail_align.metrics.bootstrap import Values

_STOP_WORDS = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she
    her hers herself it its itself they them their theirs themselves what which who whom this that
    these those am is are was were be been being have has had having do does did doing a an the and
    but if or because as until while of at by for with about against between into through during
    before after above below to from up down in out on off over under again further then once here
    there when where why how all any both each few more most other some such no nor not only own
    same so than too very s t can will just don should now d ll m o re ve y ain aren couldn didn
    doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""The 153 English stop words that the published caption metric leaves out."""

_TRAINED = {"vector_size": 100, "window": 5, "min_count": 1, "epochs": 10, "sg": 1, "seed": 0}


def load_word_vectors(path: Path) -> Any:
    """Read word vectors as gensim's ``KeyedVectors``.

    Args:
        path: word2vec's format, binary (``.bin``, ``.bin.gz``) or text, or GloVe's text, which has
            no line of counts first.

    Raises:
        DataError: the file cannot be read or is something else.
        MissingExtraError: gensim is not installed.
    """
    vectors = require("gensim.models", "captions").KeyedVectors
    if not path.is_file():
        raise DataError(f"there are no word vectors at {path}: give a word2vec or GloVe file")
    binary = ".bin" in path.suffixes
    with damage_explained(path, DataError, "give word vectors of word2vec or GloVe"):
        headless = not binary and _is_headless(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # gensim reads a headless file twice
            return vectors.load_word2vec_format(str(path), binary=binary, no_header=headless)


def train_word_vectors(captions: Sequence[str]) -> Any:
    """Train word vectors on tokenised captions: word2vec, skip-gram, 100 dimensions, 10 epochs.

    One thread and a fixed seed, so equal captions give equal vectors. They know only these
    captions: such a WMD compares captioners on one data set, and with no published number.

    Raises:
        MissingExtraError: gensim is not installed.
    """
    model = require("gensim.models", "captions").Word2Vec
    texts = [caption.split() for caption in captions]
    return model(texts, workers=1, **_TRAINED).wv


def wmd_similarity(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    vectors: Any,
    *,
    normalise: bool = True,
) -> Values:
    """Return WMD similarity of each image: the best of its references.

    Stop words, and words without a vector, are left out; a caption with no word left scores 0.

    Args:
        captions: one tokenised caption an image.
        references: for each image, its tokenised captions.
        vectors: gensim's ``KeyedVectors``.
        normalise: give every word vector unit length, as gensim does from version 4 on; distances
            are then at most 2. Without, vectors as they are, as published numbers of 2017 to 2020
            had them: they are much lower.

    Raises:
        MissingExtraError: gensim or POT is not installed.
    """
    solve = require("ot", "captions").emd2
    known = {word for text in _all(captions, references) for word in text.split()}
    known = {word for word in known - STOP_WORDS if word in vectors}
    table = {word: _vector(vectors, word, normalise=normalise) for word in known}
    bags = {text: _bag(text, table) for text in _all(captions, references)}
    nearest: dict[tuple[str, tuple[str, ...]], float] = {}
    paired = zip(captions, references, strict=True)
    rows = [(text, tuple(sorted(set(some)))) for text, some in paired]
    for row in rows:
        if row not in nearest:
            nearest[row] = _nearest(bags[row[0]], [bags[text] for text in row[1]], solve)
    similarity: Values = np.exp(-np.array([nearest[row] for row in rows]))
    return similarity


Bag = tuple[tuple[str, ...], Values, Values]
"""The different words of a text, their shares and their vectors."""


def _all(captions: Sequence[str], references: Sequence[Sequence[str]]) -> set[str]:
    return {*captions, *(text for some in references for text in some)}


def _vector(vectors: Any, word: str, *, normalise: bool) -> Values:
    vector = np.asarray(vectors[word], dtype=np.float64)
    length = float(np.linalg.norm(vector))
    return vector / length if normalise and length > 0 else vector


def _bag(text: str, table: Mapping[str, Values]) -> Bag | None:
    """Return a text's words in the order of first use; None where it has none with a vector."""
    counts = Counter(word for word in text.split() if word in table)
    if not counts:
        return None
    shares = np.array(list(counts.values()), dtype=np.float64)
    return tuple(counts), shares / shares.sum(), np.stack([table[word] for word in counts])


def _nearest(text: Bag | None, others: Sequence[Bag | None], solve: Any) -> float:
    """Return the distance to the nearest of some texts, infinite where there are no words.

    Transport is solved only where its lower bound leaves hope: each word of one text cannot travel
    less than to the nearest word of the other (Kusner et al., 2015, section 4).
    """
    known = [] if text is None else [other for other in others if other is not None]
    if text is None or any(_same(text, other) for other in known):
        return 0.0 if known else np.inf
    offers = []
    for at, other in enumerate(known):
        costs = np.linalg.norm(text[2][:, None] - other[2][None], axis=-1)
        bound = max(text[1] @ costs.min(1), other[1] @ costs.min(0))
        offers.append((bound, at, costs))
    best = np.inf
    for bound, at, costs in sorted(offers, key=lambda offer: offer[:2]):
        if bound < best:
            solved = solve(text[1], known[at][1], costs, check_marginals=False, center_dual=False)
            best = min(best, float(solved))
    return best


def _same(first: Bag, second: Bag) -> bool:
    """Whether two texts hold the same words in the same shares."""
    words, others = (dict(zip(*bag[:2], strict=True)) for bag in (first, second))
    return words == others


def _is_headless(path: Path) -> bool:
    """Whether the first line already holds a vector, and no two counts."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as file:
        return len(file.readline(1 << 20).split()) != 2
