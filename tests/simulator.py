"""A swarm on paper: the real gossip core and the real wire codec, on a fake clock, from one seed.

Nodes are `node.gossip.Gossip` with a store in memory; links are ordered and reliable until they are cut, as over
gRPC, with latency and bandwidth of their own. What can be made to go wrong: links cut (one side noticing later than
the other), frames lost, partitions, nodes that stop and come back with what they had stored, nodes that nobody can
dial.

Everything random comes from the seed, events at one instant happen in the order they were planned: a run replays
exactly. The shell's duties are the daemon's: actions in order, frames before chunks, chunks loaded when their turn
comes.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from crypto.keys import Identity, PublicKey
from crypto.sealing import chunk_hashes
from node import wire
from node.config import GossipSettings
from node.events import (
    Action,
    Alarm,
    Close,
    Dial,
    DialFailed,
    Event,
    FrameIn,
    Keep,
    KeepChunk,
    LinkDown,
    LinkUp,
    PeersChanged,
    RecordAdded,
    Report,
    Send,
    SendChunk,
    Tick,
)
from node.frames import Chunk, Frame, Missing
from node.gossip import Gossip
from node.records import Header, Held, HeldState, Kind, Record, can_bury, chunk_size

Edge = tuple[int, int]

FAST = GossipSettings(sync_min_s=5.0, sync_max_s=10.0, dial_cap_s=20.0)
"""Shorter periods than a real node's, so that a simulated minute holds more of what can go wrong."""


def seeded(seed: float) -> random.Random:
    """Randomness that replays; nothing here is a secret."""
    return random.Random(seed)  # noqa: S311


def line(n: int) -> list[Edge]:
    """Each node has the address of the next."""
    return [(i, i + 1) for i in range(n - 1)]


def ring(n: int) -> list[Edge]:
    """A line with its ends tied."""
    return [*line(n), (n - 1, 0)]


def random_graph(n: int, degree: int, rng: random.Random) -> list[Edge]:
    """A connected graph in which a node has the address of about `degree` others."""
    edges = {(i, rng.randrange(i)) for i in range(1, n)}
    while len(edges) < n * degree:
        a, b = rng.sample(range(n), 2)
        edges.add((a, b))
    return sorted(edges)


def author_record(
    identity: Identity,
    sequence: int,
    body: bytes = b"",
    *,
    supersedes: bytes = b"",
    incarnation: bytes = b"incarnat",
    chunk_bytes: int = 65_536,
) -> Record:
    """A signed SUMMARY with this sealed body, or a WITHDRAWAL without one."""
    header = Header(Kind.WITHDRAWAL, identity.public_key, incarnation, sequence, 0, supersedes=supersedes)
    if body:
        header = replace(
            header,
            kind=Kind.SUMMARY,
            epoch=1,
            task_id=bytes(32),
            body_bytes=len(body),
            chunk_bytes=chunk_bytes,
            chunk_hashes=chunk_hashes(body, chunk_bytes),
            key_commitment=bytes(32),
        )
    return wire.author(identity, header)


class MemoryStore:
    """The semantics of node.store.Store, as far as gossip needs them, without a disk."""

    def __init__(self) -> None:
        self._held: dict[bytes, Held] = {}
        self._chunks: dict[tuple[bytes, int], bytes] = {}

    def add_record(self, record: Record) -> Held:
        if record.id not in self._held:
            missing = tuple(range(len(record.header.chunk_hashes)))
            state = HeldState.FETCHING if missing else HeldState.COMPLETE
            self._held[record.id] = Held(record, state, 0.0, missing)
            for other in list(self._held.values()):
                self._bury(other.record, record)
                self._bury(record, other.record)
        return self._held[record.id]

    def add_chunk(self, record_id: bytes, index: int, data: bytes) -> Held:
        held = self._held[record_id]
        if held.state is HeldState.FETCHING and index in held.missing:
            assert len(data) == chunk_size(held.record.header, index)
            self._chunks[record_id, index] = data
            missing = tuple(i for i in held.missing if i != index)
            state = HeldState.FETCHING if missing else HeldState.COMPLETE
            self._held[record_id] = replace(held, missing=missing, state=state)
        return self._held[record_id]

    def chunk(self, record_id: bytes, index: int) -> bytes | None:
        return self._chunks.get((record_id, index))

    def get(self, record_id: bytes) -> Held | None:
        return self._held.get(record_id)

    def held(self) -> list[Held]:
        return list(self._held.values())

    def _bury(self, burier: Record, target: Record) -> None:
        held = self._held[target.id]
        names_it = burier.header.supersedes == target.id and can_bury(burier.header, target.header)
        if names_it and held.state is not HeldState.BURIED:
            self._held[target.id] = replace(held, state=HeldState.BURIED, missing=(), buried_by=burier.id)
            for index in range(len(target.header.chunk_hashes)):
                self._chunks.pop((target.id, index), None)


@dataclass
class Conditions:
    """How the network behaves. Times in seconds, bandwidth in bytes per second and direction."""

    latency_s: tuple[float, float] = (0.01, 0.1)
    bandwidth: float | None = None
    frame_loss: float = 0.0
    mean_link_life_s: float | None = None
    late_notice_s: float = 0.0


@dataclass
class Direction:
    """One way of a link: what waits to be sent, frames before chunks."""

    frames: deque[Frame] = field(default_factory=deque)
    chunks: deque[SendChunk] = field(default_factory=deque)
    is_sending: bool = False
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
        return self.nodes[1] if node is self.nodes[0] else self.nodes[0]

    def push(self, sender: Node) -> None:
        """Send the next thing that waits, if the line is free."""
        way = self.directions[sender.number]
        if way.is_sending or self.is_cut or not (way.frames or way.chunks):
            return
        frame = way.frames.popleft() if way.frames else self._load(sender, way.chunks.popleft())
        data = wire.encode(frame)
        self.swarm.count(frame, len(data))
        bandwidth = self.swarm.conditions.bandwidth
        busy_s = len(data) / bandwidth if bandwidth else 0.0
        way.is_sending = True
        self.swarm.after(busy_s, lambda: self._sent(sender, way))
        if self.swarm.rng.random() >= self.swarm.conditions.frame_loss:
            way.arrives_at = max(way.arrives_at, self.swarm.now + busy_s + self.latency_s)
            self.swarm.at(way.arrives_at, lambda: self._arrive(sender, data))

    def cut(self, reason: str, notices: Iterable[tuple[Node, float]]) -> None:
        """End the link; each of these nodes notices after its delay."""
        if self.is_cut:
            return
        self.is_cut = True
        for node, delay_s in notices:
            number, life = self.ends[node.number], node.life
            self.swarm.after(delay_s, lambda n=node, k=number, age=life: n.link_down(k, reason, age))

    def _load(self, sender: Node, wanted: SendChunk) -> Frame:
        data = sender.store.chunk(wanted.record_id, wanted.index)
        return Missing(wanted.record_id) if data is None else Chunk(wanted.record_id, wanted.index, data)

    def _sent(self, sender: Node, way: Direction) -> None:
        way.is_sending = False
        self.push(sender)

    def _arrive(self, sender: Node, data: bytes) -> None:
        receiver = self.other(sender)
        if not self.is_cut:
            frame = wire.decode(data)
            assert frame is not None
            receiver.tell(FrameIn(self.ends[receiver.number], frame))


class Node:
    """One node of the swarm: a core, its store, and the shell's half of the work."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        self.swarm = swarm
        self.number = number
        self.identity = Identity.from_seed(number.to_bytes(32, "big"))
        self.key = self.identity.public_key
        self.store = MemoryStore()
        self.members: dict[PublicKey, tuple[str, ...]] = {}
        self.links: dict[int, Wire] = {}
        self.link_numbers = itertools.count(1)
        self.sequence = 0
        self.life = 0
        self.is_up = False
        self.ticks_at: float | None = None
        self.alarms: list[Alarm] = []
        self.reports: dict[PublicKey, Report] = {}
        self.core: Gossip

    def start(self) -> None:
        """Begin a life with what is stored."""
        self.life += 1
        self.is_up = True
        self.ticks_at = None
        rng = seeded(self.swarm.rng.random())
        self.core = Gossip(self.swarm.settings, rng, self.key, self.number.to_bytes(8, "big"), self.store.held())
        self.tell(PeersChanged(self.members))

    def stop(self) -> None:
        """Die without a word; the other ends notice soon after."""
        self.is_up = False
        for link in list(self.links.values()):
            link.cut("the other side is gone", [(link.other(self), 0.1)])
        self.links.clear()

    def set_members(self, members: dict[PublicKey, tuple[str, ...]]) -> None:
        self.members = members
        if self.is_up:
            self.tell(PeersChanged(members))

    def publish(self, body: bytes = b"", *, supersedes: bytes = b"", chunk_bytes: int = 65_536) -> Record:
        """Author a record and keep it, as a command beside the daemon does."""
        self.sequence += 1
        record = author_record(self.identity, self.sequence, body, supersedes=supersedes, chunk_bytes=chunk_bytes)
        self.store.add_record(record)
        for index in range(len(record.header.chunk_hashes)):
            start = index * chunk_bytes
            self.store.add_chunk(record.id, index, body[start : start + chunk_bytes])
        held = self.store.get(record.id)
        assert held is not None
        if self.is_up:
            self.tell(RecordAdded(held))
        return record

    def tell(self, event: Event) -> None:
        """Hand an event to the core and do what it asks for, then plan its next tick."""
        if not self.is_up:
            return
        for action in self.core.handle(event, self.swarm.now):
            self._do(action)
        deadline = self.core.next_deadline()
        if deadline is not None and (self.ticks_at is None or deadline < self.ticks_at):
            self.ticks_at = max(deadline, self.swarm.now)
            self.swarm.at(self.ticks_at, lambda life=self.life, at=self.ticks_at: self._tick(life, at))

    def link_down(self, number: int, reason: str, life: int) -> None:
        if self.life == life and self.links.pop(number, None) is not None:
            self.tell(LinkDown(number, reason))

    def _tick(self, life: int, at: float) -> None:
        if self.life == life and self.ticks_at == at:
            self.ticks_at = None
            self.tell(Tick())

    def _do(self, action: Action) -> None:
        match action:
            case Dial(peer):
                self.swarm.dial(self, peer)
            case Close(number, reason):
                link = self.links.pop(number, None)
                if link is not None:
                    link.cut(reason, [(link.other(self), link.latency_s)])
            case Send(number, frame):
                if number in self.links:
                    self.links[number].directions[self.number].frames.append(frame)
                    self.links[number].push(self)
            case SendChunk(number):
                if number in self.links:
                    self.links[number].directions[self.number].chunks.append(action)
                    self.links[number].push(self)
            case Keep(record):
                self.store.add_record(record)
            case KeepChunk(record_id, index, data):
                self.swarm.kept[record_id] += len(data)
                self.store.add_chunk(record_id, index, data)
            case Report(peer):
                self.reports[peer] = action
            case Alarm():
                self.alarms.append(action)


class Swarm:
    """Nodes, the network between them, and the clock."""

    def __init__(
        self,
        seed: int,
        n: int,
        edges: Iterable[Edge],
        *,
        conditions: Conditions | None = None,
        settings: GossipSettings = FAST,
        wire: type[Wire] = Wire,
    ) -> None:
        self.seed = seed
        self.wire = wire
        self.rng = seeded(seed)
        self.now = 1_000.0
        self.settings = settings
        self.conditions = conditions or Conditions()
        self.sent: Counter[str] = Counter()
        self.frames: Counter[str] = Counter()
        self.kept: Counter[bytes] = Counter()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._sides: list[int] | None = None
        self.nodes = [Node(self, number) for number in range(n)]
        self.by_key = {node.key: node for node in self.nodes}
        known: dict[int, set[int]] = {number: set() for number in range(n)}
        for a, b in edges:
            known[a].add(b)
        for node in self.nodes:
            node.members = {
                other.key: (f"node{other.number}",) if other.number in known[node.number] else ()
                for other in self.nodes
                if other is not node
            }

    def start(self) -> None:
        """Start all nodes within a second."""
        for node in self.nodes:
            self.after(self.rng.random(), node.start)

    # ---------------------------------------------------------------------------------------------- the clock

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay_s, action)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; returns early, with True, once `until` holds (looked at every half second)."""
        end = self.now + seconds
        while self.now < end:
            step = min(self.now + 0.5, end)
            while self._events and self._events[0][0] <= step:
                self.now, _, action = heapq.heappop(self._events)
                action()
            self.now = step
            if until is not None and until():
                return True
        return until is None

    def run_until_equal(self, limit_s: float) -> float:
        """Run until all nodes have settled the same records; returns the seconds it took."""
        start = self.now
        if not self.run(limit_s, self.are_equal):
            settled = [len(settled_ids(node)) for node in self.nodes]
            raise AssertionError(
                f"not equal after {limit_s} s: settled per node {settled}; replay with seed {self.seed}"
            )
        return self.now - start

    def are_equal(self) -> bool:
        """Whether all nodes are up and have settled every record that any node holds."""
        if not all(node.is_up for node in self.nodes):
            return False
        wanted = {held.record.id for node in self.nodes for held in node.store.held()}
        return all(settled_ids(node) == wanted for node in self.nodes)

    # -------------------------------------------------------------------------------------------- the network

    def dial(self, dialer: Node, peer: PublicKey) -> None:
        """Connect after a round trip, or fail."""
        acceptor, life = self.by_key[peer], dialer.life
        latency_s = self.rng.uniform(*self.conditions.latency_s)

        def arrive() -> None:
            if dialer.life != life or not dialer.is_up:
                return
            if not self._can_reach(dialer, acceptor) or dialer.key not in acceptor.members:
                self.after(latency_s, lambda: self._fail(dialer, peer, life))
                return
            link = self.wire(self, dialer, acceptor)
            self._plan_cut(link)
            for node, delay_s in ((acceptor, 0.0), (dialer, link.latency_s)):
                self.after(delay_s, lambda n=node: self._link_up(n, link))

        self.after(latency_s, arrive)

    def _link_up(self, node: Node, link: Wire) -> None:
        index = link.nodes.index(node)
        if node.life != link.lives[index] or not node.is_up:
            link.cut("the other side is gone", [(link.other(node), 0.1)])
        elif link.is_cut:
            if index == 0:
                node.tell(DialFailed(link.nodes[1].key, "connection lost"))
        else:
            number = link.ends[node.number]
            node.links[number] = link
            node.tell(LinkUp(number, link.other(node).key, dialed_by_us=index == 0))

    def _fail(self, dialer: Node, peer: PublicKey, life: int) -> None:
        if dialer.life == life:
            dialer.tell(DialFailed(peer, "no answer"))

    def _can_reach(self, a: Node, b: Node) -> bool:
        return b.is_up and (self._sides is None or self._sides[a.number] == self._sides[b.number])

    def _plan_cut(self, link: Wire) -> None:
        mean = self.conditions.mean_link_life_s
        if mean is not None:
            self.after(self.rng.expovariate(1 / mean), lambda: self.cut(link))

    def cut(self, link: Wire) -> None:
        """Cut a link; one side notices at once, the other later."""
        late = self.rng.choice(link.nodes)
        link.cut(
            "the connection was lost",
            [(late, self.rng.uniform(0, self.conditions.late_notice_s)), (link.other(late), 0.0)],
        )

    def partition(self, sides: list[int] | None) -> None:
        """Nodes reach only those with the same number from now on; None heals."""
        self._sides = sides
        for link in {id(link): link for node in self.nodes for link in node.links.values()}.values():
            if not self._can_reach(*link.nodes):
                self.cut(link)

    def count(self, frame: Frame, size: int) -> None:
        name = type(frame).__name__
        self.frames[name] += 1
        self.sent[name] += size

    def links(self) -> set[frozenset[int]]:
        """The pairs that are linked, both sides agreeing."""
        pairs = Counter(
            frozenset((node.number, link.other(node).number)) for node in self.nodes for link in node.links.values()
        )
        return {pair for pair, sides in pairs.items() if sides == 2}


def settled_ids(node: Node) -> set[bytes]:
    """The ids that a node has settled, as its store tells it."""
    return {held.record.id for held in node.store.held() if held.state is not HeldState.FETCHING}
