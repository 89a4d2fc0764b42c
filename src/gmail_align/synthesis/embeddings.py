"""Text embeddings of the pipelines that can be given them: each prompt is embedded once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from gmail_align.extras import require

_SPLITS: Final[Mapping[str, tuple[str, ...]]] = {
    "StableDiffusionPipeline": ("prompt_embeds",),
    "StableDiffusionXLPipeline": (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
    "StableDiffusion3Pipeline": (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
}
"""Pipeline class -> names of the first values that its ``encode_prompt`` returns."""


def splits(pipeline: Any) -> str | None:
    """Return the class of :data:`_SPLITS` that a pipeline is; None when it takes prompts only."""
    diffusers: Any = require("diffusers", "synthesis")
    names = (name for name in _SPLITS if isinstance(pipeline, getattr(diffusers, name)))
    return next(names, None)


class Embedder:
    """Embeds prompts in batches of one shape; prompts of the batch before are not embedded again.

    The images of a caption are neighbours, so this is once a caption, up to the edge of a shard.
    """

    def __init__(self, pipeline: Any, kind: str, batch_size: int, *, guided: bool) -> None:
        """Take a pipeline of the class ``kind`` of diffusers.

        Args:
            pipeline: The pipeline.
            kind: Its class, as :func:`splits` names it.
            batch_size: Prompts embedded at once.
            guided: Whether the empty prompt is needed too.
        """
        self._pipeline, self._kind, self._size, self._guided = pipeline, kind, batch_size, guided
        self._known: dict[str, dict[str, Tensor]] = {}
        self._nothing: dict[str, Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the pipeline's arguments for ``prompts``, one row each."""
        distinct = list(dict.fromkeys(prompts))
        new = [prompt for prompt in distinct if prompt not in self._known]
        known = {prompt: rows for prompt, rows in self._known.items() if prompt in distinct}
        if new:
            embedded = self._embed([*new, *[new[-1]] * (self._size - len(new))])
            for place, prompt in enumerate(new):
                known[prompt] = {name: rows[place] for name, rows in embedded.items()}
        self._known = known
        names = next(iter(known.values()))
        arguments = {
            name: torch.stack([known[prompt][name] for prompt in prompts]) for name in names
        }
        nothing = {
            name: row.expand(len(prompts), *row.shape[1:]) for name, row in self._nothing.items()
        }
        return arguments | nothing

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """Embed a batch; keep one row of each embedding of the empty prompt."""
        encode = self._pipeline.encode_prompt
        if self._kind == "StableDiffusionPipeline":
            if self._guided and not self._nothing:
                empty = encode([""], self._pipeline.device, 1, False)[0]
                self._nothing["negative_prompt_embeds"] = empty
            return {"prompt_embeds": encode(prompts, self._pipeline.device, 1, False)[0]}
        arguments: dict[str, Any] = {
            "prompt": prompts,
            "prompt_2": None,
            "prompt_3": None,
            "device": self._pipeline.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": self._guided,
            "max_sequence_length": text_limit(self._pipeline),
        }
        taken = inspect.signature(encode).parameters
        values = encode(**{name: value for name, value in arguments.items() if name in taken})
        embedded = dict(zip(_SPLITS[self._kind], values, strict=False))
        for name in [name for name in embedded if name.startswith("negative")]:
            empty = embedded.pop(name)
            if empty is not None and name not in self._nothing:
                self._nothing[name] = empty[:1].clone()
        return embedded


def text_limit(pipeline: Any) -> int | None:
    """Return how many tokens a pipeline gives its long text encoder; None without one.

    It is the pipeline's own default, but 256 for a FLUX that was distilled without guidance
    (schnell), which was trained on no more.
    """
    network: Any = getattr(pipeline, "transformer", None)
    for function in (getattr(pipeline, "encode_prompt", None), pipeline.__call__):
        limit = function and inspect.signature(function).parameters.get("max_sequence_length")
        if limit is not None and isinstance(limit.default, int):
            distilled = "Flux" in type(network).__name__ and not network.config.guidance_embeds
            return min(limit.default, 256) if distilled else int(limit.default)
    return None


def tokens_cut(pipeline: Any, prompts: Sequence[str]) -> list[int]:
    """Count, for each prompt, the tokens at its end that none of the text encoders reads."""
    unread: list[list[int]] = []
    for number in ("", "_2", "_3"):
        tokenizer = getattr(pipeline, f"tokenizer{number}", None)
        encoder = getattr(pipeline, f"text_encoder{number}", None)
        if tokenizer is None or encoder is None:
            continue
        positions = getattr(encoder.config, "max_position_embeddings", None)  # T5 does not have it
        limit = min(tokenizer.model_max_length, positions or text_limit(pipeline) or math.inf)
        rows = tokenizer(list(prompts), truncation=False, padding=False).input_ids
        unread.append([max(0, len(row) - limit) for row in rows])
    return [min(one) for one in zip(*unread, strict=True)] or [0] * len(prompts)
