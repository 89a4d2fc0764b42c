"""Run the command line and count what it decodes and embeds: ``counted.py COUNTS WORDS...``.

The counts say how often each image was decoded by each preprocessing, and how often its pixels
went through the frozen tower of each model. METEOR has few paraphrases, as in all tests.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from gmail_align.cli.main import app
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.encoders.route import Route
from gmail_align.metrics import meteor

sys.path.insert(0, str(Path(__file__).parents[1]))
from worlds.runs import with_few_paraphrases

DECODED: Counter[str] = Counter()
EMBEDDED: Counter[str] = Counter()
pixels, trunk = Preprocess.pixels, GmailEncoder.trunk


def counted_pixels(self, images):
    for image in images:
        digest = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
        DECODED[f"{self.fingerprint} {digest}"] += 1
    return pixels(self, images)


def counted_trunk(self, images, route=Route.REAL):
    if self.route_fingerprint(route) == self.base_fingerprint:
        for image in images.cpu().numpy():
            EMBEDDED[f"{self.base_fingerprint} {hashlib.sha256(image.tobytes()).hexdigest()}"] += 1
    return trunk(self, images, route)


if __name__ == "__main__":
    Preprocess.pixels, GmailEncoder.trunk = counted_pixels, counted_trunk
    meteor.jar = with_few_paraphrases(meteor.jar, Path(sys.argv[1]).parent)
    try:
        app(sys.argv[2:], prog_name="gmail-align")
    finally:
        counts = {"decoded": sorted(DECODED.values()), "embedded": sorted(EMBEDDED.values())}
        Path(sys.argv[1]).write_text(json.dumps(counts))
