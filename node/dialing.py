"""Dialing: which members to try now, and how long to wait after a try that failed.

Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015): the n-th wait in a
row is drawn evenly from 0 to min(cap, base * 2^n). It never ends: a silent peer is never forgotten. A
member without an address is never dialed; it dials us, or is reached through others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Mapping
from dataclasses import dataclass

from crypto.keys import PublicKey
from node.config import GossipSettings

MAX_DOUBLINGS = 30


@dataclass(slots=True)
class _Member:
    addresses: tuple[str, ...]
    failures: int
    next_at: float
    dialing: bool = False
    tries: int = 0

    @property
    def address(self) -> str:
        """The one to try now: the same again after a success, the next one after a failure."""
        return self.addresses[self.tries % len(self.addresses)]


class Dialer:
    """The members, and when each may be dialed next."""

    def __init__(self, settings: GossipSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._members: dict[PublicKey, _Member] = {}

    def set_members(self, members: Mapping[PublicKey, tuple[str, ...]], now: float) -> None:
        """These are the members with an address now; one that is new, or has other addresses, may be dialed at once."""
        before = self._members
        self._members = {}
        for peer, addresses in members.items():
            known = before.get(peer) or _Member(addresses, 0, now)
            if known.addresses != addresses:
                known.addresses, known.failures, known.next_at, known.tries = addresses, 0, now, 0
            self._members[peer] = known

    def has_address(self, peer: PublicKey) -> bool:
        """Whether this peer can be dialed at all."""
        return peer in self._members

    def due(self, linked: Container[PublicKey], now: float) -> list[tuple[PublicKey, str]]:
        """The members to dial now, and where, except those with a link; each counts as being dialed from here on."""
        chosen: list[tuple[PublicKey, str]] = []
        for peer, member in self._members.items():
            if member.next_at <= now and not member.dialing and peer not in linked:
                member.dialing = True
                chosen.append((peer, member.address))
        return chosen

    def answered(self, peer: PublicKey) -> None:
        """The dial became a link."""
        if peer in self._members:
            self._members[peer].dialing = False

    def failed(self, peer: PublicKey, now: float) -> float:
        """The dial came to nothing; returns the seconds until the next one."""
        self.answered(peer)
        if peer in self._members:
            self._members[peer].tries += 1
        return self._back_off(peer, now)

    def lost(self, peer: PublicKey, now: float, *, was_good: bool) -> float:
        """The last link is gone; returns the seconds until the next dial. One that was no good is a failed try."""
        if peer in self._members and was_good:
            self._members[peer].failures = 0
        return self._back_off(peer, now)

    def postpone(self, peer: PublicKey, until: float) -> None:
        """Do not dial this peer before then."""
        if peer in self._members:
            self._members[peer].next_at = max(self._members[peer].next_at, until)

    def deadline(self, linked: Container[PublicKey]) -> float:
        """When the next dial is due."""
        times = (member.next_at for peer, member in self._members.items() if not member.dialing and peer not in linked)
        return min(times, default=math.inf)

    def _back_off(self, peer: PublicKey, now: float) -> float:
        member = self._members.get(peer)
        if member is None:
            return math.inf
        doublings = min(member.failures, MAX_DOUBLINGS)
        member.failures += 1
        longest = min(self._settings.dial_cap_s, self._settings.dial_base_s * 2**doublings)
        wait_s = self._rng.uniform(0.0, longest)
        member.next_at = now + wait_s
        return wait_s
