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
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

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
from node.hang_up import hang_up
from node.health import Health
from node.knocks import Knocks
from node.link import Hub, Link
from node.pb import tidings_pb2 as pb
from node.tolls import Tolls

SERVICE = pb.DESCRIPTOR.services_by_name["Node"].full_name
EXCHANGE = f"/{SERVICE}/Exchange"

MAX_STREAMS = 32
"""Calls at once on one connection; a link is one, and so is each query under way."""

IDLE_S = 30
HANDSHAKE_S = 10
"""How long a connection may have no call, and how long it may take to be one."""


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
    ("grpc.max_connection_idle_ms", IDLE_S * 1000),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
)


REFUSAL_S = 0.5
"""How long a refused query waits for its refusal: with `MAX_STREAMS` it bounds what a connection costs that asks on."""

GOODBYE_S = 0.5
"""How long a connection that is to end has for the words that say why."""

REMOVED = "This node has removed your key."

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
    is_serving: Callable[[], bool] = lambda: True
    """Whether the node does its work, for the health service."""
    refusal: Callable[[PublicKey], str] = lambda _peer: ""
    """Why a member gets no link at this moment, in a sentence; empty if it may have one."""


RETIRED_S = 365 * 86_400.0
"""How long calls may last that began before the peers changed: links, which live for as long as both sides like."""
REOPEN_S, REOPEN_TRIES = 0.05, 20
"""How soon, and how often, a port that is still closing is tried again."""


class NodeServer:
    """Listens on one address for peers of this node."""

    def __init__(
        self,
        identity: Identity,
        hub: Hub,
        doors: Doors,
        bandwidth: Bandwidth | None = None,
        tolls: Tolls | None = None,
    ) -> None:
        self._identity = identity
        self._servicer = _Servicer(hub, doors, bandwidth, tolls or Tolls(), self._may_ask)
        self._health = Health(self._servicer.asked_by, self._may_ask, doors.is_serving)
        self._doors = doors
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
        self._servicer.add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        trusted = self._doors.admitted()
        # This node's own anchor is always in, since gRPC takes an empty list for "trust nobody yet" only by failing.
        anchors = b"".join(anchor_pem(key) for key in sorted({*trusted, self._identity.public_key}))
        pair = (self._leaf.private_key_pem, self._leaf.certificate_pem)
        credentials = grpc.ssl_server_credentials([pair], anchors, require_client_auth=True)
        port = server.add_secure_port(listen, credentials)
        await server.start()
        self._server, self._trusted = server, trusted
        return port

    def _may_ask(self, peer: PublicKey) -> bool:
        return peer == self._identity.public_key or peer in self._doors.admitted()

    def _retire(self, server: grpc.aio.Server) -> None:
        """Close its port at once, and the server once its last call is over."""
        waiting = asyncio.create_task(server.stop(RETIRED_S))
        self._retired[server] = waiting
        waiting.add_done_callback(lambda _: self._retired.pop(server, None))


class _Servicer:
    """What happens on each call. Frames and requests pass as bytes: what does not decode is for `wire` to refuse."""

    def __init__(
        self,
        hub: Hub,
        doors: Doors,
        bandwidth: Bandwidth | None,
        tolls: Tolls,
        may_ask: Callable[[PublicKey], bool],
    ) -> None:
        self._hub = hub
        self._doors = doors
        self._bandwidth = bandwidth
        self._tolls = tolls
        self._may_ask = may_ask
        self._links, self._refused_queries, self._health = Knocks(), Knocks(), Knocks()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Let a server hand the calls here."""
        handlers = {
            "Exchange": grpc.stream_stream_rpc_method_handler(self.exchange),
            "Query": grpc.unary_stream_rpc_method_handler(
                self.query, response_serializer=pb.QueryReply.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def exchange(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Carry frames for as long as both sides like."""
        peer = await self._authenticate(context)
        if not self._hub.may_exchange(peer):
            await self._turn_away(context, peer, "This key may ask for models but not gossip.")
        refusal = self._doors.refusal(peer)
        if refusal or not self._links.is_welcome(peer):
            await self._turn_away(context, peer, refusal or "You open links too often; wait a little.")
        await context.send_initial_metadata((LINK_METADATA,))
        allowance = self._bandwidth.of(peer) if self._bandwidth else None
        link = Link(peer, self._hub, dialed_by_us=False, allowance=allowance, toll=self._tolls.of(peer))
        link.cut = functools.partial(hang_up, context.peer())  # gRPC waits for ever for one who reads nothing
        reader = asyncio.create_task(_receive(link, requests))
        self._hub.link_up(link)
        try:
            async for message in link.outgoing():
                yield message
        finally:
            link.cut = None  # the connection may carry other calls
            reader.cancel()
            self._hub.link_down(link, link.closed_because or "the connection was lost")

    async def query(self, request: bytes, context: Context) -> None:
        """Answer one query."""
        peer = await self._authenticate(context)
        try:
            query = wire.query_from_bytes(request)
            async with contextlib.aclosing(self._doors.answer(peer, query)) as parts:
                async for part in parts:
                    if peer not in self._doors.admitted():  # it was removed while it waited
                        await context.abort(grpc.StatusCode.PERMISSION_DENIED, REMOVED)
                    await _send(context, part)
        except NodeError as refusal:
            if not self._refused_queries.is_welcome(peer):
                await self._turn_away(context, peer, str(refusal))
            await asyncio.sleep(REFUSAL_S)
            await context.abort(_code(refusal), str(refusal))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "You read the answer too slowly; ask again.")

    async def asked_by(self, context: Context) -> PublicKey:
        """Who asks how this node is: a peer, or this node itself; aborts the call otherwise."""
        peer = await self._authenticate(context, self._may_ask)
        if not self._health.is_welcome(peer):
            await self._turn_away(context, peer, "You ask too often; wait a little.")
        return peer

    async def _authenticate(self, context: Context, is_welcome: Callable[[PublicKey], bool] | None = None) -> PublicKey:
        """The identity on the other end, checked against the live peer list; aborts the call otherwise."""
        certificates = list(context.auth_context().get("x509_pem_cert") or ())
        try:
            if len(certificates) != 1:
                raise NodeError("One client certificate is needed.")
            peer = _identity(certificates[0])
        except (CryptoError, NodeError) as error:
            _hang_up_soon(context)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        if not (is_welcome(peer) if is_welcome else peer in self._doors.admitted()):
            _hang_up_soon(context)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "This node has not added your key.")
        return peer

    async def _turn_away(self, context: Context, peer: PublicKey, words: str) -> NoReturn:
        """Refuse a call that should not have come. Whoever hurries is held, and loses the connection."""
        if not self._links.is_welcome(peer) and not await self._links.hold(peer):
            hang_up(context.peer())
        _hang_up_soon(context)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, words)
        raise AssertionError("abort raises")


@functools.lru_cache(maxsize=1024)
def _identity(certificate: bytes) -> PublicKey:
    """`peer_identity`, which depends on nothing else, once for each certificate."""
    return peer_identity(certificate)


def _hang_up_soon(context: Context) -> None:
    asyncio.get_running_loop().call_later(GOODBYE_S, hang_up, context.peer())


async def _receive(link: Link, messages: AsyncIterator[bytes]) -> None:
    try:
        await link.receive(messages)
    except grpc.aio.BaseError:
        pass
    finally:
        link.close("the connection was lost")  # whatever ended the reading: nobody keeps a link that is not read


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
