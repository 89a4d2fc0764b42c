"""ClipCap here against the same GPT-2 tuned by a plain transformers loop on the same features.

    gmail-align run tabletop-evidence --work runs/evidence   (or any other finished run)
    python benchmarks/captioning_baseline.py --work runs/evidence --out runs/baseline [--seeds 5]

The loop below knows nothing of the package's captioners: a DataLoader, ``labels``, torch's AdamW,
transformers' schedule and ``generate``. Both read frozen features of real training images, all
their captions, with the same mapper, batch size, rate and number of steps, and caption the real
test images by beam search. Prints CIDEr of both, and the ratio of the means over seeds with its 95%
interval (Welch, of logarithms); they should agree within 5%. A seed that is done is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, GPT2LMHeadModel, get_linear_schedule_with_warmup

from gmail_align.artifacts import load, write_json
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.training import train_captioner
from gmail_align.data.model_outputs import open_predictions
from gmail_align.encoders.shipped import model_path
from gmail_align.metrics.caption_scores import compare_captioners

PREFIX, BATCH, RATE, TOKENS = 10, 50, 1e-3, 40

Rows = list[tuple[str, str]]


def read_rows(folder: Path) -> Rows:
    """Return (image id, caption) of an artifact of captions."""
    with (folder / "captions.jsonl").open() as file:
        return [(row["image_id"], row["text"]) for row in map(json.loads, file)]


def read_array(folder: Path) -> dict[str, Tensor]:
    """Return image id -> unit feature."""
    array = nn.functional.normalize(load_file(folder / "features.safetensors")["features"].float())
    with (folder / "ids.jsonl").open() as file:
        return {json.loads(line): row for line, row in zip(file, array, strict=True)}


def plain_loop(
    gpt2: Path, train: dict[str, Tensor], rows: Rows, test: dict[str, Tensor], steps: int, seed: int
) -> dict[str, str]:
    """Tune GPT-2 behind a mapper as any tutorial would, and caption the test images."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.pad_token = tokenizer.eos_token
    model = GPT2LMHeadModel.from_pretrained(gpt2, dtype=torch.float32)
    hidden, width = model.config.n_embd, len(next(iter(train.values())))
    mapper = nn.Sequential(
        nn.Linear(width, PREFIX * hidden // 2),
        nn.Tanh(),
        nn.Linear(PREFIX * hidden // 2, PREFIX * hidden),
    )
    parameters = [*model.parameters(), *mapper.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    loader = DataLoader(rows, batch_size=BATCH, shuffle=True, drop_last=True, collate_fn=list)
    model.train()
    done = 0
    while done < steps:
        for batch in loader:
            texts = [text + tokenizer.eos_token for _, text in batch]
            tokens = tokenizer(texts, return_tensors="pt", padding=True)
            prefix = mapper(torch.stack([train[name] for name, _ in batch]))
            prefix = prefix.view(len(batch), PREFIX, hidden)
            mask = torch.arange(tokens.input_ids.shape[1]) < torch.tensor(
                [[len(row)] for row in tokenizer(texts)["input_ids"]]
            )
            labels = torch.cat(
                [
                    torch.full((len(batch), PREFIX), -100),
                    tokens.input_ids.masked_fill(~mask, -100),
                ],
                dim=1,
            )
            inputs = torch.cat([prefix, model.transformer.wte(tokens.input_ids)], dim=1)
            attention = torch.cat([torch.ones(len(batch), PREFIX), mask.float()], dim=1)
            out = model(inputs_embeds=inputs, attention_mask=attention, labels=labels)
            optimizer.zero_grad()
            out.loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                break
    model.eval()
    return _say(model, mapper, tokenizer, test)


@torch.no_grad()
def _say(
    model: GPT2LMHeadModel, mapper: nn.Module, tokenizer: AutoTokenizer, test: dict[str, Tensor]
) -> dict[str, str]:
    """Caption images by beam search."""
    said: dict[str, str] = {}
    names = list(test)
    for start in range(0, len(names), 50):
        part = names[start : start + 50]
        prefix = mapper(torch.stack([test[name] for name in part])).view(len(part), PREFIX, -1)
        ids = model.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long),
            num_beams=5,
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        said |= dict(zip(part, (text.strip() for text in texts), strict=True))
    return said


def ratio_of_means(ours: list[float], plain: list[float]) -> tuple[float, float, float]:
    """Return the ratio of geometric means over seeds and its 95% interval."""
    from scipy.stats import ttest_ind

    logs = [[math.log(value) for value in values] for values in (ours, plain)]
    ratio = math.exp(sum(logs[0]) / len(ours) - sum(logs[1]) / len(plain))
    if min(len(ours), len(plain)) < 2:
        return ratio, math.nan, math.nan
    interval = ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    return ratio, math.exp(interval.low), math.exp(interval.high)


def main() -> None:
    """Train both ways with every seed and print CIDEr."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    torch.set_num_threads(1)
    frozen, gpt2 = given.work / "features" / "frozen", model_path("tabletop", "gpt2")
    rows = read_rows(given.work / "real" / "train" / "captions")
    references: dict[str, list[str]] = {}
    for name, text in read_rows(given.work / "real" / "test" / "captions"):
        references.setdefault(name, []).append(text)
    train, test = (read_array(frozen / f"real-{split}") for split in ("train", "test"))
    optim = {
        "steps": given.steps,
        "warmup": given.steps // 10,
        "lr": RATE,
        "schedule": "linear",
        "checkpoint_every": 100,
    }
    config = ClipCapConfig(batch_size=BATCH, max_tokens=TOKENS, device="cpu", optim=optim)
    systems = {}
    for seed in range(given.seeds):
        folder = given.out / f"seed-{seed}"
        captions = load(given.work / "real" / "train" / "captions")
        data = CaptionerData((CaptionedImages(load(frozen / "real-train"), captions),))
        ours = train_captioner(config, data, gpt2, folder / "captioner", seed=seed)
        predictions = folder / "predictions"
        how = PredictConfig(device="cpu")
        said = predict_captions(ours, load(frozen / "real-test"), predictions, how)
        systems[f"gmail-align {seed}"] = open_predictions(said).texts
        kept = folder / f"plain-{given.steps}.json"
        if not kept.exists():
            write_json(kept, plain_loop(gpt2, train, rows, test, given.steps, seed))
        systems[f"plain loop {seed}"] = json.loads(kept.read_text())
    scores = compare_captioners(systems, references, metrics=("BLEU4", "CIDEr"))
    values: dict[str, list[float]] = {"gmail-align": [], "plain loop": []}
    for name, found in scores.items():
        cider, bleu = (found.metrics[metric] for metric in ("CIDEr", "BLEU4"))
        print(f"{name:14} CIDEr {cider.value:.3f} [{cider.low:.3f}, {cider.high:.3f}]", end="  ")
        print(f"BLEU-4 {bleu.value:.3f}")
        values[name.rpartition(" ")[0]].append(cider.value)
    ratio, low, high = ratio_of_means(values["gmail-align"], values["plain loop"])
    print(f"{given.steps} steps, {given.seeds} seeds: ratio {ratio:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
