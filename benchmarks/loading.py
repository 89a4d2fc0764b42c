"""Images a second on one core, from shards to model input, beside webdataset and transformers.

    python benchmarks/loading.py --images runs/x/images
    python benchmarks/loading.py --photos shared/data/flickr8k/images.zip --count 300

Both sides read the same tar shards, decode, resize, crop and normalise as CLIP does, in one thread,
batch by batch as a training loop takes them, and must give the same numbers. They take turns, and
medians over the rounds are compared. Needs webdataset, which is no dependency of the package.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, load
from gmail_align.data.decode import encode
from gmail_align.data.images import ImageRecord, ImageStore, finish_images, shard_name, write_shard
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.runtime import versions

BATCH = 32


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="an images artifact")
    parser.add_argument(
        "--photos", type=Path, help="a zip of JPEG photos, packed into shards first"
    )
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=224)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.images:
            images = load(chosen.images, "images")
        else:
            images = pack(chosen.photos, Path(folder) / "images", chosen.count)
        print(json.dumps(compare(images, chosen.side, chosen.rounds), indent=2))


def pack(source: Path | None, out: Path, count: int) -> Artifact:
    """Put photos of a zip, or noise of 512 pixels, into shards."""
    draft = begin(out, "images", {"count": count})
    rows = []
    if source is None:
        torch.manual_seed(0)
        for number in range(count):
            small = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
            image = Image.fromarray(small).resize((512, 512), Image.Resampling.BICUBIC)
            rows.append((f"i{number}", encode(image, "jpeg", 95)))
    else:
        with zipfile.ZipFile(source) as archive:
            names = (n for n in archive.namelist() if n.lower().endswith(".jpg") and "__" not in n)
            rows = [(f"i{k}", archive.read(n)) for k, n in enumerate(islice(names, count))]
    samples = []
    for name, data in rows:
        with Image.open(io.BytesIO(data)) as image:
            record = ImageRecord(id=name, width=image.width, height=image.height)
        samples.append((record, data))
    write_shard(draft.path(shard_name(0)), samples)
    return finish_images(draft)


def compare(images: Artifact, side: int, rounds: int) -> dict[str, Any]:
    """Time both in turns, by the processor time of this thread, so that neighbours do not count."""
    theirs, ours = peer(images, side), own(images, side)
    first, second = torch.cat(list(theirs())), torch.cat(list(ours()))
    difference = float((first - second).abs().max())
    seconds: dict[str, list[float]] = {"webdataset + transformers": [], "gmail-align": []}
    for _ in range(rounds):
        for name, run in zip(seconds, (theirs, ours), strict=True):
            start = time.thread_time()
            for _batch in run():
                pass
            seconds[name].append(time.thread_time() - start)
    rates = {name: len(first) / statistics.median(times) for name, times in seconds.items()}
    return {
        "images": len(first),
        "side": side,
        "largest difference": difference,
        "images per core-second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio": round(rates["gmail-align"] / rates["webdataset + transformers"], 3),
        "versions": versions(),
    }


def own(images: Artifact, side: int) -> Callable[[], Iterator[Tensor]]:
    """Return our way: bytes by offset, checked against their hash, decoded, fitted, normalised."""
    store, preprocess = ImageStore(images), Preprocess(side)
    starts = range(0, len(store), BATCH)

    def run() -> Iterator[Tensor]:
        for start in starts:
            yield preprocess(store.read(name) for name in store.ids[start : start + BATCH])

    return run


def peer(images: Artifact, side: int) -> Callable[[], Iterator[Tensor]]:
    """Return the usual way: a WebDataset of PIL images through transformers' processor."""
    import webdataset
    from transformers import CLIPImageProcessorPil

    shards = [str(path) for path in sorted(images.path("shards").glob("*.tar"))]
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )

    def run() -> Iterator[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
            for pairs in data.to_tuple("jpg;png", "__key__").batched(BATCH, collation_fn=list):
                images = [image for image, _ in pairs]
                yield processor(images, return_tensors="pt").pixel_values

    return run


if __name__ == "__main__":
    main()
