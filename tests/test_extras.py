import importlib.util
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

from gmail_align import extras
from gmail_align.errors import MissingExtraError


def test_what_is_installed_is_imported():
    assert extras.require("json", "report").dumps([1]) == "[1]"


def test_what_is_missing_names_its_extra():
    with pytest.raises(MissingExtraError, match=r"pip install 'gmail-align\[report\]'"):
        extras.require("absent_package", "report")
    with pytest.raises(MissingExtraError, match="absent_package.part is not installed"):
        extras.require("absent_package.part", "report")


def test_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import absent_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_package"):
        extras.require("broken_package", "report")


@pytest.mark.parametrize("name", extras.EXTRAS)
def test_missing_modules_are_listed(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert extras.missing(name) == list(extras.EXTRAS[name])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert extras.missing(name) == []


def test_every_extra_is_one_that_pip_knows():
    known = set(metadata("gmail-align").get_all("Provides-Extra"))
    assert known == {*extras.EXTRAS, "all", "demo", "dev", "docs"}


def test_extras_and_the_project_file_name_the_same_packages():
    path = Path(__file__).parents[1] / "pyproject.toml"
    declared = tomllib.loads(path.read_text())["project"]["optional-dependencies"]
    for name, modules in extras.EXTRAS.items():
        packages = [requirement.split(">")[0].split("[")[0] for requirement in declared[name]]
        renamed = {
            "scikit-learn": "sklearn",
            "POT": "ot",
            "protobuf": "google.protobuf",
            "faiss-cpu": "faiss",
            "sentence-transformers": "sentence_transformers",
        }
        assert [renamed.get(package, package) for package in packages] == list(modules)
