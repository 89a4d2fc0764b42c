"""The activation and its slope against transformers' own and against numbers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.activations import QuickGELUActivation

from gmail_align.encoders.backbones.clip import quick_gelu


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 50), scale=st.sampled_from([0.1, 3, 80]))
def test_it_is_transformers_own(seed: int, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (
        (scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))).requires_grad_()
        for _ in range(2)
    )
    weights = torch.randn(size, generator=generator)
    result, expected = quick_gelu(ours), QuickGELUActivation()(theirs)
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-6)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_its_slope_by_finite_differences() -> None:
    inputs = torch.linspace(-4, 4, 33, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(quick_gelu, (inputs,))
    half = torch.tensor([1.0], dtype=torch.bfloat16, requires_grad=True)
    quick_gelu(half).sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
