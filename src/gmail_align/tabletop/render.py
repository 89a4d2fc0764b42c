"""The ray tracer: a scene becomes an image, with soft shadows, highlights and reflections."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from gmail_align.tabletop.camera import FOCAL
from gmail_align.tabletop.scenes import COLOURS, WALL, Scene, Thing, image_box
from gmail_align.tabletop.solids import FloatArray, Triple, normals, spans
from gmail_align.tabletop.textures import PERIOD, WALLS, floor_texture, linear

_OVERSAMPLING: Final = 2
"""Samples along each side of a pixel; ``_lit_surroundings`` counts on two."""
_SUN: Final = np.array([1.02, 0.96, 0.86], dtype=np.float32)
_SKY: Final = np.array([0.27, 0.30, 0.345], dtype=np.float32)
_LIGHT_WIDTH: Final = 0.10
_NOISE: Final = 1.4
_FINGER: Final = np.float32(2e-3)


def render(scene: Scene, size: int = 64) -> npt.NDArray[np.uint8]:
    """Return the image of a scene.

    Args:
        scene: What to draw; the same scene always gives the same image.
        size: Pixels along a side.

    Returns:
        Array of shape (size, size, 3), values 0 to 255.
    """
    side = size * _OVERSAMPLING
    eye, rays = _camera_rays(scene, side)
    surface, onto_wall = _surroundings(eye, rays)
    light = _light(scene)
    picture = _paint_surroundings(scene, surface, onto_wall)
    picture *= _lit_surroundings(scene, surface, onto_wall, light)
    nearest = np.full((side, side), np.inf, dtype=np.float32)
    for thing in scene.things:
        _draw(scene, thing, eye, rays, light, nearest, picture)
    return _develop(picture, size, scene.noise_seed)


def _camera_rays(scene: Scene, side: int) -> tuple[tuple[float, float, float], Triple]:
    """Return the eye and the unit rays through every sample, rows from the top."""
    eye, forward, right, up = scene.view().frame()
    line = ((np.arange(side, dtype=np.float32) + 0.5) * (2.0 / side) - 1.0).astype(np.float32)
    u, v = line[None, :], -line[:, None]
    scale = 1.0 / np.sqrt(u * u + v * v + np.float32(FOCAL**2))
    x, y, z = (
        np.asarray(
            (np.float32(f * FOCAL) + u * np.float32(r) + v * np.float32(w)) * scale,
            dtype=np.float32,
        )
        for f, r, w in zip(forward, right, up, strict=True)
    )
    return eye, (x, y, z)


def _surroundings(
    eye: tuple[float, float, float], rays: Triple
) -> tuple[Triple, npt.NDArray[np.bool_]]:
    """Return where each ray meets the floor or the wall, and which of them meet the wall."""
    to_floor = np.float32(-eye[2]) / rays[2]
    to_wall = np.float32(WALL - eye[1]) / rays[1]
    onto_wall = to_wall < to_floor
    reach = np.where(onto_wall, to_wall, to_floor)
    x, y, z = (np.float32(e) + reach * r for e, r in zip(eye, rays, strict=True))
    return (x, y, np.maximum(z, 0)), onto_wall


def _light(scene: Scene) -> tuple[float, float, float]:
    """Return the unit vector towards the middle of the lamp."""
    azimuth, elevation = scene.light
    across = math.cos(elevation)
    return across * math.sin(azimuth), -across * math.cos(azimuth), math.sin(elevation)


def _lamp_points(light: tuple[float, float, float], count: int) -> list[tuple[float, float, float]]:
    """Return vectors towards points spread over the round lamp."""
    x, y, z = light
    flat = math.hypot(x, y)
    side, top = (-y / flat, x / flat, 0.0), (-x * z / flat, -y * z / flat, flat)
    points = []
    for k in range(count):
        reach, angle = _LIGHT_WIDTH * math.sqrt((k + 0.5) / count), 2.399963 * k
        a, b = reach * math.cos(angle), reach * math.sin(angle)
        points.append((x + a * side[0] + b * top[0], y + a * side[1] + b * top[1], z + b * top[2]))
    return points


def _paint_surroundings(
    scene: Scene, surface: Triple, onto_wall: npt.NDArray[np.bool_]
) -> FloatArray:
    """Return the colour of floor and wall before any light falls on them."""
    x, y, z = surface
    picture = _floor_colours(scene, x, y, _texels(x.shape[0]))
    rows = int(onto_wall.any(axis=1).sum())
    if rows:
        foot, high, skirting = WALLS[scene.floor]
        climb = np.clip(z[:rows] / 3.2, 0, 1)[..., None]
        wall = foot + (high - foot) * climb
        wall = np.where((z[:rows] < 0.22)[..., None], skirting, wall)
        picture[:rows] = np.where(onto_wall[:rows, :, None], wall, picture[:rows])
    return np.asarray(picture, dtype=np.float32)


def _texels(side: int) -> int:
    """Return the side of the floor pattern that suits a picture of so many samples a side."""
    return int(min(1024, 2 ** round(math.log2(2.2 * side))))


def _floor_colours(scene: Scene, x: FloatArray, y: FloatArray, texels: int) -> FloatArray:
    """Return the floor's colour at points of the plane."""
    pattern = floor_texture(scene.floor, texels)
    shift_x, shift_y, turn = scene.texture
    per_unit = texels / PERIOD
    cos, sin = math.cos(turn) * per_unit, math.sin(turn) * per_unit
    column = (x * cos - y * sin + (shift_x + 24.0) * per_unit).astype(np.int32) & (texels - 1)
    row = (x * sin + y * cos + (shift_y + 24.0) * per_unit).astype(np.int32) & (texels - 1)
    return np.asarray(pattern.reshape(-1, 3).take(row * texels + column, axis=0), dtype=np.float32)


def _lit_surroundings(
    scene: Scene,
    surface: Triple,
    onto_wall: npt.NDArray[np.bool_],
    light: tuple[float, float, float],
) -> FloatArray:
    """Return the light on floor and wall; shadows are soft, so one sample a pixel is enough."""
    x, y, z = (0.5 * (p[::2, ::2] + p[1::2, 1::2]) for p in surface)
    walled = onto_wall[::2, ::2]
    sun = _unshadowed(scene.things, (x, y, z), light, 8 if len(x) <= 64 else 32)
    if scene.floor == "grassy":
        sun[walled] = 1.0
    sun *= np.where(walled, 0.55 - 0.4 * light[1], 1.08 * light[2])
    sky = np.ones_like(x)
    for thing in scene.things:
        sky *= 1.0 - _hidden_sky(thing, x, y, z, walled)
    crease = np.where(walled, np.clip(z / 0.9, 0, 1), np.clip((np.float32(WALL) - y) / 1.2, 0, 1))
    sky *= 0.72 + 0.28 * np.sqrt(crease)
    pool = 1.04 - 0.012 * (x * x + 0.5 * y * y)
    lit = (sun * pool)[..., None] * _SUN + sky[..., None] * (_SKY * np.float32(1.25))
    return np.asarray(np.repeat(np.repeat(lit, 2, axis=0), 2, axis=1), dtype=np.float32)


def _hidden_sky(
    thing: Thing, x: FloatArray, y: FloatArray, z: FloatArray, walled: npt.NDArray[np.bool_]
) -> FloatArray:
    """Return how much sky a thing hides from floor and wall: much at its foot, fading out."""
    dx, dy = x - np.float32(thing.x), y - np.float32(thing.y)
    middle = np.float32(0.5 * thing.height)
    squared = dx * dx + dy * dy + (z - middle) ** 2
    facing = np.where(walled, dy, middle)
    bulk = np.float32(thing.radius**2 * 1.1)
    hidden = bulk * np.maximum(np.abs(facing), 0.2) / (squared * np.sqrt(squared))
    return np.asarray(np.minimum(hidden, 0.8), dtype=np.float32)


def _unshadowed(
    things: tuple[Thing, ...], points: Triple, light: tuple[float, float, float], samples: int
) -> FloatArray:
    """Return the part of the lamp, 0 to 1, that each point sees past the given things."""
    x, y, z = points
    clear = np.ones_like(x)
    lamp = np.array(_lamp_points(light, samples), dtype=np.float32)
    lx, ly, lz = (lamp[:, axis, None] for axis in range(3))
    for thing in things:
        dx, dy = x - np.float32(thing.x), y - np.float32(thing.y)
        dz = z - np.float32(0.5 * thing.height)
        along = dx * light[0] + dy * light[1] + dz * light[2]
        bulk = math.hypot(thing.reach, 0.5 * thing.height)
        aside = dx * dx + dy * dy + dz * dz - along * along
        near = np.nonzero((along < bulk) & (aside < (bulk - 0.13 * along) ** 2))
        if near[0].size == 0:
            continue
        start = (x[near][None], y[near][None], z[near][None] + _FINGER)
        enter, leave = spans(thing, start, (lx, ly, lz))
        blocked = (enter < leave) & (leave > 0.01)
        clear[near] = np.minimum(clear[near], 1.0 - blocked.mean(axis=0, dtype=np.float32))
    return clear


def _draw(
    scene: Scene,
    thing: Thing,
    eye: tuple[float, float, float],
    rays: Triple,
    light: tuple[float, float, float],
    nearest: FloatArray,
    picture: FloatArray,
) -> None:
    """Draw one thing into the picture wherever it is the nearest so far."""
    side = nearest.shape[0]
    left, bottom, right, top = image_box(thing, scene.view())
    rows = slice(max(0, int((1 - top) * side / 2) - 1), min(side, int((1 - bottom) * side / 2) + 2))
    columns = slice(
        max(0, int((1 + left) * side / 2) - 1), min(side, int((1 + right) * side / 2) + 2)
    )
    window = (rows, columns)
    cut = (rays[0][window], rays[1][window], rays[2][window])
    start = (np.float32(eye[0]), np.float32(eye[1]), np.float32(eye[2]))
    enter, leave = spans(thing, start, cut)  # type: ignore[arg-type]
    seen = (enter < leave) & (enter < nearest[window])
    reach = enter[seen]
    ray = (cut[0][seen], cut[1][seen], cut[2][seen])
    point = (start[0] + reach * ray[0], start[1] + reach * ray[1], start[2] + reach * ray[2])
    nearest[window][seen] = reach
    picture[window][seen] = _shade(scene, thing, point, ray, light)


def _shade(
    scene: Scene, thing: Thing, point: Triple, ray: Triple, light: tuple[float, float, float]
) -> FloatArray:
    """Return the light leaving points of a thing towards the eye."""
    normal = normals(thing, *point)
    nx, ny, nz = normal
    others = tuple(other for other in scene.things if other is not thing)
    facing = nx * light[0] + ny * light[1] + nz * light[2]
    clear = (
        _unshadowed(others, point, light, 5 if len(facing) < 4000 else 24)
        if others
        else np.ones_like(facing)
    )
    sun = np.maximum(facing, 0) * clear
    low = np.clip(point[2] / (0.75 * thing.height), 0, 1)
    open_sky = (0.55 + 0.45 * nz) * (0.55 + 0.45 * low)
    bounce = (0.5 - 0.42 * nz) * (0.25 + 0.75 * np.sqrt(low))
    ground = _ground(scene.floor)
    glow = open_sky[:, None] * (_SKY * np.float32(1.25)) + bounce[:, None] * (
        ground * np.float32(0.42)
    )
    colour = linear(COLOURS[thing.colour])
    body = colour * (sun[:, None] * _SUN + glow)
    if thing.material == "matte":
        return np.asarray(body, dtype=np.float32)
    return np.asarray(
        body * np.float32(0.82) + _gloss(scene, thing, normal, point, ray, light, clear),
        dtype=np.float32,
    )


def _gloss(
    scene: Scene,
    thing: Thing,
    normal: Triple,
    point: Triple,
    ray: Triple,
    light: tuple[float, float, float],
    clear: FloatArray,
) -> FloatArray:
    """Return what a polished surface mirrors: lamp, bright room, floor and other things."""
    along = normal[0] * ray[0] + normal[1] * ray[1] + normal[2] * ray[2]
    rx, ry, rz = (r - 2.0 * along * n for r, n in zip(ray, normal, strict=True))
    mirror = 0.13 + 0.72 * np.clip(1.0 + along, 0, 1) ** 4
    tight = np.clip(rx * light[0] + ry * light[1] + rz * light[2], 0, 1) ** 16
    spark = 2.6 * tight**8 + 0.22 * tight
    if thing.shape in ("cone", "cylinder"):
        flat = np.sqrt((rx * rx + ry * ry) * np.float32(light[0] ** 2 + light[1] ** 2)) + 1e-6
        strip = np.clip((rx * light[0] + ry * light[1]) / flat, 0, 1) ** 16
        spark += 0.75 * strip**4 * (rz < 0.3)
    window = (
        np.clip((rz - 0.28) * 9.0, 0, 1)
        * np.clip((0.78 - rz) * 9.0, 0, 1)
        * np.clip((-ry - 0.1) * 4.0, 0, 1)
    )
    room = np.clip(0.62 + 0.38 * rz, 0, 1)[:, None] * np.array([0.42, 0.47, 0.54], dtype=np.float32)
    reach = point[2] / np.maximum(-rz, 0.05)
    far = np.clip(reach * (0.3 if thing.shape != "ball" else 1.0), 0, 1)[:, None]
    mirrored = _floor_colours(scene, point[0] + reach * rx, point[1] + reach * ry, 256)
    mirrored += (_ground(scene.floor) - mirrored) * far
    world = np.where((rz > 0)[:, None], room + (2.2 * window)[:, None] * np.float32(1.0), mirrored)
    for other in scene.things:
        if other is not thing:
            enter, leave = spans(other, point, (rx, ry, np.clip(rz, -0.85, 0.85)))
            world[(enter < leave) & (enter > 0.01)] = linear(COLOURS[other.colour]) * np.float32(
                0.75
            )
    return np.asarray(mirror[:, None] * world + (spark * clear)[:, None] * _SUN, dtype=np.float32)


def _ground(floor: str) -> FloatArray:
    """Return the mean colour of a floor."""
    return np.asarray(floor_texture(floor, 1)[0, 0], dtype=np.float32)


def _develop(picture: FloatArray, size: int, noise_seed: int) -> npt.NDArray[np.uint8]:
    """Return the picture as display values: samples averaged, gamma applied, sensor noise added."""
    clipped = np.minimum(picture, 1.0)
    share = np.float32(1 / _OVERSAMPLING**2)
    samples = clipped.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3)
    mean = samples.sum(axis=(1, 3)) * share
    display = np.power(mean, np.float32(1 / 2.2)) * np.float32(255.0)
    noise = np.random.default_rng(noise_seed).standard_normal(display.shape, dtype=np.float32)
    noisy = np.clip(display + np.float32(_NOISE) * noise + np.float32(0.5), 0, 255)
    return np.asarray(noisy, dtype=np.uint8)
