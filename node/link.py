"""One authenticated stream of frames with a peer, whoever dialed it.

A link knows no protocol: it queues what the gossip core sends, counts bytes, and hands what arrives to the
hub (the daemon). Both `server.py` and `client.py` run the same two loops over a link, so a node that can
only dial out takes the same part in gossip as one that listens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

from crypto.keys import PublicKey
from node import wire
from node.bandwidth import Allowance
from node.errors import WireError
from node.frames import Chunk, Frame, Missing, Records, SignedRecord, entries, frame_name
from node.records import Record
from node.tolls import Toll, price_s

MAX_QUEUED = 8_192
MAX_QUEUED_ENTRIES = 128 * 1024
"""Frames or chunks that may wait on a link, and what all these frames may name together. Chunks wait as numbers and
bodies as records, so this bounds a link's memory at a few MB for honest peers and some 20 MB for others; who asks for
more than it reads is cut off here."""

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

    def frame_in(self, link: Link, frame: Frame) -> bool:
        """A well-formed frame arrived; whether it did any good."""

    async def room(self) -> None:
        """Wait until the next frame may be taken: what came before must be kept first, and a disk may be slow."""

    def bad_frame(self, link: Link, reason: str) -> None:
        """Something arrived that is no well-formed frame."""

    def load_chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[bytes | None]:
        """The chunks with these numbers, in this order; None for what is gone."""

    def link_down(self, link: Link, reason: str) -> None:
        """The link is gone; `reason` is a few words for a person."""


class Link:
    """A stream of frames to and from `peer`."""

    def __init__(
        self,
        peer: PublicKey,
        hub: Hub,
        *,
        dialed_by_us: bool,
        allowance: Allowance | None = None,
        toll: Toll | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.peer = peer
        self.dialed_by_us = dialed_by_us
        self.bytes_sent = 0
        self.frames_sent: Counter[str] = Counter()
        self.bytes_received = 0
        self.closed_because: str | None = None
        self.cut: Callable[[], object] | None = None
        """Ends the call at once. Without it a peer that reads nothing would keep a closed link, and what waits on it,
        for as long as it likes."""
        self._hub = hub
        self._allowance = allowance
        self._toll = toll or Toll()
        self._frames: deque[Frame] = deque()
        self._entries = 0
        self._records: deque[tuple[Record, ...]] = deque()
        self._chunks: deque[tuple[bytes, int, int]] = deque()
        self._loaded: deque[Frame] = deque()
        self._wake = asyncio.Event()

    def send(self, frame: Frame) -> None:
        """Queue a frame, ahead of all chunks."""
        size = entries(frame)
        if self._queue(self._frames, frame, is_room=self._entries + size <= MAX_QUEUED_ENTRIES):
            self._entries += size

    def send_records(self, records: tuple[Record, ...]) -> None:
        """Queue a frame of records with small bodies, which are loaded when its turn comes: after other frames and
        ahead of all chunks."""
        self._queue(self._records, records)

    def send_chunk(self, record_id: bytes, index: int, count: int = 1) -> None:
        """Queue a chunk, or so many in a row that share a frame, to be loaded when their turn comes."""
        self._queue(self._chunks, (record_id, index, count))

    def close(self, reason: str) -> None:
        """End the stream once what is queued has been sent, or after a moment at the latest."""
        if self.closed_because is None:
            self.closed_because = reason
            self._wake.set()
            asyncio.get_running_loop().call_later(CLOSE_GRACE_S, self._cut)

    def _cut(self) -> None:
        if self.cut is not None:
            self.cut()

    async def outgoing(self) -> AsyncIterator[bytes]:
        """What gRPC sends: what is queued, slowed to the bandwidth limit, until the link is closed."""
        while await self._has_something():
            if self._allowance is None:
                message = self._next()
            else:
                async with self._allowance.turn(self._is_urgent) as charge:
                    message = self._next()
                    charge(len(message))
            if message:
                yield message

    async def receive(self, messages: AsyncIterable[bytes]) -> None:
        """Hand what arrives to the hub until the peer ends the stream or this side closes the link."""
        async for data in messages:
            if self.closed_because is not None:
                return
            if not self._hub.may_exchange(self.peer):
                self.close("it was removed here")
                return
            self.bytes_received += len(data)
            await self._take(data)
        self.close("the other side closed it")

    async def _take(self, data: bytes) -> None:
        """Read one message; wait if that was of no use and has cost too much by now."""
        frame, was_useful = None, False
        try:
            frame = wire.decode(data)
        except WireError as error:
            self._hub.bad_frame(self, str(error))
        if frame is not None:
            was_useful = self._hub.frame_in(self, frame)
            await self._hub.room()
        if not was_useful:
            self._toll.charge(price_s(frame, len(data)))
            await self._toll.paid()

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

    def _next(self) -> bytes:
        """What goes first now, encoded; empty if nothing does. A closed link sends frames that wait and no bodies."""
        if self._frames:
            frame = self._frames.popleft()
            self._entries -= entries(frame)
            return self._encoded(frame)
        if self.closed_because is not None:
            self._records.clear()
            self._chunks.clear()
            self._loaded.clear()
            return b""
        if self._records:
            return self._encoded(Records(tuple(map(self._with_body, self._records.popleft()))))
        if not self._loaded:
            self._load()
        return self._encoded(self._loaded.popleft())

    def _encoded(self, frame: Frame) -> bytes:
        """What is sent now, counted."""
        data = wire.encode(frame)
        self.bytes_sent += len(data)
        self.frames_sent[frame_name(frame)] += 1
        return data

    def _with_body(self, record: Record) -> SignedRecord:
        body = _joined(self._hub.load_chunks(record.id, range(len(record.header.chunk_hashes))))
        return SignedRecord(record.header_bytes, record.signature, body or b"")

    def _load(self) -> None:
        """Load what goes into the next frame, and what follows it of the same record."""
        record_id = self._chunks[0][0]
        runs: list[range] = []
        while self._chunks and self._chunks[0][0] == record_id and sum(map(len, runs)) < READ_AHEAD:
            _, first, count = self._chunks.popleft()
            runs.append(range(first, first + count))
        loaded = iter(self._hub.load_chunks(record_id, list(itertools.chain(*runs))))
        for run in runs:
            data = _joined(list(itertools.islice(loaded, len(run))))
            self._loaded.append(Missing(record_id) if data is None else Chunk(record_id, run[0], data))

    def _queue(self, queue: deque[_T], item: _T, *, is_room: bool = True) -> bool:
        """Whether it was queued. Who asks for more than it reads is cut off rather than buffered without end."""
        if self.closed_because is not None:
            return False
        if len(queue) >= MAX_QUEUED or not is_room:
            for waiting in (self._frames, self._records, self._chunks, self._loaded):
                waiting.clear()
            self._entries = 0
            self.close("it asks for more than it reads")
            return False
        queue.append(item)
        self._wake.set()
        return True


def _joined(parts: Sequence[bytes | None]) -> bytes | None:
    """The parts in one, None if any is gone."""
    there = [part for part in parts if part is not None]
    return b"".join(there) if len(there) == len(parts) else None
