"""Class sets for zero-shot classification: names, prompts, and the class of a scene."""

from __future__ import annotations

from typing import Final

from gmail_align.errors import DataError
from gmail_align.tabletop.facts import places
from gmail_align.tabletop.scenes import COLOURS, FLOORS, MATERIALS, SHAPES, Scene
from gmail_align.tabletop.words import NUMBERS, article

_SETS: Final = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "material": MATERIALS,
    "floor": ("wooden floor", "grey floor", "tiled floor", "grass"),
    "count": NUMBERS[1:],
    "relation": ("side by side", "one behind the other"),
}
_ON: Final = ("on a wooden floor", "on a grey floor", "on a tiled floor", "on the grass")
_MANY: Final = ("objects", "things")


def class_sets() -> dict[str, list[str]]:
    """Return the class names of every set: colour, shape, material, floor, count, relation."""
    return {name: list(classes) for name, classes in _SETS.items()}


def class_label(scene: Scene, set_name: str) -> int | None:
    """Return the index of the scene's class in a set, or None where it does not have exactly one.

    ``floor`` and ``count`` always have a class. ``colour``, ``shape`` and ``material`` have one
    only where all things of the scene share it (so always where there is a single thing).
    ``relation`` has one only where there are two things, clearly side by side (far apart across
    the image, about as far away) or clearly one behind the other.

    Raises:
        DataError: If the set is unknown.
    """
    if set_name not in _SETS:
        raise DataError(f"unknown class set {set_name!r}; choose one of {', '.join(_SETS)}")
    if set_name == "floor":
        return FLOORS.index(scene.floor)
    if set_name == "count":
        return len(scene.things) - 1
    if set_name == "relation":
        return _relation_label(scene)
    values = {str(getattr(thing, set_name)) for thing in scene.things}
    return _SETS[set_name].index(values.pop()) if len(values) == 1 else None


def _relation_label(scene: Scene) -> int | None:
    """Return 0 for two things side by side, 1 for one behind the other, None for anything else."""
    if len(scene.things) != 2:
        return None
    (x0, depth0), (x1, depth1) = places(scene)
    aside, away = abs(x0 - x1), abs(depth0 - depth1)
    if aside >= 0.55 and away < 0.8:
        return 0
    return 1 if aside < 0.5 and away >= 1.6 else None


def class_prompts(set_name: str, class_name: str) -> list[str]:
    """Return prompts for a class, worded as the captions are.

    Raises:
        DataError: If the set or the class is unknown.
    """
    if class_name not in _SETS.get(set_name, ()):
        raise DataError(f"unknown class {class_name!r} of set {set_name!r}")
    if set_name == "colour":
        return [
            f"{article(class_name).capitalize()} {class_name} {shape} {on}."
            for shape in SHAPES
            for on in _ON
        ]
    if set_name == "shape":
        return [
            f"{article(c).capitalize()} {c} {class_name} {on}." for c in COLOURS for on in _ON[:2]
        ]
    if set_name == "material":
        return [
            f"A {class_name} {colour} {shape} on a grey floor."
            for colour in COLOURS
            for shape in SHAPES
        ]
    if set_name == "floor":
        on = _ON[_SETS["floor"].index(class_name)]
        return [
            f"{article(c).capitalize()} {c} {s} {on}."
            for c in ("red", "blue", "white")
            for s in SHAPES
        ]
    if set_name == "count":
        if class_name == "one":
            return [
                f"A single {colour} {shape} {_ON[1]}." for colour in COLOURS for shape in SHAPES
            ]
        return [f"{class_name.capitalize()} {things} {on}." for things in _MANY for on in _ON]
    return _relation_prompts(class_name)


def _relation_prompts(class_name: str) -> list[str]:
    """Return prompts for how two things stand."""
    pairs = [
        ("red ball", "blue cube"),
        ("green cone", "yellow cylinder"),
        ("white cube", "purple ball"),
    ]
    if class_name == "side by side":
        return [f"A {one} and a {other} side by side {on}." for one, other in pairs for on in _ON]
    return [f"A {one} behind a {other} {on}." for one, other in pairs for on in _ON]
