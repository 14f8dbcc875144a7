"""A member that floods: an identity that the victim has added, and HTTP/2 by hand.

No client library stands in its way: it packs as many messages into a write as fit, keeps to no rule of the protocol,
and comes back at once whenever it is thrown out. What HTTP/2's flow control does not let through, it cannot send.

    python -m benchmarks.hostile SEED HOST:PORT KIND SECONDS CONNECTIONS

prints one line of JSON: how many frames it offered and sent, and how often it connected.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import ssl
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from crypto.keys import Identity
from crypto.tls import make_leaf
from node import wire
from node.config import MAX_ADVERTS, MAX_ORIGINS, MAX_WANT
from node.frames import Advert, Announce, Chunk, Digest, Frame, Hello, OriginVector, Records, SignedRecord, Vector, Want
from node.records import Header, Kind, Record, with_body

EXCHANGE, QUERY = "/tidings.v1.Node/Exchange", "/tidings.v1.Node/Query"
VARIETY = 64
"""Different frames of a kind, sent again and again."""
WRITE_BYTES = 16_384
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8


# -------------------------------------------------------------------------------------------------------- what it sends


def header_of(identity: Identity, sequence: int, body: bytes = b"") -> Header:
    """A valid header of its own: of a small body if one is given, else a withdrawal of nothing."""
    shared = {"origin": identity.public_key, "incarnation": b"flooding", "sequence": sequence, "created_unix_ms": 0}
    if body:
        return with_body(Header(kind=Kind.SUMMARY, task_id=bytes(32), epoch=1, **shared), body, bytes(32))
    return Header(kind=Kind.WITHDRAWAL, supersedes=os.urandom(32), **shared)


def signed(record: Record) -> SignedRecord:
    """As a Records frame carries it."""
    return SignedRecord(record.header_bytes, record.signature)


def _bad_signature(identity: Identity, number: int) -> Frame:
    record = wire.author(identity, header_of(identity, number + 1))
    return Records((SignedRecord(record.header_bytes, os.urandom(64)),))


def frames(kind: str, identity: Identity) -> list[bytes]:
    """Messages of a kind of flood; after the first Hello, none of them does anybody any good."""
    body = os.urandom(60_000)
    big = wire.author(identity, header_of(identity, 1_000_000, body))
    make = {
        "garbage": lambda _: os.urandom(60),
        "malformed": lambda _: _encoded(Digest(os.urandom(32)))[:-4] + os.urandom(2),
        "wrong lengths": lambda _: _encoded(Digest(os.urandom(31))),
        "bad signatures": lambda number: _encoded(_bad_signature(identity, number)),
        "wrong chunks": lambda number: _encoded(Chunk(big.id, number % 3, os.urandom(16_384))),
        "unasked chunks": lambda _: _encoded(Chunk(os.urandom(32), 0, os.urandom(16_384))),
        "unknown fields": lambda _: b"\xfa\x07\x20" + os.urandom(32),
        "empty": lambda _: b"",
        "hellos": lambda _: _encoded(Hello(1, bytes(8))),
        "digests": lambda _: _encoded(Digest(os.urandom(32), os.urandom(32))),
        "vectors": lambda _: _encoded(Vector(tuple(_vectors(300)), reply=False)),
        "announces": lambda _: _encoded(Announce(tuple(_adverts(identity)))),
        "wants": lambda _: _encoded(Want(tuple(os.urandom(32) for _ in range(MAX_WANT)))),
        "oversize": lambda _: bytes(300_000),
        "connections": lambda _: b"",
        "queries": lambda _: b"\x2a\x06pickle",
    }[kind]
    opening = {"wrong chunks": [_encoded(Records((signed(big),)))]}.get(kind, [])
    return opening + [make(number) for number in range(VARIETY)]


KINDS = (
    *("garbage", "malformed", "wrong lengths", "bad signatures", "wrong chunks", "unasked chunks", "unknown fields"),
    *("empty", "hellos", "digests", "vectors", "announces", "wants", "oversize", "connections", "queries"),
)


CONTROL = "nobody"
"""No flood at all: how much what is measured varies by itself."""


def _encoded(frame: Frame) -> bytes:
    return wire.frame_to_pb(frame).SerializeToString()


def _vectors(count: int) -> Iterator[OriginVector]:
    for origin in sorted(os.urandom(32) for _ in range(min(count, MAX_ORIGINS))):
        yield OriginVector(origin, os.urandom(32), ((b"flooding", ((1, 2**62),)),))


def _adverts(identity: Identity) -> Iterator[Advert]:
    for _ in range(MAX_ADVERTS):
        yield Advert(os.urandom(32), Kind.SUMMARY, identity.public_key.raw, 100_000)


# ------------------------------------------------------------------------------------------------------ how it sends it


@dataclass
class Tally:
    """What came of it."""

    sent: int = 0
    connections: int = 0
    streams: int = 0
    refused_connections: int = 0
    seconds: float = 0.0


class Connection:
    """One HTTP/2 connection, and what the victim lets through it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tally: Tally) -> None:
        self._reader, self._writer, self._tally = reader, writer, tally
        self._window = self._first_window = 65_535
        self._streams: dict[int, int] = {}
        self._next = 1
        self._moved = asyncio.Event()
        self.is_open = True

    def start(self) -> asyncio.Task[None]:
        """Greet, and listen to what the victim has to say."""
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b""))
        return asyncio.create_task(self._listen())

    async def flood(self, path: str, messages: list[bytes], *, is_greeted: bool) -> None:
        """Open a stream and fill it until the victim ends it."""
        number, self._next = self._next, self._next + 2
        self._streams[number] = self._first_window
        self._tally.streams += 1
        self._writer.write(_frame(HEADERS, 4, number, _headers(path)))
        endless = itertools.cycle(messages)
        greeting = [_encoded(Hello(1, bytes(8)))] if is_greeted else []
        pending = b"".join(map(_message, greeting))
        waiting = len(greeting)
        while self.is_open and number in self._streams:
            while len(pending) < WRITE_BYTES:
                pending += _message(next(endless))
                waiting += 1
            size = min(WRITE_BYTES, self._window, self._streams[number])
            if size <= 0:
                self._moved.clear()
                await self._moved.wait()
                continue
            self._window -= size
            self._streams[number] -= size
            self._writer.write(_frame(DATA, 0, number, pending[:size]))
            share = waiting * size // len(pending)
            pending, waiting = pending[size:], waiting - share
            self._tally.sent += share
            await self._writer.drain()
            await asyncio.sleep(0)

    def knock(self, path: str) -> None:
        """Open a stream and say nothing."""
        self._tally.streams += 1
        self._writer.write(_frame(HEADERS, 4, self._next, _headers(path)))
        self._next += 2

    async def call(self, path: str, message: bytes) -> None:
        """One whole request; returns when the victim has answered."""
        number, self._next = self._next, self._next + 2
        self._streams[number] = self._first_window
        self._tally.streams += 1
        self._tally.sent += 1
        self._writer.write(_frame(HEADERS, 4, number, _headers(path)) + _frame(DATA, 1, number, _message(message)))
        while self.is_open and number in self._streams:
            self._moved.clear()
            await self._moved.wait()

    async def _listen(self) -> None:
        try:
            while self.is_open:
                head = await self._reader.readexactly(9)
                size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                self._heard(kind, flags, int.from_bytes(head[5:], "big"), await self._reader.readexactly(size))
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.is_open = False
            self._moved.set()

    def _heard(self, kind: int, flags: int, stream: int, content: bytes) -> None:
        if kind == SETTINGS and not flags & 1:
            for setting, value in struct.iter_unpack(">HI", content):
                if setting == 4:
                    for number in self._streams:
                        self._streams[number] += value - self._first_window
                    self._first_window = value
            self._writer.write(_frame(SETTINGS, 1, 0, b""))
        elif kind == PING and not flags & 1:
            self._writer.write(_frame(PING, 1, 0, content))
        elif kind == WINDOW and stream == 0:
            self._window += int.from_bytes(content, "big")
        elif kind == WINDOW and stream in self._streams:
            self._streams[stream] += int.from_bytes(content, "big")
        elif kind == DATA and content:
            more = len(content).to_bytes(4, "big")
            self._writer.write(_frame(WINDOW, 0, 0, more) + _frame(WINDOW, 0, stream, more))
        if kind == GOAWAY:
            self.is_open = False
        if kind == RST or (kind in (DATA, HEADERS) and flags & 1):
            self._streams.pop(stream, None)
        self._moved.set()


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + content


def _headers(path: str) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "victim",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(
        b"\x10" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields.items()
    )


def _message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


# ------------------------------------------------------------------------------------------------------- how it behaves


async def attack(identity: Identity, address: str, kind: str, seconds: float, connections: int) -> Tally:
    """Flood from so many connections at once."""
    tally = Tally()
    if kind == CONTROL:
        await asyncio.sleep(seconds)
        tally.seconds = seconds
        return tally
    messages = frames(kind, identity)
    context = _context(identity)
    until = time.monotonic() + seconds
    started = time.monotonic()
    tasks = [
        asyncio.create_task(_come_back(context, address, kind, messages, until, tally)) for _ in range(connections)
    ]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tally.seconds = time.monotonic() - started
    return tally


async def _come_back(
    context: ssl.SSLContext, address: str, kind: str, messages: list[bytes], until: float, tally: Tally
) -> None:
    host, _, port = address.rpartition(":")
    while time.monotonic() < until:
        try:
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="victim")
        except OSError:
            tally.refused_connections += 1
            await asyncio.sleep(0.01)
            continue
        tally.connections += 1
        connection = Connection(reader, writer, tally)
        listening = connection.start()
        try:
            if kind == "queries":
                await asyncio.gather(*(_ask(connection, messages[0]) for _ in range(100)))
            # Most floods say what they can over a connection until it ends; one does nothing but connect.
            while connection.is_open and kind != "queries":
                if kind == "connections":
                    connection.knock(EXCHANGE)
                    break
                await connection.flood(EXCHANGE, messages, is_greeted=kind != "empty")
        except (OSError, ssl.SSLError):
            pass
        finally:
            listening.cancel()
            if kind == "connections":
                await asyncio.sleep(0)
            writer.transport.abort()


async def _ask(connection: Connection, message: bytes) -> None:
    while connection.is_open:
        await connection.call(QUERY, message)


def _context(identity: Identity) -> ssl.SSLContext:
    """It proves its own key, and does not care who the victim is."""
    leaf = make_leaf(identity)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as scratch:
        certificate, key = Path(scratch) / "leaf.pem", Path(scratch) / "key.pem"
        certificate.write_bytes(leaf.certificate_pem)
        key.touch(mode=0o600)
        key.write_bytes(leaf.private_key_pem)
        context.load_cert_chain(certificate, key)
    return context


def main(words: list[str]) -> None:
    """Attack as the arguments say."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a connection that ended is what it is about
    seed, address, kind, seconds, connections = words
    identity = Identity.from_seed(bytes.fromhex(seed))
    tally = asyncio.run(attack(identity, address, kind, float(seconds), int(connections)))
    print(json.dumps(asdict(tally)))


if __name__ == "__main__":
    main(sys.argv[1:])
