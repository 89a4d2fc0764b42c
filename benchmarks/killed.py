"""Kill a synthesis run at random moments and compare it with one that was left alone.

    python benchmarks/killed.py --images 2000 --kills 20

Both runs generate the same tabletop captions. The one is killed with SIGKILL at moments spread over
its whole length, started again each time, and at the end must hold every image once, with the
sha256 that it has in the other. Prints that, and how many images had to be made twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, begin, load
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.images import ImageStore
from gmail_align.recipe import shipped_models
from gmail_align.runtime import versions
from gmail_align.synthesis.config import SynthesisConfig


def main() -> int:
    """Run both and compare; exit with 1 when an image is missing, double or different."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shard", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="killed-"))
    captions = write_texts(work / "captions", chosen.images)
    config = SynthesisConfig(
        model=str(shipped_models() / "diffusion"),
        steps=chosen.steps,
        guidance_scale=1.0,  # half the work; what is tested is the files
        batch_size=chosen.batch,
        shard_size=chosen.shard,
        device="cpu",
        writers=1,
    )
    start = time.monotonic()
    finish(config, captions.folder, work / "whole")
    seconds = time.monotonic() - start
    kills, moments = kill_often(config, captions, work / "killed", chosen.kills, seconds)
    result = compare(load(work / "whole"), load(work / "killed"))
    made = int((work / "killed.log").stat().st_size)
    needed = int((work / "whole.log").stat().st_size)
    result |= {
        "images": chosen.images,
        "kills": kills,
        "batches on disk when killed": moments,
        "unbroken seconds": round(seconds, 1),
        "batches": needed,
        "batches made again": made - needed,
        "batch size": chosen.batch,
        "versions": versions(),
    }
    print(json.dumps(result, indent=2))
    shutil.rmtree(work)
    return int(not result["same"])


def write_texts(folder: Path, count: int) -> Artifact:
    """Write ``count`` captions of the tabletop world."""
    words = itertools.product(
        ("small", "big"),
        ("red", "blue", "green", "yellow"),
        ("ball", "cube", "cone", "cylinder"),
        ("a wooden table", "the grass", "a grey floor"),
    )
    texts = (f"A {size} {colour} {shape} on {floor}." for size, colour, shape, floor in words)
    rows = enumerate(itertools.islice(itertools.cycle(texts), count))
    draft = begin(folder, "captions", {"count": count})
    return draft.finish(
        {"captions": write_captions(draft, (Caption(str(n), t, str(n)) for n, t in rows))}
    )


def kill_often(
    config: SynthesisConfig, captions: Artifact, out: Path, kills: int, seconds: float
) -> tuple[int, list[int]]:
    """Start the run, kill it after a random share of what is left, and so on; then let it end."""
    source = random.Random(0)
    moments = []
    for number in range(kills):
        before = on_disk(out)
        process = begin_run(config, captions.folder, out)
        while on_disk(out) <= before and process.is_alive() and number % 3:
            time.sleep(0.01)  # two of three kills come after something new is on disk
        time.sleep(source.uniform(0, seconds / kills))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        moments.append(on_disk(out))
    finish(config, captions.folder, out)
    return len(moments), moments


def begin_run(config: SynthesisConfig, captions: Path, out: Path) -> Any:
    """Start a run in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gmail_align.synthesis.run", "diffusers"])
    process = context.Process(target=generate, args=(config, captions, out))
    process.start()
    return process


def finish(config: SynthesisConfig, captions: Path, out: Path) -> None:
    """Run to the end."""
    process = begin_run(config, captions, out)
    process.join()
    if process.exitcode:
        sys.exit(f"the run ended with {process.exitcode}")


def generate(config: SynthesisConfig, captions: Path, out: Path) -> None:
    """Run in the child, and write one byte to ``OUT.log`` for each batch that is sampled."""
    import torch

    from gmail_align.synthesis.run import synthesize
    from gmail_align.synthesis.sampler import Sampler

    torch.set_num_threads(1)
    sample = Sampler.__call__

    def counted(self: Any, requests: Any) -> Any:
        images = sample(self, requests)
        with out.with_suffix(".log").open("ab") as log:
            log.write(b".")
        return images

    Sampler.__call__ = counted  # type: ignore[method-assign]
    synthesize(config, load(captions), out)


def on_disk(out: Path) -> int:
    """Count the batches and shards that are written."""
    return sum(1 for _ in out.glob("shards/**/*.jsonl"))


def compare(whole: Artifact, killed: Artifact) -> dict[str, Any]:
    """Compare every image of two artifacts."""
    one, two = ({i: store.record(i).sha256 for i in store.ids} for store in stores(whole, killed))
    return {
        "same": one == two and whole.manifest["files"] == killed.manifest["files"],
        "missing": len(one.keys() - two.keys()),
        "twice": len(ImageStore(killed).ids) - len(two),
        "different": sum(two.get(name) != digest for name, digest in one.items()),
    }


def stores(*artifacts: Artifact) -> list[ImageStore]:
    """Open artifacts."""
    return [ImageStore(artifact) for artifact in artifacts]


if __name__ == "__main__":
    sys.exit(main())
