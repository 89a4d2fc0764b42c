"""The public functions: the examples of their docstrings, run in order in one empty folder."""

from __future__ import annotations

import doctest
import inspect
import warnings

import pytest

import gmail_align
from gmail_align import api
from gmail_align.api import hub, multimodal, places, runs, scores, stages
from gmail_align.artifacts import Artifact
from gmail_align.errors import ConfigError
from gmail_align.results import Result

FUNCTIONS = [
    function
    for module in (stages, multimodal, scores, places, hub, runs)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and name in gmail_align.__all__
]
"""In the order of the files, which is that of the pipeline."""
CLASSES = [gmail_align.GmailEncoder, gmail_align.Captioner, Result.to_pandas]


def test_the_examples_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {name: getattr(gmail_align, name) for name in gmail_align.__all__}
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with warnings.catch_warnings():
        for thing in (api, *FUNCTIONS, *CLASSES):
            doc = inspect.getdoc(thing) or ""
            test = parser.get_doctest(doc, names, getattr(thing, "__name__", "api"), None, None)
            assert test.examples, f"{thing} does not have an example"
            runner.run(test, clear_globs=False)
            names.update(test.globs)
    assert runner.summarize(verbose=False).failed == 0


def test_every_stage_is_public():
    classes = {"GmailEncoder", "Captioner", "Route", "alignment_loss"}
    assert {f.__name__ for f in FUNCTIONS} | classes == (
        set(gmail_align.__all__) - {"GmailAlignError", "UserError", "__version__"}
    )


def test_a_wrong_key_names_its_neighbour(tmp_path):
    with pytest.raises(ConfigError, match="scheduler"):
        gmail_align.synthesize(
            Artifact(tmp_path, {"kind": "captions"}), tmp_path, settings={"schedule": "x"}
        )


def test_a_captioner_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="clipcap"):
        gmail_align.train_captioner("clipcup", tmp_path, tmp_path, tmp_path)
