"""The loss of images and texts by kind: CLIP's softmax, SigLIP's sigmoid, Long-CLIP's two terms."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gmail_align.alignment.chunked import chunked_sigmoid_loss, chunked_text_loss
from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.losses import Positives, contrastive_text_loss
from gmail_align.encoders.config import TextKind
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.long_clip import long_short_loss
from gmail_align.encoders.siglip import sigmoid_text_loss


@dataclass(frozen=True)
class TextSide:
    """The texts of b images, row by row, and which of them belong together."""

    features: Float[Tensor, "b d"]
    """Of whole captions."""
    same: Bool[Tensor, "b b"] | None = None
    """Pairs that share an image or a text."""
    groups: Int64[Tensor, "b g"] | None = None
    """In place of ``same`` where the loss comes in chunks."""
    short: Float[Tensor, "b d"] | None = None
    """Of the captions' first sentences, for Long-CLIP's loss."""
    same_short: Bool[Tensor, "b b"] | None = None
    """Pairs that share an image or a first sentence."""


@dataclass(frozen=True)
class TextLoss:
    """What images and texts are compared by, with the scale and the bias of the base model."""

    kind: TextKind
    scale: Float[Tensor, ""] | float
    bias: Float[Tensor, ""] | float
    positives: Positives
    chunk: int | None = None
    """Rows that are compared at a time; all at once when None."""

    def __call__(
        self, images: Float[Tensor, "b d"], texts: TextSide, ease: float = 1.0
    ) -> Float[Tensor, ""]:
        """Return the loss with logits divided by ``ease``."""
        scale, bias = self.scale / ease, self.bias / ease
        if self.kind == "long_short":
            assert texts.short is not None, "short texts were prepared for this loss"
            return long_short_loss(
                images,
                texts.features,
                texts.short,
                scale,
                same=texts.same_short,
                same_long=texts.same,
            )["total"]
        if self.chunk is not None:
            return self._chunked(images, texts, scale, bias)
        if self.kind == "sigmoid":
            return sigmoid_text_loss(
                images, texts.features, scale, bias, texts.same, positives=self.positives
            )
        return contrastive_text_loss(images, texts.features, scale, texts.same, self.positives)

    def _chunked(
        self, images: Tensor, texts: TextSide, scale: Tensor | float, bias: Tensor | float
    ) -> Tensor:
        assert self.chunk is not None and texts.groups is not None, "chunks need groups"
        if self.kind == "sigmoid":
            return chunked_sigmoid_loss(
                images,
                texts.features,
                (scale, bias),
                groups=texts.groups,
                positives=self.positives,
                chunk=self.chunk,
            )
        return chunked_text_loss(
            images,
            texts.features,
            scale,
            groups=texts.groups,
            positives=self.positives,
            chunk=self.chunk,
        )


def text_loss_of(
    encoder: GmailEncoder, config: AlignConfig, *, chunk: int | None = None
) -> TextLoss:
    """Return the loss that the settings ask for, or else that of the base model's own training."""
    kind = config.text_loss or encoder.text_kind
    return TextLoss(kind, encoder.logit_scale, encoder.logit_bias, config.positives, chunk)
