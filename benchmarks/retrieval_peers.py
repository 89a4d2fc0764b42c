"""Retrieval beside the evaluators that others use, on the same features: do the numbers agree?

    python benchmarks/retrieval_peers.py [--clip-benchmark DIR] [--long-clip DIR]

DIR is a checkout of Long-CLIP, and a folder that clip-benchmark was installed into (``pip install
--no-deps --target DIR clip-benchmark "numpy<2.4"``); a peer that is absent is passed over. Their
own functions are run: ``clip_benchmark.metrics.zeroshot_retrieval.evaluate`` and the two
``get_accuracy_*`` of ``eval/retrieval/flickr30k.py``, here on a CPU. Features are random, tied (all
equal) and clustered (groups of equal images and captions). Exits with 1 where numbers differ by
more than 1e-6.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gmail_align.metrics.compat import Compat
from gmail_align.metrics.retrieval_hits import retrieval_hits

KS = (1, 5, 10)
LIMIT = 1e-6
Data = tuple[Tensor, Tensor, Tensor]


def main() -> None:
    """Compare on every kind of features with every peer that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip-benchmark", type=Path)
    parser.add_argument("--long-clip", type=Path)
    given = parser.parse_args()
    if given.clip_benchmark:
        sys.path.insert(0, str(given.clip_benchmark))
    peers = {
        (Compat.CLIP_BENCHMARK, "CLIP_benchmark"): clip_benchmark(),
        (Compat.LONG_CLIP, "Long-CLIP"): long_clip(given.long_clip) if given.long_clip else None,
    }
    worst = 0.0
    for (rule, name), peer in peers.items():
        if peer is None:
            print(f"{name}: absent, passed over")
            continue
        for kind in ("random", "tied", "clustered"):
            data = features(kind)
            theirs = peer(data)
            same = gap(theirs, retrieval_hits(*data, KS, compat=rule).estimates(resamples=1))
            ours = gap(theirs, retrieval_hits(*data, KS).estimates(resamples=1))
            worst = max(worst, same)
            print(f"{name:15} {kind:10} compat {same:.1e}   our tie-safe rule {ours:.1e}")
    sys.exit(worst > LIMIT)


def features(kind: str, images: int = 300, dim: int = 64) -> Data:
    """Draw 300 images with 5 captions each."""
    rng = torch.Generator().manual_seed(0)
    owner = torch.arange(images).repeat_interleave(5)
    seen = torch.randn(images, dim, generator=rng)
    noise = torch.randn(len(owner), dim, generator=rng)
    if kind == "tied":
        return torch.ones(images, dim), torch.ones(len(owner), dim), owner
    if kind == "clustered":
        seen = seen[torch.arange(images) % 20]
        return seen, seen[owner] + 0.5 * noise[owner % 20], owner
    return seen, 0.25 * seen[owner] + noise, owner


def gap(theirs: dict[str, float], ours: dict) -> float:
    """Return the largest difference of any recall."""
    return max(abs(theirs[name] - ours[name].value) for name in theirs)


def clip_benchmark() -> Callable[[Data], dict[str, float]] | None:
    """Return CLIP_benchmark's own evaluation of given features."""
    try:
        from clip_benchmark.metrics import zeroshot_retrieval
    except ImportError:
        return None

    def evaluate(data: Data) -> dict[str, float]:
        images, texts, owner = data
        rows = [[] for _ in images]
        for row, image in enumerate(owner.tolist()):
            rows[image].append(row)
        loader = DataLoader(
            list(zip(images, rows, strict=True)),
            batch_size=64,
            collate_fn=lambda batch: (
                torch.stack([one[0] for one in batch]),
                [one[1] for one in batch],
            ),
        )
        model = SimpleNamespace(encode_image=lambda x: x, encode_text=lambda rows: texts[rows])
        with contextlib.redirect_stderr(io.StringIO()):
            found = zeroshot_retrieval.evaluate(
                model, loader, torch.tensor, "cpu", amp=False, recall_k_list=list(KS)
            )
        return {
            **{f"i2t_r{k}": found[f"text_retrieval_recall@{k}"] for k in KS},
            **{f"t2i_r{k}": found[f"image_retrieval_recall@{k}"] for k in KS},
        }

    return evaluate


def long_clip(folder: Path) -> Callable[[Data], dict[str, float]] | None:
    """Return Long-CLIP's own two functions, with their moves to a GPU left out."""
    path = folder / "eval" / "retrieval" / "flickr30k.py"
    if not path.exists():
        return None
    tree = ast.parse(path.read_text())
    wanted = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("get_accuracy")
    ]
    source = ast.unparse(ast.Module(wanted, [])).replace(".cuda()", "")
    space: dict = {"torch": torch}
    exec(source, space)

    def evaluate(data: Data) -> dict[str, float]:
        found = {}
        for way in ("i2t", "t2i"):
            for k in KS:
                images, texts = data[0].half(), data[1].half()
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    space[f"get_accuracy_{way}"](texts, images, k)
                found[f"{way}_r{k}"] = float(said.getvalue())
        return found

    return evaluate


if __name__ == "__main__":
    main()
