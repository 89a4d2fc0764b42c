"""How far are generated images from real ones? Two folders in, a table out.

python examples/gap.py photos/ generated/ --encoder openai/clip-vit-base-patch32
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import gmail_align as ga

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> None:
    """Embed both folders, and measure the gap between them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path)
    parser.add_argument("generated", type=Path)
    parser.add_argument("--encoder", default="tabletop", help="a CLIP: folder or hub id")
    options = parser.parse_args()
    encoder = ga.GmailEncoder.from_pretrained(options.encoder)
    for name, folder in (("real", options.real), ("generated", options.generated)):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        np.save(f"{name}.npy", encoder.encode_images(files, route="frozen").numpy())
    print(ga.measure_gap("real.npy", "generated.npy").to_pandas().to_string(index=False))


if __name__ == "__main__":
    main()
