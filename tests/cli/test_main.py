import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from gmail_align import __version__
from gmail_align.artifacts import begin
from gmail_align.cli import runs
from gmail_align.cli.main import COMMANDS, Entry, app
from gmail_align.errors import DataError, ModelError, Terminated, TrainingError

GMAIL_ALIGN = [sys.executable, "-m", "gmail_align"]
REFUSALS = (errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
SHARED = {"--config", "--set", "--dry-run", "--json", "--quiet", "--verbose", "--help"}
WORDS = [
    *chain.from_iterable(
        [[name]] if isinstance(row, Entry) else [[name, inner] for inner in row.commands]
        for name, row in COMMANDS.items()
    )
]


def call(*words, **settings):
    return CliRunner().invoke(app, [str(word) for word in words], **settings)


def leaf(words):
    command = get_command(app)
    context = command.make_context("gmail-align", list(words), resilient_parsing=True)
    for word in words:
        _, command, _ = command.resolve_command(context, [word])
    return command


def test_the_commands_are_these():
    assert [" ".join(words) for words in WORDS] == [
        "demo",
        "init",
        "run",
        "study",
        "recipes list",
        "recipes show",
        "recipes copy",
        "import path",
        "import coco",
        "import karpathy",
        "import flickr30k",
        "import cc",
        "import sharegpt4v",
        "import urban1k",
        "import folder",
        "import cifake",
        "import classification",
        "import webdataset",
        "import parquet",
        "import csv",
        "import jsonl",
        "import imagefolder",
        "import scienceqa",
        "import mmmu",
        "leaks",
        "choose",
        "split",
        "plan",
        "synthesize",
        "filter",
        "pair",
        "extract",
        "gap",
        "convert",
        "align",
        "align features",
        "export",
        "train clip",
        "train clipcap",
        "train ifcap",
        "train llava",
        "predict captions",
        "predict answers",
        "caption",
        "ask",
        "convert-clipcap",
        "evaluate retrieval",
        "evaluate zeroshot",
        "evaluate probe",
        "evaluate finetune",
        "evaluate captions",
        "evaluate answers",
        "compare",
        "track",
        "report",
        "app",
        "tabletop write",
        "tabletop train",
        "doctor",
    ]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_command_says_what_it_does_and_takes_the_shared_options(words):
    command = leaf(words)
    assert command.help
    options = {option for parameter in command.params for option in parameter.opts}
    assert options | {"--help"} >= SHARED
    silent = [parameter.name for parameter in command.params if not parameter.help]
    assert silent == []
    shown = call(*words, "--help")
    assert shown.exit_code == 0
    assert all(option in shown.stdout for option in SHARED)


def test_help_lists_every_command_and_imports_none():
    code = (
        "import sys; from gmail_align.cli.main import app;"
        "app(['--help'], standalone_mode=False);"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in ran.stdout for name in COMMANDS)
    loaded = set(ran.stderr.split())
    heavy = {"torch", "transformers", "numpy", "pydantic", "PIL", "pyarrow", "rich", "sklearn"}
    assert not heavy & loaded
    ours = {name for name in loaded if name.startswith("gmail_align.cli.")}
    assert ours == {"gmail_align.cli.main"}
    assert "..." not in ran.stdout.partition("Commands:")[2]


def test_no_command_imports_torch_for_its_help():
    code = (
        "import sys; from gmail_align.cli.main import app\n"
        f"for words in {WORDS}:\n"
        "    app([*words, '--help'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_light_commands_never_import_torch():
    code = (
        "import sys; from gmail_align.cli.main import app\n"
        "for words in (['recipes', 'list'], ['recipes', 'show', 'demo']):\n"
        "    app(words, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_the_version():
    assert call("--version").stdout == f"gmail-align {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demmo"], "Did you mean 'demo'?"),
        (["train", "clipcup"], "Did you mean 'clipcap'"),
        (["recipes", "show"], "Missing argument"),
        (["align", "--lr", "1"], "--set optim.lr=VALUE"),
        (["align", "--epochs", "1"], "--set optim.steps=VALUE"),
        (["align", "--gpt2", "1"], "No such option: --gpt2"),
        (["align", "--rank", "1"], "--set lora.rank=VALUE"),
        (["synthesize", "--num-inference-steps", "1"], "--steps"),
        (["synthesize", "--guidance", "1"], "--guidance-scale"),
        (["recipes", "list", "--nonsense"], "No such option"),
        (["tabletop", "write", "--out", "x", "--count", "none"], "Invalid value for '--count'"),
    ],
)
def test_wrong_usage_exits_with_2(words, message):
    ran = call(*words)
    assert ran.exit_code == 2
    assert message in ran.stderr
    assert "--optim" not in ran.stderr  # a table is not an option
    assert ran.stdout == ""


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (DataError("image 7\n  is broken"), 2, "gmail-align: image 7 is broken"),
        *((OSError(code, "no", "/x"), 2, "gmail-align: /x cannot be used") for code in REFUSALS),
        (FileNotFoundError(2, "no", b"/x"), 2, "gmail-align: /x cannot be used"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "gmail-align: no space is left"),
        (RuntimeError("writing: No space left on device (28)"), 2, "gmail-align: no space is left"),
        (
            caused(ModelError("/x is damaged"), PermissionError(13, "Permission denied", "/x")),
            2,
            "gmail-align: /x cannot be used: Permission denied",
        ),
        (KeyboardInterrupt(), 130, "gmail-align: interrupted; run the same command again"),
        (Terminated(), 143, "gmail-align: terminated; run the same command again"),
        (TrainingError("the loss is nan"), 2, "gmail-align: the loss is nan"),
        (MemoryError(), 1, "gmail-align: not enough memory"),
        (OSError(errno.ENOMEM, "no"), 1, "gmail-align: not enough memory"),
        (RuntimeError("alloc_cpu: can't allocate memory"), 1, "gmail-align: not enough memory"),
        (ImportError("libx.so: failed to map segment"), 1, "gmail-align: not enough memory"),
        (DataError("x\x1b[2Jy"), 2, "gmail-align: x\\u001b[2Jy"),
        (OSError(5, "I/O error"), 1, "gmail-align: this is a failure of gmail-align: OSError"),
        (OSError(2, "no", runs.__file__), 1, "this is a failure of gmail-align"),
        (KeyError("key"), 1, "gmail-align: this is a failure of gmail-align: KeyError: 'key'"),
    ],
)
def test_what_is_raised_becomes_a_sentence_and_an_exit_code(monkeypatch, raised, code, sentence):
    def fail(_):
        raised.__notes__ = ["in shard 3"]
        raise raised

    monkeypatch.setattr(runs, "recipe_file", fail)
    ran = call("recipes", "show", "demo")
    assert ran.exit_code == code
    assert sentence in ran.stderr.splitlines()[-1]
    assert ("Traceback" in ran.stderr) == ("a failure of" in ran.stderr)
    if "Traceback" not in ran.stderr:
        assert len(ran.stderr.splitlines()) == 1
    if isinstance(raised, DataError):
        assert ran.stderr.endswith("in shard 3\n")


def test_a_disk_that_is_full_while_writing(monkeypatch, tmp_path):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ran = call("recipes", "copy", "demo", tmp_path / "mine.toml")
    assert ran.exit_code == 2
    assert ran.stderr.startswith(f"gmail-align: no space is left to write {tmp_path}/mine.toml")
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_of_the_process(tmp_path):
    ran = subprocess.run([*GMAIL_ALIGN, "recipes", "show", "dmo"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == 1
    assert "'dmo'" in ran.stderr and "'demo'" in ran.stderr


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stopped_process_says_how_to_go_on(tmp_path, number, code, word):
    words = ["tabletop", "write", "--out", str(tmp_path), "--count", "3000"]
    process = subprocess.Popen(
        [*GMAIL_ALIGN, *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells' "&" ignores it
    )
    while not list(tmp_path.glob("images/*.jpg")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.endswith(f"gmail-align: {word}; run the same command again to go on\n")


def test_recipes_are_listed_shown_and_copied(tmp_path):
    listed = json.loads(call("recipes", "list", "--json").stdout)["recipes"]
    assert "demo" in listed
    assert all(listed.values())
    text = call("recipes", "show", "demo").stdout
    path = tmp_path / "mine.toml"
    assert call("recipes", "copy", "demo", path, "--dry-run").exit_code == 0
    assert not path.exists()
    assert call("recipes", "copy", "demo", path).exit_code == 0
    assert path.read_text().rstrip("\n") == text.rstrip("\n")
    again = call("recipes", "copy", "demo", path)
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    assert call("recipes", "copy", "smoke", tmp_path).exit_code == 0
    assert (tmp_path / "smoke.toml").exists()


def test_a_command_without_configuration_refuses_one():
    ran = call("recipes", "list", "--set", "a=1")
    assert ran.exit_code == 2
    assert "--config and --set" in ran.stderr


def test_quiet_leaves_nothing_but_errors(tmp_path):
    assert call("recipes", "list", "--quiet").output == ""
    assert call("recipes", "show", "dmo", "--quiet").stderr != ""


def test_a_place_that_cannot_be_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    begin(tmp_path / "images", "images", {}).finish({"images": 0})
    monkeypatch.setattr("gmail_align.cli.align.open_encoder", None)
    out = tmp_path / "file" / "features"
    ran = call("extract", tmp_path / "images", "--encoder", "tabletop", "--out", out)
    assert ran.exit_code == 2
    assert f"{tmp_path}/file is a file" in ran.stderr


def run_closed(redirections, words):
    """Run the command in a shell that closes standard files; return its exit code."""
    line = f'exec "$0" -m gmail_align "$@" {redirections}'
    return subprocess.run(["sh", "-c", line, sys.executable, *map(str, words)], timeout=300)


def test_closed_standard_files_change_no_exit_code(tmp_path):
    absent = ["choose", tmp_path / "absent", "--each", "1", "--out", tmp_path / "out"]
    assert run_closed("2>&-", absent).returncode == 2
    write = ["tabletop", "write", "--count", "2", "--size", "16", "--out"]
    assert run_closed("<&- >&- 2>&-", [*write, tmp_path / "a"]).returncode == 0
    assert run_closed("", [*write, tmp_path / "b", "--quiet"]).returncode == 0
    names = sorted(path.name for path in (tmp_path / "b").rglob("*"))
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == names
    for name in names:
        if (tmp_path / "b" / name).is_file():
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_stdout_that_cannot_be_written_is_the_users(tmp_path):
    assert run_closed("1</dev/null", ["recipes", "list"]).returncode == 2
