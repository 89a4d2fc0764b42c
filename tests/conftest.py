"""What all tests share: no network, few threads, the same examples every time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on small tensors mostly wait

import pytest
from hypothesis import settings

from gmail_align import progress
from worlds.runs import COUNTS, counted_smoke

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def loud():
    """Give every test the progress output that a user sees, and leave none of it switched off."""
    progress.set_quiet(False)
    yield
    progress.set_quiet(False)


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of the finished smoke run; tests copy it before they change it."""
    work = tmp_path_factory.mktemp("runs") / "smoke"
    command = counted_smoke(work, work.with_name(COUNTS))
    subprocess.run([*command, "--json"], check=True, stdout=subprocess.DEVNULL)
    return work


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Folder of published evaluator outputs; tests that need it are skipped where it is absent."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("GMAIL_ALIGN_DATA", beside)) / "oracles"
    if not folder.is_dir():
        pytest.skip("no oracle data: set GMAIL_ALIGN_DATA")
    return folder
