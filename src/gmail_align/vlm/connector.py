"""What the language model sees of an image: patches, the pooled feature, or a projection of them.

GMAIL's heads act on the pooled feature, which LLaVA does not read. There are four sound ways to let
an aligned encoder act in a LLaVA: by the patches alone, or by one of three designs that put a head
or a matrix of their own before LLaVA's projector.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError
from gmail_align.runtime import stable_seed
from gmail_align.vlm.config import VisualTokens

PLAIN: frozenset[VisualTokens] = frozenset({"patches", "residual"})
"""Designs whose folders plain transformers reads; a residual is folded into the projector."""


class Seen(NamedTuple):
    """What an encoder makes of images, before the projector."""

    tokens: Float[Tensor, "i t width"]
    routes: tuple[Route, ...]
    """The route of each image."""


class Connector(nn.Module):
    """The trained part of a design, beside LLaVA's projector.

    ``patches`` and ``dense`` have none. ``pooled`` has a matrix from the feature to tokens.
    ``residual`` has a matrix for each adapted route: a token x becomes x + R x.

    Args:
        design: What the language model sees of an image.
        width: Width of the encoder's tokens.
        words: Width of the language model.
        pooled_tokens: Tokens that ``pooled`` makes of the feature.
        routes: Routes that ``residual`` has a matrix for.
        seed: Seed of what does not begin as zero.
    """

    def __init__(
        self,
        design: VisualTokens = "patches",
        width: int = 1,
        words: int = 1,
        pooled_tokens: int = 1,
        routes: Collection[Route] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.design: VisualTokens = design
        self.extra = pooled_tokens if design == "pooled" else 0
        """Tokens of an image beside its patches."""
        self.pooled: nn.Linear | None = None
        if self.extra:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stable_seed(seed, "pooled"))
                self.pooled = nn.Linear(width, self.extra * words)
        self.residuals = nn.ParameterDict()
        if design == "residual":
            for route in sorted(routes):
                self.residuals[route] = nn.Parameter(torch.zeros(width, width))

    def forward(self, projector: nn.Module, seen: Seen) -> Float[Tensor, "i n words"]:
        """Return the tokens of the language model, by LLaVA's projector."""
        tokens = seen.tokens
        if self.pooled is not None:
            extra = self.pooled(tokens[:, 0]).unflatten(-1, (self.extra, -1))
            return torch.cat([extra, projector(tokens[:, 1:])], dim=1)
        for route, matrix in self.residuals.items():
            rows = [row for row, own in enumerate(seen.routes) if own == route]
            places = torch.tensor(rows, dtype=torch.int64, device=tokens.device)
            # An empty choice is computed too: every process then has every gradient.
            change = linear(tokens[places], matrix).to(tokens.dtype)
            tokens = tokens.index_add(0, places, change)
        projected: Tensor = projector(tokens)
        return projected

    @torch.no_grad()
    def fold(self, first: nn.Linear, reads: Route) -> None:
        """Move the residual of ``reads`` into the projector's first matrix.

        W (x + R x) is (W + W R) x. The other routes' residuals change so that their sums stay what
        they are, and the one of ``reads`` becomes zero.
        """
        if reads not in self.residuals:
            return
        one = torch.eye(first.in_features, dtype=torch.float64)
        moved = one + self.residuals[reads].double()
        first.weight.copy_(first.weight.double() @ moved)
        for route, matrix in self.residuals.items():
            rest = torch.linalg.solve(moved, one + matrix.double()) - one
            matrix.copy_(torch.zeros_like(matrix) if route == reads else rest)


def projection(tower: Backbone) -> Float[Tensor, "width width"]:
    """Return the head behind a CLIP's tower, with rows of zeros up to the tower's width.

    A feature that is padded so fits LLaVA's projector, which gives the zeros no meaning.

    Raises:
        ModelError: the shared space is wider than the tower, or there is no head.
    """
    head = tower.head
    if head is None:
        raise ModelError(
            f"a {tower.name} does not have a projection that patches could go through: use"
            " visual_tokens=patches or residual"
        )
    dim, width = head.shape
    if dim > width:
        raise ModelError(
            f"the encoder's head makes {dim} numbers of {width}, and LLaVA's projector reads"
            f" {width}: use visual_tokens=patches"
        )
    return pad(head.detach(), (0, 0, 0, width - dim))


@torch.no_grad()
def read_tokens(
    tower: Backbone, pixels: Float[Tensor, "b 3 h w"], design: VisualTokens
) -> Float[Tensor, "b t width"]:
    """Return what a design reads of images; it does not depend on anything that LLaVA trains."""
    if design in PLAIN:
        return tower.patches(pixels)
    return project_tokens(tower.module.vision_model, projection(tower), pixels, design)


@torch.no_grad()
def project_tokens(
    vision: Any,
    head: Float[Tensor, "width width"],
    pixels: Float[Tensor, "b 3 h w"],
    design: VisualTokens,
) -> Float[Tensor, "b t width"]:
    """Return what ``dense`` or ``pooled`` reads by a CLIP's vision tower and a padded head."""
    outputs = vision(pixel_values=pixels, output_hidden_states=True)
    if design == "dense":
        return linear(vision.post_layernorm(outputs.last_hidden_state[:, 1:]), head)
    feature = linear(outputs.pooler_output, head)
    return torch.cat([feature[:, None], outputs.hidden_states[-2][:, 1:]], dim=1)


def reads_the_same(one: Backbone, other: Backbone, design: VisualTokens) -> bool:
    """Tell whether a design reads the same weights of two towers."""
    config, mine, theirs = one.vision_config, one.state(), other.state()
    unread = [] if design not in PLAIN else [f"encoder.layers.{config.num_hidden_layers - 1}."]
    unread += ["post_layernorm.", "head."] if design in PLAIN else []
    names = [name for name in mine if name.startswith("vision_model.")]
    names = [n for n in names if not n.removeprefix("vision_model.").startswith(tuple(unread))]
    if design not in PLAIN and one.projection is not None:
        names.append(one.projection)
    return all(torch.equal(mine[name], theirs[name]) for name in names)
