"""The stage: train LLaVA on conversations about generated images, real ones, or both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig, LoraModel
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from gmail_align.artifacts import Artifact, begin, sha256_file
from gmail_align.data.images import ImageStore
from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.language import language_model_fingerprint, load_language_model
from gmail_align.encoders.merge import merge
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.rows import RowFile, fill_rows
from gmail_align.progress import say
from gmail_align.runtime import resolve_device, stable_seed
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import CHECKPOINT, FitReport, PiecewiseLoss, fit
from gmail_align.vlm.config import LlavaConfig
from gmail_align.vlm.conversations import (
    CONVERSATIONS,
    Conversation,
    caption_conversations,
    read_conversations,
)
from gmail_align.vlm.loss import labelled_loss
from gmail_align.vlm.model import (
    Llava,
    build_llava,
    continue_llava,
    patches_of,
    save_llava,
)
from gmail_align.vlm.packing import PackedRows, Plan, Sample, pack

_IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class ConversationSet:
    """Conversations, their images, and the route by which the images are read."""

    conversations: Path | Artifact
    """A file in LLaVA's format, or an artifact of kind ``conversations``, ``captions`` or
    ``pairs``."""
    images: Artifact | None = None
    """The images; None where the conversations do not have any."""
    route: Route = Route.FROZEN
    """Weights of the encoder that the images go through: ``generated`` for generated images."""

    def read(self, prompt: str) -> Iterator[Conversation]:
        """Yield the conversations; ``prompt`` asks for captions.

        Raises:
            DataError: a sample is not a conversation, or its image is missing.
        """
        known = ImageStore(self.images) if self.images else None
        if isinstance(self.conversations, Path) or self.conversations.kind == CONVERSATIONS:
            stream = read_conversations(self.conversations)
        elif known is None:
            raise ConfigError(f"{self.conversations.folder} holds captions: give their images")
        else:
            stream = caption_conversations(tuple(known.ids), self.conversations, prompt)
        for conversation in stream:
            for name in conversation.image_ids:
                if known is None or name not in known:
                    raise DataError(
                        f"sample {conversation.sample_id} has the image {name}, which is not among"
                        f" the images of {self.images.folder if self.images else 'this training'}"
                    )
            yield conversation


def train_llava(
    config: LlavaConfig,
    sets: Sequence[ConversationSet],
    encoder: GmailEncoder,
    language_model: Path,
    out: Path,
    *,
    validation: ConversationSet | None = None,
    seed: int = 0,
) -> Artifact:
    """Train LLaVA; returns an artifact of kind ``vlm``.

    The vision tower stays as it is. Each set's images are read by its own route, so generated and
    real images can be trained on together (Algorithm 1, step 12).

    Args:
        config: Template, packing and optimisation.
        sets: What is trained on.
        encoder: A CLIP, aligned or not, on the device where it runs.
        language_model: Folder of a language model of Llama's format, or of a LLaVA to train on.
        out: Folder of the model.
        validation: Held-out conversations; the step with their lowest loss is kept, step 0
            included. Without them the last step is kept.
        seed: Seed of the projector, the rows and dropout.

    Raises:
        DataError: a sample cannot be trained on; the message names it.
        ModelError: the encoder or the language model cannot be used.
        ConfigError: there are no conversations, or the tokenizer lacks a control token.
    """
    if not sets:
        raise ConfigError("LLaVA is trained on conversations: give at least one set")
    parts = [*sets, *([validation] if validation else [])]
    names = [*(f"train{number + 1}" for number in range(len(sets))), "validation"]
    named = dict(zip(names, parts, strict=False))
    routes = {name: str(part.route) for name, part in named.items()}
    start = {
        "language_model": language_model_fingerprint(language_model),
        "encoder": encoder.fingerprint,
    }
    identity = {"vlm": "llava", "routes": routes, **config.identity()}
    draft = begin(out, "vlm", identity, {**start, **_inputs(named)}, seed)
    if draft.complete is not None:
        return draft.complete
    llava = _start(config, encoder, language_model, seed)
    samples = [
        Sample.make(conversation, llava.layout, config.row_tokens, number)
        for number, part in enumerate(parts)
        for conversation in part.read(config.prompt)
    ]
    llava.model.to(resolve_device(config.device)).train()
    reader = PatchReader(parts, encoder, samples, out)
    reader.keep_where_it_pays(config.keep_patches, llava)
    report = _fit(llava, config, samples, len(sets), reader, seed, out)
    trained_on = {"encoder": encoder.base_fingerprint, "routes": routes}
    save_llava(out, llava, trained_on)
    for file in (draft.path(CHECKPOINT), *reader.files):
        file.unlink(missing_ok=True)
    notes = {"best_step": report.best_step, "validation": report.scores, "trained_on": trained_on}
    return draft.finish(_counts([s for s in samples if s.source < len(sets)]), **notes)


def _start(config: LlavaConfig, encoder: GmailEncoder, folder: Path, seed: int) -> Llava:
    """Open a LLaVA, or put a projector before a language model."""
    if json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "llava":
        return continue_llava(folder, encoder, config.template, config.reads)
    language = load_language_model(folder)
    return build_llava(encoder, language, config.template, config.reads, seed)


def _inputs(parts: Mapping[str, ConversationSet]) -> dict[str, Artifact | str]:
    """Name what the model is made from, by role."""
    inputs: dict[str, Artifact | str] = {}
    for name, part in parts.items():
        source = part.conversations
        content = sha256_file(source) if isinstance(source, Path) else source
        inputs[f"{name}_conversations"] = content
        inputs |= {f"{name}_images": part.images} if part.images else {}
    return inputs


def _counts(trained: Sequence[Sample]) -> dict[str, int]:
    """Count what was trained on, for the manifest."""
    return {
        "samples": len(trained),
        "images": len({(s.source, name) for s in trained for name in s.image_ids}),
        "tokens": sum(len(sample.ids) for sample in trained),
        "learnt_tokens": sum(int(sample.learnt.sum()) for sample in trained),
    }


class PatchReader:
    """Reads the patches of images, each set's by its own route.

    Args:
        sets: The sets of images.
        encoder: The encoder.
        samples: The samples whose images will be read.
        out: Folder where patches may be kept until the training is complete.
    """

    def __init__(
        self,
        sets: Sequence[ConversationSet],
        encoder: GmailEncoder,
        samples: Sequence[Sample],
        out: Path,
    ) -> None:
        self.encoder, self.out = encoder, out
        self.stores = [ImageStore(part.images) if part.images else None for part in sets]
        self.routes = [part.route for part in sets]
        self.towers: dict[Route, Backbone] = {
            route: merge(encoder, route) for route in dict.fromkeys(self.routes)
        }
        for tower in self.towers.values():
            tower.module.to(encoder.device)
        wanted = ((sample.source, name) for sample in samples for name in sample.image_ids)
        self.place = {image: row for row, image in enumerate(dict.fromkeys(wanted))}
        self.kept: np.ndarray[Any, np.dtype[np.float32]] | None = None
        self.files: list[Path] = []

    def read(self, samples: Sequence[Sample]) -> Float[Tensor, "i p w"] | None:
        """Return the patches of the samples' images in order; None without images."""
        images = [(sample.source, name) for sample in samples for name in sample.image_ids]
        if not images:
            return None
        if self.kept is not None:
            rows = [self.place[image] for image in images]
            return torch.from_numpy(np.stack([self.kept[row] for row in rows]))
        return self._compute(images)

    def _compute(self, images: Sequence[tuple[int, str]]) -> Float[Tensor, "i p w"]:
        patches: list[Tensor] = []
        for source, name in images:
            store = self.stores[source]
            assert store is not None  # reading the conversations refuses that
            pixels = self.encoder.preprocess(store.read(name)).to(self.encoder.device)
            patches.append(patches_of(self.towers[self.routes[source]], pixels))
        return torch.cat(patches).float()

    def keep_where_it_pays(self, chosen: bool | None, llava: Llava) -> None:
        """Compute all patches once, if that is chosen or saves at least a tenth of the work."""
        if not self.place:
            return
        tokens = llava.layout.image_tokens
        tower = sum(p.numel() for p in llava.model.model.vision_tower.parameters())
        words = sum(p.numel() for p in llava.model.model.language_model.parameters())
        share = tower / (3 * words)  # both see about as many tokens; gradients triple the latter
        if not (share > 0.1 if chosen is None else chosen):
            say(f"the vision tower is {share:.0%} of the work: images are read at every step")
            return
        say(f"the vision tower is {share:.0%} of the work: patches are computed once and kept")
        images, width = list(self.place), self.encoder.width
        path = self.out / "patches.bin"
        target = RowFile(path, len(images), 4 * tokens * width)

        def make(rows: object) -> np.ndarray[Any, np.dtype[np.float32]]:
            assert isinstance(rows, range)
            return self._compute([images[row] for row in rows]).cpu().numpy()

        fill_rows(target, _IMAGES_AT_ONCE, lambda rows: rows, make, label="patches", unit="images")
        self.kept = np.memmap(path, np.float32, "r", shape=(len(images), tokens, width))
        self.files = [path]


def _fit(
    llava: Llava,
    config: LlavaConfig,
    samples: Sequence[Sample],
    sets: int,
    reader: PatchReader,
    seed: int,
    out: Path,
) -> FitReport:
    """Train the projector, and the language model where that is asked for."""
    model = llava.model
    adapted = choose_trained(model, config, seed)
    train = [sample for sample in samples if sample.source < sets]
    held = [sample for sample in samples if sample.source == sets]
    plan = Plan([len(sample.ids) for sample in train], config.row_tokens, seed)
    settled = {name: getattr(config.optim, name) for name in OptimConfig.model_fields}
    if config.optim.steps < 0:
        settled["steps"] = plan.steps(config.optim.epochs, config.batch_rows)
    rows, tokens = len(plan.epoch(0)), sum(plan.lengths)
    learnt = sum(int(sample.learnt.sum()) for sample in train)
    say(
        f"{len(train)} samples of {tokens} tokens in {rows} rows: {learnt / tokens:.1%} of the"
        f" tokens are learnt, {1 - tokens / (rows * config.row_tokens):.1%} of the rows is padding"
    )
    half = torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")

    def loss(step: int) -> PiecewiseLoss:
        rows = [[train[index] for index in row] for row in plan.batch(step, config.batch_rows)]
        return piecewise_loss(rows, config.rows_at_once or len(rows), summed)

    def summed(rows: PackedRows) -> Tensor:
        with half:
            return labelled_loss(model, rows, reader.read(rows.samples))

    def guard() -> Mapping[str, float]:
        mean = validation_loss(llava, held, config.row_tokens, summed)
        return {"score": -mean, "loss": mean}

    report = fit(
        {name: p for name, p in model.named_parameters() if p.requires_grad},
        loss,
        OptimConfig(**settled),
        seed=seed,
        folder=out,
        evaluate=guard if held else None,
        label="llava",
    )
    if adapted is not None:
        adapted.merge_and_unload()
    return report


def choose_trained(
    model: LlavaForConditionalGeneration, config: LlavaConfig, seed: int
) -> LoraModel | None:
    """Let the projector be trained, and the language model where the configuration says so.

    Returns:
        The adapted language model, whose adapter has to be merged in the end; None without one.
    """
    model.requires_grad_(False)
    adapted = None
    if config.tune == "full":
        for module in (model.model.language_model, model.lm_head):
            module.requires_grad_(True)
    if config.tune == "lora":
        settings = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules="all-linear",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(seed, "lora"))
            adapted = LoraModel(model.model.language_model, {"default": settings}, "default")
    model.model.multi_modal_projector.requires_grad_(True)
    return adapted


def piecewise_loss(
    rows: Sequence[Sequence[Sample]], at_once: int, summed: Callable[[PackedRows], Tensor]
) -> PiecewiseLoss:
    """Return the mean loss of a step's learnt tokens, ``at_once`` rows at a time.

    Every piece is divided by the learnt tokens of all rows, so pieces add up to the whole.
    """
    learnt = sum(int(sample.learnt.sum()) for row in rows for sample in row)
    total = torch.zeros((), dtype=torch.float64)

    def pieces() -> Iterator[Tensor]:
        for start in range(0, len(rows), at_once):
            piece = summed(pack(rows[start : start + at_once])) / learnt
            total.add_(piece.detach().cpu().double())
            yield piece

    return PiecewiseLoss({"total": total}, pieces())


@torch.no_grad()
def validation_loss(
    llava: Llava, samples: Sequence[Sample], budget: int, summed: Callable[[PackedRows], Tensor]
) -> float:
    """Return the mean cross-entropy of the learnt tokens of held-out samples, without dropout."""
    plan = Plan([len(sample.ids) for sample in samples], budget, 0)
    training = llava.model.training
    llava.model.eval()
    try:
        losses = [float(summed(pack([[samples[index] for index in row]]))) for row in plan.epoch(0)]
    finally:
        llava.model.train(training)
    return sum(losses) / sum(int(sample.learnt.sum()) for sample in samples)
