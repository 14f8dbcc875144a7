"""The gRPC health service: for whoever may connect, with the standard client, and what it says when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from daemons import in_an_event_loop, running
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crypto.keys import Identity
from node.client import Dialer
from node.errors import PeerUnreachable, StoreFull
from node.health import MAX_WATCHES, MAX_WATCHES_EACH, Health
from node.home import Home
from node.membership import add_peer, remove_peer

MakeHome = Callable[..., Home]
Watch = Any  # grpc.aio.UnaryStreamCall is generic in its stubs only
STATES = health_pb2.HealthCheckResponse


def stub(home: Home, channel: grpc.aio.Channel) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(channel)


def ask(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def within(watch: Watch) -> health_pb2.HealthCheckResponse:
    """The next state that a watch tells."""
    async with asyncio.timeout(10.0):
        return await watch.read()


@in_an_event_loop
@pytest.mark.parametrize("query_only", [False, True])
async def test_members_and_query_only_peers_are_told_that_the_node_serves(
    make_home: MakeHome, query_only: bool
) -> None:
    home, asker = make_home("a"), make_home("asker")
    add_peer(home, asker.me.text, "asker", None, query_only=query_only)
    async with running(home) as a:
        dialer = Dialer.for_identity(asker.keystore.identity)
        async with dialer.channel(a.home.me, str(a.address)) as channel:
            for service in ("", "tidings.v1.Node"):
                assert (await stub(asker, channel).Check(ask(service))).status == STATES.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub(asker, channel).Check(ask("another.Service"))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        look = await dialer.look(a.home.me, str(a.address), 10.0)
        assert look.is_serving
        assert look.ahead_s is not None
        assert abs(look.ahead_s) < 5.0


@in_an_event_loop
async def test_the_node_itself_may_ask_and_a_stranger_may_not(make_home: MakeHome) -> None:
    stranger = make_home("stranger")
    async with running(make_home("a")) as a:
        itself = Dialer.for_identity(a.home.keystore.identity)
        assert (await itself.look(a.home.me, str(a.address), 10.0)).is_serving
        with pytest.raises(PeerUnreachable, match="has probably not added"):
            await Dialer.for_identity(stranger.keystore.identity).look(a.home.me, str(a.address), 10.0)


@in_an_event_loop
async def test_the_key_of_the_node_itself_opens_nothing_but_its_health(make_home: MakeHome) -> None:
    from node.frames import Query

    async with running(make_home("a")) as a:
        itself = Dialer.for_identity(a.home.keystore.identity)
        with pytest.raises(PeerUnreachable, match="has not added"):
            await itself.ask(a.home.me, str(a.address), Query(bytes(32), "", (), (), "onnx"), lambda _: None)


@in_an_event_loop
async def test_a_peer_whose_key_was_removed_is_told_no_more(make_home: MakeHome) -> None:
    home, asker = make_home("a"), make_home("asker")
    add_peer(home, asker.me.text, "asker", None, query_only=False)
    async with running(home) as a:
        dialer = Dialer.for_identity(asker.keystore.identity)
        async with dialer.channel(a.home.me, str(a.address)) as channel:
            watch = stub(asker, channel).Watch(ask())
            assert (await within(watch)).status == STATES.SERVING
            remove_peer(a.home, "asker")
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await within(watch)
            assert ended.value.code() is grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub(asker, channel).Check(ask())
            # By the open connection, or, once that is gone with the port that it came by, by TLS.
            assert refused.value.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)


@in_an_event_loop
async def test_a_node_that_cannot_write_is_not_serving_and_serves_again_later(make_home: MakeHome) -> None:
    home, asker = make_home("a"), make_home("asker")
    add_peer(home, asker.me.text, "asker", None, query_only=False)
    async with running(home) as a:
        dialer = Dialer.for_identity(asker.keystore.identity)
        async with dialer.channel(a.home.me, str(a.address)) as channel:
            watch = stub(asker, channel).Watch(ask())
            assert (await within(watch)).status == STATES.SERVING
            a.daemon._leave_network(StoreFull("The disk has no room."))  # as the thread that writes tells it
            assert not (await dialer.look(a.home.me, str(a.address), 10.0)).is_serving
            assert (await within(watch)).status == STATES.NOT_SERVING
            a.daemon._disk._full_until = 0.0
            assert (await within(watch)).status == STATES.SERVING
            watch.cancel()


@in_an_event_loop
async def test_a_node_that_stops_says_that_it_is_not_serving(make_home: MakeHome) -> None:
    home, asker = make_home("a"), make_home("asker")
    add_peer(home, asker.me.text, "asker", None, query_only=False)
    async with running(home) as a:
        dialer = Dialer.for_identity(asker.keystore.identity)
        async with dialer.channel(a.home.me, str(a.address)) as channel:
            watch = stub(asker, channel).Watch(ask())
            assert (await within(watch)).status == STATES.SERVING
            a.daemon.stop()
            assert (await within(watch)).status == STATES.NOT_SERVING


class SlowPeer:
    """The context of a call whose client takes its time to read."""

    async def send_initial_metadata(self, _metadata: object) -> None:
        await asyncio.sleep(0.05)

    async def abort(self, code: grpc.StatusCode, _words: str) -> None:
        raise PermissionError(code)


@in_an_event_loop
async def test_watches_are_limited_where_all_begin_at_once() -> None:
    keys = [Identity.generate().public_key for _ in range(MAX_WATCHES)]
    asking = iter(3 * keys)
    service = Health(lambda _: asyncio.sleep(0, next(asking)), lambda _: True, lambda: True)
    watches: list[Any] = [service.Watch(ask(), SlowPeer()) for _ in range(3 * MAX_WATCHES)]  # type: ignore[arg-type]
    answers = await asyncio.gather(*map(anext, watches), return_exceptions=True)
    assert sum(not isinstance(one, PermissionError) for one in answers) == MAX_WATCHES
    for watch in watches:
        await watch.aclose()


@in_an_event_loop
async def test_watches_of_one_key_are_limited_and_keep_nobody_else_out(make_home: MakeHome) -> None:
    home, greedy, asker = make_home("a"), make_home("greedy"), make_home("asker")
    for one in (greedy, asker):
        add_peer(home, one.me.text, one.settings.name, None, query_only=True)
    async with running(home) as a, AsyncExitStack() as stack:
        channel, other = [
            await stack.enter_async_context(
                Dialer.for_identity(one.keystore.identity).channel(a.home.me, str(a.address))
            )
            for one in (greedy, asker)
        ]
        watches = [stub(greedy, channel).Watch(ask()) for _ in range(MAX_WATCHES_EACH)]
        for watch in watches:
            assert (await within(watch)).status == STATES.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await within(stub(greedy, channel).Watch(ask()))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await within(stub(asker, other).Watch(ask()))).status == STATES.SERVING
        for watch in watches:
            watch.cancel()
        await asyncio.sleep(2.0)
        unknown = stub(greedy, channel).Watch(ask("another.Service"))
        assert (await within(unknown)).status == STATES.SERVICE_UNKNOWN


@in_an_event_loop
async def test_watches_that_began_before_the_peers_changed_count_on(make_home: MakeHome) -> None:
    home, asker, later = make_home("a"), make_home("asker"), make_home("later")
    add_peer(home, asker.me.text, "asker", None, query_only=True)
    async with (
        running(home) as a,
        Dialer.for_identity(asker.keystore.identity).channel(a.home.me, str(a.address)) as before,
    ):
        watches = [stub(asker, before).Watch(ask()) for _ in range(MAX_WATCHES_EACH)]
        for watch in watches:
            assert (await within(watch)).status == STATES.SERVING
        add_peer(home, later.me.text, "later", None, query_only=True)
        await a.admits_its_peers()
        async with Dialer.for_identity(asker.keystore.identity).channel(a.home.me, str(a.address)) as after:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await within(stub(asker, after).Watch(ask()))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
