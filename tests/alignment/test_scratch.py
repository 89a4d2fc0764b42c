"""A CLIP from scratch: it learns, resumes with the same bytes, and is a base for others."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel

from gmail_align.alignment import scratch as module
from gmail_align.alignment.config import ScratchConfig
from gmail_align.alignment.scratch import embed_both, train_clip
from gmail_align.artifacts import begin, write_jsonl
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.errors import DataError, ModelError
from gmail_align.training.config import OptimConfig

OPTIM = OptimConfig(steps=24, lr=2e-3, schedule="constant", checkpoint_every=5, evaluate_every=4)
CONFIG = ScratchConfig(batch_size=8, holdout=0.25, optim=OPTIM)


def test_it_learns_and_resumes_with_the_same_bytes(
    clip_folder: Path, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_clip(CONFIG, world.captions, world.real, clip_folder, tmp_path / "a", seed=1)
    notes = whole.manifest["notes"]
    assert notes["best_step"] > 0
    assert notes["guard"]["kept"]["held_out_loss"] < notes["guard"]["start"]["held_out_loss"]
    assert whole.counts == {"captions": 18, "images": 9, "held_out_captions": 6}
    calls, embed = [0], module.embed_both

    def dying(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 15:
            raise KeyboardInterrupt
        return embed(*given)

    with monkeypatch.context() as patch:
        patch.setattr(module, "embed_both", dying)
        with pytest.raises(KeyboardInterrupt):
            train_clip(CONFIG, world.captions, world.real, clip_folder, tmp_path / "b", seed=1)
    gc.collect()
    again = train_clip(CONFIG, world.captions, world.real, clip_folder, tmp_path / "b", seed=1)
    weights = "model.safetensors"
    assert again.path(weights).read_bytes() == whole.path(weights).read_bytes()
    assert again.fingerprint == whole.fingerprint
    encoder = GmailEncoder.from_pretrained(whole.folder)
    assert encoder.encode_texts(["a red image"]).shape == (1, 24)
    plain, base = CLIPModel.from_pretrained(whole.folder), CLIPModel.from_pretrained(clip_folder)
    assert not torch.allclose(plain.text_projection.weight, base.text_projection.weight)


def test_both_towers_are_transformers_own(clip_folder: Path) -> None:
    model = CLIPModel.from_pretrained(clip_folder).eval()
    ids = torch.tensor([[1, 3, 4, 47], [1, 5, 47, 0]])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        images, texts = embed_both(model, pixels, ids, mask)
    normal = torch.nn.functional.normalize
    assert torch.allclose(normal(images, dim=-1), expected.image_embeds, atol=1e-5)
    assert torch.allclose(normal(texts, dim=-1), expected.text_embeds, atol=1e-5)


def test_what_does_not_fit_is_refused(clip_folder: Path, world: Any, tmp_path: Path) -> None:
    draft = begin(tmp_path / "captions", "captions", {})
    row = {"caption_id": "x", "text": "a red image", "image_id": "elsewhere"}
    write_jsonl(draft.path("captions.jsonl"), [row])
    others = draft.finish({"captions": 1})
    with pytest.raises(DataError, match="captions"):
        train_clip(CONFIG, others, world.real, clip_folder, tmp_path / "out")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="not a CLIP"):
        train_clip(CONFIG, world.captions, world.real, tmp_path / "base", tmp_path / "other")
