"""`tidings serve`: one daemon on one home, from the lock to the last log line."""

from __future__ import annotations

import asyncio
import logging
import signal

from node import show
from node.bandwidth import Bandwidth
from node.config import GossipSettings, QuerySettings
from node.daemon import Daemon
from node.home import Home


def serve_until_stopped(
    home: Home, listen: str | None, bandwidth: Bandwidth, queries: QuerySettings, *, verbose: bool
) -> None:
    """Serve the home until SIGINT or SIGTERM; HomeError if it is being served already."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    with home.serving():
        asyncio.run(_serve(home, listen or home.settings.listen, bandwidth, queries))


async def _serve(home: Home, listen: str | None, bandwidth: Bandwidth, queries: QuerySettings) -> None:
    daemon = Daemon(home, GossipSettings(), bandwidth, queries)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, daemon.stop)
    ready: asyncio.Future[str | None] = loop.create_future()
    ready.add_done_callback(lambda done: _announce(home, done))
    await daemon.run(listen, ready)
    show.note("Stopped.")


def _announce(home: Home, ready: asyncio.Future[str | None]) -> None:
    if not ready.cancelled():
        address = ready.result()
        where = f"listens on {address}" if address else "dials out only: it has no address to listen on"
        show.note(f"{home.settings.name} is running and {where}. Stop it with Ctrl-C.")
