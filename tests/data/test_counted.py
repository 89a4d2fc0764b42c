"""A copy of an artifact that broke off at the end of a row is not taken for the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gmail_align.artifacts import Artifact, begin, write_jsonl
from gmail_align.data.captions import Caption, cut_captions, iter_captions, write_captions
from gmail_align.data.images import ImageStore
from gmail_align.data.pairs import iter_pairs
from gmail_align.data.questions import read_questions
from gmail_align.errors import ArtifactError
from gmail_align.importing.run import import_data

ROWS: dict[str, dict[str, Any]] = {
    "pairs": {
        "caption_id": "a-0",
        "text": "a",
        "real_image_id": "a",
        "generated_image_id": "a-0-0",
    },
    "questions": {"question_id": "a", "question": "?"}
    | {key: ["a"] for key in ("answers", "choices", "image_ids", "groups")},
}


def made(kind: str, out: Path) -> Artifact:
    draft = begin(out, kind, {}, {})
    if kind == "captions":
        write_captions(draft, [Caption(f"{k}", "a", "a") for k in range(4)])
    else:
        write_jsonl(draft.path(f"{kind}.jsonl"), [ROWS[kind]] * 4)
    return draft.finish({kind: 4})


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("captions", iter_captions),
        ("captions", lambda artifact: cut_captions(artifact, 3)),
        ("pairs", iter_pairs),
        ("questions", read_questions),
    ],
)
def test_lines_that_are_missing_are_counted(
    tmp_path: Path, kind: str, read: Callable[[Artifact], Any]
) -> None:
    artifact = made(kind, tmp_path / kind)
    list(read(artifact))
    path = artifact.path(f"{kind}.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(ArtifactError, match=f"holds 3 {kind} .* of 4"):
        list(read(artifact))


def test_images_that_are_missing_are_counted(
    tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    (tmp_path / "s").mkdir()
    for k in range(3):
        (tmp_path / "s" / f"{k}.jpg").write_bytes(make_picture(k))
    images = import_data("folder", {"source": tmp_path / "s"}, tmp_path / "out")["images"]
    index = images.path("index.parquet")
    pq.write_table(pq.read_table(index).slice(1), index)
    with pytest.raises(ArtifactError, match="holds 2 images .* of 3"):
        ImageStore(images)
