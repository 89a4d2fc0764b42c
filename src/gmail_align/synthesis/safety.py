"""The safety checker that some pipelines bring: its verdict is kept, its black paint is not."""

from __future__ import annotations

import logging
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

_CHECKER = "gmail_align_checker"


def detach_checker(pipeline: Any) -> None:
    """Take the checker out of the pipeline's call, which would paint images black, and keep it."""
    checker = getattr(pipeline, "safety_checker", None)
    if checker is None or getattr(pipeline, "feature_extractor", None) is None:
        return
    logging.getLogger(type(checker).__module__).setLevel(logging.ERROR)  # we keep what it says
    setattr(pipeline, _CHECKER, checker)
    pipeline.register_to_config(requires_safety_checker=False)
    pipeline.safety_checker = None


def unsafe(pipeline: Any, images: UInt8[Tensor, "b h w 3"]) -> list[bool | None]:
    """Ask the pipeline's checker about images; None for each where it has none."""
    checker = getattr(pipeline, _CHECKER, None)
    if checker is None:
        return [None] * len(images)
    ready = pipeline.feature_extractor(list(images.numpy()), return_tensors="pt").pixel_values
    placeholders = torch.zeros(len(images), 1)  # what the checker would paint black
    with torch.inference_mode():
        _, verdicts = checker(
            clip_input=ready.to(checker.device, checker.dtype), images=placeholders
        )
    return [bool(verdict) for verdict in verdicts]
