"""Bandwidth: how `serve --bandwidth` and `--peer-bandwidth` keep a node from filling a thin line.

One token bucket limits what all links send together, and each peer has one of its own. Links that wait for a bucket
stand in line, one frame a turn, so that they share it evenly and none starves. What a link sends is chosen when its
turn comes, so a withdrawal that is queued while a chunk waits goes first; and links with something other than chunks to
send go before the others.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from crypto.keys import PublicKey
from node.errors import UsageError

_RATE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<prefix>[kKmMgG]?)(?P<unit>bit/s|bit|B/s|B)?")
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}

MAX_OVERTAKEN: Final = 64
"""Urgent frames that may pass the longest waiting link in a row. A burst of withdrawals is through before; a peer that
asks for headers without end still leaves one turn in so many to everybody's chunks."""

CLOCK_S: Final = 1e-6
"""Waits shorter than this are none: rounding leaves a billionth of a byte to wait for, and timers are coarser."""

Charge = Callable[[int], None]


def parse_rate(text: str, option: str = "--bandwidth") -> float:
    """Bytes per second from `64kbit/s`, `2MB/s` or `500k` (bytes); UsageError for anything else."""
    match = _RATE.fullmatch(text.strip())
    if not match or float(match["number"]) <= 0:
        raise UsageError(f"{option} {text!r} is not a rate; write for example 64kbit/s, 500kB/s or 2MB/s.")
    per_second = float(match["number"]) * _SCALE[match["prefix"].lower()]
    return per_second / 8 if (match["unit"] or "").startswith("bit") else per_second


@dataclass(eq=False, slots=True)
class _Waiter:
    is_urgent: Callable[[], bool]
    has_turn: asyncio.Future[None]


class TokenBucket:
    """Lets `rate` bytes a second through, with bursts of at most one second's worth and one frame.

    Whoever has the turn sends one frame, however large, and what it took is paid for before the next turn: the long-run
    rate holds, nothing is stuck, and the wait for the next turn is never longer than one frame takes at this rate.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = rate
        self._at: float | None = None
        self._is_taken = False
        self._waiting: list[_Waiter] = []
        self._overtaken = 0
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def turn(self, is_urgent: Callable[[], bool]) -> AsyncIterator[Charge]:
        """Wait for a turn; within it, say how many bytes are sent. `is_urgent` is asked whenever a turn is given."""
        waiter = _Waiter(is_urgent, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._give_turn()
        try:
            await waiter.has_turn
            yield self._charge
        finally:
            if waiter.has_turn.done() and not waiter.has_turn.cancelled():
                self._is_taken = False
            self._give_turn()

    def _charge(self, size: int) -> None:
        self._tokens -= size

    def _give_turn(self) -> None:
        """To whoever is next, now or when what was sent is paid for."""
        self._waiting = [waiter for waiter in self._waiting if not waiter.has_turn.done()]  # others gave up
        if self._is_taken or not self._waiting:
            return
        lacking_s = -self._refill() / self._rate
        if lacking_s > CLOCK_S:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(lacking_s, self._paid)
            return
        waiter = self._next()
        self._waiting.remove(waiter)
        self._is_taken = True
        waiter.has_turn.set_result(None)

    def _paid(self) -> None:
        self._timer = None
        self._give_turn()

    def _refill(self) -> float:
        """How many bytes may be sent now; less than none is what is still to be paid."""
        now = asyncio.get_running_loop().time()
        self._tokens = min(self._rate, self._tokens + (now - (self._at if self._at is not None else now)) * self._rate)
        self._at = now
        return self._tokens

    def _next(self) -> _Waiter:
        oldest = self._waiting[0]
        urgent = next((waiter for waiter in self._waiting if waiter.is_urgent()), oldest)
        if urgent is oldest or self._overtaken >= MAX_OVERTAKEN:
            self._overtaken = 0
            return oldest
        self._overtaken += 1
        return urgent


class Bandwidth:
    """What this node may send: in total, and to each peer. None is no limit; rates are bytes per second."""

    def __init__(self, total: float | None = None, each_peer: float | None = None) -> None:
        self._total = TokenBucket(total) if total else None
        self._each_peer = each_peer
        self._peers: dict[PublicKey, TokenBucket] = {}

    def of(self, peer: PublicKey) -> Allowance | None:
        """What links with this peer may send, all of them together; None if that is not limited."""
        buckets = [self._total] if self._total else []
        if self._each_peer:
            # The peer's own first: who waits for that must not hold up the others.
            buckets.insert(0, self._peers.setdefault(peer, TokenBucket(self._each_peer)))
        return Allowance(buckets) if buckets else None


class Allowance:
    """A link's place in the line of every bucket that limits it."""

    def __init__(self, buckets: list[TokenBucket]) -> None:
        self._buckets = buckets

    @asynccontextmanager
    async def turn(self, is_urgent: Callable[[], bool]) -> AsyncIterator[Charge]:
        """As `TokenBucket.turn`, of all of them."""
        if len(self._buckets) == 1:
            async with self._buckets[0].turn(is_urgent) as charge:
                yield charge
            return
        peers_own, total = self._buckets
        async with peers_own.turn(is_urgent) as charge_peer, total.turn(is_urgent) as charge_total:

            def charge(size: int) -> None:
                charge_peer(size)
                charge_total(size)

            yield charge
