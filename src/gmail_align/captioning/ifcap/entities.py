"""Nouns of captions, and IFCap's hard prompt made of them.

Lee et al., "IFCap: Image-like Retrieval and Frequency-based Entity Filtering for Zero-shot
Captioning" (2024). Nouns come from TextBlob's tagger, whose lexicon is part of the package.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from gmail_align.errors import DataError, damage_explained
from gmail_align.extras import require

PERSON = "person"
PEOPLE = frozenset(
    {
        *("person", "people", "adult", "baby", "child", "children", "kid", "boy", "girl", "guy"),
        *("man", "men", "woman", "women", "male", "female", "player", "worker"),
    }
)
"""Words that IFCap replaces by ``person``."""


@lru_cache(maxsize=1)
def _language() -> tuple[Any, Any]:
    """Return TextBlob's tagger and its way from plural to singular.

    Raises:
        MissingExtraError: TextBlob is not installed.
    """
    english = require("textblob.en", "ifcap")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its lexicon's file open
        english.tag("a")
    return english.tag, require("textblob.en.inflect", "ifcap").singularize


def nouns(text: str) -> list[str]:
    """Return the nouns of a caption in their order: lower case, singular, each once.

    Words for people become ``person``.

    Raises:
        MissingExtraError: TextBlob is not installed.
    """
    tag, singular = _language()
    named = []
    for word, kind in tag(text):
        noun = word.lower()
        if kind not in ("NN", "NNS") or not noun.isalpha() or len(noun) < 2:
            continue
        noun = PERSON if noun in PEOPLE else singular(noun) if kind == "NNS" else noun
        named.append(PERSON if noun in PEOPLE else noun)
    return list(dict.fromkeys(named))


def common(captions: Iterable[Sequence[str]], least: int) -> set[str]:
    """Return the nouns that at least ``least`` captions hold: a vocabulary of objects."""
    counts = Counter(noun for some in captions for noun in some)
    return {noun for noun, count in counts.items() if count >= least}


def read_vocabulary(path: Path) -> set[str]:
    """Read objects from a text file, one a line.

    Raises:
        DataError: the file cannot be read or holds nothing.
    """
    with damage_explained(path, DataError, "give a text file with one object a line"):
        words = {line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines()}
    words.discard("")
    if not words:
        raise DataError(f"the vocabulary {path} is empty: give one object a line")
    return words


def count_nouns(captions: Iterable[Sequence[str]], vocabulary: Collection[str]) -> Counter[str]:
    """Count the captions that hold each noun of the vocabulary (or a person)."""
    return Counter(
        noun for some in captions for noun in some if noun in vocabulary or noun == PERSON
    )


def frequent(counts: Mapping[str, int], least: int) -> list[str]:
    """Return the nouns that ``least`` retrieved captions hold, the most frequent first (Sec. 3.3).

    Equally frequent ones are in the order of the alphabet.
    """
    return _sorted(counts, {noun for noun, count in counts.items() if count >= least})


def adaptive(
    counts: Mapping[str, int], alpha: float, scale: Literal["normal", "log_normal"]
) -> list[str]:
    """Return the nouns whose count lies above mean + ``alpha`` deviations, of counts or their logs.

    IFCap's adaptive threshold, for data whose best number is not known.
    """
    if not counts:
        return []
    values = {
        noun: math.log(count) if scale == "log_normal" else float(count)
        for noun, count in counts.items()
    }
    mean = sum(values.values()) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values.values()) / len(values))
    return _sorted(counts, {n for n, value in values.items() if value > mean + alpha * deviation})


def hard_prompt(objects: Sequence[str]) -> str:
    """Say what is in an image, in the words of IFCap's template."""
    return f"There are {', '.join(objects) or 'something'} in image."


def _sorted(counts: Mapping[str, int], kept: Collection[str]) -> list[str]:
    return sorted(kept, key=lambda noun: (-counts[noun], noun))
