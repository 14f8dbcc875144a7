"""A user-space TCP proxy that makes the line between two real processes as bad as a test wants it.

    with Proxy(upstream, both_ways(Line(loss=0.2)), seed=7) as proxy:
        ...                                # let the dialing side use proxy.address
        proxy.faults = Faults(out=Line(is_dead=True))
        proxy.cut(Cut.FIN)

It listens on loopback, dials `upstream` once for every connection that it takes, and carries bytes both ways. `out` is
the direction from whoever dialed, `back` the other one. Faults may change at any time and hold for live connections
too. A link that is one-way needs no fault: give the address of the proxy to one side only.

What is modeled, and how. A proxy ends TCP on both sides, so it cannot drop packets; it plays what TCP makes of them.

* Bytes cross in segments of at most 1,448 bytes, in order, as on an Ethernet.
* A lost segment arrives after a retransmission timeout of 200 ms plus the round trip, doubled for every further loss of
  the same segment (RFC 6298, with Linux's minimum), and everything behind it waits. There is no fast retransmission: it
  takes three later segments in flight, and at 20 % loss the congestion window, about sqrt(3 / (2 * loss)) (Mathis et
  al. 1997), is under three. So this is right at heavy loss and too harsh at 1 %. A connection that loses one segment 16
  times in a row is dead: both ends see a reset, after a quarter of an hour. A lost acknowledgement costs nothing: the
  next one covers it.
* The handshake of TCP is lost with the SYN or its answer and tried again after 1 s, 2 s, 4 s ...; the dialing process
  sees a connection that says nothing for so long.
* A thin line carries payload at the rate given, each way, shared by all connections of the proxy. Before it at most
  64 segments and the smallest socket buffers wait, so a sender that is too fast is held back, as by a real line.
* A dead direction delivers nothing: neither bytes, nor the end of the stream, nor a reset. What was sent meanwhile
  arrives when the line is back, since TCP would repeat it. Acknowledgements are not modeled: while one direction is
  dead the other still carries bytes.
* Corruption flips one bit of a segment, past the checksum of TCP.
* An upstream that refuses shows as a reset to the dialing side, which was accepted already.

Everything drawn comes from `seed`, the number of the connection and its direction. What a segment holds depends on how
the processes write, so runs of real processes are alike, not equal.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

SEGMENT_BYTES: Final = 1448
QUEUE_SEGMENTS: Final = 64
"""Segments on their way in one direction of a connection: a line with a longer delay than this fills is slower."""
SOCKET_BUFFER_BYTES: Final = 4096
RETRANSMIT_S: Final = 0.2
RETRANSMIT_MAX_S: Final = 120.0
RETRANSMISSIONS: Final = 15
HANDSHAKE_RETRY_S: Final = 1.0
HANDSHAKE_TRIES: Final = 7
FIN_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Line:
    """What one direction does to segments."""

    loss: float = 0.0
    """Share of segments lost."""
    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Up to so much more delay, drawn evenly; order is kept."""
    bytes_per_s: float = math.inf
    corruption: float = 0.0
    """Share of segments in which one bit is flipped."""
    is_dead: bool = False


class Cut(enum.Enum):
    """How a connection ends that is cut."""

    RST = "reset"
    FIN = "end of stream"


@dataclass(frozen=True, slots=True)
class Faults:
    """What a proxy does to its connections."""

    out: Line = Line()
    back: Line = Line()
    refuses: bool = False
    """Nothing listens: a dial is refused. Live connections stay."""
    cut_every_s: float | None = None
    """All connections are cut at once, again and again."""
    cut_by: Cut = Cut.RST


def both_ways(line: Line, *, cut_every_s: float | None = None, cut_by: Cut = Cut.RST) -> Faults:
    """Faults that are the same in both directions."""
    return Faults(line, line, cut_every_s=cut_every_s, cut_by=cut_by)


@dataclass(slots=True)
class Traffic:
    """What crossed in one direction so far."""

    taken_bytes: int = 0
    delivered_bytes: int = 0
    segments: int = 0
    lost: int = 0
    corrupted: int = 0


class _Dead(Exception):
    """The connection is over for both ends."""


@dataclass
class _Way:
    """One direction of all connections of a proxy: its line, its traffic, and when the line is free again."""

    line: Callable[[], Line]
    other_line: Callable[[], Line]
    traffic: Traffic = field(default_factory=Traffic)
    free_at: float = 0.0

    @property
    def round_trip_s(self) -> float:
        return self.line().delay_s + self.other_line().delay_s


class _Flow:
    """One direction of one connection: takes segments from `source`, hands them to `sink`."""

    def __init__(
        self, way: _Way, rng: random.Random, source: socket.socket, sink: socket.socket, changed: _Changes
    ) -> None:
        self._way = way
        self._rng = rng
        self._source = source
        self._sink = sink
        self._changed = changed
        self._queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_SEGMENTS)
        self._due = 0.0

    async def take(self) -> None:
        """Read until the source ends; what it says last is the empty segment."""
        loop = asyncio.get_running_loop()
        while True:
            data = await loop.sock_recv(self._source, SEGMENT_BYTES)
            self._way.traffic.taken_bytes += len(data)
            await self._cross(len(data))
            line = self._way.line()
            delay_s = line.delay_s + self._rng.uniform(0.0, line.jitter_s)
            self._due = max(self._due, loop.time() + delay_s)
            await self._queue.put((self._due, self._corrupted(data)))
            if not data:
                return

    async def deliver(self) -> None:
        """Write until the end of the stream was passed on."""
        loop = asyncio.get_running_loop()
        while True:
            due, data = await self._queue.get()
            await asyncio.sleep(due - loop.time())
            await self.passable()
            if not data:
                self._sink.shutdown(socket.SHUT_WR)
                return
            self._way.traffic.delivered_bytes += len(data)
            await loop.sock_sendall(self._sink, data)

    async def passable(self) -> None:
        """Wait while the line is dead."""
        while self._way.line().is_dead:
            await self._changed.wait()

    async def _cross(self, size: int) -> None:
        """The time until a segment of `size` bytes is through: once on the line for every try, and the timeouts."""
        timeout_s = RETRANSMIT_S + self._way.round_trip_s
        for _ in range(RETRANSMISSIONS + 1):
            await self._occupy(size)
            self._way.traffic.segments += 1
            if self._rng.random() >= self._way.line().loss:
                return
            self._way.traffic.lost += 1
            await asyncio.sleep(timeout_s)
            timeout_s = min(2 * timeout_s, RETRANSMIT_MAX_S)
        raise _Dead

    async def _occupy(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._way.free_at = max(self._way.free_at, now) + size / self._way.line().bytes_per_s
        if self._way.free_at > now:
            await asyncio.sleep(self._way.free_at - now)

    def _corrupted(self, data: bytes) -> bytes:
        if not data or self._rng.random() >= self._way.line().corruption:
            return data
        self._way.traffic.corrupted += 1
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._rng.randrange(8)]) + data[at + 1 :]


class _Changes:
    """Lets flows wait until the faults are others."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()

    def tell(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


class _Connection:
    """One connection through the proxy: two sockets, two flows."""

    def __init__(self, near: socket.socket, far: socket.socket, out: _Flow, back: _Flow) -> None:
        self._sockets = (near, far)
        self._out = out
        self._back = back
        self._cut: asyncio.Future[Cut] = asyncio.get_running_loop().create_future()

    def cut(self, by: Cut) -> None:
        """End it now; what is on the line is lost."""
        if not self._cut.done():
            self._cut.set_result(by)

    async def run(self, shake_hands: Callable[[], Awaitable[None]]) -> None:
        """Carry bytes until both ends are done, or one is gone, or the connection is cut."""
        carrying = asyncio.create_task(self._carry(shake_hands))
        is_over = False
        try:
            await asyncio.wait({carrying, self._cut}, return_when=asyncio.FIRST_COMPLETED)
            if self._cut.done():
                await _cancelled(carrying)
                if self._cut.result() is Cut.FIN:
                    await asyncio.gather(*(_end_politely(one) for one in self._sockets))
                    is_over = True
            else:
                is_over = await carrying
        finally:
            await _cancelled(carrying)
            for one in self._sockets:
                if not is_over:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                one.close()

    async def _carry(self, shake_hands: Callable[[], Awaitable[None]]) -> bool:
        """Whether the stream was over both ways; False if an end was reset, or the line gave up."""
        flows = []
        try:
            await shake_hands()
            flows = [
                asyncio.create_task(_flow(self._out, self._back)),
                asyncio.create_task(_flow(self._back, self._out)),
            ]
            await asyncio.gather(*flows)
        except (_Dead, OSError):
            return False
        finally:
            await _cancelled(*flows)
        return True


async def _flow(flow: _Flow, other: _Flow) -> None:
    """Run one direction. A reset by either end crosses like everything else: not while its direction is dead."""
    taking, delivering = asyncio.create_task(flow.take()), asyncio.create_task(flow.deliver())
    try:
        await asyncio.wait({taking, delivering}, return_when=asyncio.FIRST_EXCEPTION)
        if delivering.done() and delivering.exception() is not None:
            await other.passable()  # the sink is gone, and its reset goes the other way
        elif taking.done() and taking.exception() is not None:
            await flow.passable()
        await asyncio.gather(taking, delivering)
    finally:
        await _cancelled(taking, delivering)


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Proxy:
    """Listens on `address` and carries every connection to `upstream`, with faults. Use as a context."""

    def __init__(self, upstream: str, faults: Faults | None = None, *, seed: int = 0, host: str = "127.0.0.1") -> None:
        self.upstream = upstream
        self.connections = 0
        """Connections taken so far."""
        self.cuts = 0
        """Connections cut so far."""
        self._faults = faults or Faults()
        self._seed = seed
        self._host = host
        self._port = 0
        self._out = _Way(lambda: self._faults.out, lambda: self._faults.back)
        self._back = _Way(lambda: self._faults.back, lambda: self._faults.out)
        self._listener: socket.socket | None = None
        self._live: dict[_Connection, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._mistakes: list[Exception] = []

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._mistakes and error is None:
            raise self._mistakes[0]

    @property
    def address(self) -> str:
        """HOST:PORT of the near side."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    @property
    def faults(self) -> Faults:
        """What is done to connections; may be set at any time."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._call(self._apply(faults))

    @property
    def out(self) -> Traffic:
        """What crossed from the dialing side."""
        return self._out.traffic

    @property
    def back(self) -> Traffic:
        """What crossed to the dialing side."""
        return self._back.traffic

    @property
    def live(self) -> int:
        """Connections that are open now."""
        return len(self._live)

    def cut(self, by: Cut = Cut.RST) -> None:
        """Cut all connections that are open now."""
        self._call(self._cut_all(by))

    def _call(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    # ------------------------------------------------------------------------------------- all below: on the loop

    async def _start(self) -> None:
        self._changed = _Changes()
        self._listen()
        if self._faults.refuses:
            self._deafen()
        self._cutting = asyncio.create_task(self._keep_cutting())

    async def _stop(self) -> None:
        self._deafen()
        await _cancelled(self._cutting, *self._live.values())

    async def _apply(self, faults: Faults) -> None:
        self._faults = faults
        if faults.refuses:
            self._deafen()
        elif self._listener is None:
            self._listen()
        self._changed.tell()

    async def _cut_all(self, by: Cut) -> None:
        for connection in self._live:
            connection.cut(by)
            self.cuts += 1

    def _listen(self) -> None:
        listener = _small_socket(self._host)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, self._port))
        listener.listen()
        self._loop.add_reader(listener, self._accept, listener)
        self._port = listener.getsockname()[1]
        self._listener = listener

    def _deafen(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            near, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # who dialed is gone
        number, self.connections = self.connections, self.connections + 1
        near.setblocking(False)
        host, _, port = self.upstream.rpartition(":")
        host = host.strip("[]")
        far = _small_socket(host)
        rngs = [random.Random(f"{self._seed}/{number}/{way}") for way in ("out", "back", "handshake")]  # noqa: S311
        out = _Flow(self._out, rngs[0], near, far, self._changed)
        back = _Flow(self._back, rngs[1], far, near, self._changed)
        connection = _Connection(near, far, out, back)

        async def handshake() -> None:
            await self._shake_hands(rngs[2], out, back)
            await self._loop.sock_connect(far, (host, int(port)))

        self._live[connection] = self._loop.create_task(self._run(connection, handshake))

    async def _run(self, connection: _Connection, shake_hands: Callable[[], Awaitable[None]]) -> None:
        try:
            await connection.run(shake_hands)
        except Exception as error:  # noqa: BLE001 - a mistake in this file: told when the context ends
            self._mistakes.append(error)
        finally:
            del self._live[connection]

    async def _shake_hands(self, rng: random.Random, out: _Flow, back: _Flow) -> None:
        wait_s = HANDSHAKE_RETRY_S
        for _ in range(HANDSHAKE_TRIES):
            await out.passable()
            await back.passable()
            if rng.random() >= self._faults.out.loss and rng.random() >= self._faults.back.loss:
                await asyncio.sleep(self._out.round_trip_s)
                return
            await asyncio.sleep(wait_s)
            wait_s *= 2
        raise _Dead

    async def _keep_cutting(self) -> None:
        while True:
            every_s = self._faults.cut_every_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._changed.wait()
                    continue
            await self._cut_all(self._faults.cut_by)


def _small_socket(host: str) -> socket.socket:
    """A socket that holds little, and announces the segments of an Ethernet, so that the sender holds little too."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        made.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


async def _end_politely(one: socket.socket) -> None:
    """Say that the stream is over and read on until the other side says so too: unread bytes would make it a reset."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        one.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(FIN_WAIT_S):
            while await loop.sock_recv(one, SEGMENT_BYTES):
                pass
