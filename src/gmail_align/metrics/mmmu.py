"""MMMU's own rules (Yue et al., CVPR 2024) for reading an answer out of a response, and one more.

The rules are those of the benchmark's published evaluation, kept to the letter, with one change:
where that one draws a choice at random, the answer here is None, and the caller decides. They read
"(A) red (B) blue. Answer: A" as B, because letters in brackets come first; :func:`read_last_answer`
is a rule of our own that reads it as A.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

DISCIPLINES: Mapping[str, Sequence[str]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""Discipline -> its subjects."""

_EDGES = (",", ".", "!", "?", ";", ":", "'")
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234,567
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.2e-3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 12, 1.5, .5
)
_MARKS = re.compile(r"[*_`$]|\\boxed|\\text")
_WORD = r"(?!A\s+(?!(?:because|since|as|is|for|due|given)\b)[a-z]|I\s+[a-z])"
"""What keeps the article and the pronoun from being read as letters."""
_STATED = re.compile(
    r"(?i:answer|option|choice|letter|choose|pick|select)"
    r"(?:\s+(?i:is|would be|should be|must be))?\s*(?:[:=–—→-]|[-=]>)?\s*"
    rf"[({{\[]*{_WORD}([A-J])(?![A-Za-z'])"
    r"|\b([A-J])[)}\]]?\s+is\s+(?:the\s+)?(?i:correct|right)\b"
)
_BEGUN = re.compile(r"\(?([A-J])(?:[).:,]|\s*$)")
_BRACKETED = re.compile(r"[({\[]([A-J])[)}\]]")
_LETTER_ALONE = 4
"""A shorter response may be a small letter alone, as in ``(b)``."""
_FROM_LENGTH = 6
"""A response of this many words is searched for the choices' texts."""


def subject_of(question_id: str) -> str:
    """Return the subject in an id such as ``validation_Art_Theory_12``."""
    return "_".join(question_id.split("_")[1:-1])


def discipline_of(subject: str) -> str | None:
    """Return the discipline that a subject belongs to; None for no subject of MMMU."""
    return next((name for name, subjects in DISCIPLINES.items() if subject in subjects), None)


def read_choice(response: str, choices: Mapping[str, str | None]) -> str | None:
    """Return the letter of a multiple-choice response, None where there is none to be read.

    First rule that finds any: letters in brackets; letters as words of their own; in a response of
    more than five words, the text of a choice, in any case. Of several, the one that stands last.

    Args:
        response: What the model said.
        choices: Letter -> the choice's text; None where the text is not known.
    """
    for sign in _EDGES:
        response = response.strip(sign)
    padded = f" {response} "
    for form in ("({})", " {} "):
        chosen = _last(choices, padded.rfind, form.format)
        if chosen is not None:
            return chosen
    if len(padded.split()) < _FROM_LENGTH:
        return None
    texts = {letter: text.lower() for letter, text in choices.items() if text is not None}
    return _last(texts, padded.lower().rfind, texts.__getitem__)


def read_last_answer(response: str, choices: Mapping[str, str | None]) -> str | None:
    """Return the letter that a response states last as its answer, None where it states none.

    A statement is a letter behind "answer", "option", "choice" and the like (with "is", a colon or
    a line break between them), one that "is correct", or one that begins the first or the last
    line. Without any, the letter in brackets or the choice's text counts if it is the only one.
    Marks of bold text are passed over, and so are the article "A" and the pronoun "I".

    Args:
        response: What the model said.
        choices: Letter -> the choice's text; None where the text is not known.
    """
    plain = _MARKS.sub("", response).strip()
    if len(plain) < _LETTER_ALONE:
        plain = plain.upper()
    stated = [one or other for one, other in _STATED.findall(plain) if (one or other) in choices]
    if stated:
        return str(stated[-1])
    lines = plain.split("\n")
    for line in (lines[-1], lines[0]):
        begun = _BEGUN.match(line.strip())
        if begun and begun[1] in choices and len(_listed_letters(line, choices)) < 2:
            return str(begun[1])
    for named in (_listed_letters(plain, choices), _named(plain.lower(), choices)):
        if len(named) == 1:
            return named.pop()
    return None


def _named(plain: str, choices: Mapping[str, str | None]) -> set[str]:
    """Return the choices whose text stands in a response, and not within another's text."""
    texts = {letter: text.strip().lower() for letter, text in choices.items() if text}
    there = {
        letter: text
        for letter, text in texts.items()
        if text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", plain)
    }
    return {
        letter
        for letter, text in there.items()
        if not any(text != other and text in other for other in there.values())
    }


def _listed_letters(text: str, choices: Mapping[str, str | None]) -> set[str]:
    return {letter for letter in _BRACKETED.findall(text) if letter in choices}


def _last(
    letters: Iterable[str], find: Callable[[str], int], form: Callable[[str], str]
) -> str | None:
    """Return the letter whose form is found furthest right, the first of equals."""
    places = {letter: find(form(letter)) for letter in letters}
    present = [letter for letter, place in places.items() if place >= 0]
    return max(present, key=places.__getitem__, default=None)


def read_open(response: str) -> set[str | float]:
    """Return everything that an open response may be taken to answer: texts and numbers.

    A line's answer is what follows the last cue word ("is", "so", "answer", ...; "=" in the last
    line), the shortest if there are several cues; numbers in it count by themselves. Without any
    cue the whole response is the answer.
    """
    parts = _key_parts(response)
    numbers = [number for part in parts for form in _NUMBERS for number in re.findall(form, part)]
    return {value for part in [*parts, *numbers] for value in normalised(part)}


def _key_parts(response: str) -> list[str]:
    lowered = response.strip().strip(".").lower()
    lines = lowered.split("\n")
    parts = []
    for number, line in enumerate(lines):
        cues = (*_CUES, "=") if number == len(lines) - 1 else _CUES
        tails = [line.split(cue)[-1].strip() for cue in cues if cue in line]
        tail = _shortest(tails)
        if tail and tail not in _EDGES:
            parts.append(tail)
    return parts or [lowered]


def _shortest(tails: Sequence[str]) -> str:
    """Return the shortest tail; an empty one gives way to whatever cue comes next."""
    chosen = ""
    for tail in tails:
        if not chosen or len(tail) < len(chosen):
            chosen = tail
    return chosen


def normalised(text: str) -> list[str | float]:
    """Return a number rounded to two decimals, or lower-case text.

    A single letter comes back with a space before it and with one behind it, so that it does not
    match inside words.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def is_right_open(answers: Iterable[str | float], gold: Sequence[str]) -> bool:
    """Whether a text of ``answers`` contains a right one, or a number equals one."""
    right = [value for answer in gold for value in normalised(answer)]
    texts = [value for value in right if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in right
        for value in answers
    )
