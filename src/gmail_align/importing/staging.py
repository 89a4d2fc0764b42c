"""What a source lists, in a temporary database: sorted, unique and counted at any size.

An importer puts every image and caption in; what cannot be used goes in as a fault with its
reason. Then it is read back in order, as often as needed, one row at a time.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from gmail_align.artifacts import canonical_json
from gmail_align.data.captions import Caption, name_id, safe_id, tidy
from gmail_align.data.images import Quarantined
from gmail_align.data.questions import Question
from gmail_align.data.unique import temporary_database
from gmail_align.errors import DataError
from gmail_align.importing.members import Members

_TABLES: Final = """
CREATE TABLE images (n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, place TEXT, label TEXT,
                     prompt TEXT, rank INTEGER NOT NULL DEFAULT 0, gone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE captions (n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, image TEXT, text TEXT);
CREATE TABLE questions (n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, row TEXT);
CREATE TABLE said (image TEXT PRIMARY KEY, captions INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE faults (n INTEGER PRIMARY KEY, kind TEXT, id TEXT, reason TEXT);
"""
_BY_NUMBER: Final = "CAST(id AS INTEGER), id"


@dataclass(frozen=True)
class StagedImage:
    """One listed image: its id, where its bytes are, its class and what it was generated from."""

    image_id: str
    place: str
    label: str = ""
    prompt: str = ""


class Staging:
    """Images, captions and faults of one import."""

    def __init__(self) -> None:
        self._database = temporary_database()
        for table in _TABLES.split(";")[:-1]:
            self._database.execute(table).close()
        weakref.finalize(self, self._database.close)
        self._sorted = False

    def add_image(self, image_id: str, place: str, *, label: str = "", prompt: str = "") -> bool:
        """List an image; False (and nothing done) when its id was listed before.

        One whose name is not UTF-8 is left out.

        Raises:
            DataError: the id cannot name a file.
        """
        if not _is_text(place + label):
            self.refuse("images", image_id, "has a name that is not UTF-8")
            return True
        sql = "INSERT OR IGNORE INTO images (id, place, label, prompt) VALUES (?, ?, ?, ?)"
        row = (safe_id(image_id, "an image"), place, label, prompt)
        return self._database.execute(sql, row).rowcount > 0

    def place(self, image_id: str) -> str | None:
        """Return where a listed image's bytes are; None when it is not listed."""
        sql = "SELECT place FROM images WHERE id = ?"
        row = self._database.execute(sql, (image_id,)).fetchone()
        return None if row is None else str(row[0])

    def number_captions(self, image_id: str, more: int) -> int:
        """Return the number (from 0) of the first of ``more`` further captions of an image."""
        sql = "SELECT captions FROM said WHERE image = ?"
        row = self._database.execute(sql, (image_id,)).fetchone()
        first = 0 if row is None else int(row[0])
        sql = "INSERT OR REPLACE INTO said (image, captions) VALUES (?, ?)"
        self._database.execute(sql, (image_id, first + more)).close()
        return first

    def add_caption(self, caption_id: str, text: str, image_id: str) -> bool:
        """List a caption, its text tidied; one that cannot be used is left out with its reason.

        Returns:
            False (and nothing done) when a caption of that id was listed before.

        Raises:
            DataError: an id cannot name a file.
        """
        safe_id(caption_id, "a caption")
        safe_id(image_id, f"the image of caption {caption_id}")
        try:
            row = (caption_id, image_id, tidy(text))
        except DataError as error:
            self.refuse("captions", caption_id, str(error))
            return True
        sql = "INSERT OR IGNORE INTO captions (id, image, text) VALUES (?, ?, ?)"
        return self._database.execute(sql, row).rowcount > 0

    def add_question(self, question: Question) -> bool:
        """List a question; False (and nothing done) when its id was listed before.

        Raises:
            DataError: the id cannot name a file.
        """
        sql = "INSERT OR IGNORE INTO questions (id, row) VALUES (?, ?)"
        row = (safe_id(question.question_id, "a question"), canonical_json(asdict(question)))
        return self._database.execute(sql, row).rowcount > 0

    def refuse(self, kind: str, one_id: str, reason: str) -> None:
        """Leave one of ``images``, ``captions`` or ``questions`` out, and say why."""
        sql = "INSERT INTO faults (kind, id, reason) VALUES (?, ?, ?)"
        shown = (one_id[:200], " ".join(reason.split()))
        self._database.execute(sql, (kind, *(x.encode(errors="replace").decode() for x in shown)))

    def sort_by_id(self) -> None:
        """Order images by id, and each image's captions by theirs; as numbers where all are."""
        for table in ("images", "captions"):
            sql = f"SELECT COUNT(*) FROM {table} WHERE id GLOB '*[^0-9]*'"
            named = self._one(sql)
            order = "id" if named else _BY_NUMBER
            ranks = f"ranks_{table}"
            self._database.execute(
                f"CREATE TABLE {ranks} (n INTEGER PRIMARY KEY, id TEXT UNIQUE)"
            ).close()
            self._database.execute(
                f"INSERT INTO {ranks} (id) SELECT id FROM {table} ORDER BY {order}"
            ).close()
        self._database.execute(
            "UPDATE images SET rank = (SELECT n FROM ranks_images AS r WHERE r.id = images.id)"
        ).close()
        self._sorted = True

    def sort_by_place(self, members: Members) -> None:
        """Order images as they lie in an archive that can only be read from front to back."""
        places = self._database.execute("SELECT n, place FROM images")
        while rows := places.fetchmany(10_000):
            ranks = [(members.place(place), n) for n, place in rows]
            self._database.executemany("UPDATE images SET rank = ? WHERE n = ?", ranks).close()

    def keep_captions(self, each: int) -> None:
        """Keep the first so many captions of every image."""
        order = "(SELECT n FROM ranks_captions AS r WHERE r.id = captions.id)"
        self._database.execute(
            "DELETE FROM captions WHERE n IN (SELECT n FROM (SELECT n, ROW_NUMBER() OVER "
            f"(PARTITION BY image ORDER BY {order if self._sorted else 'n'}) AS place "
            "FROM captions) WHERE place > ?)",
            (each,),
        ).close()

    def drop_strangers(self) -> None:
        """Drop the captions whose image is not listed, or was left out."""
        sql = "DELETE FROM captions WHERE image NOT IN (SELECT id FROM images WHERE NOT gone)"
        self._database.execute(sql).close()

    def strangers(self) -> Iterator[tuple[str, str]]:
        """Yield the id and image id of every caption whose image is not listed."""
        yield from self._database.execute(
            "SELECT id, image FROM captions WHERE image NOT IN (SELECT id FROM images) ORDER BY n"
        )

    def count(self, kind: str) -> int:
        """Return how many ``images``, ``captions`` or ``questions`` are listed and not left out."""
        there = " WHERE NOT gone" if kind == "images" else ""
        return self._one(f"SELECT COUNT(*) FROM {_checked(kind)}{there}")

    def images(self) -> Iterator[StagedImage]:
        """Yield the listed images in order."""
        sql = "SELECT id, place, label, prompt FROM images WHERE NOT gone ORDER BY rank, n"
        for row in self._database.execute(sql):
            yield StagedImage(*row)

    def captions(self) -> Iterator[Caption]:
        """Yield the captions in the order of their images, then in their own."""
        sql = (
            "SELECT c.id, c.text, c.image FROM captions AS c "
            "LEFT JOIN images AS i ON i.id = c.image ORDER BY i.n, c.n"
        )
        if self._sorted:
            sql = (
                "SELECT c.id, c.text, c.image FROM captions AS c "
                "LEFT JOIN ranks_images AS i ON i.id = c.image "
                "JOIN ranks_captions AS k ON k.id = c.id ORDER BY i.n, k.n"
            )
        for row in self._database.execute(sql):
            yield Caption(*row)

    def questions(self) -> Iterator[dict[str, Any]]:
        """Yield the questions as they were listed."""
        for (row,) in self._database.execute("SELECT row FROM questions ORDER BY n"):
            yield json.loads(row)

    def left_out(self, kind: str) -> Iterator[Quarantined]:
        """Yield what was left out of a kind, in the order of the source."""
        sql = "SELECT id, reason FROM faults WHERE kind = ? ORDER BY n"
        for row in self._database.execute(sql, (_checked(kind),)):
            yield Quarantined(*row)

    def gone(self) -> set[str]:
        """Return the ids of images that were left out and are not listed under any other name."""
        sql = "SELECT id FROM faults WHERE kind = 'images' AND id NOT IN (SELECT id FROM images)"
        return {row[0] for row in self._database.execute(sql)}

    def left_out_count(self, kind: str) -> int:
        """Return how many were left out of a kind."""
        return self._one("SELECT COUNT(*) FROM faults WHERE kind = ?", kind)

    def drop_missing(self, members: Members) -> str:
        """Leave out every image whose file is missing, and fingerprint the others' files.

        Returns:
            Fingerprint of every listed file's name and stamp (its size, and more in archives).
        """
        digest, comma = hashlib.sha256(b"["), ""
        for image in self.images():
            stamp = members.stamp(image.place)
            row = [image.place, *stamp] if stamp is not None else [image.place, None]
            digest.update((comma + canonical_json(row)).encode(errors="surrogateescape"))
            comma = ","
            if stamp is None:
                self.refuse("images", image.image_id, f"there is no file {image.place}")
        digest.update(b"]")
        self._database.execute(
            "UPDATE images SET gone = 1 WHERE id IN (SELECT id FROM faults WHERE kind = 'images' "
            "AND reason LIKE 'there is no file %')"
        ).close()
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """Return a fingerprint of every image, class, caption and fault that was put in."""
        digest = hashlib.sha256()
        for table in ("images", "captions", "questions", "faults"):
            rows: Iterator[Any] = self._database.execute(f"SELECT * FROM {table} ORDER BY n")
            for row in rows:
                digest.update((canonical_json(row) + "\n").encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def _one(self, sql: str, *values: str) -> int:
        return int(self._database.execute(sql, values).fetchone()[0])


def _is_text(name: str) -> bool:
    """Whether a name holds no half surrogates, as names of files that are not UTF-8 do."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def _checked(kind: str) -> str:
    if kind not in ("images", "captions", "questions"):
        raise ValueError(kind)
    return kind


def add(staging: Staging, image_id: str, place: str, captions: list[tuple[str, Any]]) -> None:
    """List an image, if it is new, and its captions; one that comes twice is left out."""
    staging.add_image(image_id, place)
    for caption_id, text in captions:
        if not isinstance(text, str):
            staging.refuse("captions", caption_id, "is no text")
        elif not staging.add_caption(caption_id, text, image_id):
            staging.refuse("captions", caption_id, "comes twice; the first is kept")


def located(members: Members | None, *names: str) -> str:
    """Return the first name under which a file is there, else the first name."""
    found: Iterator[str | None] = (members.find(name) for name in names) if members else iter(())
    return next((name for name in found if name), names[0])


def refuse_faults(staging: Staging, members: Members) -> None:
    """Leave out what a folder or archive itself cannot give."""
    for name, fault in members.listing():
        if fault:
            staging.refuse("images", name_id(name), f"{name} {fault}")
