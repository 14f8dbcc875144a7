"""Metrics: counts and states of a running node for Prometheus, on a local port that is there only if asked for.

    GET /metrics    the text exposition format, version 0.0.4
    GET /healthz    200 "serving", or 503 "not serving": the same that the gRPC health service says (`health`)

The port asks for no key and encrypts nothing, so it binds a loopback address unless the operator insists. What it shows
is counts: no names, keys, tasks or datasets, and no label whose values come from outside, so its size does not depend
on how many peers there are or on what they do. The budget is not in it: reading the ledger loads the accounting
libraries, which a node that only gossips does without; `tidings budget --json` says it.

A request is a line and a few headers; whatever is longer or slower is cut off. The event loop that answers is the one
that gossips, so an answer is also a sign of life.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from node.errors import UsageError
from node.gossip.events import Disk, Offence
from node.journal import OUTCOMES, Counts
from node.peers import check_address

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

DEFAULT_HOST: Final = "127.0.0.1"
MAX_REQUEST_BYTES: Final = 8_192
REQUEST_S: Final = 5.0
MAX_CONNECTIONS: Final = 16
HEARTBEAT_S: Final = 1.0


@dataclass(frozen=True)
class Gauges:
    """How things stand in a node at one moment."""

    version: str
    serving: bool
    links: int
    members: int
    records: Counter[tuple[str, str]]
    """How many of each kind and state."""
    body_bytes: int
    bytes_sent: int
    bytes_received: int
    fetches: int
    stalled: int
    lag_s: float
    disk: Disk
    disk_free_bytes: int
    started_at: float
    """Seconds since 1970."""
    loop_delay_s: float
    """The longest that the event loop was late, over the last minute."""


@dataclass
class LoopDelay:
    """How late the event loop runs what is due: what a peer waits for an answer at least."""

    delays: list[float] = field(default_factory=list)

    async def watch(self) -> None:
        """Measure every second, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + HEARTBEAT_S
            await asyncio.sleep(HEARTBEAT_S)
            self.delays = [*self.delays[-59:], max(0.0, loop.time() - due)]

    @property
    def longest_s(self) -> float:
        """The longest of the last minute."""
        return max(self.delays, default=0.0)


def parse_listen(text: str, *, exposed: bool) -> tuple[str, int]:
    """Where `--metrics` listens: PORT or HOST:PORT. UsageError unless it is a loopback address or the operator
    insists (`exposed`)."""
    host, port = check_address(text if ":" in text else f"{DEFAULT_HOST}:{text}").rsplit(":", 1)
    host = host.strip("[]")
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not (is_local or exposed):
        raise UsageError(
            f"--metrics {text} can be read by other machines without a key; listen on {DEFAULT_HOST}, or add "
            "--metrics-exposed if something else protects that port."
        )
    return (DEFAULT_HOST if host == "localhost" else host), int(port)


def exposition(gauges: Gauges, counts: Counts) -> bytes:
    """Everything in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Now:
        def collect(self) -> Iterable[Metric]:
            yield from _gauges(gauges)
            yield from _counters(gauges, counts)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Now())
    return generate_latest(registry)


def _gauges(now: Gauges) -> Iterator[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily

    yield InfoMetricFamily("tidings", "What runs.", {"version": now.version})
    plain = (
        ("tidings_serving", "1 if the node does its work, 0 while it stops or cannot write.", now.serving),
        ("tidings_start_time_seconds", "When the node started, since 1970.", now.started_at),
        ("tidings_links", "Members that are linked.", now.links),
        ("tidings_members", "Members that were added, linked or not.", now.members),
        ("tidings_body_bytes", "Size of the bodies in the store.", now.body_bytes),
        ("tidings_fetches", "Records of which the body is on its way.", now.fetches),
        ("tidings_fetches_stalled", "Of these, those that nobody linked has the rest of.", now.stalled),
        ("tidings_lag_seconds", "For how long the oldest body has been waited for; 0 if all are here.", now.lag_s),
        ("tidings_disk_free_bytes", "Free space on the disk of the home.", now.disk_free_bytes),
        ("tidings_event_loop_delay_seconds", "Longest delay of the last minute.", now.loop_delay_s),
    )
    for name, text, value in plain:
        yield GaugeMetricFamily(name, text, float(value))
    disk = GaugeMetricFamily("tidings_disk_state", "1 for the state that the disk is in.", labels=("state",))
    for one in Disk:
        disk.add_metric((one.value,), float(one is now.disk))
    yield disk
    records = GaugeMetricFamily("tidings_records", "Records in the store.", labels=("kind", "state"))
    for (kind, state), count in sorted(now.records.items()):
        records.add_metric((kind, state), count)
    yield records


def _counters(now: Gauges, counts: Counts) -> Iterator[Metric]:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

    plain = (
        ("tidings_sent_bytes", "Frames sent to members, without TLS.", now.bytes_sent),
        ("tidings_received_bytes", "Frames received from members, without TLS.", now.bytes_received),
        ("tidings_links_opened", "Links that came up.", counts.links_up),
        ("tidings_links_lost", "Links that went down.", counts.links_down),
        ("tidings_dials_failed", "Dials that came to nothing.", counts.dials_failed),
        ("tidings_anti_entropy_rounds", "Rounds of anti-entropy that this node opened.", counts.frames_sent["digest"]),
        ("tidings_alarms", "Warnings about the conduct of a node.", counts.alarms),
        ("tidings_store_errors", "Writes or reads that the store refused.", counts.store_errors),
        ("tidings_query_bytes", "Size of the models sent.", counts.query_bytes),
    )
    for name, text, value in plain:
        yield CounterMetricFamily(name, text, value)
    labelled = (
        ("tidings_frames_received", "Well-formed frames.", "kind", counts.frames_received, ()),
        ("tidings_frames_sent", "Frames sent to members.", "kind", counts.frames_sent, ()),
        (
            "tidings_refused",
            "Invalid things that members sent, each a strike.",
            "what",
            counts.offences,
            tuple(Offence),
        ),
        ("tidings_records_settled", "Records that became whole here.", "kind", counts.records, ()),
        ("tidings_queries", "Queries of peers, by how they ended.", "outcome", counts.queries, OUTCOMES),
    )
    for name, text, label, by, known in labelled:
        family = CounterMetricFamily(name, text, labels=(label,))
        for one in sorted({*by, *known}):
            family.add_metric((one,), by[one])
        yield family
    yield GaugeMetricFamily("tidings_queries_running", "Queries being answered or waiting.", counts.queries_running)
    ended = sum(counts.queries.values())
    yield SummaryMetricFamily("tidings_query_seconds", "Time that queries took.", ended, counts.query_seconds)


class MetricsPort:
    """Answers GET on one local port. `scrape` gives the exposition, `serving` whether the node does its work."""

    def __init__(self, scrape: Callable[[], Awaitable[bytes]], serving: Callable[[], bool]) -> None:
        self._scrape = scrape
        self._serving = serving
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the address with the port that was chosen. UsageError when it cannot be had."""
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            raise UsageError(f"--metrics cannot listen on {host}:{port} ({error.strerror}): choose another.") from error
        name = f"[{host}]" if ":" in host else host
        return f"{name}:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(REQUEST_S):
                    writer.write(await self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # not a request, or gone
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, request: bytes) -> bytes:
        method, path, *_ = (*request.split(b"\r\n", 1)[0].split(b" "), b"", b"")
        plain = b"text/plain; charset=utf-8"
        if method not in (b"GET", b"HEAD"):
            return _response(b"405 Method Not Allowed", plain, b"Only GET is answered here.\n", method)
        match path.split(b"?", 1)[0]:
            case b"/metrics":
                from prometheus_client import CONTENT_TYPE_LATEST

                return _response(b"200 OK", CONTENT_TYPE_LATEST.encode(), await self._scrape(), method)
            case b"/healthz" if self._serving():
                return _response(b"200 OK", plain, b"serving\n", method)
            case b"/healthz":
                return _response(b"503 Service Unavailable", plain, b"not serving\n", method)
        return _response(b"404 Not Found", plain, b"There are /metrics and /healthz.\n", method)


def _response(status: bytes, kind: bytes, body: bytes, method: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (status, kind, len(body)) + (b"" if method == b"HEAD" else body)
