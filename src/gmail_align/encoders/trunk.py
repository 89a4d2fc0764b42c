"""The trunk: a frozen vision tower with LoRA adapters, or with trained copies beside it."""

from __future__ import annotations

import copy
from pathlib import Path

from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor, nn

from gmail_align.artifacts import write_bytes
from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.config import GENERATED, REAL, EncoderLayout, LoraSettings
from gmail_align.encoders.lora import (
    adapter_tensors,
    copy_tensors,
    expected_names,
    inject,
    load_adapter,
    read_tensors,
    save_adapter,
)
from gmail_align.encoders.route import Route

ADAPTERS = {GENERATED: "adapter", REAL: "adapter_real"}
"""Folder of each adapter inside an encoder's."""
TUNED = "tuned.safetensors"
"""Copies of the tower, where those are what is trained."""


class Trunk(nn.Module):
    """The vision towers that the routes of one encoder share or have for themselves."""

    def __init__(
        self, backbone: Backbone, lora: LoraSettings | None, layout: EncoderLayout, seed: int
    ) -> None:
        super().__init__()
        lora = lora if lora is not None and lora.adapts_images else None
        self._plain, self._lora = backbone, lora
        self.layout = layout
        self.tuned = nn.ModuleDict()
        """Trained copies of the vision tower."""
        self._copies: dict[str, Backbone] = {}
        self._layers: list[LoraLayer] = []
        self._active: str | None = None
        for name in layout.adapters:
            if layout.tune == "full":
                self._add_copy(name)
            elif lora is not None:
                self._layers = inject(backbone.module, lora, seed, name)
        self._use(GENERATED)

    def backbone(self, route: Route) -> Backbone:
        """Return the model that images of ``route`` go through, its adapter switched."""
        name = self.adapter_of(route)
        if name in self._copies:
            return self._copies[name]
        self._use(name)
        return self._plain

    def adapter_of(self, route: Route) -> str | None:
        """Name the adapter or copy that ``route`` goes through; None for the frozen tower."""
        if not route.adapted or not self.layout.adapters:
            return None
        if route is Route.REAL and self.layout.trunk != "shared":
            return REAL if self.layout.trunk == "separate" else None
        return GENERATED

    def tensors(self, name: str | None) -> dict[str, nn.Parameter]:
        """Return the parameters of one adapter or copy, by their names in the plain model."""
        if name is None:
            return {}
        if name in self._copies:
            return dict(self.tuned[name].named_parameters(prefix="vision_model"))
        return adapter_tensors(self._plain.module, name)

    def own(self) -> dict[str, nn.Parameter]:
        """Return every parameter that is not the frozen model's, by name."""
        own: dict[str, nn.Parameter] = {}
        for name in self.layout.adapters:
            prefix = f"tuned.{name}." if name in self._copies else "clip."
            own |= {prefix + key: value for key, value in self.tensors(name).items()}
        return own

    def expected(self) -> set[str]:
        """Return the names that :meth:`own` has to have."""
        if self._lora is None or self.layout.tune != "lora":
            return set(self.own())
        names = (
            expected_names(self._plain.module, self._lora, name) for name in self.layout.adapters
        )
        return {f"clip.{name}" for some in names for name in some}

    def save(self, folder: Path) -> None:
        """Write adapters, each as a folder of PEFT's, or copies to an encoder's folder."""
        copies: dict[str, Tensor] = {}
        for name in self.layout.adapters:
            if name in self._copies:
                named = self.tensors(name).items()
                copies |= {f"{name}.{key}": value.detach().cpu() for key, value in named}
            elif self._lora is not None:
                save_adapter(self._plain.module, self._lora, folder / ADAPTERS[name], name)
        if copies:
            plain = {key: value.contiguous() for key, value in copies.items()}
            write_bytes(folder / TUNED, save(plain, {"format": "pt"}))

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: a file is missing, damaged or of another shape.
        """
        wanted: dict[str, nn.Parameter] = {}
        for name in self.layout.adapters:
            if name in self._copies:
                wanted |= {f"{name}.{key}": value for key, value in self.tensors(name).items()}
            elif self._lora is not None:
                load_adapter(self._plain.module, folder / ADAPTERS[name], name)
        if wanted:
            copy_tensors(wanted, read_tensors(folder / TUNED, set(wanted)), folder / TUNED)

    def _add_copy(self, name: str) -> None:
        """Copy the vision tower, to be trained whole; all else is shared with the frozen model."""
        model = self._plain.module
        clone = copy.copy(model)
        clone._modules = dict(model._modules)
        tower = copy.deepcopy(model.get_submodule("vision_model")).requires_grad_(True)
        clone._modules["vision_model"] = tower
        self.tuned[name] = tower
        self._copies[name] = type(self._plain)(clone)

    def _use(self, name: str | None) -> None:
        """Switch to one adapter, or to none; all of them stay trainable."""
        if name == self._active:
            return
        for layer in self._layers:
            layer.enable_adapters(name is not None)
            if name is not None and len(self.layout.adapters) > 1:
                layer.set_adapter(name)
                for key, parameter in layer.named_parameters():
                    parameter.requires_grad_("lora_" in key)
        self._active = name
