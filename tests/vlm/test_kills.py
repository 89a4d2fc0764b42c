"""SIGKILL at a step, and SIGTERM: the same command goes on, and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gmail_align.artifacts import load
from gmail_align.cli.main import main
from gmail_align.training import loop
from worlds.encoders import World

Start = Callable[..., int]


@pytest.fixture
def start(clip_folder: Path, llama: Path, world: World) -> Start:
    """Run ``train llava`` in a child, which sends itself a signal at a step."""

    def run(out: Path, number: int = 0, at: int = -1) -> int:
        words = f"train llava --encoder {clip_folder} --language-model {llama} --out {out}"
        words += f" --conversations {world.captions.folder} --images {world.generated.folder}"
        words += f" --validation-conversations {world.captions.folder}"
        words += f" --validation-images {world.real.folder} --tune lora --batch-rows 2"
        words += " --row-tokens 256 --rows-at-once 1 --device cpu --set lora.rank=4"
        words += " --set optim.steps=12 --set optim.checkpoint_every=2 --set optim.evaluate_every=3"
        child = os.fork()
        if child == 0:
            _in_child(words.split(), number, at)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


def _in_child(words: list[str], number: int, at: int) -> None:
    descend, code = loop._descend, 1

    def disturbed(*values: object) -> dict[str, float]:
        if values[3] == at:
            os.kill(os.getpid(), number)
        return descend(*values)

    loop._descend = disturbed
    sys.argv = ["gmail-align", *words]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


KILLS = [int(step) for step in os.environ.get("GMAIL_ALIGN_KILLS", "1 4").split()]


def test_a_signal_at_any_step_leaves_the_same_bytes(start: Start, tmp_path: Path) -> None:
    assert start(tmp_path / "whole") == 0
    expected = load(tmp_path / "whole", "vlm").manifest["files"]
    for step in KILLS:
        out = tmp_path / f"killed-{step}"
        assert start(out, signal.SIGKILL, step) == -signal.SIGKILL
        assert not (out / "manifest.json").exists()
        assert start(out) == 0
        assert load(out, "vlm").manifest["files"] == expected
    ended = tmp_path / "terminated"
    assert start(ended, signal.SIGTERM, 2) == 143
    assert (ended / "checkpoint.safetensors").exists()
    assert start(ended) == 0
    assert load(ended, "vlm").manifest["files"] == expected
