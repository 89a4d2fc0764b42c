"""A captioner of real photos with human words, from nothing but a frozen MobileNet.

Flickr8k's 6,000 training photos and their captions train a tokenizer, a small GPT-2 and then
ClipCap on MobileNetV2's pooled features; the 1,000 validation photos judge it against the caption
of the nearest training photo. The last 300 training photos pick the step, so that validation is
seen by nothing before it judges.

    python benchmarks/flickr8k.py --work runs/flickr8k [--data DIR]

DIR holds ``flickr8k_224/dataset_flickr8k.json.gz`` in Karpathy's layout, and
``mobilenet_v2_imagenet/features/flickr8k_uint8.npz`` with features (times 0.0235) in the order of
each split's entries. One CPU core; run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import normalize
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gmail_align.artifacts import Artifact, begin, write_bytes, write_json, write_jsonl
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.config import CaptionerOptim, PredictConfig
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.tokens import tokenise
from gmail_align.captioning.training import train_captioner
from gmail_align.data.batches import batch_indices
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.model_outputs import open_predictions
from gmail_align.features.store import open_features
from gmail_align.metrics.caption_scores import compare_captioners, paired_caption_difference
from gmail_align.results import estimate_table
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import fit

END = "<|endoftext|>"
HELD_OUT = 300
SCALE = 0.0235
METRICS = ("BLEU1", "BLEU4", "METEOR", "ROUGE_L", "CIDEr")


@dataclass(frozen=True)
class Photos:
    """One split: ids, what people said, and MobileNet's features."""

    ids: list[str]
    raw: dict[str, list[str]]
    words: dict[str, list[str]]
    features: Artifact

    def captioned(self, work: Path) -> CaptionedImages:
        """Write the captions in words (lower case, no punctuation) and join them with features."""
        name = self.features.folder.name
        draft = begin(work / "captions" / name, "captions", {"split": name})
        captions = draft.complete
        if captions is None:
            rows = [
                Caption(f"{image}-{k}", text, image)
                for image in self.ids
                for k, text in enumerate(self.words[image])
            ]
            captions = draft.finish({"captions": write_captions(draft, rows)})
        return CaptionedImages(self.features, captions)


def read_split(data: Path, work: Path, split: str, part: slice, name: str) -> Photos:
    """Read a part of a split and write its features as an artifact."""
    with gzip.open(data / "flickr8k_224" / "dataset_flickr8k.json.gz", "rt") as file:
        entries = [e for e in json.load(file)["images"] if e["split"] == split][part]
    with np.load(data / "mobilenet_v2_imagenet" / "features" / "flickr8k_uint8.npz") as file:
        array = torch.from_numpy(file[split][part].astype(np.float32) * SCALE)
    ids = [entry["filename"].partition(".")[0] for entry in entries]
    weights = "mobilenet_v2_1.0_224_quant"
    origin = {"what": "image", "encoder": weights, "weights": weights, "route": "frozen"}
    draft = begin(work / "features" / name, "features", origin)
    artifact = draft.complete
    if artifact is None:
        write_jsonl(draft.path("ids.jsonl"), ids)
        write_bytes(draft.path("features.safetensors"), save({"features": array}))
        artifact = draft.finish({"images": len(ids), "rows": len(ids)})
    said = [entry["sentences"] for entry in entries]
    return Photos(
        ids,
        {name: [s["raw"] for s in some] for name, some in zip(ids, said, strict=True)},
        {name: [" ".join(s["tokens"]) for s in some] for name, some in zip(ids, said, strict=True)},
        artifact,
    )


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 3,000 tokens, which holds nearly every word whole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)


def train_gpt2(texts: list[str], out: Path, steps: int) -> Path:
    """Train a GPT-2 of about 0.9 M parameters on the captions alone."""
    if (out / "config.json").exists():
        return out
    tokenizer = train_tokenizer(texts)
    table = tokenise(texts, tokenizer, 28)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=64,
            n_embd=128,
            n_layer=3,
            n_head=4,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )

    def loss(step: int) -> dict[str, Tensor]:
        ids, mask = table.batch(torch.from_numpy(batch_indices(step, 40, len(table), 0)))
        start = torch.full((len(ids), 1), tokenizer.eos_token_id)
        labels = torch.cat([start, ids.masked_fill(~mask, -100)], dim=1)
        return {"total": model(input_ids=torch.cat([start, ids], dim=1), labels=labels).loss}

    optim = OptimConfig(steps=steps, lr=2e-3, schedule="cosine", warmup=50, checkpoint_every=100)
    fit(dict(model.named_parameters()), loss, optim, folder=out / "training", label="GPT-2")
    tokenizer.save_pretrained(str(out))
    model.save_pretrained(out)
    return out


def nearest_captions(train: Photos, val: Photos) -> dict[str, str]:
    """Return the first caption of the training photo with the largest cosine."""
    stores = [normalize(open_features(photos.features).array, dim=-1) for photos in (val, train)]
    nearest = (stores[0] @ stores[1].T).argmax(1).tolist()
    return {name: train.raw[train.ids[at]][0] for name, at in zip(val.ids, nearest, strict=True)}


def settings(steps: int) -> ClipCapConfig:
    """Return ClipCap's settings for a GPT-2 that knows nothing of the world."""
    optim = CaptionerOptim(
        steps=steps,
        lr=1e-3,
        weight_decay=0.01,
        schedule="cosine",
        warmup=100,
        checkpoint_every=100,
        evaluate_every=max(steps // 4, 1),
    )
    return ClipCapConfig(
        prefix_length=4, max_tokens=28, batch_size=40, device="cpu", beam=5, optim=optim
    )


def options(description: str, name: str) -> argparse.ArgumentParser:
    """Return a parser of the work folder and the data of a benchmark of Flickr8k."""
    usual = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs") / name)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("GMAIL_ALIGN_DATA", usual))
    )
    return parser


def main() -> None:
    """Train, predict, score, and print samples."""
    parser = options(str(__doc__), "flickr8k")
    parser.add_argument("--gpt2-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=2500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train = read_split(given.data, given.work, "train", slice(None, -HELD_OUT), "train")
    held = read_split(given.data, given.work, "train", slice(-HELD_OUT, None), "held-out")
    val = read_split(given.data, given.work, "val", slice(None), "val")
    texts = [text for name in train.ids for text in train.words[name]]
    gpt2 = train_gpt2(texts, given.work / "gpt2", given.gpt2_steps)
    data = CaptionerData((train.captioned(given.work),), validation=held.captioned(given.work))
    captioner = train_captioner(settings(given.steps), data, gpt2, given.work / "captioner")
    predicted = predict_captions(
        captioner, val.features, given.work / "predictions", PredictConfig(device="cpu")
    )
    systems = {
        "clipcap": open_predictions(predicted).texts,
        "nearest": nearest_captions(train, val),
    }
    scores = compare_captioners(systems, val.raw, metrics=METRICS)
    gain = estimate_table(
        {
            name: paired_caption_difference(scores["clipcap"], scores["nearest"], name)
            for name in ("CIDEr", "BLEU4")
        }
    )
    result = {name: estimate_table(one.metrics) for name, one in scores.items()}
    write_json(given.work / "result.json", {**result, "clipcap - nearest": gain})
    for name, metrics in {**result, "clipcap - nearest": gain}.items():
        for metric, value in metrics.items():
            low, high = value["low"], value["high"]
            print(f"{name:18} {metric:8} {value['value']:.3f} [{low:.3f}, {high:.3f}]")
    for name in val.ids[::50]:
        print(f"{name}\n  {systems['clipcap'][name]}\n  {systems['nearest'][name]}")
        print(f"  {val.raw[name][0]}")
    print(f"{time.process_time():.0f} s of CPU in this process")


if __name__ == "__main__":
    main()
