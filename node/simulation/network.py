"""The network of a simulated swarm (`simulator`): who has whose address, and links that fail as real ones do.

A link is an ordered, reliable stream until it is cut, as over gRPC, with latency and bandwidth of its own. On top of
that, `Conditions` says what goes wrong: frames lost (which a stream does not do, and a lossy courier does), frames that
come twice or out of turn, links cut with one side noticing late, and frames that were on the way arriving all the same.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from crypto.keys import PublicKey
from node import wire
from node.frames import Chunk, Frame, Missing, Records, SignedRecord
from node.gossip.events import FrameIn, PeersChanged, SendChunk, SendRecords

if TYPE_CHECKING:
    from node.records import Record
    from node.simulation.simulator import Node, Swarm

Edge = tuple[int, int]

CACHED_FRAMES: Final = 2_048
"""Frames whose bytes are remembered: equal ones are encoded and decoded once. At most this many chunks stay in memory
that no store holds any more."""


def seeded(seed: float) -> random.Random:
    """Randomness that replays; nothing here is a secret."""
    return random.Random(seed)  # noqa: S311


# ------------------------------------------------------------------------------------------------ who has whose address


def line(n: int) -> list[Edge]:
    """Each node has the address of the next."""
    return [(i, i + 1) for i in range(n - 1)]


def ring(n: int) -> list[Edge]:
    """A line with its ends tied."""
    return [*line(n), (n - 1, 0)]


def random_graph(n: int, degree: int, rng: random.Random) -> list[Edge]:
    """A connected graph: each node has the addresses of `degree` others, one of them of an earlier node."""
    edges: list[Edge] = []
    for a in range(n):
        known = {rng.randrange(a)} if a else set()
        while len(known) < min(degree, n - 1):
            known.add(rng.randrange(n))
            known.discard(a)
        edges += [(a, b) for b in sorted(known)]
    return edges


class Roster(Mapping[PublicKey, tuple[str, ...]]):
    """All members, as one node knows them: everyone by key, a few with an address. What all nodes share exists once."""

    def __init__(
        self,
        everyone: Mapping[PublicKey, tuple[str, ...]],
        addresses: dict[PublicKey, tuple[str, ...]],
        origins: frozenset[bytes],
    ) -> None:
        self._everyone = everyone
        self._addresses = addresses
        self._origins = origins

    def event(self) -> PeersChanged:
        """What tells a core of these members."""
        return PeersChanged(self, self._origins, tuple(self._addresses))

    def __getitem__(self, key: PublicKey) -> tuple[str, ...]:
        return self._addresses.get(key) or self._everyone[key]

    def __contains__(self, key: object) -> bool:
        return key in self._everyone

    def __iter__(self) -> Iterator[PublicKey]:
        return iter(self._everyone)

    def __len__(self) -> int:
        return len(self._everyone)


def peers_changed(members: Mapping[PublicKey, tuple[str, ...]]) -> PeersChanged:
    """What tells a core of its members."""
    return members.event() if isinstance(members, Roster) else PeersChanged(members)


# --------------------------------------------------------------------------------------------------------------- links


@dataclass(frozen=True)
class Conditions:
    """How the network and the nodes behave. Times in seconds, bandwidth in bytes per second and direction."""

    latency_s: tuple[float, float] = (0.01, 0.1)
    """One way; each link draws its own."""
    jitter_s: float = 0.0
    """Up to this much more for each frame; those behind it wait, since a stream keeps its order."""
    bandwidth: float | None = None
    frame_loss: float = 0.0
    duplication: float = 0.0
    """Share of frames that arrive once more, up to `astray_s` later."""
    reordering: float = 0.0
    """Share of frames that are overtaken: they arrive up to `astray_s` late and hold nothing up."""
    astray_s: float = 2.0
    mean_link_life_s: float | None = None
    late_notice_s: float = 0.0
    """One side of a link that is cut notices at once, the other up to this much later."""
    delivers_after_cut: bool = False
    """Frames that were on the way when a link was cut arrive all the same, beside those of the next link."""
    mean_up_s: float | None = None
    mean_down_s: float = 60.0
    """Churn: a node runs and rests for times drawn from exponential distributions with these means."""


@functools.lru_cache(CACHED_FRAMES)
def carried(frame: Frame) -> tuple[Frame | None, int]:
    """What the codec makes of a frame on the far side, and its size on the wire in bytes."""
    data = wire.encode(frame)
    return wire.decode(data), len(data)


@dataclass
class Direction:
    """One way of a link: what waits to be sent, frames before records with their bodies before chunks."""

    frames: deque[Frame] = field(default_factory=deque)
    records: deque[SendRecords] = field(default_factory=deque)
    chunks: deque[SendChunk] = field(default_factory=deque)
    sending: Frame | None = None
    sent_at: float = 0.0
    arrives_at: float = 0.0


class Wire:
    """A link between two nodes; `ends` are (node, its number for the link), the dialing one first."""

    def __init__(self, swarm: Swarm, dialer: Node, acceptor: Node) -> None:
        self.swarm = swarm
        self.ends = {dialer.number: next(dialer.link_numbers), acceptor.number: next(acceptor.link_numbers)}
        self.nodes = (dialer, acceptor)
        self.lives = (dialer.life, acceptor.life)
        self.latency_s = swarm.rng.uniform(*swarm.conditions.latency_s)
        self.is_cut = False
        self.directions = {dialer.number: Direction(), acceptor.number: Direction()}

    def other(self, node: Node) -> Node:
        """The node at the other end."""
        return self.nodes[1] if node is self.nodes[0] else self.nodes[0]

    def push(self, sender: Node) -> None:
        """Send the next thing that waits, if the line is free."""
        way = self.directions[sender.number]
        while way.sending is None and not self.is_cut and (way.frames or way.records or way.chunks):
            self._send(sender, way, self._next(sender, way))

    def cut(self, reason: str, notices: Iterable[tuple[Node, float]]) -> None:
        """End the link; each of these nodes notices after its delay."""
        if self.is_cut:
            return
        self.is_cut = True
        for node in self.nodes:
            self._stop_sending(node)
        for node, delay_s in notices:
            number, life = self.ends[node.number], node.life
            self.swarm.after(delay_s, functools.partial(node.link_down, number, reason, life))

    def _send(self, sender: Node, way: Direction, frame: Frame) -> None:
        swarm, conditions = self.swarm, self.swarm.conditions
        arrived, size = carried(frame)
        swarm.count(sender, frame, size)
        busy_s = 0.0
        if conditions.bandwidth:
            busy_s = size / conditions.bandwidth
            way.sending, way.sent_at = frame, swarm.now + busy_s
            swarm.after(busy_s, functools.partial(self._sent, sender, way))
        if conditions.frame_loss and swarm.rng.random() < conditions.frame_loss:
            swarm.lose(frame)
            return
        arrive = functools.partial(self._arrive, sender, arrived)
        due = swarm.now + busy_s + self.latency_s + (conditions.jitter_s and swarm.rng.uniform(0, conditions.jitter_s))
        if conditions.duplication and swarm.rng.random() < conditions.duplication:
            swarm.at(due + swarm.rng.uniform(0, conditions.astray_s), arrive)
        if conditions.reordering and swarm.rng.random() < conditions.reordering:
            swarm.at(due + swarm.rng.uniform(0, conditions.astray_s), arrive)
        else:
            way.arrives_at = max(way.arrives_at, due)
            swarm.at(way.arrives_at, arrive)

    def _next(self, sender: Node, way: Direction) -> Frame:
        if way.frames:
            return way.frames.popleft()
        if way.records:
            return Records(tuple(self._with_body(sender, record) for record in way.records.popleft().records))
        return self._load(sender, way.chunks.popleft())

    def _with_body(self, sender: Node, record: Record) -> SignedRecord:
        parts = [sender.store.chunk(record.id, index) or b"" for index in range(len(record.header.chunk_hashes))]
        return SignedRecord(record.header_bytes, record.signature, b"".join(parts) if all(parts) else b"")

    def _load(self, sender: Node, wanted: SendChunk) -> Frame:
        indexes = range(wanted.index, wanted.index + wanted.count)
        parts = [sender.store.chunk(wanted.record_id, index) or b"" for index in indexes]
        if not all(parts):
            return Missing(wanted.record_id)
        return Chunk(wanted.record_id, wanted.index, b"".join(parts))

    def _sent(self, sender: Node, way: Direction) -> None:
        way.sending = None
        self.push(sender)

    def _stop_sending(self, sender: Node) -> None:
        """What had not left yet when the link was cut was not sent."""
        way, bandwidth = self.directions[sender.number], self.swarm.conditions.bandwidth
        if way.sending is not None and bandwidth:
            unsent = round((way.sent_at - self.swarm.now) * bandwidth)
            self.swarm.count(sender, way.sending, -unsent)

    def _arrive(self, sender: Node, frame: Frame | None) -> None:
        receiver = self.other(sender)
        index = self.nodes.index(receiver)
        is_open = not self.is_cut or self.swarm.conditions.delivers_after_cut
        if frame is not None and is_open and receiver.life == self.lives[index]:
            receiver.tell(FrameIn(self.ends[receiver.number], frame))
