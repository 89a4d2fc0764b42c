"""Configuration of the filters."""

from __future__ import annotations

from pydantic import Field

from gmail_align.config import Config


class FilterConfig(Config):
    """Which generated images are left out. Scores are kept for all, whatever is left out."""

    min_clip_score: float | None = Field(None, ge=0, le=2.5)
    """Least CLIPScore, 2.5 max(cos, 0); needs an encoder. None leaves none out: what is low
    depends on the encoder, so look at ``scores.parquet`` first."""
    min_spread: float = Field(2.0, ge=0)
    """Least standard deviation of grey values; below it an image is blank."""
    duplicate_bits: int = Field(4, ge=0, le=16)
    """Most bits of 128 in which the perceptual hashes of near-duplicates differ."""
    duplicate_cosine: float = Field(0.97, ge=-1, le=1)
    """Least cosine of near-duplicates, where there is an encoder."""
    copy_bits: int = Field(10, ge=0, le=32)
    """Most bits of 128 in which the hash of a copy of a photo differs."""
    copy_cosine: float = Field(0.9, ge=-1, le=1)
    """Least cosine of a copy of a photo, where there is an encoder."""
    keep_duplicates: bool = False
    """Score near-duplicates without leaving them out."""
    reassign: bool = False
    """Give each caption the image that suits it best, among all that pass; needs an encoder."""
    found_within: int = Field(10, ge=1)
    """A reassigned image is kept if its caption is among so many that suit it best."""
