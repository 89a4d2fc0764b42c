"""Scenes of the tabletop world: what stands where, and the sampler that draws them."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from gmail_align.errors import DataError
from gmail_align.tabletop.camera import Camera

SHAPES: Final = ("ball", "cube", "cone", "cylinder")
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (208, 34, 38),
    "green": (18, 158, 78),
    "blue": (34, 74, 214),
    "yellow": (246, 208, 36),
    "purple": (128, 48, 186),
    "orange": (246, 122, 20),
    "cyan": (52, 202, 212),
    "white": (234, 234, 231),
}
SIZES: Final = ("small", "large")
MATERIALS: Final = ("matte", "shiny")
FLOORS: Final = ("wooden", "grey", "tiled", "grassy")
SPLITS: Final = ("train", "val", "test")

SCALE: Final = {"small": 0.6, "large": 1.0}
"""Size of a thing relative to its shape's ``EXTENT``."""
EXTENT: Final = {
    "ball": (1.0, 2.0),
    "cube": (0.82, 1.64),
    "cone": (1.08, 2.15),
    "cylinder": (0.84, 1.7),
}
"""Radius (half a side for the cube) and height of each shape at scale 1."""
WALL: Final = 4.3
"""Where the back wall stands on the y axis."""

_COUNT_WEIGHTS: Final = (0.2, 0.45, 0.25, 0.1)
_BUCKETS: Final = {"train": range(80), "val": range(80, 90), "test": range(90, 100)}
_PLACING_TRIES: Final = 60
_MAX_COVER: Final = 0.22


@dataclass(frozen=True)
class Thing:
    """One thing on the table.

    Attributes:
        shape: One of ``SHAPES``.
        colour: One of ``COLOURS``.
        size: One of ``SIZES``.
        material: One of ``MATERIALS``.
        x: Position to the right, in units.
        y: Position away from the camera, in units.
        rotation: Turn around the vertical in radians.
    """

    shape: str
    colour: str
    size: str
    material: str
    x: float
    y: float
    rotation: float

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """The attributes that words can name: shape, colour, size, material."""
        return self.shape, self.colour, self.size, self.material

    @property
    def radius(self) -> float:
        """Radius of the footprint (half a side for a cube), in units."""
        return EXTENT[self.shape][0] * SCALE[self.size]

    @property
    def height(self) -> float:
        """Height above the floor, in units."""
        return EXTENT[self.shape][1] * SCALE[self.size]

    @property
    def reach(self) -> float:
        """Radius of the circle around the footprint, in units."""
        return self.radius * (math.sqrt(2.0) if self.shape == "cube" else 1.0)


@dataclass(frozen=True)
class Scene:
    """Everything that decides an image.

    Attributes:
        floor: One of ``FLOORS``.
        things: What stands on the floor, in the order drawn.
        light: Azimuth (0 is behind the camera, positive is from the right) and elevation, radians.
        camera: Yaw, pitch and distance.
        texture: Shift along x, shift along y and turn of the floor's pattern.
        noise_seed: Seed of the sensor noise and of the choice of words.
    """

    floor: str
    things: tuple[Thing, ...]
    light: tuple[float, float]
    camera: tuple[float, float, float]
    texture: tuple[float, float, float]
    noise_seed: int

    def view(self) -> Camera:
        """Return the camera of the scene."""
        return Camera(*self.camera)

    def signature(self) -> str:
        """Return the name of the scene's combination: its floor and the sorted kinds of things."""
        return "|".join([self.floor, *sorted(" ".join(thing.kind) for thing in self.things)])

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as plain JSON values."""
        record = asdict(self)
        record["things"] = list(record["things"])
        for name in ("light", "camera", "texture"):
            record[name] = list(record[name])
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Scene:
        """Return the scene that ``to_dict`` wrote."""
        light, camera, texture = record["light"], record["camera"], record["texture"]
        return cls(
            floor=record["floor"],
            things=tuple(Thing(**thing) for thing in record["things"]),
            light=(light[0], light[1]),
            camera=(camera[0], camera[1], camera[2]),
            texture=(texture[0], texture[1], texture[2]),
            noise_seed=record["noise_seed"],
        )


def split_of(signature: str) -> str:
    """Return the only split in which scenes of this signature appear."""
    digest = hashlib.blake2b(signature.encode(), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % 100
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def sample_scene(seed: int, split: str = "train") -> Scene:
    """Return the scene with this seed in this split: a pure function of both.

    Combinations (``Scene.signature``) are dealt to the splits by a hash, so no
    combination of a test scene is ever seen in training.

    Args:
        seed: Any whole number; counts up through a split.
        split: One of ``SPLITS``.

    Raises:
        DataError: If the split is unknown.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}:{seed}")
    while True:
        floor, kinds = _sample_kinds(rng)
        signature = "|".join([floor, *sorted(" ".join(kind) for kind in kinds)])
        if split_of(signature) != split:
            continue
        scene = _place(rng, floor, kinds)
        if scene is not None:
            return scene


def _sample_kinds(rng: random.Random) -> tuple[str, list[tuple[str, str, str, str]]]:
    """Return a floor and the kinds of the things on it."""
    count = rng.choices((1, 2, 3, 4), _COUNT_WEIGHTS)[0]
    colours = tuple(COLOURS)
    kinds = [
        (rng.choice(SHAPES), rng.choice(colours), rng.choice(SIZES), rng.choice(MATERIALS))
        for _ in range(count)
    ]
    return rng.choice(FLOORS), kinds


def _place(rng: random.Random, floor: str, kinds: list[tuple[str, str, str, str]]) -> Scene | None:
    """Return a scene in which every thing is well in view, or None when they do not fit."""
    camera = (rng.uniform(-0.2, 0.2), rng.uniform(0.49, 0.57), rng.uniform(13.5, 14.5))
    view = Camera(*camera)
    things: list[Thing] = []
    boxes: list[tuple[float, float, float, float]] = []
    for kind in kinds:
        for _ in range(_PLACING_TRIES):
            thing = Thing(
                *kind,
                x=round(rng.uniform(-2.2, 2.2), 3),
                y=round(rng.uniform(-2.9, 3.0), 3),
                rotation=round(rng.uniform(0.0, math.pi / 2), 3),
            )
            box = image_box(thing, view)
            if _fits(thing, box, things, boxes):
                things.append(thing)
                boxes.append(box)
                break
        else:
            return None
    side = rng.choice((-1.0, 1.0))
    return Scene(
        floor=floor,
        things=tuple(things),
        light=(side * rng.uniform(0.6, 1.45), rng.uniform(0.68, 0.93)),
        camera=camera,
        texture=(rng.uniform(0.0, 12.0), rng.uniform(0.0, 12.0), rng.uniform(-0.35, 0.35)),
        noise_seed=rng.getrandbits(32),
    )


def image_box(thing: Thing, view: Camera) -> tuple[float, float, float, float]:
    """Return the thing's box in the image, in [-1, 1]: left, bottom, right, top."""
    if thing.shape == "cube":
        turn, reach = thing.rotation + math.pi / 4, thing.reach
        ring = [
            (math.cos(turn + k * math.pi / 2) * reach, math.sin(turn + k * math.pi / 2) * reach)
            for k in range(4)
        ]
    else:
        steps = [k * math.pi / 4 for k in range(8)]
        ring = [(math.cos(a) * thing.radius, math.sin(a) * thing.radius) for a in steps]
    if thing.shape == "ball":
        x, y, depth = view.project((thing.x, thing.y, thing.radius))
        r = 1.01 * thing.radius * 14.0 / 2.56 / depth
        return x - r, y - r, x + r, y + r
    points = [view.project((thing.x + dx, thing.y + dy, 0.0)) for dx, dy in ring]
    if thing.shape == "cone":
        points.append(view.project((thing.x, thing.y, thing.height)))
    else:
        points += [view.project((thing.x + dx, thing.y + dy, thing.height)) for dx, dy in ring]
    across, upward = [p[0] for p in points], [p[1] for p in points]
    return min(across), min(upward), max(across), max(upward)


def _fits(
    thing: Thing,
    box: tuple[float, float, float, float],
    others: list[Thing],
    boxes: list[tuple[float, float, float, float]],
) -> bool:
    """Return whether the thing is in the frame, off the wall, touches and hides nothing."""
    if min(box) < -0.96 or max(box) > 0.96 or thing.y + thing.reach > WALL - 0.15:
        return False
    for other, other_box in zip(others, boxes, strict=True):
        gap = math.hypot(thing.x - other.x, thing.y - other.y)
        if gap < thing.reach + other.reach + 0.08:
            return False
        width = min(box[2], other_box[2]) - max(box[0], other_box[0])
        height = min(box[3], other_box[3]) - max(box[1], other_box[1])
        smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other_box))
        if width > 0 and height > 0 and width * height > _MAX_COVER * smaller:
            return False
    return True
