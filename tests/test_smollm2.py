"""The benchmark of a real language model, with a tiny one in its place."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gmail_align.vlm.fitting import TrainingData
from worlds.captioning import build_llama

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import smollm2

    return smollm2


def test_photos_are_learnt_and_captioned(benchmark: ModuleType, tmp_path: Path) -> None:
    llava = benchmark.build(build_llama(tmp_path / "llama"))
    names = [f"p{number}" for number in range(6)]
    torch.manual_seed(0)
    features = torch.randn(6, benchmark.GRID**2, benchmark.WIDTH).half()
    places = benchmark.Places(benchmark.rows_of(names), features)
    words = {name: [f"a dog {number}", "a cat"] for number, name in enumerate(names)}
    photos = benchmark.Photos(names, words, words, None)
    samples = benchmark.samples_of(llava, photos, names[:4], 2)
    held = benchmark.samples_of(llava, photos, names[4:], 1)
    assert (len(samples), len(held)) == (8, 2)
    given = argparse.Namespace(steps=3, work=tmp_path, beams=2)
    benchmark.train(llava, given, TrainingData(samples, held, places))
    texts = benchmark.caption_all(llava, places, given)
    assert list(texts) == names
    assert benchmark.caption_all(llava, places, given) == texts


def test_without_its_data_it_is_skipped_in_a_sentence(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--work", str(tmp_path / "w"), "--data", "no"])
    benchmark.main()
    assert capsys.readouterr().out.startswith("skipped")
    assert not (tmp_path / "w").exists()
