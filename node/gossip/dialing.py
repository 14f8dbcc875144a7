"""Dialing: which members to try now, where, and how long to wait after a try that failed.

Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015): the n-th wait in a
row is drawn evenly from 0 to min(cap, base * 2^n). It never ends: a silent peer is never forgotten. A
member without an address is never dialed; it dials us, or is reached through others.

A small coalition is linked all to all. In a larger one every node keeps `max_dialed` links of its own to members drawn
at random: a random graph in which each of n nodes picks a few others is connected and of diameter about log n
(Bollobas, "Random Graphs", chapter 7). Two such graphs may still form, apart from each other, during a partition. So a
node with all its links up tries one member more now and then (exploring), and gives one of the others up for it
(`links`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from crypto.keys import PublicKey
from node.config import GossipSettings

MAX_DOUBLINGS: Final = 30


@dataclass(slots=True)
class _Tries:
    """What came of dialing one member. Without an entry it was never tried, and may be at once."""

    failures: int = 0
    next_at: float = -math.inf
    is_dialing: bool = False
    moves: int = 0
    """Failures since it was known: the same address again after a success, the next one after a failure."""


class Dialer:
    """The members with an address, and when each may be dialed next."""

    def __init__(self, settings: GossipSettings, rng: random.Random, me: PublicKey) -> None:
        self._settings = settings
        self._rng = rng
        self._me = me
        self._members: Mapping[PublicKey, tuple[str, ...]] = {}
        self._dialable: Sequence[PublicKey] = ()
        self._tries: dict[PublicKey, _Tries] = {}
        self._wake_at = math.inf
        self._paced_until = -math.inf
        self.explore_at = math.inf

    def set_members(
        self, members: Mapping[PublicKey, tuple[str, ...]], dialable: Sequence[PublicKey], now: float
    ) -> None:
        """These are the members now, and those with an address; both are kept, not copied. One that is new, or has
        other addresses, may be dialed at once."""
        before, self._members, self._dialable = self._members, members, dialable
        for peer in list(self._tries):
            if not self.has_address(peer):
                del self._tries[peer]
            elif before.get(peer) != members[peer]:
                self._tries[peer] = _Tries()  # a dial that waits at an old address gives way to one at a new address
        if self.explore_at == math.inf:
            self._plan_exploring(now)
        self.look_again()

    @property
    def chooses(self) -> bool:
        """Whether there are more members with an address than links are wanted."""
        return len(self._dialable) > self._settings.max_dialed

    def has_address(self, peer: PublicKey) -> bool:
        """Whether this peer can be dialed at all."""
        return bool(self._members.get(peer))

    def look_again(self) -> None:
        """Something changed that may call for a dial."""
        self._wake_at = -math.inf

    def is_awake(self, now: float) -> bool:
        """Whether `due` may have something to say."""
        return now >= self._wake_at

    def deadline(self) -> float:
        """When the next dial is due, if nothing happens before."""
        return self._wake_at

    def due(self, linked: Container[PublicKey], dialed: int, now: float) -> list[tuple[PublicKey, str]]:
        """The members to dial now, and where, except those with a link, when `dialed` links of our own are up. Each
        counts as being dialed from here on."""
        if self.chooses and now < self._paced_until:
            self._wake_at = self._paced_until
            return []
        room = self._room(dialed, now)
        chosen = self._draw(room, linked, now) if self.chooses else self._eligible(linked, now)
        for peer in chosen:
            self._tries.setdefault(peer, _Tries()).is_dialing = True
            self._paced_until = now + self._settings.dial_base_s
        is_full = self.chooses and len(chosen) >= room
        self._wake_at = self.explore_at if is_full else min(self._next_try(linked), self._next_exploring())
        return [(peer, self._address(peer)) for peer in chosen]

    def answered(self, peer: PublicKey) -> None:
        """The dial became a link."""
        if peer in self._tries:
            self._tries[peer].is_dialing = False
        self.look_again()

    def failed(self, peer: PublicKey, now: float) -> float:
        """The dial came to nothing; returns the seconds until the next one. It goes to the next address: at once, until
        the last of them was tried, so that a peer with several is not met later than one with one."""
        self.answered(peer)
        tries = self._tries.get(peer)
        if tries is not None and self.has_address(peer):
            tries.moves += 1
            if tries.moves % len(self._members[peer]):
                return 0.0
        return self._back_off(peer, now)

    def lost(self, peer: PublicKey, now: float, *, was_good: bool) -> float:
        """The last link is gone; returns the seconds until the next dial. One that was no good is a failed try."""
        if peer in self._tries and was_good:
            self._tries[peer].failures = 0
        return self._back_off(peer, now)

    def postpone(self, peer: PublicKey, until: float) -> None:
        """Do not dial this peer before then."""
        if self.has_address(peer):
            tries = self._tries.setdefault(peer, _Tries())
            tries.next_at = max(tries.next_at, until)
            self.look_again()

    # -------------------------------------------------------------------------------------------------------- choosing

    def _room(self, dialed: int, now: float) -> int:
        """How many dials may begin, when not everybody is dialed."""
        room = max(0, self._settings.max_dialed - dialed - sum(tries.is_dialing for tries in self._tries.values()))
        if now >= self.explore_at:
            self._plan_exploring(now)
            return max(room, 1)
        return room

    def _plan_exploring(self, now: float) -> None:
        self.explore_at = now + self._rng.uniform(self._settings.explore_min_s, self._settings.explore_max_s)

    def _next_exploring(self) -> float:
        return self.explore_at if self.chooses else math.inf

    def _eligible(self, linked: Container[PublicKey], now: float) -> list[PublicKey]:
        return [peer for peer in self._dialable if self._may_dial(peer, linked, now)]

    def _draw(self, count: int, linked: Container[PublicKey], now: float) -> list[PublicKey]:
        """Up to so many at random. A few draws are enough, and look at few of thousands, unless most are linked or
        wait."""
        chosen: dict[PublicKey, None] = {}
        for _ in range(4 * count):
            peer = self._rng.choice(self._dialable)
            if len(chosen) < count and self._may_dial(peer, linked, now):
                chosen[peer] = None
        if len(chosen) < count:
            left = [peer for peer in self._eligible(linked, now) if peer not in chosen]
            chosen |= dict.fromkeys(self._rng.sample(left, min(count - len(chosen), len(left))))
        return list(chosen)

    def _may_dial(self, peer: PublicKey, linked: Container[PublicKey], now: float) -> bool:
        tries = self._tries.get(peer)
        is_free = tries is None or (not tries.is_dialing and tries.next_at <= now)
        return is_free and peer not in linked and peer != self._me

    def _next_try(self, linked: Container[PublicKey]) -> float:
        waiting = (t.next_at for peer, t in self._tries.items() if not t.is_dialing and peer not in linked)
        return min(waiting, default=math.inf)

    def _address(self, peer: PublicKey) -> str:
        addresses = self._members[peer]
        return addresses[self._tries[peer].moves % len(addresses)]

    def _back_off(self, peer: PublicKey, now: float) -> float:
        self.look_again()
        if not self.has_address(peer):
            return math.inf
        tries = self._tries.setdefault(peer, _Tries())
        cap_s = max(self._settings.dial_cap_s, self._settings.dial_spacing_s * len(self._dialable))
        longest = min(cap_s, self._settings.dial_base_s * 2 ** min(tries.failures, MAX_DOUBLINGS))
        tries.failures += 1
        wait_s = self._rng.uniform(0.0, longest)
        tries.next_at = now + wait_s
        return wait_s
