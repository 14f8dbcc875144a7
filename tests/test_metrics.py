"""Metrics: a real node scraped, its answer read by the client's own parser, and what the port refuses."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from commands import eventually
from processes import Node, running
from prometheus_client.parser import text_string_to_metric_families

from node.errors import UsageError
from node.gossip.events import Disk
from node.journal import Counts
from node.metrics import MAX_CONNECTIONS, MAX_REQUEST_BYTES, REQUEST_S, Gauges, MetricsPort, exposition, parse_listen

MB = 1_000_000
UNIT = re.compile(r"_(bytes|seconds)(_total|_sum|_count)?$")


def events(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@contextmanager
def measured(node: Node) -> Iterator[str]:
    """The node serves with metrics; gives the address of its port."""
    log_path = node.path.parent / f"{node.name}.log"
    with open(log_path, "wb") as log:
        words = [sys.executable, "-m", "node", "--home", str(node.path), "serve"]
        node.process = subprocess.Popen([*words, "--metrics", "0", "--log-format", "json"], stderr=log)
    with running(node, start=lambda _: None):
        eventually(lambda: any(one["event"] == "started" for one in events(log_path)))
        yield str(next(one["address"] for one in events(log_path) if one["event"] == "metrics"))


def get(address: str, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scraped_node_says_what_it_did(tmp_path: Path) -> None:
    node, other = Node.make(tmp_path, "node"), Node.make(tmp_path, "other")
    node.knows(other)
    other.knows(node, str(node.address))
    body = os.urandom(300_000)
    with measured(node) as address, running(other):
        eventually(lambda: samples(get(address))["tidings_links", ()] == 1)
        record = other.author(body)
        eventually(lambda: node.has_whole(record))
        eventually(lambda: samples(get(address)).get(("tidings_records_settled_total", (("kind", "summary"),)), 0) == 1)
        now = samples(get(address))
        assert now["tidings_records", (("kind", "summary"), ("state", "complete"))] == 1
        assert now["tidings_body_bytes", ()] == record.header.body_bytes
        assert now["tidings_received_bytes_total", ()] > len(body)
        # A frame may bring several chunks.
        assert 1 <= now["tidings_frames_received_total", (("kind", "chunk"),)] <= len(record.header.chunk_hashes)
        assert now["tidings_frames_sent_total", (("kind", "hello"),)] == 1
        assert now["tidings_anti_entropy_rounds_total", ()] >= 1
        assert now["tidings_members", ()] == now["tidings_serving", ()] == now["tidings_links_opened_total", ()] == 1
        assert now["tidings_fetches", ()] == now["tidings_lag_seconds", ()] == 0
        assert now["tidings_disk_state", (("state", "room"),)] == 1
        assert now["tidings_disk_free_bytes", ()] > 0
        assert 0 <= now["tidings_event_loop_delay_seconds", ()] < 5
        assert get(address, "/healthz") == "serving\n"
        other.kill()
        eventually(lambda: samples(get(address))["tidings_links_lost_total", ()] == 1)
        said = get(address)
    for secret in (node.home.me.text, other.home.me.text, "other", str(tmp_path), record.id.hex()):
        assert secret not in said, "counts, no names"


def test_an_idle_node_with_metrics_and_json_logs_is_as_small_and_quiet_as_promised(tmp_path: Path) -> None:
    node = Node.make(tmp_path, "node")
    with measured(node) as address:
        assert node.process is not None
        ready_s = _cpu_s(node.process.pid)  # of work: how long that takes is a matter of what else the machine does
        get(address)
        before, at = _cpu_s(node.process.pid), time.monotonic()
        time.sleep(6.0)
        cpu = (_cpu_s(node.process.pid) - before) / (time.monotonic() - at)
        rss = _rss_bytes(node.process.pid)
    assert rss < 80 * MB, f"{rss / MB:.1f} MB"
    assert cpu < 0.01, f"{100 * cpu:.2f} %"
    assert ready_s < 2.0, f"{ready_s:.2f} s"


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


GAUGES = Gauges(
    version="1",
    serving=True,
    links=3,
    members=4,
    records=Counter({("summary", "complete"): 2, ("model", "fetching"): 1}),
    body_bytes=10,
    bytes_sent=11,
    bytes_received=12,
    fetches=1,
    stalled=1,
    lag_s=2.5,
    disk=Disk.LOW,
    disk_free_bytes=99,
    started_at=1_000.0,
    loop_delay_s=0.001,
)


def test_every_metric_is_documented_and_named_as_prometheus_asks() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    families = list(text_string_to_metric_families(exposition(GAUGES, Counts()).decode()))
    assert len(families) >= 25
    for family in families:
        assert family.name.startswith("tidings")
        assert family.documentation
        assert f"`{family.name}" in documented, f"{family.name} is not in docs/operations.md"
        for sample in family.samples:
            is_length = "bytes" in sample.name or "seconds" in sample.name
            assert not is_length or UNIT.search(sample.name), sample.name


def test_no_label_has_values_from_outside() -> None:
    counts = Counts(frames_received=Counter(hello=1), queries=Counter(answered=1), records=Counter({"summary": 1}))
    labels = {
        label
        for family in text_string_to_metric_families(exposition(GAUGES, counts).decode())
        for sample in family.samples
        for label in sample.labels
    }
    assert labels == {"version", "state", "kind", "what", "outcome"}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("9410", ("127.0.0.1", 9410)),
        ("127.0.0.9:9410", ("127.0.0.9", 9410)),
        ("localhost:9410", ("127.0.0.1", 9410)),
        ("[::1]:9410", ("::1", 9410)),
    ],
)
def test_a_loopback_address_is_taken(text: str, place: tuple[str, int]) -> None:
    assert parse_listen(text, exposed=False) == place


@pytest.mark.parametrize("text", ["0.0.0.0:9410", "[::]:9410", "10.0.0.7:9410", "node.example:9410"])
def test_any_other_is_refused_unless_the_operator_insists(text: str) -> None:
    with pytest.raises(UsageError, match=r"can be read by other machines without a key.*--metrics-exposed"):
        parse_listen(text, exposed=False)
    assert parse_listen(text, exposed=True)[1] == 9410


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    node = Node.make(tmp_path, "node")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [sys.executable, "-m", "node", "--home", str(node.path), "serve", "--metrics"]
        done = subprocess.run(
            [*words, str(taken.getsockname()[1])], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: --metrics cannot listen on 127.0.0.1:")
    assert "Traceback" not in done.stderr


def test_what_is_no_request_is_cut_off_and_others_are_answered_meanwhile() -> None:
    async def scrape() -> bytes:
        return b"x 1\n"

    async def story() -> None:
        is_serving = True
        port = MetricsPort(scrape, lambda: is_serving)
        address = await port.start("127.0.0.1", 0)
        host, number = address.split(":")
        try:
            idle = [await asyncio.open_connection(host, int(number)) for _ in range(MAX_CONNECTIONS - 1)]
            assert (await _ask(host, number, "GET", "/metrics"))[0] == 200
            assert (await _ask(host, number, "GET", "/metrics?x=1"))[1] == "x 1\n"
            assert (await _ask(host, number, "HEAD", "/metrics")) == (200, "")
            assert (await _ask(host, number, "POST", "/metrics"))[0] == 405
            assert (await _ask(host, number, "GET", "/"))[0] == 404
            is_serving = False
            assert (await _ask(host, number, "GET", "/healthz")) == (503, "not serving\n")
            for request in (b"GET /" + bytes(2 * MAX_REQUEST_BYTES), b"\r\n\r\n", b"\xff\x00 \r\n\r\n"):
                reader, writer = await asyncio.open_connection(host, int(number))
                writer.write(request)
                answer = await asyncio.wait_for(reader.read(), REQUEST_S + 5)
                assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
                writer.close()
            for reader, writer in idle:
                assert await asyncio.wait_for(reader.read(), REQUEST_S + 5) == b""
                writer.close()
        finally:
            port.close()

    asyncio.run(story())


async def _ask(host: str, port: str, method: str, path: str) -> tuple[int, str]:
    def blocking() -> tuple[int, str]:
        with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    return await asyncio.to_thread(blocking)


def test_a_node_that_stops_does_not_wait_for_whoever_reads_its_metrics(tmp_path: Path) -> None:
    node = Node.make(tmp_path, "node")
    with measured(node) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port))):
            assert node.process is not None
            node.process.send_signal(signal.SIGTERM)
            assert node.process.wait(5) == 0
