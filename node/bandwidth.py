"""A token bucket: how `serve --bandwidth` keeps a node from filling a thin line."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from node.errors import UsageError

_RATE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<prefix>[kKmMgG]?)(?P<unit>bit/s|bit|B/s|B)?")
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def parse_rate(text: str) -> float:
    """Bytes per second from `64kbit/s`, `2MB/s` or `500k` (bytes); UsageError for anything else."""
    match = _RATE.fullmatch(text.strip())
    if not match or float(match["number"]) <= 0:
        raise UsageError(f"--bandwidth {text!r} is not a rate; write for example 64kbit/s, 500kB/s or 2MB/s.")
    per_second = float(match["number"]) * _SCALE[match["prefix"].lower()]
    return per_second / 8 if (match["unit"] or "").startswith("bit") else per_second


class TokenBucket:
    """Lets `rate` bytes a second through, with bursts of at most one second's worth.

    A frame larger than a burst is let through and paid for afterwards: the long-run rate holds and nothing
    is stuck.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._tokens = rate
        self._at = clock()

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be sent."""
        now = self._clock()
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate) - size
        self._at = now
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._rate)
