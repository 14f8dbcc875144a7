"""Knocks: how often one key may open a stream, and what becomes of it when it does not stop.

A handshake, a stream and a refusal cost this node a few milliseconds together, and whoever is refused at once may come
back at once. So every stream that a key opens takes one from an allowance; a key that has none left, or that is kept
out, is made to wait for its refusal and then loses its connection. So many wait at most; more are cut off at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Final

from crypto.keys import PublicKey

BURST: Final = 30
PER_S: Final = 2.0
"""Streams of one key: so many at once, and two a second, which cost half a per cent of a core. A link that is cut every
5 s needs one in five; a node that crashes and starts again and again, up to one a second."""

HOLD_S: Final = 10.0
MAX_HELD: Final = 128
"""How long a stream that is refused waits for it, and how many of one key may: 20 kB each. That is four connections
with all the streams that each may have."""


class Knocks:
    """The allowance of every key, and what is held of it."""

    def __init__(self) -> None:
        self._left: dict[PublicKey, tuple[float, float]] = {}
        self._held: Counter[PublicKey] = Counter()

    def is_welcome(self, key: PublicKey) -> bool:
        """Whether it may open one more now."""
        now = time.monotonic()
        left, at = self._left.get(key, (float(BURST), now))
        left = min(BURST, left + (now - at) * PER_S)
        self._left[key] = (left - 1 if left >= 1 else left), now
        return left >= 1

    async def hold(self, key: PublicKey) -> bool:
        """Let a refused stream wait; False at once if too many do."""
        if self._held[key] >= MAX_HELD:
            return False
        self._held[key] += 1
        try:
            await asyncio.sleep(HOLD_S)
        finally:
            self._held[key] -= 1
        return True
