"""One authenticated stream of frames with a peer, whoever dialed it.

A link knows no protocol: it queues what the gossip core sends, counts bytes, and hands what arrives to the
hub (the daemon). Both `server.py` and `client.py` run the same two loops over a link, so a node that can
only dial out takes the same part in gossip as one that listens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

from crypto.keys import PublicKey
from node import wire
from node.bandwidth import Allowance
from node.errors import WireError
from node.frames import Chunk, Frame, Records, SignedRecord
from node.pb import tidings_pb2 as pb
from node.records import Record

MAX_QUEUED = 8_192
"""Frames or chunks that may wait on a link. Chunks wait as numbers, so this bounds a link's memory at a few MB for
honest peers; who asks for more than it reads is cut off here."""

READ_AHEAD = 8
"""Chunks of one record that are loaded at once: one query of the store takes hardly longer for all than for one. At
most 512 kB a link."""

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

    def load_chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[Frame]:
        """The Chunk frames to send, in this order, with a Missing frame for what is gone."""

    def link_down(self, link: Link, reason: str) -> None:
        """The link is gone; `reason` is a few words for a person."""


class Link:
    """A stream of frames to and from `peer`."""

    def __init__(self, peer: PublicKey, hub: Hub, *, dialed_by_us: bool, allowance: Allowance | None = None) -> None:
        self.number = next(_numbers)
        self.peer = peer
        self.dialed_by_us = dialed_by_us
        self.bytes_sent = 0
        self.bytes_received = 0
        self.closed_because: str | None = None
        self.cut: Callable[[], object] | None = None
        """Ends the call at once; set by the dialing side, whose stream does not end by itself when the queue does."""
        self._hub = hub
        self._allowance = allowance
        self._frames: deque[Frame] = deque()
        self._records: deque[tuple[Record, ...]] = deque()
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._loaded: deque[Frame] = deque()
        self._wake = asyncio.Event()

    def send(self, frame: Frame) -> None:
        """Queue a frame, ahead of all chunks."""
        self._queue(self._frames, frame)

    def send_records(self, records: tuple[Record, ...]) -> None:
        """Queue a frame of records with small bodies, which are loaded when its turn comes: after other frames and
        ahead of all chunks."""
        self._queue(self._records, records)

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
        while await self._has_something():
            if self._allowance is None:
                message = self._next()
            else:
                async with self._allowance.turn(self._is_urgent) as charge:
                    message = self._next()
                    charge(message.ByteSize() if message else 0)
            if message is not None:
                self.bytes_sent += message.ByteSize()
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

    async def _has_something(self) -> bool:
        """Wait until something is to be sent; False once the link is closed and flushed."""
        while not (self._frames or self._records or self._loaded or self._chunks):
            if self.closed_because is not None:
                return False
            self._wake.clear()
            await self._wake.wait()
        return True

    def _is_urgent(self) -> bool:
        return bool(self._frames or self._records)

    def _next(self) -> pb.Frame | None:
        """What goes first now. A closed link sends the frames that wait and no bodies."""
        if self._frames:
            return wire.frame_to_pb(self._frames.popleft())
        if self.closed_because is not None:
            self._records.clear()
            self._chunks.clear()
            self._loaded.clear()
            return None
        if self._records:
            return wire.frame_to_pb(Records(tuple(map(self._with_body, self._records.popleft()))))
        if not self._loaded:
            self._load()
        return wire.frame_to_pb(self._loaded.popleft())

    def _with_body(self, record: Record) -> SignedRecord:
        loaded = self._hub.load_chunks(record.id, range(len(record.header.chunk_hashes)))
        parts = [chunk.data for chunk in loaded if isinstance(chunk, Chunk)]
        body = b"".join(parts) if len(parts) == len(loaded) else b""
        return SignedRecord(record.header_bytes, record.signature, body)

    def _load(self) -> None:
        """Load the next chunk and those that follow it in its record."""
        record_id = self._chunks[0][0]
        indexes: list[int] = []
        while self._chunks and self._chunks[0][0] == record_id and len(indexes) < READ_AHEAD:
            indexes.append(self._chunks.popleft()[1])
        self._loaded.extend(self._hub.load_chunks(record_id, indexes))

    def _queue(self, queue: deque[_T], item: _T) -> None:
        """A peer that asks for more than it reads is cut off rather than buffered without end."""
        if self.closed_because is not None:
            return
        if len(queue) >= MAX_QUEUED:
            self.close("it asks for more than it reads")
            return
        queue.append(item)
        self._wake.set()
