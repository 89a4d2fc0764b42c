"""A plain ViT (SynCLR): the class token behind the last norm, and no text tower."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from gmail_align.encoders.backbones.backbone import Backbone

INITIAL_SCALE = 1 / 0.07
"""CLIP's scale of cosines before training, for a model that has none of its own."""
_PREFIX = "vision_model."


class VisionOnly(nn.Module):
    """A vision tower under the name that the adapter's targets begin with."""

    base_model_prefix = "vision_model"
    """Read by peft when it puts an adapter in."""

    def __init__(self, vision_model: nn.Module) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.config: Any = vision_model.config


class VitBackbone(Backbone):
    """A plain ``ViTModel``."""

    name = "ViT"
    model_class = ViTModel
    load_options: ClassVar[dict[str, Any]] = {"add_pooling_layer": False}
    has_texts = False

    @classmethod
    def of(cls, plain: nn.Module) -> Backbone:
        """Describe a ``ViTModel``."""
        return cls(VisionOnly(plain))

    @property
    def plain(self) -> PreTrainedModel:
        """The ``ViTModel``."""
        return cast("PreTrainedModel", self.module.vision_model)

    @property
    def vision_config(self) -> Any:
        """Configuration of the model."""
        return self.module.config

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """CLIP's initial scale: the model does not have one."""
        return torch.tensor(INITIAL_SCALE, device=self.plain.device)

    def trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return the class token behind the last layer norm."""
        pooled: Tensor = self.module.vision_model(pixel_values=pixels).last_hidden_state[:, 0]
        return pooled

    def trunk_and_patches(
        self, pixels: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b tokens width"]]:
        """Return the trunk and the patch tokens that go into the last layer."""
        outputs = self.module.vision_model(pixel_values=pixels, output_hidden_states=True)
        return outputs.last_hidden_state[:, 0], outputs.hidden_states[-2][:, 1:]

    def image_features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Return :meth:`trunk`: nothing stands behind it."""
        return self.trunk(pixels)

    def exported(self, head: Float[Tensor, "dim width"] | None) -> PreTrainedModel:
        """Return a ViT for classification whose logits are the features."""
        head = torch.eye(self.plain.config.hidden_size) if head is None else head
        config = ViTConfig.from_dict(self.plain.config.to_dict())
        config.num_labels = len(head)
        model: PreTrainedModel = ViTForImageClassification(config)
        state = {f"vit.{name}": tensor for name, tensor in self.plain.state_dict().items()}
        state |= {"classifier.weight": head, "classifier.bias": torch.zeros(len(head))}
        model.load_state_dict(state)
        return model.eval()

    @classmethod
    def exported_features(
        cls, exported: Any, pixels: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b dim"]:
        """Return the logits."""
        logits: Tensor = exported(pixels).logits
        return logits

    def plain_name(self, name: str) -> str:
        """Return the name inside the ``ViTModel``."""
        return name.removeprefix(_PREFIX)
