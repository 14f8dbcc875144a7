"""Arrivals: the records that came in since the node started, until they are whole: what the journal tells of them, and
how long the oldest has been waited for.

A record without a body is settled when it is on disk. One with a body is settled once the core wants no more of it,
which is looked at every second: cheaper than asking after every chunk, and early enough for a log.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection
from typing import Final

from node.journal import Journal
from node.records import HeldState, Kind, Record
from node.store import Store

TOLD_AT_ONCE: Final = 50
"""Stalled records told in one look. A member can have thousands, and can make a link come and go."""


class Arrivals:
    """Which records are on their way."""

    def __init__(self, journal: Journal, store: Store) -> None:
        self._journal = journal
        self._store = store
        self._awaited: dict[bytes, float] = {}
        self._gossiped: set[bytes] = set()
        self._stalled: set[bytes] = set()

    def gossiped(self, record: Record) -> None:
        """Gossip brought a record, and its header is on disk."""
        self._gossiped.add(record.id)
        self._seen(record)

    def found(self, records: list[Record]) -> None:
        """These are new in the store, or have more of their body: what gossip brought since the last time, what was
        authored or imported here."""
        for record in records:
            if record.id not in self._gossiped:
                self._seen(record)
        self._gossiped.clear()
        me = self._journal.me
        own = [
            record.header for record in records if record.header.kind is Kind.KEY_GRANT and record.header.origin == me
        ]
        for epoch in sorted({header.epoch for header in own if header.recipient == me}):
            granted = sum(header.epoch == epoch and header.recipient != me for header in own)
            self._journal.epoch_begun(epoch, granted)

    def look(self, fetching: Collection[bytes], stalled: Collection[bytes]) -> None:
        """Tell what is whole now that was not; `fetching` are the records that lack some of their body, `stalled` those
        of them that nobody linked has more of since the last look."""
        now = time.monotonic()
        for record_id in [one for one in self._awaited if one not in fetching]:
            held = self._store.get(record_id)
            if held is not None and held.state is HeldState.FETCHING:
                continue  # its last chunk is still on its way to the disk
            del self._awaited[record_id]
            self._stalled.discard(record_id)
            if held is not None and held.state is HeldState.COMPLETE:
                self._journal.settled(held.record)
        for record_id in fetching:  # those that were on their way when the node started, too
            self._awaited.setdefault(record_id, now)
        news = (record_id for record_id in stalled if record_id not in self._stalled)
        for record_id in list(itertools.islice(news, TOLD_AT_ONCE)):
            self._stalled.add(record_id)
            held = self._store.get(record_id)
            if held is not None:
                self._journal.stalled(held.record)

    def lag_s(self) -> float:
        """For how long the rest of the oldest body has been waited for; 0 if all are here."""
        return time.monotonic() - min(self._awaited.values()) if self._awaited else 0.0

    def _seen(self, record: Record) -> None:
        if record.header.body_bytes:
            self._awaited.setdefault(record.id, time.monotonic())
        else:
            self._journal.settled(record)
