"""What ClipCap is trained on: image features with their captions, as batches of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gmail_align.captioning.caption_set import CaptionSet
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.clipcap.model import ClipCap, Scaling
from gmail_align.captioning.config import VALIDATION_BATCH
from gmail_align.captioning.decode import Decoding
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData
from gmail_align.captioning.prompt import CaptionBatch
from gmail_align.captioning.provenance import (
    joint_provenance,
    provenance,
    require_one_encoder,
)
from gmail_align.captioning.tokens import TokenTable
from gmail_align.data.batches import batch_indices
from gmail_align.encoders.language import LanguageModel
from gmail_align.errors import ConfigError
from gmail_align.runtime import resolve_device, stable_seed


@dataclass(frozen=True)
class ClipCapTraining:
    """The data of one training, and the captioner that is trained."""

    captioner: ClipCap
    captions: CaptionSet
    validation: CaptionSet | None
    config: ClipCapConfig
    temporary_files: tuple[Path, ...] = ()

    @classmethod
    def check(cls, config: ClipCapConfig, data: CaptionerData) -> None:
        """Refuse images of different encoders.

        Raises:
            ConfigError: there are no images.
            DataError: features are of captions, or come from different encoders.
        """
        if not data.images:
            raise ConfigError("ClipCap is trained on images: give image features and captions")
        sets = [*data.images, *([data.validation] if data.validation else [])]
        encoder = provenance(data.images[0].features)["encoder"]
        require_one_encoder(encoder, [images.features for images in sets])

    @classmethod
    def prepare(
        cls,
        config: ClipCapConfig,
        data: CaptionerData,
        language: LanguageModel,
        out: Path,
        seed: int,
    ) -> ClipCapTraining:
        """Read the captions, and put a freshly drawn mapper before the language model.

        Raises:
            DataError: a caption is empty, or features differ in width.
            ModelError: the language model has too few positions, or the mapper's heads do not
                divide its width.
        """
        end = not config.faults.untrained_end

        def read(sets: Sequence[CaptionedImages]) -> CaptionSet:
            return CaptionSet.read(sets, language, config.max_tokens, end=end)

        language.require_positions(config.prefix_length, config.max_tokens)
        if config.shape.kind == "transformer":
            language.require_heads(config.shape.heads)
        captions = read(data.images)
        norm = captions.mean_norm() if config.norm == "mean" else config.norm
        ends = (language.token_of("."),) if config.faults.end_at_full_stop else ()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(seed, "mapper"))
            captioner = ClipCap(
                language,
                captions.width,
                config.shape,
                scaling=Scaling(config.normalise, norm, config.faults.norm_mismatch),
                tuned=config.trains_language_model,
                decoding=Decoding(beam=config.beam, max_tokens=config.max_tokens, ends=ends),
                identity=joint_provenance(images.features for images in data.images),
            )
        captioner.to(resolve_device(config.device)).train()
        validation = read([data.validation]) if data.validation else None
        return cls(captioner, captions, validation, config)

    @property
    def tokens(self) -> TokenTable:
        """The captions that are trained."""
        return self.captions.tokens

    @property
    def counts(self) -> dict[str, int]:
        """What was trained on, for the manifest."""
        return {"captions": len(self.captions), "images": len(self.captions.images())}

    def batch(self, step: int, seed: int) -> CaptionBatch:
        """Return the batch of a step, a pure function of ``(seed, step)``."""
        size = self.config.batch_size
        rows = torch.from_numpy(batch_indices(step, size, len(self.captions), seed))
        batch = self.captions.batch(rows, self.captioner.prompt)
        if self.config.faults.zero_is_padding:
            batch = batch._replace(mask=batch.mask & (batch.input_ids != 0))
        return batch

    def held_out(self) -> Iterator[CaptionBatch]:
        """Yield the validation captions in order."""
        if self.validation is not None:
            for rows in torch.arange(len(self.validation)).split(VALIDATION_BATCH):
                yield self.validation.batch(rows, self.captioner.prompt)


TRAINING = ClipCapTraining
