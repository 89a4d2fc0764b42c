"""Train every shipped model from scratch, from one seed; a killed run goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from transformers import LlamaForCausalLM

from gmail_align.artifacts import write_bytes, write_json
from gmail_align.encoders.backbones.clip import ClipBackbone
from gmail_align.extras import require
from gmail_align.progress import say
from gmail_align.runtime import stable_seed, versions
from gmail_align.tabletop.ceiling import retrieval_ceiling
from gmail_align.tabletop.render import render
from gmail_align.tabletop.scenes import sample_scene
from gmail_align.tabletop.text import captions, long_caption
from gmail_align.tabletop.training import (
    autoencoder,
    clip,
    diffusion,
    language,
    llama,
    siblings,
)
from gmail_align.tabletop.training.corpus import Corpus, build_corpus, read_corpus, through_jpeg
from gmail_align.tabletop.training.tokenizers import train_clip_tokenizer, train_gpt2_tokenizer
from gmail_align.training.config import OptimConfig

RECORD = "training.json"


@dataclass(frozen=True)
class Budget:
    """How much of everything; the defaults are those of the shipped models."""

    images: int = 30_000
    held_out: int = 1000
    autoencoder: int = 1800
    clip: tuple[int, int] = (3000, 800)
    gpt2: int = 1000
    diffusion: tuple[int, int] = (2500, 3000)
    long_clip: tuple[int, int] = (450, 200)
    siglip: int = 1200
    llama: int = 2600
    flow: int = 600
    flow_images: int = 4000


def train_models(
    work: Path,
    out: Path,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    only: str | None = None,
) -> dict[str, Any]:
    """Train the models into ``work`` and write them, in half precision, to ``out``.

    Args:
        work: Corpus, checkpoints and curves.
        out: Folder of the models: ``clip``, ``gpt2``, ``diffusion``, ``long_clip``, ``siglip`` and
            ``llama``.
        seed: Seed of every model.
        budget: Sizes and steps.
        only: Train just this part; ``flow``, which is not shipped, is trained under its name alone.

    Returns:
        The training record, which is also written beside each model.

    Raises:
        MissingExtraError: a diffusion model is to be trained, and diffusers is not installed.
    """
    if only in (None, "diffusion", "flow"):
        require("diffusers", "synthesis")  # before minutes of rendering
    budget = budget or Budget()
    if only == "flow":
        return {only: make_flow(work, out / only, budget, seed)}
    parts: dict[str, Callable[[Path, Path, Corpus, Budget, int], dict[str, Any]]] = {
        "clip": make_clip,
        "gpt2": make_gpt2,
        "diffusion": make_diffusion,
        "long_clip": make_long_clip,
        "siglip": make_siglip,
    }
    records = {}
    if only != "llama":  # which reads no image
        build_corpus(work / "corpus", budget.images)
        corpus = read_corpus(work / "corpus")
        chosen = [name for name in parts if only in (None, name)]
        records = {n: parts[n](work, out / n, corpus, budget, seed) for n in chosen}
    if only in (None, "llama"):
        records["llama"] = make_llama(work, out / "llama", budget, seed)
    return records


def make_clip(work: Path, out: Path, corpus: Corpus, budget: Budget, seed: int) -> dict[str, Any]:
    """Train the CLIP; the record holds its retrieval over test images and their ceiling."""
    tokenizer = train_clip_tokenizer(_flat(corpus))
    torch.manual_seed(seed)
    model = clip.build_clip(tokenizer)
    corpora = (corpus, held_out("val", budget.held_out))
    configs = clip.phases(*budget.clip)
    reports = clip.train_clip(model, tokenizer, corpora, configs, _folder(work, "clip"), seed=seed)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_json(out / "preprocessor_config.json", clip.PREPROCESSOR)
    test = held_out("test", budget.held_out)
    ceiling = retrieval_ceiling([sample_scene(i, "test") for i in range(budget.held_out)])
    scores = clip.retrieval_scores(model.float(), tokenizer, test)
    curve = {"validation": [r.scores for r in reports], "test": scores, "ceiling": ceiling}
    return _record(out, model, sum(budget.clip), curve)


def make_gpt2(work: Path, out: Path, corpus: Corpus, budget: Budget, seed: int) -> dict[str, Any]:
    """Train the language model; the record holds its loss on captions of test scenes."""
    tokenizer = train_gpt2_tokenizer(_flat(corpus))
    torch.manual_seed(seed)
    model = language.build_gpt2(tokenizer)
    config = language.optimisation(budget.gpt2)
    report = language.train_gpt2(
        model, tokenizer, _flat(corpus), config, _folder(work, "gpt2"), seed=seed
    )
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    scenes = [sample_scene(i, "test") for i in range(budget.held_out)]
    texts = [text for scene in scenes for text in captions(scene)]
    loss = language.caption_loss(model.float(), tokenizer, texts)
    return _record(out, model, config.steps, {"train": _thin(report.losses), "test_loss": loss})


def make_diffusion(
    work: Path, out: Path, corpus: Corpus, budget: Budget, seed: int
) -> dict[str, Any]:
    """Train autoencoder, then UNet and text encoder on its latents; one pipeline folder."""
    tokenizer = train_clip_tokenizer(_flat(corpus))
    torch.manual_seed(seed)
    vae = autoencoder.build_autoencoder()
    config = autoencoder.optimisation(budget.autoencoder)
    first = autoencoder.train_autoencoder(vae, corpus, config, _folder(work, "vae"), seed=seed)
    vae = vae.to(memory_format=torch.contiguous_format)
    latents = autoencoder.encode_corpus(vae, corpus.images)
    torch.manual_seed(stable_seed(seed, "diffusion"))
    models = (diffusion.build_unet(), diffusion.build_text_encoder(tokenizer))
    configs = diffusion.phases(*budget.diffusion)
    data = (latents, corpus.captions)
    reports = diffusion.train_diffusion(
        models, tokenizer, data, configs, _folder(work, "diffusion"), seed=seed
    )
    pipeline = diffusion.assemble_pipeline(vae, models, tokenizer)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(out)
    store_in_8_bits(out / "vae" / "diffusion_pytorch_model.safetensors", "encoder.", 4)
    curve = {"autoencoder": _thin(first.losses)}
    curve |= {f"diffusion_{n}": _thin(report.losses) for n, report in enumerate(reports, 1)}
    steps = budget.autoencoder + sum(budget.diffusion)
    return _record(out, pipeline.unet, steps, curve)


def make_long_clip(
    work: Path, out: Path, corpus: Corpus, budget: Budget, seed: int
) -> dict[str, Any]:
    """Train a small CLIP, stretch it and go on with long captions; scores are on test images."""
    corpus = siblings.shrink(corpus)
    tokenizer = train_clip_tokenizer(_flat(corpus))
    torch.manual_seed(seed)
    short = siblings.build_short_clip(tokenizer)
    corpora = (corpus, siblings.shrink(held_out("val", budget.held_out)))
    home = _folder(work, "long_clip")
    first = siblings.optimisation(budget.long_clip[0])
    reports = clip.train_clip(short, tokenizer, corpora, [first], home / "short", seed=seed)
    model = ClipBackbone(short).stretch(siblings.LONG_LENGTH).module
    tokenizer.model_max_length = siblings.LONG_LENGTH
    torch.manual_seed(stable_seed(seed, "long"))
    second = siblings.optimisation(budget.long_clip[1], 1e-3)
    folder = _folder(home, "long")
    reports.append(siblings.train_long_clip(model, tokenizer, corpora, second, folder, seed=seed))
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_json(out / "preprocessor_config.json", siblings.CLIP_PREPROCESSOR)
    texts = [long_caption(sample_scene(i, "test")) for i in range(budget.held_out)]
    test = siblings.shrink(held_out("test", budget.held_out))
    scores = siblings.long_scores(model.float(), tokenizer, test, texts)
    curve = {"validation": [r.scores for r in reports], "test": scores}
    return _record(out, model, sum(budget.long_clip), curve)


def make_siglip(work: Path, out: Path, corpus: Corpus, budget: Budget, seed: int) -> dict[str, Any]:
    """Train a small SigLIP; the record holds its retrieval over test images."""
    corpus = siblings.shrink(corpus)
    tokenizer = train_clip_tokenizer(_flat(corpus))
    tokenizer.model_max_length = siblings.SIGLIP_LENGTH
    torch.manual_seed(seed)
    model = siblings.build_siglip(tokenizer)
    corpora = (corpus, siblings.shrink(held_out("val", budget.held_out)))
    config = siblings.optimisation(budget.siglip)
    report = siblings.train_siglip(
        model, tokenizer, corpora, config, _folder(work, "siglip"), seed=seed
    )
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_json(out / "preprocessor_config.json", siblings.SIGLIP_PREPROCESSOR)
    test = siblings.shrink(held_out("test", budget.held_out))
    scores = siblings.siglip_scores(model.float(), tokenizer, test)
    return _record(out, model, config.steps, {"validation": report.scores, "test": scores})


def make_llama(work: Path, out: Path, budget: Budget, seed: int) -> dict[str, Any]:
    """Train the language model of LLaVA; the record holds its losses on test scenes."""
    tokenizer = llama.train_llama_tokenizer()
    torch.manual_seed(seed)
    model = llama.build_llama(tokenizer)
    config = llama.optimisation(budget.llama)
    report = llama.train_llama(model, tokenizer, config, _folder(work, "llama"))
    before = llama.losses_on_test(model, tokenizer, budget.held_out // 5)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    store_in_8_bits(out / "model.safetensors", "model.layers.", 2)
    stored = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    after = llama.losses_on_test(stored, tokenizer, budget.held_out // 5)
    curve = {"train": _thin(report.losses), "test_before_rounding": before, "test": after}
    return _record(out, stored, config.steps, curve)


def store_in_8_bits(file: Path, prefix: str, dimensions: int) -> None:
    """Store the arrays below ``prefix`` with so many dimensions as float8 (e4m3)."""
    state = load_file(file)
    for name, weight in state.items():
        if name.startswith(prefix) and weight.ndim == dimensions:
            state[name] = weight.to(torch.float8_e4m3fn)
    write_bytes(file, save(state, metadata={"format": "pt"}))


def make_flow(work: Path, out: Path, budget: Budget, seed: int) -> dict[str, Any]:
    """Train the shipped diffusion model on by flow matching; one pipeline folder."""
    from gmail_align.tabletop.training.flow import train_flow

    build_corpus(work / "flow_corpus", budget.flow_images)
    corpus = read_corpus(work / "flow_corpus")
    config = OptimConfig(
        steps=budget.flow, lr=5e-4, schedule="cosine", warmup=30, checkpoint_every=100
    )
    shipped = Path(__file__).parents[1] / "weights" / "diffusion"
    pipeline, report = train_flow(shipped, corpus, config, work / "flow", seed=seed)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(out)
    return _record(out, pipeline.unet, config.steps, {"flow": _thin(report.losses)})


def held_out(split: str, count: int) -> Corpus:
    """Draw the first ``count`` scenes of a split with their captions."""
    scenes = [sample_scene(number, split) for number in range(count)]
    images = np.stack([through_jpeg(render(scene)) for scene in scenes])
    return Corpus(images, [captions(scene) for scene in scenes])


def _folder(work: Path, name: str) -> Path:
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _flat(corpus: Corpus) -> list[str]:
    return [text for row in corpus.captions for text in row]


def _thin(rows: list[dict[str, float]], keep: int = 60) -> list[dict[str, float]]:
    """Average a curve over about ``keep`` equal stretches."""
    width = max(1, len(rows) // keep)
    stretches = [rows[at : at + width] for at in range(0, len(rows), width)]
    return [
        {key: round(sum(row[key] for row in part) / len(part), 4) for key in part[0]}
        for part in stretches
    ]


def _record(out: Path, model: Any, steps: int, curve: dict[str, Any]) -> dict[str, Any]:
    """Write the training record and the licence beside a model."""
    record = {
        "trained_on": "the tabletop world's train split",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        **curve,
    }
    write_json(out / RECORD, record)
    licence = Path(__file__).parents[1] / "weights" / "LICENSE"
    if licence.exists() and licence.parent != out.parent:
        shutil.copy(licence, out.parent / "LICENSE")
    say(f"wrote {out}")
    return record
