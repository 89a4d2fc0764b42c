"""One trunk, a LoRA adapter and two heads, reached by routes (GMAIL Sec. 3).

``FROZEN`` is always the plain model, bit for bit. Before training, every other route equals it.
Heads of a model without a projection behind its trunk (SigLIP, SynCLR) begin as the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from gmail_align.artifacts import fingerprint, write_json
from gmail_align.encoders.backbones import load_backbone
from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.config import REAL, EncoderCard, EncoderLayout, LoraSettings
from gmail_align.encoders.folder import (
    CONFIG,
    find_folder,
    keep_base,
    read_card,
    tensors_fingerprint,
)
from gmail_align.encoders.heads import Heads
from gmail_align.encoders.preprocess import Preprocess, open_image
from gmail_align.encoders.route import Route, parse_route
from gmail_align.encoders.text_tower import TextTower
from gmail_align.encoders.trunk import Trunk
from gmail_align.errors import ModelError, damage_explained

BASE = "base"


class GmailEncoder(nn.Module):
    """CLIP (or Long-CLIP, SigLIP, SynCLR) with an adapter for generated images.

    :meth:`from_clip` makes one to train, :meth:`from_pretrained` loads one. The model stays in
    evaluation mode. Its base weights never change.

    Example:
        >>> GmailEncoder.from_pretrained("tabletop")
        GmailEncoder(CLIP 4x128/8, plain)
    """

    def __init__(
        self,
        backbone: Backbone,
        folder: Path,
        *,
        lora: LoraSettings | None,
        dual_heads: bool = True,
        seed: int = 0,
        layout: EncoderLayout | None = None,
    ) -> None:
        super().__init__()
        self.clip = backbone.module
        self.backbone = backbone
        """What is special about the base model."""
        self.base_folder = folder
        self.lora = lora
        self.dual_heads = dual_heads
        self.layout = layout or EncoderLayout()
        self.applied = lora is not None or layout is not None
        """Whether routes differ from ``FROZEN``; False for a plain model."""
        self.best_step = 0
        self.preprocess = Preprocess.from_folder(folder)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._base_fingerprint: str | None = None
        size = backbone.vision_config.image_size
        if self.preprocess.size != size:
            raise ModelError(
                f"{folder}: the model reads images of {size} pixels, but its preprocessor's images "
                f"have {self.preprocess.size} pixels"
            )
        pixels = backbone.probe_inputs()["pixels"]
        with torch.no_grad(), damage_explained(folder / CONFIG, ModelError):
            before = backbone.image_features(pixels)
        self._trunk = Trunk(backbone, lora, self.layout, seed)
        self._texts = TextTower(backbone, lora, seed)
        head = backbone.head
        own = torch.eye(backbone.vision_config.hidden_size) if head is None else head.detach()
        heads = Heads(own, self.layout, dual_heads, seed)
        self.real_head, self.generated_head = heads.real, heads.generated
        self.heads = heads
        self._check_build(pixels, before)
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
        """Build an untrained encoder on a plain Hugging Face model: every route equals that model.

        Args:
            path_or_id: Folder or hub id (``OWNER/NAME@REVISION``) of a ``CLIPModel``,
                ``SiglipModel`` or ``ViTModel``.
            lora: The adapter; the default settings when None.
            dual_heads: Whether real and generated images have heads of their own.
            seed: Seed of the adapter's A matrices.
            layout: Which weights are trained and shared; the default when None.

        Raises:
            ModelError: the model cannot be a base, lacks weights, or does not fit the targets.
        """
        folder, settings = find_folder(path_or_id), lora or LoraSettings()
        adapter = settings if layout is None or layout.tune == "lora" else None
        base = load_backbone(folder)
        return cls(base, folder, lora=adapter, dual_heads=dual_heads, seed=seed, layout=layout)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path) -> GmailEncoder:
        """Load an encoder folder of ours, or a plain model on which every route is ``FROZEN``.

        Raises:
            ModelError: the folder is neither, or its parts do not belong together.
        """
        folder = find_folder(path_or_id)
        card = read_card(folder)
        if card is None:
            return cls(load_backbone(folder), folder, lora=None)
        inside = folder / card.base
        base = inside if inside.is_dir() else find_folder(card.base)
        backbone, dual = load_backbone(base), card.dual_heads
        encoder = cls(backbone, base, lora=card.lora, dual_heads=dual, layout=card.layout)
        if encoder.base_fingerprint != card.base_fingerprint:
            raise ModelError(f"{folder} was made on another base model than the one at {base}")
        encoder.applied, encoder.best_step = card.applied, card.best_step
        for part in (encoder._trunk, encoder._texts, encoder.heads):
            part.load(folder)
        return encoder

    def save(self, folder: str | Path) -> None:
        """Write adapter, heads, ``config.json`` and the base model, or a large one's hub id."""
        folder = Path(folder)
        source = keep_base(self.base_folder, folder / BASE, self.backbone.state())
        for part in (self._trunk, self._texts, self.heads):
            part.save(folder)
        card = EncoderCard(
            base=source or BASE,
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

    def __repr__(self) -> str:
        """Say the base model, the adapter and the step that was kept."""
        tuned = f"LoRA rank {self.lora.rank}" if self.lora else f"{self.layout.tune} tuning"
        kept = f"{tuned}, step {self.best_step} kept" if self.applied else "plain"
        return f"GmailEncoder({self.backbone.title}, {kept})"

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
        return self.backbone.logit_scale

    @property
    def adapts_texts(self) -> bool:
        """Whether the text tower has an adapter, so that what it makes of a text changes."""
        return self._texts.adapted

    @property
    def has_texts(self) -> bool:
        """Whether there is a text tower; SynCLR has none."""
        return self.backbone.has_texts

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, loaded on first use.

        Raises:
            ModelError: it is missing, or ends texts with another token than the tower pools at.
        """
        if self._tokenizer is None:
            self._tokenizer = self.backbone.tokenizer(self.base_folder)
        return self._tokenizer

    @property
    def base_fingerprint(self) -> str:
        """Fingerprint of the frozen CLIP's weights, which never change."""
        if self._base_fingerprint is None:
            self._base_fingerprint = tensors_fingerprint(self.backbone.state())
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
        tensors["head"] = self.heads.matrix(route)
        tensors |= self.heads.hidden(route)
        return fingerprint([self.base_fingerprint, tensors_fingerprint(tensors)])

    def text_fingerprint(self, route: Route) -> str:
        """Fingerprint of the weights that texts go through; the base's where they are frozen."""
        adapted = self._effective(route).adapted
        return self._texts.fingerprint(self.base_fingerprint) if adapted else self.base_fingerprint

    def trainable(self, *, real_head: bool = True) -> dict[str, nn.Parameter]:
        """Return what alignment trains, by name: the adapter, the generated and the real head.

        Args:
            real_head: Whether what real images alone go through is trained too.

        Raises:
            ModelError: this is a plain model without an adapter.
        """
        if self.lora is None and self.layout == EncoderLayout():
            raise ModelError("this encoder is a plain model: build it by from_clip to train it")
        heads = self.heads.own() if self.layout.train_heads else {}
        trained = {**self._trunk.own(), **self._texts.own(), **heads}
        if real_head:
            return trained
        alone = list(self._trunk.tensors(REAL).values()) if self.separate else []
        if self.dual_heads:
            alone += [self.real_head, *self.heads.hidden(Route.REAL).values()]
        left_out = {id(parameter) for parameter in alone}
        return {name: p for name, p in trained.items() if id(p) not in left_out}

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
        head = self.head(route)
        return pooled if head is None else self.heads(pooled, head, route)

    def embed_pixels(
        self, pixels: Float[Tensor, "b 3 h w"], route: Route = Route.REAL
    ) -> Float[Tensor, "b dim"]:
        """Return projected image features, not normalised."""
        return self.project(self.trunk(pixels, route), route)

    def embed_text_ids(
        self,
        input_ids: Int[Tensor, "m t"],
        attention_mask: Int[Tensor, "m t"],
        route: Route,
    ) -> Float[Tensor, "m dim"]:
        """Return projected text features, not normalised, to compare with images of ``route``."""
        return self._texts.features(input_ids, attention_mask, self._effective(route))

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
        """Return token ids and attention mask, padded as the text tower wants it."""
        return self.backbone.tokenize(self.tokenizer, texts)

    def tell_cut(self, texts: Sequence[str]) -> int:
        """Say how many texts are longer than the text tower reads, and return that."""
        return self.backbone.tell_cut(self.tokenizer, texts)

    def embed_texts(self, texts: Sequence[str], route: Route) -> Float[Tensor, "m dim"]:
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
            ConfigError: the route is unknown.
            DataError: a file is missing or is not an image.
        """
        way, features = parse_route(route), [torch.empty(0, self.dim)]
        for start in range(0, len(images), batch_size):
            batch = [open_image(image) for image in images[start : start + batch_size]]
            pixels = self.preprocess(batch).to(self.device)
            features.append(normalize(self.embed_pixels(pixels, way).float(), dim=-1).cpu())
        return torch.cat(features)

    @torch.no_grad()
    def encode_texts(
        self, texts: Sequence[str], route: str = "real", *, batch_size: int = 256
    ) -> Float[Tensor, "m dim"]:
        """Return L2-normalised fp32 features of texts.

        Args:
            texts: The texts.
            route: Route of the images that they are compared with; it matters where the text
                tower is adapted.
            batch_size: Texts in one forward pass.

        Raises:
            ConfigError: the route is unknown.
            ModelError: the base model's tokenizer is missing or does not fit.
        """
        way, features = parse_route(route), [torch.empty(0, self.dim)]
        for start in range(0, len(texts), batch_size):
            raw = self.embed_texts(texts[start : start + batch_size], way).float()
            features.append(normalize(raw, dim=-1).cpu())
        return torch.cat(features)

    def _effective(self, route: Route) -> Route:
        return route if self.applied else Route.FROZEN

    def head(self, route: Route) -> nn.Parameter | None:
        """Return the matrix that ``route`` has behind the trunk; None where it has none."""
        return self.backbone.head if route is Route.FROZEN else self.heads.matrix(route)

    def _own_tensors(self) -> Mapping[str, nn.Parameter]:
        return {**self._trunk.own(), **self._texts.own(), **self.heads.own()}

    @torch.no_grad()
    def _check_build(self, pixels: Float[Tensor, "b c h w"], plain: Float[Tensor, "b dim"]) -> None:
        """Assert that every route equals the plain model and that only what should train can."""
        for route in Route if self.layout.starts_plain else [Route.FROZEN]:
            if not torch.equal(self.embed_pixels(pixels, route), plain):
                raise ModelError(f"route {route} differs from the plain model before training")
        self._trunk.backbone(Route.GENERATED)
        moved = self.heads.statistics  # without a gradient
        own = {id(p): name for name, p in self._own_tensors().items() if id(p) not in moved}
        trainable = {id(p): name for name, p in self.named_parameters() if p.requires_grad}
        odd = [n for key, n in (own | trainable).items() if (key in own) != (key in trainable)]
        odd += sorted(set(self._trunk.own()) ^ self._trunk.expected())
        odd += sorted(set(self._texts.own()) ^ self._texts.expected())
        if odd:
            raise ModelError(f"{odd[0]} is trainable where it should not be, or the reverse")
