"""Store: every record that a node holds, with what its operator and its daemon note down, in one file.

One rule of the protocol lives here, because it must hold in the same transaction: a record that names
another in `supersedes` buries it, whichever of the two comes first (`records.can_bury`). A buried record
keeps its header and signature for ever; its chunks are deleted.

The store checks no signature on the way in: what reaches it was checked (`wire.read_record`, the gossip core). On the
way out headers and chunks are hashed again, because disks forget.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crypto.keys import PublicKey
from crypto.sealing import chunk_hash, chunk_hashes
from crypto.signing import record_id as hash_of_header
from node.errors import RecordError, StoreError
from node.local_tables import Peer
from node.proofs import ProofTables
from node.records import (
    INCARNATION_BYTES,
    Header,
    Held,
    HeldState,
    Kind,
    Record,
    Revocation,
    Slot,
    Succession,
    can_bury,
    chunk_size,
    claim_of,
    evidence_of,
    slot_of,
)
from node.succession import Ending, Standing, ending_of, standing
from node.wire import evidence_from_bytes, read_header, read_payload, recovery_hash_in

RETIRED: Final = "not used: withdrawn or replaced by who took the place of its origin"
"""Of a record whose origin goes on under another identity: as good an end as being replaced by its origin."""
MAX_CONFLICTS: Final = 100
"""Proofs kept against one origin: one is enough to convict it, and some to see what happened."""

CHUNKS_A_STATEMENT: Final = 64
"""Chunks inserted by one statement: SQLite lets other threads run while it works, and each return to Python waits for
them."""

MAX_HEADERS: Final = 32
"""Headers remembered by the chunk path: up to 130 kB each in memory for the largest, a tenth of that for most."""

WALK_PAGE: Final = 64
"""Records that `walk` reads at once: a header has at most 64 KiB."""

BASIS_PERSON: Final = b"tidings-basis-v1"

_NO_BASIS: Final = frozenset(
    ["records", "chunks", "node", "numbered", "place", "peer_addresses", "links", "notices", "unsourced", "listening"]
)
"""Tables that say nothing, or nothing more, about what is fused. Records are looked at one by one."""

_NO_BASIS_KINDS: Final = "({})".format(
    ", ".join(
        str(int(kind))
        for kind in (Kind.KEY_CARD, Kind.KEY_GRANT, Kind.TASK, Kind.SUMMARY, Kind.MODEL, Kind.WITHDRAWAL, Kind.HEAD)
    )
)
"""The same for records, but for summaries and grants: what a withdrawal did shows in the state of what it buries."""


@dataclass(frozen=True)
class Tally:
    """What a store holds: how many records of each kind and state, by their names, and the size of all bodies."""

    records: Counter[tuple[str, str]]
    body_bytes: int


_HELD_COLUMNS: Final = "position, id, header, signature, state, buried_by, received_at"


_CLAIM: Final = bytes([0x08, Kind.SUCCESSION])
"""How a claim about a SUCCESSION begins in the encoding of an EVIDENCE; others may happen to hold it too."""


class _Supposition(Exception):
    """Ends a transaction that is to leave nothing behind."""

    def __init__(self, trusted: frozenset[PublicKey]) -> None:
        super().__init__()
        self.trusted = trusted


class Store(ProofTables):
    """The records, in the order in which they arrived."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Use `create` or `open`."""
        super().__init__(connection, path)
        self._headers: dict[bytes, Header] = {}
        self._common_basis: tuple[tuple[int, int, bytes], bytes] = ((0, 0, b""), b"")
        #: The identity whose home this is; None for a connection that only writes records down.
        self.owner: PublicKey | None = None
        self._endings: tuple[tuple[Any, ...], dict[PublicKey, Ending], frozenset[PublicKey]] = ((), {}, frozenset())

    @property
    def incarnation(self) -> bytes:
        """8 random bytes of every record that this store numbers from now on."""
        return bytes(self._rows("SELECT incarnation FROM node")[0][0])

    def renew_incarnation(self) -> None:
        """Another copy of this store may have given out the next sequences: number apart from it from now on. Call it
        while no record is being made."""
        self._rows("UPDATE node SET incarnation = ?", secrets.token_bytes(INCARNATION_BYTES))

    def notice_place(self) -> bool:
        """Number apart from the file that this one was copied from, if it was: each file and each directory has a
        number of its own on a disk, which a rename keeps and a copy does not. Returns whether it was.

        A disk that was rolled back as a whole is not noticed, nor a copy that happens on the same two numbers; then
        `number_apart` is what helps.
        """
        here = tuple(one.stat().st_ino - 2**63 for one in (self._path, self._path.parent))  # as SQLite takes it
        if self._rows("SELECT file, directory FROM place") == [here]:
            return False
        with self.batch():
            before = self._rows("SELECT file, directory FROM place")
            if before == [here]:
                return False  # another process was quicker
            self._rows("DELETE FROM place")
            self._rows("INSERT INTO place VALUES (?, ?)", *here)
            if before:
                self.renew_incarnation()
            return bool(before)

    def forget_place(self) -> None:
        """The file is about to be moved to where it will stay: whoever opens it there takes it for no copy."""
        with self.batch():
            self._rows("DELETE FROM place")

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
            self._rows("INSERT OR REPLACE INTO numbered VALUES (?, ?)", incarnation, rows[0][0])
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
        if any(read_header(header).incarnation == incarnation for (header,) in clashing):
            return True
        proven = "SELECT 1 FROM proofs WHERE origin = ? AND incarnation = ? LIMIT 1"
        return bool(self._rows(proven, origin.raw, incarnation))

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
        """Keep a record whose number another one has, and note the proof; a few for each origin are enough."""
        with self.batch():
            self._note_clash(record)
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

    def _note_clash(self, record: Record) -> None:
        """Note what proves that this record is not the only one with its number: the one here, or an earlier proof."""
        slot = slot_of(record.header)
        known = [claim_of(held.record) for held in self._of_slot(slot)]
        known += [claim for (data,) in self._proofs_of(slot) for claim in evidence_from_bytes(data).claims]
        other = next((claim for claim in known if claim.id != record.id), None)
        if other is not None:
            self._add_proof(evidence_of(record, other))

    def is_equivocation(self, record: Record) -> bool:
        """Whether another record with the same origin, incarnation and sequence is here, or proven to be somewhere."""
        slot = slot_of(record.header)
        return self.is_contested(slot) or any(held.record.id != record.id for held in self._of_slot(slot))

    def _of_slot(self, slot: Slot) -> list[Held]:
        return self._select("WHERE origin = ? AND incarnation = ? AND sequence = ?", *slot)

    def conflicts(self) -> list[Record]:
        """Records whose sequence another record of their origin has, in order of arrival."""
        rows = self._rows("SELECT header, signature, id FROM conflicts ORDER BY received_at, id")
        return [Record(read_header(header), header, signature, record_id) for header, signature, record_id in rows]

    def basis(self, task_id: bytes, me: PublicKey, is_selected: Callable[[bytes], bool]) -> bytes:
        """32 bytes that differ if a model of the task, fused by `me` from the summaries of the selected origins (raw
        keys), may differ: which summaries are here and in which state, what was granted to this node, and whatever else
        is here but `_NO_BASIS`. So what this method has never heard of makes it differ too often, not too seldom."""
        hasher = hashlib.blake2b(digest_size=32, person=BASIS_PERSON)
        with self.snapshot():
            summaries = self._rows(
                "SELECT id, origin, state FROM records WHERE kind = ? AND task_id = ? ORDER BY id",
                int(Kind.SUMMARY),
                task_id,
            )
            hasher.update(repr([row for row in summaries if is_selected(row[1])]).encode())
            hasher.update(self._basis_of_all(me))
        return hasher.digest()

    def _basis_of_all(self, me: PublicKey) -> bytes:
        """The part of a basis that is the same for all models, made anew when the file has changed."""
        now = (self.change_counter(), self._db.total_changes, me.raw)
        if self._common_basis[0] != now:
            hasher = hashlib.blake2b(digest_size=32, person=BASIS_PERSON)
            others = self._rows(
                f"SELECT id, state FROM records WHERE (kind = {int(Kind.KEY_GRANT)} AND instr(header, ?))"  # noqa: S608
                f" OR kind NOT IN {_NO_BASIS_KINDS} ORDER BY id",
                me.raw,
            )
            hasher.update(repr(others).encode())
            tables = self._rows("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
            for (table,) in tables:
                if table not in _NO_BASIS:
                    hasher.update(repr((table, sorted(map(repr, self._rows(f'SELECT * FROM "{table}"'))))).encode())  # noqa: S608
            self._common_basis = now, hasher.digest()
        return self._common_basis[1]

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
        wanted = {"kind": kind, "task_id": task_id, "origin": origin.raw if origin else None}
        given = {column: value for column, value in wanted.items() if value is not None}
        # Only what is given, so that SQLite finds the records of one origin without reading all of them.
        where = " AND ".join(f"{column} = ?" for column in given)
        return self._select(f"WHERE {where}" if given else "", *given.values())

    def tally(self) -> Tally:
        """Counts; reads neither headers nor bodies."""
        rows = self._rows("SELECT kind, state, COUNT(*) FROM records GROUP BY kind, state")
        # SQLite knows the length of a blob without reading it.
        body_bytes = self._rows("SELECT COALESCE(SUM(LENGTH(data)), 0) FROM chunks")[0][0]
        return Tally(Counter({(Kind(kind).label, state): count for kind, state, count in rows}), body_bytes)

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

    # ----------------------------------------------------------------------------------------------- whose word counts

    def peers(self) -> list[Peer]:
        """Who is trusted now: the peers that were added, or who took their place (`succession`)."""
        return list(self.standing().peers)

    def standing(self) -> Standing:
        """Which identities have ended, and who stands where they stood."""
        with self.snapshot():
            endings, claimed = self._read_endings()
            denied = [one.key for one in self.denied()] if endings else []
            return standing(self.owner, self.added_peers(), denied, endings, claimed)

    def trusted_with(self, records: Iterable[Record]) -> frozenset[PublicKey]:
        """The origins that would be trusted if these records, checked like any that is added, were here too. Keeps
        none of them."""
        try:
            with self.batch():
                for record in records:
                    if not self.is_equivocation(record):
                        self._insert(record)
                raise _Supposition(self.standing().trusted)
        except _Supposition as supposed:
            return supposed.trusted
        finally:
            self._endings = ((), {}, frozenset())

    def unusable(self, record: Record) -> str:
        """Why nothing may be made of a record that is here, in words, because of how identities ended; empty if that is
        not against it."""
        now = self.standing()
        reason = now.quarantine(record.header)
        if reason or not record.header.body_bytes:
            return reason
        heirs = now.heirs(record.header.origin)
        heirs = heirs - self.condemned() if heirs else heirs
        if any(self._key(slot[0]) in heirs and now.counts(slot) for slot in self._taking_back(record.id, heirs)):
            return RETIRED
        return ""

    def _taking_back(self, record_id: bytes, heirs: Collection[PublicKey]) -> Iterator[Slot]:
        """The numbers of records that name this one and are no HEAD: of those that are here, and of those of which an
        EVIDENCE tells. So it makes no difference which of two records with one number came here."""
        if not heirs:
            return
        for (header,) in self._rows("SELECT header FROM records WHERE supersedes = ?", record_id):
            later = read_header(header)
            if later.kind is not Kind.HEAD:
                yield slot_of(later)
        told = "SELECT testimonies.origin, incarnation, sequence FROM graves JOIN testimonies USING (record)"
        yield from self._rows(f"{told} WHERE target = ?", record_id)

    def last_sequences(
        self, origin: PublicKey, until: float | None = None, *, counting: bool = True
    ) -> dict[bytes, int]:
        """The highest sequence of each incarnation of an origin, among its records that arrived here no later than
        `until` (seconds since 1970) and, with `counting`, still count."""
        now, highest = self.standing(), dict[bytes, int]()
        for held in self.held(origin=origin):
            header = held.record.header
            is_early = until is None or held.received_at <= until
            if header.kind is not Kind.REVOKE and is_early and not (counting and now.quarantine(header)):
                highest[header.incarnation] = max(header.sequence, highest.get(header.incarnation, 0))
        return highest

    def numbered(self) -> dict[bytes, int]:
        """How far this store, and no other copy of it, numbered its node's records in each incarnation."""
        return dict(self._rows("SELECT incarnation, last_sequence FROM numbered"))

    def recovery_hashes(self, origin: PublicKey) -> list[bytes]:
        """The hashes of recovery keys that an origin published, each once, in the order in which they arrived here. The
        first is the one that counts."""
        cards = self.held(kind=Kind.KEY_CARD, origin=origin)
        hashes = (recovery_hash_in(held.record.header) for held in cards)
        return list(dict.fromkeys(one for one in hashes if one))

    def first_recovery_hash(self, origin: PublicKey) -> bytes | None:
        """The one that counts, without a look at later cards: a member may publish thousands."""
        position, where = 0, "origin = ? AND kind = ? AND position > ?"
        while rows := self._rows(
            f"SELECT position, header FROM records WHERE {where} ORDER BY position LIMIT ?",  # noqa: S608 - a constant
            origin.raw,
            int(Kind.KEY_CARD),
            position,
            WALK_PAGE,
        ):
            for position, header in rows:  # noqa: B007 - where the next page begins
                if found := recovery_hash_in(read_header(header)):
                    return found
        return None

    def _read_endings(self) -> tuple[dict[PublicKey, Ending], frozenset[PublicKey]]:
        """How identities ended, and everybody who is called a successor. Read again when a record about keys came, or a
        proof of equivocation: rows never go."""
        about_keys = "kind IN (1, 10, 11)"  # as the index says
        newest = self._rows(
            f"SELECT (SELECT max(position) FROM records WHERE {about_keys}),"  # noqa: S608
            " (SELECT max(rowid) FROM proofs), (SELECT max(rowid) FROM graves)"
        )[0]
        if newest != self._endings[0]:
            rows = self._rows(f"SELECT DISTINCT origin FROM records WHERE {about_keys} AND kind > 1")  # noqa: S608
            contested, condemned = self._contested_successions(), self.condemned()
            endings, claimed = {}, set[PublicKey]()
            for origin in {*(self._key(raw) for (raw,) in rows), *contested}:
                kinds = [Kind.REVOKE] if origin in condemned else [Kind.REVOKE, Kind.SUCCESSION]
                ending, named = self._read_ending(origin, kinds, contested.get(origin))
                claimed |= named
                if ending is not None:
                    endings[origin] = ending
            self._endings = newest, endings, frozenset(claimed)
        return self._endings[1], self._endings[2]

    def _contested_successions(self) -> dict[PublicKey, float]:
        """Origins that signed a SUCCESSION and another record with one number, with when that was learned."""
        # Claims of other kinds are many, and need not be decoded: the kind is written as a field of its own.
        rows = self._rows(
            "SELECT evidence, learned_at FROM proofs WHERE instr(evidence, ?) ORDER BY rowid DESC", _CLAIM
        )
        proofs = [(evidence_from_bytes(data), at) for data, at in rows]
        return {
            proof.accused: at for proof, at in proofs if any(claim.kind is Kind.SUCCESSION for claim in proof.claims)
        }

    def _read_ending(
        self, origin: PublicKey, kinds: Sequence[Kind], contested_at: float | None
    ) -> tuple[Ending | None, set[PublicKey]]:
        """How records of these kinds ended one identity, if they did, and whom they called its successor. A condemned
        one ends by a REVOKE alone: nothing that it signed is used, and who condemned it first has not taken more."""
        if Kind.SUCCESSION not in kinds:
            contested_at = None
        first = self.first_recovery_hash(origin)
        found = [
            (payload, held.received_at)
            for kind in kinds
            for held in self.held(kind=kind, origin=origin)
            if (payload := self._ending_in(held.record, first)) is not None
        ]
        named = {word.successor for word, _ in found if word.successor is not None}
        since = [at for _, at in found] + ([] if contested_at is None else [contested_at])
        if not since:
            return None, named
        revocations = [word for word, _ in found if isinstance(word, Revocation)]
        successions = [word for word, _ in found if isinstance(word, Succession)]
        return ending_of(revocations, successions, min(since), is_contested=contested_at is not None), named

    def _ending_in(self, record: Record, first: bytes | None) -> Revocation | Succession | None:
        """What a record says that ends its origin, if it counts. A REVOKE does if the origin published the hash of its
        recovery key (`first`), or if the key of this node itself has consented to take its place; a SUCCESSION unless
        another record has its number."""
        payload = read_payload(record.header)
        if isinstance(payload, Succession):
            return None if self.is_contested(slot_of(record.header)) else payload
        if not isinstance(payload, Revocation):
            raise TypeError("the store handed out a revocation without its payload")
        is_ours = first is None and self.owner is not None and payload.successor == self.owner
        return payload if is_ours or payload.recovery_hash == first else None

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
        self._heed(record)
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
        return self._evidence_burying(record)

    def _bury_target(self, record: Record) -> None:
        """Drop the body of the record that this one takes back, if that is here already."""
        target = self.get(record.header.supersedes) if record.header.supersedes else None
        if target is None or target.state is HeldState.BURIED:
            return
        if can_bury(record.header, target.record.header):
            self._bury(target.record.id, record.id)

    def _bury(self, record_id: bytes, burier: bytes) -> None:
        self._rows("DELETE FROM chunks WHERE record = (SELECT position FROM records WHERE id = ?)", record_id)
        self._rows("UPDATE records SET state = 'buried', buried_by = ? WHERE id = ?", burier, record_id)

    def _heed(self, record: Record) -> None:
        """Act on an EVIDENCE that was just kept: what it contests and what that took back loses its body here."""
        evidence = self._add_testimony(record)
        if evidence is None:
            return
        contested = self._of_slot(evidence.slot)
        for held in contested:
            self._note_clash(held.record)  # a third record, perhaps, which takes back what the two do not
        targets = [self.get(target) for target in evidence.targets]
        for held in filter(None, (*contested, *targets)):
            header = held.record.header
            is_live = held.state is not HeldState.BURIED and header.body_bytes > 0
            if is_live and header.origin == evidence.accused:
                self._bury(held.record.id, record.id)

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
