"""The stage: train LLaVA on conversations about generated images, real ones, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gmail_align.artifacts import MANIFEST, Artifact, begin, load
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.language import load_language_model
from gmail_align.encoders.merge import merge
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError
from gmail_align.progress import say, set_quiet
from gmail_align.runtime import resolve_device
from gmail_align.training.checkpoints import remove_checkpoint, whole
from gmail_align.training.distributed import ranks
from gmail_align.training.loop import FitReport, trained_parameters
from gmail_align.vlm.config import LlavaConfig
from gmail_align.vlm.costs import LlavaShape, Meter, known_peak
from gmail_align.vlm.fitting import (
    TrainingData,
    choose_trained,
    fit_llava,
    prepare,
    require_shares,
)
from gmail_align.vlm.folder import (
    connector_for,
    continue_connector,
    save_llava,
    start_fingerprint,
    weights_folder,
)
from gmail_align.vlm.loss import Objective
from gmail_align.vlm.model import Llava, build_llava, continue_llava
from gmail_align.vlm.packing import Sample
from gmail_align.vlm.patches import PatchReader
from gmail_align.vlm.sets import ConversationSet as ConversationSet
from gmail_align.vlm.sets import inputs_of


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
        encoder: A CLIP or a SigLIP, aligned or not; it is moved to the device.
        language_model: Folder of a language model of Llama's format, or of a LLaVA to train on.
        out: Folder of the model.
        validation: Held-out conversations; the step with their lowest loss is kept, step 0
            included. Without them the last step is kept.
        seed: Seed of the projector, the rows and dropout.

    Raises:
        DataError: a sample cannot be trained on; the message names it.
        ModelError: the encoder or the language model cannot be used.
        ConfigError: there are no conversations, nothing is trained, or the tokenizer lacks a
            control token.
    """
    if not sets:
        raise ConfigError("LLaVA is trained on conversations: give at least one set")
    parts = [*sets, *([validation] if validation else [])]
    names = [*(f"train{number + 1}" for number in range(len(sets))), "validation"]
    named = dict(zip(names, parts, strict=False))
    here, draft = ranks(), None
    if not here.first:
        set_quiet(True)  # one process speaks for all
    if here.first or (out / MANIFEST).exists():
        identity = {"vlm": "llava", "routes": _routes(named), **config.identity()}
        start = {
            "language_model": start_fingerprint(language_model),
            "encoder": encoder.fingerprint,
        }
        draft = begin(out, "vlm", identity, {**start, **inputs_of(named)}, seed)
        if draft.complete is not None:
            return draft.complete
    here.wait()
    opening = _Opening(config, encoder, language_model, parts, seed)
    done = _train(opening, len(sets), out)
    if draft is not None:
        trained_on = {"encoder": encoder.base_fingerprint, "routes": _routes(named)}
        save_llava(out, opening.finished(done.weights), trained_on, config.reads)
        remove_checkpoint(out)
        notes = {"best_step": done.report.best_step, "validation": done.report.scores}
        notes |= {"speed": done.report.speed, "trained_on": trained_on}
        draft.finish(_counts(done.samples), **notes)
    here.wait()
    return load(out)


@dataclass(frozen=True)
class _Done:
    """What a training ended with."""

    report: FitReport
    weights: dict[str, Tensor]
    """What was trained, by name, whole."""
    samples: Sequence[Sample]
    """What it was trained on."""


def _train(opening: _Opening, sets: int, out: Path) -> _Done:
    """Train on the first ``sets`` of the sets; what follows is held out."""
    config, here = opening.config, ranks()
    require_shares(config)
    llava = opening.llava()
    samples = [
        Sample.make(conversation, llava.layout, config.row_tokens, number)
        for number, part in enumerate(opening.sets)
        for conversation in part.read(config.prompt)
    ]
    train = [sample for sample in samples if sample.source < sets]
    held = [sample for sample in samples if sample.source == sets]
    _require_training(config, opening.sets[:sets], train)
    device = resolve_device(config.device)
    opening.encoder.to(device)  # the processes' groups decide which device that is
    reader = PatchReader(opening.sets, opening.encoder, samples, out, config.visual_tokens)
    reader.preprocess = llava.preprocess
    shape = LlavaShape.of(llava.model.config.to_dict())
    choose_trained(llava.model, config, opening.seed)
    objective = prepare(llava, config, device)
    del llava
    reader.half = config.precision == "bfloat16"
    reader.keep_where_it_pays(config.keep_patches, shape.tower_share(config))
    say(shape.memory(config, guarded=bool(held), processes=here.count).sentence())
    meter = Meter(shape, config, _peak(config, device), reads=reader.kept is None)
    data = TrainingData(train, held, reader)
    report = fit_llava(objective, config, data, meter, opening.seed, out)
    weights = {n: whole(p.detach()).cpu() for n, p in trained_parameters(objective).items()}
    if here.first:
        reader.remove_kept()
    return _Done(report, weights, train)


def _routes(named: Mapping[str, ConversationSet]) -> dict[str, str]:
    return {name: str(part.route) for name, part in named.items()}


class _Opening:
    """Opens the model that a training begins with: to train it, and again to put the result in.

    What is trained may be sharded over processes, and what is frozen rounded. So the folder is
    written from the model as it was, with what was trained in it.
    """

    def __init__(
        self,
        config: LlavaConfig,
        encoder: GmailEncoder,
        folder: Path,
        sets: Sequence[ConversationSet],
        seed: int,
    ) -> None:
        self.config, self.encoder, self.folder, self.seed = config, encoder, folder, seed
        self.sets = sets
        self.routes = frozenset(part.route for part in sets if part.route.adapted)

    def llava(self) -> Llava:
        """Open a LLaVA, or put a projector before a language model."""
        config, place = self.config, weights_folder(self.folder)
        known = json.loads((place / "config.json").read_text(encoding="utf-8"))
        go_on = known["model_type"] == "llava"
        if go_on:
            llava = continue_llava(place, self.encoder, config.template, config.reads)
        else:
            language = load_language_model(place)
            llava = build_llava(self.encoder, language, config.template, config.reads, self.seed)
        connector = connector_for(
            llava, config.visual_tokens, config.pooled_tokens, self.routes, self.seed
        )
        if go_on:
            continue_connector(self.folder, connector)
        llava = llava.with_connector(connector, merge(self.encoder, config.reads))
        steps = replace(self.encoder.preprocess, pad=config.square == "pad")
        return replace(llava, preprocess=steps)

    def finished(self, trained: dict[str, Tensor]) -> Llava:
        """Open the model again, with what was trained in it."""
        llava = self.llava()
        adapted = choose_trained(llava.model, self.config, self.seed)
        own = trained_parameters(Objective(llava.model, llava.connector))
        with torch.no_grad():
            for name, value in trained.items():
                own[name].copy_(value)
        if adapted is not None:
            adapted.merge_and_unload()
        return llava


def _require_training(
    config: LlavaConfig, sets: Sequence[ConversationSet], train: Sequence[Sample]
) -> None:
    """Refuse a combination in which what should be trained never would be.

    Raises:
        ConfigError: see above.
    """
    if config.tune == "projector" and not any(sample.image_ids for sample in train):
        raise ConfigError(
            "nothing is trained: tune=projector trains what reads images, and no sample has one;"
            " use tune=lora or full"
        )
    adapted = [part for part in sets if part.route.adapted and part.images is not None]
    if config.visual_tokens == "residual" and not adapted:
        raise ConfigError(
            "visual_tokens=residual trains a matrix for each adapted route, and no set is read by"
            f" one: read generated images by the route {Route.GENERATED}"
        )


def _peak(config: LlavaConfig, device: torch.device) -> float | None:
    """Return the operations a second of all processes' cards; None where that is not known."""
    if device.type != "cuda" or config.precision != "bfloat16":
        return None
    one = known_peak(torch.cuda.get_device_name(device))
    return None if one is None else one * ranks().count


def _counts(trained: Sequence[Sample]) -> dict[str, int]:
    """Count what was trained on, for the manifest."""
    return {
        "samples": len(trained),
        "images": len({(s.source, name) for s in trained for name in s.image_ids}),
        "tokens": sum(len(sample.ids) for sample in trained),
        "learnt_tokens": sum(int(sample.learnt.sum()) for sample in trained),
    }
