"""`tidings serve`: one daemon on one home, from the lock to the last log line.

How it stops: the first SIGINT or SIGTERM ends the daemon in an orderly way, within STOP_LIMIT_S and with exit code 0;
the second ends the process at once. Signals are taken by a thread of their own, through the wake-up descriptor that
Python's signal handler writes to (signal.set_wakeup_fd), so both hold even where the event loop stands still, on a disk
that does not answer, say. Ending a process in the middle loses nothing that was acknowledged (`commit`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from node import logs, notify
from node.bandwidth import Bandwidth
from node.config import GossipSettings, QuerySettings
from node.daemon import Daemon
from node.home import Home

STOP_LIMIT_S: Final = 4.5
"""When a node that should have stopped is ended. Usually it takes a fraction of a second; 2 s where a peer reads a
model slowly."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class ServeOptions:
    """What was typed beside the home."""

    listen: str | None = None
    bandwidth: Bandwidth | None = None
    queries: QuerySettings | None = None
    log_format: str = "text"
    log_level: str = "info"
    metrics: tuple[str, int] | None = None


def serve_until_stopped(home: Home, options: ServeOptions) -> None:
    """Serve the home until SIGINT or SIGTERM; HomeError if it is being served already."""
    logs.begin(options.log_format, options.log_level)
    with home.serving():
        asyncio.run(_serve(home, options))


async def _serve(home: Home, options: ServeOptions) -> None:
    daemon = Daemon(
        home, GossipSettings(quotas=home.settings.quotas), options.bandwidth, options.queries, options.metrics
    )
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[str | None] = loop.create_future()
    ready.add_done_callback(lambda done: _announce(daemon, home, done))
    asked_at: list[float] = []

    def stop(name: str) -> None:
        asked_at.append(time.monotonic())
        daemon.journal.stopping(name)
        notify.notify(notify.STOPPING)
        daemon.stop()

    with _signals(lambda name: loop.call_soon_threadsafe(stop, name)):
        await daemon.run(options.listen or home.settings.listen, ready)
    daemon.journal.stopped(time.monotonic() - asked_at[0] if asked_at else 0.0)


def _announce(daemon: Daemon, home: Home, ready: asyncio.Future[str | None]) -> None:
    if not ready.cancelled():
        daemon.journal.started(home.settings.name, ready.result())
        notify.notify(notify.READY)


@contextmanager
def _signals(stop: Callable[[str], object]) -> Iterator[None]:
    """The first signal calls `stop` with its name, in another thread; the second, or STOP_LIMIT_S, ends the process."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, stop), name="tidings-signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # the thread ends


def _watch(reader: socket.socket, stop: Callable[[str], object]) -> None:
    first = _next_signal(reader)
    if first is None:
        return
    stop(first.name)
    reader.settimeout(STOP_LIMIT_S)
    try:
        second = _next_signal(reader)
    except TimeoutError:
        # In a thread, because stderr may be what does not answer.
        words = f"The node did not stop within {STOP_LIMIT_S:g} s and was ended; nothing that it acknowledged is lost."
        telling = threading.Thread(target=logs.tell, args=(logging.ERROR, "stop_forced", words), daemon=True)
        telling.start()
        telling.join(0.2)
        os._exit(1)
    if second is not None:
        os._exit(128 + second)


def _next_signal(reader: socket.socket) -> signal.Signals | None:
    """The next of ours; None once nobody can send one any more."""
    while number := reader.recv(1):
        if number[0] in SIGNALS:
            return signal.Signals(number[0])
    return None
