"""What has to hold of an encoder right after it was built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.encoders.backbones import Backbone
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError

if TYPE_CHECKING:
    from gmail_align.encoders.encoder import GmailEncoder


@torch.no_grad()
def probe(backbone: Backbone) -> tuple[Float[Tensor, "2 c h w"], Float[Tensor, "2 dim"]]:
    """Return two fixed noise images and their features by a model before it is changed."""
    vision = backbone.vision_config
    generator = torch.Generator().manual_seed(0)
    shape = (2, vision.num_channels, vision.image_size, vision.image_size)
    pixels = torch.randn(shape, generator=generator)
    return pixels, backbone.image_features(pixels)


@torch.no_grad()
def check_build(
    encoder: GmailEncoder, pixels: Float[Tensor, "b c h w"], plain: Float[Tensor, "b dim"]
) -> None:
    """Assert that every route equals the plain model and that only what should train can.

    Raises:
        ModelError: it does not, or something else can.
    """
    for route in Route if encoder.layout.starts_plain else [Route.FROZEN]:
        if not torch.equal(encoder.embed_pixels(pixels, route), plain):
            raise ModelError(f"route {route} differs from CLIP before training (build is broken)")
    encoder._trunk.backbone(Route.GENERATED)
    own = {id(parameter): name for name, parameter in encoder._own_tensors().items()}
    found = {id(p): name for name, p in encoder.named_parameters() if p.requires_grad}
    odd = [name for key, name in (own | found).items() if (key in own) != (key in found)]
    odd += sorted(set(encoder._trunk.own()) ^ encoder._trunk.expected())
    odd += sorted(set(encoder._texts.own()) ^ encoder._texts.expected())
    if odd:
        raise ModelError(f"{odd[0]} is trainable where it should not be, or the other way round")
