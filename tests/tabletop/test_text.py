import re
from itertools import permutations

import pytest

from gmail_align.errors import DataError
from gmail_align.tabletop.facts import Facts, Mention
from gmail_align.tabletop.scenes import COLOURS, MATERIALS, Scene, sample_scene
from gmail_align.tabletop.text import (
    caption_facts,
    captions,
    class_label,
    class_prompts,
    class_sets,
    consistent,
    long_caption,
    questions,
)

SCENES = [sample_scene(seed, split) for split in ("train", "val", "test") for seed in range(250)]
NOUNS = {"ball": "ball", "sphere": "ball", "cube": "cube", "block": "cube", "box": "cube"}
NOUNS |= {"cone": "cone", "cylinder": "cylinder", "object": None, "thing": None}
SIZE_WORDS = {"small": "small", "little": "small", "large": "large", "big": "large"}
MATERIAL_WORDS = {"shiny": "shiny", "glossy": "shiny", "matte": "matte"}
COUNTS = {"a": 1, "an": 1, "single": 1, "one": 1, "two": 2, "three": 3, "four": 4}
FLOOR_WORDS = {
    "wooden": "wooden",
    "grey": "grey",
    "concrete": "grey",
    "tiled": "tiled",
    "tiles": "tiled",
}
FLOOR_WORDS |= {"checkered": "tiled", "grass": "grassy", "lawn": "grassy", "grassy": "grassy"}
PHRASE = re.compile(
    r"\b(an?|two|three|four|single)\s((?:(?:small|little|large|big|shiny|glossy|matte|"
    + "|".join(COLOURS)
    + r")\s)*)(balls?|spheres?|cubes?|blocks?|box(?:es)?|cones?|cylinders?|objects?|things?)\b"
)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def read_phrases(caption: str) -> list[tuple[int, list[str], str | None]]:
    """Parse noun phrases from the words alone: count, adjectives, shape."""
    result = []
    for count, adjectives, noun in PHRASE.findall(caption.lower()):
        single = (
            noun if noun in NOUNS else noun.removesuffix("es") if noun == "boxes" else noun[:-1]
        )
        result.append((COUNTS[count], adjectives.split(), NOUNS[single]))
    return result


def fits(thing, adjectives: list[str], shape: str | None) -> bool:
    said = [
        COLOURS.keys() & {word} and thing.colour == word for word in adjectives if word in COLOURS
    ]
    said += [thing.size == SIZE_WORDS[word] for word in adjectives if word in SIZE_WORDS]
    said += [
        thing.material == MATERIAL_WORDS[word] for word in adjectives if word in MATERIAL_WORDS
    ]
    return all(said) and shape in (None, thing.shape)


def test_captions_are_deterministic_and_five():
    for scene in SCENES[:40]:
        assert len(captions(scene)) == 5
        assert captions(scene) == captions(Scene.from_dict(scene.to_dict()))
    assert len(captions(SCENES[0], 8)) == 8


def test_every_noun_phrase_is_true_when_read_from_the_words_alone():
    read = 0
    for scene in SCENES:
        for caption in captions(scene):
            for count, adjectives, shape in read_phrases(caption):
                matching = sum(fits(thing, adjectives, shape) for thing in scene.things)
                assert matching >= count, (caption, scene)
                read += 1
    assert read > 4 * len(SCENES)


def test_every_floor_word_is_true():
    for scene in SCENES:
        for caption in captions(scene):
            assert {FLOOR_WORDS[w] for w in words(caption) if w in FLOOR_WORDS} <= {scene.floor}


def place(scene: Scene, thing) -> tuple[float, float]:
    """Image x and depth of a thing, from the geometry of the camera."""
    position, forward, right, _ = scene.view().frame()
    offset = [p - q for p, q in zip((thing.x, thing.y, thing.height / 2), position, strict=True)]
    depth = sum(a * b for a, b in zip(offset, forward, strict=True))
    return sum(a * b for a, b in zip(offset, right, strict=True)) / depth, depth


RELATIONS = {
    r"(?:to the )?left of": lambda a, b: a[0] < b[0] - 0.03,
    r"(?:to the )?right of": lambda a, b: a[0] > b[0] + 0.03,
    r"behind": lambda a, b: a[1] > b[1] + 0.9,
    r"in front of": lambda a, b: a[1] < b[1] - 0.9,
}


@pytest.mark.parametrize("wording", RELATIONS)
def test_every_relation_is_true(wording):
    pattern = re.compile(rf"{PHRASE.pattern} (?:is |sits )?{wording} {PHRASE.pattern}")
    read = 0
    for scene in SCENES:
        for caption in captions(scene):
            match = pattern.search(caption.lower())
            if match:
                (_, one, shape), (_, two, other) = read_phrases(match.group(0))
                assert any(
                    fits(a, one, shape)
                    and fits(b, two, other)
                    and RELATIONS[wording](place(scene, a), place(scene, b))
                    for a, b in permutations(scene.things, 2)
                ), (caption, scene)
                read += 1
    assert read > 10


def test_facts_are_true_of_their_scene_and_rarely_of_others():
    for scene in SCENES:
        assert all(consistent(facts, scene) for facts in caption_facts(scene))
    facts = [facts for scene in SCENES[:60] for facts in caption_facts(scene)]
    elsewhere = [facts.holds(scene) for facts in facts for scene in SCENES[60:160]]
    assert sum(elsewhere) < 0.05 * len(elsewhere)


def test_facts_see_what_is_wrong():
    scene = next(s for s in SCENES if len(s.things) == 2 and s.things[0].kind != s.things[1].kind)
    kind = Mention(*scene.things[0].kind)
    assert Facts((kind,), scene.floor, 2).holds(scene)
    assert not Facts((kind,), scene.floor, 3).holds(scene)
    assert not Facts((kind, kind)).holds(scene)
    assert not Facts((kind,), floor="none").holds(scene)
    assert not Facts((Mention(*scene.things[0].kind, count=2),)).holds(scene)


def test_grammar():
    for scene in SCENES:
        for text in (*captions(scene), long_caption(scene)):
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.lower()), text
            assert not re.search(
                r"\b(an?|single) (\w+ ){0,3}(balls|cubes|cones|cylinders|objects)\b", text
            )
            assert not re.search(
                r"\b(two|three|four) (\w+ ){0,3}(ball|cube|cone|cylinder|object)\b", text
            )
            assert not re.search(
                r"  |\s[.,]|there are an?\b|there is (two|three|four)\b", text.lower()
            ), text


def test_captions_read_like_captions():
    all_ = [caption for scene in SCENES for caption in captions(scene)]
    lengths = [len(caption.split()) for caption in all_]
    assert sum(6 <= length <= 16 for length in lengths) > 0.99 * len(all_)
    assert sum(caption.endswith(".") for caption in all_) > 0.85 * len(all_)
    assert sum(caption[0].isupper() for caption in all_) > 0.85 * len(all_)
    assert len(set(all_)) > 0.85 * len(all_)
    assert all(len(set(captions(scene))) == 5 for scene in SCENES)


def test_the_vocabulary_is_small():
    spoken = {w for s in SCENES for text in (*captions(s), long_caption(s)) for w in words(text)}
    assert len(spoken) <= 150


def test_most_captions_say_two_attributes_of_everything_they_mention():
    all_ = [facts for scene in SCENES for facts in caption_facts(scene)]
    rich = [
        f.mentions
        and all(
            sum(v is not None for v in (m.shape, m.colour, m.size, m.material)) > 1
            for m in f.mentions
        )
        for f in all_
    ]
    assert sum(map(bool, rich)) > 0.7 * len(all_)


def test_three_of_five_captions_mention_every_thing():
    for scene in SCENES:
        if len(scene.things) <= 3:
            full = [
                sum(m.count for m in f.mentions) == len(scene.things) for f in caption_facts(scene)
            ]
            assert sum(full) >= 3


def test_the_long_caption_says_everything():
    for scene in SCENES:
        text = long_caption(scene)
        assert 4 <= text.count(".") <= 7
        spoken = set(words(text))
        for thing in scene.things:
            assert thing.colour in spoken
            assert any(SIZE_WORDS.get(w) == thing.size for w in spoken)
            assert any(MATERIAL_WORDS.get(w) == thing.material for w in spoken)
            assert any(NOUNS.get(w) == thing.shape for w in spoken)
        assert ("light comes from the right" in text) == (scene.light[0] > 0)


def test_questions_have_one_exact_answer():
    subjects = set()
    for scene in SCENES:
        for asked in questions(scene):
            subjects.add(asked.subject)
            assert len(set(asked.choices)) == len(asked.choices) >= 2
            right = asked.choices[asked.answer]
            if asked.subject == "counting":
                assert right == ("one", "two", "three", "four")[len(scene.things) - 1]
            if asked.subject == "colour":
                shape = asked.question.removeprefix("What colour is the ").removesuffix("?")
                assert [t.colour for t in scene.things if t.shape == shape] == [right]
            if asked.subject == "shape":
                colour = asked.question.split()[4]
                assert [t.shape for t in scene.things if t.colour == colour] == [right]
            if asked.subject in ("size", "material"):
                colour, shape = asked.question.split()[2:4]
                named = [t for t in scene.things if (t.colour, t.shape) == (colour, shape)]
                assert [getattr(t, asked.subject) for t in named] == [right]
    assert subjects == {"counting", "colour", "shape", "size", "material", "relation", "floor"}


def test_relation_questions_agree_with_the_geometry():
    pattern = re.compile(r"Is the (\w+) (\w+) (to the left|in front) .* the (\w+) (\w+)\?")
    for scene in SCENES[:200]:
        for asked in questions(scene):
            if asked.subject == "relation":
                match = pattern.match(asked.question)
                assert match
                colour, shape, axis, other_colour, other_shape = match.groups()
                a = next(t for t in scene.things if (t.colour, t.shape) == (colour, shape))
                b = next(
                    t for t in scene.things if (t.colour, t.shape) == (other_colour, other_shape)
                )
                k = 0 if axis == "to the left" else 1
                assert (place(scene, a)[k] < place(scene, b)[k]) == (asked.answer == 0)


def test_class_labels():
    for scene in SCENES:
        assert class_sets()["floor"][class_label(scene, "floor")].split()[0] in (
            scene.floor,
            "grass",
        )
        assert class_label(scene, "count") == len(scene.things) - 1
        shared = {t.colour for t in scene.things}
        label = class_label(scene, "colour")
        assert (label is None) == (len(shared) > 1)
        assert label is None or {class_sets()["colour"][label]} == shared
        material = class_label(scene, "material")
        assert material is None or all(t.material == MATERIALS[material] for t in scene.things)
        if len(scene.things) != 2:
            assert class_label(scene, "relation") is None
    assert {class_label(scene, "relation") for scene in SCENES} == {None, 0, 1}
    with pytest.raises(DataError):
        class_label(SCENES[0], "weight")


def test_class_prompts_name_their_class_in_known_words():
    spoken = {w for s in SCENES for text in captions(s) for w in words(text)}
    for set_name, classes in class_sets().items():
        assert len(set(classes)) == len(classes)
        for name in classes:
            prompts = class_prompts(set_name, name)
            assert len(set(prompts)) == len(prompts) >= 4
            assert {w for prompt in prompts for w in words(prompt)} <= spoken
    with pytest.raises(DataError):
        class_prompts("colour", "mauve")
