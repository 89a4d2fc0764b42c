"""Captions of a scene: five short ones as people write them and a long one, all true."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from gmail_align.tabletop.classes import class_label, class_prompts, class_sets
from gmail_align.tabletop.facts import Facts, Mention, Relation, consistent, placed, places, related
from gmail_align.tabletop.questions import Question, questions
from gmail_align.tabletop.scenes import Scene, Thing
from gmail_align.tabletop.words import (
    BETWEEN,
    FLOOR_NOUNS,
    ITS,
    NUMBERS,
    WHERE,
    listing,
    noun,
    on_floor,
    phrase,
    sentence,
)

__all__ = [
    "Facts",
    "Mention",
    "Question",
    "Relation",
    "caption_facts",
    "captions",
    "class_label",
    "class_prompts",
    "class_sets",
    "consistent",
    "long_caption",
    "questions",
]

_SHORTEST: Final = 6
_LONGEST: Final = 16
_TRIES: Final = 12

Draft = tuple[str, Facts]


def captions(scene: Scene, n: int = 5) -> list[str]:
    """Return n captions of a scene as people write them; a scene always gives the same ones."""
    return [text for text, _ in _drafts(scene, n)]


def caption_facts(scene: Scene, n: int = 5) -> list[Facts]:
    """Return what each of ``captions(scene, n)`` claims, in the same order."""
    return [facts for _, facts in _drafts(scene, n)]


@lru_cache(maxsize=8192)
def _drafts(scene: Scene, n: int) -> tuple[Draft, ...]:
    """Return the captions with their facts: one of every style in turn, then shuffled."""
    rng = random.Random(f"captions:{scene.noise_seed}:{scene.signature()}")
    drafts: list[Draft] = []
    for k in range(n):
        style = _STYLES[k % len(_STYLES)]
        draft = style(scene, rng)
        for _ in range(_TRIES):
            known = any(
                draft[0].lower().rstrip(".") == other[0].lower().rstrip(".") for other in drafts
            )
            if not known and _SHORTEST <= len(draft[0].split()) <= _LONGEST:
                break
            draft = style(scene, rng)
        drafts.append(draft)
    rng.shuffle(drafts)
    return tuple(drafts)


def _mentions(
    scene: Scene, things: Sequence[Thing], rng: random.Random, extra: float = 0.0
) -> list[Mention]:
    """Return mentions by colour and shape, equal ones merged, each detail with chance ``extra``."""
    size, material = rng.random() < extra, rng.random() < extra
    mentions: list[Mention] = []
    for thing in things:
        mention = Mention(
            thing.shape,
            thing.colour,
            thing.size if size else None,
            thing.material if material else None,
        )
        alike = sum(mention.fits(other) for other in scene.things)
        mention = Mention(mention.shape, mention.colour, mention.size, mention.material, alike)
        if mention not in mentions:
            mentions.append(mention)
    return mentions


def _salient(scene: Scene) -> list[Thing]:
    """Return the things, large ones first, then near ones."""
    depth = {id(thing): place[1] for thing, place in zip(scene.things, places(scene), strict=True)}
    return sorted(scene.things, key=lambda thing: (thing.size != "large", depth[id(thing)]))


def _listed(
    scene: Scene, mentions: list[Mention], rng: random.Random, floor_chance: float
) -> Draft:
    """Return a caption that lists mentions, with or without the floor."""
    names = listing([phrase(mention, rng) for mention in mentions])
    several = len(mentions) > 1 or mentions[0].count > 1
    there = "there are" if mentions[0].count > 1 else "there is"
    if rng.random() < floor_chance:
        floor = on_floor(scene.floor, rng)
        text = rng.choice(
            [
                f"{names} {floor}",
                f"{names} {floor}",
                f"{names} {rng.choice(['sitting', 'resting', 'placed'])} {floor}",
                f"{names} {'sit' if several else 'sits'} {floor}",
                f"{there} {names} {floor}",
                f"{rng.choice(['a photo', 'a picture'])} of {names} {floor}",
                f"{rng.choice(FLOOR_NOUNS[scene.floor])} with {names} on it",
                f"{floor} {there} {names}",
            ]
        )
        return sentence(text, rng), Facts(tuple(mentions), floor=scene.floor)
    text = rng.choice(
        [
            names,
            f"{there} {names}",
            f"{rng.choice(['a photo', 'a picture', 'a close up'])} of {names}",
            f"{names} {'sit together' if several else 'by itself'}"
            if several
            else f"a photo showing {names}",
            f"{names} can be seen",
        ]
    )
    return sentence(text, rng), Facts(tuple(mentions))


def _all_things(scene: Scene, rng: random.Random) -> Draft:
    """Say every thing's colour and shape, and usually the floor."""
    things = rng.sample(scene.things, len(scene.things))
    return _listed(scene, _mentions(scene, things, rng), rng, 0.9 if len(things) < 4 else 0.5)


def _details(scene: Scene, rng: random.Random) -> Draft:
    """Say size or material too: of every thing where they are few, else of the main ones."""
    things = list(scene.things) if len(scene.things) < 4 else _salient(scene)[:2]
    rng.shuffle(things)
    return _listed(scene, _mentions(scene, things, rng, 0.65), rng, 0.55)


def _main_things(scene: Scene, rng: random.Random) -> Draft:
    """Speak of the main things only."""
    if len(scene.things) == 1:
        return _whereabouts(scene, rng)
    some = _salient(scene)[: 1 if len(scene.things) == 2 else 2]
    if len(some) == 1 and rng.random() < 0.4:
        return _whereabouts(scene, rng)
    return _listed(scene, _mentions(scene, some, rng, 0.5), rng, 0.8)


def _whereabouts(scene: Scene, rng: random.Random) -> Draft:
    """Say in which part of the picture the main thing is."""
    thing = _salient(scene)[0]
    mention = _mentions(scene, [thing], rng, 0.4)[0]
    sides = [side for side in WHERE if placed(scene, scene.things.index(thing), side)]
    if mention.count > 1 or not sides:
        return _listed(scene, [mention], rng, 0.8)
    named, where = phrase(mention, rng), rng.choice(WHERE[sides[0]])
    mention = Mention(mention.shape, mention.colour, mention.size, mention.material, 1, sides[0])
    if rng.random() < 0.7:
        place = f"{where} of {rng.choice(FLOOR_NOUNS[scene.floor])}"
        text = rng.choice(
            [f"{named} {place}", f"{named} sitting {place}", f"there is {named} {place}"]
        )
        return sentence(text, rng), Facts((mention,), floor=scene.floor)
    text = rng.choice(
        [f"{named} {where} of the picture", f"there is {named} {where}", f"{named} is {where}"]
    )
    return sentence(text, rng), Facts((mention,))


def _relation(scene: Scene, rng: random.Random) -> Draft:
    """Say how things stand to one another, every thing named where there are at most three."""
    if len(scene.things) == 1:
        return _details(scene, rng)
    things = rng.sample(scene.things, len(scene.things))[:3]
    mentions = _mentions(scene, things, rng, 0.25 if len(things) == 2 else 0.0)
    if len(mentions) < len(things) or any(mention.count > 1 for mention in mentions):
        return _all_things(scene, rng)
    names = [phrase(mention, rng) for mention in mentions]
    spots = [scene.things.index(thing) for thing in things]
    floor = on_floor(scene.floor, rng) if rng.random() < 0.5 else ""
    told = _between(scene, spots, names) if len(names) == 3 and rng.random() < 0.5 else None
    if told is None:
        told = _pair(scene, spots, names, rng)
    text, relation = told
    return sentence(f"{text} {floor}", rng), Facts(
        tuple(mentions), floor=scene.floor if floor else None, relations=(relation,)
    )


def _between(scene: Scene, spots: list[int], names: list[str]) -> tuple[str, Relation] | None:
    """Return words for the thing between the other two, or None when none clearly is."""
    for first, second, third in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        if related(scene, "between", spots[first], spots[second], spots[third]):
            return f"{names[first]} between {names[second]} and {names[third]}", Relation(
                "between", first, second, third
            )
    return None


def _pair(
    scene: Scene, spots: list[int], names: list[str], rng: random.Random
) -> tuple[str, Relation]:
    """Return words for how the first thing stands to the second; a third is named in passing."""
    first, second = spots[0], spots[1]
    if len(names) == 2 and related(scene, "beside", first, second) and rng.random() < 0.35:
        return f"{names[0]} and {names[1]} side by side", Relation("beside", 0, 1)
    kinds = [
        kind for kind in ("left", "right", "behind", "front") if related(scene, kind, first, second)
    ]
    kind = rng.choice(kinds or ["next"])
    link = rng.choice(BETWEEN[kind])
    ways = [
        f"{names[0]} {link} {names[1]}",
        f"{names[0]} is {link} {names[1]}",
        f"{names[0]} sits {link} {names[1]}",
        f"there is {names[0]} {link} {names[1]}",
        f"{names[1]} with {names[0]} {ITS[kind]}",
    ]
    if len(names) == 2:
        return rng.choice(ways), Relation(kind, 0, 1)
    return f"{rng.choice(ways[:4])} and there is {names[2]}" if rng.random() < 0.3 else (
        f"{names[2]}, and {names[0]} {link} {names[1]}"
    ), Relation(kind, 0, 1)


def _overview(scene: Scene, rng: random.Random) -> Draft:
    """Count the things, or say what they share, or list their shapes or colours."""
    total = len(scene.things)
    floor = on_floor(scene.floor, rng)
    thing = _salient(scene)[0]
    if total == 1:
        detail = rng.random() < 0.5
        mention = Mention(
            thing.shape,
            thing.colour,
            None if detail else thing.size,
            thing.material if detail else None,
        )
        single = f"{phrase(mention, rng, 'a single')} {floor}"
        only = f"there is only {phrase(mention, rng)} {floor}"
        return sentence(rng.choice([single, only]), rng), Facts((mention,), scene.floor, 1)
    number = NUMBERS[total]
    things_word = noun(None, rng, plural=True)
    common = _common(scene)
    if common is not None and rng.random() < 0.6:
        text = f"{phrase(common, rng)} {rng.choice(['', 'sitting', 'standing', 'placed'])} {floor}"
        return sentence(text, rng), Facts((common,), scene.floor, total)
    if rng.random() < 0.55:
        mention = _mentions(scene, [thing], rng, 0.5)[0]
        named = phrase(mention, rng)
        if mention.count == 1:
            text = rng.choice(
                [
                    f"{number} {things_word} {floor}, one of them {named}",
                    f"{named} is one of {number} {things_word} {floor}",
                    f"{number} {things_word} {floor} including {named}",
                ]
            )
            return sentence(text, rng), Facts((mention,), scene.floor, total)
    text = rng.choice(
        [f"{number} {things_word} {floor}", f"there are {number} {things_word} {floor}"]
    )
    return sentence(text, rng), Facts((), scene.floor, total)


def _common(scene: Scene) -> Mention | None:
    """Return a mention of all things at once by what they share, or None for too little."""
    shape, colour, size, material = (
        values[0] if len(set(values)) == 1 else None
        for values in zip(*(thing.kind for thing in scene.things), strict=True)
    )
    if shape is None and colour is None:
        return None
    return Mention(shape, colour, size, material, len(scene.things))


_STYLES: Final[tuple[Callable[[Scene, random.Random], Draft], ...]] = (
    _all_things,
    _relation,
    _details,
    _main_things,
    _overview,
)


def long_caption(scene: Scene) -> str:
    """Return four to seven sentences that say it all: count, floor, things, a relation, light."""
    rng = random.Random(f"long:{scene.noise_seed}:{scene.signature()}")
    total = len(scene.things)
    counted = "one object" if total == 1 else f"{NUMBERS[total]} objects"
    order = sorted(range(total), key=lambda k: places(scene)[k][0])
    full = {k: Mention(*scene.things[k].kind) for k in order}
    shows = rng.choice(["the picture shows", "the image shows"])
    parts = [f"{shows} {counted} {on_floor(scene.floor, rng)}"]
    for rank, k in enumerate(order):
        parts.append(_long_thing(scene, k, full[k], rank, rng))
    if total > 1:
        parts.append(_long_relation(scene, order, rng))
    else:
        parts.append("there is nothing else in the picture")
    side, shade = ("right", "left") if scene.light[0] > 0 else ("left", "right")
    parts.append(f"the light comes from the {side} and the shadow falls to the {shade}")
    if total > 1:
        parts[-1] = f"the light comes from the {side} and the shadows fall to the {shade}"
    return " ".join(sentence(part) for part in parts)


def _long_thing(scene: Scene, k: int, mention: Mention, rank: int, rng: random.Random) -> str:
    """Return the sentence about one thing, told from left to right."""
    named = phrase(mention, rng)
    if len(scene.things) == 1:
        where = next((w for w in WHERE if placed(scene, k, w)), None)
        return (
            f"there is {named} {rng.choice(WHERE[where])} of the picture"
            if where
            else f"it is {named}"
        )
    if rank == 0:
        return f"from left to right, the first is {named}"
    if rank == len(scene.things) - 1:
        return f"the last one is {named}"
    return f"the next one is {named}"


def _long_relation(scene: Scene, order: list[int], rng: random.Random) -> str:
    """Return a sentence about depth: which of the outer two is behind the other."""
    first, last = order[0], order[-1]
    if related(scene, "behind", first, last):
        return "the first one is behind the last one"
    if related(scene, "front", first, last):
        return "the first one is in front of the last one"
    return "the first one and the last one are about as far away"
