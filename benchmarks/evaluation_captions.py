"""All caption metrics at Karpathy's size against pycocoevalcap's own sequence, in one run.

    python benchmarks/evaluation_captions.py [--images 5000] [--repeats 1]

Captions are COCO's val2014, which pycocoevalcap's jar carries: five references an image, and as
prediction one of them with some words replaced. Timed one after the other, on the same captions:
pycocoevalcap's scorers in its own order (tokenizer, BLEU, METEOR, ROUGE-L, CIDEr), and its METEOR
alone; METEOR and WMD here, each alone; everything here with 1,000 resamples of every metric,
without WMD and with it. The machine may be shared, so processor time is printed beside wall time,
and agreement beside both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import resource
import statistics
import time
import zipfile
from collections.abc import Callable
from typing import Any

from gmail_align.metrics.caption_scores import METRICS, WordVectors, compare_captioners
from gmail_align.metrics.java import jar
from gmail_align.metrics.statistics import estimates

STOCK = {"Bleu_1": "BLEU1", "Bleu_4": "BLEU4", "METEOR": "METEOR", "CIDEr": "CIDEr"}
References = dict[str, list[str]]
Predictions = dict[str, str]


def sample(images: int) -> tuple[Predictions, References]:
    """Return predictions and references of ``images`` images of COCO val2014."""
    with zipfile.ZipFile(jar("spice/spice-1.0.jar")) as archive:
        body = json.loads(archive.read("coco/annotations/captions_val2014.json"))
    human: References = {}
    for row in body["annotations"]:
        human.setdefault(str(row["image_id"]), []).append(row["caption"])
    rng = random.Random(0)
    names = rng.sample(sorted(human), images)
    references = {name: human[name][:5] for name in names}
    words = [word for name in names for word in references[name][0].split()]
    predictions = {}
    for name in names:
        said = rng.choice(references[name]).split()
        predictions[name] = " ".join(rng.choice(words) if rng.random() < 0.3 else w for w in said)
    return predictions, references


def stock(
    predictions: Predictions, references: References, only: str | None = None
) -> dict[str, float]:
    """Score as pycocoevalcap does, without SPICE; maybe with one scorer only."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def wrap(texts: Any) -> Any:
        return {name: [{"caption": text} for text in some] for name, some in texts.items()}

    with contextlib.redirect_stdout(io.StringIO()):
        human = PTBTokenizer().tokenize(wrap(references))
        said = PTBTokenizer().tokenize(wrap({name: [t] for name, t in predictions.items()}))
        found = {}
        if only is None:
            bleus, _ = Bleu(4).compute_score(human, said)
            found = {f"Bleu_{n}": value for n, value in enumerate(bleus, 1)}
        scorers = {"METEOR": Meteor, "ROUGE_L": Rouge, "CIDEr": Cider}
        for name in scorers if only is None else (only,):
            found[name] = scorers[name]().compute_score(human, said)[0]
    return found


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what ``call`` returns, its wall time and its processor time with its children's."""

    def used() -> float:
        return sum(
            usage.ru_utime + usage.ru_stime
            for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )

    start, before = time.monotonic(), used()
    found = call()
    return found, time.monotonic() - start, used() - before


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    import gensim
    import ot

    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}")
    print(f"Python {platform.python_version()}, gensim {gensim.__version__}, POT {ot.__version__}")
    predictions, references = sample(given.images)
    print(f"{given.images} images x 5 references, {given.repeats} repeats, medians")
    runs: dict[str, Callable[[], Any]] = {
        "pycocoevalcap, one after the other": lambda: stock(predictions, references),
        "pycocoevalcap, METEOR alone": lambda: stock(predictions, references, "METEOR"),
        "METEOR alone": lambda: compare_captioners(
            {"": predictions}, references, metrics=["METEOR"], resamples=1
        ),
        "WMD alone": lambda: compare_captioners(
            {"": predictions}, references, metrics=["WMD"], word_vectors=WordVectors(), resamples=1
        ),
        "every metric but WMD": lambda: compare_captioners(
            {"": predictions}, references, metrics=METRICS[:-1]
        ),
        "every metric": lambda: compare_captioners(
            {"": predictions}, references, word_vectors=WordVectors()
        ),
    }
    kept: dict[str, Any] = {}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(given.repeats):
        for name, call in runs.items():
            kept[name], seconds, used = timed(call)
            wall[name].append(seconds)
            print(f"  {name:36} {seconds:7.1f} s wall {used:7.1f} s CPU", flush=True)
    middle = {name: statistics.median(times) for name, times in wall.items()}
    ours = kept["every metric"]
    for base in list(runs)[:4]:
        for name in ("every metric but WMD", "every metric"):
            print(f"{name} / {base}: {middle[name] / middle[base]:.2f} of the wall time")
    theirs = kept["pycocoevalcap, one after the other"]
    apart = max(abs(ours.metrics[our].value - theirs[their]) for their, our in STOCK.items())
    print(f"largest difference of a corpus value: {apart:.1e}")
    _, seconds, used = timed(lambda: estimates(ours.columns))
    print(f"bootstrap of {len(ours.columns)} metrics: {seconds:.2f} s wall {used:.2f} s CPU")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process: {peak:.2f} GB")


if __name__ == "__main__":
    main()
