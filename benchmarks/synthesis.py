"""How fast images are generated, beside a plain loop and beside what the device can do.

    python benchmarks/synthesis.py loop            a plain pipeline(prompt) loop against ours, CPU
    python benchmarks/synthesis.py drift           what --fast changes, on the tabletop generator
    python benchmarks/synthesis.py device          Stable Diffusion v2's shape, random weights, GPU
    python benchmarks/synthesis.py device --tiny   the same code on a CPU, to see that it runs

Times of ``loop`` are processor time, so that neighbours on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmail_align.artifacts import begin
from gmail_align.data.captions import Caption, write_captions
from gmail_align.encoders.shipped import shipped_models
from gmail_align.runtime import versions
from gmail_align.synthesis.architectures import ARCHITECTURES, Part
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.cost import count_cost
from gmail_align.synthesis.pipelines import load_pipeline
from gmail_align.synthesis.run import synthesize
from gmail_align.synthesis.sampler import Pixels, Request, Sampler

WORDS = [
    f"A {size} {colour} {shape} on {floor}."
    for size in ("small", "big")
    for colour in ("red", "blue", "green", "yellow")
    for shape in ("ball", "cube", "cone", "cylinder")
    for floor in ("a wooden table", "the grass", "a grey floor")
]


def main() -> None:
    """Run one part and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("loop", "drift", "device"))
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    if chosen.part == "loop":
        torch.set_num_threads(1)
        result = loop(chosen.images, chosen.steps, chosen.rounds)
    elif chosen.part == "drift":
        torch.set_num_threads(1)
        result = drift(chosen.images)
    else:
        result = device(chosen.batches, chosen.tiny)
    sys.stdout.write(json.dumps({**result, "versions": versions()}, indent=2) + "\n")


def tabletop(**changes: Any) -> SynthesisConfig:
    """Return a configuration of the shipped generator on the CPU."""
    model = str(shipped_models() / "diffusion")
    return SynthesisConfig(**{"model": model, "device": "cpu", "scheduler": "dpmpp", **changes})


def loop(count: int, steps: int, rounds: int) -> dict[str, Any]:
    """Generate the same number of images by a plain loop and by the stage, at batch 16."""
    config = tabletop(steps=steps, batch_size=16, shard_size=256, writers=1)
    prompts = (WORDS * (count // len(WORDS) + 1))[:count]
    plain, ours, outside = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            plain.append(plain_loop(config, prompts, Path(folder)))
            seconds, share = by_the_stage(config, prompts, Path(folder))
            ours.append(seconds)
            outside.append(share)
    return {
        "images": count,
        "steps": steps,
        "plain loop, images per cpu-second": round(count / statistics.median(plain), 2),
        "ours, images per cpu-second": round(count / statistics.median(ours), 2),
        "ratio": round(statistics.median(plain) / statistics.median(ours), 2),
        "share of time outside the pipeline's call": round(statistics.median(outside), 4),
    }


def plain_loop(config: SynthesisConfig, prompts: list[str], folder: Path) -> float:
    """Return the processor time of ``pipeline(prompt).images[0].save(...)`` for every prompt."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(config.model, torch_dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    start = time.process_time()
    for number, prompt in enumerate(prompts):
        image = pipeline(
            prompt, num_inference_steps=config.steps, guidance_scale=config.guidance_scale
        ).images[0]
        image.save(folder / f"{number}.jpg", quality=95)
    return time.process_time() - start


def by_the_stage(config: SynthesisConfig, prompts: list[str], folder: Path) -> tuple[float, float]:
    """Return the stage's processor time, without loading, and the share outside the pipeline."""
    draft = begin(folder / "captions", "captions", {})
    rows = [Caption(str(number), text, str(number)) for number, text in enumerate(prompts)]
    captions = draft.finish({"captions": write_captions(draft, rows)})
    inside: list[float] = []
    begun: list[float] = []
    real = Sampler.__call__

    def timed(self: Sampler, requests: Any) -> Tensor:
        start = time.thread_time()
        if not begun:
            begun.append(time.process_time())
        images = real(self, requests)
        inside.append(time.thread_time() - start)
        return images

    Sampler.__call__ = timed  # type: ignore[method-assign]
    try:
        synthesize(config, captions, folder / "images")
    finally:
        Sampler.__call__ = real  # type: ignore[method-assign]
    seconds = time.process_time() - begun[0]
    return seconds, 1 - sum(inside) / seconds


def drift(count: int) -> dict[str, Any]:
    """Compare images of fewer steps with those of 50, from the same noise and captions."""
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.metrics.clipscore import clip_score

    requests = [Request(str(n), 0, text) for n, text in enumerate((WORDS * count)[:count])]
    encoder = GmailEncoder.from_pretrained(shipped_models() / "clip")
    texts = encoder.encode_texts([request.prompt for request in requests])

    def draw(**changes: Any) -> tuple[Tensor, Tensor]:
        config = tabletop(**changes)
        sampler = Sampler(load_pipeline(Path(config.model), config), config, 16)
        parts = [sampler(requests[at : at + 16]) for at in range(0, count, 16)]
        images = torch.cat(parts).clone()
        from PIL import Image

        shown = [Image.fromarray(rows.numpy()) for rows in Pixels(images).wait()[0]]
        return images, encoder.encode_images(shown, "frozen")

    reference, features = draw(**preset_only("sd2"))
    found = {}
    for name, changes in {
        "another seed, 50 steps": {**preset_only("sd2"), "seed": 1},
        "--fast of sd2: dpmpp, 20 steps": preset_only("sd2_fast"),
        "dpmpp, 10 steps": {**preset_only("sd2_fast"), "steps": 10},
        "dpmpp, 5 steps": {**preset_only("sd2_fast"), "steps": 5},
    }.items():
        images, others = draw(**changes)
        found[name] = {
            "mean pixel difference of 255": round(
                float((images - reference).abs().mean()) * 255, 2
            ),
            "cosine of CLIP features": round(
                float(torch.cosine_similarity(features, others).mean()), 4
            ),
            "CLIP score": round(
                float(clip_score(others.double().numpy(), texts.double().numpy()).mean()), 4
            ),
        }
    first = {
        "CLIP score": round(
            float(clip_score(features.double().numpy(), texts.double().numpy()).mean()), 4
        )
    }
    return {"images": count, "ddim, 50 steps (reference)": first, **found}


def preset_only(name: str) -> dict[str, Any]:
    """Return a preset without its size, which the tabletop generator has of its own."""
    settings = SynthesisConfig.preset_keys(name)
    return {key: value for key, value in settings.items() if key not in ("height", "width")}


def device(batches: list[int], tiny: bool) -> dict[str, Any]:
    """Time Stable Diffusion v2's shape with random weights, eager and compiled."""
    cuda = not tiny
    small = {"height": 64, "width": 64, "steps": 3} if tiny else {}
    settings = {**SynthesisConfig.preset_keys("sd2"), **small}
    base = SynthesisConfig(model="random", device="cuda" if cuda else "cpu", **settings)
    shape = ARCHITECTURES["sd2"]
    if tiny:
        small = {"block_out_channels": (32, 32, 64, 64), "attention_head_dim": 8}
        denoiser = Part(shape.denoiser.kind, {**shape.denoiser.config, **small})
        vae = Part(shape.vae.kind, {**shape.vae.config, "block_out_channels": (32, 32, 32, 32)})
        shape = type(shape)(denoiser, vae)
    flop = count_cost(shape, base).total
    limit = matrix_limit(cuda)
    name = torch.cuda.get_device_name() if cuda else "cpu"
    rows = []
    for compiled in (False, True) if cuda else (False,):
        pipeline = random_pipeline(shape, cuda)
        if compiled:
            pipeline.unet.compile(dynamic=False)
            pipeline.vae.decoder.compile(dynamic=False)
        for size in batches:
            rate, idle = timed_batches(Sampler(pipeline, base, size), size, cuda)
            rows.append(
                {
                    "batch": size,
                    "compiled": compiled,
                    "images/s": round(rate, 3),
                    "share of the measured matrix limit": round(rate * flop / limit, 3),
                    "idle between batches": None if idle is None else round(idle, 4),
                }
            )
    return {
        "device": name,
        "matrix limit, TFLOP/s": round(limit / 1e12, 2),
        "TFLOP per image": round(flop / 1e12, 2),
        "rows": rows,
    }


def random_pipeline(shape: Any, cuda: bool) -> Any:
    """Make a StableDiffusionPipeline of this shape with random weights, as the stage loads it."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    where, dtype = ("cuda", torch.float16) if cuda else ("cpu", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(shipped_models() / "diffusion" / "tokenizer")
    text = CLIPTextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23 if cuda else 1,
        num_attention_heads=16,
        max_position_embeddings=max(77, tokenizer.model_max_length),
    )
    pipeline = StableDiffusionPipeline(
        vae=shape.vae.build(where),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=shape.denoiser.build(where),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(where, dtype)
    pipeline.set_progress_bar_config(disable=True)
    if cuda:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    return pipeline


def timed_batches(sampler: Sampler, size: int, cuda: bool) -> tuple[float, float | None]:
    """Return images a second over three batches after a first, and the share the device idles.

    A batch's work ends with its copy to the host; the next begins with its first denoising step.
    """
    requests = [Request(str(n), 0, WORDS[n % len(WORDS)]) for n in range(size)]
    Pixels(sampler(requests)).wait()
    first: list[Any] = []
    ends: list[Any] = []
    fresh = [True]

    def note(*_: object) -> None:
        if fresh[0]:
            first.append(mark(cuda))
            fresh[0] = False

    hook = sampler._pipeline.unet.register_forward_pre_hook(note)
    pending = []
    start = time.perf_counter()
    for _ in range(3):
        fresh[0] = True
        pending.append(Pixels(sampler(requests)))
        ends.append(mark(cuda))
    for pixels in pending:
        pixels.wait()
    seconds = time.perf_counter() - start
    hook.remove()
    if not cuda:
        return 3 * size / seconds, None
    torch.cuda.synchronize()
    gaps = [end.elapsed_time(begin) for end, begin in zip(ends, first[1:], strict=False)]
    return 3 * size / seconds, sum(gaps) / 1000 / seconds


def mark(cuda: bool) -> Any:
    """Return a mark on the device's time line; None where there is none."""
    if not cuda:
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def matrix_limit(cuda: bool) -> float:
    """Measure the FLOP/s of a large matrix product in the precision that is used."""
    side, where, dtype = (8192, "cuda", torch.float16) if cuda else (512, "cpu", torch.float32)
    a, b = (torch.randn(side, side, device=where, dtype=dtype) for _ in range(2))

    def once() -> None:
        torch.matmul(a, b)
        if cuda:
            torch.cuda.synchronize()

    return 2 * side**3 / median_seconds(once)


def median_seconds(run: Callable[[], None], rounds: int = 20) -> float:
    """Return the median time of ``run`` after three warm-ups."""
    times = []
    for number in range(rounds + 3):
        start = time.perf_counter()
        run()
        if number >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
