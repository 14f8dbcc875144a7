"""A swarm on paper: the real gossip core and the real wire codec, on a fake clock, from one seed.

Nodes are `node.gossip.core.Gossip` with a store in memory (`store`); the links between them fail in the ways of
`network`. Nodes stop and come back with what they had stored, or with an older copy of it; partitions
come and go; clocks on the wall are wrong by years; disks get low and have room again.

Everything random comes from the seed, events at one instant happen in the order they were planned: a run replays
exactly. The shell's duties are the daemon's: actions in order, frames before chunks, chunks loaded when their turn
comes. What is equal between nodes exists once, so that thousands of nodes fit into one process: the list of members,
the bytes of bodies, and frames, of which each different one goes through the codec once.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from crypto.keys import Identity, PublicKey
from node.config import GossipSettings
from node.frames import Chunk, Frame, Records
from node.gossip.core import Gossip
from node.gossip.events import (
    Action,
    Alarm,
    Close,
    Dial,
    DialFailed,
    Disk,
    DiskChanged,
    Event,
    Keep,
    KeepChunk,
    LinkDown,
    LinkUp,
    RecordAdded,
    Report,
    Send,
    SendChunk,
    SendRecords,
    Tick,
)
from node.records import INCARNATION_BYTES, Record
from node.simulation.network import Conditions, Edge, Roster, Wire, peers_changed, seeded
from node.simulation.store import FIRST_INCARNATION, MemoryStore, author_record

FAST = GossipSettings(sync_min_s=5.0, sync_max_s=10.0, dial_cap_s=20.0)
"""Shorter periods than a real node's, so that a simulated minute holds more of what can go wrong."""

NOTICED_S: Final = 0.1
"""After this long the other end notices that a process died: its machine closes the connection."""
START_UNIX_S: Final = 1_800_000_000.0
"""What right clocks show when a simulation begins: early 2027."""


class NotEqual(AssertionError):
    """Nodes that should hold the same records by now do not; says how to replay the run."""


@dataclass(frozen=True)
class Copy:
    """A copy of a node's home, as a backup holds it."""

    store: MemoryStore
    sequence: int
    incarnation: bytes


class Node:
    """One node of the swarm: a core, its store, and the shell's half of the work."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        self.swarm = swarm
        self.number = number
        self.identity = Identity.from_seed(number.to_bytes(32, "big"))
        self.key = self.identity.public_key
        self.addresses: tuple[str, ...] = (f"node{number}",)
        self.store = MemoryStore()
        self.members: Mapping[PublicKey, tuple[str, ...]] = {}
        self.links: dict[int, Wire] = {}
        self.link_numbers = itertools.count(1)
        self.sequence = 0
        self.incarnation = FIRST_INCARNATION
        self.clock_offset_s = 0.0
        self.disk = Disk.ROOM
        self.life = 0
        self.is_up = False
        self.ticks_at: float | None = None
        self.alarms: list[Alarm] = []
        self.reports: dict[PublicKey, Report] = {}
        self.sent_bytes = 0
        self.core: Gossip

    def start(self) -> None:
        """Begin a life with what is stored."""
        self.life += 1
        self.is_up = True
        self.ticks_at = None
        rng = seeded(self.swarm.rng.random())
        store_id, held = self.number.to_bytes(8, "big"), self.store.held()
        self.core = Gossip(self.swarm.settings, rng, self.key, store_id, held, now=self.swarm.now)
        self.tell(DiskChanged(self.disk))
        self.tell(peers_changed(self.members))

    def stop(self) -> None:
        """Die without a word; the other ends notice soon after."""
        self.is_up = False
        for link in list(self.links.values()):
            link.cut("the other side is gone", [(link.other(self), NOTICED_S)])
        self.links.clear()

    def copy(self) -> Copy:
        """The home as it is now, for `restore`."""
        return Copy(self.store.copy(), self.sequence, self.incarnation)

    def restore(self, copy: Copy) -> None:
        """Put an older copy of the home in place of this one, and go on if the node was running."""
        was_up = self.is_up
        if was_up:
            self.stop()
        for record_id in self.store.settled_ids():
            self.swarm.forgot(self, record_id)
        self.store, self.sequence, self.incarnation = copy.store.copy(), copy.sequence, copy.incarnation
        for record_id in self.store.settled_ids():
            self.swarm.settled(self, record_id)
        if was_up:
            self.start()

    def set_members(self, members: Mapping[PublicKey, tuple[str, ...]]) -> None:
        """What `peer add` and `peer remove` do. Nobody changes the mapping afterwards."""
        self.members = members
        if self.is_up:
            self.tell(peers_changed(members))

    def set_disk(self, disk: Disk) -> None:
        """How much room the disk has from now on."""
        self.disk = disk
        if self.is_up:
            self.tell(DiskChanged(disk))

    def publish(self, body: bytes = b"", *, supersedes: bytes = b"", chunk_bytes: int = 65_536) -> Record:
        """Author a record and keep it, as a command beside the daemon does."""
        self.sequence += 1
        record = author_record(
            self.identity,
            self.sequence,
            body,
            supersedes=supersedes,
            incarnation=self.incarnation,
            chunk_bytes=chunk_bytes,
            created_unix_ms=self.clock_unix_ms,
        )
        held = self.store.add_record(record)
        for index in range(len(record.header.chunk_hashes)):
            start = index * chunk_bytes
            held = self.store.add_chunk(record.id, index, body[start : start + chunk_bytes])
        self.swarm.settled(self, record.id)
        if self.is_up:
            self.tell(RecordAdded(held))
        return record

    @property
    def clock_unix_ms(self) -> int:
        """What the clock on this node's wall shows."""
        return int(1_000 * (START_UNIX_S + self.swarm.now + self.clock_offset_s))

    def tell(self, event: Event) -> None:
        """Hand an event to the core and do what it asks for, then plan its next tick."""
        if not self.is_up:
            return
        for action in self.core.handle(event, self.swarm.now):
            self._do(action)
        deadline = self.core.next_deadline()
        if deadline is not None and (self.ticks_at is None or deadline < self.ticks_at):
            self.ticks_at = max(deadline, self.swarm.now)
            self.swarm.at(self.ticks_at, functools.partial(self._tick, self.life, self.ticks_at))

    def link_down(self, number: int, reason: str, life: int) -> None:
        """This end of a link is noticed to be gone."""
        if self.life == life and self.links.pop(number, None) is not None:
            self.tell(LinkDown(number, reason))

    def _tick(self, life: int, at: float) -> None:
        if self.life == life and self.ticks_at == at:
            self.ticks_at = None
            self.tell(Tick())

    def _do(self, action: Action) -> None:
        match action:
            case Send(number, frame):
                if number in self.links:
                    self.links[number].directions[self.number].frames.append(frame)
                    self.links[number].push(self)
            case SendRecords(number):
                if number in self.links:
                    self.links[number].directions[self.number].records.append(action)
                    self.links[number].push(self)
            case SendChunk(number):
                if number in self.links:
                    self.links[number].directions[self.number].chunks.append(action)
                    self.links[number].push(self)
            case Keep(record):
                self._keep(record)
            case KeepChunk(record_id, index, data):
                self.swarm.kept[record_id] += len(data)
                if not self.store.add_chunk(record_id, index, data).missing:
                    self.swarm.settled(self, record_id)
            case Dial(peer, address):
                self.swarm.dial(self, peer, address)
            case Close(number, reason):
                link = self.links.pop(number, None)
                if link is not None:
                    link.cut(reason, [(link.other(self), link.latency_s)])
            case Report(peer):
                self.reports[peer] = action
            case Alarm():
                self.alarms.append(action)
                if action.proof is not None:
                    self._look_at(action.proof)

    def _keep(self, record: Record) -> None:
        held = self.store.add_record(record)
        for one in (held, self.store.get(record.header.supersedes)):
            if one is not None and not one.missing:
                self.swarm.settled(self, one.record.id)
        self._look_at(record)

    def _look_at(self, record: Record) -> None:
        """A record of our own that this store did not make: another copy of this home gave out the next sequences."""
        if record.header.origin == self.key and record.header.incarnation == self.incarnation:
            self.incarnation = self.swarm.rng.randbytes(INCARNATION_BYTES)


class Swarm:
    """Nodes, the network between them, and the clock.

    `edges` are pairs (a, b): node a has the address of node b. All nodes trust each other.
    """

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
        self.body_bytes = 0
        self.lost_body_bytes = 0
        self.spread: dict[bytes, dict[int, float]] = {}
        """Of each record, the nodes that have settled it, and when."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._sides: list[int] | None = None
        self.nodes = [Node(self, number) for number in range(n)]
        self.by_key = {node.key: node for node in self.nodes}
        self._introduce(edges)

    def _introduce(self, edges: Iterable[Edge]) -> None:
        everyone: dict[PublicKey, tuple[str, ...]] = {node.key: () for node in self.nodes}
        known: list[dict[PublicKey, tuple[str, ...]]] = [{} for _ in self.nodes]
        for a, b in edges:
            known[a][self.nodes[b].key] = self.nodes[b].addresses
        origins = frozenset(key.raw for key in everyone)
        for node, addresses in zip(self.nodes, known, strict=True):
            node.members = Roster(everyone, addresses, origins)

    def start(self) -> None:
        """Start all nodes within a second; from then on they come and go, if the conditions say so."""
        for node in self.nodes:
            self.after(self.rng.random(), node.start)
            self._plan_stop(node)

    def calm(self) -> None:
        """No more cuts, losses, partitions, churn or full disks: latency and bandwidth stay, and all nodes are up."""
        before = self.conditions
        self.conditions = Conditions(before.latency_s, before.jitter_s, before.bandwidth)
        self.partition(None)
        for node in self.nodes:
            node.set_disk(Disk.ROOM)
            if not node.is_up:
                node.start()

    # ---------------------------------------------------------------------------------------------- the clock

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Plan an action for a time."""
        heapq.heappush(self._events, (when, next(self._order), action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Plan an action for so many seconds from now."""
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
        """Run until all nodes have settled the same records; returns the seconds it took. NotEqual if they do not."""
        start = self.now
        if not self.run(limit_s, self.are_equal):
            settled = Counter(len(settled_ids(node)) for node in self.nodes)
            counts = ", ".join(f"{count} of {nodes} nodes" for count, nodes in sorted(settled.items()))
            raise NotEqual(f"seed {self.seed}: not equal after {limit_s:.0f} s; records settled: {counts}")
        return self.now - start

    def are_equal(self) -> bool:
        """Whether all nodes are up and have settled every record that any node holds."""
        if not all(node.is_up for node in self.nodes):
            return False
        first = settled_ids(self.nodes[0])
        return all(settled_ids(node) == first and len(node.store.held()) == len(first) for node in self.nodes)

    # -------------------------------------------------------------------------------------------- the network

    def dial(self, dialer: Node, peer: PublicKey, address: str) -> None:
        """Connect after a round trip, or fail."""
        acceptor, life = self.by_key[peer], dialer.life
        latency_s = self.rng.uniform(*self.conditions.latency_s)

        def arrive() -> None:
            if dialer.life != life or not dialer.is_up:
                return
            is_there = address in acceptor.addresses and self._can_reach(dialer, acceptor)
            if not is_there or dialer.key not in acceptor.members:
                self.after(latency_s, lambda: self._fail(dialer, peer, life))
                return
            link = self.wire(self, dialer, acceptor)
            self._plan_cut(link)
            for node, delay_s in ((acceptor, 0.0), (dialer, link.latency_s)):
                self.after(delay_s, functools.partial(self._link_up, node, link))

        self.after(latency_s, arrive)

    def _link_up(self, node: Node, link: Wire) -> None:
        index = link.nodes.index(node)
        if node.life != link.lives[index] or not node.is_up:
            link.cut("the other side is gone", [(link.other(node), NOTICED_S)])
        elif link.is_cut:
            if index == 0:
                node.tell(DialFailed(link.nodes[1].key, "connection lost"))
        else:
            number = link.ends[node.number]
            node.links[number] = link
            node.tell(LinkUp(number, link.other(node).key, dialed_by_us=index == 0, clock_unix_ms=node.clock_unix_ms))

    def _fail(self, dialer: Node, peer: PublicKey, life: int) -> None:
        if dialer.life == life:
            dialer.tell(DialFailed(peer, "no answer"))

    def _can_reach(self, a: Node, b: Node) -> bool:
        return b.is_up and (self._sides is None or self._sides[a.number] == self._sides[b.number])

    def _plan_cut(self, link: Wire) -> None:
        mean_s = self.conditions.mean_link_life_s
        if mean_s is not None:
            self.after(self.rng.expovariate(1 / mean_s), lambda: self._cut_if_foul(link))

    def _cut_if_foul(self, link: Wire) -> None:
        if self.conditions.mean_link_life_s is not None:
            self.cut(link)

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

    def links(self) -> set[frozenset[int]]:
        """The pairs that are linked, both sides agreeing."""
        pairs = Counter(
            frozenset((node.number, link.other(node).number)) for node in self.nodes for link in node.links.values()
        )
        return {pair for pair, sides in pairs.items() if sides == 2}

    # ------------------------------------------------------------------------------------------------------- churn

    def _plan_stop(self, node: Node) -> None:
        mean_s = self.conditions.mean_up_s
        if mean_s is not None:
            self.after(self.rng.expovariate(1 / mean_s), lambda: self._rest(node))

    def _rest(self, node: Node) -> None:
        """A node stops, and comes back after a while."""
        if self.conditions.mean_up_s is not None:
            if node.is_up:
                node.stop()
            self.after(self.rng.expovariate(1 / self.conditions.mean_down_s), lambda: self._return(node))

    def _return(self, node: Node) -> None:
        if not node.is_up:
            node.start()
        self._plan_stop(node)

    # ---------------------------------------------------------------------------------------------------- measures

    def count(self, sender: Node, frame: Frame, size: int) -> None:
        """A frame of this many bytes leaves this node; if negative, so many bytes of it did not leave after all."""
        name = type(frame).__name__
        self.frames[name] += size > 0
        self.sent[name] += size
        sender.sent_bytes += size
        bodies = _body_bytes(frame)
        self.body_bytes += bodies if size > 0 else max(size, -bodies)

    def lose(self, frame: Frame) -> None:
        """A frame that left does not arrive."""
        self.lost_body_bytes += _body_bytes(frame)

    def settled(self, node: Node, record_id: bytes) -> None:
        """This node wants nothing more of this record."""
        self.spread.setdefault(record_id, {}).setdefault(node.number, self.now)

    def forgot(self, node: Node, record_id: bytes) -> None:
        """This node lost what it had."""
        self.spread[record_id].pop(node.number, None)


def _body_bytes(frame: Frame) -> int:
    """How much of bodies is in a frame."""
    if isinstance(frame, Chunk):
        return len(frame.data)
    return sum(len(signed.body) for signed in frame.records) if isinstance(frame, Records) else 0


def settled_ids(node: Node) -> set[bytes]:
    """The ids that a node has settled, as its store tells it."""
    return node.store.settled_ids()
