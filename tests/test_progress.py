import io
import re
import sys

import pytest

from gmail_align import progress
from gmail_align.progress import Progress, end_line, printable, say, set_quiet, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_terminal(monkeypatch):
    """Put a terminal of 60 columns in place of stderr; pytest resets stderr after fixtures."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    return screen


def test_plain_lines_come_now_and_then_and_at_the_end(clock, capsys):
    bar = Progress("images", 100, "img")
    for _ in range(25):
        clock[0] += 1
        bar.advance()
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "images 10/100 img, 1.0 img/s, 1:30 left",
        "images 20/100 img, 1.0 img/s, 1:20 left",
        "images 25/100 img, 1.0 img/s, 1:15 left",
    ]


def test_what_was_done_before_does_not_count_into_the_rate(clock, capsys):
    bar = Progress("images", 100, "img", done=50)
    clock[0] = 50
    bar.advance(50, note="seed 1")
    bar.close("done")
    assert capsys.readouterr().err.splitlines() == [
        "images 100/100 img, 1.0 img/s, in 0:50, seed 1",
        "images 100/100 img, 1.0 img/s, in 0:50, done",
    ]


def test_slow_jobs_show_their_rate_a_minute(clock, capsys):
    bar = Progress("rows", 30, "row")
    clock[0] = 40
    bar.advance()
    assert capsys.readouterr().err == "rows 1/30 row, 1.5 row/min, 19:20 left\n"


def test_nothing_done_yet_promises_nothing(clock, capsys):
    Progress("images", 100).close()
    assert "? left" in capsys.readouterr().err


def test_a_terminal_shows_one_line_that_is_redrawn(clock, monkeypatch):
    terminal = open_terminal(monkeypatch)
    bar = Progress("a long name " * 10, 3)
    for _ in range(2):
        clock[0] += 1
        bar.advance()
    say("a word in between")
    bar.close()
    first, second, rest = terminal.getvalue().split("\r\x1b[2K")
    assert len(first) == len(second) == 59
    assert rest.startswith("a word in between\na long name")
    assert rest.endswith("\n")


def test_an_error_starts_on_a_line_of_its_own(clock, monkeypatch):
    terminal = open_terminal(monkeypatch)
    bar = Progress("images", 3)
    clock[0] = 1
    bar.advance()
    end_line()
    end_line()
    sys.stderr.write("gmail-align: broken\n")
    assert re.fullmatch(r"images 1/3[^\n]*\ngmail-align: broken\n", terminal.getvalue())


def test_quiet_is_quiet(clock, monkeypatch):
    terminal = open_terminal(monkeypatch)
    set_quiet(True)
    say("hello")
    assert list(track([1, 2], "numbers", 2)) == [1, 2]
    end_line()
    assert terminal.getvalue() == ""


def test_tracking_passes_everything_on(capsys):
    assert list(track("abc", "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("letters 3/3 it")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2J\x07b", "a\\u001b[2J\\u0007b"),
        ("\x9b1m\x7f\r", "\\u009b1m\\u007f\\u000d"),
        ("\u202egpj\u2066", "\\u202egpj\\u2066"),
        ("\ud800", "\\ud800"),
        ("tab\tline\nä 漢 🐈", "tab\tline\nä 漢 🐈"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown


def test_no_message_steers_the_terminal(monkeypatch):
    screen = open_terminal(monkeypatch)
    say("x\x1b]0;title\x07")
    Progress("a\x1b[31m", 1).close("b\x1b[32m")
    assert "\x1b]" not in screen.getvalue()
    assert "\x1b[3" not in screen.getvalue()
