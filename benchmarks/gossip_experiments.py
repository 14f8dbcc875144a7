"""What a coalition must survive, as experiments on simulated swarms: the tests run them small, the benchmark in full.

Each takes a seed and shows the same again for it. Real settings; each node has the addresses of four others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from node.config import CHUNK_BYTES, GossipSettings
from node.records import Record
from node.simulation.network import Conditions, line, random_graph, seeded
from node.simulation.simulator import Swarm

SETTINGS = GossipSettings()
ADDRESSES = 4
SMALL_BYTES = 2_000
THIN = 8_000.0
"""64 kbit/s."""


def coalition(n: int, seed: int, conditions: Conditions | None = None) -> Swarm:
    """Nodes that start within a second."""
    edges = random_graph(n, min(ADDRESSES, n - 1), seeded(seed))
    swarm = Swarm(seed, n, edges, conditions=conditions, settings=SETTINGS)
    swarm.start()
    return swarm


@dataclass(frozen=True)
class Spread:
    """How one small record came to everybody: seconds since it was published."""

    to_99_percent_s: float
    to_all_s: float
    """Infinite if it did not within log2 N rounds and three periods of anti-entropy."""
    redundancy: float
    """Body bytes that arrived, over those needed."""
    announced_bytes: float
    """Bytes of announcements per node."""


def rounds_s(n: int) -> float:
    """log2 N rounds of announcing, in seconds."""
    return math.log2(n) * SETTINGS.rumor_round_s


def spread(n: int, loss: float, seed: int) -> Spread:
    """One node publishes 2 kB. Before that the nodes had 20 s to connect, three minutes if frames are lost."""
    swarm = coalition(n, seed, Conditions(frame_loss=loss))
    swarm.run(180.0 if loss else 20.0)
    began = swarm.now
    places = swarm.spread[swarm.nodes[0].publish(bytes(SMALL_BYTES)).id]
    swarm.run(rounds_s(n) + 3 * SETTINGS.sync_max_s, lambda: len(places) == n)
    times = [*sorted(at - began for at in places.values()), *[math.inf] * (n - len(places))]
    redundancy = (swarm.body_bytes - swarm.lost_body_bytes) / (SMALL_BYTES * (n - 1))
    return Spread(times[math.ceil(0.99 * n) - 1], times[-1], redundancy, swarm.sent["Announce"] / n)


def redundancy(n: int, seed: int, conditions: Conditions, *, records: int = 8, body_bytes: int = 100_000) -> float:
    """Body bytes that arrived over those needed, when some nodes publish and all become equal."""
    swarm = coalition(n, seed, conditions)
    swarm.run(20.0)
    for node in swarm.rng.sample(swarm.nodes, records):
        node.publish(swarm.rng.randbytes(body_bytes), chunk_bytes=CHUNK_BYTES)
    swarm.run_until_equal(3_600.0)
    return (swarm.body_bytes - swarm.lost_body_bytes) / (records * body_bytes * (n - 1))


@dataclass(frozen=True)
class Idle:
    """What two nodes with equal stores say to each other: bytes, both directions together."""

    to_connect: int
    a_round: float
    an_hour: int


def idle(seed: int) -> Idle:
    """A link between two nodes that hold the same is cut, comes back, and then nothing happens for an hour."""
    swarm = Swarm(seed, 2, line(2), settings=SETTINGS)
    swarm.start()
    swarm.nodes[0].publish(bytes(500))
    swarm.run_until_equal(5.0)
    swarm.run(5.0)
    swarm.cut(next(iter(swarm.nodes[0].links.values())))
    before = swarm.sent.total()
    swarm.run(3.0)
    to_connect, digests = swarm.sent.total() - before, swarm.frames["Digest"]
    swarm.run(3_600.0)
    an_hour = swarm.sent.total() - before - to_connect
    return Idle(to_connect, an_hour / (swarm.frames["Digest"] - digests), an_hour)


def healing_s(n: int, hours: float, seed: int) -> float:
    """Two halves that do not reach each other for so long, while both publish; seconds from the healing to equality."""
    swarm = coalition(n, seed)
    swarm.run(10.0)
    swarm.partition([node.number % 2 for node in swarm.nodes])
    for node in swarm.rng.sample(swarm.nodes, min(n, 6)):
        node.publish(swarm.rng.randbytes(swarm.rng.randint(50, 60_000)), chunk_bytes=CHUNK_BYTES)
    swarm.run(hours * 3_600.0)
    assert not swarm.are_equal()
    swarm.partition(None)
    return swarm.run_until_equal(3_600.0)


@dataclass(frozen=True)
class ThinLine:
    """How a large body came over a thin line that is cut again and again."""

    cuts: int
    resent_chunks_per_cut: float
    took_s: float
    at_full_rate_s: float


def thin_line(seed: int, body_bytes: int = 5_000_000, life_s: float = 5.0) -> ThinLine:
    """64 kbit/s, cut `life_s` after `life_s`. NotEqual if the body is not whole within four times what it takes."""
    swarm = Swarm(seed, 2, line(2), conditions=Conditions(bandwidth=THIN), settings=SETTINGS)
    cuts = 0

    def cut_and_come_again() -> None:
        nonlocal cuts
        for link in list(swarm.nodes[0].links.values()):
            swarm.cut(link)
            cuts += 1
        swarm.after(life_s, cut_and_come_again)

    swarm.start()
    swarm.run(3.0)
    record: Record = swarm.nodes[0].publish(swarm.rng.randbytes(body_bytes), chunk_bytes=CHUNK_BYTES)
    swarm.after(life_s, cut_and_come_again)
    took_s = swarm.run_until_equal(4 * body_bytes / THIN)
    assert swarm.kept[record.id] == body_bytes
    return ThinLine(cuts, (swarm.body_bytes - body_bytes) / cuts / CHUNK_BYTES, took_s, body_bytes / THIN)
