"""What a sentence claims about a scene, and whether the claim is true."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Final

from gmail_align.tabletop.scenes import Scene, Thing

ASIDE: Final = 0.24
"""Least distance across the image (its width is 2) for one thing to be left or right of another."""
AWAY: Final = 1.0
"""Least difference of depth, in units, for one thing to be behind or in front of another."""
EDGE: Final = 0.3
"""A thing further than this from the middle of the image is on the left or on the right."""
MIDDLE: Final = 0.2
"""A thing nearer than this to the middle of the image is in the middle."""

RELATIONS: Final = ("left", "right", "behind", "front", "beside", "next", "between")


@lru_cache(maxsize=8192)
def places(scene: Scene) -> tuple[tuple[float, float], ...]:
    """Return each thing's place: x in the image, in [-1, 1], and depth from the camera in units."""
    view = scene.view()
    projected = (view.project((thing.x, thing.y, 0.5 * thing.height)) for thing in scene.things)
    return tuple((x, depth) for x, _, depth in projected)


def related(scene: Scene, kind: str, first: int, second: int, third: int = -1) -> bool:
    """Return whether things of a scene stand in a relation, by a clear margin.

    Args:
        scene: The scene.
        kind: One of ``RELATIONS``; the first thing is left of (right of, behind, in front of,
            beside, next to) the second, or between the second and the third across the image.
        first: Index of the thing spoken of.
        second: Index of the thing it is compared with.
        third: The other neighbour, for ``between`` only.
    """
    where = places(scene)
    aside = where[second][0] - where[first][0]
    away = where[first][1] - where[second][1]
    if kind == "left":
        return aside >= ASIDE
    if kind == "right":
        return aside <= -ASIDE
    if kind == "behind":
        return away >= AWAY
    if kind == "front":
        return away <= -AWAY
    if kind == "beside":
        return abs(aside) >= 2 * ASIDE and abs(away) < AWAY
    if kind == "next":
        return abs(aside) < 4 * ASIDE and abs(away) < 2 * AWAY
    other = where[third][0] - where[first][0]
    return min(abs(aside), abs(other)) >= ASIDE and aside * other < 0


def placed(scene: Scene, index: int, where: str) -> bool:
    """Return whether a thing is on the ``left``, ``right`` or in the ``middle`` of the image."""
    x = places(scene)[index][0]
    if where == "middle":
        return abs(x) < MIDDLE
    return x < -EDGE if where == "left" else x > EDGE


@dataclass(frozen=True)
class Mention:
    """Things a sentence speaks of; an attribute of None is left unsaid.

    Attributes:
        shape: Their shape.
        colour: Their colour.
        size: Their size.
        material: Their material.
        count: How many: 1 means at least one, more means exactly that many.
        where: ``left``, ``middle`` or ``right`` of the image, for a single thing.
    """

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    material: str | None = None
    count: int = 1
    where: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Return whether a thing has every attribute said."""
        return all(
            said is None or said == had
            for said, had in zip(
                (self.shape, self.colour, self.size, self.material), thing.kind, strict=True
            )
        )


@dataclass(frozen=True)
class Relation:
    """A claim about mentions, by their index: see ``related``."""

    kind: str
    first: int
    second: int
    third: int = -1


@dataclass(frozen=True)
class Facts:
    """Everything a sentence claims.

    Attributes:
        mentions: The things spoken of, each a different one.
        floor: The floor, if said.
        total: The number of things in the whole scene, if said.
        relations: How single mentions stand to one another.
    """

    mentions: tuple[Mention, ...] = ()
    floor: str | None = None
    total: int | None = None
    relations: tuple[Relation, ...] = ()

    def holds(self, scene: Scene) -> bool:
        """Return whether every claim is true of a scene for some choice of the things meant."""
        if self.floor is not None and self.floor != scene.floor:
            return False
        if self.total is not None and self.total != len(scene.things):
            return False
        return self._assign(scene, ())

    def _assign(self, scene: Scene, chosen: tuple[tuple[int, ...], ...]) -> bool:
        """Return whether the mentions left can be given things so that all relations hold."""
        if len(chosen) == len(self.mentions):
            return all(
                related(scene, r.kind, chosen[r.first][0], chosen[r.second][0], chosen[r.third][0])
                for r in self.relations
            )
        mention = self.mentions[len(chosen)]
        fitting = [k for k, thing in enumerate(scene.things) if mention.fits(thing)]
        if mention.where is not None:
            fitting = [k for k in fitting if placed(scene, k, mention.where)]
        if mention.count > 1 and len(fitting) != mention.count:
            return False
        taken = {k for group in chosen for k in group}
        free = [k for k in fitting if k not in taken]
        return any(
            self._assign(scene, (*chosen, group)) for group in combinations(free, mention.count)
        )


def consistent(caption_facts: Facts, scene: Scene) -> bool:
    """Return whether a caption with these facts is true of a scene."""
    return caption_facts.holds(scene)
