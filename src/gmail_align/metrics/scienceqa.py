"""ScienceQA (Lu et al., NeurIPS 2022): the two published ways of reading a letter, and groups.

They differ a great deal, so every number says which one was used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

LETTERS = ("A", "B", "C", "D", "E")
Rule = Literal["zeroshot", "finetuned"]
COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
"""Columns of the leaderboard, before the total."""

_SENTENCE = re.compile(r"The answer is ([A-Z]).")
_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
_LOWER = {f"grade{year}" for year in range(1, 7)}
_UPPER = {f"grade{year}" for year in range(7, 13)}


def read_letter(response: str, rule: Rule) -> str | None:
    """Return the letter that a response chooses, None where none is to be read.

    Args:
        response: What the model said.
        rule: ``zeroshot`` as lmms-eval scores a model that was asked for the letter: the letter
            alone in either case, or a capital first and a full stop second. ``finetuned`` as
            LLaVA's evaluation reads a model trained on ScienceQA: the capital alone, ``B. `` at
            the start, or just one "The answer is B."
    """
    return _zeroshot(response) if rule == "zeroshot" else _finetuned(response)


def _zeroshot(response: str) -> str | None:
    stripped = response.strip()
    if stripped.upper() in LETTERS:
        return stripped.upper()
    if len(stripped) >= 2 and stripped[0] in LETTERS and stripped[1] == ".":
        return stripped[0]
    return None


def _finetuned(response: str) -> str | None:
    if response in LETTERS:
        return response
    if len(response) >= 3 and response[0] in LETTERS and response[1:3] == ". ":
        return response[0]
    letters = _SENTENCE.findall(response)
    return letters[0] if len(letters) == 1 else None


def groups_of(problem: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of the ScienceQA table that a problem counts in.

    The official script's: NAT, SOC and LAN by ``subject`` (and not by the finer ``topic``); TXT has
    a hint, IMG an image, maybe both, NO neither; G1-6 and G7-12 by ``grade``. What a problem does
    not say puts it in no column.
    """
    subject, grade = str(problem.get("subject")), str(problem.get("grade"))
    groups = [_SUBJECTS[subject]] if subject in _SUBJECTS else []
    seen = [name for name, key in (("TXT", "hint"), ("IMG", "image")) if problem.get(key)]
    groups += seen or (["NO"] if "hint" in problem and "image" in problem else [])
    if grade in _LOWER | _UPPER:
        groups.append("G1-6" if grade in _LOWER else "G7-12")
    return tuple(groups)
