"""One authenticated stream of frames with a peer, whoever dialed it.

A link knows no protocol: it queues what the gossip core sends, counts bytes, and hands what arrives to the
hub (the daemon). Both `server.py` and `client.py` run the same two loops over a link, so a node that can
only dial out takes the same part in gossip as one that listens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Protocol, TypeVar

from crypto.keys import PublicKey
from node import wire
from node.bandwidth import TokenBucket
from node.errors import WireError
from node.frames import Frame
from node.pb import tidings_pb2 as pb

MAX_QUEUED = 8_192
"""Frames or chunks that may wait on a link. Chunks wait as numbers, so this bounds a link's memory at a few MB for
honest peers; who asks for more than it reads is cut off here."""

CLOSE_GRACE_S = 1.0
"""How long a closed link may still flush what was queued before its call is cut."""

_T = TypeVar("_T")
_numbers = itertools.count(1)


class Hub(Protocol):
    """What a link needs of the daemon."""

    def may_exchange(self, peer: PublicKey) -> bool:
        """Whether this peer is a member right now."""

    def link_up(self, link: Link) -> None:
        """A link was authenticated and is ready to carry frames."""

    def frame_in(self, link: Link, frame: Frame) -> None:
        """A well-formed frame arrived."""

    async def room(self) -> None:
        """Wait until the next frame may be taken: what came before must be kept first, and a disk may be slow."""

    def bad_frame(self, link: Link, reason: str) -> None:
        """Something arrived that is no well-formed frame."""

    def load_chunk(self, record_id: bytes, index: int) -> Frame:
        """The Chunk frame to send, or a Missing frame if the chunk is gone."""

    def link_down(self, link: Link, reason: str) -> None:
        """The link is gone; `reason` is a few words for a person."""


class Link:
    """A stream of frames to and from `peer`."""

    def __init__(self, peer: PublicKey, hub: Hub, *, dialed_by_us: bool, bucket: TokenBucket | None = None) -> None:
        self.number = next(_numbers)
        self.peer = peer
        self.dialed_by_us = dialed_by_us
        self.bytes_sent = 0
        self.bytes_received = 0
        self.closed_because: str | None = None
        self.cut: Callable[[], object] | None = None
        """Ends the call at once; set by the dialing side, whose stream does not end by itself when the queue does."""
        self._hub = hub
        self._bucket = bucket
        self._frames: deque[Frame] = deque()
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._wake = asyncio.Event()

    def send(self, frame: Frame) -> None:
        """Queue a frame, ahead of all chunks."""
        self._queue(self._frames, frame)

    def send_chunk(self, record_id: bytes, index: int) -> None:
        """Queue a chunk, which is loaded when its turn comes."""
        self._queue(self._chunks, (record_id, index))

    def close(self, reason: str) -> None:
        """End the stream once what is queued has been sent, or after a moment at the latest."""
        if self.closed_because is None:
            self.closed_because = reason
            self._wake.set()
            if self.cut is not None:
                asyncio.get_running_loop().call_later(CLOSE_GRACE_S, self.cut)

    async def outgoing(self) -> AsyncIterator[pb.Frame]:
        """What gRPC sends: what is queued, slowed to the bandwidth limit, until the link is closed."""
        while (frame := await self._next()) is not None:
            message = wire.frame_to_pb(frame)
            size = message.ByteSize()
            if self._bucket is not None:
                await self._bucket.take(size)
            self.bytes_sent += size
            yield message

    async def receive(self, messages: AsyncIterable[pb.Frame]) -> None:
        """Hand what arrives to the hub until the peer ends the stream or this side closes the link."""
        async for message in messages:
            if self.closed_because is not None:
                return
            if not self._hub.may_exchange(self.peer):
                self.close("it was removed here")
                return
            self.bytes_received += message.ByteSize()
            try:
                frame = wire.frame_from_pb(message)
            except WireError as error:
                self._hub.bad_frame(self, str(error))
                continue
            if frame is not None:
                self._hub.frame_in(self, frame)
                await self._hub.room()
        self.close("the other side closed it")

    async def _next(self) -> Frame | None:
        while True:
            if self._frames:
                return self._frames.popleft()
            if self.closed_because is not None:
                return None
            if self._chunks:
                return self._hub.load_chunk(*self._chunks.popleft())
            self._wake.clear()
            await self._wake.wait()

    def _queue(self, queue: deque[_T], item: _T) -> None:
        """A peer that asks for more than it reads is cut off rather than buffered without end."""
        if self.closed_because is not None:
            return
        if len(queue) >= MAX_QUEUED:
            self.close("it asks for more than it reads")
            return
        queue.append(item)
        self._wake.set()
