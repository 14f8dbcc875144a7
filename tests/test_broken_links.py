"""Real nodes over broken links: `tidings serve` processes, and between them a proxy that loses, delays, cuts, corrupts.

The nodes have the settings that people get, so waiting times are those of the product: a dial waits up to a minute,
anti-entropy comes every 30 to 60 s, a silent link is given up after 40 s.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from daemons import eventually, in_an_event_loop
from processes import Node, in_a_line, joined, running
from proxy import HANDSHAKE_RETRY_S, RETRANSMIT_S, SEGMENT_BYTES, Faults, Line, Proxy, both_ways
from test_daemon import running as in_this_process

from crypto.keys import Identity
from crypto.sealing import chunk_hash
from node.config import CHUNK_BYTES, CONNECT_TIMEOUT_S, KEEPALIVE_S, KEEPALIVE_TIMEOUT_S, GossipSettings
from node.gossip.dialing import Dialer
from node.home import Home
from node.membership import add_peer
from node.publish import publish
from node.records import Kind
from node.rehearsal import wait_until
from node.server import GRPC_OPTIONS
from node.tasks import add
from node.wire import read_record

SETTINGS = GossipSettings()
TIDINGS = (sys.executable, "-m", "node")
DRAWS = 2_000
MakeNode = Callable[[str], Node]


@pytest.fixture
def make_node(tmp_path: Path) -> MakeNode:
    def make(name: str) -> Node:
        return Node.make(tmp_path, name)

    return make


# --------------------------------------------------------------------------------- seven in a line, killed at random

COUNT = 7
KILLS = 6
HANDSHAKE_SEGMENTS = 8
"""Segments that follow one another until a link carries frames: TLS (hello; certificates; certificate), HTTP/2 settings
and their answers, the call and its acceptance, Hello."""
SEGMENTS_PER_RECORD = 4
"""Announce, Want, the record, and the rest of it in a further segment: as if none shared a frame with others."""
START_S = 5.0


@dataclass(frozen=True)
class Chaos:
    """What happened: how often a node was killed, and for how long one was away at most."""

    kills: int
    longest_away_s: float


def publish_and_kill(nodes: Sequence[Node], publishers: list[Callable[[], object]], rng: random.Random) -> Chaos:
    """Everybody publishes at some moment of the first 10 s; meanwhile middle nodes are killed and come back 0.5 to 3 s
    later, several at a time if the seed will have it so."""
    events: list[tuple[float, int, Callable[[], object]]] = []
    away_since: dict[str, float] = {}
    away_s = [0.0]

    def at(when_s: float, do: Callable[[], object]) -> None:
        heapq.heappush(events, (when_s, rng.getrandbits(60), do))

    def kill(victim: Node) -> None:
        if victim.process is None:
            at(time.monotonic() - began + 1.0, lambda: kill(victim))
            return
        victim.kill()
        away_since[victim.name] = time.monotonic()
        at(time.monotonic() - began + rng.uniform(0.5, 3.0), lambda: restart(victim))

    def restart(victim: Node) -> None:
        victim.start()
        away_s.append(time.monotonic() - away_since[victim.name])

    for publisher in publishers:
        at(rng.uniform(0.0, 10.0), publisher)
    for _ in range(KILLS):
        victim = rng.choice(nodes[1:-1])
        at(rng.uniform(1.0, 10.0), lambda victim=victim: kill(victim))
    began = time.monotonic()
    while events:
        when_s, _, do = heapq.heappop(events)
        time.sleep(max(0.0, began + when_s - time.monotonic()))
        do()
    return Chaos(len(away_s) - 1, max(away_s))


def crossing_s(rng: random.Random, line: Line, segments: int) -> float:
    """The time that segments take that follow one another, as the proxy has it: the delay of each, and a timeout for
    each loss, doubled when the same segment is lost again."""
    took_s = segments * (line.delay_s + line.jitter_s)
    for _ in range(segments):
        timeout_s = RETRANSMIT_S + 2 * line.delay_s
        while rng.random() < line.loss:
            took_s += timeout_s
            timeout_s *= 2
    return took_s


def connecting_s(rng: random.Random, line: Line) -> float:
    """The time that a dial takes: a lost SYN, or its lost answer, is repeated after 1, 2, 4 s; then TLS and HTTP/2."""
    took_s, retry_s = 2 * line.delay_s, HANDSHAKE_RETRY_S
    while rng.random() < line.loss or rng.random() < line.loss:
        took_s += retry_s
        retry_s *= 2
    return took_s + crossing_s(rng, line, HANDSHAKE_SEGMENTS)


def meeting_s(rng: random.Random, faults: Faults, away_s: float) -> float:
    """How long after the return of a peer that was away for `away_s` its neighbor has a link again: the product's own
    dialing rule, drawn once. Dials fail at once while it is away; later if losses hold them up or a cut hits them."""
    me, peer = (Identity.from_seed(bytes([letter]) * 32).public_key for letter in (1, 2))
    dialer = Dialer(SETTINGS, rng, me)
    dialer.set_members({peer: ("somewhere:1",)}, [peer], 0.0)
    now = dialer.lost(peer, 0.0, was_good=True)
    while True:
        took_s = min(connecting_s(rng, faults.out), CONNECT_TIMEOUT_S) if now >= away_s else 0.0
        is_cut = rng.random() < took_s / (faults.cut_every_s or math.inf)
        now += took_s
        if now - took_s >= away_s and took_s < CONNECT_TIMEOUT_S and not is_cut:
            return now - away_s
        now += dialer.failed(peer, now)


def spreading_s(rng: random.Random, faults: Faults, segments: int) -> float:
    """The time until so many segments crossed a link that is dialed again after every cut."""
    need_s = crossing_s(rng, faults.out, segments)
    if faults.cut_every_s is None:
        return need_s
    periods = 0
    while need_s > 0:
        need_s -= max(0.0, faults.cut_every_s - meeting_s(rng, faults, 0.0))
        periods += 1
    return periods * faults.cut_every_s


def bound_s(nodes: Sequence[Node], faults: Faults, away_s: float) -> float:
    """By when after the last restart every summary is everywhere, with each part at the worst of 2,000 draws.

    1. A restarted node is up (START_S).
    2. Every link is up: the slowest of the links, all dialing at the same time.
    3. One period of anti-entropy: a link that keepalive gave up meanwhile comes back unannounced.
    4. Everything crosses: on a line, what is newest crosses all hops twice, as a key card to the origin and as a grant
       back; meanwhile every link carries all records, one after the other at worst.
    """
    rng = random.Random(0)  # noqa: S311 - draws of a model
    links = len(nodes) - 1
    meeting = max(meeting_s(rng, faults, away_s) for _ in range(DRAWS * links))
    records = [held.record for held in nodes[0].home.store.held()]
    carried = sum(len(one.header_bytes) + one.header.body_bytes for one in records) // SEGMENT_BYTES
    segments = carried + SEGMENTS_PER_RECORD * (len(records) + 2 * links)
    spreading = max(spreading_s(rng, faults, segments) for _ in range(DRAWS))
    return START_S + meeting + SETTINGS.sync_max_s + spreading


def write_rows(path: Path, rng: random.Random) -> Path:
    lines = ["age,arrival,outcome"]
    for _ in range(200):
        age, arrival = rng.randrange(100), rng.choice(["walk", "ambulance"])
        lines.append(f"{age},{arrival},{int(age + 30 * (arrival == 'ambulance') > 70)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def fused_digests(nodes: Sequence[Node], directory: Path) -> list[tuple[str, int]]:
    """The digest of every node's own fused model, and of how many summaries it is: `tidings query`, two at a time."""
    told = []
    for start in range(0, len(nodes), 2):
        asked = [
            subprocess.Popen(
                [
                    *TIDINGS,
                    "--home",
                    str(node.path),
                    "query",
                    "triage",
                    "--json",
                    "-o",
                    f"{directory / node.name}.onnx",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for node in nodes[start : start + 2]
        ]
        cards = [json.loads(one.communicate(timeout=120)[0]) for one in asked]
        told += [(card["attestation"]["digest"], len(card["manifest"]["summaries"])) for card in cards]
    return told


def check_line(make_node: MakeNode, task_file: Path, directory: Path, faults: Faults, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - chooses rows, victims and times
    nodes = [make_node(f"n{number}") for number in range(COUNT)]
    tasks = [add(node.home, str(task_file))[0] for node in nodes]
    rows = [write_rows(directory / f"{node.name}.csv", rng) for node in nodes]

    def publisher(node: Node, data: Path) -> Callable[[], object]:
        return lambda: publish(node.home, tasks[0], [data], epsilon=1.0, dataset="default", cap_epsilon=None)

    with in_a_line(nodes, faults, seed) as proxies, running(*nodes):
        chaos = publish_and_kill(nodes, list(map(publisher, nodes, rows)), rng)
        bound = bound_s(nodes, faults, chaos.longest_away_s)
        began = time.monotonic()
        wait_until(
            f"all summaries are everywhere (seed {seed})",
            lambda: all(node.readable_summaries() == COUNT for node in nodes),
            bound,
        )
        took = time.monotonic() - began
        digests = fused_digests(nodes, directory)
        lost = sum(way.lost for proxy in proxies for way in (proxy.out, proxy.back))
        segments = sum(way.segments for proxy in proxies for way in (proxy.out, proxy.back))
    print(
        f"\nseed {seed}: {chaos.kills} kills, {sum(proxy.connections for proxy in proxies)} connections, {lost} of "
        f"{segments} segments lost; everything everywhere {took:.0f} s after the last restart, bound {bound:.0f} s"
    )
    assert digests == [(digests[0][0], COUNT)] * COUNT
    assert chaos.kills == KILLS
    assert sum(proxy.connections for proxy in proxies) > len(proxies)
    assert lost > 0.7 * faults.out.loss * segments


@pytest.mark.timeout(600)
def test_seven_in_a_line_with_losses_and_kills_all_fuse_the_same_model(
    make_node: MakeNode, task_file: Path, tmp_path: Path
) -> None:
    check_line(make_node, task_file, tmp_path, both_ways(Line(loss=0.2, delay_s=0.01, jitter_s=0.01)), seed=1)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 7))
def test_seven_in_a_line_with_losses_delay_and_cuts_all_fuse_the_same_model(
    make_node: MakeNode, task_file: Path, tmp_path: Path, seed: int
) -> None:
    faults = both_ways(Line(loss=0.2, delay_s=0.1, jitter_s=0.1), cut_every_s=20.0)
    check_line(make_node, task_file, tmp_path, faults, seed)


# ------------------------------------------------------------------------------------------------------- a thin line

THIN = both_ways(Line(bytes_per_s=8_000.0, delay_s=0.01))
CUT_EVERY_S = 5.0
OVERHEAD = 1.03
"""Bytes on the line for one byte of a chunk: its Chunk frame, HTTP/2 and TLS, well under this for 16 KiB."""


def hold_the_same(one: Node, other: Node) -> bool:
    """Both have met: the same records, key cards and grants of both among them, and a moment later still."""
    if not (one.holds(Kind.KEY_CARD, other) and other.holds(Kind.KEY_CARD, one)):
        return False
    time.sleep(1.0)
    ids = [{held.record.id for held in node.home.store.held()} for node in (one, other)]
    return ids[0] == ids[1]


def set_up_bytes(make_node: MakeNode) -> int:
    """What comes to the dialing side until two nodes that hold the same have found that out."""
    dialer, answerer = make_node("equal-a"), make_node("equal-b")
    with joined(dialer, answerer) as proxy, running(dialer, answerer):
        wait_until("both hold the same", lambda: hold_the_same(dialer, answerer))
        connections, before = proxy.connections, proxy.back.delivered_bytes
        proxy.cut()
        wait_until("they are linked anew", lambda: proxy.connections > connections and dialer.is_linked_with(answerer))
        time.sleep(1.0)
        return proxy.back.delivered_bytes - before


def check_thin_line(make_node: MakeNode, body_bytes: int, limit_s: float) -> None:
    """A body comes to the dialing side over 64 kbit/s cut every 5 s. What was on the line beyond body, header and what
    every connection needs anyway, is what was sent again."""
    per_connection = set_up_bytes(make_node)
    dialer, answerer = make_node("dialer"), make_node("answerer")
    with joined(dialer, answerer, THIN) as proxy, running(dialer, answerer):
        wait_until("both hold the same", lambda: hold_the_same(dialer, answerer))
        proxy.faults = replace(THIN, cut_every_s=CUT_EVERY_S)
        connections, before, began = proxy.connections, proxy.back.delivered_bytes, time.monotonic()
        record = answerer.author(random.Random(body_bytes).randbytes(body_bytes))  # noqa: S311 - test data
        wait_until("the body crossed", lambda: dialer.has_whole(record), limit_s)
        took = time.monotonic() - began
        cuts, connections = proxy.cuts, proxy.connections - connections
        came = proxy.back.delivered_bytes - before
    needed = OVERHEAD * (record.header.body_bytes + len(record.header_bytes))
    again = (came - needed - connections * per_connection) / CHUNK_BYTES
    print(
        f"\n{body_bytes:,} B in {took:.0f} s, {cuts} cuts, {came:,} B came; {per_connection} B for a connection, "
        f"{again / cuts:.2f} chunks of {CHUNK_BYTES} B sent again per cut"
    )
    assert dialer.home.store.body(record.id) == answerer.home.store.body(record.id)
    assert cuts >= body_bytes / (CUT_EVERY_S * THIN.back.bytes_per_s)
    assert again <= cuts


@pytest.mark.timeout(600)
def test_a_body_crosses_a_thin_line_that_is_cut_every_5_s(make_node: MakeNode) -> None:
    check_thin_line(make_node, 100_000, limit_s=300.0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_megabytes_cross_a_thin_line_that_is_cut_every_5_s(make_node: MakeNode) -> None:
    check_thin_line(make_node, 5_000_000, limit_s=3_000.0)


# ------------------------------------------------------------------------------------------------ corruption, silence


def assert_nothing_invalid(node: Node) -> None:
    """Every record and chunk in the store is checked as if it had just come."""
    for held in node.home.store.held():
        again = read_record(held.record.header_bytes, held.record.signature)
        assert again.id == held.record.id
        for index, expected in enumerate(again.header.chunk_hashes):
            chunk = node.home.store.chunk(again.id, index)
            assert chunk is None or chunk_hash(chunk) == expected


@pytest.mark.timeout(300)
def test_flipped_bits_end_connections_and_nothing_else(make_node: MakeNode) -> None:
    one, other = make_node("one"), make_node("other")
    with joined(one, other, both_ways(Line(corruption=0.02)), seed=3) as proxy, running(one, other):
        noise = random.Random(3).randbytes  # noqa: S311 - test data
        records = [(node, node.author(noise(150_000))) for node in (one, other)]
        wait_until("both bodies crossed", lambda: all(n.has_whole(r) for n in (one, other) for _, r in records), 120.0)
        flipped = proxy.out.corrupted + proxy.back.corrupted
        for node in (one, other):
            assert_nothing_invalid(node)
            assert not node.home.store.conflicts()
            assert "invalid" not in (node.path / "serve.log").read_text()
    assert flipped >= 3
    assert proxy.connections >= 3


@pytest.mark.timeout(120)
def test_a_dial_that_nobody_answers_is_told_and_repeated_until_the_line_is_back(make_node: MakeNode) -> None:
    one, other = make_node("one"), make_node("other")
    with joined(one, other, both_ways(Line(is_dead=True))) as proxy, running(one, other):
        wait_until("the dial is given up", lambda: "no answer from" in one.sees(other)["reason"], 3 * CONNECT_TIMEOUT_S)
        assert one.sees(other)["state"] == "unreachable"
        proxy.faults = Faults()
        wait_until("they are linked", lambda: one.is_linked_with(other) and other.is_linked_with(one))


@in_an_event_loop
async def test_a_link_that_falls_silent_is_given_up_after_keepalive(
    make_home: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, with all times of gRPC a twentieth of what they are: 2 s in place of 40."""
    hurried = tuple((name, value // 20 if name.endswith("_ms") else value) for name, value in GRPC_OPTIONS)
    monkeypatch.setattr("node.server.GRPC_OPTIONS", hurried)
    monkeypatch.setattr("node.client.GRPC_OPTIONS", hurried)
    async with in_this_process(make_home("one")) as one, in_this_process(make_home("other")) as other:
        with Proxy(str(other.address)) as proxy:
            other.knows(one)
            add_peer(one.home, other.home.me.text, "other", proxy.address, query_only=False)
            await eventually(lambda: one.is_linked_with(other) and other.is_linked_with(one))
            proxy.faults = both_ways(Line(is_dead=True))
            await eventually(lambda: not one.is_linked_with(other) and not other.is_linked_with(one))
            assert "silent" in one.state_of(other)[1]


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("side", ["out", "back", "both"])
def test_a_link_that_falls_silent_is_given_up_after_keepalive_and_redialed(make_node: MakeNode, side: str) -> None:
    one, other = make_node("one"), make_node("other")
    dead, alive = Line(is_dead=True), Line()
    with joined(one, other) as proxy, running(one, other):
        wait_until("they are linked", lambda: one.is_linked_with(other) and other.is_linked_with(one))
        proxy.faults = Faults(alive if side == "back" else dead, alive if side == "out" else dead)
        began = time.monotonic()
        limit_s = KEEPALIVE_S + KEEPALIVE_TIMEOUT_S + 5.0  # reports are written down every second
        wait_until("the dialing side notices", lambda: not one.is_linked_with(other), limit_s)
        dialer_s, reason = time.monotonic() - began, one.sees(other)["reason"]
        wait_until("the other notices", lambda: not other.is_linked_with(one), limit_s - dialer_s)
        print(f"\n{side}: noticed after {dialer_s:.0f} and {time.monotonic() - began:.0f} s: {reason}")
        assert "it fell silent" in reason
        proxy.faults = Faults()
        wait_until("they are linked again", lambda: one.is_linked_with(other) and other.is_linked_with(one), 120.0)


# ---------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.timeout(120)
def test_an_address_that_changes_is_dialed_without_a_restart(make_node: MakeNode) -> None:
    one, other = make_node("one"), make_node("other")
    with joined(one, other, Faults(refuses=True)) as old, Proxy(str(other.address)) as new, running(one, other):
        wait_until("the old address fails", lambda: "nothing listens" in one.sees(other)["reason"])
        one.tidings("peer", "add", other.home.me.text, "--address", new.address)
        wait_until("the new address is used", lambda: one.is_linked_with(other), 5.0)
        assert new.connections == 1
        # Back to the old one while the link is up: it stays, and the next dial goes there.
        old.faults = Faults()
        one.tidings("peer", "add", other.home.me.text, "--address", old.address)
        time.sleep(2.0)
        assert one.is_linked_with(other)
        assert old.connections == 0
        new.cut()
        wait_until("the old address is used again", lambda: old.live == 1 and one.is_linked_with(other))
        assert new.connections == 1


@pytest.mark.timeout(120)
def test_a_link_over_ipv6(tmp_path: Path) -> None:
    try:
        one, other = Node.make(tmp_path, "one"), Node.make(tmp_path, "other", "[::1]")
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with joined(one, other) as proxy, running(one, other):
        assert proxy.address.startswith("[::1]:")
        record = other.author(b"six")
        wait_until("a record came over IPv6", lambda: one.has_whole(record))


# ------------------------------------------------------------------------------------------------------------- clocks

TEN_YEARS_S = 10 * 365 * 86_400


class Clock:
    """The wall clock of one node and of the commands on its home, by a library that they preload."""

    def __init__(self, library: Path, path: Path) -> None:
        self._path = path
        self._path.write_bytes(bytes(8))
        self._environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(path)}

    def is_off_by(self, seconds: int) -> None:
        """From now on, also in a process that runs."""
        with open(self._path, "r+b") as file:
            file.write(struct.pack("q", seconds))

    @contextmanager
    def rules(self) -> Iterator[None]:
        """Processes that start meanwhile live by this clock."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            yield


@pytest.fixture
def clock_library(tmp_path: Path) -> Path:
    library = tmp_path / "clock_shift.so"
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("moving the clock of a process takes a C compiler and Linux")
    source = Path(__file__).parent / "clock_shift.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "watched_s", [3.0, pytest.param(2.0 * SETTINGS.sync_max_s, marks=pytest.mark.soak)], ids=["briefly", "for long"]
)
def test_clocks_ten_years_off_that_jump_while_nodes_run_cut_no_link_and_reject_no_record(
    make_node: MakeNode, clock_library: Path, task_file: Path, rows_file: Path, tmp_path: Path, watched_s: float
) -> None:
    nodes = early, right, late = make_node("early"), make_node("right"), make_node("late")
    clocks = {node.name: Clock(clock_library, tmp_path / f"{node.name}.clock") for node in nodes}

    def set_clocks(**seconds: int) -> None:
        for name, off_s in seconds.items():
            clocks[name].is_off_by(off_s)

    def start(node: Node) -> None:
        with clocks[node.name].rules():
            node.start()

    def publishes(node: Node) -> None:
        with clocks[node.name].rules():
            node.tidings("publish", "triage", str(rows_file), "--epsilon", "1")

    early.knows(late)
    late.knows(early)
    tasks = [add(node.home, str(task_file))[0] for node in nodes]
    set_clocks(early=-TEN_YEARS_S, late=TEN_YEARS_S)
    with joined(early, right) as first, joined(right, late) as second, running(*nodes, start=start):
        publishes(early)
        publishes(late)
        wait_until("everybody has two", lambda: all(node.readable_summaries() == 2 for node in nodes))
        connections = first.connections, second.connections
        set_clocks(early=TEN_YEARS_S, right=-TEN_YEARS_S, late=0)  # while they run
        publishes(right)
        wait_until("everybody has three", lambda: all(node.readable_summaries() == 3 for node in nodes))
        time.sleep(watched_s)
        for node, other in ((early, right), (right, early), (right, late), (late, right)):
            assert node.is_linked_with(other)
        assert (first.connections, second.connections) == connections
        for node in nodes:
            assert_nothing_invalid(node)
            assert "invalid" not in (node.path / "serve.log").read_text()
    created = {
        early.home.peers.name_of(held.record.header.origin): held.record.header.created_unix_ms / 1000 - time.time()
        for held in early.home.store.held(kind=Kind.SUMMARY, task_id=tasks[0].id)
    }
    expected = {"early": -TEN_YEARS_S, "right": -TEN_YEARS_S, "late": TEN_YEARS_S}
    assert created == pytest.approx(expected, abs=300.0), "the clocks were what this test is about"
