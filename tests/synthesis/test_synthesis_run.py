from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from gmail_align.artifacts import Artifact, begin, sha256_file
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.images import (
    ImageRecord,
    ImageStore,
    Quarantined,
    finish_images,
    shard_name,
    write_shard,
)
from gmail_align.data.pairs import make_pairs, read_pairs
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.engine import Engine, Part
from gmail_align.errors import ArtifactError, DataError, MissingExtraError, ModelError
from gmail_align.synthesis import run, shards
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.run import synthesize, synthesize_part
from gmail_align.synthesis.sampler import Pixels, Request, Sampler, image_seed
from gmail_align.synthesis.shards import read_part, to_image
from gmail_align.synthesis.weights import weights_fingerprint

Build = Callable[..., SynthesisConfig]


def test_every_caption_gets_its_images(config: Build, captions: Artifact, tmp_path: Path) -> None:
    images = synthesize(config(images_per_caption=2), captions, tmp_path / "out")
    store = ImageStore(images)
    assert images.counts == {"images": 14, "quarantined": 0, "shards": 3}
    assert store.ids == [f"{100 + n}-{k}" for n in range(7) for k in (0, 1)]
    record = store.record("103-1")
    assert (record.source, record.generator, record.prompt) == ("generated", "tiny", "red ball")
    assert record.revision == weights_fingerprint(Path(config().model))
    assert record.seed == image_seed(0, "103", 1)
    assert (record.width, record.height, record.shard) == (64, 64, 1)
    assert store.read_bytes("103-1").startswith(b"\xff\xd8\xff")
    inputs = images.manifest["inputs"]
    assert inputs == {"captions": captions.fingerprint, "weights": record.revision}


def test_a_finished_run_is_not_run_again(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = synthesize(config(), captions, tmp_path / "out")
    monkeypatch.setattr(shards, "load_pipeline", None)
    assert synthesize(config(batch_size=2), captions, tmp_path / "out") == first
    with pytest.raises(ArtifactError, match=r"config\.steps .*2 .*3"):
        synthesize(config(steps=3), captions, tmp_path / "out")
    with pytest.raises(ArtifactError, match="seed .*0 .*1"):
        synthesize(config(seed=1), captions, tmp_path / "out")
    with pytest.raises(ArtifactError, match="holds images, but captions are needed"):
        synthesize(config(), first, tmp_path / "other")


def test_without_diffusers_nothing_begins(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"diffusers .*gmail-align\[synthesis\]") as caught:
        synthesize(config(), captions, tmp_path / "out")
    assert not hasattr(caught.value, "__notes__")


def test_an_error_names_its_shard_by_number(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "load_pipeline", None)
    with pytest.raises(TypeError) as caught:
        synthesize(config(), captions, tmp_path / "out")
    assert caught.value.__notes__ == ["in shard 0"]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = synthesize(config(batch_size=2), captions, tmp_path / "whole")
    calls: list[int] = []
    real = Sampler.__call__

    def killed(self: Sampler, requests: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, requests)

    monkeypatch.setattr(Sampler, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        synthesize(config(batch_size=2), captions, tmp_path / "killed")
    assert sorted(path.name for path in (tmp_path / "killed/shards").iterdir()) == [
        *("00000.jsonl", "00000.tar", "00001.parts")
    ]
    resumed = synthesize(config(batch_size=2), captions, tmp_path / "killed")
    assert calls == [2, 1, 2, 1, 1, 1]  # the batch that was in work, and nothing else, again
    assert not list((tmp_path / "killed/shards").glob("*.parts"))
    assert resumed.manifest["files"] == whole.manifest["files"]
    assert resumed.fingerprint == whole.fingerprint


def test_the_batch_size_does_not_change_the_images(
    config: Build, captions: Artifact, tmp_path: Path
) -> None:
    stores = [
        ImageStore(
            synthesize(config(batch_size=size, shard_size=7), captions, tmp_path / str(size))
        )
        for size in (2, 3)
    ]
    for image_id in stores[0].ids:
        one, two = (np.asarray(store.read(image_id), dtype=np.int16) for store in stores)
        assert np.abs(one - two).max() <= 2


def test_png_is_lossless(config: Build, captions: Artifact, tmp_path: Path) -> None:
    images = synthesize(config(image_format="png", shard_size=7), captions, tmp_path / "out")
    assert ImageStore(images).read_bytes("100-0").startswith(b"\x89PNG")


def test_blank_and_broken_images_are_left_out(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Sampler.__call__

    def broken(self: Sampler, requests: Any) -> Any:
        images = real(self, requests)
        for row, request in enumerate(requests):
            if request.caption_id == "102":
                images[row, 0, 0, 0] = float("nan")
            if request.caption_id == "104":
                images[row] = 0.2
        return images

    monkeypatch.setattr(Sampler, "__call__", broken)
    images = synthesize(config(limit_quarantine=0.3), captions, tmp_path / "out")
    assert ImageStore(images).ids == [f"{n}-0" for n in (100, 101, 103, 105, 106)]
    assert images.path("quarantine.jsonl").read_text().splitlines() == [
        '{"id": "102-0", "reason": "the generator gave values that are not finite"}',
        '{"id": "104-0", "reason": "the generator gave a blank image"}',
    ]
    with pytest.raises(DataError, match="1 of 7 images"):
        synthesize(config(), captions, tmp_path / "strict")


def test_pixels_round_to_bytes() -> None:
    values = torch.tensor([0.0, 0.5, 1.2, float("nan")]).view(4, 1, 1, 1).expand(4, 3, 1, 2)
    images, finite = Pixels(values).wait()
    assert images.shape == (4, 1, 2, 3)
    assert images[:3, 0, 0, 0].tolist() == [0, 128, 255]
    assert finite.tolist() == [True, True, True, False]
    with pytest.raises(DataError, match="blank"):
        to_image(images[1].numpy())
    with pytest.raises(DataError, match="not finite"):
        to_image(images[3].numpy(), finite=False)


def test_a_damaged_batch_on_disk_is_made_again(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = synthesize(config(batch_size=1), captions, tmp_path / "whole")
    real = Sampler.__call__
    calls = 0

    def killed(self: Sampler, requests: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(self, requests)

    monkeypatch.setattr(Sampler, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        synthesize(config(batch_size=1), captions, tmp_path / "damaged")
    first, second = sorted((tmp_path / "damaged/shards/00000.parts").glob("*.tar"))
    data = bytearray(first.read_bytes())
    data[700] ^= 1  # inside the image
    first.write_bytes(data)
    second.write_bytes(b"")
    assert read_part(first, 1) is None
    assert read_part(second, 1) is None
    assert read_part(second, 2) is None
    resumed = synthesize(config(batch_size=1), captions, tmp_path / "damaged")
    assert resumed.fingerprint == whole.fingerprint


def test_worker_processes_give_the_same_bytes(
    config: Build, captions: Artifact, tmp_path: Path
) -> None:
    whole = synthesize(config(), captions, tmp_path / "whole")
    spread = synthesize(config(), captions, tmp_path / "spread", Engine(workers=2))
    assert spread.manifest["files"] == whole.manifest["files"]


def test_the_last_part_finishes_what_all_have_made(
    config: Build, captions: Artifact, tmp_path: Path
) -> None:
    whole = synthesize(config(), captions, tmp_path / "whole")
    out = tmp_path / "parts"
    assert synthesize_part(config(), captions, out, Part(2, 2)) is None
    assert sorted(path.name for path in (out / "shards").glob("*.tar")) == ["00001.tar"]
    last = synthesize_part(config(), captions, out, Part(1, 2))
    assert last is not None
    assert last.fingerprint == whole.fingerprint
    assert synthesize_part(config(), captions, out, Part(2, 2)) == last


def test_a_plain_run_finishes_what_parts_have_begun(
    config: Build, captions: Artifact, tmp_path: Path
) -> None:
    whole = synthesize(config(), captions, tmp_path / "whole")
    assert synthesize_part(config(), captions, tmp_path / "parts", Part(3, 3)) is None
    assert synthesize(config(), captions, tmp_path / "parts").fingerprint == whole.fingerprint


def test_a_run_begun_on_a_gpu_goes_on_on_a_cpu(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_gpu(config: SynthesisConfig, engine: Engine) -> SynthesisConfig:
        return config.model_copy(update={"device": "cpu", "dtype": "bfloat16"})

    with monkeypatch.context() as gpu:
        gpu.setattr(run, "_settled", on_a_gpu)
        assert synthesize_part(config(), captions, tmp_path / "out", Part(1, 2)) is None
    images = synthesize(config(), captions, tmp_path / "out")
    assert images.counts["images"] == 7
    with pytest.raises(ArtifactError, match=r"config\.dtype"):
        synthesize(config(dtype="float32"), captions, tmp_path / "out")


def test_prompts_that_the_text_encoder_does_not_read_to_their_end_are_counted(
    config: Build, captions: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = synthesize(config(), captions, tmp_path / "whole")
    assert whole.manifest["notes"]["prompts_cut"] == 0
    draft = begin(tmp_path / "long", "captions", {})
    rows = [
        Caption("1", "a " * 14, "1"),
        Caption("2", "a " * 15, "2"),
        Caption("3", "b " * 20, "3"),
    ]
    long = draft.finish({"captions": write_captions(draft, rows)})
    images = synthesize(config(), long, tmp_path / "out")
    store = ImageStore(images)
    assert [store.record(name).tokens_cut for name in store.ids] == [None, 1, 6]
    assert images.manifest["notes"]["prompts_cut"] == 2
    assert "| prompts cut | 2" in images.path("README.md").read_text()
    assert "2 of 3 prompts" in capsys.readouterr().err


def test_provenance_is_in_every_record_and_in_the_card(
    config: Build, captions: Artifact, tmp_path: Path
) -> None:
    images = synthesize(config(guidance_scale=3.0), captions, tmp_path / "out")
    record = ImageStore(images).record("103-0")
    assert (record.scheduler, record.steps, record.guidance_scale) == ("DDIMScheduler", 2, 3.0)
    assert record.weights == record.revision == weights_fingerprint(Path(config().model))
    assert record.unsafe is None
    card = images.path("README.md").read_text()
    assert "| images | 7, of 7 captions (1 a caption) |" in card
    assert "| sampler | DDIMScheduler, 2 steps |" in card
    assert f"| weights | fingerprint `{record.weights}` |" in card
    sidecar = images.path("shards/00000.jsonl").read_text().splitlines()[0]
    assert json.loads(sidecar)["weights"] == record.weights


def test_another_generator_on_a_worker_is_refused(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "weights_fingerprint", lambda *_: "0123")
    with pytest.raises(ModelError, match="weights 0123"):
        synthesize(config(), captions, tmp_path / "out")


def test_pairs_are_made_of_what_was_generated(
    config: Build, captions: Artifact, tmp_path: Path
) -> None:
    images = synthesize(config(shard_size=7), captions, tmp_path / "out")
    data = ImageStore(images).read_bytes("100-0")
    draft = begin(tmp_path / "real", "images", {})
    samples = [(ImageRecord(id=str(n), width=64, height=64), data) for n in range(7)]
    write_shard(draft.path(shard_name(0)), samples)
    pairs = make_pairs(captions, finish_images(draft), images, tmp_path / "pairs")
    assert [pair.generated_image_id for pair in read_pairs(pairs)] == ImageStore(images).ids


def test_the_configuration_imports_no_torch() -> None:
    code = "import gmail_align.synthesis.config, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_several_candidates_the_best_is_kept(
    config: Build, captions: Artifact, tmp_path: Path
) -> None:
    judge = "tabletop"  # resolved where models are opened, for recipes and Python too
    every = ImageStore(synthesize(config(images_per_caption=4), captions, tmp_path / "every"))
    settings = config(images_per_caption=2, best_of=2, judge=judge, batch_size=3)
    store = ImageStore(synthesize(settings, captions, tmp_path / "best"))
    assert store.ids == [f"{100 + n}-{k}" for n in range(7) for k in (0, 1)]
    encoder = GmailEncoder.from_pretrained(judge)
    for name in store.ids:
        record = store.record(name)
        caption, k = name.split("-")
        rows = [f"{caption}-{2 * int(k) + j}" for j in range(2)]
        texts = encoder.encode_texts([record.prompt], "frozen")
        features = encoder.encode_images([every.read(row) for row in rows], "frozen")
        scores = 2.5 * (features @ texts.T).clamp_min(0).flatten()
        assert record.clip_scores == pytest.approx(scores.tolist(), abs=0.05)  # after JPEG
        best = int(np.argmax(record.clip_scores))
        assert record.seed == every.record(rows[best]).seed
    with pytest.raises(ValueError, match="judge"):
        config(best_of=2)


def test_an_image_is_left_out_where_all_its_candidates_are() -> None:
    requests = [Request("1", k, "a") for k in range(4)]
    samples = [
        (ImageRecord(id="1-1", width=1, height=1, clip_scores=[0.5]), b"b"),
    ]
    left_out = [Quarantined(f"1-{k}", f"reason {k}") for k in (0, 2, 3)]
    kept, missing = shards.best_candidates(requests, samples, left_out, 2)
    assert [(record.id, record.clip_scores, data) for record, data in kept] == [
        ("1-0", [0.5], b"b")
    ]
    assert missing == [Quarantined("1-1", "reason 2")]


def test_an_adapter_changes_the_images_and_is_recorded(
    config: Build, captions: Artifact, model: Path, tmp_path: Path
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(0)
    pipeline.unet.add_adapter(lora)
    weights = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=weights)
    (adapter,) = (tmp_path / "lora").iterdir()
    plain = ImageStore(synthesize(config(), captions, tmp_path / "plain"))
    images = synthesize(config(adapter=str(adapter)), captions, tmp_path / "out")
    store = ImageStore(images)
    record = store.record("100-0")
    assert record.adapter == images.manifest["inputs"]["adapter"] == sha256_file(adapter)[:16]
    assert record.weights == plain.record("100-0").weights
    assert plain.record("100-0").adapter is None
    assert record.sha256 != plain.record("100-0").sha256
    for wrong in (
        tmp_path / "none.safetensors",
        model / "unet/diffusion_pytorch_model.safetensors",
    ):
        with pytest.raises(ModelError, match=wrong.name):
            synthesize(config(adapter=str(wrong)), captions, tmp_path / "wrong")
