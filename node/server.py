"""The gRPC server: authenticates whoever connects, then carries frames to the hub and answers queries.

Two gates, both needed. TLS lets in only certificates that chain to the key of a peer known when the port was last
opened. Then every call checks again who is speaking (`crypto.tls.peer_identity`), because with several trust anchors
one trusted peer could present a certificate naming another, and because a long-lived connection outlives the removal
of its peer.

What TLS trusts never changes while a port is open: gRPC's credentials that can be reloaded free what another handshake
still reads (docs/adr/0012), and anybody who opens connections could make the process crash.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from crypto.errors import CryptoError
from crypto.keys import Identity, PublicKey
from crypto.tls import anchor_pem, make_leaf, peer_identity
from node import wire
from node.bandwidth import Bandwidth
from node.config import (
    ANSWER_PACE,
    ANSWER_STALL_S,
    FRAME_LIMIT_BYTES,
    KEEPALIVE_S,
    KEEPALIVE_TIMEOUT_S,
    QUERY_CHUNK_BYTES,
)
from node.errors import AskLater, NodeError, QueryRefused, UsageError
from node.frames import Query
from node.link import Hub, Link
from node.pb import tidings_pb2 as pb
from node.pb import tidings_pb2_grpc as rpc

MAX_STREAMS = 32
"""Calls at once on one connection; a link is one, and so is each query under way."""

GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", FRAME_LIMIT_BYTES),
    ("grpc.max_send_message_length", FRAME_LIMIT_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),  # an answer is awaited for a minute otherwise
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_S * 500),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
)


REFUSAL_S = 0.5
"""How long a refused query waits for its refusal: with `MAX_STREAMS` it bounds what a key costs that goes on asking."""

LINK_METADATA = ("tidings-link", "1")
"""Sent at once when a stream is taken, so that the dialing side knows before the first frame."""

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Doors:
    """What the server asks of the daemon: who may come in, and for what."""

    admitted: Callable[[], frozenset[PublicKey]]
    """Every peer that may connect at all: members and query-only peers."""
    answer: Callable[[PublicKey, Query], AsyncGenerator[bytes | str, None]]
    """Answers a query: progress as text, then the model file's bytes; raises QueryRefused."""


RETIRED_S = 365 * 86_400.0
"""How long calls may last that began before the peers changed: links, which live for as long as both sides like."""
REOPEN_S, REOPEN_TRIES = 0.05, 20
"""How soon, and how often, a port that is still closing is tried again."""


class NodeServer:
    """Listens on one address for peers of this node."""

    def __init__(self, identity: Identity, hub: Hub, doors: Doors, bandwidth: Bandwidth | None = None) -> None:
        self._identity = identity
        self._hub = hub
        self._doors = doors
        self._bandwidth = bandwidth
        self._leaf = make_leaf(identity)
        self._address = ""
        self._trusted: frozenset[PublicKey] = frozenset()
        self._server: grpc.aio.Server | None = None
        self._retired: dict[grpc.aio.Server, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()

    async def start(self, listen: str) -> int:
        """Bind `listen` (HOST:PORT) and serve; returns the port. UsageError when the address cannot be had."""
        async with self._turn:
            try:
                port = await self._open(listen)
            except RuntimeError as error:
                raise UsageError(
                    f"Cannot listen on {listen}: the port is in use or the address is not this machine's; "
                    "stop what holds it or choose another with --listen."
                ) from error
        self._address = f"{listen.rpartition(':')[0]}:{port}"
        return port

    async def readmit(self) -> bool:
        """Open the port anew for whoever is admitted now, if that has changed; calls in progress go on.

        Returns whether this node listens, if it is to listen at all; if not, somebody else took the port: try again.
        """
        async with self._turn:
            if not self._address or (self._server is not None and self._trusted == self._doors.admitted()):
                return True
            if self._server is not None:
                self._retire(self._server)
                self._server = None
            for _ in range(REOPEN_TRIES):
                await asyncio.sleep(REOPEN_S)  # until the old one has let go of the port
                with contextlib.suppress(RuntimeError):
                    await self._open(self._address)
                    return True
            return False

    async def stop(self, grace_s: float) -> None:
        """Stop accepting, give calls `grace_s` seconds, then cut them."""
        async with self._turn:
            self._address = ""
            if self._server is not None:
                self._retire(self._server)
                self._server = None
            if self._retired:
                await asyncio.wait(self._retired.values(), timeout=grace_s)
            for server, waiting in list(self._retired.items()):
                waiting.cancel()
                await server.stop(None)

    async def _open(self, listen: str) -> int:
        """A server that trusts whoever is admitted now; RuntimeError if it cannot have the address."""
        server = grpc.aio.server(options=(*GRPC_OPTIONS, ("grpc.so_reuseport", 0)))
        add_servicer: Callable[..., None] = rpc.add_NodeServicer_to_server  # generated without types
        add_servicer(_Servicer(self._hub, self._doors, self._bandwidth), server)
        trusted = self._doors.admitted()
        # This node's own anchor is always in, since gRPC takes an empty list for "trust nobody yet" only by failing.
        anchors = b"".join(anchor_pem(key) for key in sorted({*trusted, self._identity.public_key}))
        pair = (self._leaf.private_key_pem, self._leaf.certificate_pem)
        credentials = grpc.ssl_server_credentials([pair], anchors, require_client_auth=True)
        port = server.add_secure_port(listen, credentials)
        await server.start()
        self._server, self._trusted = server, trusted
        return port

    def _retire(self, server: grpc.aio.Server) -> None:
        """Close its port at once, and the server once its last call is over."""
        waiting = asyncio.create_task(server.stop(RETIRED_S))
        self._retired[server] = waiting
        waiting.add_done_callback(lambda _: self._retired.pop(server, None))


class _Servicer(rpc.NodeServicer):
    def __init__(self, hub: Hub, doors: Doors, bandwidth: Bandwidth | None) -> None:
        self._hub = hub
        self._doors = doors
        self._bandwidth = bandwidth

    async def Exchange(  # noqa: N802 - the name is the wire contract's
        self, request_iterator: AsyncIterator[pb.Frame], context: Context
    ) -> AsyncIterator[pb.Frame]:
        peer = await self._authenticate(context)
        if not self._hub.may_exchange(peer):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "This key may ask for models but not gossip.")
        await context.send_initial_metadata((LINK_METADATA,))
        allowance = self._bandwidth.of(peer) if self._bandwidth else None
        link = Link(peer, self._hub, dialed_by_us=False, allowance=allowance)
        reader = asyncio.create_task(_receive(link, request_iterator))
        self._hub.link_up(link)
        try:
            async for message in link.outgoing():
                yield message
        finally:
            reader.cancel()
            self._hub.link_down(link, link.closed_because or "the connection was lost")

    async def Query(  # noqa: N802 - the name is the wire contract's
        self, request: pb.QueryRequest, context: Context
    ) -> None:
        peer = await self._authenticate(context)
        try:
            query = wire.query_from_pb(request)
            async with contextlib.aclosing(self._doors.answer(peer, query)) as parts:
                async for part in parts:
                    await _send(context, part)
        except NodeError as refusal:
            await asyncio.sleep(REFUSAL_S)
            await context.abort(_code(refusal), str(refusal))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "You read the answer too slowly; ask again.")

    async def _authenticate(self, context: Context) -> PublicKey:
        """The identity on the other end, checked against the live peer list; aborts the call otherwise."""
        certificates = list(context.auth_context().get("x509_pem_cert") or ())
        try:
            if len(certificates) != 1:
                raise NodeError("One client certificate is needed.")
            peer = peer_identity(certificates[0])
        except (CryptoError, NodeError) as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        if peer not in self._doors.admitted():
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "This node has not added your key.")
        return peer


async def _receive(link: Link, messages: AsyncIterator[pb.Frame]) -> None:
    try:
        await link.receive(messages)
    except grpc.aio.BaseError:
        link.close("the connection was lost")


async def _send(context: Context, part: bytes | str) -> None:
    """A line of progress, or the file. A reader that takes nothing for long, or very little, holds it no longer."""
    if isinstance(part, str):
        await _write(context, pb.QueryReply(progress=pb.QueryProgress(message=part)))
        return
    async with asyncio.timeout(ANSWER_STALL_S + len(part) / ANSWER_PACE):
        for start in range(0, len(part), QUERY_CHUNK_BYTES):
            await _write(context, pb.QueryReply(chunk=part[start : start + QUERY_CHUNK_BYTES]))


async def _write(context: Context, reply: pb.QueryReply) -> None:
    async with asyncio.timeout(ANSWER_STALL_S):
        await context.write(reply)


def _code(refusal: NodeError) -> grpc.StatusCode:
    if isinstance(refusal, AskLater):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    if isinstance(refusal, QueryRefused):
        return grpc.StatusCode.FAILED_PRECONDITION
    return grpc.StatusCode.INVALID_ARGUMENT
