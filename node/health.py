"""Health: the standard gRPC health service (grpc.health.v1) on the node's own port, for those who may connect at all.

Services "" and "tidings.v1.Node" are SERVING while the node does its work, NOT_SERVING while it stops or cannot write;
any other name is NOT_FOUND, as the service's contract says. Who asks has shown a key that this node added, query-only
keys included, or this node's own (`tidings doctor`): nobody else learns that there is a node. The answer carries this
node's clock, as a Hello does, so that `doctor` can compare clocks with a peer that it asks once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crypto.keys import PublicKey

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

SERVICES: Final = ("", "tidings.v1.Node")
CLOCK_METADATA: Final = "tidings-clock-unix-ms"
MAX_WATCHES: Final = 64
MAX_WATCHES_EACH: Final = 2
"""Streams of Watch at once, of all keys and of one: none keeps the others out. Each costs a few kB and a look every
second."""
LOOK_S: Final = 1.0


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    """Answers Check and Watch. `authenticate` gives who asks or aborts the call, `may_ask` says whether that key still
    may, `is_serving` whether the node does its work."""

    def __init__(
        self,
        authenticate: Callable[[Context], Awaitable[PublicKey]],
        may_ask: Callable[[PublicKey], bool],
        is_serving: Callable[[], bool],
    ) -> None:
        self._authenticate = authenticate
        self._may_ask = may_ask
        self._is_serving = is_serving
        self._watching: Counter[PublicKey] = Counter()

    async def Check(  # noqa: N802 - the name is the contract's
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The state now."""
        await self._authenticate(context)
        await _tell_clock(context)
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service here.")
        return self._state(request.service)

    async def Watch(  # noqa: N802 - the name is the contract's
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state now, and again whenever it changes."""
        peer = await self._authenticate(context)
        if self._watching[peer] >= MAX_WATCHES_EACH or self._watching.total() >= MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watch this node; ask with Check.")
        self._watching[peer] += 1
        try:
            await _tell_clock(context)
            last = None
            while self._may_ask(peer):
                state = self._state(request.service)
                if state != last:
                    yield state
                last = state
                await asyncio.sleep(LOOK_S)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "This node has removed your key.")
        finally:
            self._watching[peer] -= 1
            self._watching += Counter()  # forgets who watches no more

    def _state(self, service: str) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        if service not in SERVICES:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.SERVING if self._is_serving() else states.NOT_SERVING)


async def _tell_clock(context: Context) -> None:
    await context.send_initial_metadata(((CLOCK_METADATA, str(time.time_ns() // 1_000_000)),))
