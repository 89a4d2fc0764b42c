"""The words of the tabletop world: noun phrases, floors, sentences, articles and plurals."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from gmail_align.tabletop.facts import Mention

NUMBERS: Final = ("no", "one", "two", "three", "four")

_NOUNS: Final = {
    "ball": ("ball", "ball", "ball", "sphere"),
    "cube": ("cube", "cube", "cube", "block", "box"),
    "cone": ("cone",),
    "cylinder": ("cylinder",),
    None: ("object", "object", "thing"),
}
_SIZES: Final = {"small": ("small", "small", "small", "little"), "large": ("large", "large", "big")}
_MATERIALS: Final = {"shiny": ("shiny", "shiny", "shiny", "glossy"), "matte": ("matte",)}
_ON_FLOOR: Final = {
    "wooden": (
        "on a wooden floor",
        "on a wooden floor",
        "on the wooden floor",
        "on a wooden table",
    ),
    "grey": (
        "on a grey floor",
        "on a grey floor",
        "on the grey floor",
        "on a concrete floor",
        "on grey concrete",
    ),
    "tiled": (
        "on a tiled floor",
        "on a tiled floor",
        "on the tiled floor",
        "on the tiles",
        "on a checkered floor",
    ),
    "grassy": ("on the grass", "on the grass", "in the grass", "on a lawn", "on green grass"),
}
FLOOR_NOUNS: Final = {
    "wooden": ("a wooden floor", "a wooden floor", "a wooden table"),
    "grey": ("a grey floor", "a grey floor", "a concrete floor"),
    "tiled": ("a tiled floor", "a tiled floor", "a checkered floor"),
    "grassy": ("a lawn", "a grassy lawn", "a patch of grass"),
}
WHERE: Final = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "middle": ("in the middle", "in the middle", "in the center"),
}
BETWEEN: Final = {
    "left": ("to the left of", "to the left of", "left of"),
    "right": ("to the right of", "to the right of", "right of"),
    "behind": ("behind",),
    "front": ("in front of",),
    "next": ("next to", "beside"),
}
ITS: Final = {
    "left": "to its left",
    "right": "to its right",
    "behind": "behind it",
    "front": "in front of it",
    "next": "next to it",
}


def article(word: str) -> str:
    """Return the indefinite article that goes before a word."""
    return "an" if word[0] in "aeiou" else "a"


def noun(shape: str | None, rng: random.Random, plural: bool = False) -> str:
    """Return a noun for a shape (or for any thing)."""
    word = rng.choice(_NOUNS[shape])
    return (word + "es" if word.endswith("x") else word + "s") if plural else word


def phrase(mention: Mention, rng: random.Random, determiner: str | None = None) -> str:
    """Return the noun phrase for a mention: "a small shiny red ball", "two blue cubes".

    Args:
        mention: What to name.
        rng: Chooses among synonyms.
        determiner: A word to use in place of the article or number.
    """
    words = []
    if mention.size is not None:
        words.append(rng.choice(_SIZES[mention.size]))
    if mention.material is not None:
        words.append(rng.choice(_MATERIALS[mention.material]))
    if mention.colour is not None:
        words.append(mention.colour)
    words.append(noun(mention.shape, rng, plural=mention.count > 1))
    if determiner is None:
        determiner = NUMBERS[mention.count] if mention.count > 1 else article(words[0])
    return " ".join([determiner, *words])


def listing(parts: Sequence[str]) -> str:
    """Return phrases joined as English does: "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def on_floor(floor: str, rng: random.Random) -> str:
    """Return where things stand: "on a wooden floor"."""
    return rng.choice(_ON_FLOOR[floor])


def sentence(text: str, rng: random.Random | None = None) -> str:
    """Return the text as a sentence; with ``rng``, sometimes without capital or full stop."""
    tidy = " ".join(text.split())
    style = rng.random() if rng is not None else 0.5
    if style < 0.06:
        return tidy + "."
    tidy = tidy[0].upper() + tidy[1:]
    return tidy if style > 0.92 else tidy + "."
