"""The text tower: frozen, or with an adapter of its own where ``lora.towers`` says so."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float, Int
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from gmail_align.artifacts import fingerprint
from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.folder import tensors_fingerprint
from gmail_align.encoders.lora import (
    TEXT_TOWER,
    adapter_tensors,
    expected_names,
    inject,
    load_adapter,
    save_adapter,
)
from gmail_align.encoders.route import Route

TEXT = "text"
"""Name of the adapter."""
FOLDER = "adapter_text"
"""Its folder inside an encoder's."""


class TextTower:
    """Texts to features; by an adapted route through the adapter, by others past it."""

    def __init__(self, backbone: Backbone, lora: LoraSettings | None, seed: int) -> None:
        self._backbone, self._model = backbone, backbone.module
        self._lora = lora if lora is not None and lora.adapts_texts else None
        self._layers: list[LoraLayer] = []
        self._active = True
        if self._lora is not None:
            self._layers = inject(self._model, self._lora, seed, TEXT, TEXT_TOWER)

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter."""
        return bool(self._layers)

    def features(
        self, input_ids: Int[Tensor, "m t"], attention_mask: Int[Tensor, "m t"], route: Route
    ) -> Float[Tensor, "m dim"]:
        """Return projected text features, not normalised."""
        if route.adapted != self._active:
            for layer in self._layers:
                layer.enable_adapters(route.adapted)
            self._active = route.adapted
        return self._backbone.text_features(input_ids, attention_mask)

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the adapter's parameters by their names in the plain model."""
        return adapter_tensors(self._model, TEXT) if self.adapted else {}

    def own(self) -> dict[str, nn.Parameter]:
        """Return the adapter's parameters by their names in the encoder."""
        return {f"clip.{name}": value for name, value in self.tensors().items()}

    def expected(self) -> set[str]:
        """Return the names that :meth:`own` has to have."""
        if self._lora is None:
            return set()
        names = expected_names(self._model, self._lora, TEXT, TEXT_TOWER)
        return {f"clip.{name}" for name in names}

    def fingerprint(self, base: str) -> str:
        """Fingerprint of what adapted texts go through; ``base`` where there is no adapter."""
        return fingerprint([base, tensors_fingerprint(self.tensors())]) if self.adapted else base

    def save(self, folder: Path) -> None:
        """Write the adapter as a folder of PEFT's inside an encoder's."""
        if self._lora is not None:
            save_adapter(self._model, self._lora, folder / FOLDER, TEXT, TEXT_TOWER)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: the file is missing, damaged or of another shape.
        """
        if self.adapted:
            load_adapter(self._model, folder / FOLDER, TEXT)
