"""A member that floods: real processes, a hostile one that keeps to no rule, and what it gets.

Bounds have a large margin, because machines differ and are shared; `python -m benchmarks flood` writes down figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import eventually
from processes import Node, running

from benchmarks.flood import cpu_s, memory
from benchmarks.hostile import KINDS
from crypto.keys import Identity
from node import tolls
from node.config import GossipSettings
from node.frames import Announce, Chunk, Want
from node.gossip.core import Gossip
from node.gossip.events import BadFrame, LinkUp, PeersChanged
from node.hang_up import hang_up
from node.knocks import BURST, Knocks
from node.membership import add_peer
from node.simulation.network import seeded
from node.tolls import BURST_S, SHARE, Toll, price_s

CONNECTIONS = 4
MOST_OF_A_CORE = 0.6
MOST_MEMORY_MB = 150
FRAMES = [kind for kind in KINDS if kind not in ("connections", "queries")]


class Attacked:
    """A victim with an honest peer and one hostile member for each kind of flood."""

    def __init__(self, directory: Path, kinds: list[str]) -> None:
        self.victim, self.honest = Node.make(directory, "victim"), Node.make(directory, "honest")
        self.hostile = {kind: Identity.generate() for kind in kinds}
        self.victim.knows(self.honest, str(self.honest.address))
        self.honest.knows(self.victim)
        for kind, identity in self.hostile.items():
            add_peer(self.victim.home, identity.public_key.text, kind, None, query_only=False)

    def flood(self, kind: str, seconds: float) -> subprocess.Popen[str]:
        words = [self.hostile[kind].seed.hex(), str(self.victim.address), kind, str(seconds), str(CONNECTIONS)]
        command = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.hostile", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)


@pytest.fixture
def attacked(tmp_path: Path) -> Iterator[Attacked]:
    stage = Attacked(tmp_path, FRAMES)
    with running(stage.victim, stage.honest):
        eventually(lambda: stage.victim.is_linked_with(stage.honest))
        yield stage


def check_flood(stage: Attacked, kind: str, seconds: float) -> None:
    """The flood is let through in small part, costs little, and an honest body arrives in the middle of it."""
    assert stage.victim.process is not None
    pid = stage.victim.process.pid
    used_s, before_mb = cpu_s(pid), memory(pid, "VmRSS")
    began = time.monotonic()
    flood = stage.flood(kind, seconds)
    time.sleep(min(1.5, seconds / 2))
    record = stage.honest.author(os.urandom(100_000))
    eventually(lambda: stage.victim.has_whole(record))
    said, _ = flood.communicate(timeout=60)
    tally = json.loads(said)
    assert tally["connections"] >= 1, kind
    assert stage.victim.process.poll() is None
    assert (cpu_s(pid) - used_s) / (time.monotonic() - began) < MOST_OF_A_CORE, kind
    assert memory(pid, "VmRSS") - before_mb < MOST_MEMORY_MB, kind
    assert stage.victim.is_linked_with(stage.honest), kind


@pytest.mark.parametrize("kinds", [("garbage", "unasked chunks"), ("vectors", "hellos")])
def test_a_flood_costs_little_and_holds_up_nobody(attacked: Attacked, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        check_flood(attacked, kind, 3.0)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_every_kind_of_flood_costs_little_and_holds_up_nobody(attacked: Attacked) -> None:
    for kind in FRAMES:
        check_flood(attacked, kind, 15.0)


def test_useless_frames_are_read_no_faster_than_they_may_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> float:
        loop = asyncio.get_running_loop()
        slept = 0.0

        async def sleep(seconds: float) -> None:
            nonlocal slept
            slept += seconds

        monkeypatch.setattr(loop, "time", lambda: slept)
        monkeypatch.setattr(tolls.asyncio, "sleep", sleep)
        toll = Toll()
        for _ in range(100_000):
            toll.charge(price_s(None, 100))
            await toll.paid()
        return slept

    cost_s = 100_000 * price_s(None, 100)
    assert asyncio.run(play()) == pytest.approx((cost_s - BURST_S) / SHARE, rel=0.01)


def test_a_frame_costs_more_the_more_work_it_makes() -> None:
    chunk, announce, want = Chunk(bytes(32), 0, b""), Announce(()), Want(())
    assert price_s(chunk, 60_000) < price_s(announce, 60_000) < price_s(want, 60_000)
    assert price_s(None, 0) > 0


def test_an_honest_node_is_not_slowed_down_by_what_it_may_cost() -> None:
    """The first meeting of two nodes with 10,000 origins that all differ, and an idle link, by their sizes."""
    meeting_s = sum(price_s(Announce(()), size) for size in (10_000 * 72, 10_000 * 90))
    assert meeting_s < BURST_S
    idle_s = 2 * price_s(None, 100)
    assert idle_s / GossipSettings().sync_max_s < SHARE / 100


def test_a_peer_that_does_it_again_is_kept_out_twice_as_long_and_forgiven_in_time() -> None:
    settings = GossipSettings()
    me, peer = Identity.generate(), Identity.generate().public_key
    core = Gossip(settings, seeded(1), me.public_key, bytes(8), ())
    core.handle(PeersChanged({peer: ()}), 0.0)
    now, link, waits = 0.0, 0, []

    def offend() -> float:
        nonlocal link
        link += 1
        core.handle(LinkUp(link, peer, dialed_by_us=False), now)
        for _ in range(settings.max_strikes + 1):
            core.handle(BadFrame(link, "garbage"), now)
        return core.kept_out_s(peer, now)

    for _ in range(10):
        waits.append(offend())
        now += waits[-1]
    assert waits == [min(settings.penalty_cap_s, settings.penalty_s * 2**number) for number in range(10)]
    now += 20 * settings.penalty_cap_s
    assert offend() == settings.penalty_s


def test_a_key_that_opens_streams_without_end_waits_and_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.knocks.HOLD_S", 0.05)
    monkeypatch.setattr("node.knocks.MAX_HELD", 2)
    key, other = (Identity.generate().public_key for _ in range(2))

    async def play() -> list[bool]:
        knocks = Knocks()
        assert [knocks.is_welcome(key) for _ in range(BURST + 1)] == [True] * BURST + [False]
        assert knocks.is_welcome(other)
        return await asyncio.gather(*(knocks.hold(key) for _ in range(3)))

    assert asyncio.run(play()) == [True, True, False]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_hanging_up_ends_one_connection_and_no_other(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        clients = [socket.create_connection(listening.getsockname()[:2]) for _ in range(2)]
        served = [listening.accept()[0] for _ in clients]
        name = clients[0].getsockname()
        address = f"ipv6:%5B{name[0]}%5D:{name[1]}" if ":" in host else f"ipv4:{name[0]}:{name[1]}"
        assert hang_up(address)
        assert clients[0].recv(1) == b""
        served[1].sendall(b"x")
        assert clients[1].recv(1) == b"x"
        for one in (*clients, *served):
            one.close()
        assert not hang_up(address)
    for nonsense in ("", "unix:/tmp/x", "ipv4:", "ipv4:1.2.3.4", "ipv4:1.2.3.4:x", "ipv6:[::1%lo]:-"):
        assert not hang_up(nonsense)
