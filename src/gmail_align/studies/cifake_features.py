"""Features of CIFAKE: real CIFAR-10 photos and Stable Diffusion 1.4 images of the same classes.

The encoder is a MobileNetV2 (Google, ImageNet) at 224 pixels. Its file holds the weights with the
batch norms folded in, and the graph as JSON; the features are the 1,280 pooled numbers.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, pad

from gmail_align.artifacts import fingerprint, write_bytes
from gmail_align.errors import DataError, damage_explained
from gmail_align.progress import progress

IMAGES: Final = {".jpg", ".jpeg", ".png", ".webp"}
POOL, SIDE, BATCH = "AVERAGE_POOL_2D", 224, 50
EACH: Final = {"real": 650, "fake": 500}
"""Images of each class that are embedded, where there are so many."""
NETWORK: Final = "mobilenet_v2_imagenet/mobilenet_v2_1.0_224_imagenet_fp16.npz"


@dataclass(frozen=True)
class CifakeFeatures:
    """Features by class: (classes, images, 1280) of each kind, and what they were made from."""

    real: Tensor
    generated: Tensor
    fingerprint: str


def cifake_features(data: Path, home: Path) -> CifakeFeatures:
    """Embed the first images of every class, or read what was embedded before.

    Args:
        data: Folder with ``*real.zip`` and ``*fake.zip`` (or a folder ``cifake`` with them), whose
            images lie in folders named after their classes; beside them or one folder up the
            network, as ``mobilenet_v2_imagenet/*.npz``.
        home: Folder where features are kept.

    Raises:
        DataError: a file is missing or damaged, or the zips do not have the same classes.
    """
    network = network_of(data)
    sides = [_Side.open(zip_of(data, kind), EACH[kind]) for kind in EACH]
    if sides[0].classes != sides[1].classes:
        raise DataError(f"{sides[0].path} and {sides[1].path} do not have the same classes")
    known = fingerprint([network.stat().st_size, *(side.identity for side in sides)])[:16]
    embed = None
    arrays = []
    for side, kind in zip(sides, EACH, strict=True):
        path = home / f"{kind}-{known}.npy"
        if not path.exists():
            embed = embed or mobilenet(network)
            file = io.BytesIO()
            np.save(file, side.embedded(embed))
            home.mkdir(parents=True, exist_ok=True)
            write_bytes(path, file.getvalue())
        arrays.append(torch.from_numpy(np.load(path)))
    return CifakeFeatures(arrays[0], arrays[1], known)


@dataclass(frozen=True)
class _Side:
    """The chosen members of one zip, class by class."""

    path: Path
    members: Mapping[str, Sequence[str]]

    @classmethod
    def open(cls, path: Path, each: int) -> _Side:
        with damage_explained(path), zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
        groups: dict[str, list[str]] = {}
        for name in names:
            place = PurePosixPath(name)
            if place.suffix.lower() in IMAGES and not place.name.startswith("."):
                groups.setdefault(place.parent.name, []).append(name)
        groups.pop("", None)  # images outside of a folder have no class
        if len(groups) < 2:
            raise DataError(f"{path} needs images in folders named after at least two classes")
        count = min(each, *(len(own) for own in groups.values()))
        return cls(path, {name: own[:count] for name, own in groups.items()})

    @property
    def classes(self) -> list[str]:
        return list(self.members)

    @property
    def identity(self) -> list[Any]:
        return [self.path.stat().st_size, dict(self.members)]

    def embedded(self, embed: Callable[[Tensor], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the features of all members, (classes, images, 1280)."""
        names = [name for own in self.members.values() for name in own]
        rows = []
        with (
            damage_explained(self.path),
            zipfile.ZipFile(self.path) as archive,
            progress(f"features of {self.path.name}", len(names), "image") as bar,
        ):
            for at in range(0, len(names), BATCH):
                part = names[at : at + BATCH]
                rows.append(embed(image_pixels([archive.read(name) for name in part])))
                bar.advance(len(part))
        return np.concatenate(rows).reshape(len(self.members), -1, rows[0].shape[1])


def zip_of(data: Path, kind: str) -> Path:
    """Return the zip of a kind; of several, the last by name, so that train comes before test."""
    zips = sorted([*data.glob(f"*{kind}.zip"), *(data / "cifake").glob(f"*{kind}.zip")])
    if not zips:
        raise DataError(f"{data} does not hold *{kind}.zip: give the folder of CIFAKE's zips")
    return zips[-1]


def network_of(data: Path) -> Path:
    """Return the file of the MobileNetV2, in the folder of the data or one folder up.

    Raises:
        DataError: there is none.
    """
    for folder in (data, data.parent):
        if (folder / NETWORK).is_file():
            return folder / NETWORK
    raise DataError(f"{data} does not hold {NETWORK}: put the network there or one folder up")


def image_pixels(files: Sequence[bytes]) -> Tensor:
    """Return images as input of the network, (n, 3, 224, 224) in -1..1."""
    images = [Image.open(io.BytesIO(one)).convert("RGB") for one in files]
    sized = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in images]
    return torch.from_numpy(np.stack(sized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def mobilenet(path: Path, *, pooled: bool = True) -> Callable[[Tensor], NDArray[np.float32]]:
    """Return the network up to its pooled features, as the graph in the file says.

    Args:
        path: The file.
        pooled: Whether places are averaged; else features are (n, 1280, 7, 7).

    Raises:
        DataError: the file is damaged.
    """
    with damage_explained(path):
        file = np.load(path)
        graph = json.loads(file["graph.json"].tobytes())
        tensors = {
            key: torch.from_numpy(file[key].astype(np.float32))
            for key in file.files
            if key != "graph.json"
        }
    ops = graph["ops"]
    ops = ops[: next(at for at, op in enumerate(ops) if op["op"] == POOL) + pooled]

    @torch.no_grad()
    def embed(images: Tensor) -> NDArray[np.float32]:
        values = {graph["input"]: images}
        for op in ops:
            values[op["output"]] = _step(op, [values[name] for name in op["inputs"]], tensors)
        last: NDArray[np.float32] = values[ops[-1]["output"]].numpy()
        return last

    return embed


def _step(op: Mapping[str, Any], inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
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
