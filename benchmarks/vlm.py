"""LLaVA's training step against a plain loop over transformers' own forward pass and loss.

    python benchmarks/vlm.py [--steps 12] [--samples 16] [--vocabulary 16000]

Both ways take the same samples in every step, from the same weights, and print the same losses.
The plain loop pads the samples of a batch to the longest, runs the vision tower on every image, and
lets transformers compute all logits and the loss. Ours packs samples into rows, computes each
image's patches once (that time is counted), and makes logits where something is learnt.

Each way runs in a process of its own: CPU time, and the most memory that it held.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.language import LanguageModel, load_tokenizer
from gmail_align.encoders.merge import merge
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.vlm.conversations import Conversation, Turn
from gmail_align.vlm.loss import labelled_loss
from gmail_align.vlm.model import Llava, build_llava, patches_of
from gmail_align.vlm.packing import Plan, Sample, pack

COUNT, ROW = 64, 512
WORDS = ("red", "ball", "on", "a", "wooden", "floor")
Result = tuple[list[float], float, float]
"""Losses, CPU seconds and gigabytes."""


def make_llava(vocabulary: int) -> tuple[Llava, GmailEncoder]:
    """Build a LLaVA of a random Llama and the shipped CLIP."""
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
    encoder = GmailEncoder.from_pretrained(model_path("tabletop", "clip"))
    llava = build_llava(encoder, LanguageModel(words, tokenizer), "plain", Route.FROZEN, 0)
    llava.model.model.vision_tower.requires_grad_(False)
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


def plain_loss(llava: Llava, samples: list[Sample], pixels: list[Tensor]) -> Tensor:
    """Pad a batch, and let transformers do the rest."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([sample.ids.long() for sample in samples], batch_first=True)
    labels = pad(
        [s.ids.long().masked_fill(~s.learnt, -100) for s in samples],
        batch_first=True,
        padding_value=-100,
    )
    mask = pad([torch.ones(len(s.ids)) for s in samples], batch_first=True)
    loss: Tensor = llava.model(
        input_ids=ids, attention_mask=mask, labels=labels, pixel_values=torch.cat(pixels)
    ).loss
    return loss


def run(ours: bool, steps: int, size: int, vocabulary: int, out: Path) -> None:
    """Train one way, and save its losses, seconds and memory."""
    torch.set_num_threads(1)
    llava, encoder = make_llava(vocabulary)
    samples, images = make_samples(llava)
    parameters = [p for p in llava.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    before, start, losses = peak(), time.process_time(), []
    tower, patches = merge(encoder, Route.FROZEN), []
    if ours:
        patches = [patches_of(tower, llava.preprocess(image)) for image in images]
    for step in range(steps):
        chosen = [(step * size + n) % COUNT for n in range(size)]
        batch = [samples[index] for index in chosen]
        if ours:
            plan = Plan([len(sample.ids) for sample in batch], ROW, 0)
            rows = pack([[batch[index] for index in row] for row in plan.epoch(0)])
            order = [int(name) for sample in rows.samples for name in sample.image_ids]
            learnt = int(rows.learnt.sum())
            shown = torch.cat([patches[index] for index in order])
            loss = labelled_loss(llava.model, rows, shown) / learnt
        else:
            pixels = [llava.preprocess(images[index]) for index in chosen]
            loss = plain_loss(llava, batch, pixels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    torch.save((losses, time.process_time() - start, peak() - before), out)


def peak() -> float:
    """Return the most memory that this process held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Run both ways and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--samples", type=int, default=16, help="samples of a step")
    parser.add_argument("--vocabulary", type=int, default=16_000)
    given = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__},"
        f" transformers {transformers.__version__}"
    )
    results: dict[str, Result] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for name, ours in (("plain loop", False), ("gmail-align", True)):
            path = Path(folder) / name
            arguments = (ours, given.steps, given.samples, given.vocabulary, path)
            process = context.Process(target=run, args=arguments)
            process.start()
            process.join()
            results[name] = torch.load(path, weights_only=True)
    for name, (losses, seconds, memory) in results.items():
        rate = given.steps * given.samples / seconds
        print(f"{name:12} {rate:6.1f} samples/s, {memory:.2f} GB, last loss {losses[-1]:.5f}")
    plain, ours_ = results["plain loop"], results["gmail-align"]
    differ = max(abs(a - b) for a, b in zip(plain[0], ours_[0], strict=True))
    print(
        f"{plain[1] / ours_[1]:.2f} times as fast, {ours_[2] / plain[2]:.2f} times the memory;"
        f" losses differ by at most {differ:.1e}"
    )


if __name__ == "__main__":
    main()
