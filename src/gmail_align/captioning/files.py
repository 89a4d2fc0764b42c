"""Captions of image files, with a captioner and the encoder that it reads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL.Image import DecompressionBombWarning
from torch import Tensor

from gmail_align.artifacts import Artifact
from gmail_align.captioning.clipcap.folder import captioner_config
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.origin import require_same_encoder
from gmail_align.captioning.predict import Opened
from gmail_align.data.decode import decode_rgb
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError, DataError

_BATCH = 32


def caption_files(
    captioner: Artifact,
    encoder: GmailEncoder,
    files: Sequence[Path],
    route: Route,
    config: PredictConfig | None = None,
    *,
    retrieval: GmailEncoder | None = None,
) -> list[dict[str, object]]:
    """Caption image files; returns ``{file, text, log_prob}`` of each, in their order.

    Args:
        captioner: A ClipCap or an IFCap.
        encoder: What it was trained on, on the device where it shall run.
        files: Images.
        route: Which of the encoder's weights they go through.
        config: How captions are searched for.
        retrieval: The encoder that an IFCap looks captions up with, when it is another.

    Raises:
        DataError: a file is missing or no image, or an encoder is not the captioner's.
        ConfigError: the captioner looks captions up with an encoder that was not given.
    """
    how = config or PredictConfig()
    trained_on = captioner_config(captioner)["trained_on"]
    looks = trained_on.get("retrieval", "")
    if retrieval is None and looks not in ("", trained_on["encoder"]):
        raise ConfigError(
            f"this captioner looks captions up with the encoder {looks}: give it as retrieval"
            " encoder"
        )
    own = [(trained_on["encoder"], encoder)]
    own += [(looks, retrieval)] if retrieval is not None else []
    for name, model in own:
        require_same_encoder(name, model.base_fingerprint, how.any_encoder, "the encoder")
    for path in files:
        if not path.is_file():
            reason = "it is no file" if path.exists() else "there is no such file"
            raise DataError(f"{path} cannot be read: {reason}")
    opened, rows = Opened(captioner, how), []
    for start in range(0, len(files), _BATCH):
        part = files[start : start + _BATCH]
        said = opened.caption(
            [str(path) for path in part],
            embed_files(encoder, part, route),
            None if retrieval is None else embed_files(retrieval, part, Route.FROZEN),
        )
        rows += [
            {"file": str(path), "text": one.text, "log_prob": one.log_prob}
            for path, one in zip(part, said, strict=True)
        ]
    return rows


@torch.no_grad()
def embed_files(encoder: GmailEncoder, files: Sequence[Path], route: Route) -> Float[Tensor, "n d"]:
    """Return features of image files, not normalised, as extraction stores them.

    Raises:
        DataError: a file is missing or no image.
    """
    images = []
    for path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DecompressionBombWarning)  # an error says so
                images.append(decode_rgb(path.read_bytes()))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    pixels = encoder.preprocess(images).to(encoder.device)
    return encoder.embed_pixels(pixels, route).float().cpu()
