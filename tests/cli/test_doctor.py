import importlib.util
import json

import pytest
from typer.testing import CliRunner

from gmail_align.cli.main import app
from gmail_align.extras import EXTRAS


@pytest.fixture
def hide(monkeypatch):
    """Make modules look as if they were not installed."""
    real = importlib.util.find_spec

    def hiding(*names):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in names else real(name)
        )

    return hiding


def doctor(*words):
    return CliRunner().invoke(app, ["doctor", *words])


def test_what_is_there_is_listed():
    ran = doctor()
    assert ran.exit_code == 0
    for word in ("python", "torch", "[synthesis]", "[captions]", "[report]", "java", "gpu", "disk"):
        assert any(line.startswith(word) for line in ran.stdout.splitlines())


def test_json_says_the_same():
    result = json.loads(doctor("--json").stdout)
    assert result["missing"] == []
    assert result["extras"].keys() == EXTRAS.keys()
    assert result["free_disk_gb"] > 0


def test_a_missing_extra_says_what_it_disables_and_how_to_get_it(hide):
    hide("matplotlib", "jinja2")
    ran = doctor()
    assert ran.exit_code == 0
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith("[report]"))
    assert "matplotlib, jinja2 missing, which disables" in line
    assert "pip install 'gmail-align[report]'" in line


def test_a_missing_core_package_exits_with_2(hide):
    hide("peft")
    ran = doctor()
    assert ran.exit_code == 2
    assert "peft          MISSING" in ran.stdout


def test_no_java_says_what_is_off(monkeypatch):
    from gmail_align.errors import MissingExtraError
    from gmail_align.metrics import java

    def none(*_):
        raise MissingExtraError("there is no Java")

    monkeypatch.setattr(java, "java_command", none)
    assert "missing, which disables METEOR" in doctor().stdout
