"""What the language model sees of an image: four designs, and what a plain LLaVA makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from gmail_align.artifacts import Artifact
from gmail_align.data.images import ImageStore
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.language import load_language_model
from gmail_align.encoders.merge import merge
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError, ModelError
from gmail_align.vlm.answers import answer
from gmail_align.vlm.config import VisualTokens
from gmail_align.vlm.connector import Connector, Seen, read_tokens
from gmail_align.vlm.conversations import Conversation, Turn
from gmail_align.vlm.folder import load_llava
from gmail_align.vlm.model import Llava, build_llava
from gmail_align.vlm.sets import ConversationSet
from gmail_align.vlm.training import train_llava
from worlds.encoders import World

from .conftest import aligned, quick

CPU = torch.device("cpu")


def train(
    encoder: GmailEncoder, llama: Path, world: World, out: Path, steps: int = 2, **changes: object
) -> Artifact:
    """Train on generated images by their route and on real ones by the frozen tower."""
    sets = [
        ConversationSet(world.captions, world.generated, Route.GENERATED),
        ConversationSet(world.captions, world.real, Route.FROZEN),
    ]
    return train_llava(quick(steps, tune="projector", **changes), sets, encoder, llama, out)


@torch.no_grad()
def scores(llava: Llava, image: object, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Return the logits of a prompt about an image, by the design's own tokens."""
    asked = Conversation("x", (Turn("<image> What?"),), ("x",))
    ids = torch.tensor([[t for part, _ in llava.layout.segments(asked) for t in part]])
    if tokens is None:
        return llava.model(input_ids=ids, pixel_values=llava.preprocess(image)).logits
    words = llava.model.get_input_embeddings()(ids)
    places = (ids == llava.layout.image_id())[..., None]
    return llava.model(inputs_embeds=words.masked_scatter(places, tokens)).logits


@pytest.mark.parametrize("design", ["pooled", "dense"])
def test_a_design_of_ours_is_read_as_it_was_trained(
    design: VisualTokens, clip_folder: Path, llama: Path, world: World, tmp_path: Path
) -> None:
    """Its tokens are those of the formula, and a plain LLaVA does not open the folder."""
    encoder = aligned(clip_folder)
    how = {"visual_tokens": design, "pooled_tokens": 2, "reads": "generated"}
    out = train(encoder, llama, world, tmp_path / "out", **how)
    card = json.loads(out.path("gmail_align.json").read_text())
    assert card["plain_transformers"] is False
    with pytest.raises(OSError, match=r"model\.safetensors"):
        LlavaForConditionalGeneration.from_pretrained(out.folder)
    llava = load_llava(out, CPU)
    image = ImageStore(world.real).read("r1")
    pixels = llava.preprocess(image)
    projector, vision = llava.model.model.multi_modal_projector, merge(encoder, Route.GENERATED)
    with torch.no_grad():
        outputs = vision.module.vision_model(pixels, output_hidden_states=True)
        if design == "dense":
            last = vision.module.vision_model.post_layernorm(outputs.last_hidden_state[:, 1:])
            features = last @ encoder.generated_head.T
            wide = projector.linear_1.weight[:, :24] @ features[0].T
            hidden = torch.nn.functional.gelu(wide.T + projector.linear_1.bias)
            expected = projector.linear_2(hidden)
        else:
            feature = outputs.pooler_output @ encoder.generated_head.T
            matrix = llava.connector.pooled
            extra = (matrix.weight[:, :24] @ feature[0] + matrix.bias).view(2, 32)
            expected = torch.cat([extra, projector(outputs.hidden_states[-2][0, 1:])])
        wanted = scores(llava, image, expected)
        tokens = llava.connector(projector, Seen(read_tokens(vision, pixels, design), ()))
        assert torch.allclose(scores(llava, image, tokens[0]), wanted, atol=1e-4)
    first = wanted[0, -1].argmax()
    said = answer(llava, ["<image> What?"], [[image]], 1)[0]
    assert said.text == llava.tokenizer.decode([first], skip_special_tokens=True).strip()
    moved = train(encoder, out.folder, world, tmp_path / "second", 1, **how)
    assert load_llava(moved, CPU).connector.extra == (2 if design == "pooled" else 0)


def test_a_residual_is_folded_into_the_projector_of_a_plain_llava(
    clip_folder: Path, llama: Path, world: World, tmp_path: Path
) -> None:
    """The folder gives what x + R x gave, and a second stage goes on with every route's matrix."""
    encoder = aligned(clip_folder)
    how = {"visual_tokens": "residual", "reads": "generated"}
    start = train(encoder, llama, world, tmp_path / "start", 0, **how)
    out = train(encoder, llama, world, tmp_path / "out", 3, **how)
    before, after = (load_llava(one, CPU) for one in (start, out))
    assert not torch.equal(before.first.weight, after.first.weight)
    plain = LlavaForConditionalGeneration.from_pretrained(out.folder).eval()
    image = ImageStore(world.real).read("r1")
    inputs = AutoProcessor.from_pretrained(out.folder)(
        images=image, text="<image> What?", return_tensors="pt"
    )
    with torch.no_grad():
        ours = after.model(**inputs).logits
        assert torch.allclose(plain(**inputs).logits, ours, atol=1e-4)
    again = train(encoder, out.folder, world, tmp_path / "again", 0, **how)
    assert torch.allclose(load_llava(again, CPU).first.weight, after.first.weight, atol=1e-6)
    with pytest.raises(ModelError, match="visual_tokens=residual"):
        train(encoder, out.folder, world, tmp_path / "other", 0)


def test_folding_keeps_what_every_route_sees() -> None:
    torch.manual_seed(0)
    connector = Connector("residual", 6, 5, routes=[Route.GENERATED, Route.REAL])
    with torch.no_grad():
        for matrix in connector.residuals.values():
            matrix.add_(0.3 * torch.randn_like(matrix))
    projector = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh())
    routes = (Route.GENERATED, Route.FROZEN, Route.REAL, Route.GENERATED)
    seen = Seen(torch.randn(4, 3, 6), routes)
    with torch.no_grad():
        before = connector(projector, seen)
        alone = projector(seen.tokens[1])
        connector.fold(projector[0], Route.GENERATED)
        after = connector(projector, seen)
    assert torch.allclose(before[1], alone)
    assert not torch.allclose(before[0], projector(seen.tokens[0]) * 0 + alone)
    assert torch.allclose(before[[0, 2, 3]], after[[0, 2, 3]], atol=1e-5)
    assert not connector.residuals[Route.GENERATED].any()


def test_what_would_train_nothing_is_refused(
    clip_folder: Path, llama: Path, world: World, tmp_path: Path
) -> None:
    talk = [{"from": "human", "value": "Say a word."}, {"from": "gpt", "value": "word"}]
    (tmp_path / "talks.json").write_text(json.dumps([{"conversations": talk}]))
    texts = ConversationSet(tmp_path / "talks.json")
    plain = GmailEncoder.from_pretrained(clip_folder)
    real = ConversationSet(world.captions, world.real, Route.FROZEN)

    def refused(named: str, encoder: GmailEncoder, *sets: ConversationSet, **how: object) -> None:
        with pytest.raises(ConfigError, match=named):
            train_llava(quick(1, **how), list(sets), encoder, llama, tmp_path / f"out-{named}")

    refused("no sample has one", plain, texts, tune="projector")
    refused("visual_tokens=residual", plain, real, texts, visual_tokens="residual")
    heads = GmailEncoder.from_clip(clip_folder)
    with torch.no_grad():
        heads.generated_head.add_(0.1)
    generated = ConversationSet(world.captions, world.generated, Route.GENERATED)
    refused("visual_tokens=patches", heads, generated)
    train(heads, llama, world, tmp_path / "pooled", 1, visual_tokens="pooled")


def test_the_last_layer_is_not_run(encoder: GmailEncoder, llama: Path) -> None:
    llava = build_llava(encoder, load_language_model(llama), "plain", Route.FROZEN, 0)
    tower, pixels = merge(encoder, Route.FROZEN), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        read = llava.model.model.vision_tower(pixels, output_hidden_states=True)
        expected = read.hidden_states[-2][:, 1:]
        tower.module.vision_model.encoder.layers[-1].register_forward_hook(pytest.fail)
        tower.module.vision_model.encoder.layers[-1].mlp.fc1.weight.fill_(float("nan"))
        assert torch.allclose(tower.patches(pixels), expected, atol=1e-5)
