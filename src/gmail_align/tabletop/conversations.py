"""Questions that a scene, or a caption of it, answers in a word or a phrase."""

from __future__ import annotations

import random

from gmail_align.tabletop.facts import Facts, Mention
from gmail_align.tabletop.questions import Question, existence, questions
from gmail_align.tabletop.scenes import Scene

_SIDES = {"left": "aside", "right": "aside", "front": "away", "behind": "away"}


def asked_of(
    scene: Scene, rng: random.Random, most: int, facts: Facts | None = None
) -> list[Question]:
    """Draw questions, each time a subject first and then one of its questions.

    Args:
        scene: The scene.
        rng: Draws.
        most: Number of questions, as far as there are so many.
        facts: What a caption says: draw only questions that the caption answers.
    """
    offered: dict[str, list[Question]] = {}
    for one in (*questions(scene), *existence(scene)):
        if facts is None or answered_by(one, scene, facts):
            offered.setdefault(one.subject, []).append(one)
    drawn: list[Question] = []
    while offered and len(drawn) < most:
        subject = rng.choice(sorted(offered))
        drawn.append(offered[subject].pop(rng.randrange(len(offered[subject]))))
        if not offered[subject]:
            del offered[subject]
    return drawn


def answered_by(asked: Question, scene: Scene, facts: Facts) -> bool:
    """Return whether a caption with these facts answers a question about its scene."""
    if asked.subject == "floor":
        return facts.floor is not None
    if asked.subject == "counting":
        said = sum(mention.count for mention in facts.mentions)
        return facts.total is not None or said == len(scene.things)
    if asked.subject == "relation":
        return any(
            _says(facts, kind, asked, scene) for kind in ("left", "right", "front", "behind")
        )
    telling = [m for m in facts.mentions if m.fits(scene.things[asked.things[0]])]
    needs = {"size": "size", "material": "material"}.get(asked.subject, "shape")
    return any(m.colour and m.shape and getattr(m, needs) for m in telling)


def _says(facts: Facts, kind: str, asked: Question, scene: Scene) -> bool:
    """Return whether one relation of the facts is of this kind and speaks of both things."""
    axis = "aside" if "left" in asked.choices else "away"
    for relation in facts.relations:
        if relation.kind == kind and _SIDES[kind] == axis:
            pair = facts.mentions[relation.first], facts.mentions[relation.second]
            if _names(pair, asked, scene) or _names(pair[::-1], asked, scene):
                return True
    return False


def _names(pair: tuple[Mention, ...], asked: Question, scene: Scene) -> bool:
    return all(
        mention.colour and mention.shape and mention.fits(scene.things[number])
        for mention, number in zip(pair, asked.things, strict=True)
    )
