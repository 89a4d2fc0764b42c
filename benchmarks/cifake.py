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
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, pad

POOL, SIDE = "AVERAGE_POOL_2D", 224


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
        rows = [embed(load(archive, members[at : at + 50])) for at in range(0, len(members), 50)]
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


def load(archive: zipfile.ZipFile, names: list[str]) -> Tensor:
    """Return images as input of the network, (n, 3, 224, 224) in -1..1."""
    images = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    sized = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in images]
    return torch.from_numpy(np.stack(sized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def mobilenet(path: Path) -> Callable[[Tensor], np.ndarray]:
    """Return the network up to its pooled features, as the graph in the file says."""
    file = np.load(path)
    graph = json.loads(file["graph.json"].tobytes())
    ops = graph["ops"]
    ops = ops[: next(at for at, op in enumerate(ops) if op["op"] == POOL) + 1]
    tensors = {key: torch.from_numpy(file[key].astype(np.float32)) for key in file.files[:-1]}

    @torch.no_grad()
    def embed(images: Tensor) -> np.ndarray:
        values = {graph["input"]: images}
        for op in ops:
            values[op["output"]] = step(op, [values[name] for name in op["inputs"]], tensors)
        return values[ops[-1]["output"]].numpy()

    return embed


def step(op: dict, inputs: list[Tensor], tensors: dict[str, Tensor]) -> Tensor:
    """Run one operation."""
    if op["op"] == POOL:
        return inputs[0].mean((2, 3))
    if op["op"] == "ADD":
        return inputs[0] + inputs[1]
    weight, bias = tensors[f"{op['w']}.w"], tensors[f"{op['w']}.b"]
    kernel, stride = weight.shape[-1], op["stride"]
    around = (kernel - 1) // 2
    sides = (around, around) if stride == 1 else (0, around)  # TensorFlow's SAME
    groups = weight.shape[0] if op["depthwise"] else 1
    out = conv2d(pad(inputs[0], sides * 2), weight, bias, stride=stride, groups=groups)
    return out.clamp(0, 6) if op["act"] == 3 else out


if __name__ == "__main__":
    main()
