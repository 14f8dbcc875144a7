"""Store: everything a node holds, in one SQLite file, `node.db` in its home.

The command line and the daemon use one store at once, each with a connection of its own: write-ahead log, a busy
timeout, and every change in a transaction that takes the write lock first (BEGIN IMMEDIATE). `synchronous=FULL`: what
a method returned from is on disk, whatever happens to the process or the power next.

One rule of the protocol lives here, because it must hold in the same transaction: a record that names
another in `supersedes` buries it, whichever of the two comes first (`records.can_bury`). A buried record
keeps its header and signature for ever; its chunks are deleted.

The store checks no signature on the way in: what reaches it was checked (`wire.read_record`, the gossip core). On the
way out headers and chunks are hashed again, because disks forget. A `Store` belongs to the thread that opened it; the
daemon has a second one, in the thread that writes what gossip brings (`commit`).
"""

from __future__ import annotations

import itertools
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crypto.errors import Malformed
from crypto.keys import PublicKey
from crypto.sealing import chunk_hash, chunk_hashes
from crypto.signing import record_id as hash_of_header
from node.errors import RecordError, StoreError, StoreFull
from node.migrations import SCHEMA_VERSION, migrate, statements
from node.records import INCARNATION_BYTES, Header, Held, HeldState, Kind, Record, can_bury, chunk_size
from node.wire import STORE_ID_BYTES, read_header

STORE_FILE: Final = "node.db"
APPLICATION_ID: Final = 0x54494447  # "TIDG"

BUSY_TIMEOUT_S: Final = 15.0
"""How long a write waits for another process's transaction; all of ours last milliseconds."""

MAX_CONFLICTS: Final = 100
"""Proofs kept against one origin: one is enough to convict it, and some to see what happened."""

CHECKED_AT_OPEN_BYTES: Final = 32 * 1024 * 1024
"""Up to this size the whole file is checked whenever it is opened (about 1 ms per MB). Damage in a larger
one shows when the damaged page is read."""

PAGE_BYTES: Final = 16 * 1024
"""Page size of a new store, about one chunk: with SQLite's usual 4 KiB the same chunk takes four times as many system
calls to write and read. An older store keeps the size it was made with."""

LOG_BYTES: Final = 4 * 1024 * 1024
"""Size at which the write-ahead log is folded into the file, as SQLite does with its usual pages."""

CHUNKS_A_STATEMENT: Final = 64
"""Chunks inserted by one statement: SQLite lets other threads run while it works, and each return to Python waits for
them."""

MAX_HEADERS: Final = 32
"""Headers remembered by the chunk path: up to 130 kB each in memory for the largest, a tenth of that for most."""

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
    added_at   REAL NOT NULL
) STRICT;
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
"""
"""What a new store has. An older one comes to the same by `migrations`: a change here is a step there. The last four
tables are what a running daemon knows and `status` reads; they are empty while none runs."""

WALK_PAGE: Final = 64
"""Records that `walk` reads at once: a header has at most 64 KiB."""

_HELD_COLUMNS: Final = "position, id, header, signature, state, buried_by, received_at"


@dataclass(frozen=True, slots=True)
class Peer:
    """A node whose key the operator added, with the addresses it is tried at, the preferred one first. A query-only
    peer may ask for models and takes no part in gossip."""

    key: PublicKey
    name: str
    addresses: tuple[str, ...]
    query_only: bool
    added_at: float


@dataclass(frozen=True, slots=True)
class AcceptedTask:
    """A learning task that this node takes part in."""

    task_id: bytes
    name: str
    canonical: bytes
    accepted_at: float


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What the daemon last said about a peer, for `status`. Times are seconds since 1970; `retry_at` is when the peer
    is dialed next, None if no dial waits."""

    peer: PublicKey
    state: str
    reason: str
    since: float
    last_seen: float | None
    bytes_sent: int
    bytes_received: int
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about a node, this one or another, that the operator of this one must hear of while it lasts."""

    about: PublicKey
    topic: str
    reason: str
    since: float


class Store:
    """An open store."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Use `create` or `open`."""
        self._db = connection
        self._path = path
        self._headers: dict[bytes, Header] = {}
        rows = self._rows("SELECT store_id FROM node")
        if len(rows) != 1:
            raise self._damaged()
        #: 8 random bytes that name this store to peers.
        self.store_id: bytes = rows[0][0]

    @classmethod
    def create(cls, home: Path) -> Store:
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
    def open(cls, home: Path) -> Store:
        """The store of an initialized home, brought up to today's schema; StoreError if there is none, or it is damaged
        or newer than this."""
        path = home / STORE_FILE
        if not path.exists():
            raise StoreError(f"There is no store in {home}: run `tidings --home {home} init` first.")
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

    def change_counter(self) -> int:
        """A number that differs from its last value once another connection has changed the store. Cheap."""
        return int(self._rows("PRAGMA data_version")[0][0])

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with _translated(self._path):
            return self._db.execute(sql, values).fetchall()

    def _damaged(self) -> StoreError:
        return StoreError(_damaged_text(self._path))

    # ---------------------------------------------------------------------------------------------------------- records

    @property
    def incarnation(self) -> bytes:
        """8 random bytes of every record that this store numbers from now on."""
        return bytes(self._rows("SELECT incarnation FROM node")[0][0])

    def renew_incarnation(self) -> None:
        """Another copy of this store may have given out the next sequences: number apart from it from now on. Call it
        while no record is being made."""
        self._rows("UPDATE node SET incarnation = ?", secrets.token_bytes(INCARNATION_BYTES))

    def number_apart(self, origin: PublicKey) -> bytes:
        """The incarnation for the next record of this node, whose key is `origin`: a new one if a record in the present
        one is here that this store gave no number to. Another copy of it gives out the same numbers. Call it while no
        record is being made."""
        with self.batch():
            if self._is_shared(origin):
                self.renew_incarnation()
            return self.incarnation

    def reserve_sequence(self, origin: PublicKey) -> tuple[bytes, int]:
        """The incarnation and the sequence, from 1, for the next record of this node, whose key is `origin`. On disk
        before this returns: never given twice."""
        if self._db.in_transaction:
            raise RuntimeError("a sequence is reserved on its own, so that no rollback can give it out again")
        with self.batch():
            incarnation = self.number_apart(origin)
            rows = self._rows("UPDATE node SET last_sequence = last_sequence + 1 RETURNING last_sequence")
        return incarnation, int(rows[0][0])

    def _is_shared(self, origin: PublicKey) -> bool:
        """Whether another copy of this store has numbered records in the present incarnation."""
        later = (
            "SELECT 1 FROM records JOIN node USING (incarnation) WHERE origin = ? AND sequence > last_sequence LIMIT 1"
        )
        if self._rows(later, origin.raw):
            return True
        clashing = self._rows("SELECT header FROM conflicts WHERE origin = ?", origin.raw)
        incarnation = self.incarnation
        return any(read_header(header).incarnation == incarnation for (header,) in clashing)

    def add(self, record: Record, body: bytes | None = None, *, note: str | None = None) -> Held:
        """Keep a whole record: one of our own, or one that came complete. Again is no change.

        `note` ties the record to something local, once and for ever; StoreError if another record has it.
        """
        header = record.header
        if chunk_hashes(body or b"", header.chunk_bytes or 1) != header.chunk_hashes:
            raise StoreError("This body is not the one that the record's header describes: nothing was kept.")
        with self.batch():
            position, state = self._insert(record)
            if body and state is HeldState.FETCHING:
                starts = range(0, len(body), header.chunk_bytes)
                self._db.executemany(
                    "INSERT OR IGNORE INTO chunks VALUES (?, ?, ?)",
                    ((position, n, body[at : at + header.chunk_bytes]) for n, at in enumerate(starts)),
                )
                self._rows("UPDATE records SET state = 'complete' WHERE position = ?", position)
            if note is not None:
                self._rows("UPDATE records SET note = ? WHERE position = ?", note, position)
            return self._known(record.id)

    def add_record(self, record: Record) -> Held:
        """Keep a record whose body, if it has one, is still to come. Again is no change."""
        with self.batch():
            self._insert(record)
            return self._known(record.id)

    def add_chunk(self, record_id: bytes, index: int, data: bytes) -> Held:
        """Keep a chunk that was checked against the header; the last missing one makes the record complete."""
        with self.batch():
            self.add_chunks([(record_id, index, data)])
            return self._known(record_id)

    def add_chunks(self, chunks: Iterable[tuple[bytes, int, bytes]]) -> None:
        """Keep chunks (record id, number, data) that were checked against their headers, all of them or none. The last
        missing one of a record makes it complete; those of a record that was taken back are dropped."""
        by_record: dict[bytes, dict[int, bytes]] = {}
        for record_id, index, data in chunks:
            by_record.setdefault(record_id, {})[index] = data
        with self.batch():
            for record_id, of_record in by_record.items():
                self._add_chunks_of(record_id, of_record)

    def _add_chunks_of(self, record_id: bytes, chunks: dict[int, bytes]) -> None:
        rows_here = self._rows("SELECT position, state FROM records WHERE id = ?", record_id)
        if not rows_here:
            raise StoreError(f"Record {record_id.hex()[:12]} is not held: keep it before its chunks.")
        position, state = rows_here[0]
        if state != HeldState.FETCHING:
            return
        header = self._header(record_id)
        if any(len(data) != chunk_size(header, index) for index, data in chunks.items()):
            raise StoreError("This chunk does not have the size that the record's header says: not kept.")
        rows = [(position, index, data) for index, data in chunks.items()]
        for start in range(0, len(rows), CHUNKS_A_STATEMENT):
            batch = rows[start : start + CHUNKS_A_STATEMENT]
            places = ", ".join(["(?, ?, ?)"] * len(batch))
            self._rows(f"INSERT OR IGNORE INTO chunks VALUES {places}", *itertools.chain.from_iterable(batch))  # noqa: S608
        (held,) = self._rows("SELECT count(*) FROM chunks WHERE record = ?", position)[0]
        if held == len(header.chunk_hashes):
            self._rows("UPDATE records SET state = 'complete' WHERE position = ?", position)

    def add_conflict(self, record: Record) -> None:
        """Keep the proof that an origin signed two records with one sequence; a few for each origin are enough."""
        with self.batch():
            origin = record.header.origin.raw
            if self._rows("SELECT count(*) FROM conflicts WHERE origin = ?", origin)[0][0] < MAX_CONFLICTS:
                self._rows(
                    "INSERT OR IGNORE INTO conflicts VALUES (?, ?, ?, ?, ?)",
                    record.id,
                    origin,
                    record.header_bytes,
                    record.signature,
                    time.time(),
                )

    def is_equivocation(self, record: Record) -> bool:
        """Whether another record with the same origin, incarnation and sequence is here."""
        header = record.header
        rows = self._rows(
            "SELECT id FROM records WHERE origin = ? AND incarnation = ? AND sequence = ?",
            header.origin.raw,
            header.incarnation,
            header.sequence,
        )
        return any(known != record.id for (known,) in rows)

    def conflicts(self) -> list[Record]:
        """Records whose sequence another record of their origin has, in order of arrival."""
        rows = self._rows("SELECT header, signature, id FROM conflicts ORDER BY received_at, id")
        return [Record(read_header(header), header, signature, record_id) for header, signature, record_id in rows]

    def get(self, record_id: bytes) -> Held | None:
        """The record with this id, if it is held."""
        held = self._select("WHERE id = ?", record_id)
        return held[0] if held else None

    def find(self, prefix_hex: str) -> list[Held]:
        """The records whose id, in hexadecimal, begins like this."""
        return self._select("WHERE substr(lower(hex(id)), 1, ?) = ?", len(prefix_hex), prefix_hex.lower())

    def held(
        self, kind: Kind | None = None, task_id: bytes | None = None, origin: PublicKey | None = None
    ) -> list[Held]:
        """The records held, in order of arrival; all of them, or those of a kind, a task, an origin."""
        return self._select(
            "WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR task_id = ?2) AND (?3 IS NULL OR origin = ?3)",
            int(kind) if kind is not None else None,
            task_id,
            origin.raw if origin is not None else None,
        )

    def walk(self) -> Iterator[Held]:
        """The records held, in order of arrival, a few in memory at a time. Not one state of the store: each is read
        when its turn comes."""
        position = 0
        while rows := self._rows(
            f"SELECT {_HELD_COLUMNS} FROM records WHERE position > ? ORDER BY position LIMIT ?",  # noqa: S608
            position,
            WALK_PAGE,
        ):
            yield from map(self._held_of, rows)
            position = rows[-1][0]

    def grown(self, chunks_before: Mapping[bytes, int]) -> list[Held]:
        """Of these records, given with how many of their chunks were here before, those that have more by now, or
        whose body was taken back."""
        count = "SELECT state, (SELECT count(*) FROM chunks WHERE record = position) FROM records WHERE id = ?"
        return [
            self._known(record_id)
            for record_id, before in chunks_before.items()
            for state, chunks in self._rows(count, record_id)
            if chunks > before or state == HeldState.BURIED
        ]

    def held_after(self, position: int) -> tuple[list[Held], int]:
        """The records that arrived after `position`, and the position to ask with next time; 0 is the start."""
        with self.snapshot():
            held = self._select("WHERE position > ?", position)
            latest = self._rows("SELECT coalesce(max(position), 0) FROM records")[0][0]
        return held, int(latest)

    def body(self, record_id: bytes) -> bytes:
        """The whole sealed body; StoreError if it is not all here, was taken back, or is damaged on disk."""
        with self.snapshot():
            held = self.get(record_id)
            rows = self._rows(
                "SELECT data FROM chunks JOIN records ON record = position WHERE id = ? ORDER BY number",
                record_id,
            )
        if held is None or held.state is not HeldState.COMPLETE:
            raise StoreError(f"The body of record {record_id.hex()[:12]} is not here, or not all of it.")
        if tuple(chunk_hash(data) for (data,) in rows) != held.record.header.chunk_hashes:
            raise self._damaged()
        return b"".join(data for (data,) in rows)

    def chunk(self, record_id: bytes, index: int) -> bytes | None:
        """One chunk of a sealed body, None if it is not here; StoreError if it is damaged on disk."""
        return self.chunks(record_id, [index])[0]

    def chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[bytes | None]:
        """Some chunks of one sealed body, each as `chunk` gives it."""
        places = ", ".join("?" * len(indexes))
        of_record = "record = (SELECT position FROM records WHERE id = ?)"
        sql = f"SELECT number, data FROM chunks WHERE {of_record} AND number IN ({places})"  # noqa: S608 - placeholders
        rows = self._rows(sql, record_id, *indexes)
        if not rows:
            return [None] * len(indexes)
        header = self._header(record_id)
        if any(chunk_hash(data) != header.chunk_hashes[number] for number, data in rows):
            raise self._damaged()
        here = dict(rows)
        return [here.get(index) for index in indexes]

    def _header(self, record_id: bytes) -> Header:
        """The header of a record that is held. Remembered for the records whose chunks come and go, because that of a
        large body takes longer to read and decode than a chunk; what has this id is this header wherever it comes from.
        """
        if record_id not in self._headers:
            header_bytes = self._rows("SELECT header FROM records WHERE id = ?", record_id)[0][0]
            if hash_of_header(header_bytes) != record_id:
                raise self._damaged()
            while len(self._headers) >= MAX_HEADERS:
                del self._headers[next(iter(self._headers))]
            self._headers[record_id] = read_header(header_bytes)
        return self._headers[record_id]

    def record_of_note(self, note: str) -> bytes | None:
        """The id of the record that was kept with this note."""
        rows = self._rows("SELECT id FROM records WHERE note = ?", note)
        return rows[0][0] if rows else None

    def _insert(self, record: Record) -> tuple[int, HeldState]:
        """The record's position and state; inserts it, and applies burials both ways, if it is new."""
        rows = self._rows("SELECT position, state FROM records WHERE id = ?", record.id)
        if rows:
            return int(rows[0][0]), HeldState(rows[0][1])
        burier = self._burier_of(record)
        state = HeldState.FETCHING if record.header.body_bytes else HeldState.COMPLETE
        if burier:
            state = HeldState.BURIED
        position = self._insert_row(record, state, burier)
        self._bury_target(record)
        return position, state

    def _insert_row(self, record: Record, state: HeldState, burier: bytes | None) -> int:
        header = record.header
        where = (header.origin.raw, header.incarnation, header.sequence)
        if self.is_equivocation(record):
            raise StoreError(f"{header.origin.short} signed two records with one sequence: the second is not kept.")
        rows = self._rows(
            "INSERT INTO records (id, kind, origin, incarnation, sequence, task_id, supersedes, header,"
            " signature, state, buried_by, received_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?) RETURNING position",
            record.id,
            int(header.kind),
            *where,
            header.task_id,
            header.supersedes,
            record.header_bytes,
            record.signature,
            state.value,
            burier,
            time.time(),
        )
        return int(rows[0][0])

    def _burier_of(self, record: Record) -> bytes | None:
        """The id of a record already here that takes this one back."""
        later = self._select("WHERE supersedes = ? ORDER BY position LIMIT 1", record.id)
        for held in later:
            if can_bury(held.record.header, record.header):
                return held.record.id
        return None

    def _bury_target(self, record: Record) -> None:
        """Drop the body of the record that this one takes back, if that is here already."""
        target = self.get(record.header.supersedes) if record.header.supersedes else None
        if target is None or target.state is HeldState.BURIED:
            return
        if can_bury(record.header, target.record.header):
            self._rows(
                "DELETE FROM chunks WHERE record = (SELECT position FROM records WHERE id = ?)",
                target.record.id,
            )
            self._rows("UPDATE records SET state = 'buried', buried_by = ? WHERE id = ?", record.id, target.record.id)

    def _known(self, record_id: bytes) -> Held:
        held = self.get(record_id)
        if held is None:
            raise StoreError(f"Record {record_id.hex()[:12]} is not held: keep it before its chunks.")
        return held

    def _select(self, where: str, *values: object) -> list[Held]:
        order = "" if "ORDER BY" in where else " ORDER BY position"
        rows = self._rows(f"SELECT {_HELD_COLUMNS} FROM records {where}{order}", *values)  # noqa: S608 - constants
        return [self._held_of(row) for row in rows]

    def _held_of(self, row: tuple[Any, ...]) -> Held:
        position, record_id, header_bytes, signature, state, buried_by, received_at = row
        try:
            header = read_header(header_bytes)
        except RecordError:
            raise self._damaged() from None
        if hash_of_header(header_bytes) != record_id:
            raise self._damaged()
        record = Record(header, header_bytes, signature, record_id)
        missing: tuple[int, ...] = ()
        if state == HeldState.FETCHING:
            have = {number for (number,) in self._rows("SELECT number FROM chunks WHERE record = ?", position)}
            missing = tuple(n for n in range(len(header.chunk_hashes)) if n not in have)
        return Held(record, HeldState(state), received_at, missing, buried_by)

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

    # ------------------------------------------------------------------------------------------- peers, tasks and links

    def add_peer(self, peer: Peer) -> None:
        """Add a peer, or change what is known of one; StoreError if another peer has its name."""
        with self.batch():
            if self._rows("SELECT 1 FROM peers WHERE name = ? AND key <> ?", peer.name, peer.key.raw):
                raise StoreError(f"There is already another peer named {peer.name}: choose another --name.")
            self._rows(
                "INSERT INTO peers VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
                " name = excluded.name, query_only = excluded.query_only",
                peer.key.raw,
                peer.name,
                int(peer.query_only),
                peer.added_at,
            )
            self._rows("DELETE FROM peer_addresses WHERE peer = ?", peer.key.raw)
            self._db.executemany(
                "INSERT INTO peer_addresses VALUES (?, ?, ?)",
                ((peer.key.raw, place, address) for place, address in enumerate(peer.addresses)),
            )

    def remove_peer(self, key: PublicKey) -> bool:
        """Forget a peer; its records stay. False if it was none."""
        with self.batch():
            self._rows("DELETE FROM links WHERE peer = ?", key.raw)
            self._rows("DELETE FROM notices WHERE about = ?", key.raw)
            return bool(self._rows("DELETE FROM peers WHERE key = ? RETURNING 1", key.raw))

    def peers(self) -> list[Peer]:
        """The peers, in the order they were added."""
        addresses: dict[bytes, list[str]] = {}
        with self.snapshot():
            for key, address in self._rows("SELECT peer, address FROM peer_addresses ORDER BY peer, place"):
                addresses.setdefault(key, []).append(address)
            rows = self._rows("SELECT key, name, query_only, added_at FROM peers ORDER BY added_at, key")
        return [
            Peer(self._key(key), name, tuple(addresses.get(key, ())), bool(only), at) for key, name, only, at in rows
        ]

    def accept_task(self, task_id: bytes, name: str, canonical: bytes) -> None:
        """Take part in a task. Again is no change; StoreError if another task has its name."""
        with self.batch():
            if self._rows("SELECT 1 FROM tasks WHERE name = ? AND task_id <> ?", name, task_id):
                raise StoreError(f"There is already another task named {name}: give this one another name.")
            self._rows("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?)", task_id, name, canonical, time.time())

    def tasks(self) -> list[AcceptedTask]:
        """The accepted tasks, in the order they were accepted."""
        rows = self._rows("SELECT task_id, name, canonical, accepted_at FROM tasks ORDER BY accepted_at, task_id")
        return [AcceptedTask(*row) for row in rows]

    def set_links(self, reports: Iterable[LinkReport]) -> None:
        """Write down what the daemon knows of some peers' links, for `status`."""
        with self.batch():
            self._db.executemany(
                "INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (r.peer.raw, r.state, r.reason, r.since, r.last_seen, r.bytes_sent, r.bytes_received, r.retry_at)
                    for r in reports
                ),
            )

    def clear_reports(self) -> None:
        """Forget links, notices and what nobody has the rest of: a daemon starts or ends."""
        with self.batch():
            for table in ("links", "notices", "unsourced", "listening"):
                self._rows(f"DELETE FROM {table}")  # noqa: S608 - constants

    def links(self) -> list[LinkReport]:
        """What the daemon last wrote down, by peer."""
        rows = self._rows("SELECT * FROM links ORDER BY peer")
        return [LinkReport(self._key(row[0]), *row[1:]) for row in rows]

    def set_notice(self, about: PublicKey, topic: str, reason: str) -> None:
        """Tell the operator something about a node until `drop_notice`, or the daemon ends. One that stands on the
        topic gets the new words and keeps its age."""
        self._rows(
            "INSERT INTO notices VALUES (?, ?, ?, ?) ON CONFLICT (about, topic) DO UPDATE SET reason = excluded.reason",
            about.raw,
            topic,
            reason,
            time.time(),
        )

    def drop_notice(self, about: PublicKey, topic: str) -> None:
        """What a notice told is over. No matter if there was none."""
        self._rows("DELETE FROM notices WHERE about = ? AND topic = ?", about.raw, topic)

    def notices(self) -> list[Notice]:
        """The notices that stand, the oldest first."""
        rows = self._rows("SELECT about, topic, reason, since FROM notices ORDER BY since, about, topic")
        return [Notice(self._key(about), *row) for about, *row in rows]

    def set_listening(self, address: str) -> None:
        """The daemon can be reached here; what it was told to listen on may have left the port open."""
        with self.batch():
            self._rows("DELETE FROM listening")
            self._rows("INSERT INTO listening VALUES (?)", address)

    def listening(self) -> str | None:
        """Where the running daemon can be reached, None if it only dials out."""
        rows = self._rows("SELECT address FROM listening")
        return rows[0][0] if rows else None

    def set_unsourced(self, record_ids: Iterable[bytes]) -> None:
        """These are the records, all of them, that are here in part and that no link has the rest of."""
        with self.batch():
            self._rows("DELETE FROM unsourced")
            self._db.executemany("INSERT INTO unsourced VALUES (?)", ((record_id,) for record_id in record_ids))

    def unsourced(self) -> set[bytes]:
        """What the daemon last said of these."""
        return {record_id for (record_id,) in self._rows("SELECT record FROM unsourced")}

    def _key(self, raw: bytes) -> PublicKey:
        try:
            return PublicKey(raw)
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
