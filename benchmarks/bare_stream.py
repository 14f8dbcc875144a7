"""The peers of P3: one bare gRPC stream between two processes that carries chunk frames of gossip, and drops them; or
keeps them, as plainly as any store that checks what it is given.

The same library, credentials, channel options and message type as a link of two nodes, and nothing else: no protocol,
no limit to what is in flight. A sink that keeps hashes every chunk once, writes every byte once, and waits for the disk
once a body: nobody who vouches for what arrived can do less. `goodput` runs one process of each part:

    python -m benchmarks.bare_stream source HOME MEGABYTES BYTES          listens, prints its port, serves one stream of
                                                                          messages of so many bytes, prints its CPU time
    python -m benchmarks.bare_stream sink HOME KEY PORT MEGABYTES [DIR]   dials it, prints the seconds until all was
                                                                          here (kept in DIR) and its CPU time
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio

from crypto.keys import PublicKey
from crypto.sealing import chunk_hash
from crypto.tls import anchor_pem, make_leaf
from node.client import Dialer
from node.config import CHUNK_BYTES
from node.home import Home
from node.pb import tidings_pb2 as pb
from node.pb import tidings_pb2_grpc as rpc
from node.server import GRPC_OPTIONS

MEGABYTE = 1_048_576
KEPT_BODY_BYTES = 8 * MEGABYTE
_add_servicer: Callable[..., None] = rpc.add_NodeServicer_to_server  # generated without types


class _Source(rpc.NodeServicer):
    """Sends `data` in messages of so many bytes to whoever opens a stream, as fast as they are taken."""

    def __init__(self, data: bytes, message_bytes: int) -> None:
        self._data = data
        self._message_bytes = message_bytes
        self.is_done = asyncio.Event()

    async def Exchange(  # noqa: N802 - the name is the wire contract's
        self, request_iterator: AsyncIterator[pb.Frame], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.Frame]:
        await context.send_initial_metadata(())
        size = self._message_bytes
        for start in range(0, len(self._data), size):
            index = start // CHUNK_BYTES
            yield pb.Frame(chunk=pb.Chunk(id=bytes(32), index=index, data=self._data[start : start + size]))
        self.is_done.set()


class _Keeper:
    """Keeps what arrives in files of one body each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = 0
        self._file = -1

    def keep(self, data: bytes) -> None:
        """Hash its chunks and write them down; after the last of a body wait for the disk."""
        for start in range(0, len(data), CHUNK_BYTES):
            chunk_hash(data[start : start + CHUNK_BYTES])
        if self._kept % KEPT_BODY_BYTES == 0:
            name = self._folder / f"{self._kept // KEPT_BODY_BYTES}"
            self._file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            os.posix_fallocate(self._file, 0, KEPT_BODY_BYTES)
        os.write(self._file, data)
        self._kept += len(data)
        if self._kept % KEPT_BODY_BYTES == 0:
            os.fdatasync(self._file)
            os.close(self._file)


async def source(home: Home, megabytes: int, message_bytes: int) -> None:
    """Serve one stream and leave."""
    leaf = make_leaf(home.keystore.identity)
    (peer,) = home.store.peers()
    credentials = grpc.ssl_server_credentials(
        [(leaf.private_key_pem, leaf.certificate_pem)], anchor_pem(peer.key), require_client_auth=True
    )
    server = grpc.aio.server(options=GRPC_OPTIONS)
    servicer = _Source(os.urandom(megabytes * MEGABYTE), message_bytes)
    _add_servicer(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    before_s = time.process_time()
    await servicer.is_done.wait()
    await server.stop(10)
    print(time.process_time() - before_s, flush=True)


async def sink(home: Home, peer: PublicKey, port: int, megabytes: int, keeper: _Keeper | None) -> None:
    """Take one stream; say how long it took from its first answer to its last byte, and how much CPU time."""
    received = 0
    async with Dialer.for_identity(home.keystore.identity).channel(peer, f"127.0.0.1:{port}") as channel:
        call = rpc.NodeStub(channel).Exchange()  # type: ignore[no-untyped-call]
        await call.initial_metadata()
        started, before_s = time.perf_counter(), time.process_time()
        async for message in call:
            data = message.chunk.data
            received += len(data)
            if keeper is not None:
                keeper.keep(data)
        took_s, cpu_s = time.perf_counter() - started, time.process_time() - before_s
    if received != megabytes * MEGABYTE:
        raise RuntimeError(f"{received} bytes arrived")
    print(took_s, cpu_s, flush=True)


def main(words: list[str]) -> None:
    """The command line above."""
    match words:
        case ["source", path, megabytes, message_bytes]:
            asyncio.run(source(Home.open(Path(path)), int(megabytes), int(message_bytes)))
        case ["sink", path, key, port, megabytes, *folder]:
            keeper = _Keeper(Path(folder[0])) if folder else None
            asyncio.run(sink(Home.open(Path(path)), PublicKey.parse(key), int(port), int(megabytes), keeper))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
