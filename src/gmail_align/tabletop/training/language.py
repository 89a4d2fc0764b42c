"""The tabletop world's GPT-2: a language model of its captions, trained from scratch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from gmail_align.runtime import stable_seed
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import FitReport, fit

BATCH = 128


def build_gpt2(tokenizer: GPT2Tokenizer) -> GPT2LMHeadModel:
    """Return an untrained GPT-2 of about 0.9 M parameters."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=128,
        n_layer=4,
        n_head=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def optimisation(steps: int) -> OptimConfig:
    """Return the recipe of the language model."""
    return OptimConfig(
        steps=steps, lr=2e-3, schedule="cosine", warmup=100, weight_decay=0.01, checkpoint_every=250
    )


def train_gpt2(
    model: GPT2LMHeadModel,
    tokenizer: GPT2Tokenizer,
    captions: list[str],
    config: OptimConfig,
    folder: Path,
    *,
    seed: int = 0,
) -> FitReport:
    """Train on captions, each followed by the end token."""
    end = tokenizer.eos_token_id
    rows = [[end, *tokenizer(text)["input_ids"], end] for text in captions]

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng(stable_seed(seed, "gpt2", step))
        picked = [rows[i] for i in generator.integers(0, len(rows), BATCH)]
        ids, labels = padded(picked, end)
        return {"total": model(input_ids=ids, labels=labels).loss}

    model.train()
    parameters = dict(model.named_parameters())
    return fit(parameters, loss, config, seed=seed, folder=folder, label="GPT-2")


def padded(rows: list[list[int]], end: int) -> tuple[Tensor, Tensor]:
    """Return token ids and labels (rows, longest); padding does not have a label."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), end)
    labels = torch.full((len(rows), longest), -100)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = labels[place, : len(row)] = torch.tensor(row)
    return ids, labels


@torch.inference_mode()
def caption_loss(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, captions: list[str]) -> float:
    """Return the mean cross-entropy of a token over captions, in nats."""
    model.eval()
    end = tokenizer.eos_token_id
    rows = [[end, *tokenizer(text)["input_ids"], end] for text in captions]
    total = count = 0.0
    for start in range(0, len(rows), BATCH):
        ids, labels = padded(rows[start : start + BATCH], end)
        tokens = float((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=ids, labels=labels).loss) * tokens
        count += tokens
    return total / count
