"""LLaVA's training step against transformers' Trainer with peft, and at 7B shapes on a GPU.

    python benchmarks/vlm.py [--steps 12] [--samples 16] [--vocabulary 16000]
    python benchmarks/vlm.py --gpu [--tiny] [--rows 8] [--recompute] [--attention sdpa]

The first form runs on one CPU thread. Both ways begin with the same weights, train the same LoRA of
the language model and the projector, take the same samples in every step, and print the same
losses. The Trainer's collator pads a batch to its longest sample; transformers runs the vision
tower on every image, and computes all logits and the loss. Ours packs samples into rows, computes
each image's patches once (that time is counted), and makes logits where something is learnt. Each
way runs in a process of its own: CPU time of the steps, and the most memory that it held.

The second form trains LoRA at the shapes of LLaVA-1.5 7B with random weights, and prints tokens a
second, memory, and the share of what a large matrix product reaches on the same card. ``--tiny``
takes small shapes, on any device.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.language import LanguageModel, load_tokenizer
from gmail_align.encoders.merge import merge
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.training.loop import peak_memory
from gmail_align.vlm.config import LanguageLora, LlavaConfig
from gmail_align.vlm.connector import Connector, Seen
from gmail_align.vlm.conversations import Conversation, Turn
from gmail_align.vlm.costs import LlavaShape, known_peak
from gmail_align.vlm.fitting import choose_trained, piecewise_loss, prepare, trained_parameters
from gmail_align.vlm.loss import Objective
from gmail_align.vlm.model import Llava, build_llava
from gmail_align.vlm.packing import PackedRows, Plan, Sample

COUNT, ROW, RATE = 64, 512, 1e-3
TUNED = LlavaConfig(tune="lora", lora=LanguageLora(rank=8, alpha=16.0, dropout=0.0))


@dataclass(frozen=True)
class Measured:
    """Losses, CPU seconds and gigabytes of one way."""

    losses: list[float]
    seconds: float
    memory: float


def make_llava(vocabulary: int) -> tuple[Llava, GmailEncoder]:
    """Build a LLaVA of a random Llama and the shipped CLIP."""
    encoder = GmailEncoder.from_pretrained("tabletop")
    tokenizer = load_tokenizer(model_path("tabletop", "gpt2"))
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    torch.manual_seed(0)
    words = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=ROW,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    llava = build_llava(encoder, LanguageModel(words, tokenizer), "plain", Route.FROZEN, 0)
    choose_trained(llava.model, TUNED, 0)
    return llava, encoder


def make_samples(llava: Llava) -> tuple[list[Sample], list[Image.Image]]:
    """Make noise as images, and captions of 5 to 60 words."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(COUNT)]
    samples = []
    for number in range(COUNT):
        text = " ".join(
            random.choice(["red", "ball", "on", "a", "wooden", "floor"], 5 + number % 56)
        )
        talk = Conversation(f"{number}", (Turn("<image>", text),), (f"{number}",))
        samples.append(Sample.make(talk, llava.layout, ROW))
    return samples, images


class Talks(Dataset[dict[str, Any]]):
    """The samples as a Trainer takes them."""

    def __init__(
        self, llava: Llava, samples: list[Sample], images: list[Image.Image], n: int
    ) -> None:
        self.llava, self.samples, self.images, self.count = llava, samples, images, n

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index % COUNT]
        pixels = self.llava.preprocess(self.images[index % COUNT])
        return {"sample": sample, "pixels": pixels}


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad a batch to its longest sample."""
    pad, samples = torch.nn.utils.rnn.pad_sequence, [row["sample"] for row in rows]
    labels = [s.ids.long().masked_fill(~s.learnt, -100) for s in samples]
    return {
        "input_ids": pad([s.ids.long() for s in samples], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
        "attention_mask": pad([torch.ones(len(s.ids)) for s in samples], batch_first=True),
        "pixel_values": torch.cat([row["pixels"] for row in rows]),
    }


class PlainTrainer(Trainer):
    """transformers' Trainer, in the samples' order; it keeps every step's loss."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        self.losses: list[float] = []

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, *values: Any, **named: Any) -> Any:
        """Compute the loss, and keep it."""
        loss = super().compute_loss(*values, **named)
        self.losses.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
        return loss


def run_trainer(steps: int, size: int, vocabulary: int) -> Measured:
    """Train by transformers' Trainer and peft."""
    llava, _ = make_llava(vocabulary)
    samples, images = make_samples(llava)
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        how = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=size,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        talks = Talks(llava, samples, images, steps * size)
        trainer = PlainTrainer(llava.model, how, train_dataset=talks, data_collator=collate)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
    return Measured(trainer.losses, seconds, peak() - before)


def run_ours(steps: int, size: int, vocabulary: int) -> Measured:
    """Train on packed rows."""
    llava, encoder = make_llava(vocabulary)
    samples, images = make_samples(llava)
    tower, before = merge(encoder, Route.FROZEN), peak()
    objective = prepare(llava, TUNED, torch.device("cpu"))
    parameters = list(trained_parameters(objective).values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    start, losses = time.process_time(), []
    with torch.no_grad():
        patches = torch.cat([tower.patches(llava.preprocess(image)) for image in images])

    def summed(rows: PackedRows) -> Tensor:
        order = [int(name) for sample in rows.samples for name in sample.image_ids]
        loss: Tensor = objective(rows, Seen(patches[order], (Route.FROZEN,) * len(order)))
        return loss

    for step in range(steps):
        batch = [samples[(step * size + n) % COUNT] for n in range(size)]
        plan = Plan([len(sample.ids) for sample in batch], ROW, 0).epoch(0)
        rows = [[batch[index] for index in row] for row in plan]
        losses.append(descend(rows, summed, parameters, optimizer))
    return Measured(losses, time.process_time() - start, peak() - before)


def descend(
    rows: Sequence[Sequence[Sample]],
    summed: Any,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    at_once: int | None = None,
) -> float:
    """Take one step, and return its loss."""
    loss = piecewise_loss(rows, at_once or len(rows), summed)
    optimizer.zero_grad()
    for piece in loss.pieces:
        piece.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return float(loss.terms["total"])


def in_child(ours: bool, steps: int, size: int, vocabulary: int, out: Path) -> None:
    """Train one way, and save what was measured."""
    torch.set_num_threads(1)
    measured = (run_ours if ours else run_trainer)(steps, size, vocabulary)
    torch.save(vars(measured), out)


def peak() -> float:
    """Return the most memory that this process held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def compare(steps: int, size: int, vocabulary: int) -> None:
    """Run both ways on the CPU, and print the comparison."""
    results: dict[str, Measured] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for name, ours in (("Trainer", False), ("gmail-align", True)):
            path = Path(folder) / name
            process = context.Process(target=in_child, args=(ours, steps, size, vocabulary, path))
            process.start()
            process.join()
            results[name] = Measured(**torch.load(path, weights_only=True))
    for name, one in results.items():
        rate = steps * size / one.seconds
        last = one.losses[-1]
        print(f"{name:12} {rate:6.1f} samples/s, {one.memory:.2f} GB, last loss {last:.5f}")
    plain, own = results["Trainer"], results["gmail-align"]
    differ = max(abs(a - b) for a, b in zip(plain.losses, own.losses, strict=True))
    print(
        f"{plain.seconds / own.seconds:.2f} times as fast, {own.memory / plain.memory:.2f} times"
        f" the memory; losses differ by at most {differ:.1e}"
    )


def large_configs(tiny: bool) -> tuple[LlamaConfig, CLIPVisionConfig]:
    """Return the configurations of LLaVA-1.5 7B's two parts, or tiny ones."""
    if tiny:
        words = LlamaConfig(
            vocab_size=500,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
        sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
        return words, CLIPVisionConfig(
            **sizes, num_hidden_layers=3, image_size=56, patch_size=14, projection_dim=32
        )
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    vision = CLIPVisionConfig(
        **sizes, num_hidden_layers=24, image_size=336, patch_size=14, projection_dim=768
    )
    return LlamaConfig(vocab_size=32_064), vision


def make_large(tiny: bool, device: torch.device) -> tuple[LlavaForConditionalGeneration, Any]:
    """Make a LLaVA of random weights where it runs, and a vision tower without its last layer."""
    words, vision = large_configs(tiny)
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=words.to_dict(),
        image_token_index=words.vocab_size - 1,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
        vision.num_hidden_layers -= 1
        tower = CLIPVisionModel(vision)
    model.model.vision_tower = None
    for module in (model, tower):
        module.to_empty(device=device)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    for part in model.model.language_model.modules():
        if hasattr(part, "inv_freq"):  # what an empty device does not fill
            part.inv_freq = type(part)(words).inv_freq.to(device)
    return model, tower.eval().requires_grad_(False)


def matrix_limit(device: torch.device, size: int) -> float:
    """Return the operations a second of a large bfloat16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        wait(device)
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        wait(device)
        best = max(best, 4 * 2.0 * size**3 / (time.perf_counter() - start))
    return best


def wait(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def large(given: argparse.Namespace) -> None:
    """Train LoRA at 7B shapes, and print tokens a second, memory and the share of the limit."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tower = make_large(given.tiny, device)
    config = LlavaConfig(
        tune="lora",
        lora=LanguageLora(rank=4, alpha=8.0) if given.tiny else LanguageLora(),
        precision="bfloat16",
        recompute_layers=given.recompute,
        attention=given.attention,
        batch_rows=given.rows,
        rows_at_once=given.rows_at_once,
    )
    shape = LlavaShape.of(model.config.to_dict())
    texts, learnt = (24, 12) if given.tiny else (124, 60)
    config = config.model_copy(update={"row_tokens": 3 * (shape.patches + texts)})
    print(shape.memory(config, guarded=False).sentence())
    choose_trained(model, config, 0)
    objective = prepare(Llava(model, None, None, "plain", Connector()), config, device)  # type: ignore[arg-type]
    assert isinstance(objective, Objective)
    parameters = list(trained_parameters(objective).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    side = model.config.vision_config.image_size
    ids = torch.randint(0, shape.vocabulary - 1, (shape.patches + texts,), dtype=torch.int32)
    ids[: shape.patches] = shape.vocabulary - 1
    labels = torch.arange(len(ids)) >= len(ids) - learnt
    rows = [[Sample("s", ids, labels, ("x",))] * 3 for _ in range(given.rows)]

    def summed(packed: PackedRows) -> Tensor:
        count = sum(len(sample.image_ids) for sample in packed.samples)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                pixels = torch.randn(count, 3, side, side, device=device)
                patches = tower(pixels).last_hidden_state[:, 1:].float()
            loss: Tensor = objective(packed, Seen(patches, (Route.FROZEN,) * count))
        return loss

    for _ in range(2):
        descend(rows, summed, parameters, optimizer, given.rows_at_once)
    wait(device)
    start = time.perf_counter()
    for _ in range(given.steps):
        descend(rows, summed, parameters, optimizer, given.rows_at_once)
    wait(device)
    seconds = (time.perf_counter() - start) / given.steps
    images = 3 * given.rows
    work = (shape.step_flops(rows, config) + images * shape.image_flops()) / seconds
    limit = matrix_limit(device, 512 if given.tiny else 8192)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    sheet = known_peak(name)
    print(
        f"{name}: {images * len(ids) / seconds:.0f} tokens/s, {images / seconds:.2f} samples/s,"
        f" {peak_memory():.1f} GB, {work / 1e12:.3g} TFLOP/s: {work / limit:.1%} of a matrix"
        f" product's {limit / 1e12:.3g}"
        + ("" if sheet is None else f", {work / sheet:.1%} of the data sheet's {sheet / 1e12:.0f}")
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--samples", type=int, default=16, help="samples of a step")
    parser.add_argument("--vocabulary", type=int, default=16_000)
    parser.add_argument("--gpu", action="store_true", help="the shapes of LLaVA-1.5 7B")
    parser.add_argument("--tiny", action="store_true", help="with --gpu: tiny shapes")
    parser.add_argument("--rows", type=int, default=8, help="with --gpu: rows of 3 samples a step")
    parser.add_argument("--rows-at-once", type=int, default=2)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--attention", default="auto")
    given = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__},"
        f" transformers {transformers.__version__}"
    )
    if given.gpu:
        large(given)
    else:
        compare(given.steps, given.samples, given.vocabulary)


if __name__ == "__main__":
    main()
