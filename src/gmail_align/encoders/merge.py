"""One route of an encoder as a plain model: the adapter added to the weights, and the head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from gmail_align.encoders.backbones import load_model
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError


def merged_model(encoder: GmailEncoder, route: Route) -> nn.Module:
    """Return a plain model of the base's own class whose vision tower is that of ``route``.

    A CLIP has the route's head as its visual projection, so its image features are the route's.
    Behind other models the head is a matrix of its own: :func:`head_weight`.

    Raises:
        ModelError: the head of a CLIP is no matrix.
    """
    state = {
        name.replace(".base_layer.", "."): tensor.detach().cpu().clone()
        for name, tensor in encoder.clip.state_dict().items()
        if ".lora_" not in name
    }
    state |= _changed(encoder, route, state)
    model = load_model(encoder.base_folder)
    head = head_weight(encoder, route)
    if isinstance(model, CLIPModel) and head is not None:
        state["visual_projection.weight"] = head
    model.load_state_dict(state)
    return model.eval()


def head_weight(encoder: GmailEncoder, route: Route) -> Float[Tensor, "dim width"] | None:
    """Return the matrix behind the trunk; None where nothing stands there.

    Raises:
        ModelError: the head has a hidden layer, which no plain model has a place for.
    """
    if not encoder.applied:
        route = Route.FROZEN
    if route is not Route.FROZEN and encoder.hidden.tensors(route):
        raise ModelError(
            "the head of this encoder has a hidden layer, for which no plain model has a place: "
            "export it as onnx"
        )
    head = encoder._head(route)
    return None if head is None else head.detach().cpu().clone()


def adapter_name(encoder: GmailEncoder, route: Route) -> str | None:
    """Name the adapter or copy of the tower that ``route`` goes through; None for the frozen."""
    return encoder._trunk.adapter_of(route) if encoder.applied else None


def _changed(encoder: GmailEncoder, route: Route, plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that the route's adapters, or its copy of the tower, change."""
    found = {name: p.detach().cpu() for name, p in adapted_tensors(encoder, route).items()}
    if encoder.lora is None:
        return found
    scale = encoder.lora.alpha / encoder.lora.rank
    sides = {
        key: value for side in "AB" for key, value in _by_place(found, f".lora_{side}.").items()
    }
    return {
        f"{place}.weight": plain[f"{place}.weight"]
        + scale * (sides[place, ".lora_B."] @ sides[place, ".lora_A."])
        for place in {place for place, _ in sides}
    }


def adapted_tensors(encoder: GmailEncoder, route: Route) -> dict[str, nn.Parameter]:
    """Return the parameters of what is adapted on a route, of both towers."""
    if not encoder.applied:
        return {}
    texts = encoder._texts.tensors() if route.adapted else {}
    return {**encoder._trunk.tensors(adapter_name(encoder, route)), **texts}


def _by_place(tensors: dict[str, Tensor], side: str) -> dict[tuple[str, str], Tensor]:
    return {
        (name.partition(side)[0], side): tensor for name, tensor in tensors.items() if side in name
    }
