import ast
import errno
import inspect
import os
import pickle
import sqlite3
from pathlib import Path

import pytest

from gmail_align import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception)
]


@pytest.mark.parametrize("error", CLASSES)
def test_the_tree_in_the_docstring_names_every_error(error):
    assert error.__name__ in errors.__doc__
    assert issubclass(error, errors.GmailAlignError)
    assert error.__doc__


def test_users_mistakes_and_our_failures_are_apart():
    ours = {error for error in CLASSES if not issubclass(error, errors.UserError)}
    assert ours == {errors.GmailAlignError}


@pytest.mark.parametrize("error", CLASSES)
def test_errors_travel_between_processes(error):
    copy = pickle.loads(pickle.dumps(error("one sentence")))
    assert type(copy) is error
    assert str(copy) == "one sentence"


@pytest.mark.parametrize(
    "cause", [ValueError("odd\nmore"), KeyError("x"), RecursionError("deep"), OSError("truncated")]
)
def test_whatever_a_parser_raises_is_damage_in_one_line(cause):
    damaged = pytest.raises(errors.ModelError, match="a file is damaged: ")
    with damaged as caught, errors.damage_explained("a file", errors.ModelError):
        raise cause
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cause",
    [
        errors.ConfigError("mine"),
        MemoryError("no room"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("pool INTERNAL ASSERT FAILED at ParallelOpenMP.cpp:64: Invalid thread pool!"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_not_damage_passes(cause):
    with pytest.raises(type(cause)) as caught, errors.damage_explained("a file"):
        raise cause
    assert caught.value is cause


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP])
def test_what_the_system_refuses_is_never_called_damage(number):
    original = OSError(number, "words of a library")
    wrapped = ValueError("cannot parse")
    wrapped.__cause__ = OSError(number, os.strerror(number))
    foreign = RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")
    for cause in (original, wrapped, foreign):
        explained = errors.damage_explained("a file", errors.ModelError)
        with pytest.raises(errors.ModelError) as caught, explained:
            raise cause
        assert str(caught.value) == f"a file cannot be read: {os.strerror(number)}"


def reads_with_their_own_word():
    """Yield the places that call something damaged though they do not use the one wrapper."""
    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for handler in ast.walk(tree):
            if isinstance(handler, ast.ExceptHandler) and handler.type is not None:
                names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
                body = ast.unparse(handler)
                if names & {"OSError", "Exception"} and "damaged" in body:
                    yield f"{path.name}:{handler.lineno}"


def test_only_the_wrapper_turns_an_error_of_the_system_into_damage():
    assert {place.partition(":")[0] for place in reads_with_their_own_word()} == {"errors.py"}


def test_a_pipe_and_a_device_are_refused_before_they_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        refused = pytest.raises(errors.ConfigError, match=path.name)
        with refused, errors.damage_explained(path, errors.ConfigError):
            raise AssertionError("it was opened")
    for path in (tmp_path, Path("a" * 300), tmp_path / "absent"):
        errors.require_end(path)


def test_a_file_that_is_not_there_is_missing_not_damaged():
    with pytest.raises(errors.DataError, match="is missing"), errors.damage_explained("a file"):
        Path("/nowhere/at/all").read_bytes()


def test_a_full_folder_of_temporary_files_is_named(monkeypatch):
    monkeypatch.setenv("SQLITE_TMPDIR", "/some/where")
    full = pytest.raises(errors.DiskFullError, match="/some/where")
    with full, errors.full_disk_explained("the output"):
        raise sqlite3.OperationalError("database or disk is full")
