"""SigLIP: pooled by attention (MAP head), with no projection behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from tokenizers import Tokenizer, normalizers
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipModel,
)

from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.tokenizer import load_tokenizer
from gmail_align.errors import ModelError
from gmail_align.extras import require

_GEMMA_VOCABULARY = 256_000
"""Token ids of SigLIP 2's tokenizer, which is Gemma's; SigLIP has 32,000."""


class SiglipBackbone(Backbone):
    """A ``SiglipModel``, trained on padded texts without a mask and with a sigmoid.

    SigLIP 2 has the same model type, and Gemma's tokenizer instead of its own.
    """

    name = "SigLIP"
    model_class = SiglipModel
    text_kind = "sigmoid"
    full_length = True  # the text tower pools at the last position
    formats = Backbone.formats | {"sentence-transformers"}

    def check(self, folder: Path) -> None:
        """Refuse a model without its pooling head, whose trunk would have no output.

        Raises:
            ModelError: it lacks the head, or gives other features than its probe says.
        """
        if not self.module.vision_model.use_head:
            raise ModelError(f"{folder} holds a SigLIP without its pooling head, which is needed")
        super().check(folder)

    @property
    def logit_bias(self) -> Float[Tensor, ""]:
        """What the sigmoid loss adds to scaled cosines."""
        bias: Tensor = self.module.logit_bias.detach().reshape(())
        return bias

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            ModelError: it is missing or damaged, or adds no padding or no end of text.
            MissingExtraError: it is a SentencePiece model, and the extra that reads it is missing.
        """
        if (folder / "spiece.model").exists() and not (folder / "tokenizer.json").exists():
            require("sentencepiece", "siglip")
            require("google.protobuf", "siglip")
        tokenizer = load_tokenizer(folder, self.text_config.vocab_size)
        of_gemma = any(name in type(tokenizer).__name__ for name in ("Gemma", "Siglip2"))
        if of_gemma or self.text_config.vocab_size >= _GEMMA_VOCABULARY:
            return _lower_case(tokenizer)
        return tokenizer

    def exported(self, head: Float[Tensor, "dim width"] | None) -> PreTrainedModel:
        """Return the model itself.

        Raises:
            ModelError: there is a trained head: the pooling head adds its input to its output, so
                no matrix can be folded into it.
        """
        if head is not None:
            raise ModelError(
                "a SigLIP has no projection into which the trained head could be baked: export it "
                "as onnx or peft"
            )
        return self.plain


def _lower_case(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return Gemma's tokenizer with texts in lower case, as SigLIP 2 was trained.

    It is of the class that takes ``tokenizer.json`` as it stands, so that what is saved of it keeps
    the lower case.
    """
    backend: Any = Tokenizer.from_str(cast("Any", tokenizer).backend_tokenizer.to_str())
    lower, normalizer = normalizers.Lowercase(), backend.normalizer
    backend.normalizer = lower if normalizer is None else normalizers.Sequence([lower, normalizer])
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **tokens,
    )
