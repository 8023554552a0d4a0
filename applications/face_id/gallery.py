"""Enrolled people: embeddings in SQLite, the most similar one by exhaustive search.

An embedding is stored with the fingerprint of the model that made it, and compared with embeddings
of the same model only. The aligned crop of a face is stored where its owner asked for it, the
photograph never.

Deleting overwrites the rows with zeros (``secure_delete``), gives freed pages back where it can
(``VACUUM``, whose copy of the database stays in memory) and reads the array that is searched anew.
It does not reach what lies outside the file: SQLite's rollback journal, which is not overwritten,
blocks that a solid-state drive or a copying file system wrote elsewhere, snapshots and backups.
"""

import contextlib
import os
import sqlite3
import unicodedata
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from usearch.index import MetricKind, search

from applications.face_id.refusal import Refusal

__all__ = ["Gallery", "Match", "Person"]

_LONGEST_NAME = 100
_VERSION = 1
_SCHEMA = """
CREATE TABLE people (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: an old page must not hit others
    name TEXT NOT NULL,
    key TEXT NOT NULL UNIQUE
);
CREATE TABLE photographs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    person INTEGER NOT NULL REFERENCES people ON DELETE CASCADE,
    model TEXT NOT NULL,
    embedding BLOB NOT NULL,
    crop BLOB
);
CREATE INDEX photographs_of_person ON photographs (person);
"""


@dataclass(frozen=True)
class Person:
    """Somebody enrolled.

    Attributes:
        id: Their number.
        name: As it was given.
        photographs: How many of theirs the model at hand can compare.
        unusable: How many were enrolled with another model.
        crops: Numbers of the photographs whose crop is stored.
    """

    id: int
    name: str
    photographs: int
    unusable: int
    crops: tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """The most similar enrolled photograph.

    Attributes:
        person: Number of the person it shows.
        score: Cosine, in [-1, 1].
        comparisons: Photographs it was chosen from.
    """

    person: int
    score: float
    comparisons: int


class Gallery:
    """The people in a database file, as one model sees them.

    Args:
        path: The file; made, readable by its owner alone, where there is none.
        model: Fingerprint of the model whose embeddings are added and compared.

    Raises:
        ValueError: If the file is not a gallery.
    """

    def __init__(self, path: str | PathLike, model: str):
        self.path, self.model = Path(path), model
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(self.path, check_same_thread=False)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise
        except OSError as error:
            raise ValueError(f"--gallery {path}: {error.strerror}.") from error
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)  # errors of ours have none
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ValueError(
                    f"--gallery {path} is used by another program; close it first."
                ) from error
            raise ValueError(f"--gallery {path} is not a gallery: {error}.") from error
        self._read()

    def _open(self) -> None:
        for pragma in ("foreign_keys = ON", "secure_delete = ON", "temp_store = MEMORY"):
            self._db.execute(f"PRAGMA {pragma}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        # The journal's mode is written into the file: not before it is known to be a gallery.
        if version == 0:
            if self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise sqlite3.DatabaseError("it holds other tables")
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            return
        if version != _VERSION:
            raise sqlite3.DatabaseError(f"its version is {version}, {_VERSION} is known")
        self._db.execute("SELECT person, model, embedding, crop FROM photographs LIMIT 1")
        self._db.execute("PRAGMA journal_mode = DELETE")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _read(self) -> None:
        rows = self._db.execute(
            "SELECT person, embedding FROM photographs WHERE model = ? ORDER BY id", [self.model]
        ).fetchall()
        self._people = np.array([person for person, _ in rows], np.int64)
        self._vectors = np.array([np.frombuffer(blob, "<f4") for _, blob in rows], np.float32)
        self._seen = self._data_version()

    def _data_version(self) -> int:
        return self._db.execute("PRAGMA data_version").fetchone()[0]

    def people(self) -> list[Person]:
        """Everybody, by name."""
        rows = self._db.execute(
            """SELECT people.id, name, sum(model = ?), sum(model != ?),
                      group_concat(CASE WHEN crop IS NOT NULL THEN photographs.id END)
               FROM people JOIN photographs ON person = people.id
               GROUP BY people.id ORDER BY key""",
            [self.model, self.model],
        )
        return [
            Person(
                *row[:4],
                tuple(sorted(int(number) for number in (row[4] or "").split(",") if number)),
            )
            for row in rows
        ]

    def person(self, number: int) -> Person:
        """One person.

        Raises:
            Refusal: If there is nobody of this number.
        """
        for person in self.people():
            if person.id == number:
                return person
        raise Refusal(404, "nobody", "This person is not in the gallery any more.")

    def named(self, name: str) -> Person | None:
        """The person of a name, which may differ in case, spaces and ways to write an accent.

        Raises:
            Refusal: If it is no name.
        """
        key = _key(_clean(name))
        row = self._db.execute("SELECT id FROM people WHERE key = ?", [key]).fetchone()
        return self.person(row[0]) if row else None

    def add(self, name: str, embedding: np.ndarray, crop: bytes | None = None) -> int:
        """Add a photograph to the person of this name, who is added where there is none.

        Args:
            name: 1 to 100 characters.
            embedding: float32 (dim,) of length 1.
            crop: An encoded image to store with it.

        Returns:
            The photograph's number.

        Raises:
            Refusal: If it is no name.
        """
        name = _clean(name)
        blob = np.ascontiguousarray(embedding, "<f4").tobytes()
        with self._db:
            self._db.execute(
                "INSERT INTO people (name, key) VALUES (?, ?) ON CONFLICT DO NOTHING",
                [name, _key(name)],
            )
            added = self._db.execute(
                "INSERT INTO photographs (person, model, embedding, crop) "
                "SELECT id, ?, ?, ? FROM people WHERE key = ?",
                [self.model, blob, crop, _key(name)],
            )
        self._read()
        return added.lastrowid

    def crop(self, photograph: int) -> bytes:
        """The stored crop of a photograph.

        Raises:
            Refusal: If there is none.
        """
        row = self._db.execute("SELECT crop FROM photographs WHERE id = ?", [photograph]).fetchone()
        if row is None or row[0] is None:
            raise Refusal(404, "no_crop", "No picture of this photograph is stored.")
        return row[0]

    def delete_person(self, number: int) -> None:
        """Delete a person with all that is known of them; see the module for what this reaches.

        Raises:
            Refusal: If there is nobody of this number.
        """
        self.person(number)
        self._delete("DELETE FROM people WHERE id = ?", number)

    def delete_photograph(self, number: int) -> None:
        """Delete a photograph and, if it was the only one, the person.

        Raises:
            Refusal: If there is no photograph of this number.
        """
        if not self._db.execute("SELECT 1 FROM photographs WHERE id = ?", [number]).fetchone():
            raise Refusal(404, "no_photograph", "This photograph is not in the gallery any more.")
        self._delete("DELETE FROM photographs WHERE id = ?", number)

    def _delete(self, statement: str, number: int) -> None:
        with self._db:
            self._db.execute(statement, [number])
            self._db.execute("DELETE FROM people WHERE id NOT IN (SELECT person FROM photographs)")
        # A full disk or another program may forbid it: the rows are overwritten all the same.
        with contextlib.suppress(sqlite3.DatabaseError):
            self._db.execute("VACUUM")
        self._read()

    def nearest(self, embedding: np.ndarray, person: int | None = None) -> Match:
        """Find the most similar photograph.

        Args:
            embedding: float32 (dim,) of length 1.
            person: Whose photographs to compare; by default everybody's.

        Raises:
            Refusal: If there is nothing to compare with.
        """
        if self._data_version() != self._seen:  # another process has written
            self._read()
        people, vectors = self._people, self._vectors
        if person is not None:
            vectors, people = vectors[people == person], people[people == person]
        if not len(people):
            raise self._nothing(person)
        found = search(vectors, embedding, 1, MetricKind.IP, exact=True)
        row = int(found.keys[0])
        return Match(int(people[row]), 1.0 - float(found.distances[0]), len(people))

    def _nothing(self, number: int | None) -> Refusal:
        people = self.people() if number is None else [self.person(number)]
        if not people:
            return Refusal(409, "empty", "Nobody is enrolled yet: add a person first.")
        whose = "The gallery's" if number is None else f"{people[0].name}'s"
        return Refusal(
            409,
            "other_model",
            f"{whose} photographs were enrolled with another model, whose embeddings this one "
            "cannot compare: enrol them again, or start with that model.",
        )


def _clean(name: str) -> str:
    unwanted = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn what follows round
    name = "".join(
        " " if unicodedata.category(letter) == "Cc" or letter in unwanted else letter
        for letter in name
    )
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    if not 1 <= len(name) <= _LONGEST_NAME or not _key(name):
        raise Refusal(422, "name", f"Give a name of 1 to {_LONGEST_NAME} characters.")
    return name


def _key(name: str) -> str:
    """What two spellings of a name share; some scripts need invisible letters to be written."""
    visible = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", visible).casefold().split())
