"""Text embeddings of the pipelines that can be given them: each prompt is embedded once."""

from __future__ import annotations

import inspect
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
"""Pipeline class -> what the first values are that its ``encode_prompt`` returns."""


def splits(pipeline: Any) -> str | None:
    """Return the class of :data:`_SPLITS` that a pipeline is; None when it takes prompts only."""
    diffusers: Any = require("diffusers", "synthesis")
    found = (name for name in _SPLITS if isinstance(pipeline, getattr(diffusers, name)))
    return next(found, None)


class Embedder:
    """Embeds prompts in batches of one shape; prompts of the batch before are not embedded again.

    The images of a caption are neighbours, so this is once a caption, up to the edge of a shard.
    """

    def __init__(self, pipeline: Any, kind: str, batch_size: int, *, guided: bool) -> None:
        """Take a pipeline of the class ``kind`` of diffusers.

        Args:
            pipeline: The pipeline.
            kind: What :func:`splits` said of it.
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
        """Embed a batch; the rows of the empty prompt are kept aside, one of each."""
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
        }
        wanted = inspect.signature(encode).parameters
        values = encode(**{name: value for name, value in arguments.items() if name in wanted})
        found = dict(zip(_SPLITS[self._kind], values, strict=False))
        for name in [name for name in found if name.startswith("negative")]:
            empty = found.pop(name)
            if empty is not None and name not in self._nothing:
                self._nothing[name] = empty[:1].clone()
        return found
