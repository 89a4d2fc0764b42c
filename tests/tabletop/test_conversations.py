"""Questions in a word: of a scene, and of what a caption says about it."""

from __future__ import annotations

import random
from collections import Counter

from gmail_align.tabletop.conversations import answered_by, asked_of
from gmail_align.tabletop.facts import Facts, Mention, Relation
from gmail_align.tabletop.questions import existence, questions
from gmail_align.tabletop.scenes import sample_scene
from gmail_align.tabletop.text import caption_facts

SCENES = [sample_scene(number, "train") for number in range(200)]


def test_half_of_the_questions_after_things_are_answered_no() -> None:
    for scene in SCENES:
        here = {(thing.colour, thing.shape) for thing in scene.things}
        asked = existence(scene)
        for one in asked:
            colour, shape = one.question.removesuffix("?").split()[-2:]
            assert ((colour, shape) in here) == (one.right == "yes")
        assert Counter(one.right for one in asked) == {"yes": len(here), "no": len(here)}
        assert len({one.question for one in asked}) == len(asked)


def test_drawn_questions_are_different_and_of_every_subject() -> None:
    subjects: Counter[str] = Counter()
    for scene in SCENES:
        asked = asked_of(scene, random.Random(0), 6)
        assert 4 <= len({one.question for one in asked}) == len(asked) <= 6
        assert asked == asked_of(scene, random.Random(0), 6)
        subjects.update(one.subject for one in asked)
    assert subjects.keys() == {
        *("counting", "floor", "colour", "shape", "material", "size", "relation", "existence")
    }


def test_a_caption_answers_what_it_says_and_nothing_else() -> None:
    scene = next(one for one in SCENES if len({(t.colour, t.shape) for t in one.things}) == 3)
    first, second = (Mention(t.shape, t.colour) for t in scene.things[:2])
    offered = [*questions(scene), *existence(scene)]

    def answered(facts: Facts) -> set[str]:
        return {one.subject for one in offered if answered_by(one, scene, facts)}

    assert answered(Facts()) == set()
    assert answered(Facts(floor=scene.floor)) == {"floor"}
    assert answered(Facts(total=3)) == {"counting"}
    named = Facts((first, second))
    assert answered(named) <= {"colour", "shape", "existence"}
    about = {one.things for one in offered if answered_by(one, scene, named)}
    assert about and about <= {(0,), (1,)}
    detail = Mention(first.shape, first.colour, size=scene.things[0].size)
    assert "size" in answered(Facts((detail,)))
    assert "size" not in answered(Facts((Mention(size=scene.things[0].size),)))


def test_a_relation_answers_along_its_own_axis() -> None:
    for scene in SCENES:
        for one in (one for one in questions(scene) if one.subject == "relation"):
            pair = tuple(Mention(scene.things[k].shape, scene.things[k].colour) for k in one.things)
            aside = "left" in one.choices
            assert (
                answered_by(one, scene, Facts(pair, relations=(Relation("left", 1, 0),))) == aside
            )
            behind = Facts(pair, relations=(Relation("behind", 0, 1),))
            assert answered_by(one, scene, behind) != aside


def test_every_caption_that_names_a_thing_answers_something() -> None:
    for scene in SCENES[:50]:
        for facts in caption_facts(scene):
            assert asked_of(scene, random.Random(0), 3, facts)
