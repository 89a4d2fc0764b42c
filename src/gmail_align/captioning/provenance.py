"""Which encoder and route features come from, and whether a captioner can read them."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from gmail_align.artifacts import Artifact
from gmail_align.errors import DataError
from gmail_align.progress import say


def provenance(features: Artifact) -> dict[str, str]:
    """Return the ``encoder``, the ``weights`` of it and the ``route`` of features."""
    config = features.manifest["config"]
    return {key: str(config.get(key, "")) for key in ("encoder", "weights", "route")}


def joint_provenance(artifacts: Iterable[Artifact]) -> dict[str, str]:
    """Return the provenance of features that are trained on together, values joined by ``+``."""
    each = [provenance(artifact) for artifact in artifacts]
    return {key: "+".join(dict.fromkeys(one[key] for one in each)) for key in each[0]}


def require_finite(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return features as they are.

    Raises:
        DataError: one of them holds NaN or an infinity.
    """
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite()).any(dim=1).sum())
        raise DataError(
            f"{bad} of {len(features)} features hold values that are not finite: extract them again"
        )
    return features


def require_width(features: Float[Tensor, "n d"], width: int) -> None:
    """Refuse features of another width than a captioner reads.

    Raises:
        DataError: the widths differ.
    """
    if features.shape[-1] != width:
        raise DataError(
            f"the features are {features.shape[-1]} wide and this captioner reads {width}: extract"
            " them with the encoder that it was trained on"
        )


def require_image_features(features: Artifact) -> None:
    """Refuse features of captions.

    Raises:
        DataError: the features are of captions.
    """
    if features.manifest["config"].get("what") == "text":
        raise DataError(f"{features.folder} holds features of captions: give features of images")


def require_one_encoder(encoder: str, artifacts: Iterable[Artifact]) -> None:
    """Refuse image features that do not come from ``encoder``.

    Raises:
        DataError: an artifact holds features of captions, or of another encoder.
    """
    for artifact in artifacts:
        require_image_features(artifact)
        other = provenance(artifact)["encoder"]
        if other != encoder:
            raise DataError(
                f"{artifact.folder} comes from encoder {other} and the other features from"
                f" {encoder}: extract all of them with one encoder"
            )


def require_captioners_encoder(own: str, other: str, any_encoder: bool, what: str) -> None:
    """Refuse an encoder that is not the captioner's; one that is not known fits any.

    Args:
        own: The encoder that the captioner was trained on; empty if it is not known.
        other: The encoder of what it is to read.
        any_encoder: Accept another encoder, and print that it is another.
        what: What has the encoder ``other``, for the message.

    Raises:
        DataError: the encoders differ and ``any_encoder`` is not set.
    """
    if not own or own == other:
        return
    if not any_encoder:
        raise DataError(
            f"{what} is {other} and the captioner was trained on {own}: use features of its own"
            " encoder, or set any_encoder if you mean it"
        )
    say("the features come from another encoder than those the captioner was trained on")
