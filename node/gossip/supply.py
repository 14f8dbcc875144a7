"""Supply: what peers ask of this node, and what they get.

Only settled records of trusted origins are given. A record that takes another one back goes before it, so that nobody
asks for a body that is gone for good; instead of one whose number is contested, the evidence goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from node.config import MAX_WANT, SMALL_BODY_BYTES
from node.frames import Missing, Records, SignedRecord, Want, WantChunks
from node.gossip.compare import batches
from node.gossip.events import Action, SendChunk
from node.gossip.holdings import Holdings
from node.gossip.links import Links, PeerLink
from node.records import Record


class Supply:
    """Answers Want and WantChunks. Actions go to `out`."""

    def __init__(self, holdings: Holdings, links: Links, out: list[Action]) -> None:
        self._holdings = holdings
        self._links = links
        self._out = out

    def want(self, link: PeerLink, want: Want) -> None:
        """Send these headers, and small bodies after them."""
        chosen: dict[bytes, Record] = {}
        bodies: list[SendChunk] = []
        for wanted in want.ids:
            entry = self._holdings.servable(wanted)
            if entry is None:
                chosen |= {one.id: one for one in self._holdings.testimonies(wanted)}
                self._links.send(link, Missing(wanted))
                continue
            if entry.buried_by is not None:
                chosen[entry.buried_by.id] = entry.buried_by
            elif entry.record.header.body_bytes <= SMALL_BODY_BYTES:
                chunks = range(len(entry.record.header.chunk_hashes))
                bodies += [SendChunk(link.number, wanted, index) for index in chunks]
            chosen.setdefault(wanted, entry.record)
            link.worked()
        self._send_records(link, list(chosen.values()))
        self._out += bodies

    def want_chunks(self, link: PeerLink, want: WantChunks, now: float) -> None:
        """Send these parts of a body."""
        entry = self._holdings.servable(want.id)
        if entry is None:
            self._links.send(link, Missing(want.id))
        elif entry.buried_by is not None:
            self._send_records(link, [entry.buried_by])
            self._links.send(link, Missing(want.id))
        elif max(want.indexes) >= len(entry.record.header.chunk_hashes):
            self._links.strike(link.number, "it asked for a chunk that the record does not have", now)
        else:
            self._out += [SendChunk(link.number, want.id, index) for index in want.indexes]
            link.worked()

    def _send_records(self, link: PeerLink, records: Iterable[Record]) -> None:
        signed: Sequence[SignedRecord] = [SignedRecord(record.header_bytes, record.signature) for record in records]
        for batch in batches(signed, lambda one: len(one.header_bytes) + 100, MAX_WANT):
            self._links.send(link, Records(tuple(batch)))
