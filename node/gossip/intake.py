"""Intake: what comes in is checked, then kept, then settled and made news.

Refused: records of origins that are not trusted, or condemned; a second record for one sequence of an origin, which
the shell answers with EVIDENCE; whatever a rule of `records` or `wire` forbids. Anything invalid is a strike against
the link that brought it.

A revocation is kept once it is known to be of the recovery key that its origin published. Until the key card with that
hash is here it waits in memory; one of another recovery key is refused, and is no strike, since its bearer may have
learned another hash first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from crypto.keys import PublicKey
from crypto.signing import record_id
from node.config import GossipSettings
from node.errors import RecordError
from node.frames import Advert, Chunk, SignedRecord
from node.gossip.events import Action, Alarm, Keep, KeepChunk, Offence
from node.gossip.fetch import Fetcher, priority
from node.gossip.holdings import Holdings
from node.gossip.links import Links, PeerLink
from node.gossip.quotas import Quotas, sort_of
from node.gossip.rumors import Rumors
from node.records import RULES, Held, HeldState, Kind, Record, Revocation, cut, is_chunk
from node.wire import read_payload, read_record

MET_ITSELF: Final = "a record of this node came back that it does not hold; was its home restored from a copy?"


NOT_ITS_RECOVERY_KEY: Final = (
    "a revocation came that is not made with the recovery key that it published first: somebody has published another "
    "one in its name, or tries to revoke it"
)
MAX_WAITING: Final = 64
"""Revocations that wait for a key card. Any member can make up more; those that are dropped are offered again by the
next round of anti-entropy."""


def equivocation(second: Record) -> str:
    """What to tell of an origin that signed another record with the sequence of this one."""
    sequence, shown = second.header.sequence, second.id.hex()[:12]
    return f"it signed two records with sequence {sequence}; the second, {shown}, is refused"


class Intake:
    """Takes announcements, records and chunks. Actions go to `out`."""

    def __init__(
        self,
        settings: GossipSettings,
        me: PublicKey,
        holdings: Holdings,
        fetcher: Fetcher,
        rumors: Rumors,
        links: Links,
        quotas: Quotas,
        out: list[Action],
    ) -> None:
        self._settings = settings
        self._quotas = quotas
        self._me = me
        self._holdings = holdings
        self._fetcher = fetcher
        self._rumors = rumors
        self._links = links
        self._out = out
        self._refused: dict[bytes, None] = {}
        self._has_met_itself = False
        self._waiting: dict[bytes, Record] = {}
        self._false_revocations: set[bytes] = set()
        """Origins of which that was told."""

    # ------------------------------------------------------------------------------------------------------- from peers

    def heard(self, link: PeerLink, adverts: Iterable[Advert], now: float) -> None:
        """The peer says what it has: want what is not settled here."""
        for advert in adverts:
            self._rumors.heard(link.number, advert.id)
            entry = self._holdings.get(advert.id)
            is_wanted = entry is None or not entry.is_settled
            is_acceptable = advert.kind in RULES and advert.id not in self._refused and advert.id not in self._waiting
            if not is_wanted or not is_acceptable or not self._holdings.trusts(advert.origin):
                continue
            if entry or self._has_room_for(advert.kind, advert.origin, advert.id, advert.body_bytes, now):
                self._fetcher.offered(link.number, advert)

    def records(self, link: PeerLink, records: Iterable[SignedRecord], now: float) -> None:
        """Signed headers came, small bodies with them."""
        for signed in records:
            known_id = record_id(signed.header_bytes)
            self._fetcher.progress(link.number, known_id, now)
            if not (self._holdings.get(known_id) or known_id in self._refused or known_id in self._waiting):
                # Only then: it is the signature that costs.
                try:
                    self._take(link, read_record(signed.header_bytes, signed.signature), now)
                except RecordError as error:
                    self._links.strike(link.number, str(error), now, Offence.RECORD)
            if signed.body:
                self._body(link, known_id, signed.body, now)
            if self._links.get(link.number) is None:
                return

    def chunk(self, link: PeerLink, chunk: Chunk, now: float) -> None:
        """A part of a body came: a chunk, or several in a row."""
        entry = self._holdings.get(chunk.id)
        parts = cut(chunk.data, entry.record.header.chunk_bytes) if entry else [chunk.data]
        self._fetcher.progress(link.number, chunk.id, now, chunks=len(parts))
        for index, data in enumerate(parts, chunk.index):
            if not self._keep(link, chunk.id, index, data, now):
                return

    def _body(self, link: PeerLink, known_id: bytes, body: bytes, now: float) -> None:
        """A small body came with its header: as good as all of its chunks."""
        entry = self._holdings.get(known_id)
        if entry is None:
            return
        if len(body) != entry.record.header.body_bytes:
            self._links.strike(link.number, "a body does not have the size that its record says", now, Offence.CHUNK)
            return
        for index, data in enumerate(cut(body, entry.record.header.chunk_bytes)):
            if not self._keep(link, known_id, index, data, now):
                return

    def _keep(self, link: PeerLink, known_id: bytes, index: int, data: bytes, now: float) -> bool:
        """Keep a chunk if it is wanted; False if it is not what its number says."""
        record = self._fetcher.wanted_chunk(known_id, index)
        if record is None or not self._holdings.trusts(record.header.origin.raw) or not self._fetcher.takes_bodies:
            return True
        if not is_chunk(record.header, index, data):
            self._fetcher.drop_source(link.number, known_id)
            reason = "a chunk does not have the hash and size that its record says"
            self._links.strike(link.number, reason, now, Offence.CHUNK)
            return False
        self._out.append(KeepChunk(known_id, index, data))
        link.worked()
        knowing = {link.number, *self._fetcher.sources(known_id)}
        if self._fetcher.chunk_arrived(link.number, known_id, index):
            self._holdings.settle(known_id)
            self._rumors.start(known_id, knowing)
        return True

    def _take(self, link: PeerLink | None, record: Record, now: float) -> None:
        """A valid, new record came, now or (no link) a while ago: keep it if it is a member's, within its quota, and
        alone in its sequence."""
        if not self._holdings.trusts(record.header.origin.raw) or not self._fetcher.takes_header(record.header.kind):
            return
        if record.header.kind is Kind.REVOKE and not self._may_revoke(record):
            return
        if self._holdings.is_contested(record):
            self._drop(record)
            return
        if self._holdings.is_equivocation(record):
            self._refuse(record)
            return
        if record.header.origin == self._me and not self._has_met_itself:
            self._has_met_itself = True
            self._out.append(Alarm(self._me, MET_ITSELF))
        if not self._has_room(record, now):
            self._fetcher.forget(record.id)
            return
        self._out.append(Keep(record))
        knowing = set(self._fetcher.sources(record.id))
        if link is not None:
            link.worked()
            knowing.add(link.number)
        self._learn(record, is_whole=record.header.body_bytes == 0)
        self._count(record, now)
        if self._holdings.servable(record.id):
            self._rumors.start(record.id, knowing)
        else:
            self._fetcher.resume(record, range(len(record.header.chunk_hashes)))
        if record.header.kind is Kind.KEY_CARD:
            self._try_again(record.header.origin, now)

    def _has_room(self, record: Record, now: float) -> bool:
        """Whether its origin's quota admits a record."""
        header = record.header
        return self._has_room_for(header.kind, header.origin.raw, record.id, header.body_bytes, now)

    def _has_room_for(self, kind: int, origin: bytes, record_id: bytes, body_bytes: int, now: float) -> bool:
        """The same of what is only announced."""
        return self._quotas.admits(origin, record_id, sort_of(kind, body_bytes), now)

    def _may_revoke(self, record: Record) -> bool:
        """Whether a valid revocation is of the recovery key that its origin published. Its number is drawn and says
        nothing about the origin: of two with one number the second is dropped, and nobody is accused."""
        payload, published = read_payload(record.header), self._holdings.recovery_hash(record.header.origin.raw)
        if isinstance(payload, Revocation) and payload.recovery_hash == published:
            if self._holdings.is_equivocation(record):
                self._forget(record)
            return not self._holdings.is_equivocation(record)
        if published is None:
            self._fetcher.forget(record.id)
            self._waiting[record.id] = record
            if len(self._waiting) > MAX_WAITING:
                del self._waiting[next(iter(self._waiting))]
        else:
            self._forget(record)
            if record.header.origin.raw not in self._false_revocations:  # any member can make up any number of them
                self._false_revocations.add(record.header.origin.raw)
                self._out.append(Alarm(record.header.origin, NOT_ITS_RECOVERY_KEY))
        return False

    def _try_again(self, origin: PublicKey, now: float) -> None:
        """A key card came, from whomever: revocations of its origin may have waited for it."""
        for record in [one for one in self._waiting.values() if one.header.origin == origin]:
            del self._waiting[record.id]
            if self._holdings.get(record.id) is None:
                self._take(None, record, now)

    def _count(self, record: Record, now: float, age_s: float = 0.0) -> None:
        """A record is here that was not: its origin's quota is smaller by it, and larger by what it took back."""
        entry = self._holdings.get(record.id)
        is_buried = entry is not None and entry.buried_by is not None
        if self._quotas.add(record, now, is_buried=is_buried, age_s=age_s):
            # Others of its priority may be vital: these are announced again.
            self._fetcher.give_up_headers(
                record.header.origin.raw, priority(record.header.kind, record.header.body_bytes)
            )
        target = self._holdings.get(record.header.supersedes)
        if target is not None and target.buried_by is record:
            self._quotas.buried(target.record)

    def _refuse(self, record: Record) -> None:
        """A second record for one sequence: proof that its origin equivocated. The first one stays."""
        self._out.append(Alarm(record.header.origin, equivocation(record), record))
        self._forget(record)

    def _drop(self, record: Record) -> None:
        """One more record for a sequence that is known to have two: nothing is learned but what it takes back."""
        if self._holdings.takes_more_back(record):
            self._refuse(record)
        else:
            self._forget(record)

    def _forget(self, record: Record) -> None:
        """Want it from nobody, and ask for it no more."""
        self._refused[record.id] = None
        if len(self._refused) > self._settings.max_refused:
            del self._refused[next(iter(self._refused))]
        self._fetcher.forget(record.id)

    # -------------------------------------------------------------------------------------------------- from this node

    def added(self, held: Held, now: float) -> None:
        """The store holds a record that did not come through the core."""
        before = self._holdings.get(held.record.id)
        was_settled = before is not None and before.is_settled
        if before is None:
            self.learn(held, now)
        elif held.state is not HeldState.FETCHING or self._fetcher.found(held.record.id, held.missing):
            self._settled(self._holdings.settle(held.record.id))
        if self._holdings.servable(held.record.id) and not was_settled:
            self._rumors.start(held.record.id, ())
        if held.record.header.kind is Kind.KEY_CARD:
            self._try_again(held.record.header.origin, now)

    def learn(self, held: Held, now: float, age_s: float = 0.0) -> None:
        """The store holds a record, since `age_s` seconds; this is no news to anybody."""
        is_whole = held.state is not HeldState.FETCHING
        self._learn(held.record, is_whole=is_whole)
        self._count(held.record, now, age_s)
        entry = self._holdings.get(held.record.id)
        if entry is not None and not entry.is_settled:
            self._fetcher.resume(held.record, held.missing)

    def _learn(self, record: Record, *, is_whole: bool) -> None:
        condemned = len(self._holdings.condemned)
        self._settled(self._holdings.learn(record, is_whole=is_whole))
        if len(self._holdings.condemned) > condemned:
            self._fetcher.distrust(self._holdings.condemned)

    def _settled(self, ids: Iterable[bytes]) -> None:
        """These need no fetching any more."""
        for settled in ids:
            self._fetcher.forget(settled)
