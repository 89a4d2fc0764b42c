"""What all tests share: no network, few threads, the same examples every time."""

from __future__ import annotations

import fcntl
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
from worlds.runs import COUNTS, counted_smoke, with_few_paraphrases

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")

LONG = (
    "tests/test_pipeline.py",
    "tests/test_torture.py",
    "workflow/test_init.py",
    "tests/test_paper_recipes.py",
    "studies/test_run.py",
    "synthesis/test_killed.py",
    "workflow/test_llava.py",
    "vlm/test_ranks.py",
    "metrics/test_caption_scores.py",
)
"""Files of few and long tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files: at the end one of two processes would wait for them."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))


@pytest.fixture(autouse=True)
def loud():
    """Give every test the progress output that a user sees, and leave none of it switched off."""
    progress.set_quiet(False)
    yield
    progress.set_quiet(False)


@pytest.fixture(scope="session", autouse=True)
def few_paraphrases(tmp_path_factory: pytest.TempPathFactory):
    """Let METEOR load few paraphrases; tests of its published numbers give it all again."""
    from gmail_align.metrics import meteor  # not before shapes are checked in what is imported

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("meteor")
        patch.setattr(meteor, "jar", with_few_paraphrases(meteor.jar, folder))
        yield


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of the finished smoke run; tests copy it before they change it.

    Test processes that run next to each other share it: the first makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    home = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    work = home / "runs" / "smoke"
    work.parent.mkdir(exist_ok=True)
    with (home / "runs" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (work / "result.json").exists():
            command = counted_smoke(work, work.with_name(COUNTS))
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return work


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Folder of published evaluator outputs; tests that need it are skipped where it is absent."""
    usual = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("GMAIL_ALIGN_DATA", usual)) / "oracles"
    if not folder.is_dir():
        pytest.skip("no oracle data: set GMAIL_ALIGN_DATA")
    return folder
