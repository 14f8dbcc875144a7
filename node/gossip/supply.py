"""Supply: what peers ask of this node, and what they get.

Only settled records of trusted origins are given. A record that takes another one back goes before it, so that nobody
asks for a body that is gone for good; instead of one whose number is contested, the evidence goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from node.config import CHUNK_BYTES, CHUNKS_MAX_BYTES, MAX_WANT, SMALL_BODY_BYTES
from node.frames import Missing, Records, SignedRecord, Want, WantChunks
from node.gossip.compare import batches
from node.gossip.events import Action, Offence, SendChunk, SendRecords
from node.gossip.holdings import Holdings
from node.gossip.links import Links, PeerLink
from node.records import Record

OVERHEAD_BYTES: Final = 100
"""A signature, and what the encoding adds to a record."""


class Supply:
    """Answers Want and WantChunks. Actions go to `out`."""

    def __init__(self, holdings: Holdings, links: Links, out: list[Action]) -> None:
        self._holdings = holdings
        self._links = links
        self._out = out

    def want(self, link: PeerLink, want: Want) -> None:
        """Send these headers, small bodies with them."""
        headers: dict[bytes, Record] = {}
        whole: list[Record] = []
        for wanted in want.ids:
            entry = self._holdings.servable(wanted)
            if entry is None:
                headers |= {one.id: one for one in self._holdings.testimonies(wanted)}
                self._links.send(link, Missing(wanted))
                continue
            if entry.buried_by is not None:
                headers[entry.buried_by.id] = entry.buried_by
            if entry.buried_by is None and 0 < entry.record.header.body_bytes <= SMALL_BODY_BYTES:
                whole.append(entry.record)
            else:
                headers.setdefault(wanted, entry.record)
            link.worked()
        self._send_records(link, list(headers.values()))
        self._out += [SendRecords(link.number, tuple(batch)) for batch in batches(whole, _bytes, MAX_WANT, CHUNK_BYTES)]

    def want_chunks(self, link: PeerLink, want: WantChunks, now: float) -> None:
        """Send these parts of a body."""
        entry = self._holdings.servable(want.id)
        if entry is None:
            self._links.send(link, Missing(want.id))
        elif entry.buried_by is not None:
            self._send_records(link, [entry.buried_by])
            self._links.send(link, Missing(want.id))
        elif max(want.indexes) >= len(entry.record.header.chunk_hashes):
            reason = "it asked for a chunk that the record does not have"
            self._links.strike(link.number, reason, now, Offence.REQUEST)
        else:
            most = min(want.together, CHUNKS_MAX_BYTES // entry.record.header.chunk_bytes)
            self._out += [SendChunk(link.number, want.id, *run) for run in _runs(want.indexes, most)]
            link.worked()

    def _send_records(self, link: PeerLink, records: Sequence[Record]) -> None:
        for batch in batches(records, lambda one: len(one.header_bytes) + OVERHEAD_BYTES, MAX_WANT):
            signed = (SignedRecord(record.header_bytes, record.signature) for record in batch)
            self._links.send(link, Records(tuple(signed)))


def _runs(indexes: Iterable[int], most: int) -> list[tuple[int, int]]:
    """The first of each run of numbers that follow one another, and how many they are, at most so many."""
    runs: list[tuple[int, int]] = []
    for index in indexes:
        first, count = runs[-1] if runs else (index, 0)
        if index == first + count and count < most and runs:
            runs[-1] = (first, count + 1)
        else:
            runs.append((index, 1))
    return runs


def _bytes(record: Record) -> int:
    return len(record.header_bytes) + OVERHEAD_BYTES + record.header.body_bytes
