"""Paced work: what news call for is done soon, once for all of them, and never for more than a share of the time.

Some of what a record sets off takes longer the more of its kind are here: who is trusted, whom to grant what, what
HEADs say against their origins. A member may publish thousands within its quota, one at a time, and must not keep a
node busy with that. So the next time comes no sooner than the last one's processor time is `SHARE` of what has passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

SHARE: Final = 0.04
"""Seconds of processor time a second, as for useless frames (`tolls`). What takes 2 ms, as most of it does, may be done
20 times a second."""


class Paced:
    """Work on the event loop."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._timer: asyncio.TimerHandle | None = None
        self._free_at = 0.0
        self._is_over = False

    def soon(self, wait_s: float = 0.0) -> None:
        """Do it after `wait_s`, or once it may be done again; nothing if that is planned already."""
        if self._timer is None and not self._is_over:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time() + wait_s, self._free_at), self._run)

    def end(self) -> None:
        """Do it no more."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        self._timer = None
        began_s = time.thread_time()
        try:
            self._work()
        finally:
            self._free_at = asyncio.get_running_loop().time() + (time.thread_time() - began_s) / SHARE


class Lookup:
    """Work that only reads and may take seconds: in a thread of its own, which nobody waits for when the process
    ends."""

    def __init__(self) -> None:
        self._is_busy = False
        self._free_at = 0.0

    def begin(self, work: Callable[[], Callable[[], None]]) -> bool:
        """Begin, and later do on the event loop what `work` returned; False if it may not be done again yet."""
        loop = asyncio.get_running_loop()
        if self._is_busy or loop.time() < self._free_at:
            return False

        def act() -> None:
            began_s, follow_up = time.thread_time(), _nothing
            try:
                follow_up = work()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._end, follow_up, time.thread_time() - began_s)

        self._is_busy = True
        threading.Thread(target=act, name="tidings-lookup", daemon=True).start()
        return True

    def _end(self, follow_up: Callable[[], None], used_s: float) -> None:
        self._is_busy = False
        self._free_at = asyncio.get_running_loop().time() + used_s / SHARE
        follow_up()


def _nothing() -> None:
    pass
