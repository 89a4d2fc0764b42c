"""What a look at someone's data tells: the layout, its sets and its sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

SPLITS: Final[dict[str | None, str]] = {
    "train": "train",
    None: "train",
    "restval": "train",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "test",
}
"""Split of files -> set of a recipe. Of several for one set, the first that is there counts."""
ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz")
_NOT_OPTIONS: Final = ("import", "expect", "about")

Table = dict[str, Any]


@dataclass
class Layout:
    """What a folder holds.

    Attributes:
        kind: Name of the layout, in words.
        data: Split -> table of a recipe; ``train`` is always there.
        images: Split -> number of images.
        captions: Split -> number of captions, where it is not that of the images.
        counted: Whether the numbers are counts; else they are estimates, and an import may differ.
        classes: Number of classes; 0 where images have captions of their own.
        generated: Table of generated images that lie there too.
        notes: What was seen and what is assumed, a sentence each.
        left_out: What belongs to none of the sets, a sentence each.
    """

    kind: str
    data: dict[str, Table]
    images: dict[str, int]
    captions: dict[str, int] = field(default_factory=dict)
    counted: bool = True
    classes: int = 0
    generated: Table | None = None
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def imports(self) -> dict[str, Table]:
        """Return the tables that name an importer, by split; ``generated`` among them."""
        tables = {name: table for name, table in self.data.items() if "import" in table}
        return tables | ({"generated": self.generated} if self.generated else {})

    def import_calls(self, out: Path) -> Iterator[tuple[str, Table, Path]]:
        """Yield the importer, its options and the folder of every import."""
        tables = self.imports()
        for name, table in tables.items():
            options = {key: one for key, one in table.items() if key not in _NOT_OPTIONS}
            yield table["import"], options, out / name if len(tables) > 1 else out


def file_suffix(name: str) -> str:
    """Return a file's suffix in small letters, without the dot."""
    return PurePosixPath(name).suffix.lower().lstrip(".")
