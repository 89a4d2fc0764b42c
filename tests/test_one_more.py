"""One more of a kind is one entry of a table: the rest of the package takes it from there."""

import inspect
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, get_args

import pytest
from pydantic import Field

from gmail_align import recipe_tables
from gmail_align.captioning.config import CaptionerConfig
from gmail_align.captioning.inputs import CaptionerData
from gmail_align.captioning.kinds import CAPTIONERS, CaptionerKind, kind_of
from gmail_align.cli.captioners import train_command
from gmail_align.cli.data import import_command
from gmail_align.encoders.backbones import BACKBONES, load_backbone
from gmail_align.encoders.backbones.clip import ClipBackbone
from gmail_align.evaluation.captions import CaptionOptions, evaluate_captions
from gmail_align.importing.run import import_data
from gmail_align.importing.source import Source
from gmail_align.importing.staging import Staging
from gmail_align.importing.table import IMPORTERS, Importer
from gmail_align.metrics import caption_scores
from gmail_align.metrics.caption_scores import CAPTION_METRICS, CaptionMetric

HOUSE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "house.py"))


def add_module(monkeypatch, name, **content):
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def lines(
    source: Annotated[Path, Field(description="A text file.")],
    skip: Annotated[int, Field(ge=0, description="Lines to leave out.")] = 0,
) -> Source:
    """Import a caption a line."""
    staging = Staging()
    for number, text in enumerate(source.read_text().splitlines()[skip:]):
        staging.add_caption(f"c{number}", text, f"i{number}")
    return Source(config={"format": "lines"}, inputs={"lines": "1"}, staging=staging)


def test_an_importer_is_a_function_and_a_line(monkeypatch, tmp_path):
    add_module(monkeypatch, "gmail_align.importing.formats.lines", lines=lines)
    monkeypatch.setitem(IMPORTERS, "lines", Importer("lines:lines", "A caption a line."))
    file = tmp_path / "captions.txt"
    file.write_text("a header\na red ball\na blue cube\n")
    made = import_data("lines", {"source": file, "skip": 1}, tmp_path / "out")
    assert made["captions"].counts["captions"] == 2
    options = inspect.signature(import_command("lines")).parameters
    assert {"source", "skip", "out", "protocol"} <= options.keys()


def test_a_caption_metric_is_a_function_and_a_line(monkeypatch, tmp_path):
    def words(captions: Sequence[str], references: Sequence[Sequence[str]]):
        return caption_scores.np.array([float(len(text.split())) for text in captions])

    monkeypatch.setattr(caption_scores, "tokenize", dict)
    monkeypatch.setitem(CAPTION_METRICS, "Words", CaptionMetric(lambda task: task.each(words)))
    said = tmp_path / "said.json"
    said.write_text(json.dumps([{"image_id": i, "caption": "a ball " * (i + 1)} for i in range(2)]))
    rows = [{"id": i, "image_id": i, "caption": "a red ball"} for i in range(2)]
    human = tmp_path / "human.json"
    human.write_text(json.dumps({"annotations": rows}))
    options = CaptionOptions(metrics=["Words"])
    result = evaluate_captions({"mine": said}, human, tmp_path / "out", options)
    assert result.metrics["Words"].value == 3.0
    assert result.items[""].columns["Words"].value == 3.0


class SongConfig(CaptionerConfig):
    """Sings."""

    reads_texts = True
    pitch: int = 440
    """Hertz."""


def song_inputs(held: object, /, songs: list[Path]) -> CaptionerData:
    """Train on songs.

    Args:
        held: Held-out images.
        songs: Songs.
    """
    return CaptionerData()


def test_a_captioner_is_a_package_and_a_line(monkeypatch):
    add_module(monkeypatch, "songs.config", CONFIG=SongConfig, inputs=song_inputs)
    monkeypatch.setitem(CAPTIONERS, "songs", CaptionerKind("songs", "Train a singer."))
    assert kind_of(SongConfig()) == "songs"
    options = inspect.signature(train_command("songs")).parameters
    assert {"songs", "pitch", "language_model", "out"} <= options.keys()


def test_recipes_know_the_captioners_of_the_table():
    assert get_args(recipe_tables.LearnerKind) == (*CAPTIONERS, "llava", "probe", "none")


def test_a_backbone_is_a_class_and_a_line(monkeypatch, tmp_path):
    class Toy(ClipBackbone):
        @classmethod
        def load(cls, folder):
            assert folder == tmp_path
            return cls.__new__(cls)

    monkeypatch.setitem(BACKBONES, "toy", Toy)
    (tmp_path / "config.json").write_text('{"model_type": "toy"}')
    assert type(load_backbone(tmp_path)) is Toy


@pytest.mark.parametrize("label", HOUSE["EXAMPLES"])
def test_few_files_name_an_example(label, vocabulary):
    assert len(HOUSE["naming"](label, vocabulary)) <= 3


@pytest.fixture(scope="module")
def vocabulary():
    return HOUSE["vocabulary_of"](HOUSE["working_tree"]())
