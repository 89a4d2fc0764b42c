"""Where features came from, and whether a captioner can read them."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from gmail_align.artifacts import Artifact
from gmail_align.errors import DataError
from gmail_align.progress import say


def feature_origin(features: Artifact) -> dict[str, str]:
    """Name the encoder, the weights of it and the route that features came from."""
    config = features.manifest["config"]
    return {key: str(config.get(key, "")) for key in ("encoder", "weights", "route")}


def joint_origin(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Name the encoder, the weights and the routes of features that are trained on together."""
    origins = [feature_origin(artifact) for artifact in artifacts]
    return {key: "+".join(dict.fromkeys(origin[key] for origin in origins)) for key in origins[0]}


def require_finite(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return features as they are.

    Raises:
        DataError: one of them holds NaN or an infinity.
    """
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite()).any(dim=1).sum())
        raise DataError(
            f"{bad} of {len(features)} features hold values that are not finite numbers: extract"
            " them again"
        )
    return features


def require_encoder(own: str, features: Artifact, *, any_encoder: bool) -> None:
    """Refuse features that a captioner cannot read, or of another encoder than ``own``.

    Raises:
        DataError: they are of captions, or of another encoder and that was not asked for.
    """
    if features.manifest["config"].get("what") == "text":
        raise DataError(f"{features.folder} holds features of captions: give those of images")
    other = feature_origin(features)["encoder"]
    require_same_encoder(own, other, any_encoder, f"the encoder of {features.folder}")


def require_same_encoder(own: str, other: str, any_encoder: bool, what: str) -> None:
    """Refuse an encoder that is not the captioner's; one that is not known fits any.

    Raises:
        DataError: it is another, and that was not asked for.
    """
    if not own or own == other:
        return
    if not any_encoder:
        raise DataError(
            f"{what} is {other} and the captioner was trained on {own}: use features of its own"
            " encoder, or any_encoder if that is meant"
        )
    say("the features come from another encoder than those the captioner was trained on")
