"""Daemons in one event loop, over real sockets and TLS: for tests that look inside them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from node.config import GossipSettings, QuerySettings
from node.daemon import Daemon
from node.home import Home
from node.membership import add_peer
from node.status import status

MakeHome = Callable[..., Home]
SOON = replace(GossipSettings(), sync_min_s=0.5, sync_max_s=1.0, dial_base_s=0.2, dial_cap_s=0.5)
PATIENCE_S = 15.0


def in_an_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


class Node:
    """A running daemon; `home` is a second view of its home, as a command would have."""

    def __init__(self, home: Home, daemon: Daemon, address: str | None) -> None:
        self.home = home
        self.daemon = daemon
        self.address = address

    def knows(self, other: Node, *, dials: bool = False) -> None:
        add_peer(
            self.home, other.home.me.text, other.home.settings.name, other.address if dials else None, query_only=False
        )

    def state_of(self, other: Node) -> tuple[str, str]:
        listed = {peer["key"]: peer for peer in status(self.home)["peers"]}
        peer = listed[other.home.me.text]
        return peer["state"], peer["reason"]

    def is_linked_with(self, other: Node) -> bool:
        return self.state_of(other)[0] == "linked"

    def holds(self, record_id: bytes) -> bool:
        return self.home.store.get(record_id) is not None

    async def admits_its_peers(self) -> None:
        """Wait until the daemon has read who its peers are now and its port is open for them."""

        def does() -> bool:
            server = self.daemon._server
            return server._server is not None and server._trusted == {peer.key for peer in self.home.store.peers()}

        await eventually(does)


@asynccontextmanager
async def running(home: Home, *, listens: bool = True, queries: QuerySettings | None = None) -> AsyncIterator[Node]:
    ready: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    view = Home.open(home.path)
    daemon = Daemon(view, replace(SOON, quotas=view.settings.quotas), queries=queries)
    with home.serving():
        task = asyncio.create_task(daemon.run("127.0.0.1:0" if listens else None, ready))
        try:
            yield Node(home, daemon, await ready)
        finally:
            daemon.stop()
            await task


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.05)
