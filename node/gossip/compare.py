"""Comparing: the conversation in which two linked nodes find out what each lacks (anti-entropy).

What is compared and how is the business of `reconcile`; here is who says what when. A round begins with a Digest when
a link comes up and then again and again; it names the last digest that both had in common, so that only what changed
since needs to be listed. What a peer turns out to lack is announced to it.

Every frame is answered from what is held now. A frame that is lost, or that names what is not so any more, leaves
something to the next round; equal digests alone count as equal.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from crypto.keys import PublicKey
from node.config import (
    FRAME_LIMIT_BYTES,
    MAX_ADVERTS,
    MAX_ORIGINS,
    MAX_PREFIXES,
    MAX_SPANS,
    GossipSettings,
)
from node.frames import Advert, Announce, Digest, Frame, Ids, Origins, OriginVector, Span, Spans, Vector, entries
from node.gossip.digest_tree import DIGITS
from node.gossip.events import Action, Send, Unheard
from node.gossip.fetch import priority
from node.gossip.holdings import Holdings
from node.gossip.links import PeerLink

FRAME_ROOM_BYTES: Final = FRAME_LIMIT_BYTES * 3 // 4
"""What a frame is filled up to by estimate, so that the framing of its parts never lifts it over the limit."""

UNHEARD_AFTER: Final = 4
"""A peer that turned out so often not to know of a contested number does not trust those who tell of it: one frame or
two of a comparison show it, and EVIDENCE that it trusts arrives before the next."""

ENTRY_BYTES: Final = 72
"""An origin with its digest in a list."""

RECORDS_PER_ENTRY: Final = 16
"""Looking up this many records in a vector takes about as long as naming an origin."""

RANGES_PER_ENTRY: Final = 64
"""Sending this many ranges of sequences, 16 bytes and more each, takes about as long. An origin can leave a gap after
each of its records, and have us list all of them to whoever names it."""

_T = TypeVar("_T")


class Comparison:
    """This node's side of every comparison. Actions go to `out`."""

    def __init__(self, settings: GossipSettings, rng: random.Random, holdings: Holdings, out: list[Action]) -> None:
        self._settings = settings
        self._rng = rng
        self._holdings = holdings
        self._out = out
        self._common: dict[PublicKey, tuple[bytes, bytes]] = {}
        self._credit: dict[PublicKey, tuple[float, float]] = {}
        self._rounds: list[tuple[float, int, PeerLink]] = []
        """A heap with one entry per link that is up: its next round is due then, or later (`sync_at`)."""

    def begin(self, link: PeerLink, now: float) -> None:
        """Open a round on this link."""
        root = self._holdings.index.mark()
        common = self._common_with(link)
        self._send(link, Digest(root, b"" if common == root else common))
        self._schedule(link, now)

    def begin_due(self, now: float) -> None:
        """Open a round on every link whose time has come."""
        while self.deadline() <= now:
            _, _, link = self._rounds[0]
            if link.is_ready:
                self.begin(link, now)
            else:
                self._schedule(link, now)

    def begin_anew(self, link: PeerLink) -> None:
        """Other origins are trusted now: compare everything. The digest alone would not do: it is the same as before
        where nothing of these origins is here, and the peer may have found it of no use to compare with."""
        self._send(link, self._holdings.index.opening())

    def deadline(self) -> float:
        """When the next round is due on some link."""
        while self._rounds:
            due_at, number, link = self._rounds[0]
            if not link.is_up:
                heapq.heappop(self._rounds)
            elif link.sync_at > due_at:
                heapq.heapreplace(self._rounds, (link.sync_at, number, link))
            else:
                return due_at
        return math.inf

    def digest(self, link: PeerLink, theirs: Digest, now: float) -> None:
        """The peer opens a round: silence if we are equal."""
        # Both sides send one when the link comes up; if both answered, everything would be compared twice.
        is_crossing = not link.has_compared and not link.dialed_by_us
        link.has_compared = True
        index = self._holdings.index
        root = index.mark()
        link.is_equal = theirs.root == root
        if link.is_equal:
            self._remember_common(link, root)
            self._schedule(link, now)  # they have just compared; our turn is later
        elif not is_crossing and self._is_worth_it(link, theirs.root, root) and self._allows(link, now):
            reply = index.changes(theirs.common) or index.opening()
            self._spend(link, entries(reply))
            self._send(link, reply)

    def origins(self, link: PeerLink, theirs: Origins, now: float) -> None:
        """The peer lists origins: answer for those that differ."""
        if not self._allows(link, now):
            return
        self._spend(link, len(theirs.digests))
        vectors = self._holdings.index.differing(theirs)
        if vectors is None:  # it says what changed since a digest that was forgotten here
            self._send(link, Digest(self._holdings.index.mark()))
        else:
            self._send_vectors(link, vectors, reply=False)

    def spans(self, link: PeerLink, theirs: Spans, now: float) -> None:
        """The peer lists digests of ranges: answer for those that differ, closer."""
        if not self._allows(link, now):
            return
        self._spend(link, len(DIGITS) * len(theirs.spans))
        spans, few, vectors = self._holdings.index.narrow(theirs)
        for batch in batches(spans, _span_bytes, MAX_SPANS):
            self._send(link, Spans(tuple(batch)))
        self._send_lists(link, few)
        self._send_vectors(link, vectors, reply=False)

    def vectors(self, link: PeerLink, theirs: Vector, now: float) -> None:
        """The peer lists sequences: announce what it lacks, and ask for what we lack."""
        if not self._allows(link, now):
            return
        index = self._holdings.index
        self._spend(link, sum(1 + index.count(vector.origin) // RECORDS_PER_ENTRY for vector in theirs.origins))
        self._announce_lacking(link, (i for vector in theirs.origins for i in index.lacking(vector)))
        if theirs.reply:
            return
        answers = [index.answer(vector) for vector in theirs.origins]
        self._send_vectors(link, [answer for answer in answers if isinstance(answer, OriginVector)], reply=True)
        for answer in answers:
            if isinstance(answer, Ids):
                self._send(link, answer)

    def ids(self, link: PeerLink, theirs: Ids, now: float) -> None:
        """The peer lists ids of one origin."""
        if not self._allows(link, now):
            return
        self._spend(link, 1 + self._holdings.index.count(theirs.origin) // RECORDS_PER_ENTRY)
        self._announce_lacking(link, self._holdings.index.lacking_ids(theirs))
        if not theirs.reply and self._holdings.trusts(theirs.origin):
            self._send(link, self._holdings.index.ids(theirs.origin, reply=True))

    def announce(self, link: int, ids: Iterable[bytes]) -> None:
        """Tell a peer that these records are here."""
        self._announce(link, self._holdings.adverts(ids))

    def _announce(self, link: int, adverts: Sequence[Advert]) -> None:
        for start in range(0, len(adverts), MAX_ADVERTS):
            self._out.append(Send(link, Announce(tuple(adverts[start : start + MAX_ADVERTS]))))

    def _announce_lacking(self, link: PeerLink, ids: Iterable[bytes]) -> None:
        """Announce what a peer lacks, what matters most first, and no more than it will remember."""
        ids = list(ids)
        self._count_unheard(link, ids)
        told = sorted(self._holdings.adverts(ids), key=_rank)[: self._settings.max_unknown_adverts]
        self._spend(link, len(told))
        self._announce(link.number, told)

    def _count_unheard(self, link: PeerLink, lacking: Iterable[bytes]) -> None:
        """Note that a peer lacks the token of a contested number, again and again perhaps."""
        for token in lacking:
            slot = self._holdings.slot_of_token(token)
            if slot is not None:
                link.unheard[token] += 1
                if link.unheard[token] == UNHEARD_AFTER:
                    self._out.append(Unheard(slot))

    def _schedule(self, link: PeerLink, now: float) -> None:
        """The next round on this link is a period from now; never earlier than it was going to be."""
        next_at = now + self._rng.uniform(self._settings.sync_min_s, self._settings.sync_max_s)
        if link.sync_at == -math.inf:
            heapq.heappush(self._rounds, (next_at, link.number, link))
        link.sync_at = max(link.sync_at, next_at)

    def _is_worth_it(self, link: PeerLink, theirs: bytes, ours: bytes) -> bool:
        """Whether to compare two digests that differ. Nothing came of it the last time if both are as they were then:
        something is on its way, was lost, or is of an origin that one side does not trust."""
        link.fruitless = link.fruitless + 1 if link.compared == (theirs, ours) else 0
        link.compared = theirs, ours
        is_power_of_two = link.fruitless & (link.fruitless - 1) == 0
        return is_power_of_two or link.fruitless % self._settings.max_fruitless == 0

    # ------------------------------------------------------------------------------------------------- what it may cost

    def _allows(self, link: PeerLink, now: float) -> bool:
        """Whether this peer has not used up what comparisons with it may cost. It may overdraw, so that no comparison
        is too large; then it has to wait."""
        settings = self._settings
        credit, counted_at = self._credit.get(link.peer, (float(settings.compare_burst), now))
        credit = min(settings.compare_burst, credit + (now - counted_at) * settings.compare_rate)
        self._credit[link.peer] = credit, now
        return credit > 0

    def _spend(self, link: PeerLink, entries: int) -> None:
        credit, counted_at = self._credit[link.peer]
        self._credit[link.peer] = credit - entries, counted_at

    # ----------------------------------------------------------------------------------------------- what is in common

    def _remember_common(self, link: PeerLink, root: bytes) -> None:
        """Both had this digest. Remembered for this store of the peer; it may come back with another."""
        self._common.pop(link.peer, None)
        self._common[link.peer] = link.store_id, root
        if len(self._common) > self._settings.max_known_peers:
            del self._common[next(iter(self._common))]

    def _common_with(self, link: PeerLink) -> bytes:
        """The last digest in common with this peer that we can still say the changes since; empty if there is none.

        When a link comes up, the peer has not said yet which store it has. With another one, or one restored from an
        old copy, it does not know the digest, unless that was the digest of the copy: then it has what it covers.
        """
        store_id, root = self._common.get(link.peer, (b"", b""))
        is_other_store = link.is_ready and link.store_id != store_id
        return b"" if is_other_store or not self._holdings.index.knows(root) else root

    # ---------------------------------------------------------------------------------------------------------- frames

    def _send(self, link: PeerLink, frame: Frame) -> None:
        self._out.append(Send(link.number, frame))

    def _send_lists(self, link: PeerLink, prefixes: Sequence[str]) -> None:
        """List the origins of these ranges, as many ranges to a frame as fit."""
        lists = [(prefix, self._holdings.index.listed(prefix)) for prefix in prefixes]
        most = min(MAX_PREFIXES, MAX_ORIGINS // max(1, self._settings.list_origins))
        for batch in batches(lists, _list_bytes, most):
            entries = tuple(entry for _, listed in batch for entry in listed)
            self._spend(link, len(entries))
            self._send(link, Origins(entries, tuple(prefix for prefix, _ in batch)))

    def _send_vectors(self, link: PeerLink, vectors: Sequence[OriginVector], *, reply: bool) -> None:
        self._spend(link, sum(1 + _ranges(vector) // RANGES_PER_ENTRY for vector in vectors))
        for batch in batches(vectors, _vector_bytes, MAX_ORIGINS):
            self._send(link, Vector(tuple(batch), reply))


def _rank(advert: Advert) -> int:
    return priority(advert.kind, advert.body_bytes)


def _ranges(vector: OriginVector) -> int:
    return sum(len(ranges) for _, ranges in vector.ranges)


def _vector_bytes(vector: OriginVector) -> int:
    """About how large a vector is on the wire, rather more than less."""
    return 80 + sum(16 + 24 * len(ranges) for _, ranges in vector.ranges)


def _span_bytes(span: Span) -> int:
    """As `_vector_bytes`, of a span."""
    return 10 + len(span.prefix) + sum(2 + len(digest) for digest in span.digests)


def _list_bytes(listed: tuple[str, Sequence[tuple[bytes, bytes]]]) -> int:
    """As `_vector_bytes`, of the origins of a range."""
    prefix, entries = listed
    return 2 + len(prefix) + ENTRY_BYTES * len(entries)


def batches(
    items: Sequence[_T], bytes_of: Callable[[_T], int], most: int, frame_bytes: int = FRAME_ROOM_BYTES
) -> Iterable[list[_T]]:
    """The items in order, in lists that each fit a frame of so many bytes, or of one item."""
    batch: list[_T] = []
    room = frame_bytes
    for item in items:
        if batch and (bytes_of(item) > room or len(batch) == most):
            yield batch
            batch, room = [], frame_bytes
        batch.append(item)
        room -= bytes_of(item)
    if batch:
        yield batch
