"""Chunked losses and gradients in parts equal the plain ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmail_align.alignment.chunked import (
    chunked_alignment_loss,
    chunked_sigmoid_loss,
    chunked_text_loss,
)
from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.large_batch import piecewise_terms
from gmail_align.alignment.losses import contrastive_text_loss, directed_alignment_loss
from gmail_align.alignment.pairset import Batch
from gmail_align.alignment.terms import loss_terms
from gmail_align.alignment.tokens import pack
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.siglip import sigmoid_text_loss

EVERY = AlignWeights(
    align=0.5, text_generated=2, text_real=3, distill_real=4, distill_generated=5, norm=6, patch=7
)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 12),
    chunk=st.integers(1, 13),
    direction=st.sampled_from(["g2r", "r2g", "both"]),
    positives=st.sampled_from(["mask", "sum"]),
)
@settings(max_examples=25)
def test_chunked_losses_and_their_gradients_are_the_plain_ones(
    seed: int, size: int, chunk: int, direction: Any, positives: Any
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, size, 6, generator=generator)
    groups = torch.randint(0, 5, (size, 2), generator=generator)
    same = (groups[:, None] == groups[None]).any(dim=-1)
    found, expected = [], []
    for results, chunked in ((found, True), (expected, False)):
        rows, columns = left.clone().requires_grad_(), right.clone().requires_grad_()
        temperature = torch.tensor(0.2, requires_grad=True)
        given_all: dict[str, Any] = {"positives": positives}
        if chunked:
            given_all |= {"groups": groups, "chunk": chunk}
            eq1 = chunked_alignment_loss(
                rows, columns, direction, temperature=temperature, **given_all
            )
            text = chunked_text_loss(rows, columns, 5.0, **given_all)
            text = text + chunked_sigmoid_loss(rows, columns, (5.0, -2.0), **given_all)
        else:
            given_all |= {"same": same}
            eq1 = directed_alignment_loss(
                rows, columns, direction, temperature=temperature, **given_all
            )
            text = contrastive_text_loss(rows, columns, 5.0, **given_all)
            text = text + sigmoid_text_loss(rows, columns, 5.0, -2.0, **given_all)
        (eq1 + 3 * text).backward()
        results += [eq1, text, rows.grad, columns.grad, temperature.grad]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-6)


def test_a_chunked_loss_holds_no_table_of_all_pairs() -> None:
    """What autograd keeps between forward and backward grows with the batch, not its square."""
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    size, rows = 256, torch.randn(256, 4, requires_grad=True)
    groups = torch.arange(size)[:, None].repeat(1, 2)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        chunked_alignment_loss(
            rows,
            torch.randn(size, 4),
            "g2r",
            temperature=0.1,
            groups=groups,
            positives="mask",
            chunk=16,
        )
    assert max(kept) <= 8 * size


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
    groups = torch.tensor([[0, 0], [1, 1], [2, 2], [0, 3], [4, 4], [5, 4], [6, 6]])
    same = (groups[:, None] == groups[None]).any(dim=-1)
    patches = torch.randn(7, 32, generator=generator)
    return Batch(images[0], images[1], frozen, texts, same, patches, groups)


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
        batch = dataclasses.replace(batch, texts=None, tokens=pack(whole, lines))
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
    bare = dataclasses.replace(batch, real=None, patches=None)
    encoder = _encoder(clip_folder)
    for piece in piecewise_terms(encoder, bare, config).pieces:
        piece.backward()
    assert encoder.real_head.grad is None
    assert encoder.generated_head.grad is not None
    assert np.isfinite(float(encoder.generated_head.grad.sum()))
