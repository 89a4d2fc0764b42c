"""Time and memory of evaluation, beside CLIP_benchmark on the same features in the same run.

    python benchmarks/evaluation.py [--clip-benchmark DIR] [--large] [--repeats 3]

DIR is a folder that clip-benchmark was installed into (see ``retrieval_peers.py``). Every job is a
process of its own, so that its peak of memory is its own. ``--large`` scores 31,783 x 158,915 by
our code; CLIP_benchmark is not run at that size, where its scores and its matrix of positives alone
are counted: 4 + 1 bytes for each of the 5.05e9 couples. Medians over repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

GB = 1e9
DIM = 512
SMALL, LARGE = (5_000, 5), (31_783, 5)


def main() -> None:
    """Run every job and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip-benchmark", type=Path)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("WHO", "IMAGES", "EACH"))
    given = parser.parse_args()
    if given.child:
        who, images, each = given.child
        print(json.dumps(child(who, int(images), int(each), given.clip_benchmark)))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load ", end="")
    print(f"{os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads; Python ", end="")
    print(f"{platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")
    retrieval(given)
    print("\nbootstrap, 1,000 resamples, seconds of CPU")
    for name, job in BOOTSTRAPS.items():
        print(f"  {name:52} {median(job, given.repeats):6.2f}")


def retrieval(given: argparse.Namespace) -> None:
    """Compare retrieval at both sizes."""
    print(f"\nretrieval, {DIM} dimensions, R@1, 5, 10 both ways")
    ours = report("ours", SMALL, given)
    if given.clip_benchmark:
        theirs = report("clip_benchmark", SMALL, given)
        apart = max(abs(ours["recalls"][key] - theirs["recalls"][key]) for key in theirs["recalls"])
        print(f"  ratio: {theirs['cpu'] / ours['cpu']:.1f} times less CPU time, ", end="")
        print(f"{theirs['peak'] / ours['peak']:.1f} times less memory in all, ", end="")
        print(
            f"{theirs['own'] / ours['own']:.1f} times less for scoring; recalls {apart:.0e} apart"
        )
    if given.large:
        large = report("ours", LARGE, given)
        counted = 5 * LARGE[0] ** 2 * LARGE[1]
        print(f"  CLIP_benchmark, counted: {counted / GB:.1f} GB, ", end="")
        print(f"{counted / GB / large['peak']:.0f} times ours in all")


def report(who: str, size: tuple[int, int], given: argparse.Namespace) -> dict:
    """Run a job in processes of its own and print its medians."""
    words = [sys.executable, __file__, "--child", who, *map(str, size)]
    if given.clip_benchmark:
        words += ["--clip-benchmark", str(given.clip_benchmark)]
    repeats = 1 if size == LARGE else given.repeats
    runs = [json.loads(subprocess.check_output(words)) for _ in range(repeats)]
    found = {
        key: statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "peak", "own")
    }
    print(f"  {who:15} {size[0]:>6} x {size[0] * size[1]:<7} ", end="")
    print(f"{found['wall']:7.1f} s wall {found['cpu']:7.1f} s CPU ", end="")
    print(f"{found['peak']:6.2f} GB peak, {found['own']:.2f} GB above the inputs", flush=True)
    return found | {"recalls": runs[0]["recalls"]}


def child(who: str, images: int, each: int, peer: Path | None) -> dict:
    """Score once; return seconds, memory and recalls."""
    if who == "clip_benchmark" and peer:
        sys.path.insert(0, str(peer))
    rng = torch.Generator().manual_seed(0)
    owner = torch.arange(images).repeat_interleave(each)
    seen = torch.randn(images, DIM, generator=rng)
    texts = torch.randn(len(owner), DIM, generator=rng)
    for start in range(0, len(owner), 10_000):
        rows = slice(start, start + 10_000)
        texts[rows] += 0.08 * seen[owner[rows]]
    score = ours if who == "ours" else theirs()
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    recalls = score(seen, texts, owner)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "peak": peak(), "own": peak() - before, "recalls": recalls}


def ours(images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> dict[str, float]:
    """Score by our code, intervals included."""
    from gmail_align.metrics.retrieval_hits import retrieval_hits

    found = retrieval_hits(images, texts, owner).estimates()
    return {name: one.value for name, one in found.items()}


def theirs() -> Callable[..., dict[str, float]]:
    """Return CLIP_benchmark's evaluation."""
    sys.path.insert(0, str(Path(__file__).parent))
    from retrieval_peers import clip_benchmark

    evaluate = clip_benchmark()
    if evaluate is None:
        raise SystemExit("clip_benchmark cannot be imported")
    return lambda *data: evaluate(data)


def peak() -> float:
    """Return the peak of resident memory in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def median(job: Callable[[], Callable[[], object]], repeats: int) -> float:
    """Return the median CPU seconds of what ``job`` prepares."""
    run, seconds = job(), []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def hits() -> Callable[[], object]:
    """Recalls of 158,915 captions, resampled by image."""
    from gmail_align.metrics.bootstrap import bootstrap_means

    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(LARGE[0]), LARGE[1])
    columns = {f"r{k}": rng.random(len(owner)) < k / 20 for k in (1, 5, 10)}
    return lambda: bootstrap_means(columns, clusters=owner)


def classes() -> Callable[[], object]:
    """Class mean of 50,000 images of 1,000 classes."""
    from gmail_align.metrics.class_accuracy import _class_mean

    rng = np.random.default_rng(0)
    right = (rng.random(50_000) < 0.6) * 1.0
    return lambda: _class_mean(right, np.arange(50_000) % 1000, resamples=1000, seed=0)


def moments() -> Callable[[], object]:
    """Cosines, margin, centroid distance and norms of 5,000 pairs."""
    from gmail_align.metrics.pair_gap import _moment_estimates

    rng = torch.Generator().manual_seed(0)
    real = torch.randn(5000, DIM, generator=rng)
    made = real + torch.randn(5000, DIM, generator=rng)
    return lambda: _moment_estimates(real, made, np.arange(5000), resamples=1000, seed=0)


def scores() -> Callable[[], object]:
    """A mean of 5,000 captions' scores, each another number."""
    from gmail_align.metrics.bootstrap import bootstrap_mean

    values = np.random.default_rng(0).random(5000)
    return lambda: bootstrap_mean(values)


def areas() -> Callable[[], object]:
    """AUC of five folds of 1,000 pairs."""
    from gmail_align.metrics.separability import _fold_aucs

    rng = np.random.default_rng(0)
    held = rng.standard_normal((2, 5000)) + np.array([[0.0], [1.0]])
    fold = np.arange(5000) % 5
    return lambda: _fold_aucs(held, fold, np.arange(5000), resamples=1000, seed=0)


BOOTSTRAPS = {
    "retrieval, 158,915 captions of 31,783 images": hits,
    "zero-shot class mean, 50,000 images, 1,000 classes": classes,
    "a caption metric, 5,000 images": scores,
    "gap: cosines, centroids, norms, 5,000 pairs": moments,
    "gap: probe AUC, 5,000 pairs": areas,
}

if __name__ == "__main__":
    main()
