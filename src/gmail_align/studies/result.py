"""The result of a study: what ``result.json`` holds, from which every table of it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from gmail_align.artifacts import fingerprint, write_json
from gmail_align.config import Config
from gmail_align.errors import ArtifactError, first_line
from gmail_align.studies.language import Plot, Status

RESULT = "result.json"


class Number(Config):
    """A value with its 95% interval, where it has one."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    """Units that the interval resamples, such as images; 0 where it is not known."""


class ShownColumn(Config):
    """A column of the table."""

    name: str
    label: str
    metric: str = ""
    unit: Literal["percent", "plain", "count"] = "percent"


class ShownRow(Config):
    """A row of the table."""

    name: str
    label: str
    detail: str = ""
    mark: Literal["", "ours", "bound"] = ""
    note: str = ""
    """A sentence under the table, such as why the row could not be run."""
    values: dict[str, Number] = Field(default_factory=dict)
    """Column -> ours; what is missing is a dash."""
    seeds: dict[str, list[float]] = Field(default_factory=dict)
    """Column -> the value of each seed, where they are known."""
    paper: dict[str, float] = Field(default_factory=dict)
    """Column -> the paper's number, as printed."""
    status: dict[str, Status] = Field(default_factory=dict)
    """Column -> what is known of the paper's number."""


class TestedClaim(Config):
    """A claim and what became of it."""

    name: str
    better: str
    worse: str
    metric: str
    verdict: Literal["holds", "not significant", "reversed", "not tested"]
    difference: Number | None = None
    """Better minus worse, paired."""
    unit: Literal["percent", "plain", "count"] = "percent"
    paper: float | None = None
    """The same difference of the paper's numbers, as printed."""


class StudyResult(Config):
    """Everything that a study found."""

    study: str
    title: str
    number: str = ""
    about: str = ""
    scale: str
    base: str = ""
    """The recipe that it stands on."""
    seeds: int = 1
    columns: tuple[ShownColumn, ...]
    rows: tuple[ShownRow, ...]
    claims: tuple[TestedClaim, ...] = ()
    plots: tuple[Plot, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    seconds: float | None = None
    """Wall time of every step behind it, shared ones included."""
    notes: tuple[str, ...] = ()
    """What limits the numbers, in sentences."""
    made_from: str = ""
    """Fingerprint of the study and of every artifact that its numbers are read from."""
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identity of the whole result: what a table in a text refers to."""
        return fingerprint(self._body)

    @property
    def _body(self) -> dict[str, Any]:
        """What is written: a field that is added later changes no result that lacks it."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def write(self, path: Path) -> None:
        """Write the result with its fingerprint."""
        write_json(path, {"fingerprint": self.fingerprint, **self._body})


def read_study_result(path: Path) -> StudyResult:
    """Read a result that was written.

    Raises:
        ArtifactError: there is none, it is damaged, or it was changed by hand.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        stated = body.pop("fingerprint")
        result = StudyResult.model_validate(body)
    except (OSError, ValueError, KeyError, AttributeError, ValidationError) as error:
        raise ArtifactError(
            f"{path} does not hold the result of a study ({first_line(error)}): run it again"
        ) from error
    if stated != result.fingerprint:
        raise ArtifactError(f"{path} was changed after it was written: run the study again")
    return result
