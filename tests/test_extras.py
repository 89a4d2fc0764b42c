import ast
import importlib.util
import re
import sys
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
            "POT": "ot",
            "protobuf": "google.protobuf",
            "faiss-cpu": "faiss",
            "sentence-transformers": "sentence_transformers",
        }
        assert [renamed.get(package, package) for package in packages] == list(modules)


OPTIONAL = {"tabletop/training/flow.py"}
"""Modules that are imported after their extra was asked for."""


def test_a_plain_installation_has_what_modules_import_first():
    root = Path(__file__).parents[1]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    packages = {re.split(r"[>=<\[]", requirement)[0] for requirement in declared}
    known = {{"Pillow": "PIL", "scikit-learn": "sklearn"}.get(name, name) for name in packages}
    known |= sys.stdlib_module_names | {"gmail_align"}
    undeclared = {}
    source = root / "src/gmail_align"
    for file in sorted(source.rglob("*.py")):
        name = str(file.relative_to(source))
        strange = _imported_first(file.read_text()) - known
        if strange and name not in OPTIONAL:
            undeclared[name] = strange
    assert undeclared == {}


def _imported_first(text: str) -> set[str]:
    """Return the packages that the top level of a module imports."""
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names
