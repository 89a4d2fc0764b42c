"""Features of CIFAKE for ``gmail-align gap``: real CIFAR-10 photos and Stable Diffusion 1.4 images.

    python benchmarks/cifake.py --data DATA --out FOLDER [--each 250]
    gmail-align gap --real-features FOLDER/real.npy --generated-features FOLDER/generated.npy \
        --real-classes FOLDER/real.txt --generated-classes FOLDER/generated.txt --out FOLDER/gap

DATA holds ``cifake/train_{real,fake}.zip`` (members ``K_class/NNNNN.jpg``) and
``mobilenet_v2_imagenet/mobilenet_v2_1.0_224_imagenet_fp16.npz`` (weights with the batch norms
folded in, and the graph as JSON). Features are the pooled 1280 numbers of that MobileNetV2 (Google,
ImageNet) at 224 pixels, from images resized bicubically.
"""

from __future__ import annotations

import argparse
import time
import zipfile
from pathlib import Path

import numpy as np

from gmail_align.studies.cifake_features import image_pixels, mobilenet


def main() -> None:
    """Write the features and the class of every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=250, help="images a class and kind")
    given = parser.parse_args()
    weights = given.data / "mobilenet_v2_imagenet" / "mobilenet_v2_1.0_224_imagenet_fp16.npz"
    embed = mobilenet(weights)
    given.out.mkdir(parents=True, exist_ok=True)
    for side, name in (("real", "real"), ("fake", "generated")):
        start = time.monotonic()
        archive = zipfile.ZipFile(given.data / "cifake" / f"train_{side}.zip")
        members = chosen(archive.namelist(), given.each)
        rows = [
            embed(image_pixels([archive.read(name) for name in members[at : at + 50]]))
            for at in range(0, len(members), 50)
        ]
        np.save(given.out / f"{name}.npy", np.concatenate(rows))
        classes = [member.split("/")[0].split("_", 1)[1] for member in members]
        (given.out / f"{name}.txt").write_text("\n".join(classes) + "\n")
        print(f"{name}: {len(members)} images, {time.monotonic() - start:.0f} s")


def chosen(names: list[str], each: int) -> list[str]:
    """Return the first ``each`` images of every class, by name."""
    groups: dict[str, list[str]] = {}
    for name in sorted(name for name in names if name.endswith(".jpg")):
        groups.setdefault(name.split("/")[0], []).append(name)
    return [name for members in groups.values() for name in members[:each]]


if __name__ == "__main__":
    main()
