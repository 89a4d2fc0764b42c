"""A trained captioner and the encoder that it reads with: images in, captions out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import DecompressionBombWarning, Image
from torch import Tensor

from gmail_align.artifacts import Artifact, load
from gmail_align.captioning.captioner import load_captioner, read_config
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.predict import caption_batch
from gmail_align.captioning.provenance import require_captioners_encoder
from gmail_align.config import build
from gmail_align.data.model_outputs import cut_mark, tell_cut
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import find_folder
from gmail_align.encoders.preprocess import open_image
from gmail_align.encoders.route import Route, parse_route
from gmail_align.encoders.shipped import SHIPPED
from gmail_align.errors import ConfigError, DataError
from gmail_align.runtime import resolve_device

ENCODER = "encoder"
"""Folder inside a captioner's that holds its encoder; a captioner on the hub has one."""
_BATCH = 32
ImageOrFile = Image | str | os.PathLike[str]


class Captioner:
    """A captioner of any kind, with the encoder whose features it reads.

    :meth:`from_pretrained` opens one, :meth:`caption` captions images.

    Args:
        artifact: The captioner.
        encoder: The encoder that it was trained on, on the device where it runs.
        how: How captions are searched for, and where the captioner runs.
        route: Which of the encoder's weights images go through.
        retrieval: The encoder that an IFCap looks captions up with, when it is another.

    Raises:
        DataError: an encoder is not the captioner's.
        ConfigError: the captioner looks captions up with an encoder that was not given.

    Example:
        >>> from pathlib import Path
        >>> captioner = Captioner.from_pretrained("captioner", encoder="tabletop")
        >>> captioner
        Captioner(clipcap, GmailEncoder(CLIP 4x128/8, plain), route frozen)
        >>> files = sorted(Path("world/images").iterdir())[:2]
        >>> len(captioner.caption(files, {"beam": 1}))
        2
    """

    def __init__(
        self,
        artifact: Artifact,
        encoder: GmailEncoder,
        how: PredictConfig | None = None,
        *,
        route: Route = Route.FROZEN,
        retrieval: GmailEncoder | None = None,
    ) -> None:
        self.how = how or PredictConfig()
        config = read_config(artifact)
        trained_on = config["trained_on"]
        looks_up = trained_on.get("retrieval", "")
        if retrieval is None and looks_up not in ("", trained_on["encoder"]):
            raise ConfigError(
                f"this captioner looks captions up with the encoder {looks_up}: give it as the"
                " retrieval encoder"
            )
        own = [(trained_on["encoder"], encoder)]
        own += [(looks_up, retrieval)] if retrieval is not None else []
        for name, one in own:
            require_captioners_encoder(
                name, one.base_fingerprint, self.how.any_encoder, "the encoder"
            )
        self.artifact, self.kind = artifact, str(config["kind"])
        self.encoder, self.route, self.retrieval = encoder, route, retrieval
        self._model = load_captioner(artifact, resolve_device(self.how.device))

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        encoder: str | os.PathLike[str] | None = None,
        retrieval_encoder: str | os.PathLike[str] | None = None,
        route: str = "frozen",
        device: str = "auto",
    ) -> Captioner:
        """Open a captioner's folder, or a captioner on the Hugging Face hub.

        Args:
            path_or_id: Its folder, or its hub id (``OWNER/NAME@REVISION``).
            encoder: The encoder that it was trained on: a folder, a hub id or ``tabletop``. The one
                inside the captioner's folder when None, or else ``tabletop``.
            retrieval_encoder: The encoder that an IFCap looks captions up with, if it is another.
            route: Which of the encoder's weights images go through.
            device: Where it runs; ``auto`` takes a GPU if there is one.

        Raises:
            ModelError: there is no such folder, and no such model on the hub.
            ArtifactError: the folder holds something else.
            DataError: the encoder is not the captioner's.
        """
        artifact = load(find_folder(os.fspath(path_or_id)), "captioner")
        inside = artifact.path(ENCODER)
        chosen = encoder or (inside if inside.is_dir() else SHIPPED)
        place = resolve_device(device)
        names = [chosen] if retrieval_encoder is None else [chosen, retrieval_encoder]
        reader, *others = [
            GmailEncoder.from_pretrained(os.fspath(name)).to(place) for name in names
        ]
        way, by = parse_route(route), others[0] if others else None
        return cls(artifact, reader, PredictConfig(device=device), route=way, retrieval=by)

    def __repr__(self) -> str:
        """Say its kind, its encoder and how images are read."""
        return f"Captioner({self.kind}, {self.encoder!r}, route {self.route})"

    def caption(
        self, images: Sequence[ImageOrFile], settings: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Return one caption for each image.

        Args:
            images: Image files, or PIL images.
            settings: Keys of ``PredictConfig``, such as ``{"beam": 3}``.

        Raises:
            ConfigError: a key or a value is wrong.
            DataError: a file is missing or not an image.
        """
        how = build(PredictConfig, settings, "settings") if settings else self.how
        return [str(row["text"]) for row in self.describe(images, how)]

    def describe(
        self, images: Sequence[ImageOrFile], how: PredictConfig | None = None
    ) -> list[dict[str, object]]:
        """Return ``{file, text, log_prob}`` of each image; ``file`` numbers those without one.

        A caption that stopped at its longest length, before an end, has ``cut`` too.

        Raises:
            DataError: a file is missing or not an image.
        """
        names = [_name(number, image) for number, image in enumerate(images)]
        rows = [row for rows in self._batches(images, names, how or self.how) for row in rows]
        tell_cut(rows, self._model.decoding.max_tokens)
        return rows

    def _batches(
        self, images: Sequence[ImageOrFile], names: Sequence[str], how: PredictConfig
    ) -> Iterator[list[dict[str, object]]]:
        for start in range(0, len(images), _BATCH):
            part = [_opened(image) for image in images[start : start + _BATCH]]
            ids = names[start : start + _BATCH]
            keys = None
            if self.retrieval is not None:
                keys = _features(self.retrieval, part, Route.FROZEN)
            features = _features(self.encoder, part, self.route)
            captions = caption_batch(self._model, ids, features, keys, how)
            yield [
                {
                    "file": name,
                    "text": caption.text,
                    "log_prob": caption.log_prob,
                    **cut_mark(caption.cut),
                }
                for name, caption in zip(ids, captions, strict=True)
            ]


def _name(number: int, image: ImageOrFile) -> str:
    """Return the name of an image, which seeds what is drawn."""
    if isinstance(image, Image):
        return f"image {number}"
    path = Path(image)
    if not path.is_file():
        reason = "it is not a file" if path.exists() else "the file does not exist"
        raise DataError(f"{path} cannot be read: {reason}")
    return str(path)


def _opened(image: ImageOrFile) -> Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecompressionBombWarning)  # an error says so
        return open_image(image if isinstance(image, Image) else Path(image))


@torch.no_grad()
def _features(encoder: GmailEncoder, images: Sequence[Image], route: Route) -> Float[Tensor, "n d"]:
    """Return features of images, not normalised, as extraction stores them."""
    pixels = encoder.preprocess(images).to(encoder.device)
    return encoder.embed_pixels(pixels, route).float().cpu()
