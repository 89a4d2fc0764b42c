"""Which encoder and route features come from, and whether a captioner can read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
    """Raise :class:`DataError` for features of another width than a captioner reads."""
    if features.shape[-1] != width:
        raise DataError(
            f"the features are {features.shape[-1]} wide and this captioner reads {width}: extract"
            " them with the encoder that it was trained on"
        )


def require_image_features(features: Artifact) -> None:
    """Raise :class:`DataError` for features of captions."""
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


def require_encoder(trained_on: Mapping[str, str], role: str, other: str, accept: bool) -> None:
    """Refuse an encoder that is not the captioner's; a captioner of unknown encoder takes any.

    Args:
        trained_on: What the captioner was trained on.
        role: ``encoder`` for what it reads, ``retrieval`` for what it looks captions up with.
        other: The encoder that is given.
        accept: Only print that the encoder is another.

    Raises:
        DataError: the encoders differ, and that is not accepted.
    """
    own = trained_on.get(role, "")
    if own in ("", other):
        return
    if not accept:
        raise DataError(
            f"the captioner was trained on features of the {role} {own}, and {other} is given: use"
            " its own, or set any_encoder if you mean it"
        )
    say("the features come from another encoder than those the captioner was trained on")
