"""A store in memory with the meaning of `node.store.Store`, as far as gossip needs it, and records to put into it.

For simulated nodes (`simulator`): thousands in one process, which share the bytes of bodies and headers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from crypto.keys import Identity
from crypto.sealing import chunk_hashes
from node import wire
from node.records import Header, Held, HeldState, Kind, Record, can_bury

FIRST_INCARNATION: Final = b"incarnat"


def author_record(
    identity: Identity,
    sequence: int,
    body: bytes = b"",
    *,
    supersedes: bytes = b"",
    incarnation: bytes = FIRST_INCARNATION,
    chunk_bytes: int = 65_536,
    created_unix_ms: int = 0,
) -> Record:
    """A signed SUMMARY whose sealed body is these bytes, or a WITHDRAWAL without one."""
    header = Header(Kind.WITHDRAWAL, identity.public_key, incarnation, sequence, created_unix_ms, supersedes=supersedes)
    if body:
        header = replace(
            header,
            kind=Kind.SUMMARY,
            epoch=1,
            task_id=bytes(32),
            body_bytes=len(body),
            chunk_bytes=chunk_bytes,
            chunk_hashes=chunk_hashes(body, chunk_bytes),
            key_commitment=bytes(32),
        )
    return wire.author(identity, header)


class MemoryStore:
    """Records, the chunks of their bodies, and what was taken back."""

    def __init__(self) -> None:
        self._held: dict[bytes, Held] = {}
        self._chunks: dict[tuple[bytes, int], bytes] = {}
        self._naming: dict[bytes, list[Record]] = {}

    def copy(self) -> MemoryStore:
        """The store as it is now, apart from this one."""
        other = MemoryStore()
        other._held, other._chunks = self._held.copy(), self._chunks.copy()
        other._naming = {target: named.copy() for target, named in self._naming.items()}
        return other

    def add_record(self, record: Record) -> Held:
        """Keep a checked record and apply what it takes back, or what takes it back."""
        if record.id not in self._held:
            missing = tuple(range(len(record.header.chunk_hashes)))
            state = HeldState.FETCHING if missing else HeldState.COMPLETE
            self._held[record.id] = Held(record, state, 0.0, missing)
            target = record.header.supersedes
            if target:
                self._naming.setdefault(target, []).append(record)
                self._bury(record, target)
            for other in self._naming.get(record.id, ()):
                self._bury(other, record.id)
        return self._held[record.id]

    def add_chunk(self, record_id: bytes, index: int, data: bytes) -> Held:
        """Keep a checked chunk."""
        held = self._held[record_id]
        if held.state is HeldState.FETCHING and index in held.missing:
            self._chunks[record_id, index] = data
            missing = tuple(i for i in held.missing if i != index)
            state = HeldState.FETCHING if missing else HeldState.COMPLETE
            held = self._held[record_id] = replace(held, missing=missing, state=state)
        return held

    def chunk(self, record_id: bytes, index: int) -> bytes | None:
        """A chunk that is here, None if it is not."""
        return self._chunks.get((record_id, index))

    def get(self, record_id: bytes) -> Held | None:
        """The record with this id."""
        return self._held.get(record_id)

    def held(self) -> list[Held]:
        """Every record, in the order of arrival."""
        return list(self._held.values())

    def settled_ids(self) -> set[bytes]:
        """The ids of the records of which nothing more is wanted."""
        return {record_id for record_id, held in self._held.items() if held.state is not HeldState.FETCHING}

    def _bury(self, burier: Record, target_id: bytes) -> None:
        held = self._held.get(target_id)
        if held is None or held.state is HeldState.BURIED or not can_bury(burier.header, held.record.header):
            return
        self._held[target_id] = replace(held, state=HeldState.BURIED, missing=(), buried_by=burier.id)
        for index in range(len(held.record.header.chunk_hashes)):
            self._chunks.pop((target_id, index), None)
