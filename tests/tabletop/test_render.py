import colorsys
from dataclasses import replace

import numpy as np
import pytest

from gmail_align.tabletop.render import render
from gmail_align.tabletop.scenes import COLOURS, FLOORS, SHAPES, Scene, Thing, sample_scene
from gmail_align.tabletop.solids import normals, spans

EMPTY = Scene("grey", (), (0.9, 0.8), (0.0, 0.53, 14.0), (0.0, 0.0, 0.0), 1)


def with_thing(**changes: str) -> Scene:
    thing = Thing("ball", "red", "large", "matte", 0.0, 0.0, 0.3)
    return replace(EMPTY, things=(replace(thing, **changes),))


@pytest.mark.parametrize("size", [32, 64, 96])
def test_an_image_has_the_asked_size(size):
    image = render(sample_scene(3), size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8


def test_rendering_is_deterministic_and_leaves_no_trace():
    first = render(sample_scene(5))
    render(sample_scene(6))
    assert np.array_equal(first, render(sample_scene(5)))


def test_different_scenes_give_different_images():
    assert not np.array_equal(render(sample_scene(0)), render(sample_scene(1)))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_shows_its_colour(colour):
    patch = render(with_thing(colour=colour))[26:36, 27:37].reshape(-1, 3).mean(axis=0) / 255
    hue, saturation, _ = colorsys.rgb_to_hsv(*patch)
    named, vivid, _ = colorsys.rgb_to_hsv(*(value / 255 for value in COLOURS[colour]))
    if vivid < 0.2:
        assert saturation < 0.2
    else:
        assert min(abs(hue - named), 1 - abs(hue - named)) < 0.05 and saturation > 0.4


def test_floors_look_different():
    means = [render(replace(EMPTY, floor=f))[24:].reshape(-1, 3).mean(axis=0) for f in FLOORS]
    for k, one in enumerate(means):
        assert all(np.abs(one - other).max() > 20 for other in means[:k])


def test_a_thing_throws_a_shadow_away_from_the_light():
    bare, full = (render(scene).astype(int).sum(axis=2) for scene in (EMPTY, with_thing()))
    darker = (bare - full)[30:46]
    assert darker[:, 2:18].clip(0).mean() > 2 * darker[:, 46:62].clip(0).mean()


def test_a_shiny_thing_has_a_highlight():
    matte, shiny = (
        render(with_thing(material=m))[14:46, 16:48].min(axis=2).max() for m in ("matte", "shiny")
    )
    assert shiny > 200 > matte


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_enter_a_solid_on_its_surface_against_the_normal(shape):
    thing = Thing(shape, "red", "large", "matte", 0.4, -0.3, 0.5)
    rng = np.random.default_rng(0)
    goal = rng.uniform(-0.3, 0.3, (3, 500)).astype(np.float32) + np.array([[0.4], [-0.3], [0.6]])
    start = np.array([[1.0], [-9.0], [6.0]])
    x, y, z = goal - start
    enter, leave = spans(thing, tuple(start), (x, y, z))
    assert (enter < leave).all()
    px, py, pz = start + enter * np.array([x, y, z])
    nx, ny, nz = normals(thing, px, py, pz)
    assert np.allclose(nx * nx + ny * ny + nz * nz, 1, atol=1e-3)
    assert (nx * x + ny * y + nz * z < 0).all()
    assert (pz > -1e-3).all() and (pz < thing.height + 1e-3).all()
    assert (np.hypot(px - thing.x, py - thing.y) < thing.reach + 1e-3).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_that_pass_a_solid_miss_it(shape):
    thing = Thing(shape, "red", "small", "matte", 0.0, 0.0, 0.2)
    ray = tuple(np.array([value], dtype=np.float32) for value in (0.0, 1.0, -0.5))
    for x in (-1.5, 1.5):
        enter, leave = spans(thing, tuple(np.array([v]) for v in (x, -5.0, 3.0)), ray)
        assert (enter >= leave).all()
