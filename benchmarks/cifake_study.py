"""What generated images are worth on real photos: CIFAKE, features of a MobileNetV2, five seeds.

    python benchmarks/cifake.py --data DATA --out FEATURES --each 500
    python benchmarks/cifake_study.py --features FEATURES --out FOLDER

A seed draws ``--train`` real photos and as many generated images a class; the other real photos are
tested on. Of the real photos, the first 3, 30, ... a class are given to every method. Rows: a probe
trained on real photos alone; on generated images as they are, moved by each training-free map, by
the control (the same head, drawn to generated images of its class in the place of real ones), and
by ``gmail-align align features`` at its defaults, which chooses by itself; and each of these with
the real photos. ``strict``: methods see real photos of five classes; the probe learns the other
five from generated images. Features are first cut to the 256 principal components of all images,
and everything is judged by :func:`class_transfer`. FOLDER/cifake.json keeps every number.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmail_align.alignment.feature_config import FeatureAlignConfig
from gmail_align.alignment.feature_data import FeatureSources, open_task
from gmail_align.alignment.feature_head import Rows, Space, new_residual
from gmail_align.alignment.feature_run import ALIGNED, align_features
from gmail_align.alignment.feature_training import Learner
from gmail_align.alignment.training_free import MAPS, Moments
from gmail_align.data.labels import open_labels
from gmail_align.metrics.transfer import class_transfer
from gmail_align.progress import set_quiet

SEEDS, COMPONENTS, STUDENT = 5, 256, 2.776
"""STUDENT: the 97.5% point of Student's t with four degrees of freedom."""


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=300, help="images a class and side")
    parser.add_argument("--budgets", type=int, nargs="+", default=[300, 30, 3, 100, 10])
    given = parser.parse_args()
    set_quiet(True)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "cifake.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    real, generated = cut(*(read(given.features, side) for side in ("real", "generated")))
    for budget in given.budgets:
        for seed in range(SEEDS):
            settings = ["same", "strict"] if budget == max(given.budgets) else ["same"]
            for setting in settings:
                name = f"{setting} {budget} {seed}"
                if name in rows:
                    continue
                start = time.process_time()
                draw = Draw(real, generated, given.train, budget, seed, setting == "strict")
                rows[name] = draw.rows(given.out / "work" / name.replace(" ", "-"))
                path.write_text(json.dumps(rows, indent=1) + "\n")
                print(
                    f"{name}: {time.process_time() - start:.0f} s of CPU; {rows[name]['message']}"
                )
    show(rows)


def read(folder: Path, side: str) -> Tensor:
    """Return features by class, (classes, images, d)."""
    array = torch.from_numpy(np.load(folder / f"{side}.npy"))
    names = open_labels(folder / f"{side}.txt").of([str(row) for row in range(len(array))])
    classes = sorted(set(names))
    own = [[at for at, name in enumerate(names) if name == one] for one in classes]
    return torch.stack([array[places[: min(map(len, own))]] for places in own])


def cut(*sides: Tensor) -> list[Tensor]:
    """Return the first principal components of both sides, about the mean of each."""
    spread = sum(
        (Moments.of(one.reshape(-1, one.shape[2])).covariance for one in sides), torch.zeros(())
    )
    axes = torch.linalg.eigh(spread)[1][:, -COMPONENTS:].float()
    return [one @ axes for one in sides]


class Draw:
    """One seed's images: what is trained on, what methods may see, what is tested on."""

    def __init__(
        self, real: Tensor, generated: Tensor, train: int, budget: int, seed: int, strict: bool
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        mine = torch.randperm(real.shape[1], generator=rng)
        theirs = torch.randperm(generated.shape[1], generator=rng)[:train]
        order = torch.randperm(len(real), generator=rng)
        self.seed, self.budget, every = seed, budget, torch.arange(len(real))
        self.seen = order[: len(real) // 2].sort().values if strict else every
        judged = order[len(real) // 2 :].sort().values if strict else every
        self.judged = judged.tolist()
        self.generated = generated[:, theirs]
        self.real = real[:, mine[:budget]]
        self.test = real[judged][:, mine[train:]]

    def rows(self, folder: Path) -> dict:
        """Return the accuracy of every row."""
        flat = self.generated.reshape(-1, self.generated.shape[2])
        known = self.real[self.seen].reshape(-1, flat.shape[1])
        matched = self.generated[self.seen].reshape(-1, flat.shape[1])
        moments = Moments.of(matched), Moments.of(known)
        sources = self.write(folder)
        made = align_features(FeatureAlignConfig(), sources, folder / "head", seed=self.seed)
        sets = {"raw": flat, "control": self.control(sources)}
        sets |= {name: fit(*moments)(flat) for name, fit in MAPS.items()}
        sets["gmail"] = torch.from_numpy(np.load(made.folder / ALIGNED))
        notes = made.manifest["notes"]
        found = {"real": self.accuracy(None), "kept": notes["kept"], "message": notes["message"]}
        for name, rows in sets.items():
            by_class = rows.reshape(self.generated.shape)
            found[name] = self.accuracy(by_class)
            if len(self.seen) == len(self.real):
                found[f"real + {name}"] = self.accuracy(by_class, self.real)
        return found

    def write(self, folder: Path) -> FeatureSources:
        """Write what the command line would be given."""
        folder.mkdir(parents=True, exist_ok=True)
        sides = {"real": self.real[self.seen], "generated": self.generated}
        classes = {"real": self.seen.tolist(), "generated": range(len(self.generated))}
        for side, rows in sides.items():
            np.save(folder / f"{side}.npy", rows.reshape(-1, rows.shape[2]).numpy())
            names = [f"{one}\n" for one in classes[side] for _ in range(rows.shape[1])]
            (folder / f"{side}.txt").write_text("".join(names))
        paths = [folder / f"{name}" for name in ("real.npy", "generated.npy")]
        return FeatureSources(*paths, None, folder / "real.txt", folder / "generated.txt")

    def control(self, sources: FeatureSources) -> Tensor:
        """Return generated features by a head that saw generated images alone."""
        config = FeatureAlignConfig(start="identity")
        both = FeatureSources(
            sources.generated,
            sources.generated,
            None,
            sources.generated_classes,
            sources.generated_classes,
        )
        task = open_task(both)
        space = Space.of(task.real, task.generated, config.components, self.seed)
        rows = Rows(*(space.project(one.array) for one in (task.real, task.generated)))
        every = torch.arange(len(rows.real))
        start = rows.start("identity", every, every)
        residual = new_residual(config, rows.real.shape[1], self.seed)
        learner = Learner(task, space, rows, config, self.seed)
        steps = config.optim.steps
        learner.train(residual, start, every, lambda step: {"score": float(step)}, steps=steps)
        return space.lift(start, residual, moved=False)(task.generated.array).detach()

    def accuracy(self, generated: Tensor | None, real: Tensor | None = None) -> float:
        """Train a probe on images by class, and test it on the real ones held back."""
        sides = [self.real if generated is None else generated]
        sides += [] if real is None else [real]
        picked = [side[self.judged] for side in sides]
        train = torch.cat([side.reshape(-1, side.shape[2]) for side in picked])
        labels = torch.cat([labels_of(side) for side in picked])
        test = self.test.reshape(-1, train.shape[1])
        hits = class_transfer(train, labels, test, labels_of(self.test))
        return float(hits.mean())


def labels_of(side: Tensor) -> Tensor:
    """Return the class of each row of images by class."""
    return torch.arange(len(side)).repeat_interleave(side.shape[1])


def show(rows: dict) -> None:
    """Print means over seeds, and paired differences with 95% intervals."""
    tables: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for name, found in rows.items():
        for row, value in found.items():
            tables[name.rsplit(" ", 1)[0]][row].append(value)
    for setting, table in tables.items():
        print(f"\n{setting} real photos a class; kept: {', '.join(table.pop('kept'))}")
        table.pop("message")
        for row, values in table.items():
            line = f"  {row:20} {np.mean(values):.4f}"
            mixed = "real + " if row.startswith("real + ") else ""
            for other in ("raw", "mean_shift"):
                if row != f"{mixed}{other}" and row != "real":
                    gap = np.subtract(values, table[mixed + other])
                    half = STUDENT * gap.std(ddof=1) / SEEDS**0.5 if len(gap) == SEEDS else np.nan
                    line += f"  {other} {gap.mean():+.4f} ({gap.mean() - half:+.4f} to "
                    line += f"{gap.mean() + half:+.4f})"
            print(line)


if __name__ == "__main__":
    main()
