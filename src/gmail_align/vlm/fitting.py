"""What is trained of a LLaVA, its loss over packed rows, and the processes that share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from peft import LoraConfig, LoraModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration
from transformers.utils import is_flash_attn_2_available

from gmail_align.errors import ConfigError
from gmail_align.progress import say
from gmail_align.runtime import stable_seed
from gmail_align.training.config import OptimConfig
from gmail_align.training.distributed import ranks
from gmail_align.training.loop import FitReport, PiecewiseLoss, fit, trained_parameters
from gmail_align.vlm.config import LlavaConfig
from gmail_align.vlm.connector import Seen
from gmail_align.vlm.costs import Meter
from gmail_align.vlm.loss import Objective
from gmail_align.vlm.model import Llava
from gmail_align.vlm.packing import PackedRows, Plan, Sample, pack


@runtime_checkable
class Reader(Protocol):
    """Reads what an encoder makes of the images of samples."""

    def read(self, samples: Sequence[Sample]) -> Seen:
        """Return what is read of the samples' images, in order."""


@dataclass(frozen=True)
class TrainingData:
    """Samples, held-out samples, and what reads their images."""

    train: Sequence[Sample]
    held: Sequence[Sample]
    reader: Reader


def fit_llava(
    objective: Objective,
    config: LlavaConfig,
    data: TrainingData,
    meter: Meter,
    seed: int,
    out: Path,
) -> FitReport:
    """Train what can be trained of a model that :func:`prepare` made ready."""
    plan = Plan([len(sample.ids) for sample in data.train], config.row_tokens, seed)
    settled = {name: getattr(config.optim, name) for name in OptimConfig.model_fields}
    if config.optim.steps < 0:
        settled["steps"] = plan.steps(config.optim.epochs, config.batch_rows)
    _describe(plan, data.train, config)
    device, here = objective.model.device, ranks()
    half = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")

    def summed(rows: PackedRows) -> Tensor:
        seen = data.reader.read(rows.samples)
        with half:
            loss: Tensor = objective(rows, seen)
        return loss

    def loss(step: int) -> PiecewiseLoss:
        if here.index:
            torch.manual_seed(stable_seed(seed, "step", step, here.index))  # dropout of its own
        batch = plan.batch(step, config.batch_rows)
        rows = [[data.train[index] for index in row] for row in batch]
        meter.count(rows, config.rows_at_once or len(rows))
        return piecewise_loss(rows, config.rows_at_once or len(rows), summed)

    def guard() -> Mapping[str, float]:
        mean = validation_loss(objective, data.held, config.row_tokens, summed)
        return {"score": -mean, "loss": mean}

    return fit(
        trained_parameters(objective),
        loss,
        OptimConfig(**settled),
        seed=seed,
        folder=out,
        evaluate=guard if data.held else None,
        label="llava",
        rate=meter.note,
    )


def _describe(plan: Plan, train: Sequence[Sample], config: LlavaConfig) -> None:
    rows, tokens = len(plan.epoch(0)), sum(plan.lengths)
    learnt = sum(int(sample.learnt.sum()) for sample in train)
    say(
        f"{len(train)} samples of {tokens} tokens in {rows} rows: {learnt / tokens:.1%} of the"
        f" tokens are learnt, {1 - tokens / (rows * config.row_tokens):.1%} of the rows is padding"
    )


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


def prepare(llava: Llava, config: LlavaConfig, device: torch.device) -> Objective:
    """Make a model ready to be trained: its kernels, its precision, and its place.

    Raises:
        ConfigError: the kernel cannot be used here, or the rows cannot be shared.
    """
    model = llava.model
    flash = choose_attention(config, device) == "flash_attention_2"
    if flash:
        model.set_attn_implementation({"text_config": "flash_attention_2"})
    objective = Objective(model, llava.connector, varlen=flash)
    if config.precision == "bfloat16":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if config.recompute_layers:
        for layer in model.model.language_model.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    model.model.vision_tower = None  # the reader has towers of its own
    if config.parallel == "shard":
        _shard(objective, config, device)
    return objective.to(device).train()


def choose_attention(config: LlavaConfig, device: torch.device) -> str:
    """Return the kernel of the language model's attention.

    Raises:
        ConfigError: flash-attention is asked for where it cannot run.
    """
    half = device.type == "cuda" and config.precision == "bfloat16"
    flash = half and is_flash_attn_2_available()
    if config.attention == "flash_attention_2" and not flash:
        lacking = "flash-attn" if half else "a GPU and precision=bfloat16"
        raise ConfigError(f"attention=flash_attention_2 needs {lacking}: use attention=sdpa")
    if config.attention == "sdpa" or not flash:
        return "sdpa"
    return "flash_attention_2"


def require_shares(config: LlavaConfig) -> None:
    """Check that the processes can share a step's rows.

    Raises:
        ConfigError: there are too few rows, or sharded processes would have unequal parts.
    """
    count = ranks().count
    if config.batch_rows < count or (config.parallel == "shard" and config.batch_rows % count):
        raise ConfigError(
            f"batch_rows={config.batch_rows} cannot be shared by {count} processes: make it a"
            " multiple of their number"
        )
    if config.parallel == "shard" and count == 1:
        raise ConfigError("parallel=shard is for several processes: start them by torchrun")


def _shard(objective: Objective, config: LlavaConfig, device: torch.device) -> None:
    """Give every process its part of every layer, and of what is around the layers."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (ranks().count,))
    half = torch.bfloat16 if config.precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    for layer in objective.model.model.language_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)


def piecewise_loss(
    rows: Sequence[Sequence[Sample]], at_once: int, summed: Callable[[PackedRows], Tensor]
) -> PiecewiseLoss:
    """Return the mean loss of a step's learnt tokens, ``at_once`` rows at a time.

    Every piece is divided by the learnt tokens of all rows of all processes, so pieces add up to
    the whole. Gradients are averaged over processes afterwards, so pieces are multiplied by their
    number.
    """
    here = ranks()
    learnt = sum(int(sample.learnt.sum()) for row in rows for sample in row)
    own = rows[here.part(len(rows))]
    total = torch.zeros((), dtype=torch.float64)

    def pieces() -> Iterator[Tensor]:
        for start in range(0, len(own), at_once):
            piece = summed(pack(own[start : start + at_once])) / learnt
            total.add_(piece.detach().cpu().double())
            yield piece * here.count
        total.copy_(here.total(total))

    return PiecewiseLoss({"total": total}, pieces())


@torch.no_grad()
def validation_loss(
    objective: Objective,
    samples: Sequence[Sample],
    budget: int,
    summed: Callable[[PackedRows], Tensor],
) -> float:
    """Return the mean cross-entropy of the learnt tokens of held-out samples, without dropout."""
    plan = Plan([len(sample.ids) for sample in samples], budget, 0)
    training = objective.training
    objective.eval()
    try:
        losses = [float(summed(pack([[samples[index] for index in row]]))) for row in plan.epoch(0)]
    finally:
        objective.train(training)
    return sum(losses) / sum(int(sample.learnt.sum()) for sample in samples)
