"""The gRPC client: dials a peer pinned to its key, exchanges frames, or asks it for a model.

The channel trusts exactly one anchor, built from the key of the peer it dials, so whoever else answers at
that address is refused by TLS. What gRPC says about a failure is put into words here (`failure`, `lost`), because
those words are what `status` and the error line show.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crypto.keys import Identity, PublicKey
from crypto.tls import LeafCredentials, anchor_pem, make_leaf, server_name
from node import wire
from node.bandwidth import Bandwidth
from node.config import CONNECT_TIMEOUT_S, MODEL_LIMIT_BYTES
from node.errors import AskLater, PeerRefused, PeerUnreachable, QueryRefused, WireError
from node.frames import Query
from node.health import CLOCK_METADATA
from node.link import Hub, Link
from node.pb import tidings_pb2_grpc as rpc
from node.server import EXCHANGE, GRPC_OPTIONS, LINK_METADATA
from node.show import one_line
from node.tolls import Tolls

if TYPE_CHECKING:
    _Check = Callable[..., grpc.aio.UnaryUnaryCall[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]]
    ExchangeCall = grpc.aio.StreamStreamCall[bytes, bytes]


_stub: Callable[[grpc.aio.Channel], rpc.NodeStub] = rpc.NodeStub  # generated without types


def _exchange(channel: grpc.aio.Channel) -> ExchangeCall:
    """A new stream of frames as bytes. What comes over it and does not decode is for `wire` to refuse."""
    return channel.stream_stream(EXCHANGE, None, None)(None)


@dataclass(frozen=True)
class Look:
    """What a peer said when it was asked how it is."""

    is_serving: bool | None
    """None: it has no health service, as older releases."""
    ahead_s: float | None
    """How far its clock is ahead of ours; None if it does not say."""


@dataclass(frozen=True)
class Dialer:
    """Opens channels in this node's name; the leaf certificate is made once."""

    leaf: LeafCredentials

    @classmethod
    def for_identity(cls, identity: Identity) -> Dialer:
        """A dialer that proves to be `identity`."""
        return cls(make_leaf(identity))

    def channel(self, peer: PublicKey, address: str) -> grpc.aio.Channel:
        """A channel to `address` that only the holder of `peer`'s key can answer."""
        credentials = grpc.ssl_channel_credentials(
            anchor_pem(peer), self.leaf.private_key_pem, self.leaf.certificate_pem
        )
        options = (
            *GRPC_OPTIONS,
            ("grpc.ssl_target_name_override", server_name(peer)),
            ("grpc.enable_retries", 0),
        )
        # With its scheme: gRPC would take the host of "unix:7410" for one.
        return grpc.aio.secure_channel(f"dns:///{address}", credentials, options=options)

    async def exchange(
        self,
        peer: PublicKey,
        address: str,
        hub: Hub,
        bandwidth: Bandwidth | None = None,
        tolls: Tolls | None = None,
    ) -> None:
        """Gossip with `peer` until the link ends; PeerUnreachable, in words, if it never came up."""
        async with self.channel(peer, address) as channel:
            call = _exchange(channel)
            await _accepted(call, address)
            allowance = bandwidth.of(peer) if bandwidth else None
            link = Link(peer, hub, dialed_by_us=True, allowance=allowance, toll=tolls.of(peer) if tolls else None)
            link.cut = call.cancel
            writer = asyncio.create_task(_write(call, link))
            hub.link_up(link)
            try:
                await link.receive(call)
            except grpc.aio.AioRpcError as error:
                link.close(lost(error.code(), error.details()))
            finally:
                writer.cancel()
                call.cancel()
                hub.link_down(link, link.closed_because or "this node stopped")

    async def ask(self, peer: PublicKey, address: str, query: Query, on_progress: Callable[[str], None]) -> bytes:
        """The model file that `peer` makes for `query`; PeerUnreachable or QueryRefused, in words."""
        parts: list[bytes] = []
        received = 0
        has_begun = False
        async with self.channel(peer, address) as channel:
            call = _stub(channel).Query(wire.query_to_pb(query))
            try:
                async for reply in call:
                    has_begun = True
                    part = wire.reply_from_pb(reply)
                    if isinstance(part, str):
                        on_progress(one_line(part))
                        continue
                    received += len(part)
                    if received > MODEL_LIMIT_BYTES:
                        raise QueryRefused(f"The model is larger than {MODEL_LIMIT_BYTES} bytes; it was not taken.")
                    parts.append(part)
            except WireError as error:
                raise QueryRefused(f"The answer cannot be read: {error}") from error
            except grpc.aio.AioRpcError as error:
                said = f"The other node says: {one_line(error.details() or '', 500)}"
                if error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise AskLater(said) from error
                if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT):
                    raise QueryRefused(said) from error
                if has_begun:
                    reason = (
                        f"{address} ended the connection before the model was there; its node may have been stopped"
                    )
                    raise PeerUnreachable(reason) from error
                raise failure(error.code(), error.details(), address) from error
            finally:
                call.cancel()  # a call that was given up before it was sent must not start on a closed channel
        return b"".join(parts)

    async def look(self, peer: PublicKey, address: str, limit_s: float) -> Look:
        """Ask `peer` how it is, without a link; PeerUnreachable, in words, if it does not answer within `limit_s`."""
        async with self.channel(peer, address) as channel:
            check: _Check = health_pb2_grpc.HealthStub(channel).Check
            call = check(health_pb2.HealthCheckRequest(), timeout=limit_s)
            try:
                metadata = await call.initial_metadata()
                reply = await call
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return Look(None, None)
                raise failure(error.code(), error.details(), address) from error
            finally:
                call.cancel()
        return Look(reply.status == health_pb2.HealthCheckResponse.SERVING, _ahead_s(metadata))


def _ahead_s(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    said = dict(metadata).get(CLOCK_METADATA, "")
    if not isinstance(said, str) or not re.fullmatch(r"-?\d{1,18}", said):
        return None
    return int(said) / 1000 - time.time()


_UNREACHABLE = (
    ("connection refused", "nothing listens at {address}; check that its node runs"),
    ("certificate_verify_failed", "another key answers at {address}; check key and address"),
    ("hostname verification", "another key answers at {address}; check key and address"),
    ("tls handshake failed", "no Tidings node answers at {address}; check the address"),
    ("handshake read failed", "{address} closed the connection at once; check that a Tidings node is there"),
    ("dns resolution", "name not found: {address}; check the address"),
    ("domain name not found", "name not found: {address}; check the address"),
    ("no route to host", "no route to {address}"),
    ("network is unreachable", "no route to {address}"),
    ("timed out", "no answer from {address}"),
    ("deadline", "no answer from {address}"),
)
"""Signs in gRPC's account of a dial that came to nothing, the first that fits, and what they mean."""

_REFUSED = (
    ("has not added your key", "it has not added this node's key"),
    # TLS 1.3: by now whoever answers has proved its key, and then it judges ours. A key that it does not know ends the
    # connection without a word. So does a line that is cut in that very moment.
    ("socket closed", "it has probably not added this node's key yet"),
    ("connection reset", "it has probably not added this node's key yet"),
)
"""The same where the peer was there, asked for after those above."""


async def _write(call: ExchangeCall, link: Link) -> None:
    """Send what the link queues, until it is closed or the call is over (which `receive` notices and explains)."""
    try:
        async for message in link.outgoing():
            await call.write(message)
        await call.done_writing()
    except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
        return


async def _accepted(call: ExchangeCall, address: str) -> None:
    """Wait until the other side takes the stream; PeerUnreachable if it does not.

    A call that failed has empty initial metadata in place of an error, so the server's own is what tells.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            metadata = await call.initial_metadata()
            if LINK_METADATA in {(key, value) for key, value in metadata or ()}:
                return
            raise failure(await call.code(), await call.details(), address)
    except TimeoutError as error:
        call.cancel()
        raise PeerUnreachable(f"no answer from {address} within {CONNECT_TIMEOUT_S:g} s") from error


def failure(code: grpc.StatusCode, details: str | None, address: str) -> PeerUnreachable:
    """What to raise for a call that came to nothing, in words; PeerRefused if the peer was there."""
    lowered = (details or "").lower()
    for sign, words in _UNREACHABLE:
        if sign in lowered:
            return PeerUnreachable(words.format(address=address))
    for sign, words in _REFUSED:
        if sign in lowered:
            return PeerRefused(words)
    said = one_line(details or code.name.lower())
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return PeerRefused(f"it says: {said}")
    return PeerUnreachable(f"no link with {address}: {said}")


def lost(code: grpc.StatusCode, details: str | None) -> str:
    """Why a link that was up has ended, in words."""
    lowered = (details or "").lower()
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return f"it says: {one_line(details or code.name.lower())}"
    if "keepalive" in lowered or "ping" in lowered:
        return "it fell silent"
    return "the connection was lost"
