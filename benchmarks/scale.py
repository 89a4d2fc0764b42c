"""Memory of preparing an alignment, as the number of pairs grows; images are never opened.

    python benchmarks/scale.py [--rows 10000 1000000]

Captions and indices of images are written, and no image. Each part of the preparation then runs
in a process of its own, which prints the most memory that it held of its own (``RssAnon``: files
that are mapped are not among it) and its CPU seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gmail_align.alignment.pair_index import REAL, PairIndex, hold_out, index_pairs, without_images
from gmail_align.artifacts import Artifact, begin, load
from gmail_align.data.batches import Batches
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.image_index import INDEX
from gmail_align.data.images import ImageStore
from gmail_align.data.leaks import Leak, Leaks, drop_leaks, find_leaks
from gmail_align.data.pairs import make_pairs, make_pairs_by_text
from gmail_align.data.subsets import hold_out as hold_captions
from gmail_align.features.run import read_texts

BLOCK = 65_536


def write_images(folder: Path, count: int, generated: bool) -> Artifact:
    """Write an index of images that are not there."""
    draft, random = begin(folder, "images", {}), np.random.default_rng(0)
    writer = None
    for start in range(0, count, BLOCK):
        rows = range(start, min(start + BLOCK, count))
        size, digits = len(rows), random.bytes(32 * len(rows)).hex()
        kinds = "generated" if generated else "real"
        table = pa.table(
            {
                "id": [f"{row:09d}-0" if generated else f"{row:09d}" for row in rows],
                "shard": pa.array(np.arange(rows.start, rows.stop) // 1000, pa.int32()),
                "offset": np.arange(rows.start, rows.stop) % 1000 * 20_000,
                "size": np.full(size, 20_000),
                "sha256": [digits[64 * n : 64 * n + 64] for n in range(size)],
                "width": pa.array(np.full(size, 224), pa.int32()),
                "height": pa.array(np.full(size, 224), pa.int32()),
                "source": [kinds] * size,
                "generator": [""] * size,
                "revision": [""] * size,
                "prompt": [text(row) if generated else "" for row in rows],
            }
        )
        writer = writer or pq.ParquetWriter(draft.path(INDEX), table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return draft.finish({"images": count})


def write_texts(folder: Path, count: int, generated: bool = False) -> Artifact:
    """Write one caption for each image; ids are those of COCO."""
    draft, end = begin(folder, "captions", {"format": "coco"}), "-0" if generated else ""
    rows = (Caption(f"{row:09d}", text(row), f"{row:09d}{end}") for row in range(count))
    return draft.finish({"captions": write_captions(draft, rows)})


def text(row: int) -> str:
    """Return a caption as long as those of photos, of its own."""
    return f"a photo of number {row} with a small red ball on a wooden table near the window"


def hold_captions_out(world: Path, out: Path) -> None:
    """Choose the captions that are not held out."""
    hold_captions(load(world / "captions"), 0.1, out, held=False)


def pair(world: Path, out: Path) -> None:
    """Pair the images."""
    captions, real, generated = (load(world / kind) for kind in ("captions", "real", "generated"))
    make_pairs(captions, real, generated, world / "pairs")


def pair_by_text(world: Path, out: Path) -> None:
    """Pair the images by their texts, all of which differ."""
    kinds = ("captions", "real", "generated", "texts")
    captions, real, generated, texts = (load(world / kind) for kind in kinds)
    make_pairs_by_text(captions, real, generated, texts, out)


def look_for_leaks(world: Path, out: Path) -> None:
    """Compare the ids of captions with those of an evaluation, all of which leak."""
    leaks = find_leaks(load(world / "captions"), [load(world / "evaluation")])
    assert len(leaks.ids) == leaks.evaluation


def drop(world: Path, out: Path) -> None:
    """Leave the pairs of a hundredth of the images out."""
    images = range(0, load(world / "captions").counts["captions"], 100)
    leaks = [Leak(f"{row:09d}", "", "", "id") for row in images]
    drop_leaks(load(world / "pairs"), Leaks(leaks, 0, 0, False), out)


def number_pairs(world: Path, out: Path) -> None:
    """Number the pairs."""
    index_pairs(load(world / "pairs"), world / "pair-index")


def open_images(world: Path, out: Path) -> None:
    """Open both stores, and look images up."""
    for kind in ("real", "generated"):
        store = ImageStore(load(world / kind))
        assert store.ids[-1] in store


def split(world: Path, out: Path) -> None:
    """Hold images out, and put the first epoch in order."""
    index = PairIndex(index_pairs(load(world / "pairs"), world / "pair-index"))
    held = hold_out(np.arange(index.count("real")), 0.05, 1000, 0)
    train = without_images(index.rows, held, out)
    Batches(train[:, REAL], 256, 0).indices(0)


def find_rows(world: Path, out: Path) -> None:
    """Find the row of every generated image of the pairs."""
    index = PairIndex(index_pairs(load(world / "pairs"), world / "pair-index"))
    names = index.names_of("generated", np.arange(index.count("generated")))
    rows = ImageStore(load(world / "generated")).ids.rows(names)
    assert rows[-1] == len(rows) - 1


def read_captions(world: Path, out: Path) -> None:
    """Read the texts that are to be embedded."""
    index = PairIndex(index_pairs(load(world / "pairs"), world / "pair-index"))
    assert len(read_texts(index.texts("text", out / "texts")).lines) == index.count("text")


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "open both image stores": open_images,
    "hold captions out": hold_captions_out,
    "pair": pair,
    "pair by text": pair_by_text,
    "find leaks": look_for_leaks,
    "drop leaks": drop,
    "number the pairs": number_pairs,
    "hold out, and order an epoch": split,
    "find the rows of images": find_rows,
    "read the texts": read_captions,
}


@contextmanager
def watched() -> Iterator[list[float]]:
    """Look at this process's own memory 50 times a second; the first entry is the most, in MB."""
    most, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            own = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            most[0] = max(most[0], int(own.split()[1]) / 1000)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def run_part(name: str, world: Path) -> None:
    """Run one part here, and print what it took."""
    start = time.process_time()
    with watched() as most, tempfile.TemporaryDirectory(dir=world) as out:
        PARTS[name](world, Path(out) / "out")
    print(f"{most[0]:7.1f} MB {time.process_time() - start:7.1f} s  {name}", flush=True)


def write_world(world: Path, count: int) -> None:
    """Write the metadata of so many images and captions."""
    for kind in ("real", "generated"):
        write_images(world / kind, count, kind == "generated")
    write_texts(world / "captions", count)
    write_texts(world / "texts", count, generated=True)
    write_texts(world / "evaluation", count // 100)


def alone(work: Callable[..., None], *arguments: object) -> None:
    """Run a function in a process of its own, which has imported everything."""
    process = get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def main() -> None:
    """Write metadata of every size, and run the parts on it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--work", type=Path, help="where metadata lie; a temporary folder if none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        for count in given.rows:
            world = Path(work) / str(count)
            alone(write_world, world, count)
            print(f"{count:,} pairs", flush=True)
            for name in given.parts:
                alone(run_part, name, world)


if __name__ == "__main__":
    main()
