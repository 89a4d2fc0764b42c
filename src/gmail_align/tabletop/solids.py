"""Rays against the four solids: where a ray enters and leaves, and which way the surface faces."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gmail_align.tabletop.scenes import Thing

FloatArray = npt.NDArray[np.float32]
Triple = tuple[FloatArray, FloatArray, FloatArray]

_FAR = np.float32(1e9)


def spans(thing: Thing, origin: Triple, direction: Triple) -> tuple[FloatArray, FloatArray]:
    """Return the distances at which rays enter and leave a thing; a ray misses where entry >= exit.

    Args:
        thing: Any convex solid of the world; a cone needs rays less steep than its side.
        origin: x, y, z of the rays' starts, of any shapes that broadcast.
        direction: x, y, z of the rays, not necessarily of unit length.
    """
    local, turned = _to_local(thing, origin), _turn(thing, direction)
    with np.errstate(divide="ignore", invalid="ignore"):
        if thing.shape == "ball":
            return _ball_spans(thing.radius, local, turned)
        if thing.shape == "cube":
            return _cube_spans(thing.radius, local, turned)
        if thing.shape == "cone":
            return _cone_spans(thing.radius, thing.height, local, turned)
        return _cylinder_spans(thing.radius, thing.height, local, turned)


def normals(thing: Thing, x: FloatArray, y: FloatArray, z: FloatArray) -> Triple:
    """Return the outward unit normals at points of a surface (cubes' edges slightly rounded)."""
    px, py, pz = _to_local(thing, (x, y, z))
    r, h = np.float32(thing.radius), np.float32(thing.height)
    if thing.shape == "ball":
        return px / r, py / r, (pz - r) / r
    if thing.shape == "cube":
        nx, ny, nz = (_bevel(p / r) for p in (px, py, pz - r))
        scale = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
        return _turn(thing, (nx * scale, ny * scale, nz * scale), back=True)
    if thing.shape == "cone":
        across = np.asarray(np.sqrt(px * px + py * py) + 1e-6, dtype=np.float32)
        side = math.hypot(r, h)
        steep, level = np.float32(h / side), np.float32(r / side)
        return px / across * steep, py / across * steep, np.full_like(px, level)
    top = pz > h * 0.998
    return (
        np.where(top, 0, px / r),
        np.where(top, 0, py / r),
        np.where(top, np.float32(1), np.float32(0)),
    )


def _bevel(p: FloatArray) -> FloatArray:
    """Return a coordinate of a superellipsoid's normal: a box's, rounded close to the edge."""
    p2 = p * p
    p8 = p2 * p2 * p2 * p2
    return np.asarray(p8 * p8 * p8 * p, dtype=np.float32)


def _to_local(thing: Thing, point: Triple) -> Triple:
    """Return points seen from the centre of the thing's foot."""
    return _turn(thing, (point[0] - np.float32(thing.x), point[1] - np.float32(thing.y), point[2]))


def _turn(thing: Thing, vector: Triple, back: bool = False) -> Triple:
    """Return vectors in the axes of the thing (or back in the world's); only a cube is turned."""
    if thing.shape != "cube":
        return vector
    angle = thing.rotation if back else -thing.rotation
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    x, y, z = vector
    return x * cos - y * sin, x * sin + y * cos, z


def _between_roots(a: FloatArray, b: FloatArray, c: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return where a t^2 + 2 b t + c <= 0 begins and ends, a > 0; begin > end where never."""
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    missed = inside <= 0
    return np.where(missed, _FAR, (-b - root) / a), np.where(missed, -_FAR, (-b + root) / a)


def _slab(
    origin: FloatArray, direction: FloatArray, low: float, high: float
) -> tuple[FloatArray, FloatArray]:
    """Return where a ray is between two parallel planes."""
    first, second = (low - origin) / direction, (high - origin) / direction
    return np.minimum(first, second), np.maximum(first, second)


def _ball_spans(r: float, o: Triple, d: Triple) -> tuple[FloatArray, FloatArray]:
    """Return the span inside a ball resting on the floor."""
    oz = o[2] - np.float32(r)
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + oz * d[2]
    return _between_roots(a, b, o[0] * o[0] + o[1] * o[1] + oz * oz - np.float32(r * r))


def _cube_spans(r: float, o: Triple, d: Triple) -> tuple[FloatArray, FloatArray]:
    """Return the span inside a cube of half side r resting on the floor."""
    x0, x1 = _slab(o[0], d[0], -r, r)
    y0, y1 = _slab(o[1], d[1], -r, r)
    z0, z1 = _slab(o[2], d[2], 0.0, 2 * r)
    return np.maximum(np.maximum(x0, y0), z0), np.minimum(np.minimum(x1, y1), z1)


def _cone_spans(r: float, h: float, o: Triple, d: Triple) -> tuple[FloatArray, FloatArray]:
    """Return the span inside an upright cone, for rays less steep than its side."""
    slope = np.float32((r / h) ** 2)
    below = o[2] - np.float32(h)
    a = d[0] * d[0] + d[1] * d[1] - slope * d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] - slope * below * d[2]
    side0, side1 = _between_roots(a, b, o[0] * o[0] + o[1] * o[1] - slope * below * below)
    z0, z1 = _slab(o[2], d[2], 0.0, h)
    return np.maximum(side0, z0), np.minimum(side1, z1)


def _cylinder_spans(r: float, h: float, o: Triple, d: Triple) -> tuple[FloatArray, FloatArray]:
    """Return the span inside an upright cylinder."""
    a = d[0] * d[0] + d[1] * d[1]
    b = o[0] * d[0] + o[1] * d[1]
    side0, side1 = _between_roots(a, b, o[0] * o[0] + o[1] * o[1] - np.float32(r * r))
    z0, z1 = _slab(o[2], d[2], 0.0, h)
    return np.maximum(side0, z0), np.minimum(side1, z1)
