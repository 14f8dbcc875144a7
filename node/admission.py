"""Admission: how often a key may ask for models, and whose turn it is when several wait.

Two rules that know no queries and no sockets. `Allowances` gives every key a token bucket: so many questions at once,
so many an hour in the long run. `Line` lets so many work at a time and a few wait; those that wait are taken key by key
in turn, and no key has more than a few places, so that one that asks without end delays another by one piece of work.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from crypto.keys import PublicKey
from node.errors import AskLater
from node.show import duration


class Allowances:
    """A token bucket for each key: `burst` at once, `per_hour` in the long run. `clock` gives monotonic seconds."""

    def __init__(self, burst: int, per_hour: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._per_s = per_hour / 3600
        self._clock = clock
        self._left: dict[PublicKey, tuple[float, float]] = {}

    def spend(self, key: PublicKey) -> None:
        """Take one; AskLater, with when there is one again, if none is left. What is refused costs nothing."""
        now = self._clock()
        left, at = self._left.get(key, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._per_s)
        if left < 1:
            wait_s = math.ceil((1 - left) / self._per_s)
            raise AskLater(
                f"It answers {self._per_s * 3600:g} queries an hour of one key; ask again in {duration(wait_s)}."
            )
        self._left[key] = left - 1, now
        self._forget_full(now)

    def _forget_full(self, now: float) -> None:
        """A full bucket is as good as none: keys that come and go leave nothing behind."""
        full_after_s = self._burst / self._per_s
        for key in [key for key, (_, at) in self._left.items() if now - at > full_after_s]:
            del self._left[key]


class Line:
    """Lets `working` through at a time; `waiting` may wait, `each` of one key."""

    def __init__(self, working: int, waiting: int, each: int) -> None:
        self._free = working
        self._most, self._each = waiting, each
        self._waiting: dict[PublicKey, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def place(self, key: PublicKey) -> AsyncIterator[None]:
        """Wait for this key's turn and hold it; AskLater where there is no room to wait."""
        if self._free and not self._waiting:
            self._free -= 1
        else:
            await self._wait(key)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, key: PublicKey) -> None:
        if len(self._waiting.get(key, ())) >= self._each:
            raise AskLater("It has several of your queries waiting already; ask again when one is answered.")
        if self.waiting >= self._most:
            raise AskLater("It has as many queries waiting as it takes; ask again in a minute.")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it had just come
            else:
                self._leave(key, turn)
            raise

    def _leave(self, key: PublicKey, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(key)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[key]

    def _pass_on(self) -> None:
        """To the key that has waited longest for a turn; it goes to the end with whatever else it has waiting."""
        while self._waiting:
            key = next(iter(self._waiting))
            turns = self._waiting.pop(key)
            turn = turns.popleft()
            if turns:
                self._waiting[key] = turns
            if not turn.done():  # else whoever waited has gone this very moment
                turn.set_result(None)
                return
        self._free += 1
