"""How much room the disk of a home has, and what follows: three states with words for each.

*Room*: everything is taken. *Low*: bodies are not asked for; headers, withdrawals and evidence are small and still
come. *Full*: a write was refused, so only withdrawals and evidence are tried. What is here is served in all of them.
Each state ends by itself: when there is room again, or, where the free space does not explain the refusal (a quota),
when a while has passed and it is worth another try.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from node.config import DISK_ENOUGH, DISK_LOW_BYTES, DISK_LOW_SHARE, DISK_RETRY_S
from node.gossip.events import Disk

WORDS = {
    Disk.ROOM: "there is room on the disk again: bodies are taken as before",
    Disk.LOW: "the disk is nearly full: until there is room no bodies are taken, only headers and withdrawals",
    Disk.FULL: "the disk refuses writes: until there is room only withdrawals are tried; what is here is served",
}


def low_mark(total_bytes: int) -> float:
    """Free bytes below which a disk of this size is low."""
    return min(DISK_LOW_BYTES, DISK_LOW_SHARE * total_bytes)


def is_low(home: Path) -> bool:
    """Whether the disk of a home is below its mark right now."""
    usage = shutil.disk_usage(home)
    return usage.free < low_mark(usage.total)


class DiskWatch:
    """The state of the disk under a home, as of the last `look`."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._clock = clock
        self._full_until: float | None = None
        self._was_roomy = False
        self.state = Disk.ROOM

    def look(self) -> Disk:
        """Look again; one system call."""
        usage = shutil.disk_usage(self._home)
        mark = low_mark(usage.total)
        has_enough = usage.free >= DISK_ENOUGH * mark
        if self._full_until is not None and self._clock() < self._full_until and (self._was_roomy or not has_enough):
            return self.state
        self._full_until = None
        if usage.free < mark:
            self.state = Disk.LOW
        elif has_enough or self.state is not Disk.LOW:
            self.state = Disk.ROOM
        return self.state

    def refused(self) -> None:
        """The disk refused a write."""
        usage = shutil.disk_usage(self._home)
        self.state = Disk.FULL
        self._full_until = self._clock() + DISK_RETRY_S
        # Then free space says nothing about when writes succeed again.
        self._was_roomy = usage.free >= DISK_ENOUGH * low_mark(usage.total)
