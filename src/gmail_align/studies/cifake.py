"""What generated images are worth on real photos: CIFAKE, features of a MobileNetV2, five seeds.

A seed draws real photos and as many generated images of each class; the other real photos are
tested on. Of the real photos, the first 3, 10, ... of each class are given to every method. Rows: a
probe trained on real photos alone; on generated images as they are, moved by each training-free
map, by the control (the same head, drawn to generated images of its class in the place of real
ones), and by ``gmail-align align features`` at its defaults, which chooses by itself; and each of
these with the real photos. In the *strict* column the methods see real photos of five classes, and
the probe learns the other five from generated images. Features are first cut to the 256 principal
components of all images, and everything is judged by :func:`class_transfer`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from gmail_align.alignment.feature_config import FeatureAlignConfig
from gmail_align.alignment.feature_data import FeatureSources, open_task
from gmail_align.alignment.feature_head import Rows, Space, new_residual
from gmail_align.alignment.feature_run import ALIGNED, align_features
from gmail_align.alignment.feature_training import Learner
from gmail_align.alignment.training_free import MAPS, Moments
from gmail_align.artifacts import fingerprint, write_json
from gmail_align.config import load_json
from gmail_align.errors import ArtifactError
from gmail_align.metrics.transfer import class_transfer
from gmail_align.progress import say
from gmail_align.runtime import versions
from gmail_align.studies.cifake_features import cifake_features
from gmail_align.studies.numbers import mean_over
from gmail_align.studies.result import ShownColumn, ShownRow, StudyResult, TestedClaim
from gmail_align.studies.run import StudyOptions
from gmail_align.workflow.summary import verdict_of

COMPONENTS: Final = 256
TRAIN: Final = 300
"""Images of each class and kind that a seed trains on, where there are so many."""
BUDGETS: Final = (3, 10, 30, 100, 300)
SEEDS: Final = 5
ROWS: Final = {
    "real": ("Photos alone", ""),
    "raw": ("Generated as real", "no alignment at all"),
    "control": ("Control", "the same head, no real image"),
    "mean_shift": ("Mean shift", "training-free"),
    "shift_scale": ("Shift and scale", "training-free, as in ReAlign"),
    "coral": ("CORAL", "training-free"),
    "gmail": ("GMAIL", "align features, as it chooses by itself"),
}
CLAIMS: Final = (
    ("GMAIL beats generated images taken for real", "raw", "alone"),
    ("GMAIL beats the mean shift", "mean_shift", "alone"),
    (
        "On classes without a real photo, GMAIL beats generated images taken for real",
        "raw",
        "strict",
    ),
    ("With the photos, GMAIL beats generated images taken for real", "raw", "mixed"),
)
"""Name, row that GMAIL is compared with, and kind of column, at the largest number of photos."""


def cifake(data: Path, options: StudyOptions) -> StudyResult:
    """Run the draws that are missing, and return the table.

    Args:
        data: Folder with a zip of real and a zip of generated images (see
            :func:`gmail_align.studies.cifake_features.cifake_features`).
        options: How many seeds there are, and the work folder.

    Raises:
        DataError: the folder does not hold the images or the network.
    """
    home = options.work / "cifake"
    read = cifake_features(data, home)
    real, generated = cut(read.real, read.generated)
    train = min(TRAIN, real.shape[1] // 2, generated.shape[1])
    budgets = sorted({min(budget, train) for budget in BUDGETS})
    seeds = options.seeds or SEEDS
    place = home / f"draws-{read.fingerprint}-{train}.json"
    draws: dict[str, Any] = {}
    if place.exists():
        draws = load_json(place, ArtifactError, "delete it and run again")
    for budget in reversed(budgets):
        for seed in range(seeds):
            for setting in ("same", "strict") if budget == budgets[-1] else ("same",):
                name = f"{setting} {budget} {seed}"
                if name not in draws:
                    draw = Draw(real, generated, train, budget, seed, setting == "strict")
                    folder = home / f"{read.fingerprint}-{name.replace(' ', '-')}"
                    draws[name] = draw.rows(folder)
                    write_json(place, draws)
                    say(f"{name}: {draws[name]['message']}")
    return _result(draws, budgets, seeds, read.fingerprint)


def _result(
    draws: Mapping[str, Any], budgets: Sequence[int], seeds: int, made_from: str
) -> StudyResult:
    """Gather the draws into one table."""
    kinds = {"alone": "", "mixed": " + photos"}
    columns = [
        ShownColumn(name=f"{kind}_{budget}", label=f"{budget} photos a class{label}")
        for kind, label in kinds.items()
        for budget in budgets
    ]
    columns.append(ShownColumn(name="strict", label="Unseen classes"))
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(seeds):
        for budget in budgets:
            own = draws[f"same {budget} {seed}"]
            for row in ROWS:
                values[row][f"alone_{budget}"].append(own[row])
                if row != "real":
                    values[row][f"mixed_{budget}"].append(own[f"real + {row}"])
        for row in ROWS:
            values[row]["strict"].append(draws[f"strict {budgets[-1]} {seed}"][row])
    shown = [
        ShownRow(
            name=row,
            label=label,
            detail=detail,
            mark={"gmail": "ours", "real": "bound"}.get(row, ""),
            values={name: mean_over(own) for name, own in values[row].items()},
            seeds=dict(values[row]),
        )
        for row, (label, detail) in ROWS.items()
    ]
    applied = [draws[f"same {budgets[-1]} {seed}"]["kept"] for seed in range(seeds)]
    strict = [draws[f"strict {budgets[-1]} {seed}"]["kept"] for seed in range(seeds)]
    return StudyResult(
        study="cifake",
        title="What generated images are worth on real photos: CIFAKE",
        about="Accuracy on real photos that were held back, of a probe on MobileNetV2 features.",
        scale="real data",
        seeds=seeds,
        columns=tuple(columns),
        rows=tuple(shown),
        claims=tuple(_claim(claim, values, budgets[-1]) for claim in CLAIMS),
        notes=(
            "Intervals are 95% intervals of the mean over seeds, by Student's t; a difference is "
            "paired by seed. Seeds draw from one set of images, so they overlap.",
            f"Applied with the most photos: {', '.join(applied)}; on unseen classes: "
            f"{', '.join(strict)}.",
        ),
        made_from=fingerprint([made_from, dict(draws)]),
        versions=versions(),
    )


def _claim(
    claim: tuple[str, str, str], values: Mapping[str, Mapping[str, list[float]]], budget: int
) -> TestedClaim:
    """Compare GMAIL with another row, seed by seed."""
    name, other, kind = claim
    column = kind if kind == "strict" else f"{kind}_{budget}"
    gains = np.subtract(values["gmail"][column], values[other][column]).tolist()
    difference = mean_over(gains)
    return TestedClaim(
        name=name,
        better="gmail",
        worse=other,
        metric=column,
        verdict=verdict_of(difference.model_dump()),
        difference=difference,
    )


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

    def rows(self, folder: Path) -> dict[str, Any]:
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
        scores: dict[str, Any] = {
            "real": self.accuracy(None),
            "kept": notes["kept"],
            "message": notes["message"],
        }
        for name, rows in sets.items():
            by_class = rows.reshape(self.generated.shape)
            scores[name] = self.accuracy(by_class)
            if len(self.seen) == len(self.real):
                scores[f"real + {name}"] = self.accuracy(by_class, self.real)
        return scores

    def write(self, folder: Path) -> FeatureSources:
        """Write what the command line would be given."""
        folder.mkdir(parents=True, exist_ok=True)
        sides = {"real": self.real[self.seen], "generated": self.generated}
        classes = {"real": self.seen.tolist(), "generated": range(len(self.generated))}
        for side, rows in sides.items():
            np.save(folder / f"{side}.npy", rows.reshape(-1, rows.shape[2]).numpy())
            names = [f"{one}\n" for one in classes[side] for _ in range(rows.shape[1])]
            (folder / f"{side}.txt").write_text("".join(names))
        return FeatureSources(
            folder / "real.npy",
            folder / "generated.npy",
            real_classes=folder / "real.txt",
            generated_classes=folder / "generated.txt",
        )

    def control(self, sources: FeatureSources) -> Tensor:
        """Return generated features by a head that saw generated images alone."""
        config = FeatureAlignConfig(start="identity")
        own, classes = sources.generated, sources.generated_classes
        task = open_task(FeatureSources(own, own, real_classes=classes, generated_classes=classes))
        space = Space.of(task.real, task.generated, config.components, self.seed)
        rows = Rows(*(space.project(one.array) for one in (task.real, task.generated)))
        every = torch.arange(len(rows.real))
        start = rows.start("identity", every, every)
        residual = new_residual(config, rows.real.shape[1], self.seed)
        assert residual is not None, "the default head learns"
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
