import numpy as np
import pytest

from gmail_align.tabletop.ceiling import retrieval_ceiling, truth_table
from gmail_align.tabletop.scenes import sample_scene
from gmail_align.tabletop.text import caption_facts

SCENES = [sample_scene(seed, "test") for seed in range(60)]


def test_the_truth_table_agrees_with_asking_every_scene():
    slow = [
        [facts.holds(scene) for scene in SCENES] for own in SCENES for facts in caption_facts(own)
    ]
    assert np.array_equal(truth_table(SCENES), np.array(slow))


def test_one_image_is_always_found():
    assert retrieval_ceiling(SCENES[:1]) == {
        "t2i_r1": 1.0,
        "i2t_r1": 1.0,
        "images_per_caption": 1.0,
    }


def test_twins_are_found_half_of_the_time():
    ceiling = retrieval_ceiling([SCENES[0], SCENES[0]])
    assert ceiling["t2i_r1"] == pytest.approx(0.5) and ceiling["i2t_r1"] == pytest.approx(0.5)


def test_more_images_lower_the_ceiling():
    few, many = retrieval_ceiling(SCENES[:15]), retrieval_ceiling(SCENES)
    assert 0 < many["t2i_r1"] < few["t2i_r1"] <= 1
    assert many["t2i_r1"] < many["i2t_r1"] <= 1
