"""Two processes train what one does, each with the whole model or with its part of every layer.

The training that is sharded is stopped once, and goes on from its sharded checkpoint.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import allclose

from gmail_align.artifacts import load, read_jsonl
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.vlm.config import LlavaConfig
from gmail_align.vlm.sets import ConversationSet
from gmail_align.vlm.training import train_llava
from worlds.encoders import World

CONFIG = {
    "tune": "full",
    "row_tokens": 256,
    "batch_rows": 4,
    "rows_at_once": 1,
    "device": "cpu",
    "optim": {
        "steps": 4,
        "lr": 2e-3,
        "schedule": "constant",
        "checkpoint_every": 1,
        "evaluate_every": 2,
    },
}
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from gmail_align.artifacts import load
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.training import loop
from gmail_align.vlm.config import LlavaConfig
from gmail_align.vlm.sets import ConversationSet
from gmail_align.vlm.training import train_llava

torch.set_num_threads(1)
given = json.loads(sys.argv[1])
captions, generated, real = (load(Path(given[n])) for n in ("captions", "generated", "real"))
sets = [ConversationSet(captions, generated), ConversationSet(Path(given["talks"]))]
held = ConversationSet(captions, real)
encoder = GmailEncoder.from_pretrained(given["clip"])

def train(name, **changes):
    config = LlavaConfig.model_validate(given["config"] | changes)
    out = Path(given["out"]) / name
    train_llava(config, sets, encoder, Path(given["llama"]), out, validation=held, seed=3)

train("replicate")
descend = loop._descend
loop._descend = lambda *values: descend(*values) if values[3] != 3 else sys.exit(3)
try:
    train("shard", parallel="shard")
except SystemExit:
    print(sorted(path.name for path in Path(given["out"], "shard").glob("checkpoint*")))
loop._descend = descend
train("shard", parallel="shard")
"""


def test_two_ranks_equal_one(clip_folder: Path, llama: Path, world: World, tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Say a word."}, {"from": "gpt", "value": "word"}]
    talks = tmp_path / "talks.json"
    talks.write_text(json.dumps([{"conversations": talk}] * 3))
    given = {"out": str(tmp_path), "clip": str(clip_folder), "llama": str(llama)}
    given |= {name: str(getattr(world, name).folder) for name in ("captions", "generated", "real")}
    said = _in_two_processes({**given, "config": CONFIG, "talks": str(talks)})
    own = [line for line in said[0].splitlines() if not line.startswith("[Gloo]")]
    assert own == ["['checkpoint-3', 'checkpoint.safetensors']"]
    sets = [ConversationSet(world.captions, world.generated), ConversationSet(talks)]
    held = ConversationSet(world.captions, world.real)
    config, encoder = LlavaConfig.model_validate(CONFIG), GmailEncoder.from_pretrained(clip_folder)
    one = train_llava(config, sets, encoder, llama, tmp_path / "one", validation=held, seed=3)
    for name in ("replicate", "shard"):
        two = load(tmp_path / name, "vlm")
        found, expected = (load_file(made.path("model.safetensors")) for made in (two, one))
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert allclose(found[key], tensor, atol=5e-5), (name, key)
        rows, others = (list(read_jsonl(made.path("events.jsonl"))) for made in (two, one))
        assert [row.pop("event") for row in rows] == [row.pop("event") for row in others]
        assert max(_differences(rows, others)) < 1e-4
        assert (
            two.fingerprint == one.fingerprint or two.manifest["config"] == one.manifest["config"]
        )


def _differences(rows: list[dict[str, float]], others: list[dict[str, float]]) -> list[float]:
    pairs = zip(rows, others, strict=True)
    return [abs(row[key] - other[key]) for row, other in pairs for key in other]


def _in_two_processes(given: dict[str, Any]) -> list[str]:
    """Run the program as torchrun would, and return what each process printed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(given)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=900) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], [error for _, error in said]
    assert "llava 4/4 steps" in said[0][1]
    assert "llava" not in said[1][1]  # one of them speaks for all
    return [output for output, _ in said]
