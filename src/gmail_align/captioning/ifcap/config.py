"""Configuration of IFCap and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from gmail_align.artifacts import fingerprint, load
from gmail_align.captioning.config import CaptionerConfig, CaptionerOptim
from gmail_align.captioning.ifcap.entities import read_vocabulary
from gmail_align.captioning.inputs import (
    CaptionedImages,
    CaptionerData,
    EmbeddedCaptions,
    Folder,
    load_features,
)


class IFCapConfig(CaptionerConfig):
    """IFCap (Lee et al. 2024), with GMAIL's generated images as an alternative to noise."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ifcap_coco": {"optim": {"epochs": 5}},
        "ifcap_flickr30k": {"noun_captions": 7, "noun_count": 3, "optim": {"epochs": 30}},
    }
    """The published settings for COCO and for Flickr30k."""
    reads_texts: ClassVar[bool] = True

    mode: Literal["text_noise", "gen_embed", "mix"] = "text_noise"
    """What stands for the image in training. ``text_noise`` is the caption's text feature with
    noise. ``gen_embed`` is the aligned feature of an image generated from it. ``mix`` takes
    either."""
    generated_share: float = Field(default=0.5, gt=0, lt=1)
    """How often ``mode = "mix"`` takes the generated image, where there is one."""
    noise_variance: float = Field(default=0.016, ge=0)
    """Variance of the noise on a text feature."""
    retrieval_noise_variance: float = Field(default=0.04, ge=0)
    """Variance of the noise on the text feature by which other captions are retrieved in
    training."""
    retrieved: int = Field(default=5, ge=1)
    """Captions that the fusion module reads beside the feature (k)."""
    index: str | None = None
    """A faiss index for approximate search of captions, such as ``IVF1024,Flat``; by default the
    search is exact."""
    noun_captions: int = Field(default=9, ge=1)
    """Captions that are retrieved for an image to count their nouns (L; 9 for COCO, 7 for
    Flickr)."""
    noun_count: int = Field(default=5, ge=1)
    """Retrieved captions that have to contain a noun before the prompt names it (K; 5 for COCO, 3
    for Flickr)."""
    adaptive: Literal["normal", "log_normal"] | None = None
    """Replace ``noun_count`` by the mean plus ``alpha`` standard deviations of the counts
    (``normal``) or of their logarithms (``log_normal``)."""
    alpha: float = 1.0
    """Standard deviations above the mean that ``adaptive`` asks for."""
    drop_nouns: float = Field(default=0.4, ge=0, lt=1)
    """How often a noun is left out of the hard prompt in training."""
    max_nouns: int = Field(default=10, ge=1)
    """Most nouns in a hard prompt."""
    vocabulary: Path | None = None
    """Text file of the objects that may be named, one on each line; by default the nouns of the
    training captions."""
    vocabulary_count: int = Field(default=2, ge=1)
    """Training captions that have to contain a noun before the default vocabulary takes it."""
    prefix_length: int = Field(default=10, ge=1)
    """Embeddings of the soft prompt."""
    layers: int = Field(default=8, ge=1)
    """Layers of the fusion module's transformer."""
    heads: int = Field(default=8, ge=1)
    """Attention heads of a layer."""
    max_tokens: int = Field(default=64, ge=2)
    """Longest caption in tokens, its end-of-text token included."""
    batch_size: int = Field(default=80, ge=1)
    """Captions in a training step."""
    optim: CaptionerOptim = CaptionerOptim(epochs=5)
    """Steps, rates and intervals; by default IFCap's 5 epochs."""

    @model_validator(mode="before")
    @classmethod
    def _chosen_steps(cls, data: Any) -> Any:
        """Let steps that are given stand in place of the default epochs."""
        optim = data.get("optim") if isinstance(data, Mapping) else None
        if not isinstance(optim, Mapping) or "steps" not in optim:
            return data
        return {**data, "optim": {"epochs": None, **optim}}

    @model_validator(mode="after")
    def _possible_count(self) -> IFCapConfig:
        if self.adaptive is None and self.noun_count > self.noun_captions:
            raise ValueError(
                f"noun_count {self.noun_count} is more than the noun_captions {self.noun_captions}"
                " that are counted, so that no object could be named"
            )
        return self

    @property
    def reads_images(self) -> bool:
        """Whether generated images stand for images in training."""
        return self.mode != "text_noise"

    @property
    def captions_needed(self) -> int:
        """Captions that are looked up for an image."""
        return max(self.retrieved, self.noun_captions)

    def identity(self) -> dict[str, Any]:
        """Return the settings that two equal captioners share, with the vocabulary's words."""
        words = self.vocabulary and fingerprint(sorted(read_vocabulary(self.vocabulary)))
        return {**super().identity(), "vocabulary": words}


CONFIG = IFCapConfig


def inputs(
    held: CaptionedImages | None,
    /,
    captions: Folder,
    texts: Folder,
    retrieval_texts: Folder | None = None,
    generated: Folder | None = None,
    validation_retrieval: Folder | None = None,
) -> CaptionerData:
    """Train IFCap on captions alone, or with generated images (--set mode=gen_embed or mix).

    Args:
        held: Held-out images, if there are any.
        captions: Captions to train on, or pairs.
        texts: Text features of these captions, by the encoder whose image features the captioner
            will read.
        retrieval_texts: Text features of these captions by another encoder, which then retrieves
            captions.
        generated: Features of images generated from the captions.
        validation_retrieval: Features of the held-out images by the encoder that retrieves
            captions.
    """
    words, images = load(captions), load_features(generated)
    return CaptionerData(
        (CaptionedImages(images, words),) if images else (),
        EmbeddedCaptions(words, load(texts, "features"), load_features(retrieval_texts)),
        held and replace(held, retrieval=load_features(validation_retrieval)),
    )
