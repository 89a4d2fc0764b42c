"""The pinhole camera that looks down at the table, and where a point lands in its image."""

from __future__ import annotations

import math
from dataclasses import dataclass

TARGET = (0.0, 0.0, 0.55)
"""The point every camera looks at, in scene units (x right, y away, z up)."""

FOCAL = 14.0 / 2.56
"""Focal length in half-widths of the image: 2.56 units fill half the image at a distance of 14."""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """Where the camera stands around ``TARGET``.

    Attributes:
        yaw: Turn around the vertical in radians; 0 looks straight along +y.
        pitch: Angle downwards in radians.
        distance: Units from ``TARGET``.
    """

    yaw: float
    pitch: float
    distance: float

    def frame(self) -> tuple[Vector, Vector, Vector, Vector]:
        """Return the position and the unit vectors forward, right and up."""
        sin_yaw, cos_yaw = math.sin(self.yaw), math.cos(self.yaw)
        sin_pitch, cos_pitch = math.sin(self.pitch), math.cos(self.pitch)
        forward = (-sin_yaw * cos_pitch, cos_yaw * cos_pitch, -sin_pitch)
        position = (
            TARGET[0] - self.distance * forward[0],
            TARGET[1] - self.distance * forward[1],
            TARGET[2] - self.distance * forward[2],
        )
        right = (cos_yaw, sin_yaw, 0.0)
        up = (-sin_yaw * sin_pitch, cos_yaw * sin_pitch, cos_pitch)
        return position, forward, right, up

    def project(self, point: Vector) -> tuple[float, float, float]:
        """Return image x (right) and y (up), in [-1, 1] inside the frame, and depth in units."""
        position, forward, right, up = self.frame()
        offset = (point[0] - position[0], point[1] - position[1], point[2] - position[2])
        depth = _dot(offset, forward)
        return FOCAL * _dot(offset, right) / depth, FOCAL * _dot(offset, up) / depth, depth


def _dot(a: Vector, b: Vector) -> float:
    """Return the inner product of two vectors."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
