"""The names of losses between images and texts, by which models are trained."""

from __future__ import annotations

from typing import Literal

TextKind = Literal["softmax", "sigmoid", "long_short"]
"""``softmax``: CLIP's. ``sigmoid``: SigLIP's. ``long_short``: Long-CLIP's."""
