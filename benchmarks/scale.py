"""Memory of planning, pairing and preparing, as the number of pairs grows.

    python benchmarks/scale.py [--rows 10000 1000000] [--parts "pair" "plan a recipe"] [--work DIR]

Captions and indices of images are written; every image is one small JPEG. Each part then runs in a
process of its own, which prints the most memory that it held of its own (``RssAnon``: pages of
mapped files are not among it, for the system takes them back), how much more that is than before
the part began, and its CPU seconds. A folder given as ``--work`` keeps what was written, for
further parts.
"""

from __future__ import annotations

import argparse
import io
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
from PIL import Image

from gmail_align.alignment.pair_index import REAL, PairIndex, hold_out, index_pairs, without_images
from gmail_align.alignment.task import Table
from gmail_align.artifacts import Artifact, atomic_file, begin, fingerprint, load, write_jsonl
from gmail_align.captioning.caption_set import CaptionSet
from gmail_align.captioning.inputs import CaptionedImages
from gmail_align.data.batches import Batches, batch_indices
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.image_index import INDEX
from gmail_align.data.images import ImageRecord, ImageStore, shard_name, write_shard
from gmail_align.data.leaks import Leak, Leaks, drop_leaks, find_leaks
from gmail_align.data.mapped import count_up
from gmail_align.data.names import Names
from gmail_align.data.pairs import make_pairs, make_pairs_by_text
from gmail_align.data.subsets import hold_out as hold_captions
from gmail_align.encoders.language import load_language_model
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.encoders.shipped import model_path
from gmail_align.features.decoded_rows import DecodedRows
from gmail_align.features.pixels import chosen_ids, decoder
from gmail_align.features.run import read_texts
from gmail_align.features.store import IDS, feature_file
from gmail_align.pipeline import plan

BLOCK = 8_192
GROUP = 65_536
EVALUATED = 5_000
"""Images of an evaluation: their number does not depend on that of the pairs."""
RECIPE = """
title = "Alignment of an import that exists"
[data]
train = { artifacts = "set" }
validation = { share = 0.002 }
test = { kind = "tabletop", images = 20 }
[generator]
model = "tabletop"
[align.gmail]
preset = "gmail"
optim = { steps = 1000 }
[[row]]
name = "gmail"
align = "gmail"
[evaluate]
retrieval = ["tabletop_test_retrieval"]
"""


def write_images(folder: Path, count: int, generated: bool) -> Artifact:
    """Write an index of images, each of which is the same JPEG."""
    draft, file = begin(folder, "images", {}), io.BytesIO()
    kind = "generated" if generated else "real"
    Image.new("RGB", (32, 32), (90, 120, 30)).save(file, "JPEG")
    record = ImageRecord(id="0", width=32, height=32)
    (stored,) = write_shard(draft.path(shard_name(0)), [(record, file.getvalue())])
    writer = None
    for start in range(0, count, GROUP):
        rows = range(start, min(start + GROUP, count))
        size = len(rows)
        table = pa.table(
            {
                "id": [f"{row:09d}-0" if generated else f"{row:09d}" for row in rows],
                "shard": pa.array(np.zeros(size), pa.int32()),
                "offset": np.full(size, stored.offset),
                "size": np.full(size, stored.size),
                "sha256": [stored.sha256] * size,
                "width": pa.array(np.full(size, 32), pa.int32()),
                "height": pa.array(np.full(size, 32), pa.int32()),
                "source": [kind] * size,
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


def write_features(folder: Path, count: int) -> Artifact:
    """Write short features of the generated images."""
    draft = begin(folder, "features", {"what": "image", "encoder": "none", "route": "frozen"})
    file = feature_file(folder, count, 4, "float32")
    with atomic_file(file.path) as out:
        out.write(file.header)
        for start in range(0, count, BLOCK):
            out.write(np.ones((min(BLOCK, count - start), 4), np.float32).data)
    write_jsonl(draft.path(IDS), (f"{row:09d}-0" for row in range(count)))
    return draft.finish({"images": count, "rows": count})


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
    """Leave the pairs of the evaluation's images out."""
    images = range(min(EVALUATED, load(world / "captions").counts["captions"] // 2))
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


def train_rows(world: Path, out: Path) -> tuple[PairIndex, np.ndarray]:
    """Return the pairs, and those that are trained on."""
    index = PairIndex(index_pairs(load(world / "pairs"), world / "pair-index"))
    held = hold_out(count_up(index.count("real")), 0.05, 1000, 0)
    return index, without_images(index.rows, held, out)


def split(world: Path, out: Path) -> None:
    """Hold images out, and put two epochs in order."""
    _, train = train_rows(world, out)
    batches = Batches(train[:, REAL], 256, 0)
    assert len(batches.indices(0)) == len(batches.indices(len(train) // 256)) == 256


def first_batches(world: Path, out: Path) -> None:
    """Read batches of images that are decoded when read."""
    index, train = train_rows(world, out)
    store, tables = ImageStore(load(world / "generated")), Preprocess(size=32)
    names = index.names_of("generated", range(index.count("generated")))
    ids = chosen_ids(store, names)
    rows = Names.of(ids).rows(names)
    table = Table(DecodedRows(store, tables, ids), "generated", rows)
    batches = Batches(train[:, REAL], 256, 0)
    for step in range(4):
        assert len(table.take(train[batches.indices(step)])) == 256


def prepare_extraction(world: Path, out: Path) -> None:
    """Choose a third of the images by id, and decode the first of them."""
    store = ImageStore(load(world / "generated"))
    ids = chosen_ids(store, Names(name for row, name in enumerate(store.ids) if row % 3 == 0))
    assert fingerprint(ids)
    with decoder(store, Preprocess(size=32)) as decode:
        assert len(decode(ids[:64])) == 64


def read_captions_of_captioner(world: Path, out: Path) -> None:
    """Match captions with features, tokenise them, and take a batch of the second epoch."""
    images = CaptionedImages(load(world / "features"), load(world / "captions"))
    language = load_language_model(model_path("tabletop", "gpt2"))
    captions = CaptionSet.read([images], language, 20)
    picked = batch_indices(len(captions) // 32 + 1, 32, len(captions), 0)
    assert len(captions.features(captions.rows[picked])) == len(captions.tokens.batch(picked)[0])
    assert len(captions.images()) == len(captions)


def plan_recipe(world: Path, out: Path) -> None:
    """Plan a recipe over the captions and images."""
    (out / "set").mkdir(parents=True)
    for name, kind in (("captions", "captions"), ("images", "real")):
        (out / "set" / name).symlink_to(world.absolute() / kind)
    (out / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    planned = plan(str(out / "recipe.toml"), out / "work")
    assert planned["missing_steps"]


def find_rows(world: Path, out: Path) -> None:
    """Find the row of every generated image of the pairs."""
    index = PairIndex(index_pairs(load(world / "pairs"), world / "pair-index"))
    names = index.names_of("generated", range(index.count("generated")))
    rows = ImageStore(load(world / "generated")).ids.rows(names)
    assert rows[-1] == len(rows) - 1


def read_captions(world: Path, out: Path) -> None:
    """Read the texts that are to be embedded."""
    index = PairIndex(index_pairs(load(world / "pairs"), world / "pair-index"))
    assert len(read_texts(index.texts("text", out / "texts")).lines) == index.count("text")


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "open both image stores": open_images,
    "plan a recipe": plan_recipe,
    "hold captions out": hold_captions_out,
    "pair": pair,
    "pair by text": pair_by_text,
    "find leaks": look_for_leaks,
    "drop leaks": drop,
    "number the pairs": number_pairs,
    "hold out, and order two epochs": split,
    "find the rows of images": find_rows,
    "read the texts": read_captions,
    "first batches, decoded when read": first_batches,
    "prepare an extraction": prepare_extraction,
    "read a captioner's captions": read_captions_of_captioner,
}


def own_memory() -> float:
    """Return the memory of this process that is not of files, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    own = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(own.split()[1]) / 1000


@contextmanager
def watched() -> Iterator[list[float]]:
    """Look at this process's own memory 100 times a second; the first entry is the most, in MB."""
    most, done = [own_memory()], threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], own_memory())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def run_part(name: str, world: Path) -> None:
    """Run one part here, and print what it took."""
    start, before = time.process_time(), own_memory()
    with watched() as most, tempfile.TemporaryDirectory(dir=world) as out:
        PARTS[name](world, Path(out) / "out")
    seconds = time.process_time() - start
    print(f"{most[0]:7.1f} MB {most[0] - before:+7.1f} MB {seconds:8.1f} s  {name}", flush=True)


def write_world(world: Path, count: int) -> None:
    """Write the metadata of so many images and captions."""
    for kind in ("real", "generated"):
        write_images(world / kind, count, kind == "generated")
    write_texts(world / "captions", count)
    write_texts(world / "texts", count, generated=True)
    write_texts(world / "evaluation", min(EVALUATED, count // 2))
    write_features(world / "features", count)


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
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--work", type=Path, help="keeps the metadata; a temporary folder if none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for count in given.rows:
            world = (given.work or Path(temporary)) / str(count)
            alone(write_world, world, count)
            print(f"{count:,} pairs", flush=True)
            for name in given.parts:
                alone(run_part, name, world)


if __name__ == "__main__":
    main()
