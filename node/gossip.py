"""Gossip: the core of the node. `handle(event, now)` decides and returns actions; it opens no socket, file or clock.

Follows docs/protocol.md, sections "Links" and "Gossip". In the order in which a record meets it:

    dial       members with an address and no link, with backoff, for ever                             (dialing)
    hello      both sides say their version; of two links with one peer, both sides keep the same one
    digest     anti-entropy: compare what is settled by one hash, then by origin, then by ranges       (reconcile)
    announce   tell a link of what it lacks, and a few links of what is new                            (rumors)
    fetch      ask one link at a time for headers, then chunks; check, then keep                       (fetch)
    settle     a record that is whole, or has no body, or was taken back, is ours to announce          (holdings)

Refused: records of origins that are not members; a second record for one sequence of an origin; whatever a rule of
`records` or `wire` forbids. What a removed member wrote stays in the store, and is no longer compared, announced,
served or asked for. Anything invalid is a strike; too many close the link and keep the peer out for a while. Slow is
not invalid.

Deterministic: the same events, times and `rng` give the same actions, so a simulated swarm replays from its seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from crypto.keys import PublicKey
from crypto.sealing import chunk_hash
from crypto.signing import record_id
from node.config import (
    FRAME_LIMIT_BYTES,
    MAX_ADVERTS,
    MAX_WANT,
    PROTOCOL_VERSION,
    SMALL_BODY_BYTES,
    GossipSettings,
)
from node.dialing import Dialer
from node.errors import RecordError
from node.events import (
    Action,
    Alarm,
    BadFrame,
    Close,
    Dial,
    DialFailed,
    Event,
    FrameIn,
    Keep,
    KeepChunk,
    LinkDown,
    LinkState,
    LinkUp,
    PeersChanged,
    RecordAdded,
    Report,
    Send,
    SendChunk,
    Tick,
)
from node.fetch import Fetcher, priority
from node.frames import (
    Advert,
    Announce,
    Chunk,
    Digest,
    Frame,
    Hello,
    Ids,
    Missing,
    Origins,
    OriginVector,
    Records,
    SignedRecord,
    Vector,
    Want,
    WantChunks,
)
from node.holdings import Holdings
from node.records import RULES, Held, HeldState, Record
from node.rumors import Rumors
from node.wire import read_record

FRAME_ROOM_BYTES: Final = FRAME_LIMIT_BYTES * 3 // 4
"""What a frame is filled up to by estimate, so that the framing of its parts never lifts it over the limit."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _Link:
    number: int
    peer: PublicKey
    dialed_by_us: bool
    up_at: float
    is_ready: bool = False
    ready_at: float = math.inf
    has_compared: bool = False
    has_worked: bool = False
    sync_at: float = math.inf


class Gossip:
    """One node's part in the protocol."""

    def __init__(
        self,
        settings: GossipSettings,
        rng: random.Random,
        me: PublicKey,
        store_id: bytes,
        held: Iterable[Held],
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._me = me
        self._store_id = store_id
        self._members: dict[PublicKey, str | None] = {}
        self._links: dict[int, _Link] = {}
        self._dialer = Dialer(settings, rng)
        self._holdings = Holdings()
        self._holdings.trust({me.raw})
        self._rumors = Rumors(settings, rng)
        self._fetcher = Fetcher(settings)
        self._refused: dict[bytes, None] = {}
        self._strikes: dict[PublicKey, tuple[int, float]] = {}
        self._kept_out: dict[PublicKey, float] = {}
        self._stores_seen: dict[PublicKey, bytes] = {}
        self._has_met_itself = False
        self._out: list[Action] = []
        for known in held:
            self._learn_held(known)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at time `now` (monotonic seconds) and return what to do, in order."""
        match event:
            case PeersChanged():
                self._peers_changed(event, now)
            case LinkUp():
                self._link_up(event, now)
            case LinkDown():
                self._link_down(event, now)
            case DialFailed():
                self._dial_failed(event, now)
            case FrameIn():
                self._frame_in(event, now)
            case BadFrame():
                self._strike(event.link, event.reason, now)
            case RecordAdded():
                self._record_added(event.held)
            case Tick():
                self._tick(now)
        self._follow_up(now)
        actions, self._out = self._out, []
        return actions

    def next_deadline(self) -> float | None:
        """When a Tick is wanted, None if only an event can change anything."""
        soonest = min(
            self._rumors.deadline(),
            self._fetcher.deadline(),
            self._dialer.deadline(self._linked()),
            min(map(self._link_deadline, self._links.values()), default=math.inf),
        )
        return None if soonest == math.inf else soonest

    # ------------------------------------------------------------------------------------------------ members and links

    def _peers_changed(self, event: PeersChanged, now: float) -> None:
        members = {peer: address for peer, address in sorted(event.members) if peer != self._me}
        added = [peer for peer in members if peer not in self._members]
        removed = [peer for peer in self._members if peer not in members]
        self._members = members
        self._holdings.trust({self._me.raw, *(peer.raw for peer in members)})
        self._dialer.set_members(members, now)
        self._fetcher.distrust({peer.raw for peer in removed})
        for link in list(self._links.values()):
            if link.peer not in members:
                self._close(link, "it was removed here", now)
        for peer in added:
            self._report_absent(peer, "", now)
        if added:
            for link in self._ready_links():
                self._begin_sync(link, now)

    def _link_up(self, event: LinkUp, now: float) -> None:
        if event.dialed_by_us:
            self._dialer.answered(event.peer)
        if event.peer not in self._members:
            self._out.append(Close(event.link, "it is not a member here"))
            return
        if self._is_kept_out(event.peer, now):
            self._out.append(Close(event.link, "it sent too much that was invalid"))
            return
        link = _Link(event.link, event.peer, event.dialed_by_us, now)
        self._links[link.number] = link
        self._send(link, Hello(PROTOCOL_VERSION, self._store_id))
        self._begin_sync(link, now)

    def _link_down(self, event: LinkDown, now: float) -> None:
        link = self._links.get(event.link)
        if link is not None:
            self._lose(link, event.reason, now)

    def _dial_failed(self, event: DialFailed, now: float) -> None:
        wait_s = self._dialer.failed(event.peer, now)
        if event.peer in self._members and event.peer not in self._linked():
            reason = f"{event.reason}; next try in {wait_s:.0f} s"
            self._out.append(Report(event.peer, LinkState.UNREACHABLE, reason))

    def _hello(self, link: _Link, hello: Hello, now: float) -> None:
        if link.is_ready:
            self._strike(link.number, "a second Hello on one link", now)
            return
        if hello.version != PROTOCOL_VERSION:
            reason = f"it speaks version {hello.version} of the protocol, this node version {PROTOCOL_VERSION}"
            self._close(link, reason, now)
            return
        others = [other for other in self._ready_links() if other.peer == link.peer]
        self._check_store(link.peer, hello.store_id)
        link.is_ready, link.ready_at = True, now
        self._fetcher.link_up(link.number)
        if others:  # never more than one, since this is done whenever there are two
            self._close(self._spare_of(others[0], link, now), "another link with it is up", now)
        self._out.append(Report(link.peer, LinkState.LINKED, ""))

    def _spare_of(self, older: _Link, newer: _Link, now: float) -> _Link:
        """The link that both sides of a double link give up.

        Two that came up together are a simultaneous dial: the one dialed by the smaller key stays. Otherwise the
        older one goes: nobody dials a peer that it is linked with, so the other side has lost it.
        """
        is_fresh = now - older.ready_at < self._settings.duplicate_window_s
        if is_fresh and older.dialed_by_us != newer.dialed_by_us:
            return max(older, newer, key=lambda link: self._me if link.dialed_by_us else link.peer)
        return older

    def _check_store(self, peer: PublicKey, store_id: bytes) -> None:
        before = self._stores_seen.setdefault(peer, store_id)
        if before != store_id:
            self._stores_seen[peer] = store_id
            reason = "it came back with another store: was its home made anew, or do two nodes run with its key?"
            self._out.append(Alarm(peer, reason))

    def _close(self, link: _Link, reason: str, now: float) -> None:
        self._out.append(Close(link.number, reason))
        self._lose(link, reason, now)

    def _lose(self, link: _Link, reason: str, now: float) -> None:
        del self._links[link.number]
        self._fetcher.link_down(link.number)
        if link.peer in self._linked() or link.peer not in self._members:
            return
        is_good = link.has_worked or now - link.ready_at >= self._settings.stable_link_s
        self._dialer.lost(link.peer, now, was_good=is_good)
        self._report_absent(link.peer, reason, now)

    def _report_absent(self, peer: PublicKey, reason: str, now: float) -> None:
        """A member has no link; say what is being done about it."""
        if self._is_kept_out(peer, now):
            self._out.append(Report(peer, LinkState.REFUSED, reason))
        elif self._dialer.has_address(peer):
            self._out.append(Report(peer, LinkState.UNREACHABLE, reason or "not tried yet"))
        else:
            waiting = "no address is known for it, so it must dial this node"
            self._out.append(Report(peer, LinkState.WAITING, f"{reason}; {waiting}" if reason else waiting))

    def _strike(self, number: int, reason: str, now: float) -> None:
        """Something invalid came over this link: forgiven a few times."""
        link = self._links.get(number)
        if link is None:
            return
        strikes, since = self._strikes.get(link.peer, (0, now))
        if now - since > self._settings.penalty_s:
            strikes, since = 0, now
        self._strikes[link.peer] = (strikes + 1, since)
        if strikes >= self._settings.max_strikes:
            self._kept_out[link.peer] = now + self._settings.penalty_s
            self._close(link, f"it sent too much that was invalid, lastly: {reason}", now)
            self._dialer.postpone(link.peer, self._kept_out[link.peer])

    def _is_kept_out(self, peer: PublicKey, now: float) -> bool:
        return now < self._kept_out.get(peer, -math.inf)

    # ----------------------------------------------------------------------------------------------------------- frames

    def _frame_in(self, event: FrameIn, now: float) -> None:
        link = self._links.get(event.link)
        if link is None:
            return
        if isinstance(event.frame, Hello):
            self._hello(link, event.frame, now)
        elif link.is_ready:
            self._ready_frame(link, event.frame, now)
        # Before its Hello a link says nothing that counts; `hello_timeout_s` ends one that never comes.

    def _ready_frame(self, link: _Link, frame: Frame, now: float) -> None:
        match frame:
            case Digest(root):
                self._digest(link, root, now)
            case Origins() as theirs:
                self._compare_origins(link, theirs)
            case Vector() as theirs:
                self._compare_vectors(link, theirs)
            case Ids() as theirs:
                self._compare_ids(link, theirs)
            case Announce(adverts):
                self._heard(link, adverts)
            case Want(ids):
                self._serve(link, ids)
            case Records(records):
                self._receive(link, records, now)
            case WantChunks() as want:
                self._serve_chunks(link, want, now)
            case Chunk() as chunk:
                self._receive_chunk(link, chunk, now)
            case Missing(absent):
                self._fetcher.drop_source(link.number, absent)

    # ----------------------------------------------------------------------------------------------------- anti-entropy

    def _begin_sync(self, link: _Link, now: float) -> None:
        self._send(link, Digest(self._holdings.index.root()))
        self._schedule_sync(link, now)

    def _schedule_sync(self, link: _Link, now: float) -> None:
        link.sync_at = now + self._rng.uniform(self._settings.sync_min_s, self._settings.sync_max_s)

    def _digest(self, link: _Link, root: bytes, now: float) -> None:
        # Both sides send one when the link comes up; if both answered, everything would be compared twice.
        is_crossing = not link.has_compared and not link.dialed_by_us
        link.has_compared = True
        if root == self._holdings.index.root():
            self._schedule_sync(link, now)  # they have just compared; our turn is later
        elif not is_crossing:
            self._send(link, self._holdings.index.origins())

    def _compare_origins(self, link: _Link, theirs: Origins) -> None:
        self._send_vectors(link, self._holdings.index.differing(theirs), reply=False)

    def _compare_vectors(self, link: _Link, theirs: Vector) -> None:
        self._announce_lacking(link, (i for vector in theirs.origins for i in self._holdings.index.lacking(vector)))
        if theirs.reply:
            return
        answers = [self._holdings.index.answer(vector) for vector in theirs.origins]
        self._send_vectors(link, [answer for answer in answers if isinstance(answer, OriginVector)], reply=True)
        for answer in answers:
            if isinstance(answer, Ids):
                self._send(link, answer)

    def _compare_ids(self, link: _Link, theirs: Ids) -> None:
        self._announce_lacking(link, self._holdings.index.lacking_ids(theirs))
        if not theirs.reply and self._holdings.trusts(theirs.origin):
            self._send(link, self._holdings.index.ids(theirs.origin, reply=True))

    def _send_vectors(self, link: _Link, vectors: Sequence[OriginVector], *, reply: bool) -> None:
        for batch in _batches(vectors, _vector_bytes, len(vectors)):
            self._send(link, Vector(tuple(batch), reply))

    def _announce_lacking(self, link: _Link, ids: Iterable[bytes]) -> None:
        """Announce what a peer lacks, what matters most first, and no more than it will remember."""
        adverts = sorted(map(self._holdings.advert, ids), key=lambda ad: priority(ad.kind, ad.body_bytes))
        self._announce(link.number, adverts[: self._settings.max_unknown_adverts])

    def _announce(self, link: int, adverts: Sequence[Advert]) -> None:
        for start in range(0, len(adverts), MAX_ADVERTS):
            self._out.append(Send(link, Announce(tuple(adverts[start : start + MAX_ADVERTS]))))

    def _heard(self, link: _Link, adverts: Iterable[Advert]) -> None:
        for advert in adverts:
            self._rumors.heard(link.number, advert.id)
            entry = self._holdings.get(advert.id)
            is_wanted = entry is None or not entry.is_settled
            is_acceptable = advert.kind in RULES and advert.id not in self._refused
            if is_wanted and is_acceptable and self._holdings.trusts(advert.origin):
                self._fetcher.offered(link.number, advert)

    # ---------------------------------------------------------------------------------------------------------- serving

    def _serve(self, link: _Link, ids: Iterable[bytes]) -> None:
        chosen: dict[bytes, Record] = {}
        bodies: list[SendChunk] = []
        for wanted in ids:
            entry = self._holdings.servable(wanted)
            if entry is None:
                self._send(link, Missing(wanted))
                continue
            if entry.buried_by is not None:
                chosen[entry.buried_by.id] = entry.buried_by
            elif entry.record.header.body_bytes <= SMALL_BODY_BYTES:
                chunks = range(len(entry.record.header.chunk_hashes))
                bodies += [SendChunk(link.number, wanted, index) for index in chunks]
            chosen.setdefault(wanted, entry.record)
            link.has_worked = True
        self._send_records(link, list(chosen.values()))
        self._out += bodies

    def _serve_chunks(self, link: _Link, want: WantChunks, now: float) -> None:
        entry = self._holdings.servable(want.id)
        if entry is None or entry.buried_by is not None:
            if entry is not None and entry.buried_by is not None:
                self._send_records(link, [entry.buried_by])
            self._send(link, Missing(want.id))
        elif max(want.indexes) >= len(entry.record.header.chunk_hashes):
            self._strike(link.number, "it asked for a chunk that the record does not have", now)
        else:
            self._out += [SendChunk(link.number, want.id, index) for index in want.indexes]
            link.has_worked = True

    def _send_records(self, link: _Link, records: Sequence[Record]) -> None:
        for batch in _batches(records, lambda record: len(record.header_bytes) + 100, MAX_WANT):
            signed = tuple(SignedRecord(record.header_bytes, record.signature) for record in batch)
            self._send(link, Records(signed))

    # -------------------------------------------------------------------------------------------------------- receiving

    def _receive(self, link: _Link, records: Iterable[SignedRecord], now: float) -> None:
        for signed in records:
            known_id = record_id(signed.header_bytes)
            self._fetcher.progress(link.number, known_id, now)
            if self._holdings.get(known_id) or known_id in self._refused:
                continue  # before the signature is checked, which is what costs
            try:
                self._take(link, read_record(signed.header_bytes, signed.signature), now)
            except RecordError as error:
                self._strike(link.number, str(error), now)
                if link.number not in self._links:
                    return

    def _take(self, link: _Link, record: Record, now: float) -> None:
        """A valid, new record came: keep it if it is a member's and the only one for its sequence."""
        if not self._holdings.trusts(record.header.origin.raw):
            return
        if self._holdings.is_equivocation(record):
            self._refuse(record)
            return
        if record.header.origin == self._me and not self._has_met_itself:
            self._has_met_itself = True
            reason = "a record of this node that it does not hold came back: was its home restored from a copy?"
            self._out.append(Alarm(self._me, reason))
        self._out.append(Keep(record))
        link.has_worked = True
        knowing = {link.number, *self._fetcher.sources(record.id)}
        self._settled(self._holdings.learn(record, is_whole=record.header.body_bytes == 0))
        if self._holdings.servable(record.id):
            self._rumors.start(record.id, knowing)
        else:
            self._fetcher.header_arrived(link.number, record, now)

    def _receive_chunk(self, link: _Link, chunk: Chunk, now: float) -> None:
        self._fetcher.progress(link.number, chunk.id, now)
        record = self._fetcher.wanted_chunk(chunk.id, chunk.index)
        if record is None or not self._holdings.trusts(record.header.origin.raw):
            return
        if chunk_hash(chunk.data) != record.header.chunk_hashes[chunk.index]:
            self._fetcher.drop_source(link.number, chunk.id)
            self._strike(link.number, "a chunk does not have the hash that its record says", now)
            return
        self._out.append(KeepChunk(chunk.id, chunk.index, chunk.data))
        link.has_worked = True
        knowing = {link.number, *self._fetcher.sources(chunk.id)}
        if self._fetcher.chunk_arrived(chunk.id, chunk.index):
            self._holdings.settle(chunk.id)
            self._rumors.start(chunk.id, knowing)

    def _refuse(self, record: Record) -> None:
        """A second record for one sequence: proof that its origin equivocated. The first one stays."""
        self._refused[record.id] = None
        if len(self._refused) > self._settings.max_refused:
            del self._refused[next(iter(self._refused))]
        self._fetcher.forget(record.id)
        sequence = record.header.sequence
        reason = f"it signed two records with sequence {sequence}; the second, {record.id.hex()[:12]}, is refused"
        self._out.append(Alarm(record.header.origin, reason, record))

    # ----------------------------------------------------------------------------------------------------- what is here

    def _record_added(self, held: Held) -> None:
        before = self._holdings.get(held.record.id)
        was_settled = before is not None and before.is_settled
        if before is None:
            self._learn_held(held)
        elif held.state is not HeldState.FETCHING:
            self._settled(self._holdings.settle(held.record.id))
        if self._holdings.servable(held.record.id) and not was_settled:
            self._rumors.start(held.record.id, ())

    def _learn_held(self, held: Held) -> None:
        is_whole = held.state is not HeldState.FETCHING
        self._settled(self._holdings.learn(held.record, is_whole=is_whole))
        if not is_whole:
            self._fetcher.resume(held.record, held.missing)

    def _settled(self, ids: Iterable[bytes]) -> None:
        """These need no fetching any more."""
        for settled in ids:
            self._fetcher.forget(settled)

    # ----------------------------------------------------------------------------------------------------------- timers

    def _tick(self, now: float) -> None:
        for link in list(self._links.values()):
            if now < self._link_deadline(link):
                continue
            if link.is_ready:
                self._begin_sync(link, now)
            else:
                self._close(link, "it did not say hello", now)
        self._fetcher.expire(now)

    def _link_deadline(self, link: _Link) -> float:
        return link.sync_at if link.is_ready else link.up_at + self._settings.hello_timeout_s

    def _follow_up(self, now: float) -> None:
        """What any event may have made possible: dial, compare again, announce, ask."""
        for peer in self._dialer.due(self._linked(), now):
            self._out += [Dial(peer), Report(peer, LinkState.CONNECTING, "")]
        for number in self._fetcher.take_drained():
            self._begin_sync(self._links[number], now)
        ready = [link.number for link in self._ready_links()]
        for number, ids in self._rumors.due(ready, now).items():
            self._announce(number, list(map(self._holdings.advert, ids)))
        self._out += self._fetcher.pump(now)

    def _linked(self) -> set[PublicKey]:
        return {link.peer for link in self._links.values()}

    def _ready_links(self) -> list[_Link]:
        return [link for link in self._links.values() if link.is_ready]

    def _send(self, link: _Link, frame: Frame) -> None:
        self._out.append(Send(link.number, frame))


def _vector_bytes(vector: OriginVector) -> int:
    """About how large a vector is on the wire, rather more than less."""
    return 80 + sum(16 + 24 * len(ranges) for _, ranges in vector.ranges)


def _batches(items: Sequence[_T], bytes_of: Callable[[_T], int], most: int) -> Iterable[list[_T]]:
    """The items in order, in lists that each fit a frame."""
    batch: list[_T] = []
    room = FRAME_ROOM_BYTES
    for item in items:
        if batch and (bytes_of(item) > room or len(batch) == most):
            yield batch
            batch, room = [], FRAME_ROOM_BYTES
        batch.append(item)
        room -= bytes_of(item)
    if batch:
        yield batch
