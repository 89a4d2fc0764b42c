"""The stage: captions become generated images, shard by shard, resumable, on any engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, Draft, begin, write_bytes
from gmail_align.data.captions import CAPTIONS
from gmail_align.data.images import (
    Quarantined,
    check_quarantine,
    finish_images,
    read_shard,
    shard_name,
)
from gmail_align.engine import Engine, Job, Part, run_shards
from gmail_align.errors import ArtifactError
from gmail_align.progress import say
from gmail_align.synthesis.card import CARD, dataset_card
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.pipelines import choose_dtype
from gmail_align.synthesis.shards import PARTS, Origin, Shard, ShardMaker, split_captions
from gmail_align.synthesis.weights import find_pipeline, revision_of, weights_fingerprint

_ELSEWHERE = {
    "model",
    "revision",
    "variant",
    "device",
    "batch_size",
    "compile",
    "writers",
    "limit_quarantine",
    "seed",
}
"""Settings that change rounding at most, or are recorded by name, fingerprint or seed."""
_LATER = {"safety": "flag"}
"""Settings that older artifacts lack, with what they mean there."""


def synthesize(
    config: SynthesisConfig, captions: Artifact, out: Path, engine: Engine | None = None
) -> Artifact:
    """Generate images from captions.

    Image ``{caption id}-{k}`` depends on the weights, the settings, the seed, the caption and
    ``k`` alone; a run that was killed goes on with the first batch that is missing. Batch size,
    device and engine are no part of the artifact's identity: they change rounding at most, and a
    run may go on with others.

    Args:
        config: Generator and settings.
        captions: The captions.
        out: Output folder; every machine of a cluster must see it under this path.
        engine: Where; None is this process.

    Returns:
        The ``images`` artifact.

    Raises:
        ModelError: the generator cannot be found, loaded or sampled.
        DataError: too many images are blank or not finite.
        ArtifactError: the input holds no captions, or the folder belongs to another run.
    """
    run = _Run(config, captions, out, engine or Engine(workers=1))
    if run.draft.complete:
        return run.draft.complete
    run_shards(run.shards, run.job, run.engine)
    return run.finish()


def synthesize_part(
    config: SynthesisConfig,
    captions: Artifact,
    out: Path,
    part: Part,
    engine: Engine | None = None,
) -> Artifact | None:
    """Generate the shards that belong to one part of a job; see :func:`synthesize`.

    The parts may run at the same time and in any order. The one that finds all shards written
    finishes the artifact; so does :func:`synthesize` later, which makes what is still missing.

    Returns:
        The ``images`` artifact, or None while shards of other parts are missing.
    """
    run = _Run(config, captions, out, engine or Engine(workers=1), part)
    if run.draft.complete:
        return run.draft.complete
    run_shards([shard for shard in run.shards if part.owns(shard.index)], run.job, run.engine)
    missing = [shard for shard in run.shards if not run.maker.done(shard)]
    if missing:
        say(f"{len(missing)} of {len(run.shards)} shards are still to be made, by other parts")
        return None
    if not run.draft.claim():
        return begin(out, **run.identity).complete
    return run.finish()


class _Run:
    """What both ways to run a job need."""

    def __init__(
        self,
        config: SynthesisConfig,
        captions: Artifact,
        out: Path,
        engine: Engine,
        part: Part | None = None,
    ) -> None:
        if captions.kind != "captions":
            raise ArtifactError(
                f"{captions.folder} holds {captions.kind}, but captions are needed here"
            )
        folder = find_pipeline(config.model, config.revision, config.variant)
        weights = weights_fingerprint(folder, config.variant)
        local = Path(config.model).expanduser().exists()
        origin = Origin(
            folder.resolve().name if local else config.model,
            weights if local else revision_of(folder),
            weights,
        )
        config = _settled(config, engine)
        self.config, self.captions, self.engine = config, captions, engine
        self.identity: dict[str, Any] = {
            "kind": "images",
            "config": _identity(config, origin),
            "inputs": {"captions": captions, "weights": weights},
            "seed": config.seed,
        }
        self.draft: Draft = begin(
            out, **self.identity, part=f"{part.number}-{part.of}" if part else ""
        )
        self.total = captions.counts["captions"] * config.images_per_caption
        most = config.shard_size * config.images_per_caption
        size = min(config.batch_size, most, max(self.total, 1))
        self.maker = ShardMaker(config, captions.path(CAPTIONS), out, origin, size)
        self._left_out: list[Quarantined] = []

    @property
    def job(self) -> Job[Shard]:
        return Job(
            self.maker,
            self.maker.done,
            after=self._check,
            size=self.maker.size,
            label="synthesize",
            unit="images",
            gpu=self.config.device == "cuda",  # cuda:1 is one that the user chose, here
        )

    @property
    def shards(self) -> list[Shard]:
        return split_captions(self.captions, self.config.shard_size)

    def _check(self, shard: Shard) -> None:
        found = read_shard(self.draft.path(shard_name(shard.index)))
        self._left_out.extend(found[1] if found else [])
        check_quarantine(self._left_out, self.total, self.config.limit_quarantine)

    def finish(self) -> Artifact:
        for leftover in self.draft.path("shards").glob(f"*{PARTS}"):
            shutil.rmtree(leftover)
        card = dataset_card(self.config, self.captions, self.draft.path("shards"))
        write_bytes(self.draft.path(CARD), card.encode())
        limit = self.config.limit_quarantine
        return finish_images(self.draft, limit_quarantine=limit, batch_size=self.maker.batch_size)


def _settled(config: SynthesisConfig, engine: Engine) -> SynthesisConfig:
    """Decide device and precision here, so that every worker has the same."""
    device = config.device
    if engine.on_ray and device == "auto":
        device = "cuda" if engine.gpus() else "cpu"
    if config.dtype == "auto" and engine.on_ray:
        dtype = "float16" if device.startswith("cuda") else "float32"
    else:
        dtype = str(choose_dtype(config)).removeprefix("torch.")
    if device == "auto":
        device = "cuda" if engine.gpus() else "cpu"
    return config.model_copy(update={"device": device, "dtype": dtype})


def _identity(config: SynthesisConfig, origin: Origin) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude=_ELSEWHERE)
    kept = {key: value for key, value in settings.items() if _LATER.get(key, ...) != value}
    return {**kept, "model": origin.generator}
