"""Holdings: the records in the store as gossip sees them, which of them are settled, and which were taken
back by what.

A record is settled when nothing more of it is wanted: it has no body, its body is whole, or a record of the same
origin that names it in `supersedes` is here too. The last holds in either order of arrival, so two nodes with the
same records have the same settled records, and the same digests (`reconcile`), however these came. The store applies
the same rule when it keeps a record (`records.can_bury`); here it decides what is announced, served and asked for.

A number that an EVIDENCE proves to have two records is settled too, whichever of them is here, or none: it counts in
the digests as a token that follows from the number alone. An origin with too many of them is condemned: it is trusted
no more. So what an equivocator sent to whom makes no difference in the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Final

from crypto.sealing import HASH_BYTES
from node.config import MAX_CONTESTED, GossipSettings
from node.frames import Advert
from node.gossip.reconcile import Index
from node.records import Evidence, Kind, Record, Slot, can_bury, slot_of
from node.wire import read_evidence, recovery_hash_in

TOKEN_PERSON: Final = b"tidings-slot-v1"


@dataclass(slots=True)
class Entry:
    """A record in the store."""

    record: Record
    is_settled: bool = False
    buried_by: Record | None = None


@dataclass(slots=True)
class Contested:
    """A number with two records: the EVIDENCE records about it that are here."""

    slot: Slot
    token: bytes
    testimonies: list[Record] = field(default_factory=list)


def token_of(slot: Slot) -> bytes:
    """What stands in a digest for a number that has two records, instead of either's id."""
    origin, incarnation, sequence = slot
    number = origin + incarnation + sequence.to_bytes(8, "big")
    return hashlib.blake2b(number, digest_size=HASH_BYTES, person=TOKEN_PERSON).digest()


class Holdings:
    """Every record in the store, and the index of the settled ones."""

    def __init__(self, settings: GossipSettings) -> None:
        self.index = Index(settings)
        self._members: Set[bytes] = frozenset()
        self._trusted: Set[bytes] = frozenset()
        self._entries: dict[bytes, Entry] = {}
        self._by_sequence: dict[Slot, bytes] = {}
        self._naming: dict[bytes, list[Record]] = {}
        self._recovery: dict[bytes, bytes] = {}
        self._contested: dict[Slot, Contested] = {}
        self._by_token: dict[bytes, Contested] = {}
        self._graves: dict[bytes, dict[bytes, Record]] = {}
        """Of each origin, what records under contested numbers took back, with the EVIDENCE that says so."""
        self._contested_of: dict[bytes, int] = {}
        self.condemned: set[bytes] = set()
        """Origins that were proven to equivocate too often."""

    def trust(self, origins: Set[bytes]) -> bool:
        """From now on, compare and serve records of these origins (raw keys) and no others; kept, not copied. Those
        that are condemned are left out. Returns whether some are new."""
        self._members = origins
        trusted = origins if self.condemned.isdisjoint(origins) else origins - self.condemned
        is_wider = not trusted <= self._trusted
        if trusted != self._trusted:
            self._trusted = trusted
            self.index.trust(trusted)
        return is_wider

    def trusts(self, origin: bytes) -> bool:
        """Whether records of this origin are wanted."""
        return origin in self._trusted

    def get(self, record_id: bytes) -> Entry | None:
        """The record with this id."""
        return self._entries.get(record_id)

    def servable(self, record_id: bytes) -> Entry | None:
        """The record with this id, if a peer may have it: settled, of a trusted origin, and its only one."""
        entry = self._entries.get(record_id)
        if entry is None or not entry.is_settled or not self.trusts(entry.record.header.origin.raw):
            return None
        return None if slot_of(entry.record.header) in self._contested else entry

    def recovery_hash(self, origin: bytes) -> bytes | None:
        """The hash of the recovery key of an origin: the first one that came here."""
        return self._recovery.get(origin)

    def is_equivocation(self, record: Record) -> bool:
        """Whether another record with the same origin, incarnation and sequence is here."""
        return self._by_sequence.get(slot_of(record.header), record.id) != record.id

    def is_contested(self, record: Record) -> bool:
        """Whether its number is known to have two records."""
        return slot_of(record.header) in self._contested

    def takes_more_back(self, record: Record) -> bool:
        """Whether a record under a contested number takes back what no EVIDENCE here says."""
        target = record.header.supersedes
        is_known = target in self._graves.get(record.header.origin.raw, ())
        return bool(target) and record.header.kind is not Kind.HEAD and not is_known

    def testimonies(self, record_id: bytes) -> list[Record]:
        """The EVIDENCE that a peer needs who asks for this record although its number is contested."""
        entry = self._entries.get(record_id)
        contested = self._contested.get(slot_of(entry.record.header)) if entry is not None else None
        return [] if contested is None else [one for one in contested.testimonies if self.servable(one.id)]

    def slot_of_token(self, token: bytes) -> Slot | None:
        """The contested number that a token stands for; None for the id of a record."""
        contested = self._by_token.get(token)
        return contested.slot if contested else None

    def adverts(self, ids: Iterable[bytes]) -> list[Advert]:
        """How to announce what is here: a record, or the EVIDENCE behind a token."""
        found: dict[bytes, Record] = {}
        for id_ in ids:
            records = self._by_token[id_].testimonies if id_ in self._by_token else [self._entries[id_].record]
            found |= {one.id: one for one in records if self.trusts(one.header.origin.raw)}
        headers = ((one.id, one.header) for one in found.values())
        return [Advert(id_, header.kind, header.origin.raw, header.body_bytes) for id_, header in headers]

    def learn(self, record: Record, *, is_whole: bool) -> list[bytes]:
        """A new record is in the store, with all of its body or not; returns the ids that this settles."""
        entry = self._entries[record.id] = Entry(record, buried_by=self._burier_of(record))
        self._by_sequence[slot_of(record.header)] = record.id
        if record.header.kind is Kind.KEY_CARD:
            self._learn_recovery(record)
        settled = self.settle(record.id) if is_whole or entry.buried_by else []
        if record.header.supersedes:
            self._naming.setdefault(record.header.supersedes, []).append(record)
            settled += self._bury(record)
        if record.header.kind is Kind.EVIDENCE:
            settled += self._heed(record, read_evidence(record))
        return settled

    def settle(self, record_id: bytes) -> list[bytes]:
        """Nothing more of this record is wanted; returns its id if that is news."""
        entry = self._entries[record_id]
        if entry.is_settled:
            return []
        entry.is_settled = True
        slot = slot_of(entry.record.header)
        if slot not in self._contested:
            self.index.settle(*slot, record_id)
        return [record_id]

    def _learn_recovery(self, card: Record) -> None:
        if published := recovery_hash_in(card.header):
            self._recovery.setdefault(card.header.origin.raw, published)

    def _bury(self, burier: Record) -> list[bytes]:
        target = self._entries.get(burier.header.supersedes)
        if target is None or target.buried_by or not can_bury(burier.header, target.record.header):
            return []
        target.buried_by = burier
        return self.settle(target.record.id)

    def _burier_of(self, record: Record) -> Record | None:
        naming = self._naming.get(record.id, ())
        burier = next((later for later in naming if can_bury(later.header, record.header)), None)
        if burier is not None or not record.header.body_bytes:
            return burier
        contested = self._contested.get(slot_of(record.header))
        if contested is not None:
            return contested.testimonies[0]
        return self._graves.get(record.header.origin.raw, {}).get(record.id)

    def _heed(self, record: Record, evidence: Evidence) -> list[bytes]:
        """Act on an EVIDENCE as the store does; returns the ids that this settles."""
        slot, origin = evidence.slot, evidence.accused.raw
        graves = self._graves.setdefault(origin, {})
        graves |= {target: record for target in evidence.targets if target not in graves}
        if slot not in self._contested:
            contested = self._contested[slot] = Contested(slot, token_of(slot))
            self._by_token[contested.token] = contested
            self._contested_of[origin] = self._contested_of.get(origin, 0) + 1
            self.index.settle(*slot, contested.token)
        self._contested[slot].testimonies.append(record)
        if self._contested_of[origin] + len(graves) >= MAX_CONTESTED and origin not in self.condemned:
            self.condemned.add(origin)
            self.trust(self._members)
        here = [id_ for id_ in (*evidence.targets, self._by_sequence.get(slot)) if id_ in self._entries]
        return [settled for id_ in here if id_ is not None for settled in self._end(id_, evidence, record)]

    def _end(self, record_id: bytes, evidence: Evidence, record: Record) -> list[bytes]:
        """Nothing more is wanted of what evidence contests or takes back, and its body goes."""
        entry = self._entries[record_id]
        header = entry.record.header
        if header.origin != evidence.accused or not header.body_bytes:
            return []
        entry.buried_by = entry.buried_by or record
        return self.settle(record_id)
