"""Database: the SQLite file `node.db` of a home: how it is made, opened, brought up to date, and written to.

The command line and the daemon use one file at once, each with a connection of its own: write-ahead log, a busy
timeout, and every change in a transaction that takes the write lock first (BEGIN IMMEDIATE). `synchronous=FULL`: what
a method returned from is on disk, whatever happens to the process or the power next.

A `Database` belongs to the thread that opened it; the daemon has a second one, in the thread that writes what gossip
brings (`commit`). What is in the tables is the business of `local_tables` and `store`.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from crypto.errors import Malformed
from crypto.keys import PublicKey, public_key
from node.errors import StoreError, StoreFull
from node.migrations import SCHEMA_VERSION, migrate, statements
from node.records import INCARNATION_BYTES
from node.wire import STORE_ID_BYTES

STORE_FILE: Final = "node.db"
APPLICATION_ID: Final = 0x54494447  # "TIDG"

BUSY_TIMEOUT_S: Final = 15.0
"""How long a write waits for another process's transaction; all of ours last milliseconds."""

CHECKED_AT_OPEN_BYTES: Final = 32 * 1024 * 1024
"""Up to this size the whole file is checked whenever it is opened (about 1 ms per MB). Damage in a larger
one shows when the damaged page is read."""

PAGE_BYTES: Final = 16 * 1024
"""Page size of a new store, about one chunk: with SQLite's usual 4 KiB the same chunk takes four times as many system
calls to write and read. An older store keeps the size it was made with."""

LOG_BYTES: Final = 4 * 1024 * 1024
"""Size at which the write-ahead log is folded into the file, as SQLite does with its usual pages."""

_SCHEMA: Final = """
CREATE TABLE node (
    only_row      INTEGER PRIMARY KEY CHECK (only_row = 1),
    store_id      BLOB NOT NULL,
    incarnation   BLOB NOT NULL,
    last_sequence INTEGER NOT NULL
) STRICT;
CREATE TABLE records (
    position    INTEGER PRIMARY KEY,              -- order of arrival; rows are never deleted
    id          BLOB NOT NULL UNIQUE,
    kind        INTEGER NOT NULL,
    origin      BLOB NOT NULL,
    incarnation BLOB NOT NULL,
    sequence    INTEGER NOT NULL,
    task_id     BLOB NOT NULL,
    supersedes  BLOB NOT NULL,
    header      BLOB NOT NULL,                    -- exactly as signed
    signature   BLOB NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('complete', 'fetching', 'buried')),
    buried_by   BLOB,
    received_at REAL NOT NULL,
    note        TEXT UNIQUE,                      -- what this record is here, e.g. the id of a release
    UNIQUE (origin, incarnation, sequence)
) STRICT;
CREATE INDEX records_by_superseded ON records (supersedes);
CREATE TABLE conflicts (                          -- valid records whose sequence another record has
    id          BLOB PRIMARY KEY,
    origin      BLOB NOT NULL,
    header      BLOB NOT NULL,
    signature   BLOB NOT NULL,
    received_at REAL NOT NULL
) STRICT;
CREATE TABLE chunks (
    record INTEGER NOT NULL REFERENCES records (position),
    number INTEGER NOT NULL,
    data   BLOB NOT NULL,
    PRIMARY KEY (record, number)
) STRICT;
CREATE TABLE peers (
    key        BLOB PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE COLLATE NOCASE,
    query_only INTEGER NOT NULL,
    added_at   REAL NOT NULL,
    via        TEXT NOT NULL DEFAULT 'operator'   -- whose word made it a peer
) STRICT;
CREATE TABLE denied_peers (                       -- whom the operator removed: nothing else adds them again
    public_key BLOB PRIMARY KEY,
    since      REAL NOT NULL,
    reason     TEXT NOT NULL
) STRICT;
CREATE TABLE recovery (                           -- what this node's key cards say, by its identity
    public_key BLOB PRIMARY KEY,
    hash       BLOB NOT NULL
) STRICT;
CREATE TABLE place (                              -- which file on which disk this is: a copy is another one
    file      INTEGER NOT NULL,
    directory INTEGER NOT NULL
) STRICT;
CREATE TABLE numbered (                           -- how far this store numbered its node's records
    incarnation   BLOB PRIMARY KEY,
    last_sequence INTEGER NOT NULL
) STRICT;
CREATE INDEX records_about_keys ON records (position) WHERE kind IN (1, 10, 11);
CREATE TABLE peer_addresses (
    peer    BLOB NOT NULL REFERENCES peers (key) ON DELETE CASCADE,
    place   INTEGER NOT NULL,                     -- the preferred one is 0
    address TEXT NOT NULL,
    PRIMARY KEY (peer, place)
) STRICT;
CREATE TABLE tasks (
    task_id     BLOB PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE COLLATE NOCASE,
    canonical   BLOB NOT NULL,
    accepted_at REAL NOT NULL
) STRICT;
CREATE TABLE links (
    peer           BLOB PRIMARY KEY,
    state          TEXT NOT NULL,
    reason         TEXT NOT NULL,
    since          REAL NOT NULL,
    last_seen      REAL,
    bytes_sent     INTEGER NOT NULL,
    bytes_received INTEGER NOT NULL,
    retry_at       REAL
) STRICT;
CREATE TABLE notices (
    about  BLOB NOT NULL,                         -- the key of the node that it is about
    topic  TEXT NOT NULL,                         -- one notice of a node on a topic
    reason TEXT NOT NULL,
    since  REAL NOT NULL,
    PRIMARY KEY (about, topic)
) STRICT;
CREATE TABLE unsourced (
    record BLOB PRIMARY KEY
) STRICT;
CREATE TABLE listening (
    address TEXT NOT NULL
) STRICT;
CREATE TABLE followed_roster (
    only_row  INTEGER PRIMARY KEY CHECK (only_row = 1),
    coalition BLOB NOT NULL,
    root      BLOB NOT NULL,                      -- the first version that was taken
    chosen    BLOB NOT NULL,                      -- the version that the operator chose in a dispute, or empty
    since     REAL NOT NULL
) STRICT;
CREATE TABLE rosters (                            -- of the coalition that is followed: every version that belongs
    hash     BLOB PRIMARY KEY,
    previous BLOB NOT NULL,
    version  INTEGER NOT NULL,
    signed   BLOB NOT NULL                        -- the document as signed, and the signatures
) STRICT;
CREATE TABLE signed_rosters (                     -- what this node signed as an administrator
    coalition BLOB NOT NULL,
    version   INTEGER NOT NULL,
    hash      BLOB NOT NULL,
    PRIMARY KEY (coalition, version, hash)
) STRICT;
CREATE TABLE proofs (
    origin      BLOB NOT NULL,
    incarnation BLOB NOT NULL,
    sequence    INTEGER NOT NULL,                -- a number that two records have
    evidence    BLOB NOT NULL,                    -- the payload of an EVIDENCE, signed here or not
    learned_at  REAL NOT NULL,
    PRIMARY KEY (origin, incarnation, sequence, evidence)
) STRICT;
CREATE TABLE testimonies (                        -- what EVIDENCE records are about
    record      BLOB PRIMARY KEY,
    author      BLOB NOT NULL,
    origin      BLOB NOT NULL,
    incarnation BLOB NOT NULL,
    sequence    INTEGER NOT NULL
) STRICT;
CREATE INDEX testimonies_by_number ON testimonies (origin, incarnation, sequence);
CREATE TABLE graves (                             -- what records under contested numbers took back
    origin BLOB NOT NULL,
    target BLOB NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (origin, target, record)
) STRICT;
CREATE INDEX graves_by_record ON graves (record);
"""
"""What a new store has. An older one comes to the same by `migrations`: a change here is a step there. `links`,
`notices`, `unsourced` and `listening` are what a running daemon knows and `status` reads: empty while none runs."""


class Database:
    """An open file."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Use `create` or `open`."""
        self._db = connection
        self._path = path
        rows = self._rows("SELECT store_id FROM node")
        if len(rows) != 1:
            raise self._damaged()
        #: 8 random bytes that name this store to peers.
        self.store_id: bytes = rows[0][0]

    @classmethod
    def create(cls, home: Path) -> Self:
        """A new, empty store, readable by its owner only; StoreError if there is one already."""
        path = home / STORE_FILE
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            home.chmod(0o700)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise StoreError(f"There is already a store at {path}: use it, or choose another home.") from None
        except OSError as error:
            raise StoreError(
                f"A store cannot be made at {path} ({error.strerror}): check disk and permissions."
            ) from None
        with _translated(path):
            connection = _connect(path, new=True)
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements(_SCHEMA):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO node VALUES (1, ?, ?, 0)",
                (secrets.token_bytes(STORE_ID_BYTES), secrets.token_bytes(INCARNATION_BYTES)),
            )
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        return cls(connection, path)

    @classmethod
    def open(cls, home: Path) -> Self:
        """The store of an initialized home, brought up to today's schema; StoreError if there is none, or it is damaged
        or newer than this."""
        path = home / STORE_FILE
        if not path.exists():
            raise StoreError(
                f"The store {path} is gone: restore its home from a backup, or `tidings init` another one."
            )
        with _translated(path):
            connection = _connect(path)
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if application != APPLICATION_ID:
                raise StoreError(_damaged_text(path))
            if version > SCHEMA_VERSION:
                raise StoreError(f"The store {path} was written by a newer version of Tidings than this: use that one.")
            if path.stat().st_size <= CHECKED_AT_OPEN_BYTES:
                verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if verdict != "ok":
                    raise StoreError(_damaged_text(path))
            migrate(connection)
        return cls(connection, path)

    def close(self) -> None:
        """Give the file back; the last one to close folds the log into it."""
        self._db.close()

    # ----------------------------------------------------------------------------------------------------- transactions

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make the changes within one transaction: all of them or none, with one wait for the disk."""
        if self._db.in_transaction:
            yield
            return
        with _translated(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def refuse_writes(self) -> None:
        """From now on SQLite refuses every change through this connection."""
        self._rows("PRAGMA query_only = ON")

    def change_counter(self) -> int:
        """A number that differs from its last value once another connection has changed the store. Cheap."""
        return int(self._rows("PRAGMA data_version")[0][0])

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with _translated(self._path):
            return self._db.execute(sql, values).fetchall()

    def _damaged(self) -> StoreError:
        return StoreError(_damaged_text(self._path))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads within see one state of the store."""
        if self._db.in_transaction:
            yield
            return
        with _translated(self._path):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    def _key(self, raw: bytes) -> PublicKey:
        try:
            return public_key(raw)
        except Malformed:
            raise self._damaged() from None


def _connect(path: Path, *, new: bool = False) -> sqlite3.Connection:
    # mode=rw: a file that vanished must not come back empty.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
    )
    if new:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // page_bytes}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA temp_store = MEMORY")  # nothing outside the home, which may be all that can be written
    connection.execute("PRAGMA secure_delete = ON")  # a body that was taken back is overwritten
    # A damaged file may hold a schema that calls functions or reads past a cell; neither is for us.
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors in the words of StoreError."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # ours: a wrong statement, a closed store, another thread
    except sqlite3.DatabaseError as error:
        raise _explained(error, path) from error


def _explained(error: sqlite3.DatabaseError, path: Path) -> StoreError:
    if getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
        return StoreFull(f"The disk has no room for the store {path} ({error}): make room and try again.")
    return StoreError(_explain(error, path))


def _explain(error: sqlite3.DatabaseError, path: Path) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"The store {path} is in use by another process that does not let go: try again."
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f"The store {path} cannot be written: check the permissions of its directory."
        case sqlite3.SQLITE_IOERR:
            return f"The disk fails under the store {path} ({error}): check it."
    return _damaged_text(path)


def _damaged_text(path: Path) -> str:
    return f"The store {path} is damaged: restore its home from a backup, or `tidings init` another one."
