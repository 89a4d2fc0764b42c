"""Images to model input, resized, cropped and normalised as transformers' PIL processors do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from gmail_align.artifacts import fingerprint
from gmail_align.data.decode import decode_rgb, finished, upright
from gmail_align.encoders.resize import planes, resized_centre
from gmail_align.errors import DataError, ModelError, damage_explained

Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic"]

_RESAMPLING: Final[dict[Interpolation, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
PREPROCESSOR: Final = "preprocessor_config.json"
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)
_WIDEST: Final = 8192
"""Longest side that is padded to a square; longer ones are averaged first, to bound its memory."""


@dataclass(frozen=True)
class Preprocess:
    """One way from an image to model input; the defaults are CLIP's.

    ``size`` is the side in pixels of the square that comes out. ``resize`` scales the shortest
    side to ``resize_to`` (default: ``size``) and, with ``crop``, cuts out the centre; or it
    squeezes the image into the square.
    """

    size: int = 224
    resize: Literal["shortest", "square"] = "shortest"
    crop: bool = True
    mean: tuple[float, float, float] = _MEAN
    std: tuple[float, float, float] = _STD
    interpolation: Interpolation = "bicubic"
    resize_to: int | None = None
    pad: bool = False
    """Whether an image is first put on a square of the mean colour, as LLaVA-1.5 does."""

    @classmethod
    def from_folder(cls, path: Path) -> Preprocess:
        """Read the ``preprocessor_config.json`` of a CLIP or SigLIP folder of Hugging Face.

        Raises:
            ModelError: it is missing, damaged, or asks for steps that are not done here.
        """
        single = path / PREPROCESSOR
        file = single if single.exists() else path / "processor_config.json"
        if not file.exists():
            raise ModelError(f"{path} has no {PREPROCESSOR}: save the model's processor there")
        with damage_explained(file, ModelError, "save the model's processor again"):
            return _parse(_read_config(file), path)

    def to_config(self) -> dict[str, Any]:
        """Return the ``preprocessor_config.json`` that asks transformers for these steps."""
        side = {"height": self.size, "width": self.size}
        square = self.resize == "square"
        return {
            "image_processor_type": "LlavaImageProcessor" if self.pad else "CLIPImageProcessor",
            **({"do_pad": True} if self.pad else {}),
            "do_resize": True,
            "size": side if square else {"shortest_edge": self.resize_to or self.size},
            "resample": int(_RESAMPLING[self.interpolation]),
            "do_center_crop": not square,
            "crop_size": side,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }

    @property
    def fingerprint(self) -> str:
        """Identity of the steps and their parameters."""
        steps = asdict(self)
        return fingerprint(steps if self.pad else {n: steps[n] for n in steps if n != "pad"})

    def __call__(self, images: Image.Image | Iterable[Image.Image]) -> Float[Tensor, "b 3 s s"]:
        """Return model input, float32; a single image gives a batch of one."""
        batch = [images] if isinstance(images, Image.Image) else images
        return self.normalise(self.pixels(batch))

    def pixels(self, images: Iterable[Image.Image]) -> UInt8[Tensor, "b 3 s s"]:
        """Resize and crop, without normalising: what is worth keeping of a decoded image.

        Images are turned as their EXIF tags say, and brought to sRGB on white, where they are not.
        """
        arrays = [planes(self._fit(finished(upright(image)))) for image in images]
        shape = (0, 3, self.size, self.size)
        return torch.from_numpy(np.stack(arrays) if arrays else np.empty(shape, dtype=np.uint8))

    def normalise(self, pixels: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
        """Scale to [0, 1], subtract the mean and divide by the deviation, on any device."""
        if pixels.device.type == "cpu" and self._divides:
            out = torch.from_numpy(np.empty(pixels.shape, np.float32))  # asks for huge pages
            for row, image in zip(out, pixels, strict=True):  # one image stays in the cache
                self._divide(row.copy_(image))
            return out
        out = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
        table = self._table.to(pixels.device)
        for c in range(3):
            values = table[c].index_select(0, pixels[:, c].reshape(-1).int())
            out[:, c] = values.view_as(pixels[:, c])
        return out

    @cached_property
    def _table(self) -> Float[Tensor, "3 256"]:
        """The normalised value of every byte, in the arithmetic of transformers' PIL processors."""
        scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        return torch.from_numpy(((scaled[:, None] - mean) / std).T.copy())

    @cached_property
    def _divides(self) -> bool:
        """Whether plain division in float32, which is faster, gives the table's every value."""
        bytes_ = torch.arange(256.0).expand(3, 1, 256).clone()
        return torch.equal(self._divide(bytes_).view(3, 256), self._table)

    def _divide(self, values: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return values.div_(255).sub_(self._columns[0]).div_(self._columns[1])

    @cached_property
    def _columns(self) -> Float[Tensor, "2 3 1 1"]:
        """Mean and deviation of each channel."""
        return torch.tensor([self.mean, self.std], dtype=torch.float32).view(2, 3, 1, 1)

    def _fit(self, image: Image.Image) -> Image.Image:
        method = _RESAMPLING[self.interpolation]
        if self.pad:
            if max(image.size) > _WIDEST:
                image = image.reduce(-(-max(image.size) // _WIDEST))
            side, (width, height) = max(image.size), image.size
            square = Image.new("RGB", (side, side), tuple(int(255 * one) for one in self.mean))
            square.paste(image, ((side - width) // 2, (side - height) // 2))
            image = square
        if self.resize == "square":
            return image.resize((self.size, self.size), resample=method)
        target = self.resize_to or self.size
        short, long = sorted(image.size)
        other = int(target * long / short)
        wide = image.width > image.height
        size = (other, target) if wide else (target, other)
        return resized_centre(image, size, self.size, method)


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """Return an upright RGB image of a file, or of an image that is open already.

    Raises:
        DataError: the file is missing or is not an image.
    """
    if isinstance(image, Image.Image):
        return finished(upright(image))
    with damage_explained(Path(image)):
        data = Path(image).read_bytes()
    try:
        return decode_rgb(data)
    except DataError as error:
        raise DataError(f"{image}: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    config: Any = json.loads(path.read_text(encoding="utf-8"))
    config = config if path.name == PREPROCESSOR else config["image_processor"]
    if not isinstance(config, dict):
        raise ValueError("it does not hold an object")
    return config


@dataclass(frozen=True)
class _Defaults:
    """What a class of transformers takes for a key that its configuration leaves out."""

    crop: bool
    square: bool
    """Whether a single number as ``size`` is a square's side, instead of the shortest one's."""
    resample: int = 3
    crop_size: int = 224


_PROCESSORS: Final = {
    **dict.fromkeys(("CLIP", "Llava", "Bit"), _Defaults(crop=True, square=False)),
    **dict.fromkeys(("Siglip", "Blip"), _Defaults(crop=False, square=True)),
    "ViT": _Defaults(crop=False, square=True, resample=2),
    "DeiT": _Defaults(crop=True, square=True),
}
"""The processors whose steps are known, by the first part of the names of their classes."""
_READ: Final = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale"),
    *("rescale_factor", "do_normalize", "image_mean", "image_std", "do_pad"),
    *("image_processor_type", "feature_extractor_type"),
    # These make no difference to an RGB image.
    *("do_convert_rgb", "data_format", "input_data_format", "processor_class", "return_tensors"),
    *("transformers_version", "_valid_processor_keys", "device", "disable_grouping"),
}


def _parse(config: dict[str, Any], path: Path) -> Preprocess:
    where = f"the preprocessor configuration in {path}"
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    kind = kind or _processor_of(path)
    default = _defaults(config, kind, where)
    if not all(config.get(key, True) for key in ("do_resize", "do_rescale", "do_normalize")):
        raise ModelError(
            f"{where} leaves out resizing, rescaling or normalising, which is not supported"
        )
    if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-12:
        raise ModelError(f"{where} rescales by {config['rescale_factor']}; only 1/255 is supported")
    pad = bool(config.get("do_pad"))
    if pad and not str(kind).startswith("LlavaImageProcessor"):
        raise ModelError(f"{where} pads, which is not supported")
    resample = config.get("resample", default.resample)
    names = {int(value): name for name, value in _RESAMPLING.items()}
    if resample not in names:
        raise ModelError(f"{where} resamples by method {resample}; known are {sorted(names)}")
    mean, std = (_triple(config.get(key), where, key) for key in ("image_mean", "image_std"))
    if 0.0 in std:
        raise ModelError(f"{where} has the image_std {std}, by which nothing can be divided")
    size, crop = config.get("size", 224), bool(config.get("do_center_crop", default.crop))
    crop_size = config.get("crop_size", default.crop_size)
    squeezed = default.square if isinstance(size, int) else "height" in size
    if squeezed:
        side = _side(size, "size", where)
        if crop and _side(crop_size, "crop_size", where) != side:
            raise ModelError(
                f"{where} resizes to a square and then crops it, which is not supported"
            )
        return Preprocess(side, "square", False, mean, std, names[resample], pad=pad)
    shortest = _side(size, "size", where)
    if not crop:
        raise ModelError(
            f"{where} neither crops nor resizes to a square: its output has no fixed size"
        )
    side = _side(crop_size, "crop_size", where)
    resize_to = None if side == shortest else shortest
    return Preprocess(side, "shortest", True, mean, std, names[resample], resize_to, pad)


def _processor_of(path: Path) -> str | None:
    """Return the processor that transformers takes for a folder's model where none is named."""
    if not (path / "config.json").exists():
        return None
    model = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    return next((name for name in _PROCESSORS if name.lower() == model), None)


def _defaults(config: dict[str, Any], kind: Any, where: str) -> _Defaults:
    """Return what the named processor takes for keys that are left out.

    Raises:
        ModelError: it takes other steps than those here, a key asks for one, or a key is left out
            and no processor is named.
    """
    known = _PROCESSORS.get(re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(kind)))
    if known is None and kind is not None:
        raise ModelError(
            f"{where} is of {kind}, whose steps are not known: use one of {', '.join(_PROCESSORS)}"
        )
    odd = [key for key in config.keys() - _READ if config[key] not in (None, False)]
    if odd:
        raise ModelError(
            f"{where} has {min(odd)}, which is not supported: if it makes no difference, remove it"
        )
    unsaid = {"resample", "do_center_crop", "crop_size"} - config.keys()
    if known is None and unsaid:
        raise ModelError(f"{where} names no processor and leaves out {min(unsaid)}: add it")
    return known or _PROCESSORS["CLIP"]


def _side(value: Any, key: str, where: str) -> int:
    sides = {value} if isinstance(value, int) else set()
    if isinstance(value, dict) and set(value) in ({"height", "width"}, {"shortest_edge"}):
        sides = set(value.values())
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ModelError(f"{where} has the {key} {value!r}; only squares are supported")
    return int(sides.pop())


def _triple(value: Sequence[float] | None, where: str, key: str) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ModelError(f"{where} has no {key} of three numbers")
    first, second, third = map(float, value)
    if not math.isfinite(first + second + third):
        raise ModelError(f"{where} has the {key} {value}, which is not finite")
    return first, second, third
