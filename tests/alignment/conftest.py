"""The tiny CLIP and the tiny world of these tests."""

from __future__ import annotations

import runpy
from pathlib import Path

_small = runpy.run_path(str(Path(__file__).parents[1] / "encoders" / "small.py"))
build_clip, clip_folder, siglip_folder, world = (
    _small[name] for name in ("build_clip", "clip_folder", "siglip_folder", "world")
)
