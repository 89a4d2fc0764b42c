"""What a source lists, in a temporary database: sorted, unique and counted at any size.

An importer puts every image and caption in; what cannot be used goes in as a fault with its
reason. An id that cannot name a file is shortened, with a hash of the whole. Then everything is
read back in order, as often as needed, one row at a time.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from gmail_align.artifacts import canonical_json
from gmail_align.data.captions import Caption, tidy
from gmail_align.data.decode import SUFFIXES
from gmail_align.data.ids import fit_id, key_id, name_id
from gmail_align.data.images import Quarantined
from gmail_align.data.questions import Question
from gmail_align.data.unique import temporary_database
from gmail_align.errors import DataError
from gmail_align.importing.members import Members, is_text, plain_name, suffix

_TABLES: Final = """
CREATE TABLE images (n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, place TEXT, label TEXT,
                     prompt TEXT, rank INTEGER NOT NULL DEFAULT 0, gone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE captions (n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, image TEXT, text TEXT);
CREATE INDEX places ON images (place);
CREATE TABLE questions (n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, row TEXT);
CREATE TABLE names (place TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID;
CREATE TABLE digests (id TEXT PRIMARY KEY, digest TEXT) WITHOUT ROWID;
CREATE INDEX same ON digests (digest);
CREATE TABLE keys (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE caption_counts (image TEXT PRIMARY KEY, captions INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE faults (n INTEGER PRIMARY KEY, kind TEXT, id TEXT, reason TEXT);
"""
_BY_NUMBER: Final = "CAST(id AS INTEGER), id"
_KINDS: Final = 100  # suffixes that are counted
_REASON: Final = 400  # characters of a reason; a name in it may be a whole image in base64


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
        self._unclear: dict[str, str] = {}
        self.passed_over: Counter[str] = Counter()
        """Suffix -> number of files that are neither images nor captions."""

    def image_id(self, name: str, place: str) -> str:
        """Return the id of the image that a source names: one place has one id of its own.

        It is made of the first name without its suffix; where another place has that id already, of
        the whole place (``1.png`` beside ``1.jpg``, ``dog/1.jpg`` beside ``cat/1.jpg``).
        """
        sql = "SELECT id FROM images WHERE place = ? ORDER BY n LIMIT 1"
        if is_text(place) and (row := self._database.execute(sql, (place,)).fetchone()):
            return str(row[0])
        own = name_id(name)
        return own if self.place(own) in (None, place) else key_id(place)

    def add_image(self, image_id: str, place: str, *, label: str = "", prompt: str = "") -> bool:
        """List an image; False (and nothing done) when its id was listed before.

        One whose name is not UTF-8 is left out.
        """
        image_id = fit_id(image_id)
        if not is_text(place + label):
            self.refuse("images", image_id, "has a name that is not UTF-8")
            return True
        sql = "INSERT OR IGNORE INTO images (id, place, label, prompt) VALUES (?, ?, ?, ?)"
        row = (image_id, place, label, prompt)
        return self._database.execute(sql, row).rowcount > 0

    def add(self, image_id: str, place: str, captions: Sequence[tuple[str, Any]]) -> None:
        """List an image, if it is new, and its captions (id, text); what cannot be used is refused.

        Where the id belongs to another place, the image and its captions are left out: they would
        be bound to the wrong image.
        """
        image_id = fit_id(image_id)
        if self.place(image_id) not in (None, place):
            reason = f"the id {image_id} comes twice, with another file; the first is kept"
            self.refuse("images", image_id, reason)
            for caption_id, _ in captions:
                self.refuse("captions", caption_id, f"its image is left out: {reason}")
            return
        self.add_image(image_id, place)
        self.add_captions(image_id, captions)

    def add_captions(self, image_id: str, captions: Sequence[tuple[str, Any]]) -> None:
        """List captions (id, text) of an image; what cannot be used is refused with its reason."""
        for caption_id, text in captions:
            if isinstance(text, DataError):
                self.refuse("captions", caption_id, str(text))
            elif not isinstance(text, str):
                self.refuse("captions", caption_id, "is not a text")
            elif not self.add_caption(caption_id, text, image_id):
                self.refuse("captions", caption_id, "comes twice; the first is kept")

    def same_image(self, digest: str, image_id: str | None = None) -> str | None:
        """Return the image whose bytes have a digest; of a given id, that image or none."""
        sql = "SELECT id FROM digests WHERE digest = ? AND ? IN (id, '') LIMIT 1"
        row = self._database.execute(sql, (digest, image_id or "")).fetchone()
        return None if row is None else str(row[0])

    def note_digest(self, image_id: str, digest: str) -> None:
        """Remember the digest of an image's bytes."""
        row = (image_id, digest)
        self._database.execute("INSERT OR IGNORE INTO digests VALUES (?, ?)", row).close()

    def claim(self, key: str) -> bool:
        """Take a key for a sample; False when a sample has it already."""
        sql = "INSERT OR IGNORE INTO keys (id) VALUES (?)"
        return self._database.execute(sql, (key,)).rowcount > 0

    def locate(self, members: Members | None, *names: str, written: str = "") -> str:
        """Return the first name under which a file is there, else the first name.

        A name that stands for several files, and a file that several names stand for, is
        remembered: :meth:`drop_missing` refuses it.

        Args:
            members: Where the files are; None finds nothing.
            names: What the file may be called.
            written: How the source itself calls it; by default the first of ``names``.
        """
        for name in names if members else ():
            try:
                place = members.find(name)  # type: ignore[union-attr]
            except DataError as error:
                self._unclear[name] = str(error)
                return name
            if place:
                exact = name == place == names[0]
                self._note_name(
                    place, plain_name((place if exact else written or names[0]).strip())
                )
                return place
        return names[0]

    def _note_name(self, place: str, name: str) -> None:
        """Remember how the source calls a file; another name for it may mean another file."""
        row = self._database.execute("SELECT name FROM names WHERE place = ?", (place,)).fetchone()
        if row is None:
            self._database.execute("INSERT INTO names VALUES (?, ?)", (place, name)).close()
        elif row[0] != name:
            self._unclear[place] = (
                f"{place} may be {row[0]} or {name}: give folders or archives that hold both"
            )

    def refuse_faults(self, members: Members) -> None:
        """Leave out what a folder or archive itself cannot give."""
        for name, fault in members.listing():
            if fault:
                self.refuse("images", name_id(name), f"{name} {fault}")

    def place(self, image_id: str) -> str | None:
        """Return where a listed image's bytes are; None when it is not listed."""
        sql = "SELECT place FROM images WHERE id = ?"
        row = self._database.execute(sql, (image_id,)).fetchone()
        return None if row is None else str(row[0])

    def number_captions(self, image_id: str, more: int) -> int:
        """Return the number (from 0) of the first of ``more`` further captions of an image."""
        sql = "SELECT captions FROM caption_counts WHERE image = ?"
        row = self._database.execute(sql, (image_id,)).fetchone()
        first = 0 if row is None else int(row[0])
        sql = "INSERT OR REPLACE INTO caption_counts (image, captions) VALUES (?, ?)"
        self._database.execute(sql, (image_id, first + more)).close()
        return first

    def add_caption(self, caption_id: str, text: str, image_id: str) -> bool:
        """List a caption, its text tidied; one that cannot be used is left out with its reason.

        Returns:
            False (and nothing done) when a caption of that id was listed before.
        """
        caption_id = fit_id(caption_id)
        try:
            row = (caption_id, fit_id(image_id), tidy(text))
        except DataError as error:
            self.refuse("captions", caption_id, str(error))
            return True
        sql = "INSERT OR IGNORE INTO captions (id, image, text) VALUES (?, ?, ?)"
        return self._database.execute(sql, row).rowcount > 0

    def count_others(self, members: Members) -> None:
        """Count the files that are not images, by suffix: they are passed over."""
        names = (name for name, fault in members.listing() if not fault)
        self.pass_over(name for name in names if suffix(name) not in SUFFIXES)

    def pass_over(self, names: Iterable[str]) -> None:
        """Count files by suffix; one that is no word, or the hundredth of all, counts as ''."""
        for kind in map(suffix, names):
            room = len(self.passed_over) < _KINDS or kind in self.passed_over
            self.passed_over[kind if kind.isalnum() and len(kind) < 12 and room else ""] += 1

    def add_question(self, question: Question) -> bool:
        """List a question; False (and nothing done) when its id was listed before."""
        one_id, images = fit_id(question.question_id), tuple(map(fit_id, question.image_ids))
        question = replace(question, question_id=one_id, image_ids=images)
        sql = "INSERT OR IGNORE INTO questions (id, row) VALUES (?, ?)"
        row = (one_id, canonical_json(asdict(question)))
        return self._database.execute(sql, row).rowcount > 0

    def refuse(self, kind: str, one_id: str, reason: str) -> None:
        """Leave one of ``images``, ``captions`` or ``questions`` out, and say why."""
        sql = "INSERT INTO faults (kind, id, reason) VALUES (?, ?, ?)"
        reason = " ".join(reason.split())
        if len(reason) > _REASON:
            reason = f"{reason[: _REASON // 2]} ... {reason[-_REASON // 2 :]}"
        shown = (one_id[:200], reason)
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

    def drop_captions_without_image(self) -> None:
        """Drop the captions whose image is not listed, or was left out."""
        sql = "DELETE FROM captions WHERE image NOT IN (SELECT id FROM images WHERE NOT gone)"
        self._database.execute(sql).close()

    def captions_without_image(self) -> Iterator[tuple[str, str]]:
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

    def missing_images(self) -> set[str]:
        """Return the ids of images that were left out and are not listed under any other name."""
        listed = "SELECT id FROM images WHERE NOT gone"
        sql = f"SELECT id FROM faults WHERE kind = 'images' AND id NOT IN ({listed})"
        return {row[0] for row in self._database.execute(sql)}

    def left_out_count(self, kind: str) -> int:
        """Return how many were left out of a kind."""
        return self._one("SELECT COUNT(*) FROM faults WHERE kind = ?", kind)

    def drop_missing(self, members: Members) -> str:
        """Leave out every image whose file cannot be read, and fingerprint the others' files.

        Returns:
            Fingerprint of every listed file's name and stamp (its size, and more in archives).
        """
        digest, comma, gone = hashlib.sha256(b"["), "", []
        for image in self.images():
            try:
                if image.place in self._unclear:
                    raise DataError(self._unclear[image.place])
                row = [image.place, *members.stamp(image.place)]
            except DataError as error:
                row = [image.place, None]
                gone.append(image.image_id)
                self.refuse("images", image.image_id, str(error))
            digest.update((comma + canonical_json(row)).encode(errors="surrogateescape"))
            comma = ","
        digest.update(b"]")
        sql = "UPDATE images SET gone = 1 WHERE id = ?"
        self._database.executemany(sql, [(image_id,) for image_id in gone]).close()
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


def _checked(kind: str) -> str:
    if kind not in ("images", "captions", "questions"):
        raise ValueError(kind)
    return kind
