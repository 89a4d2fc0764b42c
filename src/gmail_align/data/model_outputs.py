"""What models said: captions of images, and responses to questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import Artifact, read_jsonl
from gmail_align.data.json_files import file_fingerprint, first_of, read_json
from gmail_align.data.references import caption_entries, opened
from gmail_align.errors import ArtifactError, DataError, damage_explained, listed
from gmail_align.progress import say

PREDICTIONS: Final = "predictions.jsonl"
CUT: Final = "cut"
"""Key of a record whose text stopped at its longest length; other records do not have it."""
OUTPUTS_CUT: Final = "outputs_cut"
"""Note of a manifest: how many such texts there are."""
QUESTION_IDS: Final = ("question_id", "id", "image_id")
_RESPONSES: Final = ("response", "text", "prediction", "output")


@dataclass(frozen=True)
class Predictions:
    """What a model said.

    Attributes:
        texts: Image id -> caption, or question id -> response.
        fingerprint: Identity of the source.
        records: Question id -> the whole record of its response, where the source has records.
    """

    texts: Mapping[str, str]
    fingerprint: str
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def open_predictions(source: Path | Artifact) -> Predictions:
    """Open predicted captions: an artifact, COCO results, JSON lines, or a table.

    COCO results are a list of ``{image_id, caption}``, lines have ``image_id`` and ``text``, a
    table has image id -> caption. Only a captioner of ours may have written an empty caption.

    Raises:
        DataError: the file cannot be read, an entry does not have an image id or a caption, an
            image comes twice, or a caption of a plain file is empty.
        ArtifactError: the artifact holds something else.
    """
    artifact = opened(source, "predictions")
    if artifact is not None:
        texts = _indexed(artifact.folder, _rows_of(artifact))
        return Predictions(texts, artifact.fingerprint)
    assert isinstance(source, Path)
    path = source / PREDICTIONS if source.is_dir() else source
    texts = _caption_table(path, read_json(path))
    empty = [image_id for image_id, text in texts.items() if not text.strip()]
    if empty:
        raise DataError(
            f"{path} has an empty prediction for {listed(empty, 'image')}: predict again"
        )
    return Predictions(texts, file_fingerprint(path))


def open_responses(source: Path | Artifact) -> Predictions:
    """Open responses to questions: a table of id to text, records, or JSON lines of records.

    Raises:
        DataError: the file cannot be read, a record does not have an id or a text, or an id comes
            twice.
        ArtifactError: the artifact holds something else.
    """
    artifact = opened(source, "predictions")
    path = source.folder if isinstance(source, Artifact) else source
    path = path / PREDICTIONS if path.is_dir() else path
    body = read_json(path)
    print_of = file_fingerprint(path) if artifact is None else artifact.fingerprint
    if isinstance(body, list):
        records = _response_records(path, body)
        return Predictions(
            {name: one[0] for name, one in records.items()},
            print_of,
            {name: one[1] for name, one in records.items()},
        )
    if not isinstance(body, dict):
        raise DataError(
            f"{path} does not hold responses: give id -> response, or a list of records"
        )
    wrong = [name for name, value in body.items() if not isinstance(value, str)]
    if wrong:
        raise DataError(f"{path}: the response to {wrong[0]} is not text ({len(wrong)} such)")
    return Predictions(body, print_of)


def cut_mark(cut: bool) -> dict[str, bool]:
    """Return what the record of a text says about its end: nothing, unless it was cut."""
    return {CUT: True} if cut else {}


def tell_cut(records: Iterable[Mapping[str, Any]], most: int) -> dict[str, int]:
    """Say how many texts stopped at ``most`` tokens before an end; return a manifest's note of it.

    Where there is none, nothing is said and the note is empty.
    """
    marks = [CUT in record for record in records]
    if not any(marks):
        return {}
    say(
        f"{sum(marks)} of {len(marks)} texts stopped at the longest length, {most} tokens, before "
        "they ended"
    )
    return {OUTPUTS_CUT: sum(marks)}


def _rows_of(artifact: Artifact) -> Iterable[tuple[str, str]]:
    advice = f"delete {artifact.folder} and predict again"
    with damage_explained(artifact.path(PREDICTIONS), ArtifactError, advice):
        rows = caption_entries(
            artifact.path(PREDICTIONS), read_jsonl(artifact.path(PREDICTIONS)), "text"
        )
        return [(name, text.strip()) for name, text in rows]


def _caption_table(path: Path, body: Any) -> dict[str, str]:
    if isinstance(body, dict) and "image_id" in body:
        body = [body]
    if isinstance(body, dict) and body and all(isinstance(one, str) for one in body.values()):
        return dict(body)
    if not isinstance(body, list):
        what = (
            " (these are annotations)" if isinstance(body, dict) and "annotations" in body else ""
        )
        raise DataError(
            f"{path} does not hold predictions{what}: give COCO results, a list of image_id and "
            "caption, or JSON lines of image_id and text"
        )
    return _indexed(path, caption_entries(path, body, "caption"))


def _indexed(path: Path, rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    pairs = list(rows)
    counts = Counter(name for name, _ in pairs)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{path} has more than one caption for {listed(twice, 'image')}")
    return dict(pairs)


def _response_records(path: Path, records: list[Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    responses: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for number, record in enumerate(records):
        name, text = first_of(record, QUESTION_IDS), first_of(record, _RESPONSES)
        if name is None and isinstance(record, dict) and len(record) == 1:
            name, text = next(iter(record.items()))
        if name is None or not isinstance(text, str):
            raise DataError(f"record {number} of {path} does not have an id or a response: add it")
        if str(name) in responses:
            raise DataError(f"{path} holds more than one response to {name}: keep one")
        responses[str(name)] = text, record
    return responses
