"""Damage every file that a command reads, in many ways, and see that each command says so.

    python benchmarks/fuzz.py --mutations 40

Each case changes one file (bits, cuts, repetitions, odd values in JSON) and runs one command on it.
A command may succeed or refuse with one sentence (exit 0 or 2). A traceback, another exit code,
more than ten seconds of computing or more than four gigabytes is a fault. Prints what went wrong
with each file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torture import Torturer, warm_up

from gmail_align.config import toml_value

SECONDS = 10
"""Of computing; a command that waits is ended after nine times as long."""
GIGABYTES = 4

TARGETS = {
    "train/captions/manifest.json": "choose {world}/train/captions --each 1 --out {out}",
    "train/captions/captions.jsonl": "choose {world}/train/captions --each 1 --out {out}",
    "train/images/index.parquet": "leaks --train {world}/train/images"
    " --evaluation {world}/test/images",
    "train/images/shards/00000.tar": "leaks --train {world}/train/images"
    " --evaluation {world}/test/images",
    "generated/shards/00000.jsonl": "filter {world}/generated --out {out}",
    "pairs/pairs.jsonl": "choose {world}/pairs --images 0.5 --out {out}",
    "coco/captions_train.json": "import coco --annotations {world}/coco/captions_train.json"
    " --images {world}/coco/images --out {out} --limit-quarantine 1",
    "table.csv": "import parquet --source {world}/table.csv --id-column id --out {out}"
    " --limit-quarantine 1",
    "table.jsonl": "import parquet --source {world}/table.jsonl --id-column id --out {out}"
    " --limit-quarantine 1",
    "table.parquet": "import parquet --source {world}/table.parquet --id-column id --out {out}"
    " --limit-quarantine 1",
    "photos.zip": "import folder --source {world}/photos.zip --out {out} --limit-quarantine 1",
    "photos.tar": "import folder --source {world}/photos.tar --out {out} --limit-quarantine 1",
    "shard/00000.tar": "import webdataset --source {world}/shard --out {out} --limit-quarantine 1",
    "settings.toml": "filter {world}/generated --config {world}/settings.toml --out {out}",
    "features/ids.jsonl": "predict captions --captioner {world}/captioner"
    " --features {world}/features --beam 1 --out {out}",
    "features/features.safetensors": "evaluate retrieval --images {world}/features"
    " --texts {world}/texts --captions {world}/test/captions --out {out}",
    "x.npy": "gap --real-features {world}/x.npy --generated-features {world}/y.npy"
    " --set resamples=20",
    "encoder/config.json": "extract {world}/test/images --encoder {world}/encoder --route frozen"
    " --out {out}",
    "encoder/heads.safetensors": "extract {world}/test/images --encoder {world}/encoder"
    " --route real --out {out}",
    "clip/config.json": "extract {world}/test/images --encoder {world}/clip --route frozen"
    " --out {out}",
    "clip/preprocessor_config.json": "extract {world}/test/images --encoder {world}/clip"
    " --route frozen --out {out}",
    "clip/tokenizer.json": "extract {world}/test/captions --encoder {world}/clip --out {out}",
    "clip/tokenizer_config.json": "extract {world}/test/captions --encoder {world}/clip"
    " --out {out}",
    "diffusion/model_index.json": "synthesize --captions {world}/chosen --out {out} --steps 1"
    " --model {world}/diffusion",
    "diffusion/scheduler/scheduler_config.json": "synthesize --captions {world}/chosen --out {out}"
    " --steps 1 --model {world}/diffusion",
    "diffusion/unet/config.json": "synthesize --captions {world}/chosen --out {out} --steps 1"
    " --model {world}/diffusion",
    "captioner/config.json": "predict captions --captioner {world}/captioner"
    " --features {world}/features --beam 1 --out {out}",
    "captioner/mapper.safetensors": "predict captions --captioner {world}/captioner"
    " --features {world}/features --beam 1 --out {out}",
    "said/predictions.jsonl": "evaluate captions {world}/said --references {world}/test/captions"
    " --metric ROUGE_L --out {out}",
    "labels_test.json": "evaluate zeroshot --images {world}/features"
    " --labels {world}/labels_test.json"
    " --classes {world}/classes.json --encoder tabletop --out {out}",
    "classes.json": "evaluate zeroshot --images {world}/features"
    " --labels {world}/labels_test.json"
    " --classes {world}/classes.json --encoder tabletop --out {out}",
    "result/result.json": "compare {world}/result {world}/result",
    "encoder/events.jsonl": "track {world}/encoder --to tensorboard --out {out}",
    "recipe.toml": "plan {world}/recipe.toml --work {world}/work",
    "study.toml": "study {world}/study.toml --dry-run --work {world}/work",
    "conversations.json": "train llava --encoder tabletop --language-model {world}/llama"
    " --conversations {world}/conversations.json --images {world}/train/images"
    " --set optim.steps=1 --row-tokens 512 --batch-rows 2 --out {out}",
    "vlm/config.json": "ask --vlm {world}/vlm {world}/samples/0.jpg What? --max-tokens 2",
    "vlm/gmail_align.json": "ask --vlm {world}/vlm {world}/samples/0.jpg What? --max-tokens 2",
    "samples/0.jpg": "ask --vlm {world}/vlm {world}/samples/0.jpg What? --max-tokens 2",
    "asked/questions/questions.jsonl": "predict answers --vlm {world}/vlm --max-tokens 1"
    " --questions {world}/asked/questions --out {out}",
    "problems.json": "import scienceqa --source {world}/problems.json --out {out}"
    " --limit-quarantine 1",
    "mmmu.jsonl": "import mmmu --source {world}/mmmu.jsonl --out {out} --limit-quarantine 1",
    "karpathy.json": "import karpathy --annotations {world}/karpathy.json"
    " --images {world}/photos --out {out} --limit-quarantine 1",
    "sharegpt4v.json": "import sharegpt4v --annotations {world}/sharegpt4v.json"
    " --images {world}/photos.zip --out {out} --limit-quarantine 1",
    "named.token": "import flickr30k --tokens {world}/named.token --images {world}/photos.tar"
    " --out {out} --limit-quarantine 1",
    "web.tsv": "import cc --source {world}/web.tsv --out {out} --limit-quarantine 1",
    "beside/metadata.jsonl": "import imagefolder --source {world}/beside --out {out}"
    " --limit-quarantine 1",
    "mine/train.csv": "init {world}/mine --out {out}.toml",
    "mine/test.csv": "import {world}/mine --out {out}",
    "responses.json": "evaluate answers --protocol mine --predictions {world}/responses.json"
    " --answers {world}/problems.json",
    "result/manifest.json": "compare {world}/result {world}/result",
}
"""File of the world -> a command that reads it."""
_EXTRACT = "extract {world}/test/images --route frozen --out {out} --encoder {world}/"
_READ = "extract {world}/test/captions --out {out} --encoder {world}/"
_DRAW = "synthesize --captions {world}/chosen --out {out} --steps 1 --model {world}/diffusion"
_SAY = TARGETS["captioner/config.json"]
_ALIGN = (
    "align features --real {world}/x.npy --generated {world}/y.npy --set optim.steps=2 --out {out}"
)
_CONVERT = "convert {world}/openclip/open_clip_model.safetensors --out {out}"
TARGETS |= {
    "clip/model.safetensors": _EXTRACT + "clip",
    "siglip/config.json": _EXTRACT + "siglip",
    "siglip/preprocessor_config.json": _EXTRACT + "siglip",
    "siglip/tokenizer.json": _READ + "siglip",
    "siglip/tokenizer_config.json": _READ + "siglip",
    "encoder/manifest.json": _EXTRACT + "encoder",
    "encoder/adapter/adapter_config.json": _EXTRACT + "encoder --route generated",
    "encoder/adapter/adapter_model.safetensors": _EXTRACT + "encoder --route generated",
    "encoder/base/config.json": _EXTRACT + "encoder",
    "diffusion/vae/config.json": _DRAW,
    "diffusion/text_encoder/config.json": _DRAW,
    "diffusion/tokenizer/tokenizer.json": _DRAW,
    "diffusion/tokenizer/tokenizer_config.json": _DRAW,
    "captioner/language_model/config.json": _SAY,
    "captioner/language_model/generation_config.json": _SAY,
    "captioner/language_model/tokenizer.json": _SAY,
    "captioner/language_model/model.safetensors": _SAY,
    "vlm/tokenizer.json": TARGETS["vlm/config.json"],
    "vlm/preprocessor_config.json": TARGETS["vlm/config.json"],
    "vlm/model.safetensors": TARGETS["vlm/config.json"],
    "pairs.npy": _ALIGN + " --pairs {world}/pairs.npy",
    "numbers.npy": _ALIGN
    + " --real-classes {world}/numbers.npy --generated-classes {world}/numbers.npy",
    "openclip/open_clip_config.json": _CONVERT,
    "openclip/open_clip_model.safetensors": _CONVERT,
    "labels.json": "evaluate probe --train {world}/real_features --test {world}/features"
    " --labels {world}/labels.json --out {out}",
    "train/images/shards/00000.jsonl": TARGETS["train/images/index.parquet"],
    "named.csv": "import flickr30k --tokens {world}/named.csv --images {world}/photos.tar"
    " --out {out} --limit-quarantine 1",
}

_RESULT = "evaluate captions {world}/said --references {world}/test/captions --metric ROUGE_L"
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 1.5e308, float("nan"), "", "x" * 5000, "\ud800", "../../etc"),
    *([], {}, [[]], {"": None}, "\x1b[31m", "NaN", [1] * 50),
)


def mutate(data: bytes, source: random.Random, form: str) -> bytes:
    """Change a file's bytes in one of many ways; ``form`` is its suffix."""
    if form in _CHANGES and source.random() < 0.7:
        try:
            return _CHANGES[form](data, source)
        except (ValueError, IndexError):
            pass
    at = source.randrange(len(data) or 1)
    length = source.choice((1, 2, 8, 64, 1000))
    return source.choice(
        (
            data[:at],
            data[:at] + bytes(length) + data[at + length :],
            data[:at] + data[at + length :],
            data[:at] + data[at : at + length] * 3 + data[at:],
            data[:at] + source.randbytes(length) + data[at + length :],
            b"",
            data[:at] + b"9" * 5000 + data[at:],
            b"[" * 100_000,
        )
    )


def _mutate_json(data: bytes, source: random.Random) -> bytes:
    """Put an odd value, or none, in the place of one value; in JSON lines, of one line."""
    lines = data.splitlines() if data.count(b"\n{") or data.count(b'\n"') else [data]
    row = source.randrange(len(lines))
    lines[row] = json.dumps(_changed(json.loads(lines[row]), source)).encode()
    return b"\n".join(lines)


def _mutate_toml(data: bytes, source: random.Random) -> bytes:
    """Put an odd value, or none, in the place of one value of a TOML file."""
    value = _changed(tomllib.loads(data.decode()), source)
    rows = value.items() if isinstance(value, dict) else ()
    lines = (f"{toml_value(key)} = {toml_value(one)}\n" for key, one in rows)
    return "".join(lines).encode(errors="surrogatepass")


def _changed(value: Any, source: random.Random) -> Any:
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list) and node[key]:
                walk(node[key])

    if isinstance(value, dict | list) and value:
        walk(value)
        node, key = source.choice(places)
        if isinstance(node, dict) and source.random() < 0.2:
            del node[key]
        else:
            node[key] = source.choice(_ODD)
        return value
    return source.choice(_ODD)


_CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _mutate_json,
    ".jsonl": _mutate_json,
    ".toml": _mutate_toml,
}


def prepare(torturer: Torturer) -> None:
    """Add the files that the world of the kills does not have."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gmail_align.encoders.shipped import shipped_models

    world = torturer.world
    for name in ("clip", "siglip", "diffusion"):
        shutil.copytree(shipped_models() / name, world / name)
    for name in ("x", "y"):
        np.save(world / f"{name}.npy", np.random.default_rng(0).normal(size=(20, 8)))
    np.save(world / "pairs.npy", np.repeat(np.arange(20), 2).reshape(20, 2))
    np.save(world / "numbers.npy", np.arange(20) % 2)
    export = "export {world}/clip --format open_clip --route frozen --out {world}/openclip"
    torturer.run(torturer.words(export))
    images = sorted((world / "coco/images").glob("*train*"))[:8]
    rows = [{"id": str(n), "caption": f"a red ball {n}"} for n in range(4)]
    (world / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (world / "table.csv").write_text("id,caption\n" + "".join(f"{r['id']},a ball\n" for r in rows))
    photos = [image.read_bytes() for image in images[: len(rows)]]
    table = pa.Table.from_pylist(rows).append_column("image", pa.array(photos))
    pq.write_table(table, world / "table.parquet")
    (world / "settings.toml").write_text("\n")
    for number, image in enumerate(images):
        own = world / "photos" / ("red", "blue")[number % 2]
        own.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, own)
        (world / "samples").mkdir(exist_ok=True)
        shutil.copy(image, world / f"samples/{number}.jpg")
        (world / f"samples/{number}.txt").write_text("a red ball")
    for form, suffix in (("zip", "zip"), ("tar", "tar")):
        shutil.make_archive(str(world / "photos"), form, world / "photos")
        assert (world / f"photos.{suffix}").exists()
    (world / "shard").mkdir()
    shutil.make_archive(str(world / "shard/00000"), "tar", world / "samples")
    prepare_texts(world, sorted(f"{path.parent.name}/{path.name}" for path in photos_of(world)))
    torturer.run(
        torturer.words("import scienceqa --source {world}/problems.json --out {world}/asked")
    )
    if (world / "said").exists():
        torturer.run(torturer.words(f"{_RESULT} --out {{world}}/result"))


def photos_of(world: Path) -> list[Path]:
    """Return the photos in class folders."""
    return sorted((world / "photos").glob("*/*"))


def prepare_texts(world: Path, names: list[str]) -> None:
    """Write annotations of the photos, a recipe and a study."""
    from gmail_align.recipe import recipe_file
    from gmail_align.studies.language import study_file

    shutil.copy(recipe_file("smoke"), world / "recipe.toml")
    shutil.copy(study_file("table-5"), world / "study.toml")
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A red ball."}]
    seen = [{"from": "human", "value": "<image>\nWhat?"}, turns[1]]
    lines = (world / "train/images/shards/00000.jsonl").read_text().splitlines()
    problem = {"question": "What?", "choices": ["a", "b"], "answer": 1, "split": "test"}
    asked = {"id": "validation_Art_1", "question": "What?", "options": "['a', 'b']", "answer": "B"}
    said = [{"raw": "a ball", "sentid": 1}]
    whole: dict[str, Any] = {
        "conversations": [
            {"id": str(n), "image": json.loads(line)["id"], "conversations": seen}
            for n, line in enumerate(lines[:2])
        ],
        "problems": dict.fromkeys("12", problem),
        "responses": {"1": "B", "2": "A"},
        "sharegpt4v": [{"image": name, "conversations": turns} for name in names],
        "karpathy": {
            "images": [{"filename": n, "split": "train", "sentences": said} for n in names[:1]]
        },
    }
    for name, value in whole.items():
        (world / f"{name}.json").write_text(json.dumps(value))
    (world / "mmmu.jsonl").write_text(json.dumps(asked) + "\n" + json.dumps(asked | {"id": "x_2"}))
    (world / "named.token").write_text("".join(f"{name}#0\ta ball\n" for name in names))
    (world / "named.csv").write_text(
        "image_name,comment_number,comment\n" + "".join(f"{n},0,a ball\n" for n in names)
    )
    (world / "web.tsv").write_text("a ball\thttp://a/1.jpg\na cube\thttp://a/2.jpg\n")
    for folder in ("beside", "mine"):
        shutil.copytree(world / "photos", world / folder)
    rows = [json.dumps({"file_name": name, "text": "a ball"}) for name in names]
    (world / "beside/metadata.jsonl").write_text("\n".join(rows))
    for split, own in (("train", names[:6]), ("test", names[6:])):
        lines = [f"{name},a ball" for name in own]
        (world / f"mine/{split}.csv").write_text("\n".join(["image,caption", *lines]))


def fuzz(torturer: Torturer, name: str, mutations: int, seed: int) -> list[str]:
    """Damage one file again and again; return what was faulty."""
    path = torturer.world / name
    data, words = path.read_bytes(), torturer.words(TARGETS[name])
    torturer.clear()
    first = torturer.run(words).code
    faults = [] if first == 0 else [f"whole: exit {first}: {torturer.stderr()[-200:]}"]
    for number in range(mutations):
        source = random.Random(f"{seed}:{name}:{number}")
        path.write_bytes(mutate(data, source, path.suffix))
        torturer.clear()
        code = torturer.run(words, disturb=_watch).code
        told = torturer.stderr()
        if code not in (0, 2) or "Traceback" in told:
            kept = torturer.work / f"fault-{path.name}-{number}"
            kept.write_bytes(path.read_bytes())
            line = (told.strip().splitlines() or [""])[-1]
            faults.append(f"{number}: exit {code}: {line[-200:]} ({kept})")
    path.write_bytes(data)
    return faults


def _watch(child: int) -> None:
    """End a child that runs too long or takes too much memory."""
    limit = GIGABYTES * 2**30
    resource.prlimit(child, resource.RLIMIT_DATA, (limit, limit))
    resource.prlimit(child, resource.RLIMIT_CPU, (SECONDS, SECONDS))
    timer = threading.Timer(9 * SECONDS, _stop(child))
    timer.daemon = True
    timer.start()


def _stop(child: int) -> Callable[[], None]:
    def stop() -> None:
        try:
            with open(f"/proc/{child}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(child, signal.SIGKILL)
        except OSError:
            pass

    return stop


def main() -> int:
    """Damage the files that were named; exit with 1 when a command was at fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=20, help="of each file")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    warm_up()
    torturer = Torturer(Path(tempfile.mkdtemp(prefix="fuzz-")))
    needed = [TARGETS[name] for name in chosen.targets]
    torturer.make_world([*needed, *(_RESULT for one in needed if "{world}/result" in one)])
    prepare(torturer)
    wrong = 0
    for name in chosen.targets:
        faults = fuzz(torturer, name, chosen.mutations, chosen.seed)
        wrong += len(faults)
        print(f"{name:44} {chosen.mutations} mutations, {len(faults)} faults", flush=True)
        for fault in faults[:8]:
            print(f"    {fault}", flush=True)
    print(f"all: {len(chosen.targets) * chosen.mutations} mutations, {wrong} faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
