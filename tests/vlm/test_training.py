"""LLaVA is trained, and its folder is one that plain transformers reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    LlamaConfig,
    LlavaForConditionalGeneration,
)

from gmail_align.artifacts import Artifact, begin, read_jsonl, write_jsonl
from gmail_align.data.images import ImageStore
from gmail_align.data.questions import QUESTIONS, Question
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.merge import merge
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, ConfigError, DataError, ModelError
from gmail_align.vlm import training
from gmail_align.vlm.answers import Answer, answer, ask, predict_answers, shuffle_images
from gmail_align.vlm.config import AnswerConfig, AskConfig
from gmail_align.vlm.folder import load_llava
from gmail_align.vlm.loss import Objective
from gmail_align.vlm.model import continue_llava
from gmail_align.vlm.packing import Sample
from gmail_align.vlm.patches import PatchReader
from gmail_align.vlm.sets import ConversationSet
from gmail_align.vlm.training import train_llava
from worlds.captioning import build_gpt2, byte_tokenizer
from worlds.encoders import World, write_vit

from .conftest import aligned, quick, write_llama

CPU = torch.device("cpu")
COLOURS = ("red", "green", "blue", "grey")


def colours(path: Path, world: World) -> Path:
    """Write a conversation about the colour of each real image, and one without an image."""
    samples = [
        {
            "id": name,
            "image": f"{name}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat colour?"},
                {"from": "gpt", "value": COLOURS[int(name[1:]) % 4]},
            ],
        }
        for name in ImageStore(world.real).ids
    ]
    talk = [{"from": "human", "value": "Say a word."}, {"from": "gpt", "value": "word"}]
    path.write_text(json.dumps([*samples, {"id": "text", "conversations": talk}]))
    return path


@pytest.fixture(scope="module")
def trained(
    clip_folder: Path, llama: Path, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """A LLaVA that knows the colours of the real images, and their captions."""
    work = tmp_path_factory.mktemp("llava")
    talks = ConversationSet(colours(work / "colours.json", world), world.real)
    encoder = GmailEncoder.from_pretrained(clip_folder)
    return train_llava(quick(120), [talks], encoder, llama, work / "out")


def texts_of(said: Sequence[Answer]) -> list[str]:
    return [one.text for one in said]


def test_it_learns_to_answer(trained: Artifact, world: World, tmp_path: Path) -> None:
    llava = load_llava(trained, CPU)
    store = ImageStore(world.real)
    images = [[store.read(name)] for name in store.ids]
    prompts = ["<image>\nWhat colour?"] * len(images)
    said = answer(llava, prompts, images, 8)
    right = [COLOURS[int(name[1:]) % 4] for name in store.ids]
    assert sum(a == b for a, b in zip(texts_of(said), right, strict=True)) >= 10
    together = answer(llava, [*prompts[:2], "Say a word."], [*images[:2], []], 8)
    assert together == [*said[:2], *answer(llava, ["Say a word."], [[]], 8)]
    assert texts_of(together)[2] == "word"
    assert not any(one.cut for one in together)
    assert trained.counts["samples"] == 13
    assert trained.counts["images"] == 12
    assert trained.counts["learnt_tokens"] < trained.counts["tokens"]
    assert not trained.path("patches.bin").exists()


def test_plain_transformers_reads_the_folder(trained: Artifact, world: World) -> None:
    llava = load_llava(trained, CPU)
    plain = LlavaForConditionalGeneration.from_pretrained(trained.folder).eval()
    processor = AutoProcessor.from_pretrained(trained.folder)
    image = ImageStore(world.real).read("r3")
    inputs = processor(images=image, text="<image>\na red ball", return_tensors="pt")
    with torch.no_grad():
        pixels = llava.preprocess(image)
        assert torch.allclose(inputs["pixel_values"], pixels, atol=1e-5)
        expected = plain(**inputs).logits
        found = llava.model(input_ids=inputs["input_ids"], pixel_values=pixels).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert int((inputs["input_ids"] == plain.config.image_token_id).sum()) == 16


def test_padded_images_are_what_the_saved_processor_makes(
    clip_folder: Path, llama: Path, world: World, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    sets = [ConversationSet(world.captions, world.generated)]
    out = train_llava(quick(0, square="pad"), sets, encoder, llama, tmp_path / "out")
    llava, processor = load_llava(out, CPU), AutoProcessor.from_pretrained(out.folder)
    noise = torch.randint(0, 256, (40, 90, 3), generator=torch.Generator().manual_seed(0))
    for image in (Image.fromarray(noise.byte().numpy()), ImageStore(world.real).read("r3")):
        inputs = processor(images=image, text="<image>", return_tensors="pt")
        assert torch.allclose(inputs["pixel_values"], llava.preprocess(image), atol=1e-5)
    wide = llava.preprocess(Image.new("RGB", (64, 32), "white"))
    assert torch.allclose(wide[0, :, 0], torch.zeros(3, 32), atol=0.02)  # the mean, normalised


def test_training_reads_the_patches_that_the_saved_model_reads(
    clip_folder: Path, llama: Path, world: World, tmp_path: Path
) -> None:
    """The tower of ``reads`` is in the folder; the other routes' towers are not."""
    encoder = aligned(clip_folder)
    sets = [ConversationSet(world.captions, world.generated, Route.GENERATED)]
    out = train_llava(quick(0, reads="generated"), sets, encoder, llama, tmp_path / "out")
    tower = load_llava(out, CPU).model.model.vision_tower
    pixels = encoder.preprocess(ImageStore(world.real).read("r1"))
    with torch.no_grad():
        read = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.allclose(read, merge(encoder, Route.GENERATED).patches(pixels), atol=1e-5)
    assert not torch.allclose(read, merge(encoder, Route.FROZEN).patches(pixels), atol=1e-3)


def test_every_set_is_read_by_its_own_route(
    clip_folder: Path, world: World, tmp_path: Path
) -> None:
    encoder = aligned(clip_folder)
    sets = [
        ConversationSet(world.captions, world.generated, Route.GENERATED),
        ConversationSet(world.captions, world.real, Route.FROZEN),
    ]
    samples = [_sample("c0-0-0", 0), _sample("r0", 1), _sample("c0-0-0", 0)]
    reader = PatchReader(sets, encoder, samples, tmp_path)
    found = reader.read(samples)
    for row, (store, name, route) in enumerate(
        [(world.generated, "c0-0-0", Route.GENERATED), (world.real, "r0", Route.FROZEN)]
    ):
        pixels = encoder.preprocess(ImageStore(store).read(name))
        assert found.routes[row] == route
        with torch.no_grad():
            expected = merge(encoder, route).patches(pixels)[0]
        assert torch.allclose(found.tokens[row], expected, atol=1e-6)
    assert torch.equal(found.tokens[2], found.tokens[0])


def _sample(image: str, source: int) -> Sample:
    one = torch.ones(1, dtype=torch.int32)
    return Sample("s", one, one.bool(), (image,), source)


@pytest.mark.parametrize("kept", [True, False])
def test_a_killed_training_ends_with_the_same_bytes(
    clip_folder: Path,
    llama: Path,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    sets = [ConversationSet(world.captions, world.generated, Route.FROZEN)]
    held = ConversationSet(world.captions, world.real)
    config = quick(5, keep_patches=kept, rows_at_once=1)

    def run(name: str) -> Artifact:
        return train_llava(config, sets, encoder, llama, tmp_path / name, validation=held, seed=2)

    whole, losses, calls = run("whole"), Objective.forward, []

    def killed(*args: object) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 27:
            raise KeyboardInterrupt
        return losses(*args)

    monkeypatch.setattr(Objective, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        run("resumed")
    monkeypatch.undo()
    resumed = run("resumed")
    assert resumed.manifest["files"] == whole.manifest["files"]
    assert [row["step"] for row in whole.manifest["notes"]["validation"]] == [0, 2, 4, 5]
    monkeypatch.setattr(training, "load_language_model", pytest.fail)
    assert run("whole").fingerprint == whole.fingerprint
    with pytest.raises(ArtifactError, match="routes"):
        train_llava(
            config, [replace(sets[0], route=Route.REAL)], encoder, llama, tmp_path / "whole", seed=2
        )


def test_the_projector_alone_is_trained_where_that_is_asked_for(
    clip_folder: Path, llama: Path, world: World, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    sets = [ConversationSet(world.captions, world.generated)]
    models = [
        load_llava(
            train_llava(quick(n, tune="projector"), sets, encoder, llama, tmp_path / f"{n}"), CPU
        ).model.state_dict()
        for n in (0, 2)
    ]
    changed = {name for name, value in models[0].items() if not torch.equal(value, models[1][name])}
    assert changed == {name for name in models[0] if "multi_modal_projector" in name}


def test_lora_is_merged_into_the_saved_model(
    clip_folder: Path, llama: Path, world: World, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    sets = [ConversationSet(world.captions, world.generated)]
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
    config = quick(3, tune="lora", lora=lora)
    out = train_llava(config, sets, encoder, llama, tmp_path / "out")
    start = load_llava(
        train_llava(quick(0), sets, encoder, llama, tmp_path / "start"), CPU
    ).model.state_dict()
    plain, report = LlavaForConditionalGeneration.from_pretrained(
        out.folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    changed = {name for name, w in plain.state_dict().items() if not torch.equal(w, start[name])}
    words = {name for name in changed if "language_model.layers" in name}
    assert words == {n for n in start if "language_model.layers" in n and "proj" in n}
    assert {n for n in changed - words if "multi_modal_projector" not in n} == set()


def test_a_second_stage_goes_on_with_the_first(
    trained: Artifact, clip_folder: Path, world: World, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    sets = [ConversationSet(world.captions, world.generated)]
    out = train_llava(quick(0), sets, encoder, trained.folder, tmp_path / "out")
    before, after = (load_llava(one, CPU).model.state_dict() for one in (trained, out))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_checkpoint_of_llava_hf_is_trained_further(
    clip_folder: Path, llama: Path, world: World, tmp_path: Path
) -> None:
    """Random weights in the layout of llava-hf's folders, on the vision tower of the encoder."""
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    vision = CLIPModel.from_pretrained(clip_folder).config.vision_config

    def write(name: str, **changes: object) -> Path:
        text = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=len(tokenizer),
            bos_token_id=1,
            eos_token_id=0,
        )
        towers = {"vision_config": vision.to_dict(), "text_config": text.to_dict()}
        towers["vision_config"] |= changes.pop("vision", {})
        image = tokenizer.convert_tokens_to_ids("<image>")
        config = transformers.LlavaConfig(**towers, image_token_index=image, **changes)
        LlavaForConditionalGeneration(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(str(tmp_path / name))
        return tmp_path / name

    encoder = GmailEncoder.from_pretrained(clip_folder)
    sets = [ConversationSet(world.captions, world.generated)]
    folder = write("hf")
    out = train_llava(quick(0), sets, encoder, folder, tmp_path / "out")
    ours = load_llava(out, CPU).model.state_dict()
    theirs = LlavaForConditionalGeneration.from_pretrained(folder).state_dict()
    kept = [name for name in theirs if "vision_tower" not in name]
    assert kept
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    for number, (named, changes) in enumerate(
        (("16 wide", {"vision": {"hidden_size": 16}}), ("layer -1", {"vision_feature_layer": -1}))
    ):
        other = write(f"other{number}", **changes)
        with pytest.raises(ModelError, match=named):
            train_llava(quick(0), sets, encoder, other, tmp_path / f"refused{number}")
    with pytest.raises(ModelError, match="'llama' model, and not a LLaVA"):
        continue_llava(llama, encoder, "vicuna_v1", Route.FROZEN)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(str(folder))
    with pytest.raises(ModelError, match="use a tokenizer that belongs to the model"):
        continue_llava(folder, encoder, "vicuna_v1", Route.FROZEN)


def test_what_cannot_be_trained_is_refused(
    clip_folder: Path, llama: Path, world: World, tmp_path: Path
) -> None:
    clip = GmailEncoder.from_pretrained(clip_folder)
    talks = ConversationSet(colours(tmp_path / "talks.json", world), world.real)

    def refused(
        error: type[Exception],
        named: str,
        talks: ConversationSet = talks,
        encoder: GmailEncoder = clip,
        words: Path = llama,
        **changes: object,
    ) -> None:
        with pytest.raises(error, match=named):
            train_llava(quick(1, **changes), [talks], encoder, words, tmp_path / f"out-{named}")

    refused(DataError, "r0", replace(talks, images=world.generated))
    refused(DataError, "r0", replace(talks, images=None))
    refused(ConfigError, "captions", ConversationSet(world.captions))
    refused(ModelError, "gpt2", words=build_gpt2(tmp_path / "gpt2"))
    refused(ModelError, "ViT", encoder=GmailEncoder.from_pretrained(write_vit(tmp_path / "vit")))
    refused(ModelError, "absent", words=tmp_path / "absent")
    refused(DataError, "row_tokens", row_tokens=20)
    bare = write_llama(tmp_path / "bare", byte_tokenizer(bos_token="<s>"))
    refused(ConfigError, "im_end", words=bare, template="chatml")


@pytest.fixture
def questions(tmp_path: Path) -> Artifact:
    draft = begin(tmp_path / "questions", "questions", {})
    rows = [
        {
            "question_id": name,
            "question": "What colour?",
            "answers": ["A"],
            "choices": list(COLOURS) if name == "r1" else [],
            "image_ids": [name] if name != "text" else [],
            "hint": "",
            "groups": [],
            "split": "test",
        }
        for name in ("r0", "r1", "text")
    ]
    write_jsonl(draft.path(QUESTIONS), rows)
    return draft.finish({"questions": 3})


def test_questions_are_answered_into_predictions(
    trained: Artifact, questions: Artifact, world: World, tmp_path: Path
) -> None:
    how = AnswerConfig(device="cpu", max_tokens=4, batch_size=2)
    out = predict_answers(trained, questions, tmp_path / "said", how, images=world.real)
    rows = list(read_jsonl(out.path("predictions.jsonl")))
    assert [row["question_id"] for row in rows] == ["r0", "r1", "text"]
    assert rows[1]["prompt"].splitlines() == [
        *("<image>", "What colour?", "A. red", "B. green", "C. blue", "D. grey"),
        "Answer with the option's letter from the given choices directly.",
    ]
    assert rows[0]["prompt"].endswith("word or phrase.")
    assert set(out.manifest["files"]) == {"predictions.jsonl"}
    alone = AnswerConfig(device="cpu", max_tokens=4, batch_size=1)
    one = predict_answers(trained, questions, tmp_path / "alone", alone, images=world.real)
    assert list(read_jsonl(one.path("predictions.jsonl"))) == rows
    described = AnswerConfig(device="cpu", max_tokens=4, prompt="What colour?")
    captions = predict_answers(trained, None, tmp_path / "captions", described, images=world.real)
    rows = list(read_jsonl(captions.path("predictions.jsonl")))
    assert [row["image_id"] for row in rows] == list(ImageStore(world.real).ids)
    assert {row["prompt"] for row in rows} == {"<image>\nWhat colour?"}
    for wrong in (None, questions):
        with pytest.raises(ConfigError, match="prompt"):
            settings = how if wrong is None else described
            predict_answers(trained, wrong, tmp_path / "x", settings, images=world.real)
    with pytest.raises(ConfigError, match="question r0"):
        predict_answers(trained, questions, tmp_path / "none", how)
    with pytest.raises(DataError, match="question r0"):
        predict_answers(trained, questions, tmp_path / "other", how, images=world.generated)
    with pytest.raises(ArtifactError, match="images"):
        predict_answers(world.real, questions, tmp_path / "kind", how, images=world.real)


def asked_of(name: str, *images: str) -> Question:
    return Question(question_id=name, question="", answers=("A",), image_ids=images)


def test_shuffled_images_stand_in_for_each_other() -> None:
    asked = [asked_of(str(n), f"i{n % 5}", f"j{n}") for n in range(9)]
    other = shuffle_images(asked)
    assert sorted(other) == sorted(other.values()) and len(other) == 14
    assert all(own != stand_in for own, stand_in in other.items())
    assert other == shuffle_images(asked[::-1])
    with pytest.raises(ConfigError, match="shuffle_images"):
        shuffle_images([replace(one, image_ids=("i0",)) for one in asked])


def test_captions_of_shuffled_images_are_those_of_the_others(
    trained: Artifact, world: World, tmp_path: Path
) -> None:
    texts = []
    for shuffled in (False, True):
        how = AnswerConfig(
            device="cpu", max_tokens=4, prompt="What colour?", shuffle_images=shuffled
        )
        out = predict_answers(trained, None, tmp_path / str(shuffled), how, images=world.real)
        rows = read_jsonl(out.path("predictions.jsonl"))
        texts.append({row["image_id"]: row["text"] for row in rows})
    names = ImageStore(world.real).ids
    assert len(set(texts[0].values())) > 1
    other = shuffle_images([asked_of(n, n) for n in names])
    assert texts[1] == {name: texts[0][other[name]] for name in names}


def test_answers_that_are_stopped_are_counted(
    trained: Artifact, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All colours and captions end by themselves, but for a limit of two tokens."""
    made = {}
    for most in (2, 40):
        how = AnswerConfig(device="cpu", max_tokens=most, prompt="What colour?")
        made[most] = predict_answers(trained, None, tmp_path / str(most), how, images=world.real)
        assert ("12 of 12 texts stopped" in capsys.readouterr().err) == (most == 2)
    assert made[2].manifest["notes"]["outputs_cut"] == 12
    assert all(row["cut"] for row in read_jsonl(made[2].path("predictions.jsonl")))
    assert "outputs_cut" not in made[40].manifest.get("notes", {})
    assert all("cut" not in row for row in read_jsonl(made[40].path("predictions.jsonl")))
    ImageStore(world.real).read("r2").save(tmp_path / "photo.png")
    short = AskConfig(device="cpu", max_tokens=2)
    ask(trained, [tmp_path / "photo.png"], "What colour?", short)
    assert "1 of 1 texts stopped at the longest length, 2 tokens" in capsys.readouterr().err


def test_a_question_about_a_file_is_answered(
    trained: Artifact, world: World, tmp_path: Path
) -> None:
    ImageStore(world.real).read("r2").save(tmp_path / "photo.png")
    how = AskConfig(device="cpu", max_tokens=8)
    llava = load_llava(trained, CPU)
    image = Image.open(tmp_path / "photo.png")
    expected = answer(llava, ["<image>\nWhat colour?"], [[image]], 8)
    assert ask(trained, [tmp_path / "photo.png"], "What colour?", how) == expected[0].text
    with pytest.raises(DataError, match=r"absent\.png"):
        ask(trained, [tmp_path / "absent.png"], "What colour?", how)
