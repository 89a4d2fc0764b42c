"""What every image or question adds to a result, kept beside it so that results can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from gmail_align.artifacts import write_bytes
from gmail_align.errors import DataError, damage_explained
from gmail_align.metrics.bootstrap import Values
from gmail_align.metrics.statistics import STATISTICS, Column

ITEMS: Final = "items.safetensors"
_ABOUT: Final = "gmail_align_items"


@dataclass(frozen=True)
class Items:
    """A result, item by item.

    Attributes:
        protocol: Name of the protocol.
        ids: Images or questions.
        columns: Metric -> what each of them adds to it, a row an id.
    """

    protocol: str
    ids: tuple[str, ...]
    columns: Mapping[str, Column] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Identity of the protocol, the ids and the numbers."""
        digest = hashlib.sha256(_packed(self))
        return digest.hexdigest()[:16]

    def in_order_of(self, ids: tuple[str, ...]) -> Items:
        """Return the same items in another order of the same ids."""
        if ids == self.ids:
            return self
        places = {name: row for row, name in enumerate(self.ids)}
        rows = np.array([places[name] for name in ids], dtype=np.intp)
        moved: dict[int, Values] = {}
        for column in self.columns.values():  # columns that share an array go on sharing it
            moved.setdefault(id(column.values), column.values[rows])
        columns = {
            name: Column(column.kind, moved[id(column.values)])
            for name, column in self.columns.items()
        }
        return Items(self.protocol, ids, columns)


def items_name(system: str) -> str:
    """Return the file of a captioner's items; ``""`` stands for the only one of a result."""
    return f"items/{quote(system, safe='')}.safetensors" if system else ITEMS


def write_items(path: Path, items: Items) -> None:
    """Write items to a safetensors file."""
    write_bytes(path, _packed(items))


def _packed(items: Items) -> bytes:
    """Return items as a safetensors file, each array once."""
    arrays = {id(column.values): column.values for column in items.columns.values()}
    names = {key: str(number) for number, key in enumerate(arrays)}
    about = {
        "protocol": items.protocol,
        "ids": list(items.ids),
        "columns": {name: [one.kind, names[id(one.values)]] for name, one in items.columns.items()},
    }
    tensors = {names[key]: np.ascontiguousarray(values) for key, values in arrays.items()}
    return save(tensors, {_ABOUT: json.dumps(about, ensure_ascii=False)})


def read_items(path: Path) -> Items:
    """Read what :func:`write_items` wrote, from the file or from the folder of a result.

    Raises:
        DataError: there are no items, or they are damaged.
    """
    file = path / ITEMS if path.is_dir() else path
    if not file.is_file():
        several = sorted(one.name for one in (path / "items").glob("*.safetensors"))
        if several:
            raise DataError(
                f"{path} holds {len(several)} captioners: name one, such as "
                f"{path / 'items' / several[0]}"
            )
        raise DataError(
            f"{path} keeps no items to compare: evaluate again with --out, or give predictions"
        )
    with damage_explained(file, DataError, "evaluate again"):
        with safe_open(str(file), framework="numpy") as opened:
            about = json.loads((opened.metadata() or {})[_ABOUT])
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        columns = {
            name: Column(kind, arrays[key]) for name, (kind, key) in about["columns"].items()
        }
        items = Items(about["protocol"], tuple(about["ids"]), columns)
        sound = all(
            one.kind in STATISTICS and len(one.values) == len(items.ids) for one in columns.values()
        )
        if not sound:
            raise ValueError("a column is of another kind or length")
        return items
