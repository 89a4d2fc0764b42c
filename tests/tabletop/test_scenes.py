import json
import math

import pytest

from gmail_align.errors import DataError
from gmail_align.tabletop.scenes import (
    COLOURS,
    FLOORS,
    MATERIALS,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    image_box,
    sample_scene,
    split_of,
)


def sample(split: str, count: int) -> list[Scene]:
    return [sample_scene(seed, split) for seed in range(count)]


def test_a_scene_is_a_pure_function_of_split_and_seed():
    assert sample_scene(7, "val") == sample_scene(7, "val")
    assert sample_scene(7, "val") != sample_scene(8, "val")
    assert sample_scene(7, "val") != sample_scene(7, "test")


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="unknown split 'dev'"):
        sample_scene(0, "dev")


def test_combinations_of_different_splits_never_meet():
    seen = {split: {scene.signature() for scene in sample(split, 400)} for split in SPLITS}
    for one in SPLITS:
        assert all(split_of(signature) == one for signature in seen[one])
        assert all(not seen[one] & seen[other] for other in SPLITS if other != one)


def test_the_signature_ignores_the_order_of_things():
    scene = next(s for s in sample("train", 50) if len(s.things) > 1)
    turned = Scene.from_dict({**scene.to_dict(), "things": scene.to_dict()["things"][::-1]})
    assert turned.signature() == scene.signature()


def test_every_value_appears_about_evenly():
    scenes = sample("train", 800)
    things = [thing for scene in scenes for thing in scene.things]
    for values, had in (
        (SHAPES, [thing.shape for thing in things]),
        (tuple(COLOURS), [thing.colour for thing in things]),
        (SIZES, [thing.size for thing in things]),
        (MATERIALS, [thing.material for thing in things]),
        (FLOORS, [scene.floor for scene in scenes]),
    ):
        assert set(had) == set(values)
        assert min(had.count(value) for value in values) > 0.6 * len(had) / len(values)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4}


def test_things_are_in_view_and_apart():
    for scene in sample("test", 150):
        for k, thing in enumerate(scene.things):
            assert max(map(abs, image_box(thing, scene.view()))) < 1.0
            for other in scene.things[:k]:
                gap = math.hypot(thing.x - other.x, thing.y - other.y)
                assert gap > thing.reach + other.reach


def test_large_things_are_about_twice_as_wide_as_small_ones_in_the_picture():
    widths: dict[str, list[float]] = {size: [] for size in SIZES}
    for scene in sample("train", 200):
        for thing in scene.things:
            left, _, right, _ = image_box(thing, scene.view())
            widths[thing.size].append(32 * (right - left))
    mean = {size: sum(all_) / len(all_) for size, all_ in widths.items()}
    assert 13 < mean["small"] < 17 and 22 < mean["large"] < 28


def test_a_scene_survives_json():
    for scene in sample("val", 20):
        again = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
        assert again == scene and hash(again) == hash(scene)
