"""One CLIP trunk, a LoRA adapter and two heads, reached by routes (GMAIL Sec. 3).

``FROZEN`` is the plain CLIP at any time, bit for bit; before training, every other route equals it.
Long-CLIP, SigLIP and SynCLR stand in CLIP's place alike; where a model has no projection behind its
trunk (the latter two), the heads are added to it and begin as the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from gmail_align.artifacts import fingerprint, write_bytes, write_json
from gmail_align.encoders.backbones import backbone_of, load_model
from gmail_align.encoders.build_check import check_build, probe
from gmail_align.encoders.config import REAL, EncoderCard, EncoderLayout, LoraSettings, TextKind
from gmail_align.encoders.folder import (
    CONFIG,
    copy_model,
    find_folder,
    read_card,
    tensors_fingerprint,
)
from gmail_align.encoders.heads import HiddenLayers, first_weight
from gmail_align.encoders.lora import copy_tensors, read_tensors
from gmail_align.encoders.open_image import open_image
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.encoders.route import Route, parse_route
from gmail_align.encoders.text_tower import TextTower
from gmail_align.encoders.trunk import ADAPTERS, Trunk
from gmail_align.errors import ModelError

HEADS = "heads.safetensors"
HIDDEN = "head_layers.safetensors"
ADAPTER = ADAPTERS["default"]
BASE = "base"
COPY_BELOW_BYTES = 100_000_000
"""Base models smaller than this are copied into the encoder's folder."""


class GmailEncoder(nn.Module):
    """CLIP (or Long-CLIP, SigLIP, SynCLR) with an adapter for generated images.

    Made by :meth:`from_clip` (to be trained) or :meth:`from_pretrained`. The model stays in
    evaluation mode; its base weights never change, nor does its text tower without an adapter.
    """

    def __init__(
        self,
        clip: nn.Module,
        folder: Path,
        *,
        lora: LoraSettings | None,
        dual_heads: bool = True,
        seed: int = 0,
        layout: EncoderLayout | None = None,
    ) -> None:
        super().__init__()
        self.clip = clip
        self._backbone = backbone_of(clip)
        self.text_kind: TextKind = self._backbone.text_kind
        """The loss of images and texts that the base model was trained by."""
        self.base_folder = folder
        self.lora = lora
        self.dual_heads = dual_heads
        self.layout = layout or EncoderLayout()
        self.applied = lora is not None or layout is not None
        """Whether routes differ from ``FROZEN``; False for a plain CLIP."""
        self.best_step = 0
        self.preprocess = Preprocess.from_folder(folder)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._base_fingerprint: str | None = None
        before = probe(self._backbone)
        self._trunk = Trunk(clip, lora, self.layout, seed)
        self._texts = TextTower(clip, lora, seed)
        head = self._backbone.head
        size = self._backbone.vision_config.hidden_size
        plain = torch.eye(size) if head is None else head.detach()
        weight = first_weight(plain, self.layout, seed)
        self.real_head = nn.Parameter(weight.clone())
        self.generated_head = nn.Parameter(weight.clone()) if dual_heads else self.real_head
        self.hidden = HiddenLayers(plain, self.layout, dual_heads, seed)
        check_build(self, *before)
        self.eval()

    @classmethod
    def from_clip(
        cls,
        path_or_id: str | Path,
        lora: LoraSettings | None = None,
        *,
        dual_heads: bool = True,
        seed: int = 0,
        layout: EncoderLayout | None = None,
    ) -> GmailEncoder:
        """Build an untrained encoder on a plain Hugging Face CLIP: every route equals that CLIP.

        Args:
            path_or_id: Folder or hub id of a ``CLIPModel``, ``SiglipModel`` or ``ViTModel``.
            lora: The adapter; the default settings when None.
            dual_heads: Whether real and generated images have heads of their own.
            seed: Seed of the adapter's A matrices.
            layout: Which weights are trained and shared; the default when None.

        Raises:
            ModelError: no CLIP, incomplete weights, or targets that do not fit.
        """
        folder, settings = find_folder(path_or_id), lora or LoraSettings()
        adapter = settings if layout is None or layout.tune == "lora" else None
        model = load_model(folder)
        return cls(model, folder, lora=adapter, dual_heads=dual_heads, seed=seed, layout=layout)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path) -> GmailEncoder:
        """Load an encoder folder of ours, or a plain CLIP on which every route is ``FROZEN``.

        Raises:
            ModelError: the folder is neither, or its parts do not belong together.
        """
        folder = find_folder(path_or_id)
        card = read_card(folder)
        if card is None:
            return cls(load_model(folder), folder, lora=None)
        inside = folder / card.base
        base = inside if inside.is_dir() else find_folder(card.base)
        model, dual = load_model(base), card.dual_heads
        encoder = cls(model, base, lora=card.lora, dual_heads=dual, layout=card.layout)
        if encoder.base_fingerprint != card.base_fingerprint:
            raise ModelError(f"{folder} was made on another base model than the one at {base}")
        encoder.applied, encoder.best_step = card.applied, card.best_step
        encoder._trunk.load(folder)
        encoder._texts.load(folder)
        heads = {"real": encoder.real_head, "generated": encoder.generated_head}
        for name, found in ((HEADS, heads), (HIDDEN, encoder.hidden.tensors())):
            if found:
                copy_tensors(found, read_tensors(folder / name, set(found)), folder / name)
        return encoder

    def save(self, folder: Path) -> None:
        """Write adapter, heads and ``config.json`` to ``folder``, and a small base model.

        Raises:
            ModelError: a small base model holds no safetensors.
        """
        small = sum(p.nbytes for p in self.clip.parameters()) < COPY_BELOW_BYTES
        if small:
            copy_model(self.base_folder, folder / BASE)
        self._trunk.save(folder)
        self._texts.save(folder)
        heads = {"real": self.real_head, "generated": self.generated_head}
        for name, found in ((HEADS, heads), (HIDDEN, self.hidden.tensors())):
            tensors = {key: value.detach().cpu().clone() for key, value in found.items()}
            if tensors:
                write_bytes(folder / name, save_tensors(tensors, {"format": "pt"}))
        card = EncoderCard(
            base=BASE if small else str(self.base_folder.resolve()),
            base_fingerprint=self.base_fingerprint,
            lora=self.lora,
            dual_heads=self.dual_heads,
            applied=self.applied,
            best_step=self.best_step,
            layout=None if self.layout == EncoderLayout() else self.layout,
        )
        write_json(
            folder / CONFIG, card.model_dump(exclude={"layout"} if not card.layout else None)
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.real_head.device

    @property
    def dim(self) -> int:
        """Dimension of the shared space of images and texts."""
        return int(self.real_head.shape[0])

    @property
    def width(self) -> int:
        """Dimension of an image's feature before the projection."""
        return int(self.real_head.shape[1])

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The base model's own trained scale of cosines, exponentiated."""
        return self._backbone.logit_scale

    @property
    def logit_bias(self) -> Float[Tensor, ""]:
        """What SigLIP adds to scaled cosines; 0 for other models."""
        return self._backbone.logit_bias

    @property
    def adapts_texts(self) -> bool:
        """Whether the text tower has an adapter, so that what it makes of a text changes."""
        return self._texts.adapted

    @property
    def has_texts(self) -> bool:
        """Whether there is a text tower; SynCLR has none."""
        return self._backbone.has_texts

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, loaded on first use.

        Raises:
            ModelError: it is missing, or ends texts with another token than the tower pools at.
        """
        if self._tokenizer is None:
            self._tokenizer = self._backbone.tokenizer(self.base_folder)
        return self._tokenizer

    @property
    def base_fingerprint(self) -> str:
        """Fingerprint of the frozen CLIP's weights, which never change."""
        if self._base_fingerprint is None:
            plain = {
                name.replace(".base_layer.", "."): tensor
                for name, tensor in self.clip.state_dict().items()
                if ".lora_" not in name
            }
            self._base_fingerprint = tensors_fingerprint(plain)
        return self._base_fingerprint

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all weights that any route uses; the base's when nothing is applied."""
        if not self.applied:
            return self.base_fingerprint
        return fingerprint([self.base_fingerprint, tensors_fingerprint(self._own_tensors())])

    def route_fingerprint(self, route: Route) -> str:
        """Fingerprint of the weights that ``route`` uses; those of ``FROZEN`` are the base's."""
        route = self._effective(route)
        if route is Route.FROZEN:
            return self.base_fingerprint
        tensors = self._trunk.tensors(self._trunk.adapter_of(route))
        tensors["head"] = self.generated_head if route is Route.GENERATED else self.real_head
        tensors |= self.hidden.tensors(route)
        return fingerprint([self.base_fingerprint, tensors_fingerprint(tensors)])

    def text_fingerprint(self, route: Route = Route.REAL) -> str:
        """Fingerprint of the weights that texts go through; the base's where they are frozen."""
        adapted = self._effective(route).adapted
        return self._texts.fingerprint(self.base_fingerprint) if adapted else self.base_fingerprint

    def trainable(self, *, real_head: bool = True) -> dict[str, nn.Parameter]:
        """Return what alignment trains, by name: the adapter, the generated and the real head.

        Args:
            real_head: Whether what real images alone go through is trained too; without dual heads
                there is only one head.

        Raises:
            ModelError: this is a plain CLIP without an adapter.
        """
        if self.lora is None and self.layout == EncoderLayout():
            raise ModelError("this encoder is a plain CLIP: build it by from_clip to train it")
        adapters = {**self._trunk.own(), **self._texts.own()}
        found = dict(self._own_tensors()) if self.layout.train_heads else adapters
        if real_head:
            return found
        alone = list(self._trunk.tensors(REAL).values()) if self.separate else []
        if self.dual_heads:
            alone += [self.real_head, *self.hidden.tensors(Route.REAL).values()]
        gone = {id(parameter) for parameter in alone}
        return {name: p for name, p in found.items() if id(p) not in gone}

    @property
    def separate(self) -> bool:
        """Whether real images go through an adapter, or a copy of the tower, of their own."""
        return len(self.layout.adapters) > 1

    @property
    def shared(self) -> bool:
        """Whether real and generated images go through the same trunk, so that one pass serves."""
        return len({self._trunk.adapter_of(way) for way in (Route.REAL, Route.GENERATED)}) == 1

    def trunk(
        self, pixels: Float[Tensor, "b 3 h w"], route: Route = Route.REAL
    ) -> Float[Tensor, "b width"]:
        """Return the pooled output of the vision tower, before any projection."""
        return self._trunk.backbone(self._effective(route)).trunk(pixels)

    def lean_trunk(
        self, pixels: Float[Tensor, "b 3 h w"], route: Route = Route.REAL
    ) -> Float[Tensor, "b width"]:
        """Return :meth:`trunk` up to rounding, at less cost: what training uses."""
        return self._trunk.backbone(self._effective(route)).lean_trunk(pixels)

    def trunk_and_patches(
        self, pixels: Float[Tensor, "b 3 h w"], route: Route = Route.REAL
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b width"]]:
        """Return :meth:`lean_trunk` and, from the same pass, the mean of LLaVA's patch tokens."""
        backbone = self._trunk.backbone(self._effective(route))
        pooled, patches = backbone.trunk_and_patches(pixels)
        return pooled, patches.mean(dim=1)

    def project(
        self, pooled: Float[Tensor, "b width"], route: Route = Route.REAL
    ) -> Float[Tensor, "b dim"]:
        """Apply the head of ``route`` to the trunk's output."""
        route = self._effective(route)
        head = self._head(route)
        return pooled if head is None else self.hidden.apply_head(pooled, head, route)

    def embed_pixels(
        self, pixels: Float[Tensor, "b 3 h w"], route: Route = Route.REAL
    ) -> Float[Tensor, "b dim"]:
        """Return projected image features, not normalised."""
        return self.project(self.trunk(pixels, route), route)

    def embed_text_ids(
        self,
        input_ids: Int[Tensor, "m t"],
        attention_mask: Int[Tensor, "m t"],
        route: Route = Route.REAL,
    ) -> Float[Tensor, "m dim"]:
        """Return projected text features, not normalised, as images by ``route`` have beside them.

        All routes are one where the text tower is frozen.
        """
        return self._texts.features(input_ids, attention_mask, self._effective(route))

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
        """Return token ids and attention mask, padded as the text tower wants it."""
        return self._backbone.tokenize(self.tokenizer, texts)

    def embed_texts(
        self, texts: Sequence[str], route: Route = Route.REAL
    ) -> Float[Tensor, "m dim"]:
        """Tokenize and embed one batch of texts, not normalised."""
        ids, mask = self.tokenize(texts)
        return self.embed_text_ids(ids.to(self.device), mask.to(self.device), route)

    @torch.no_grad()
    def encode_images(
        self,
        images: Sequence[Image.Image | str | Path],
        route: str = "real",
        *,
        batch_size: int = 64,
    ) -> Float[Tensor, "n dim"]:
        """Return L2-normalised fp32 features of images or of image files.

        Args:
            images: PIL images or paths.
            route: ``real``, ``generated``, ``frozen`` or ``real_head``.
            batch_size: Images in one forward pass.

        Raises:
            ConfigError: there is no such route.
            DataError: a file is missing or no image.
        """
        way = parse_route(route)
        found = [torch.empty(0, self.dim)]
        for start in range(0, len(images), batch_size):
            batch = [open_image(image) for image in images[start : start + batch_size]]
            pixels = self.preprocess(batch).to(self.device)
            found.append(normalize(self.embed_pixels(pixels, way).float(), dim=-1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int = 256
    ) -> Float[Tensor, "m dim"]:
        """Return L2-normalised fp32 features of texts.

        Raises:
            ModelError: the base model's tokenizer is missing or does not fit.
        """
        found = [torch.empty(0, self.dim)]
        for start in range(0, len(texts), batch_size):
            raw = self.embed_texts(texts[start : start + batch_size]).float()
            found.append(normalize(raw, dim=-1).cpu())
        return torch.cat(found)

    def _effective(self, route: Route) -> Route:
        return route if self.applied else Route.FROZEN

    def _head(self, route: Route) -> nn.Parameter | None:
        if route is Route.FROZEN:
            return self._backbone.head
        return self.generated_head if route is Route.GENERATED else self.real_head

    def _own_tensors(self) -> Mapping[str, nn.Parameter]:
        heads = {"real_head": self.real_head, "generated_head": self.generated_head}
        own = heads if self.dual_heads else {"real_head": self.real_head}
        return {**self._trunk.own(), **self._texts.own(), **own, **self.hidden.tensors()}
