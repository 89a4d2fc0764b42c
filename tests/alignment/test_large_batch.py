"""Gradients in parts equal those of the whole batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.embedding import Batch, loss_terms, piecewise_terms
from gmail_align.alignment.tokens import pack
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder

EVERY = AlignWeights(
    align=0.5, text_generated=2, text_real=3, distill_real=4, distill_generated=5, norm=6, patch=7
)


def _encoder(folder: Path, lora: LoraSettings | None = None) -> GmailEncoder:
    encoder = GmailEncoder.from_clip(folder, lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 7, 3, 32, 32), dtype=torch.uint8, generator=generator)
    frozen, texts = torch.randn(2, 7, 24, generator=generator)
    shared = [[0, 0], [1, 1], [2, 2], [0, 3], [4, 4], [5, 4], [6, 6]]
    groups = torch.tensor([[image, text, text] for image, text in shared])
    patches = torch.randn(7, 32, generator=generator)
    known = {"frozen": frozen, "frozen_patches": patches, "texts": texts}
    return Batch({"generated": images[0], "real": images[1]}, known, groups)


@pytest.mark.parametrize("micro", [1, 3, 7, 50])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("towers", ["vision", "both"])
def test_gradients_in_parts_are_those_of_the_whole_batch(
    micro: int, chunk: int | None, towers: Any, clip_folder: Path, batch: Batch
) -> None:
    config = AlignConfig(weights=EVERY, temperature=0.2, direction="both")
    lora = LoraSettings(towers=towers)
    whole, parts = _encoder(clip_folder, lora), _encoder(clip_folder, lora)
    if towers == "both":
        lines = [" ".join(["a red image of tone"[: 3 + 3 * n], str(n)]) for n in range(7)]
        batch = dataclasses.replace(batch, inputs={**batch.inputs, "texts": pack(whole, lines)})
    scales = [torch.tensor(1.5, requires_grad=True) for _ in range(2)]
    terms = loss_terms(whole, batch, config, scales[0])
    terms["total"].backward()
    config = config.model_copy(update={"micro_batch": micro, "loss_chunk": chunk})
    loss = piecewise_terms(parts, batch, config, scales[1])
    for piece in loss.pieces:
        piece.backward()
    assert list(loss.terms) == list(terms)
    for name, term in terms.items():
        assert torch.allclose(loss.terms[name], term, rtol=1e-5, atol=1e-6), name
    assert torch.allclose(scales[1].grad, scales[0].grad, rtol=1e-4)
    expected = whole.trainable()
    for name, parameter in parts.trainable().items():
        assert expected[name].grad is not None
        largest = float(expected[name].grad.abs().max())
        assert torch.allclose(parameter.grad, expected[name].grad, atol=1e-4 * largest), name


def test_parts_leave_out_what_no_term_needs(clip_folder: Path, batch: Batch) -> None:
    weights = AlignWeights(text_generated=0, text_real=0)
    config = AlignConfig(weights=weights, micro_batch=2)
    bare = dataclasses.replace(batch, inputs={"generated": batch.inputs["generated"]})
    encoder = _encoder(clip_folder)
    for piece in piecewise_terms(encoder, bare, config).pieces:
        piece.backward()
    assert encoder.real_head.grad is None
    assert encoder.generated_head.grad is not None
    assert np.isfinite(float(encoder.generated_head.grad.sum()))
