"""Comparing: the conversation in which two linked nodes find out what each lacks (anti-entropy).

What is compared and how is the business of `reconcile`; here is who says what when. A round begins with a Digest when a
link comes up and then again and again; what a peer turns out to lack is announced to it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from node.config import FRAME_LIMIT_BYTES, MAX_ADVERTS, GossipSettings
from node.events import Action, Send
from node.fetch import priority
from node.frames import Advert, Announce, Digest, Ids, Origins, OriginVector, Vector
from node.holdings import Holdings
from node.links import PeerLink

FRAME_ROOM_BYTES: Final = FRAME_LIMIT_BYTES * 3 // 4
"""What a frame is filled up to by estimate, so that the framing of its parts never lifts it over the limit."""

_T = TypeVar("_T")


class Comparison:
    """This node's side of every comparison. Actions go to `out`."""

    def __init__(self, settings: GossipSettings, rng: random.Random, holdings: Holdings, out: list[Action]) -> None:
        self._settings = settings
        self._rng = rng
        self._holdings = holdings
        self._out = out

    def begin(self, link: PeerLink, now: float) -> None:
        """Open a round on this link."""
        self._out.append(Send(link.number, Digest(self._holdings.index.root())))
        self._schedule(link, now)

    def begin_due(self, links: Iterable[PeerLink], now: float) -> None:
        """Open a round on those of these links whose time has come."""
        for link in links:
            if now >= link.sync_at:
                self.begin(link, now)

    @staticmethod
    def deadline(links: Iterable[PeerLink]) -> float:
        """When the next round is due on one of these links."""
        return min((link.sync_at for link in links), default=math.inf)

    def digest(self, link: PeerLink, root: bytes, now: float) -> None:
        """The peer opens a round: silence if we are equal."""
        # Both sides send one when the link comes up; if both answered, everything would be compared twice.
        is_crossing = not link.has_compared and not link.dialed_by_us
        link.has_compared = True
        if root == self._holdings.index.root():
            self._schedule(link, now)  # they have just compared; our turn is later
        elif not is_crossing:
            self._out.append(Send(link.number, self._holdings.index.origins()))

    def origins(self, link: PeerLink, theirs: Origins) -> None:
        """The peer lists its origins: answer for those that differ."""
        self._send_vectors(link, self._holdings.index.differing(theirs), reply=False)

    def vectors(self, link: PeerLink, theirs: Vector) -> None:
        """The peer lists sequences: announce what it lacks, and ask for what we lack."""
        index = self._holdings.index
        self._announce_lacking(link, (i for vector in theirs.origins for i in index.lacking(vector)))
        if theirs.reply:
            return
        answers = [index.answer(vector) for vector in theirs.origins]
        self._send_vectors(link, [answer for answer in answers if isinstance(answer, OriginVector)], reply=True)
        for answer in answers:
            if isinstance(answer, Ids):
                self._out.append(Send(link.number, answer))

    def ids(self, link: PeerLink, theirs: Ids) -> None:
        """The peer lists ids of one origin."""
        self._announce_lacking(link, self._holdings.index.lacking_ids(theirs))
        if not theirs.reply and self._holdings.trusts(theirs.origin):
            self._out.append(Send(link.number, self._holdings.index.ids(theirs.origin, reply=True)))

    def announce(self, link: int, ids: Iterable[bytes]) -> None:
        """Tell a peer that these records are here."""
        adverts = list(map(self._holdings.advert, ids))
        for start in range(0, len(adverts), MAX_ADVERTS):
            self._out.append(Send(link, Announce(tuple(adverts[start : start + MAX_ADVERTS]))))

    def _announce_lacking(self, link: PeerLink, ids: Iterable[bytes]) -> None:
        """Announce what a peer lacks, what matters most first, and no more than it will remember."""
        ranked = sorted(ids, key=lambda lacking: _rank(self._holdings.advert(lacking)))
        self.announce(link.number, ranked[: self._settings.max_unknown_adverts])

    def _schedule(self, link: PeerLink, now: float) -> None:
        link.sync_at = now + self._rng.uniform(self._settings.sync_min_s, self._settings.sync_max_s)

    def _send_vectors(self, link: PeerLink, vectors: Sequence[OriginVector], *, reply: bool) -> None:
        for batch in batches(vectors, _vector_bytes, len(vectors)):
            self._out.append(Send(link.number, Vector(tuple(batch), reply)))


def _rank(advert: Advert) -> int:
    return priority(advert.kind, advert.body_bytes)


def _vector_bytes(vector: OriginVector) -> int:
    """About how large a vector is on the wire, rather more than less."""
    return 80 + sum(16 + 24 * len(ranges) for _, ranges in vector.ranges)


def batches(items: Sequence[_T], bytes_of: Callable[[_T], int], most: int) -> Iterable[list[_T]]:
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
