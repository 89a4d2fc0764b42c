"""The stage: features of both sides in, the generated head alone and aligned features out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from gmail_align.alignment.feature_config import FeatureAlignConfig
from gmail_align.alignment.feature_data import FeatureSources, FeatureTask, open_task
from gmail_align.alignment.feature_guard import RAW, SHIFT, Choice, choose, judge
from gmail_align.alignment.feature_head import Rows, Space, mapped, new_residual
from gmail_align.alignment.feature_training import Learner
from gmail_align.artifacts import MANIFEST, Artifact, atomic_file, begin, beside
from gmail_align.encoders.feature_map import KIND, FeatureMap
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.store import open_features
from gmail_align.progress import say
from gmail_align.training.events import EVENTS
from gmail_align.training.loop import CHECKPOINT

ALIGNED: Final = "generated.npy"
"""Aligned rows of the generated features, in their order."""
_WORK: Final = "work"


def align_features(
    config: FeatureAlignConfig,
    sources: FeatureSources,
    out: Path,
    *,
    seed: int = 0,
    apply: Sequence[Path] = (),
) -> Artifact:
    """Learn the generated head alone, on features of any encoder; a ``feature_head`` artifact.

    The guard compares the head after some steps, its start, the mean shift and the features as they
    are, on real images that were held out of the fit. What it keeps is fitted to all real images.

    Args:
        config: Head, terms, optimisation and guard.
        sources: Features, and what joins their rows.
        out: Folder of the head and of ``generated.npy``.
        seed: Of the held-out parts, the head and the batches.
        apply: Further ``.npy`` files of features; their aligned rows go to ``OUT-applied``.

    Raises:
        ConfigError: neither pairs nor classes are given, every weight is 0, or two files to apply
            the head to have one name.
        DataError: a file cannot be used, or there is too little to hold out.
        TrainingError: the loss is not finite.
    """
    _check(config, apply)
    done = (out / MANIFEST).exists()
    task = None if done else open_task(sources)  # what cannot be used leaves nothing
    further = {path.name: open_features(path).array for path in apply}
    for name, array in further.items():
        if task is not None and array.shape[1] != task.real.array.shape[1]:
            width = task.real.array.shape[1]
            raise DataError(f"{name} has {array.shape[1]} columns, not {width}: use one encoder")
    draft = begin(out, KIND, config.model_dump(mode="json"), sources.inputs(), seed)
    made = draft.complete
    if made is None:
        assert task is not None, "begin would have found the manifest"
        head, choice = _learn(config, task, out, seed)
        head.save(out)
        _write_mapped(head, task.generated.array, draft.path(ALIGNED))
        for name in (CHECKPOINT, EVENTS):
            draft.path(name).unlink(missing_ok=True)
        shutil.rmtree(draft.path(_WORK), ignore_errors=True)
        counts = {"real": len(task.real.ids), "generated": len(task.generated.ids)}
        made = draft.finish(counts, **choice.notes())
    if further:
        head = FeatureMap.load(out)
        for name, array in further.items():
            _write_mapped(head, array, beside(out, "-applied") / name)
    return made


def _check(config: FeatureAlignConfig, apply: Sequence[Path]) -> None:
    """Refuse settings that train nothing, and files that would overwrite each other."""
    weights = config.weights.model_dump()
    if config.head != "none" and not any(own for name, own in weights.items() if name != "hold"):
        raise ConfigError("every weight but hold is 0: give one term a weight, or set head to none")
    names = [path.name for path in apply]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two files to apply the head to are named {twice}: rename one")


def _learn(
    config: FeatureAlignConfig, task: FeatureTask, out: Path, seed: int
) -> tuple[FeatureMap, Choice]:
    """Judge all candidates on held-out images, and fit what is kept to all of them."""
    space = Space.of(task.real, task.generated, config.components, seed)
    rows = Rows(space.project(task.real.array), space.project(task.generated.array))
    learner = Learner(task, space, rows, config, seed)
    unseen = task.groups.generated_alone
    by_group = config.judge == "classes" or (config.judge == "auto" and bool(unseen))
    whole = by_group or task.groups.classes is None
    choice = choose(judge(learner, whole, out / _WORK), seed, _measure(config, task, whole))
    say(choice.message)
    return _fitted(learner, choice, out), choice


def _measure(config: FeatureAlignConfig, task: FeatureTask, whole: bool) -> str:
    """Say what the guard compares."""
    if config.select == "align":
        return "minus the loss of Eq. 1 on held-out real images"
    if task.groups.classes is None:
        return "retrieval between held-out real images and generated ones"
    held = "classes" if whole else "real images"
    return f"accuracy on held-out {held} of a probe trained on generated images"


def _fitted(learner: Learner, choice: Choice, out: Path) -> FeatureMap:
    """Fit what was chosen to all real images that have generated ones, and the reverse."""
    space, rows, groups = learner.space, learner.rows, learner.task.groups
    if choice.kept == RAW:
        return FeatureMap.identity(len(space.centre))
    known = torch.isin(groups.real, groups.shared)
    real, generated = known.nonzero()[:, 0], groups.trained_on(known)
    if choice.kept == SHIFT:
        return space.lift(rows.start(SHIFT, real, generated), None, moved=True)
    name = learner.config.start
    start = rows.start(name, real, generated)
    residual = new_residual(learner.config, rows.real.shape[1], learner.seed)
    if not choice.step or residual is None:
        return space.lift(start, None, moved=True)
    learner.train(
        residual,
        start,
        real,
        lambda step: {"score": -float(abs(step - choice.step))},
        steps=choice.step,
        folder=out,
    )
    return space.lift(start, residual, moved=name != "identity")


def _write_mapped(head: FeatureMap, features: torch.Tensor, path: Path) -> None:
    """Write mapped rows as float32, some at a time."""
    head(features[:1].float())  # other widths are refused before anything is written
    with atomic_file(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": tuple(features.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in mapped(head, features):
            file.write(block.numpy().tobytes())
