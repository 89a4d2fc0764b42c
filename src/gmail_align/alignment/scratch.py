"""The stage that trains a whole CLIP from scratch: text terms only, every weight.

The same loop, losses, batches and held-out images as the alignment; what comes out is a plain
Hugging Face CLIP that ``align`` takes as its base.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from gmail_align.alignment.config import ScratchConfig
from gmail_align.alignment.pair_index import hold_out
from gmail_align.alignment.score import first_is_own
from gmail_align.artifacts import MANIFEST, Artifact, begin, load
from gmail_align.data.batches import Batches
from gmail_align.data.captions import Caption, iter_captions
from gmail_align.data.images import ImageStore
from gmail_align.data.mapped import blocks
from gmail_align.encoders.backbones.clip import ClipBackbone
from gmail_align.encoders.folder import (
    find_folder,
    folder_fingerprint,
    model_files,
    no_bars,
    read_config,
)
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.errors import DataError, ModelError
from gmail_align.features.pixels import Pixels, prepare_pixels, read_pixels
from gmail_align.features.rows import prefetch
from gmail_align.features.run import TEXTS_CUT
from gmail_align.progress import set_quiet
from gmail_align.runtime import resolve_device, stable_seed
from gmail_align.training.distributed import ranks
from gmail_align.training.loop import CHECKPOINT, fit, pairs_rate
from gmail_align.training.losses import contrastive_text_losses

_WORK = "work"
_LARGEST_SCALE = math.log(100.0)
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Data:
    """Captions as token ids, and the pixels that they belong to."""

    pixels: Pixels
    ids: Int[Tensor, "n t"]
    mask: Int[Tensor, "n t"]
    image: Rows
    """Shape (n,): row of each caption's image."""
    text: Rows
    """Shape (n,): one number a text."""
    cut: int
    """Captions that are longer than the text tower reads."""

    def batch(self, places: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return pixels, token ids and mask of each distinct text, and which text is whose."""
        _, first, whose = np.unique(self.text[places], return_index=True, return_inverse=True)
        rows = torch.from_numpy(places[first])
        return (
            self.pixels.array[torch.from_numpy(self.image[places])],
            self.ids[rows],
            self.mask[rows],
            torch.from_numpy(whose.reshape(-1)),
        )


def train_clip(
    config: ScratchConfig,
    captions: Artifact,
    images: Artifact,
    base: Path,
    out: Path,
    *,
    seed: int = 0,
) -> Artifact:
    """Train a CLIP of the shape of ``base`` from random weights; an artifact of kind ``clip``.

    A part of the images is held out with all their captions, and the step with the lowest loss on
    them is kept. A killed run goes on from its last checkpoint and ends with the same bytes.

    Args:
        config: Optimisation.
        captions: Captions of the images.
        images: The images; captions of others are left out.
        base: A CLIP folder whose shape, tokenizer and preprocessing are taken, but no weight.
        out: Folder of the CLIP, in Hugging Face's format.
        seed: Seed of the weights, the held-out part and the batches.

    Raises:
        DataError: the captions describe none of the images, or there are too few images.
        ModelError: the base is not a CLIP folder.
        TrainingError: the loss is not finite.
    """
    folder = find_folder(base)
    identity = config.model_dump(mode="json", exclude={"device"})
    inputs: dict[str, Artifact | str] = {"captions": captions, "images": images}
    here, draft = ranks(), None
    if not here.first:
        set_quiet(True)  # one process speaks for all
    if here.first or (out / MANIFEST).exists():
        draft = begin(out, "clip", identity, {**inputs, "base": folder_fingerprint(folder)}, seed)
        if draft.complete is not None:
            return draft.complete
    here.wait()
    model = _untrained(folder, seed).to(resolve_device(config.device))
    data = here.first_alone(lambda: _prepare(captions, images, folder, model, out / _WORK))
    held = hold_out(data.image, config.holdout, config.holdout_limit, seed)
    training = _Training(model, data, held, Preprocess.from_folder(folder), config)
    notes = training.run(out, seed) | ({TEXTS_CUT: data.cut} if data.cut else {})
    if draft is not None:
        _save(model, folder, out)
        counts = {"captions": int((~held).sum()), "images": len(np.unique(data.image[~held]))}
        draft.finish({**counts, "held_out_captions": int(held.sum())}, **notes)
    here.wait()
    return load(out)


def _save(model: CLIPModel, folder: Path, out: Path) -> None:
    """Write the model with the base's tokenizer and preprocessing, and clear up."""
    with no_bars():
        model.save_pretrained(out)
    for path in model_files(folder):
        if path.suffix not in (".safetensors", ".bin") and path.name != "config.json":
            shutil.copyfile(path, out / path.name)
    (out / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(out / _WORK, ignore_errors=True)


def _untrained(folder: Path, seed: int) -> CLIPModel:
    """Return a CLIP of the folder's shape with random weights."""
    config = read_config(folder)
    if config.get("model_type") != "clip":
        raise ModelError(f"{folder} is not a CLIP: train clip takes the shape of a CLIP folder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "scratch"))
        model = CLIPModel(CLIPConfig.from_pretrained(folder))
    return cast("CLIPModel", model.eval())  # no dropout, but gradients all the same


def _prepare(
    captions: Artifact, images: Artifact, folder: Path, model: CLIPModel, work: Path
) -> _Data:
    """Decode the images and tokenize the captions, once."""
    store = ImageStore(images)
    rows: list[Caption] = []
    for block in blocks(iter_captions(captions)):
        places = store.ids.rows(row.image_id for row in block)
        rows += compress(block, (places >= 0).tolist())
    if not rows:
        raise DataError(
            f"{captions.folder} does not describe any image of {images.folder}: pass captions and "
            "images of one data set"
        )
    names = list(dict.fromkeys(row.image_id for row in rows))
    made = prepare_pixels(images, Preprocess.from_folder(folder), work / "pixels", ids=names)
    pixels = read_pixels(made)
    texts, backbone = [row.text for row in rows], ClipBackbone(model)
    tokenizer = backbone.tokenizer(folder)
    ids, mask = backbone.tokenize(tokenizer, texts)
    cut = backbone.tell_cut(tokenizer, texts)
    numbers: dict[str, int] = {}
    text = [numbers.setdefault(line, len(numbers)) for line in texts]
    image = pixels.rows([row.image_id for row in rows]).numpy()
    return _Data(pixels, ids, mask, image, np.array(text, dtype=np.int64), cut)


class _Training:
    """One training of both towers, with the text loss alone."""

    def __init__(
        self,
        model: CLIPModel,
        data: _Data,
        held: npt.NDArray[np.bool_],
        preprocess: Preprocess,
        config: ScratchConfig,
    ) -> None:
        self.model, self.data, self.preprocess, self.config = model, data, preprocess, config
        self.train, self.kept = np.flatnonzero(~held), np.flatnonzero(held)

    def run(self, folder: Path, seed: int) -> dict[str, Any]:
        """Train, keep the best step and return the manifest's notes."""
        config, here = self.config, ranks()
        batches = Batches(
            self.data.image[self.train], config.batch_size, stable_seed(seed, "batches")
        )
        with prefetch(lambda n: self.train[batches.indices(n)], config.optim.steps) as fetch:

            def loss(step: int) -> dict[str, Tensor]:
                places = fetch(step)
                own = self.embed(places[here.part(len(places))])
                images, texts = (here.gather(side) for side in own)
                return {"total": self.contrast(images, texts, places)}

            report = fit(
                dict(self.model.named_parameters()),
                loss,
                config.optim,
                seed=seed,
                folder=folder,
                evaluate=self.measure,
                label="CLIP",
                rate=pairs_rate(config.batch_size),
            )
        scores = {row["step"]: row for row in report.scores}
        guard = {"start": report.scores[0], "kept": scores[report.best_step]}
        return {"best_step": report.best_step, "guard": guard, "speed": report.speed}

    def embed(self, places: Rows) -> tuple[Tensor, Tensor]:
        """Return features of the images and the texts of some captions, in fp32."""
        device, half = self.model.device, self.config.precision == "bfloat16"
        images, ids, mask, whose = (part.to(device) for part in self.data.batch(places))
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            pixels = self.preprocess.normalise(images)
            features, texts = embed_both(self.model, pixels, ids, mask)
        return features.float(), texts.float()[whose]

    def contrast(self, images: Tensor, texts: Tensor, places: Rows) -> Tensor:
        """Return CLIP's loss of some captions."""
        groups = np.stack([self.data.image[places], self.data.text[places]], axis=1)
        same = torch.from_numpy(groups).to(images.device)
        scale = self.model.logit_scale.clamp(max=_LARGEST_SCALE).exp()
        return contrastive_text_losses(images, texts, scale, same, self.config.positives).mean()

    def measure(self) -> dict[str, float]:
        """Measure the held-out captions: the loss, and R@1 among distinct images and texts.

        With class captions, that of images among texts is zero-shot accuracy.
        """
        step, kept = self.config.batch_size, self.kept
        parts = [self.embed(kept[start : start + step]) for start in range(0, len(kept), step)]
        images, texts = (torch.cat(side) for side in zip(*parts, strict=True))
        loss = float(self.contrast(images, texts, kept))
        (_, rows, image), (_, columns, text) = (
            np.unique(of[kept], return_index=True, return_inverse=True)
            for of in (self.data.image, self.data.text)
        )
        scores = normalize(images[rows], dim=-1) @ normalize(texts[columns], dim=-1).T
        own = torch.zeros_like(scores, dtype=torch.bool)
        own[image.reshape(-1), text.reshape(-1)] = True
        return {
            "score": -loss,
            "held_out_loss": loss,
            "scale": float(self.model.logit_scale.exp()),
            "image_text_r1": float(first_is_own(scores, own).float().mean()),
            "text_image_r1": float(first_is_own(scores.T, own.T).float().mean()),
        }


def embed_both(
    model: CLIPModel,
    pixels: Float[Tensor, "b 3 h w"],
    ids: Int[Tensor, "k t"],
    mask: Int[Tensor, "k t"],
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "k d"]]:
    """Return image and text features of a CLIP, with gradient, not normalised."""
    tower = cast("Any", model)
    images: Tensor = tower.visual_projection(ClipBackbone(model).lean_trunk(pixels))
    texts: Tensor = tower.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    return images, texts
