"""Alignment steps beside a plain transformers + peft + DataLoader loop doing the same mathematics.

    python benchmarks/alignment.py                          # tabletop shapes, CPU, minutes
    python benchmarks/alignment.py --scale                  # 10k to 1M pairs: memory and step time
    python benchmarks/alignment.py --gpu --model b16 --batch 256 --steps 500     # one GPU
    python benchmarks/alignment.py --gpu --model l14 --batch 256 --steps 500

Weights are random and of the true shapes; images are noise. The peer embeds real images, and texts
where the preset has text terms, at every step, as published training scripts do; ours reads what
was computed once. ``decoded`` gives both the same decoded pixels, so the ratio is of the
mathematics alone; ``files`` lets the peer's DataLoader open JPEG files and preprocess them, where
ours reads its table of pixels. Every job is a process of its own, so that its peak of memory is
its own. ``--gpu`` measures the chip's own limit (a large bf16 matrix product) in the same run, the
share of it that the steps reach, the loss block's share of a step, and the time of 50,000 steps.
On a CPU all times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from gmail_align import progress
from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.embedding import Batch, loss_terms, terms_of
from gmail_align.alignment.pair_index import REAL, PairNumbers, map_rows
from gmail_align.alignment.task import BatchRequest, Table, Tables, gather
from gmail_align.alignment.terms import needed_features
from gmail_align.data.batches import Batches
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.features.rows import prefetch
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import fit, peak_memory

SHAPES = {
    "tiny": (32, 64, 2, 2, 32, 8, 24),
    "tabletop": (128, 512, 4, 4, 64, 8, 128),
    "b32": (768, 3072, 12, 12, 224, 32, 512),
    "b16": (768, 3072, 12, 12, 224, 16, 512),
    "l14": (1024, 4096, 24, 16, 224, 14, 768),
}
"""Width, inner width, layers, heads, image side, patch side, joint dimension of vision towers."""
IMAGES, LENGTH, VOCABULARY = 512, 24, 1000
LARGEST = 1_000_000
"""Pairs of the largest job; all of them point into a table of so many images."""


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="tabletop")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=["eq1_only", "gmail"])
    parser.add_argument("--gpu", action="store_true", help="the GPU's part (any device)")
    parser.add_argument("--scale", action="store_true", help="10k, 100k and 1M pairs")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        _job(json.loads(given.job))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
          f"{platform.python_version()}, torch {torch.__version__}, transformers "
          f"{transformers.__version__}, {_device()}")  # fmt: skip
    if given.gpu:
        _gpu(given)
    elif given.scale:
        _scale(given)
    else:
        _against_peer(given)


def _against_peer(given: argparse.Namespace) -> None:
    """Print pairs/s of both, for each preset and way of loading, and the peak memory of each."""
    cases = [(preset, loading) for preset in given.presets for loading in ("decoded", "files")]
    sides = {
        side: [_spawn(side, given, cases=cases) for _ in range(given.repeats)]
        for side in ("ours", "peer")
    }
    for number, (preset, loading) in enumerate(cases):
        rates = {side: [run["rates"][number] for run in runs] for side, runs in sides.items()}
        ratios = [our / peer for our, peer in zip(*rates.values(), strict=True)]
        print(
            f"{given.model}, batch {given.batch}, {preset}, {loading}: ours "
            f"{statistics.median(rates['ours']):.1f} pairs/s, peer "
            f"{statistics.median(rates['peer']):.1f}: {statistics.median(ratios):.2f} times (runs "
            f"{', '.join(f'{ratio:.2f}' for ratio in ratios)})"
        )
    for side, runs in sides.items():
        peak = statistics.median(run["peak"] for run in runs)
        print(f"{side}: peak memory {peak:.2f} GB, {runs[0]['before']:.2f} GB of it at the start")


def _scale(given: argparse.Namespace) -> None:
    """Print step time and peak memory for growing numbers of pairs."""
    for count in (10_000, 100_000, 1_000_000):
        found = [_spawn("ours", given, pairs=count) for _ in range(given.repeats)]
        step = statistics.median(1000 * given.batch / row["rates"][0] for row in found)
        peak = statistics.median(row["peak"] for row in found)
        before = statistics.median(row["before"] for row in found)
        print(f"{count} pairs: {step:.1f} ms a step, peak {peak:.3f} GB, {before:.3f} GB of it "
              f"before any pair was there")  # fmt: skip


def _gpu(given: argparse.Namespace) -> None:
    """Print the limit of the device, and what alignment reaches of it."""
    limit = _matmul_limit()
    precision = "bfloat16" if _device() != "cpu" else "float32"
    flops = training_flops(given.model)
    print(f"limit: {limit / 1e12:.1f} TFLOP/s ({precision} matrix product)")
    found = _spawn("ours", given, precision=precision)
    rate, loss_share = found["rates"][0], found["shares"][0]
    share = rate * flops / limit
    print(
        f"{given.model}, batch {given.batch}, {given.steps} steps: {rate:.0f} pairs/s, "
        f"{100 * share:.1f}% of the limit ({flops / 1e9:.1f} GFLOP a pair), loss block "
        f"{100 * loss_share:.2f}% of a step, peak {found['peak']:.2f} GB; 50,000 steps: "
        f"{50_000 * given.batch / rate / 60:.1f} min"
    )


def training_flops(model: str) -> float:
    """Return the FLOPs of one generated image: forward, and back through activations (LoRA)."""
    width, inner, layers, _, side, patch, _ = SHAPES[model]
    tokens = (side // patch) ** 2 + 1
    layer = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * tokens**2 * width
    return 2 * (layers * layer + 2 * (tokens - 1) * width * 3 * patch**2)


def _spawn(side: str, given: argparse.Namespace, **changes: object) -> dict[str, Any]:
    """Run one job in a process of its own."""
    job = {"side": side, "model": given.model, "batch": given.batch, "steps": given.steps}
    job |= {"cases": [("eq1_only", "decoded")], "precision": "float32", "pairs": 4096}
    command = [sys.executable, __file__, "--job", json.dumps(job | changes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _job(job: dict[str, Any]) -> None:
    """Measure one side and print one line of JSON."""
    if _device() == "cpu":
        torch.set_num_threads(1)
    progress.set_quiet(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = _write_clip(job["model"], folder / "clip")
        before, found = peak_memory(), []
        for preset, loading in job["cases"]:
            torch.manual_seed(0)
            run = _ours if job["side"] == "ours" else _peer
            found.append(run({**job, "preset": preset, "loading": loading}, clip, folder))
    rates, shares = zip(*found, strict=True)
    total = {"rates": rates, "shares": shares, "before": before, "peak": peak_memory()}
    print(json.dumps(total))


def _ours(job: dict[str, Any], clip: Path, folder: Path) -> tuple[float, float]:
    """Run the package's own loop over tables that are mapped from files."""
    batch, steps, count = job["batch"], job["steps"], job["pairs"]
    encoder = GmailEncoder.from_clip(clip).to(_device())
    weights = AlignConfig.from_preset(job["preset"]).weights
    config = AlignConfig(weights=weights, batch_size=batch, precision=job["precision"])
    needs = needed_features(config)
    tables = _tables(encoder, folder)
    rows = _rows(count, folder)
    batches = Batches(rows[:, REAL], batch, 0)
    wanted = BatchRequest(needs, pinned=_device() != "cpu")
    marks: list[float] = []

    def load(step: int) -> Batch:
        return gather(tables, rows[batches.indices(step)], wanted)

    total = steps + 2
    with prefetch(load, total) as fetch:

        def loss(step: int) -> dict[str, Tensor]:
            _wait()
            marks.append(_clock())
            return loss_terms(encoder, fetch(step).to(encoder.device), config)

        optim = OptimConfig(steps=total, schedule="constant", checkpoint_every=10**9)
        fit(encoder.trainable(real_head="real" in needs), loss, optim, batch_size=batch)
    _wait()
    marks.append(_clock())
    each = statistics.median(np.diff(marks)[2:])
    share = _loss_seconds(encoder, load(0).to(encoder.device), config) / each
    return batch / each, share


def _loss_seconds(encoder: GmailEncoder, batch: Batch, config: AlignConfig) -> float:
    """Time the loss and its gradient by the features alone."""
    size = len(batch.inputs["generated"])
    rows = torch.randn(size, encoder.dim, device=encoder.device, requires_grad=True)
    features = dict.fromkeys(batch.inputs, rows)
    times = []
    for _ in range(10):
        _wait()
        start = _clock()
        terms_of(features, encoder, batch, config)["total"].backward()
        _wait()
        times.append(_clock() - start)
    return statistics.median(times)


def _peer(job: dict[str, Any], clip: Path, folder: Path) -> tuple[float, float]:
    """Run a plain loop: both towers at every step, peft's adapter, torch's DataLoader."""
    from peft import LoraConfig, get_peft_model

    batch, steps, preset = job["batch"], job["steps"], job["preset"]
    plain = CLIPModel.from_pretrained(clip).eval()
    plain.requires_grad_(False)
    targets = r"vision_model\..*\.(q_proj|v_proj)"
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    model = get_peft_model(plain, settings).to(_device())
    start = plain.visual_projection.weight.detach()
    heads = [nn.Parameter(start.clone().to(_device())) for _ in range(2)]
    trained = [p for p in model.parameters() if p.requires_grad] + heads
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    vision, marks = model.base_model.model.vision_model, []
    for images, ids in _peer_batches(job, clip, folder, steps + 2):
        _wait()
        marks.append(_clock())
        generated, real = (part.to(_device()) for part in images)
        with torch.no_grad():
            with model.disable_adapter():
                target = linear(vision(real).pooler_output, start.to(_device()))
            if preset == "gmail":
                tower = model.base_model.model
                texts = tower.get_text_features(ids.to(_device())).pooler_output
        made = linear(vision(generated).pooler_output, heads[0])
        loss = _eq1(made, target, 0.07)
        if preset == "gmail":
            photos, scale = linear(vision(real).pooler_output, heads[1]), plain.logit_scale.exp()
            for side in (made, photos):
                both = _eq1(side, texts, 1 / scale) + _eq1(texts, side, 1 / scale)
                loss = loss + both / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    _wait()
    marks.append(_clock())
    each = statistics.median(np.diff(marks)[2:])
    return batch / each, 0.0


def _eq1(rows: Tensor, columns: Tensor, temperature: Tensor | float) -> Tensor:
    logits = normalize(rows, dim=-1) @ normalize(columns, dim=-1).T / temperature
    return cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class _Files(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Generated image, real image and tokens of a pair, opened and preprocessed each time."""

    def __init__(self, files: list[bytes], processor: CLIPImageProcessorPil, count: int) -> None:
        self.files, self.processor, self.count = files, processor, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.full((LENGTH,), VOCABULARY - 1)
        ids[: LENGTH // 2] = torch.arange(LENGTH // 2) + 3
        one, other = (
            Image.open(io.BytesIO(self.files[(index + step) % len(self.files)])) for step in (0, 1)
        )
        return self._pixels(one), self._pixels(other), ids

    def _pixels(self, image: Image.Image) -> Tensor:
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


def _peer_batches(
    job: dict[str, Any], clip: Path, folder: Path, steps: int
) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Yield batches from files, or the same decoded batch again and again."""
    batch, side = job["batch"], SHAPES[job["model"]][4]
    rng = np.random.default_rng(0)
    shape = (int(side * 1.25), int(side * 1.5), 3)
    files = []
    for _ in range(16 if job["loading"] == "files" else 2):
        buffer = io.BytesIO()
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize(shape[1::-1]).save(buffer, format="JPEG", quality=90)
        files.append(buffer.getvalue())
    data = _Files(files, CLIPImageProcessorPil.from_pretrained(clip), steps * batch)
    loader = iter(DataLoader(data, batch_size=batch, shuffle=True))
    if job["loading"] == "files":
        for generated, real, ids in loader:
            yield (generated, real), ids
        return
    generated, real, ids = next(loader)
    for _ in range(steps):
        yield (generated, real), ids


def _write_clip(model: str, folder: Path) -> Path:
    """Save a CLIP of random weights and of the true shape, with its preprocessing."""
    width, inner, layers, heads, side, patch, dim = SHAPES[model]
    vision = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    vision |= {"num_attention_heads": heads, "image_size": side, "patch_size": patch}
    text_width = 768 if model == "l14" else min(width, 512)
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width}
    text |= {"num_hidden_layers": 12 if layers >= 12 else 2, "vocab_size": VOCABULARY}
    text |= {"num_attention_heads": max(2, text_width // 64), "eos_token_id": VOCABULARY - 1}
    text |= {"bos_token_id": 1, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim)
    CLIPModel(config).save_pretrained(folder)
    sides = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessorPil(**sides).save_pretrained(folder)
    return folder


def _tables(encoder: GmailEncoder, folder: Path) -> Tables:
    """Write noise as decoded pixels and as features, and map them."""
    side, rng = encoder.preprocess.size, np.random.default_rng(0)
    path = folder / "pixels"
    with path.open("wb") as file:
        for _ in range(IMAGES):
            file.write(rng.integers(0, 256, 3 * side * side, dtype=np.uint8).tobytes())
    size = IMAGES * 3 * side * side
    flat = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    pixels, features = flat.reshape(IMAGES, 3, side, side), torch.randn(IMAGES, encoder.dim)
    small = np.arange(LARGEST) % IMAGES  # as many numbers as the largest job has
    columns = {"generated": "generated", "real": "real"}
    inputs = {name: Table(pixels, column, small) for name, column in columns.items()}
    return Tables(inputs, {n: Table(features, "real", small) for n in ("frozen", "texts")})


def _rows(count: int, folder: Path) -> PairNumbers:
    """Make ``count`` pairs, five of each real image."""

    def blocks() -> Iterator[PairNumbers]:
        for start in range(0, count, 65_536):
            places = np.arange(start, min(start + 65_536, count), dtype=np.int32)
            yield np.stack([places, places // 5, places, places, places], axis=1)

    return map_rows(blocks(), folder)


def _matmul_limit() -> float:
    """Return FLOP/s of a large matrix product, the best of several."""
    device = _device()
    size, dtype = (8192, torch.bfloat16) if device != "cpu" else (1024, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: left @ right) for _ in range(20))


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    start = _clock()
    work()
    _wait()
    return _clock() - start


def _clock() -> float:
    """Return seconds: of the CPU where that does the work, for the machine may be shared."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
