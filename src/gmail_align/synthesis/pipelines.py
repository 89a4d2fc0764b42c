"""Any text-to-image pipeline of diffusers, sampled from each image's own noise."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import UInt8
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging as transformers_logging

from gmail_align.encoders.folder import require_depth
from gmail_align.encoders.stored import load_whole, require_finite, require_own_files
from gmail_align.encoders.tokenizer import has_tokenizer
from gmail_align.errors import ConfigError, ModelError, damage_explained
from gmail_align.extras import require
from gmail_align.runtime import resolve_device, resolve_dtype
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.weights import COPY_AGAIN, read_index

_CHECKER: Final = "gmail_align_checker"
_LIBRARIES: Final = {"diffusers", "transformers"}
"""Whose networks a pipeline's index may name."""
_LORA_ENDS: Final = ("lora_A.weight", "lora_down.weight", "lora.down.weight")
"""Ends of the name of the first of a LoRA layer's two matrices."""
_SCHEDULERS: Final = {
    "ddim": "DDIMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}


def choose_dtype(config: SynthesisConfig) -> torch.dtype:
    """Return the precision that a configuration means on its device.

    Raises:
        ConfigError: the device does not exist.
    """
    if config.dtype != "auto":
        return resolve_dtype(config.dtype)
    cuda = resolve_device(config.device).type == "cuda"
    return torch.float16 if cuda else torch.float32


def load_pipeline(folder: Path, config: SynthesisConfig) -> Any:
    """Load a pipeline from its folder, ready to sample: only safetensors, and no network.

    Raises:
        ModelError: it cannot be loaded, or cannot use the scheduler of ``config``.
        MissingExtraError: diffusers is not installed.
    """
    diffusers: Any = require("diffusers", "synthesis")
    index = read_index(folder)
    absent = [name for name, part in index.items() if isinstance(part, list) and not any(part)]
    skipped: dict[str, Any] = dict.fromkeys(absent)
    for name in index.keys() - skipped.keys():
        require_depth(folder / name)
        require_own_files(folder / name)
    if config.safety == "off" and "safety_checker" in index:
        skipped |= {"safety_checker": None, "requires_safety_checker": False}
        skipped["feature_extractor"] = None  # the checker's own
    with quiet(), damage_explained(f"the pipeline in {folder}", ModelError, COPY_AGAIN):
        skipped |= _networks(folder, index, config, skipped)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            variant=config.variant or None,
            torch_dtype=choose_dtype(config),
            **skipped,
        )
        _check_tokenizers(pipeline, folder)
        _add_adapter(pipeline, config.adapter)
        _set_scheduler(pipeline, config, diffusers)
        pipeline.set_progress_bar_config(disable=True)
        pipeline = pipeline.to(resolve_device(config.device))
        detach_checker(pipeline)
        _tune(pipeline, config)
    return pipeline


def _networks(
    folder: Path, index: Mapping[str, Any], config: SynthesisConfig, skipped: Mapping[str, Any]
) -> dict[str, Any]:
    """Load a pipeline's networks, which diffusers would make up in part where weights are missing.

    Raises:
        ModelError: a part is missing, or its weights are not those that its configuration
            describes.
    """
    networks = {}
    for name, part in index.items():
        if not isinstance(part, list) or name in skipped:
            continue
        place, (library, kind) = folder / name, part
        if not place.is_dir():
            raise ModelError(f"{folder} lacks {name}, which it is made of: {COPY_AGAIN}")
        if name.startswith("tokenizer") and not has_tokenizer(place):
            raise ModelError(f"{place} does not hold a tokenizer: {COPY_AGAIN}")
        loader = getattr(import_module(library), kind, None) if library in _LIBRARIES else None
        if isinstance(loader, type) and issubclass(loader, torch.nn.Module):
            networks[name] = load_whole(
                loader,
                place,
                COPY_AGAIN,
                torch_dtype=choose_dtype(config),
                use_safetensors=True,
                variant=config.variant if _has_variant(place, config.variant) else None,
            )
    return networks


def _has_variant(place: Path, variant: str) -> bool:
    """Whether a part has files of the variant; where one does not, diffusers takes the plain."""
    return bool(variant) and any(place.glob(f"*.{escape(variant)}[.-]*"))


def _check_tokenizers(pipeline: Any, folder: Path) -> None:
    """Refuse tokenizers that give a CLIP's text tower tokens, or places, that it does not have."""
    for number in ("", "_2", "_3"):
        tokenizer, texts = (
            getattr(pipeline, f"{part}{number}", None) for part in ("tokenizer", "text_encoder")
        )
        sizes: Any = getattr(texts, "config", None)
        if tokenizer is None or getattr(sizes, "model_type", "") != "clip_text_model":
            continue
        given = len(tokenizer), tokenizer.model_max_length
        if given[0] > sizes.vocab_size or given[1] > sizes.max_position_embeddings:
            raise ModelError(
                f"{folder / f'tokenizer{number}'} has {given[0]} tokens and texts of up to "
                f"{given[1]}, and text_encoder{number} reads {sizes.vocab_size} and "
                f"{sizes.max_position_embeddings}: use the tokenizer that belongs to it"
            )


def _add_adapter(pipeline: Any, adapter: str) -> None:
    """Add a LoRA to a pipeline's weights, so that sampling is as fast as without it."""
    if not adapter:
        return
    path, kind = Path(adapter), type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(f"{kind} does not take adapters: leave adapter out")
    if path.suffix != ".safetensors" or not path.is_file():
        raise ModelError(f"there is no adapter {path}: give a .safetensors file of LoRA weights")
    with damage_explained(path, ModelError, f"give a LoRA of a {kind} as safetensors"):
        tensors = load_file(path)
        require_finite(tensors.items(), path, "get the LoRA again")
        pipeline.load_lora_weights(
            str(path.parent), weight_name=path.name, local_files_only=True, use_safetensors=True
        )
    stored = sum(name.endswith(_LORA_ENDS) for name in tensors)
    taken = sum(
        isinstance(layer, LoraLayer)
        for part in pipeline.components.values()
        for layer in (part.modules() if isinstance(part, torch.nn.Module) else ())
    )
    if not taken or taken < stored:
        raise ModelError(
            f"{path} holds a LoRA of {stored} layers, of which this {kind} has {taken}: give a "
            "LoRA of this model"
        )
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def denoiser(pipeline: Any) -> Any:
    """Return the network that runs once or twice a step: a UNet or a transformer."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


def _tune(pipeline: Any, config: SynthesisConfig) -> None:
    """Lay networks out for tensor cores, and compile them when asked: only rounding changes."""
    network, vae = denoiser(pipeline), getattr(pipeline, "vae", None)
    laid_out: tuple[Any, ...] = (network, vae) if pipeline.device.type == "cuda" else (vae,)
    for part in laid_out:  # on CPUs attention would have to undo it in the denoiser
        if part is not None:
            part.to(memory_format=torch.channels_last)
    if not config.compile:
        return
    if network is None:
        raise ConfigError(
            f"{type(pipeline).__name__} has neither a UNet nor a transformer to compile: leave "
            "out synthesis.compile"
        )
    network.compile(dynamic=False)
    if vae is not None and hasattr(vae, "decoder"):
        vae.decoder.compile(dynamic=False)


def _set_scheduler(pipeline: Any, config: SynthesisConfig, diffusers: Any) -> None:
    if config.scheduler == "pipeline":
        return
    own = pipeline.scheduler
    if "Flow" in type(own).__name__ or own.config.get("prediction_type") == "flow_prediction":
        raise ModelError(
            f"{type(pipeline).__name__} is a flow-matching pipeline and samples only with its own "
            "scheduler: --set synthesis.scheduler=pipeline"
        )
    chosen: Any = getattr(diffusers, _SCHEDULERS[config.scheduler])
    pipeline.scheduler = chosen.from_config(own.config)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers' and transformers' advice and bars; errors still come as exceptions."""
    logs: list[Any] = [require("diffusers", "synthesis").utils.logging, transformers_logging]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, (level, bars) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()


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
    """Ask the pipeline's checker about images; each verdict is None without a checker."""
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
