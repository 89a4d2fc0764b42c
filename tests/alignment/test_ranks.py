"""Two processes train what one does: same global batch, same adapter up to rounding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import allclose

from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.run import Sources, align
from gmail_align.artifacts import load, read_jsonl
from gmail_align.encoders.config import LoraSettings
from gmail_align.training.config import OptimConfig

OPTIM = OptimConfig(steps=5, lr=2e-3, schedule="constant", checkpoint_every=2, evaluate_every=2)
CONFIG = AlignConfig(
    batch_size=7,
    holdout=0.25,
    optim=OPTIM,
    weights=AlignWeights(distill_real=0.5, norm=0.1, patch=0.2),
    learn_temperature=True,
    loss_chunk=3,
    micro_batch=2,
    lora=LoraSettings(towers="both"),
    device="cpu",
)
PROGRAM = """
import json, sys
import torch
from pathlib import Path
from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.run import Sources, align
from gmail_align.alignment.guard import Guard
from gmail_align.artifacts import load

measured, metrics = [], Guard.metrics
Guard.metrics = lambda guard: measured.append(1) or metrics(guard)
torch.set_num_threads(1)
given = json.loads(sys.argv[1])
sources = [load(Path(given[name])) for name in ("pairs", "real", "generated")]
config = AlignConfig.model_validate(given["config"])
align(config, Sources(*sources), Path(given["base"]), Path(given["out"]), seed=3)
print(len(measured), "evaluations", file=sys.stderr)
"""


def _start(given: dict[str, Any], ranks: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(given)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def test_two_ranks_equal_one(clip_folder: Path, world: Any, tmp_path: Path) -> None:
    given = {"out": str(tmp_path / "two"), "base": str(clip_folder)}
    given |= {name: str(getattr(world, name).folder) for name in ("pairs", "real", "generated")}
    running = _start({**given, "config": CONFIG.model_dump(mode="json")}, 2)
    sources = (world.pairs, world.real, world.generated)
    alone = align(CONFIG, Sources(*sources), clip_folder, tmp_path / "one", seed=3)
    try:
        said = [process.communicate(timeout=300)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
    assert "alignment 5/5 steps" in said[0]
    for words in ("alignment", "images", "features"):
        assert words not in said[1]  # one of them speaks for all
    assert "0 evaluations" in said[1]  # the first one measures for all
    two = load(tmp_path / "two", "encoder")
    assert two.counts == alone.counts
    assert two.manifest["notes"]["best_step"] == alone.manifest["notes"]["best_step"]
    weights = "adapter_model.safetensors"
    for name in (f"adapter/{weights}", f"adapter_text/{weights}", "heads.safetensors"):
        result, expected = load_file(two.path(name)), load_file(alone.path(name))
        assert result.keys() == expected.keys()
        for key, tensor in expected.items():
            assert allclose(result[key], tensor, atol=2e-5), key
    rows, others = (list(read_jsonl(made.path("events.jsonl"))) for made in (two, alone))
    assert [row["event"] for row in rows] == [row["event"] for row in others]
    for row, other in zip(rows, others, strict=True):
        numbers = {key: value for key, value in other.items() if key != "event"}
        assert {key: row[key] for key in numbers} == pytest.approx(numbers, abs=1e-4)
