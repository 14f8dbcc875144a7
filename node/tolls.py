"""Tolls: what frames that do a node no good may cost it, per peer.

Each frame has a price, about the processor time that it takes here. One that brings something (a record or a chunk that
is kept, a request that is served) is free. What the others cost is counted against an allowance of the peer, whatever
links it has; once that is used up, this node reads no more from the peer until it has grown again, and HTTP/2's flow
control keeps the rest on the other side. Nothing is dropped and nobody is punished: slow is not invalid, and a flood is
made slow.
"""

from __future__ import annotations

import asyncio
from typing import Final

from crypto.keys import PublicKey
from node.frames import Chunk, Frame, Want

SHARE: Final = 0.04
BURST_S: Final = 0.5
"""Seconds of processor time a second, and at once, that one peer's useless frames may cost. The first meeting of two
nodes with 10,000 origins that all differ costs 0.4 s; an idle link 0.1 ms a minute. A higher share lets a flood take
more, a lower one slows down who compares very much."""

LEAST_WAIT_S: Final = 0.05
"""Whoever has to wait waits so long, and then sends several frames: each waking up costs something, too."""

FRAME_S: Final = 200e-6
"""What any frame costs before anything is done about it: TLS, HTTP/2, waking up, the event loop."""

CHUNK_BYTE_S: Final = 10e-9
WANT_BYTE_S: Final = 4e-6
OTHER_BYTE_S: Final = 200e-9
"""And per byte: chunks are copied and hashed; a request for what is not here (34 bytes a record) is answered with a
frame for each; other frames are lists that are decoded and looked up, 10 µs for 50 to 90 bytes."""


def price_s(frame: Frame | None, size: int) -> float:
    """What a useless frame of so many bytes costs; None is one that is skipped or malformed."""
    if frame is None or isinstance(frame, Chunk):
        return FRAME_S + size * CHUNK_BYTE_S
    return FRAME_S + size * (WANT_BYTE_S if isinstance(frame, Want) else OTHER_BYTE_S)


class Toll:
    """One peer's allowance, in seconds of processor time."""

    def __init__(self) -> None:
        self._left_s = BURST_S
        self._at: float | None = None

    def charge(self, cost_s: float) -> None:
        """It has cost so much."""
        now = asyncio.get_running_loop().time()
        grown_s = 0.0 if self._at is None else (now - self._at) * SHARE
        self._left_s = min(BURST_S, self._left_s + grown_s) - cost_s
        self._at = now

    async def paid(self) -> None:
        """Wait until nothing is owed."""
        if self._left_s < 0:
            self.charge(0.0)
            while self._left_s < 0:
                await asyncio.sleep(max(LEAST_WAIT_S, -self._left_s / SHARE))
                self.charge(0.0)


class Tolls:
    """The allowances of all peers."""

    def __init__(self) -> None:
        self._of: dict[PublicKey, Toll] = {}

    def of(self, peer: PublicKey) -> Toll:
        """The one of this peer, however often it comes back."""
        return self._of.setdefault(peer, Toll())

    def keep_only(self, peers: set[PublicKey]) -> None:
        """Forget the others."""
        self._of = {peer: toll for peer, toll in self._of.items() if peer in peers}
