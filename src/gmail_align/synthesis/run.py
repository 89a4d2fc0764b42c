"""The stage: captions become generated images, shard by shard, resumable, on any engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, Draft, begin, sha256_file, write_bytes, write_json
from gmail_align.data.captions import CaptionShard, cut_captions
from gmail_align.data.images import (
    INDEX,
    Quarantined,
    check_quarantine,
    index_images,
    read_shard,
    shard_files,
    shard_name,
)
from gmail_align.encoders.folder import find_folder, folder_fingerprint
from gmail_align.engine import Engine, Job, Part, run_shards
from gmail_align.errors import ModelError
from gmail_align.extras import require
from gmail_align.mirror import Mirror
from gmail_align.progress import say
from gmail_align.remote import names_below
from gmail_align.runtime import resolve_device
from gmail_align.synthesis.card import CARD, dataset_card, survey_shards
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.croissant import CROISSANT, croissant
from gmail_align.synthesis.shards import PARTS, Generator, ShardMaker
from gmail_align.synthesis.weights import find_pipeline, weights_fingerprint

_NOT_IDENTITY = {
    *("model", "revision", "variant", "seed", "adapter", "judge"),
    *("device", "batch_size", "compile", "writers", "limit_quarantine"),
}
"""Settings that are recorded by name, fingerprint or seed, or that change rounding at most."""


def synthesize(
    config: SynthesisConfig,
    captions: Artifact,
    out: Path,
    engine: Engine | None = None,
    *,
    mirror: Mirror | None = None,
) -> Artifact:
    """Generate images from captions.

    Image ``{caption id}-{k}`` depends on the weights, the settings, the seed, the caption and
    ``k`` alone; a run that was killed goes on with the first batch that is missing. Batch size,
    device and engine do not belong to the artifact's identity. They change rounding at most, so a
    run may go on with others; with ``dtype="auto"`` that includes the precision of the device.

    Args:
        config: Generator and settings.
        captions: The captions.
        out: Output folder; every machine of a cluster must see it under this path.
        engine: Where; None is this process.
        mirror: Gets each finished shard and, last, the manifest; shards that it has are not made.

    Returns:
        The ``images`` artifact.

    Raises:
        ModelError: the generator cannot be found, loaded or sampled.
        DataError: too many images are blank or not finite.
        ArtifactError: the input does not hold captions, or the folder belongs to another run.
        MissingExtraError: diffusers is not installed.
    """
    made = synthesize_part(config, captions, out, None, engine, mirror=mirror)
    assert made is not None, "all shards were made here"
    return made


def synthesize_part(
    config: SynthesisConfig,
    captions: Artifact,
    out: Path,
    part: Part | None,
    engine: Engine | None = None,
    *,
    mirror: Mirror | None = None,
) -> Artifact | None:
    """Generate the shards of one part of a job (None: all of them); see :func:`synthesize`.

    The parts may run at the same time and in any order. The one that finds all shards written
    finishes the artifact; so does :func:`synthesize` later, which makes what is still missing.
    With a mirror, parts need no folder that they share: the last one takes all shards from there.

    Returns:
        The ``images`` artifact, or None while shards of other parts are missing.
    """
    run = _Run(config, captions, out, engine or Engine(workers=1), part)
    made = run.draft.complete
    if made is None:
        require("diffusers", "synthesis")
        run.copy_to(mirror)
        own = [shard for shard in run.shards if part is None or part.owns(shard.index)]
        run_shards(own, run.job, run.engine)
        missing = 0 if part is None else run.missing()
        if missing:
            say(f"{missing} of {len(run.shards)} shards are still to be made, by other parts")
            return None
        alone = part is None or run.draft.claim()
        made = run.finish() if alone else begin(out, **run.identity).complete
    if mirror is not None and made is not None:
        mirror.complete(made)
    return made


class _Run:
    """One job, with the settings that all its workers share."""

    def __init__(
        self,
        config: SynthesisConfig,
        captions: Artifact,
        out: Path,
        engine: Engine,
        part: Part | None = None,
    ) -> None:
        self.config, self.captions, self.engine = config, captions, engine
        self.shards = cut_captions(captions, config.shard_size)
        folder = find_pipeline(config.model, config.revision, config.variant)
        weights = weights_fingerprint(folder, config.variant)
        local = Path(config.model).expanduser().exists()
        name = folder.resolve().name if local else config.model
        inputs: dict[str, Artifact | str] = {"captions": captions, "weights": weights}
        if config.adapter:
            inputs["adapter"] = _fingerprint_file(Path(config.adapter))
        if config.best_of > 1:
            inputs["judge"] = folder_fingerprint(find_folder(config.judge))
        revision = weights if local else folder.resolve().name
        adapter = str(inputs["adapter"]) if config.adapter else None
        generator = Generator(name, revision, weights, adapter)
        settings = config.model_dump(mode="json", exclude=_NOT_IDENTITY)
        self.identity: dict[str, Any] = {
            "kind": "images",
            "config": {**settings, "model": name},
            "inputs": inputs,
            "seed": config.seed,
        }
        self.draft: Draft = begin(
            out, **self.identity, part=f"{part.number}-{part.of}" if part else ""
        )
        self.total = captions.counts["captions"] * config.images_per_caption
        most = min(config.shard_size * config.images_per_caption, max(self.total, 1))
        size = min(config.batch_size, most * config.best_of)
        self.maker = ShardMaker(_settled(config, engine), captions, out, generator, size)
        self._left_out: list[Quarantined] = []
        self._cut = 0

    def copy_to(self, mirror: Mirror | None) -> None:
        """Send shards to a mirror, and take from there what other machines have made."""
        if mirror is not None:
            mirror.begin(self.draft)
            self.maker.mirror = mirror

    def missing(self) -> int:
        """Count the shards that nobody has made; where that is none, all of them come here."""
        mirror = self.maker.mirror
        there = {} if mirror is None else names_below(mirror.url)
        left = [
            shard
            for shard in self.shards
            if read_shard(self.draft.path(shard_name(shard.index))) is None
            and shard_files(shard.index)[-1] not in there
        ]
        return len(left) or sum(not self.maker.done(shard) for shard in self.shards)

    @property
    def job(self) -> Job[CaptionShard]:
        return Job(
            self.maker,
            self.maker.done,
            after=self._check,
            size=self.maker.size,
            label="synthesize",
            unit="images",
            gpu=self.maker.config.device == "cuda",  # cuda:1 is one that the user chose, here
        )

    def _check(self, shard: CaptionShard) -> None:
        """Look at a finished shard: too many images left out end the run, cut prompts are told."""
        self.maker.done(shard)  # takes it from the mirror where another machine made it
        records, left_out = read_shard(self.draft.path(shard_name(shard.index))) or ([], [])
        self._left_out.extend(left_out)
        check_quarantine(self._left_out, self.total, self.config.limit_quarantine)
        cut = [record for record in records if record.tokens_cut]
        if cut and not self._cut:
            say(
                f"the generator does not read the last {cut[0].tokens_cut} tokens of the prompt of "
                f"{cut[0].id}: longer prompts are cut, and the manifest counts them"
            )
        self._cut += len(cut)

    def finish(self) -> Artifact:
        for leftover in self.draft.path("shards").glob(f"*{PARTS}"):
            shutil.rmtree(leftover)
        survey = survey_shards(self.draft.path("shards"))
        card = dataset_card(self.config, self.captions, survey)
        write_bytes(self.draft.path(CARD), card.encode())
        if survey.cut:
            say(f"{survey.cut} of {survey.images} prompts are longer than the generator reads")
        counts = index_images(self.draft, self.config.limit_quarantine)
        index = self.draft.path(INDEX)
        described = croissant(self.config, index, counts["images"], survey.first)
        write_json(self.draft.path(CROISSANT), described)
        return self.draft.finish(
            counts,
            batch_size=self.maker.batch_size,
            dtype=self.maker.config.dtype,
            prompts_cut=survey.cut,
        )


def _fingerprint_file(adapter: Path) -> str:
    if adapter.suffix != ".safetensors" or not adapter.is_file():
        raise ModelError(f"there is no adapter {adapter}: give a .safetensors file of LoRA weights")
    return sha256_file(adapter)[:16]


def _settled(config: SynthesisConfig, engine: Engine) -> SynthesisConfig:
    """Decide device and precision here, so that every worker has the same."""
    device = config.device
    if device == "auto":
        device = "cuda" if engine.gpus() else "cpu"
    elif not engine.on_ray:
        resolve_device(device)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    return config.model_copy(update={"device": device, "dtype": dtype})
