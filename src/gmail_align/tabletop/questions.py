"""Multiple-choice questions about a scene, with exact answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gmail_align.tabletop.facts import related
from gmail_align.tabletop.scenes import COLOURS, FLOORS, MATERIALS, SHAPES, SIZES, Scene, Thing
from gmail_align.tabletop.words import NUMBERS, article

_FLOOR_NAMES = dict(
    zip(FLOORS, ("a wooden floor", "a grey floor", "a tiled floor", "grass"), strict=True)
)


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    Attributes:
        question: The question, ending in a question mark.
        choices: The answers offered, all different.
        answer: Index of the right one.
        subject: counting, colour, shape, size, material, relation, floor or existence.
        things: The things of the scene that it speaks of, by their index; where it asks after an
            absent one, the thing that is asked after in its place.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str
    things: tuple[int, ...] = ()

    @property
    def right(self) -> str:
        """The right answer."""
        return self.choices[self.answer]


def questions(scene: Scene) -> list[Question]:
    """Return every question the scene answers without doubt, in a fixed order."""
    rng = random.Random(f"questions:{scene.noise_seed}:{scene.signature()}")
    asked = [
        Question("How many objects are there?", NUMBERS[1:], len(scene.things) - 1, "counting"),
        _choose(
            "What are the objects standing on?",
            _FLOOR_NAMES[scene.floor],
            list(_FLOOR_NAMES.values()),
            "floor",
            rng,
        ),
    ]
    for number, thing in enumerate(scene.things):
        asked += [replace(one, things=(number,)) for one in _about(scene, thing, rng)]
    for first, one in enumerate(scene.things):
        for second, other in enumerate(scene.things):
            if first < second:
                asked += _relations(scene, (first, one), (second, other))
    return asked


def _choose(
    text: str, right: str, pool: Sequence[str], subject: str, rng: random.Random
) -> Question:
    """Return a question that offers the right answer among up to three wrong ones, shuffled."""
    wrong = [choice for choice in pool if choice != right]
    choices = [right, *rng.sample(wrong, min(3, len(wrong)))]
    rng.shuffle(choices)
    return Question(text, tuple(choices), choices.index(right), subject)


def _only(scene: Scene, **attributes: str) -> bool:
    """Return whether exactly one thing has these attributes."""
    return (
        sum(
            all(getattr(t, name) == value for name, value in attributes.items())
            for t in scene.things
        )
        == 1
    )


def _about(scene: Scene, thing: Thing, rng: random.Random) -> list[Question]:
    """Return the questions about one thing, named by an attribute that it alone has."""
    asked = []
    if _only(scene, shape=thing.shape):
        asked.append(
            _choose(
                f"What colour is the {thing.shape}?", thing.colour, list(COLOURS), "colour", rng
            )
        )
    if _only(scene, colour=thing.colour):
        asked.append(
            _choose(f"What shape is the {thing.colour} object?", thing.shape, SHAPES, "shape", rng)
        )
    if _only(scene, colour=thing.colour, shape=thing.shape):
        name = f"{thing.colour} {thing.shape}"
        asked.append(
            Question(
                f"Is the {name} matte or shiny?",
                MATERIALS,
                MATERIALS.index(thing.material),
                "material",
            )
        )
        asked.append(
            Question(f"Is the {name} small or large?", SIZES, SIZES.index(thing.size), "size")
        )
    return asked


def _relations(scene: Scene, one: tuple[int, Thing], other: tuple[int, Thing]) -> list[Question]:
    """Return the questions about how two things stand, where names and margins are clear."""
    (first, a), (second, b) = one, other
    if not all(_only(scene, colour=t.colour, shape=t.shape) for t in (a, b)):
        return []
    names = f"the {a.colour} {a.shape}", f"the {b.colour} {b.shape}"
    asked = []
    for near, far, choices in (
        ("left", "right", ("left", "right")),
        ("front", "behind", ("in front", "behind")),
    ):
        kinds = [related(scene, near, first, second), related(scene, far, first, second)]
        if any(kinds):
            where = "to the left or to the right of" if near == "left" else "in front of or behind"
            text = f"Is {names[0]} {where} {names[1]}?"
            asked.append(Question(text, choices, kinds.index(True), "relation", (first, second)))
    return asked


def existence(scene: Scene) -> list[Question]:
    """Ask after every kind of thing once, and each time after one that the scene does not have."""
    rng = random.Random(f"existence:{scene.noise_seed}:{scene.signature()}")
    here = {(thing.colour, thing.shape): k for k, thing in enumerate(scene.things)}
    absent = [one for one in itertools.product(COLOURS, SHAPES) if one not in here]
    asked = []
    for (named, number), other in zip(here.items(), rng.sample(absent, len(here)), strict=True):
        asked += [_is_there(named, 0, number), _is_there(other, 1, number)]
    return asked


def _is_there(named: tuple[str, str], answer: int, thing: int) -> Question:
    colour, shape = named
    text = f"Is there {article(colour)} {colour} {shape}?"
    return Question(text, ("yes", "no"), answer, "existence", (thing,))
