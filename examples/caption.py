"""Caption image files with a captioner that was trained on generated images.

python examples/caption.py work/captioner work/encoder photo1.jpg photo2.jpg
"""

from __future__ import annotations

import sys

import gmail_align as ga


def main(captioner: str, encoder: str, *images: str) -> None:
    """Print each file and its caption."""
    model = ga.Captioner.from_pretrained(captioner, encoder=encoder)
    for image, caption in zip(images, model.caption(images), strict=True):
        print(f"{image}\t{caption}")


if __name__ == "__main__":
    main(*sys.argv[1:])
