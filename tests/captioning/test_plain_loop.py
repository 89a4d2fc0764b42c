"""One training step here is one step of a plain transformers loop; see the baseline benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, GPT2LMHeadModel

from gmail_align.artifacts import Artifact, read_jsonl
from gmail_align.captioning.captioner import load_captioner
from gmail_align.features.store import open_features
from worlds.captioning import CAPTIONS

from .conftest import ROWS, quick, train_clipcap


def test_one_step_is_that_of_a_plain_loop(four: Artifact, gpt2: Path, tmp_path: Path) -> None:
    config = quick(2)
    out = train_clipcap(config, four, ROWS, gpt2, tmp_path / "out")
    losses = [row["total"] for row in read_jsonl(out.path("events.jsonl"))]
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    untrained = train_clipcap(quick(0), four, ROWS, gpt2, tmp_path / "untrained")
    drawn = load_file(untrained.path("mapper.safetensors"))
    mapper = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 96))
    mapper.load_state_dict(drawn)
    features = nn.functional.normalize(open_features(four).array, dim=-1)
    rows = [torch.tensor(tokenizer(text + tokenizer.eos_token)["input_ids"]) for text in CAPTIONS]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    attention = torch.cat([torch.ones(4, 3), (labels != -100).float()], dim=1)
    parameters = [*model.parameters(), *mapper.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.optim.lr, weight_decay=0.0)
    result = []
    for _ in range(2):
        prefix = mapper(features).view(4, 3, 32)
        loss = model(
            inputs_embeds=torch.cat([prefix, model.transformer.wte(ids)], dim=1),
            attention_mask=attention,
            labels=torch.cat([torch.full((4, 3), -100), labels], dim=1),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        result.append(loss.item())
    assert losses == pytest.approx(result, abs=1e-4)
    trained = load_captioner(out, torch.device("cpu"))
    for name, value in mapper.state_dict().items():
        assert torch.allclose(trained.mapper.state_dict()[name], value, atol=1e-3)
