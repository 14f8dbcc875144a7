"""A coalition on paper, for people who plan one: `tidings simulate`.

Every node publishes, or some do; the network is as bad as was said; and one sees how long it takes until everybody has
everything, what that costs each node in bytes, and what the links cost when nothing happens. The real core decides
(`node.gossip`), so what is seen is what nodes of this version would do, and the same seed shows the same again.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

from node.config import BODY_LIMIT_BYTES, CHUNK_BYTES, GossipSettings
from node.errors import UsageError
from node.records import Record
from node.simulation.network import Conditions, random_graph, seeded
from node.simulation.simulator import Swarm

MAX_NODES: Final = 8_192
MAX_COPIES: Final = 2_000_000
"""Copies of records that one run may make: nodes times records. Each takes a few kB of memory and 1 to 2 ms."""
MAX_CHUNK_COPIES: Final = 20_000_000
MIN_BODY_BYTES: Final = 40
CONNECT_S: Final = 60.0
"""Time that nodes get to find each other before anything is published; three times that where frames are lost."""
IDLE_S: Final = 300.0
"""How long is watched, once everybody has everything, to see what links cost when nothing happens."""
STEP_S: Final = 1.0


@dataclass(frozen=True)
class Plan:
    """What is simulated. Times in seconds unless said otherwise, bandwidth in bytes per second and direction."""

    nodes: int = 16
    degree: int = 4
    records: int | None = None
    body_bytes: int = 100_000
    loss: float = 0.0
    latency_s: float = 0.05
    bandwidth: float | None = None
    cut_every_s: float | None = None
    partition_s: float = 0.0
    mean_up_s: float | None = None
    mean_down_s: float = 600.0
    seed: int = 1
    hours: float = 24.0

    def __post_init__(self) -> None:
        """UsageError, one sentence, for what cannot be meant."""
        for is_right, sentence in self._rules():
            if not is_right:
                raise UsageError(sentence)

    @property
    def authored(self) -> int:
        """How many records are published: one by each node, unless a number was given."""
        return self.nodes if self.records is None else self.records

    @property
    def conditions(self) -> Conditions:
        """The network that this asks for; each link draws its latency between half and one and a half of the mean."""
        return Conditions(
            latency_s=(0.5 * self.latency_s, 1.5 * self.latency_s),
            bandwidth=self.bandwidth,
            frame_loss=self.loss,
            mean_link_life_s=self.cut_every_s,
            late_notice_s=0.0 if self.cut_every_s is None else min(10.0, self.cut_every_s),
            mean_up_s=self.mean_up_s,
            mean_down_s=self.mean_down_s,
        )

    def _rules(self) -> list[tuple[bool, str]]:
        chunks = math.ceil(self.body_bytes / CHUNK_BYTES)
        copies = self.nodes * self.authored
        return [
            (2 <= self.nodes <= MAX_NODES, f"--nodes is from 2 to {MAX_NODES:,}, not {self.nodes:,}."),
            (self.degree >= 1, f"--degree is at least 1: each node needs somebody's address, not {self.degree}."),
            (self.authored >= 1, f"--records is at least 1, not {self.authored}."),
            (
                MIN_BODY_BYTES <= self.body_bytes <= BODY_LIMIT_BYTES,
                f"--body-size is from {MIN_BODY_BYTES} bytes to 16 MiB, not {self.body_bytes:,} bytes.",
            ),
            (
                0.0 <= self.loss <= 0.9,
                f"--loss is the share of frames that vanish, from 0 to 0.9, not {self.loss:g}; 30 % is 0.3.",
            ),
            (0.0 <= self.latency_s <= 60.0, f"--latency is from 0 to 60,000 ms, not {1_000 * self.latency_s:g}."),
            (
                self.cut_every_s is None or self.cut_every_s >= 1.0,
                f"--cut-every is at least 1 second, not {self.cut_every_s}.",
            ),
            (
                0.0 <= self.partition_s < math.inf,
                f"--partition is a number of minutes, not {self.partition_s / 60:g}.",
            ),
            (
                (self.mean_up_s is None or self.mean_up_s >= 10.0) and self.mean_down_s >= 1.0,
                "--churn is how long a node runs and rests in minutes, at least 0.2 and 0.02, as in 60,10.",
            ),
            (0.01 <= self.hours <= 10_000, f"--hours is from 0.01 to 10,000, not {self.hours:g}."),
            (
                copies <= MAX_COPIES and copies * chunks <= MAX_CHUNK_COPIES,
                f"{self.authored:,} records of {chunks:,} chunks at {self.nodes:,} nodes are more than this machine "
                "should hold; take fewer nodes, --records or a smaller --body-size.",
            ),
        ]


@dataclass(frozen=True)
class Outcome:
    """What came of it. Times in seconds since the records were published."""

    plan: Plan
    links: int
    complete_at: tuple[float, ...]
    """When each node that has everything had it, ascending; fewer than there are nodes if time ran out."""
    sent_bytes: tuple[int, ...]
    """What each node sent until then, ascending."""
    body_bytes_sent: int
    idle_bytes_per_link_hour: float | None
    """Both directions together, while nothing happens; None if it never came to that."""
    simulated_s: float
    wall_s: float

    @property
    def is_complete(self) -> bool:
        """Whether everybody has everything."""
        return len(self.complete_at) == self.plan.nodes

    @property
    def redundancy(self) -> float:
        """Body bytes that were sent, over those that the nodes which have everything lacked."""
        needed = self.plan.body_bytes * self.plan.authored * (self.plan.nodes - 1)
        return self.body_bytes_sent / needed

    @property
    def rounds(self) -> float:
        """log2 N rounds of announcing, in seconds: the bar for one small record to reach 99 % of the nodes."""
        return math.log2(self.plan.nodes) * GossipSettings().rumor_round_s

    def time_to(self, share: float) -> float | None:
        """When this share of the nodes had everything; None if never."""
        place = math.ceil(share * self.plan.nodes) - 1
        return self.complete_at[place] if place < len(self.complete_at) else None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "plan": asdict(self.plan) | {"records": self.plan.authored},
            "command": command(self.plan),
            "complete": self.is_complete,
            "seconds_to": {name: self.time_to(share) for name, share in (("50%", 0.5), ("99%", 0.99), ("100%", 1.0))},
            "log2_nodes_rounds_s": self.rounds,
            "links": self.links,
            "bytes_sent_per_node": {"mean": fmean(self.sent_bytes), "max": self.sent_bytes[-1]},
            "body_bytes_sent_over_needed": self.redundancy,
            "idle_bytes_per_link_hour": self.idle_bytes_per_link_hour,
            "complete_at": [round(at, 3) for at in self.complete_at],
            "simulated_s": self.simulated_s,
            "wall_s": round(self.wall_s, 2),
        }


_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<prefix>[kKmM]?)B?")


def parse_bytes(text: str) -> int:
    """Bytes from `2000`, `300kB` or `5MB`; UsageError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"--body-size {text!r} is not a size; write for example 2000, 300kB or 5MB.")
    return round(float(match["number"]) * {"": 1, "k": 10**3, "m": 10**6}[match["prefix"].lower()])


def parse_churn(text: str) -> tuple[float, float]:
    """Mean seconds up and down from minutes as in `60,10`; UsageError for anything else."""
    try:
        up_minutes, down_minutes = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"--churn {text!r} is not two numbers of minutes; write for example 60,10.") from None
    return 60 * up_minutes, 60 * down_minutes


def command(plan: Plan) -> str:
    """The command that shows this run again, event by event."""
    base = Plan()
    words = [f"tidings simulate --nodes {plan.nodes} --degree {plan.degree} --records {plan.authored}"]
    words.append(f"--body-size {plan.body_bytes}")
    if plan.loss:
        words.append(f"--loss {plan.loss!r}")
    if plan.latency_s != base.latency_s:
        words.append(f"--latency {plan.latency_s * 1_000!r}")
    if plan.bandwidth is not None:
        words.append(f"--bandwidth {plan.bandwidth!r}B/s")
    if plan.cut_every_s is not None:
        words.append(f"--cut-every {plan.cut_every_s!r}")
    if plan.partition_s:
        words.append(f"--partition {plan.partition_s / 60!r}")
    if plan.mean_up_s is not None:
        words.append(f"--churn {plan.mean_up_s / 60!r},{plan.mean_down_s / 60!r}")
    if plan.hours != base.hours:
        words.append(f"--hours {plan.hours!r}")
    return " ".join([*words, f"--seed {plan.seed}"])


def simulate(plan: Plan, on_progress: Callable[[float, float], None]) -> Outcome:
    """Connect, publish, spread, idle. `on_progress` gets simulated seconds and the share of copies in place."""
    started = time.monotonic()
    rng = seeded(plan.seed)
    edges = random_graph(plan.nodes, min(plan.degree, plan.nodes - 1), rng)
    swarm = Swarm(plan.seed, plan.nodes, edges, conditions=plan.conditions, settings=GossipSettings())
    _connect(swarm, plan, on_progress)
    links = len(swarm.links())
    before, bodies_before = [node.sent_bytes for node in swarm.nodes], swarm.body_bytes
    began = swarm.now
    records = _publish(swarm, plan)
    _spread(swarm, plan, records, on_progress)
    complete_at = _complete_at(swarm, records, began)
    sent = sorted(node.sent_bytes - earlier for node, earlier in zip(swarm.nodes, before, strict=True))
    spread_s, body_bytes = swarm.now - began, swarm.body_bytes - bodies_before
    idle = _idle(swarm) if len(complete_at) == plan.nodes else None
    return Outcome(plan, links, complete_at, tuple(sent), body_bytes, idle, spread_s, time.monotonic() - started)


def _connect(swarm: Swarm, plan: Plan, on_progress: Callable[[float, float], None]) -> None:
    swarm.start()
    wait_s = 3 * CONNECT_S if plan.loss else CONNECT_S
    for _ in range(round(wait_s / STEP_S)):
        swarm.run(STEP_S)
        on_progress(0.0, 0.0)


def _publish(swarm: Swarm, plan: Plan) -> list[Record]:
    """Records by different nodes, all at once; the coalition is cut in two halves at that moment, if so planned."""
    if plan.partition_s:
        swarm.partition([node.number % 2 for node in swarm.nodes])
        swarm.after(plan.partition_s, lambda: swarm.partition(None))
    authors = swarm.rng.sample(swarm.nodes, min(plan.authored, plan.nodes))
    bodies = (swarm.rng.randbytes(plan.body_bytes) for _ in range(plan.authored))
    return [authors[number % len(authors)].publish(body, chunk_bytes=CHUNK_BYTES) for number, body in enumerate(bodies)]


def _spread(swarm: Swarm, plan: Plan, records: list[Record], on_progress: Callable[[float, float], None]) -> None:
    """Let time pass until every node has every record, or the hours are over."""
    began, copies = swarm.now, plan.nodes * len(records)
    while swarm.now - began < 3_600 * plan.hours:
        if swarm.run(STEP_S, lambda: all(len(swarm.spread[record.id]) == plan.nodes for record in records)):
            break
        on_progress(swarm.now - began, sum(len(swarm.spread[record.id]) for record in records) / copies)


def _complete_at(swarm: Swarm, records: list[Record], began: float) -> tuple[float, ...]:
    """When each node had everything, of those that have it."""
    places = [swarm.spread[record.id] for record in records]
    whole = [node.number for node in swarm.nodes if all(node.number in place for place in places)]
    return tuple(sorted(max(place[number] for place in places) - began for number in whole))


def _idle(swarm: Swarm) -> float:
    """Bytes per link and hour while nothing happens, both directions together."""
    swarm.run(10.0)  # the last announcements have been made
    before, links = swarm.sent.total(), len(swarm.links())
    swarm.run(IDLE_S)
    return (swarm.sent.total() - before) / max(1, links) * 3_600 / IDLE_S
