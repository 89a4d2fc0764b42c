"""A SigLIP as LLaVA's tower: it has no class token, and squeezes images into a square."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.errors import ModelError
from gmail_align.vlm.answers import ask
from gmail_align.vlm.config import AskConfig
from gmail_align.vlm.packing import Sample
from gmail_align.vlm.patches import PatchReader
from gmail_align.vlm.sets import ConversationSet
from gmail_align.vlm.training import train_llava
from worlds.encoders import World

from .conftest import quick


@pytest.mark.parametrize("square", ["crop", "pad"])
def test_plain_transformers_reads_a_llava_of_a_siglip(
    siglip_folder: Path, llama: Path, world: World, tmp_path: Path, square: str
) -> None:
    encoder = GmailEncoder.from_pretrained(siglip_folder)
    sets = [ConversationSet(world.captions, world.real)]
    config = quick(1, square=square)
    out = train_llava(config, sets, encoder, llama, tmp_path / "out")
    plain = LlavaForConditionalGeneration.from_pretrained(out.folder).eval()
    processor = AutoProcessor.from_pretrained(out.folder)
    noise = torch.randint(0, 256, (40, 90, 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.byte().numpy())
    image.save(tmp_path / "noise.png")
    inputs = processor(images=image, text="<image>\na red ball", return_tensors="pt")
    assert int((inputs["input_ids"] == plain.config.image_token_id).sum()) == 16
    one = torch.ones(1, dtype=torch.int32)
    reader = PatchReader(sets, encoder, [Sample("s", one, one.bool(), ("r1",))], tmp_path)
    with torch.no_grad():
        given = plain.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        read = reader.towers[sets[0].route].patches(inputs["pixel_values"])
        assert torch.allclose(read, given.hidden_states[-2], atol=1e-5)
        seen = plain.model.multi_modal_projector(read)
        words = plain.get_input_embeddings()(inputs["input_ids"])
        places = inputs["input_ids"] == plain.config.image_token_id
        ours = plain(inputs_embeds=words.masked_scatter(places[..., None], seen)).logits
        assert torch.allclose(plain(**inputs).logits, ours, atol=1e-4)
        asked = processor(
            images=image, text="A chat. USER: <image>\nWhat? ASSISTANT:", return_tensors="pt"
        )
        assert plain.generate(**asked, max_new_tokens=2).shape[0] == 1
    assert isinstance(
        ask(out, [tmp_path / "noise.png"], "What?", AskConfig(max_tokens=2, device="cpu")), str
    )
    again = train_llava(config, sets, encoder, out.folder, tmp_path / "again")
    assert again.counts == out.counts


@pytest.mark.parametrize("design", ["pooled", "dense"])
def test_designs_that_need_a_projection_are_refused(
    siglip_folder: Path, llama: Path, world: World, tmp_path: Path, design: str
) -> None:
    encoder = GmailEncoder.from_pretrained(siglip_folder)
    sets = [ConversationSet(world.captions, world.real)]
    with pytest.raises(ModelError, match="visual_tokens"):
        train_llava(quick(1, visual_tokens=design), sets, encoder, llama, tmp_path / "out")
