"""The peer of P3: one bare gRPC stream between two processes that carries the chunk frames of gossip and drops them.

The same library, credentials, channel options, message type and message size as a link of two nodes, and nothing else:
no protocol, no checks, no store, no limit to what is in flight. `goodput` runs one process of each part:

    python -m benchmarks.bare_stream source HOME MEGABYTES          listens, prints its port, serves one stream
    python -m benchmarks.bare_stream sink HOME KEY PORT MEGABYTES   dials it, prints the seconds that all bytes took
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
from crypto.tls import anchor_pem, make_leaf
from node.client import Dialer
from node.config import CHUNK_BYTES
from node.home import Home
from node.pb import tidings_pb2 as pb
from node.pb import tidings_pb2_grpc as rpc
from node.server import GRPC_OPTIONS

MEGABYTE = 1_048_576
_add_servicer: Callable[..., None] = rpc.add_NodeServicer_to_server  # generated without types


class _Source(rpc.NodeServicer):
    """Sends every chunk of `data` to whoever opens a stream, as fast as it is taken."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.is_done = asyncio.Event()

    async def Exchange(  # noqa: N802 - the name is the wire contract's
        self, request_iterator: AsyncIterator[pb.Frame], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.Frame]:
        await context.send_initial_metadata(())
        for index, start in enumerate(range(0, len(self._data), CHUNK_BYTES)):
            yield pb.Frame(chunk=pb.Chunk(id=bytes(32), index=index, data=self._data[start : start + CHUNK_BYTES]))
        self.is_done.set()


async def source(home: Home, megabytes: int) -> None:
    """Serve one stream and leave."""
    leaf = make_leaf(home.keystore.identity)
    (peer,) = home.store.peers()
    credentials = grpc.ssl_server_credentials(
        [(leaf.private_key_pem, leaf.certificate_pem)], anchor_pem(peer.key), require_client_auth=True
    )
    server = grpc.aio.server(options=GRPC_OPTIONS)
    servicer = _Source(os.urandom(megabytes * MEGABYTE))
    _add_servicer(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await servicer.is_done.wait()
    await server.stop(10)


async def sink(home: Home, peer: PublicKey, port: int, megabytes: int) -> None:
    """Take one stream and say how long it took from its first answer to its last byte."""
    received = 0
    async with Dialer.for_identity(home.keystore.identity).channel(peer, f"127.0.0.1:{port}") as channel:
        call = rpc.NodeStub(channel).Exchange()  # type: ignore[no-untyped-call]
        await call.initial_metadata()
        started = time.perf_counter()
        async for message in call:
            received += len(message.chunk.data)
        took_s = time.perf_counter() - started
    if received != megabytes * MEGABYTE:
        raise RuntimeError(f"{received} bytes arrived")
    print(took_s, flush=True)


def main(words: list[str]) -> None:
    """The command line above."""
    match words:
        case ["source", path, megabytes]:
            asyncio.run(source(Home.open(Path(path)), int(megabytes)))
        case ["sink", path, key, port, megabytes]:
            asyncio.run(sink(Home.open(Path(path)), PublicKey.parse(key), int(port), int(megabytes)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
