"""Holdings: the records in the store as gossip sees them, which of them are settled, and which were taken
back by what.

A record is settled when nothing more of it is wanted: it has no body, its body is whole, or a record of the same
origin that names it in `supersedes` is here too. The last holds in either order of arrival, so two nodes with the
same records have the same settled records, and the same digests (`reconcile`), however these came. The store applies
the same rule when it keeps a record (`records.can_bury`); here it decides what is announced, served and asked for.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from node.config import GossipSettings
from node.frames import Advert
from node.gossip.reconcile import Index
from node.records import KeyCard, Kind, Record, can_bury
from node.wire import read_payload


@dataclass(slots=True)
class Entry:
    """A record in the store."""

    record: Record
    is_settled: bool = False
    buried_by: Record | None = None


class Holdings:
    """Every record in the store, and the index of the settled ones."""

    def __init__(self, settings: GossipSettings) -> None:
        self.index = Index(settings)
        self._trusted: Set[bytes] = frozenset()
        self._entries: dict[bytes, Entry] = {}
        self._by_sequence: dict[tuple[bytes, bytes, int], bytes] = {}
        self._naming: dict[bytes, list[Record]] = {}
        self._recovery: dict[bytes, bytes] = {}

    def trust(self, origins: Set[bytes]) -> bool:
        """From now on, compare and serve records of these origins (raw keys) and no others; kept, not copied. Returns
        whether some are new."""
        is_wider = not origins <= self._trusted
        if origins != self._trusted:
            self._trusted = origins
            self.index.trust(origins)
        return is_wider

    def trusts(self, origin: bytes) -> bool:
        """Whether records of this origin are wanted."""
        return origin in self._trusted

    def get(self, record_id: bytes) -> Entry | None:
        """The record with this id."""
        return self._entries.get(record_id)

    def servable(self, record_id: bytes) -> Entry | None:
        """The record with this id, if a peer may have it: settled, and of a trusted origin."""
        entry = self._entries.get(record_id)
        if entry is None or not entry.is_settled or not self.trusts(entry.record.header.origin.raw):
            return None
        return entry

    def recovery_hash(self, origin: bytes) -> bytes | None:
        """The hash of the recovery key of an origin: the first one that came here."""
        return self._recovery.get(origin)

    def is_equivocation(self, record: Record) -> bool:
        """Whether another record with the same origin, incarnation and sequence is here."""
        return self._by_sequence.get(_sequence_of(record), record.id) != record.id

    def advert(self, record_id: bytes) -> Advert:
        """How to announce a record that is here."""
        header = self._entries[record_id].record.header
        return Advert(record_id, header.kind, header.origin.raw, header.body_bytes)

    def learn(self, record: Record, *, is_whole: bool) -> list[bytes]:
        """A new record is in the store, with all of its body or not; returns the ids that this settles."""
        entry = self._entries[record.id] = Entry(record, buried_by=self._burier_of(record))
        self._by_sequence[_sequence_of(record)] = record.id
        if record.header.kind is Kind.KEY_CARD:
            self._learn_recovery(record)
        settled = self.settle(record.id) if is_whole or entry.buried_by else []
        if record.header.supersedes:
            self._naming.setdefault(record.header.supersedes, []).append(record)
            settled += self._bury(record)
        return settled

    def settle(self, record_id: bytes) -> list[bytes]:
        """Nothing more of this record is wanted; returns its id if that is news."""
        entry = self._entries[record_id]
        if entry.is_settled:
            return []
        entry.is_settled = True
        header = entry.record.header
        self.index.settle(header.origin.raw, header.incarnation, header.sequence, record_id)
        return [record_id]

    def _learn_recovery(self, card: Record) -> None:
        payload = read_payload(card.header)
        if isinstance(payload, KeyCard) and payload.recovery_hash:
            self._recovery.setdefault(card.header.origin.raw, payload.recovery_hash)

    def _bury(self, burier: Record) -> list[bytes]:
        target = self._entries.get(burier.header.supersedes)
        if target is None or target.buried_by or not can_bury(burier.header, target.record.header):
            return []
        target.buried_by = burier
        return self.settle(target.record.id)

    def _burier_of(self, record: Record) -> Record | None:
        naming = self._naming.get(record.id, ())
        return next((later for later in naming if can_bury(later.header, record.header)), None)


def _sequence_of(record: Record) -> tuple[bytes, bytes, int]:
    return record.header.origin.raw, record.header.incarnation, record.header.sequence
