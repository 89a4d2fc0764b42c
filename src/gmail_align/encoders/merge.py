"""One route of an encoder as a plain model: the adapter added to the weights, and the head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gmail_align.encoders.backbones import load_backbone
from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError


def merge(encoder: GmailEncoder, route: Route) -> Backbone:
    """Return a plain model of the base's own class whose towers are those of ``route``.

    Where the model has a projection behind its vision tower, that is the route's head, so that its
    image features are the route's. Elsewhere :func:`head_weight` is a matrix of its own.

    Raises:
        ModelError: the head is not a matrix.
    """
    state = {name: tensor.cpu().clone() for name, tensor in encoder.backbone.state().items()}
    state |= _changed(encoder, route, state)
    merged = load_backbone(encoder.base_folder)
    folded = merged.last_norm is not None and _fold_norm(encoder, route, merged.last_norm, state)
    head = _matrix(encoder, route) if folded else head_weight(encoder, route)
    if merged.projection is not None and head is not None:
        state[merged.projection] = head
    merged.module.load_state_dict(state)
    merged.module.eval()
    return merged


def head_weight(encoder: GmailEncoder, route: Route) -> Float[Tensor, "dim width"] | None:
    """Return the matrix behind the trunk; None where the model has none.

    Raises:
        ModelError: the head is more than a matrix, for which this format has no place.
    """
    if encoder.applied and route is not Route.FROZEN and encoder.heads.hidden(route):
        raise ModelError(
            "this head has a hidden layer, a shift or a normalisation, and a plain model cannot "
            "hold that: export it as onnx"
        )
    return _matrix(encoder, route)


def _matrix(encoder: GmailEncoder, route: Route) -> Float[Tensor, "dim width"] | None:
    head = encoder.head(route if encoder.applied else Route.FROZEN)
    return None if head is None else head.detach().cpu().clone()


@torch.no_grad()
def _fold_norm(encoder: GmailEncoder, route: Route, name: str, state: dict[str, Tensor]) -> bool:
    """Put batch normalisation before a linear head into the tower's last norm; say if it was."""
    if not encoder.applied or route is Route.FROZEN or encoder.layout.head != "linear":
        return False
    norm = encoder.heads.norm(route)
    affine = None if norm is None else norm.affine()
    if affine is None:
        return False
    gain, shift = (part.cpu() for part in affine)
    state[f"{name}.weight"] = state[f"{name}.weight"] * gain
    state[f"{name}.bias"] = state[f"{name}.bias"] * gain + shift
    return True


def adapter_name(encoder: GmailEncoder, route: Route) -> str | None:
    """Name the adapter or copy of the tower that ``route`` goes through; None for the frozen."""
    return encoder._trunk.adapter_of(route) if encoder.applied else None


def adapted_tensors(encoder: GmailEncoder, route: Route) -> dict[str, nn.Parameter]:
    """Return the parameters of what is adapted on a route, of both towers."""
    if not encoder.applied:
        return {}
    texts = encoder._texts.tensors() if route.adapted else {}
    return {**encoder._trunk.tensors(adapter_name(encoder, route)), **texts}


def _changed(encoder: GmailEncoder, route: Route, plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that the route's adapters, or its copy of the tower, change."""
    tensors = {name: p.detach().cpu() for name, p in adapted_tensors(encoder, route).items()}
    if encoder.lora is None:
        return tensors
    scale = encoder.lora.alpha / encoder.lora.rank
    a, b = (
        {name.partition(side)[0]: tensor for name, tensor in tensors.items() if side in name}
        for side in (".lora_A.", ".lora_B.")
    )
    return {
        f"{place}.weight": plain[f"{place}.weight"] + scale * (b[place] @ a[place]) for place in a
    }
