"""Telling whether an id came before, without holding all ids in memory."""

from __future__ import annotations

import sqlite3
import weakref
from typing import Final

_CACHE: Final = 16_384
"""KiB of the database that are kept in memory."""


def temporary_database() -> sqlite3.Connection:
    """Open a private database in a temporary file, which is gone when it is closed.

    It may be used from several threads, one at a time.
    """
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE}"):
        database.execute(f"PRAGMA {setting}").close()
    database.execute("PRAGMA temp_store=FILE").close()
    database.execute("BEGIN").close()  # one transaction for its whole life: nothing is kept
    return database


class UniqueIds:
    """The ids that were seen; they lie on disk, so that memory does not grow with them."""

    def __init__(self) -> None:
        self._database = temporary_database()
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        weakref.finalize(self, self._database.close)
        self._count = 0

    def __len__(self) -> int:
        """Return how many different ids were added."""
        return self._count

    def add(self, value: str) -> bool:
        """Remember an id and tell whether it is new."""
        new = self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (value,)).rowcount > 0
        self._count += new
        return new
