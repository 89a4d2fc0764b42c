"""Memory does not grow with the set: metadata is read, sorted and written in a stream."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, resource, sys
from pathlib import Path
from gmail_align import progress
from gmail_align.importing.formats.captioned import cc
from gmail_align.importing.formats.coco import coco
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.write import write_import

kind, count, work = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
progress.set_quiet(True)
path = work / f"{kind}-{count}"
with path.open("w") as file:
    if kind == "coco":
        rows = (f'{{"id": {n}, "file_name": "{n:012d}.jpg"}}' for n in range(count))
        file.write('{"images": [')
        for n, row in enumerate(rows):
            file.write((", " if n else "") + row)
        file.write('], "annotations": [')
        for n in range(count):
            row = {"id": count - n, "image_id": n * 7919 % count, "caption": f"words of {n}"}
            file.write((", " if n else "") + json.dumps(row))
        file.write("]}")
    else:
        for n in range(count):
            file.write(f"some words about picture {n}\\thttp://x.org/{n}\\n")
source = coco(path, []) if kind == "coco" else cc(path, [])
made = write_import(source, work / f"out-{kind}-{count}", ImportOptions())
assert made["captions"].counts["captions"] == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak(kind: str, count: int, work: Path) -> int:
    """Return the largest resident memory in MiB of an import of so many captions."""
    words = [sys.executable, "-c", PROGRAM, kind, str(count), str(work)]
    return int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)


@pytest.mark.parametrize("kind", ["coco", "cc"])
def test_memory_does_not_grow_with_the_captions(tmp_path: Path, kind: str) -> None:
    large = int(os.environ.get("GMAIL_ALIGN_SCALE", "60000"))
    small = 10_000
    grown = peak(kind, large, tmp_path) - peak(kind, small, tmp_path)
    # Caches of two databases may fill up (32 MiB); what is beyond is held for every caption.
    assert grown <= 40 + 32 * (large > 100_000)
