"""A simulated coalition with liars in it: twenty real homes, three of which do to the others whatever a member can.

The nodes are those of `coalition`, on the simulator's clock. A liar is one of them with a strategy between its core
and its links: it changes what the core hears and says, and says things of its own. Presenting as somebody else is not
among them: that ends at TLS (`test_tls`, `test_daemon`).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from disks import rolled_back

from crypto.signing import sign_record
from node import wire
from node.frames import (
    Advert,
    Announce,
    Digest,
    Ids,
    Origins,
    OriginVector,
    Records,
    SignedRecord,
    Vector,
    Want,
)
from node.gossip.events import Action, BadFrame, Close, Event, FrameIn, Send, SendChunk, SendRecords
from node.home import Home
from node.local_tables import Peer
from node.publish import publish, withdraw
from node.records import (
    Evidence,
    Header,
    HeldState,
    Kind,
    Record,
    claim_of,
    evidence_of,
    statement_of,
)
from node.simulation.network import Conditions, Edge, line, random_graph, seeded
from node.simulation.simulator import Swarm
from node.tasks import find, read_file
from tests.coalition import Chronicle, Partner

NODES, LIARS = 20, 3
NAMES = tuple(f"liar{n}" if n < LIARS else f"node{n}" for n in range(NODES))
PUBLISHERS = range(8)
"""Five honest nodes publish, and the liars."""
WITHDRAWS = 7
"""This one has taken back a summary that some have heard of."""
TWINS = 3


@dataclass
class World:
    """Homes that have met, on disk; what they published has gone nowhere yet."""

    path: Path
    twins: dict[str, list[list[tuple[Record, bytes]]]] = field(default_factory=dict)
    """Of each liar, several sets of records with the same numbers."""
    withdrawn: tuple[Record, bytes] | None = None
    honest_summaries: frozenset[bytes] = frozenset()


def build(path: Path, task_file: Path, rows: Callable[[int], str]) -> World:
    """Twenty homes that are each other's members and hold each other's keys. `rows` makes a CSV for a number."""
    homes = [Home.init(path / "new" / name, name, None) for name in NAMES]
    task = read_file(task_file)
    for home in homes:
        home.store.accept_task(task.id, task.name, task.canonical())
    introduce(homes)
    world = World(path)
    for number, home in enumerate(homes):
        if number in PUBLISHERS:
            _publish(home, path, rows(number), "cases")
    withdraws = homes[WITHDRAWS]
    gone = _publish(withdraws, path, rows(99), "gone")
    world.withdrawn = gone, withdraws.store.body(gone.id)
    withdraw(withdraws, gone.id.hex())
    summaries = [held for home in homes[LIARS:] for held in home.store.held(kind=Kind.SUMMARY, origin=home.me)]
    world.honest_summaries = frozenset(one.record.id for one in summaries if one.state is HeldState.COMPLETE)
    for liar in homes[:LIARS]:
        world.twins[liar.settings.name] = [_twin(liar, path, n, rows(200 + n)) for n in range(TWINS)]
    for home in homes:
        home.store.close()
    return world


def introduce(homes: list[Home]) -> None:
    everyone = [Peer(home.me, home.settings.name, (), query_only=False, added_at=0.0) for home in homes]
    for home in homes:
        with home.store.batch():
            for peer in everyone:
                if peer.key != home.me:
                    home.store.add_peer(peer)
    for _ in range(2):  # the cards, then the grants
        records = [held.record for home in homes for held in home.store.held(origin=home.me)]
        for home in homes:
            with home.store.batch():
                for record in records:
                    home.store.add_record(record)
        for home in homes:
            home.epochs.grant_missing()


def _publish(home: Home, path: Path, rows: str, dataset: str) -> Record:
    file = path / "rows.csv"
    file.write_text(rows)
    task = find(home, home.store.tasks()[0].name)
    return publish(home, task, [file], epsilon=1.0, dataset=dataset, cap_epsilon=None).record


def _twin(liar: Home, path: Path, number: int, rows: str) -> list[tuple[Record, bytes]]:
    """What the liar's next publication would be with these rows. The last of the twins is of another dataset, so that
    it does not take back what the liar published before."""
    place = path / f"{liar.settings.name}-twin{number}"
    twin = Home.open(rolled_back(Path(shutil.copytree(liar.path, place))))
    before = {held.record.id for held in twin.store.held()}
    _publish(twin, path, rows, "cases" if number < TWINS - 1 else "others")
    made = [held.record for held in twin.store.held() if held.record.id not in before]
    bodies = [twin.store.body(one.id) if one.header.body_bytes else b"" for one in made]
    twin.store.close()
    return list(zip(made, bodies, strict=True))


# ---------------------------------------------------------------------------------------------------- the strategies


class Strategy:
    """Honest: passes everything on. A strategy changes what it wants."""

    def begin(self, liar: Liar) -> None:
        """Before the first event."""

    def hears(self, liar: Liar, event: Event) -> Event | None:
        """What the core is told instead of this event."""
        return event

    def does(self, liar: Liar, action: Action) -> Iterable[Action]:
        """What is done instead of this action."""
        return (action,)

    def says(self, liar: Liar) -> Iterator[Action]:
        """What is said once a second on top of that."""
        return iter(())


class Equivocate(Strategy):
    """Signs several publications with the same numbers and shows each peer one of them. Of proof against itself it
    says nothing."""

    def __init__(self, twins: dict[str, list[list[tuple[Record, bytes]]]]) -> None:
        self._twins = twins
        self._shown: dict[bytes, SignedRecord] = {}
        self._told: set[int] = set()

    def begin(self, liar: Liar) -> None:
        for record, body in (one for twin in self._twins[liar.name] for one in twin):
            self._shown[record.id] = signed(record, body)

    def hears(self, liar: Liar, event: Event) -> Event | None:
        match event:
            case FrameIn(number, Want(ids)):
                for shown in (self._shown[one] for one in ids if one in self._shown):
                    liar.say(number, Records((shown,)))
                rest = tuple(one for one in ids if one not in self._shown)
                return FrameIn(number, Want(rest)) if rest else None
            case FrameIn(number, Records(records)):
                kept = tuple(one for one in records if not _is_against(liar, one))
                return FrameIn(number, Records(kept)) if kept else None
        return event

    def says(self, liar: Liar) -> Iterator[Action]:
        for number, link in liar.links.items():
            if number not in self._told:
                self._told.add(number)
                twin = self._twins[liar.name][link.other(liar).number % TWINS]
                yield Send(number, Records(tuple(signed(record, body) for record, body in twin)))


def _is_against(liar: Liar, one: SignedRecord) -> bool:
    header = wire.read_header(one.header_bytes)
    if header.kind is Kind.EVIDENCE:
        return wire.evidence_from_bytes(header.payload).accused == liar.key
    return header.origin == liar.key


class EquivocateForEver(Strategy):
    """Signs five more numbers twice each second, one record for each half of its peers, up to `numbers`."""

    def __init__(self, numbers: int) -> None:
        self._numbers = numbers
        self._sequence = 0

    def hears(self, liar: Liar, event: Event) -> Event | None:
        if isinstance(event, FrameIn) and isinstance(event.frame, Records):
            kept = tuple(one for one in event.frame.records if not _is_against(liar, one))
            return replace(event, frame=Records(kept)) if kept else None
        return event

    def says(self, liar: Liar) -> Iterator[Action]:
        for _ in range(5 if self._sequence < self._numbers else 0):
            self._sequence += 1
            header = Header(Kind.WITHDRAWAL, liar.key, b"for ever", self._sequence, 0)
            twins = [wire.author(liar.keystore.identity, replace(header, supersedes=bytes([n]) * 32)) for n in (1, 2)]
            for number, link in liar.links.items():
                yield Send(number, Records((signed(twins[link.other(liar).number % 2]),)))


class Withhold(Strategy):
    """Takes everything and gives nothing of others: neither announces nor serves it, and does not say so either."""

    def does(self, liar: Liar, action: Action) -> Iterable[Action]:
        match action:
            case Send(number, Announce(adverts)):
                own = tuple(one for one in adverts if one.origin == liar.key.raw)
                return (Send(number, Announce(own)),) if own else ()
            case Send(number, Records(records)):
                mine = tuple(one for one in records if wire.read_header(one.header_bytes).origin == liar.key)
                return (Send(number, Records(mine)),) if mine else ()
            case SendRecords(number, records):
                ours = tuple(one for one in records if one.header.origin == liar.key)
                return (SendRecords(number, ours),) if ours else ()
            case SendChunk(record_id=record_id):
                held = liar.store.get(record_id)
                return (action,) if held is not None and held.record.header.origin == liar.key else ()
        return (action,)


class Garbage(Strategy):
    """Sends bytes that are no frames."""

    def says(self, liar: Liar) -> Iterator[Action]:
        for link in list(liar.links.values()):
            peer = link.other(liar)
            event = BadFrame(link.ends[peer.number], "these bytes are not a frame")
            liar.swarm.after(link.latency_s, lambda peer=peer, event=event: peer.tell(event))  # type: ignore[misc]
        return iter(())


class Replay(Strategy):
    """Sends again, and again, what it once heard: what was withdrawn, with its body, before anything else."""

    def __init__(self, withdrawn: tuple[Record, bytes]) -> None:
        self._heard: list[SignedRecord] = [signed(*withdrawn)]

    def hears(self, liar: Liar, event: Event) -> Event | None:
        if isinstance(event, FrameIn) and isinstance(event.frame, Records) and len(self._heard) < 500:
            self._heard += event.frame.records
        return event

    def says(self, liar: Liar) -> Iterator[Action]:
        for number in liar.links:
            yield Send(number, Announce((advert(self._heard[0]),)))
            some = liar.rng.sample(self._heard, min(5, len(self._heard)))
            yield Send(number, Records((self._heard[0], *(one for one in some if one is not self._heard[0]))))


class Forge(Strategy):
    """Claims digests of nothing and to have everything."""

    def says(self, liar: Liar) -> Iterator[Action]:
        rng, keys = liar.rng, [key.raw for key in liar.chronicle.names]
        for number in liar.links:
            origin = rng.choice(keys)
            everything = ((rng.randbytes(8), ((1, 2**63 - 1),)),)
            yield Send(number, Digest(rng.randbytes(32), rng.choice([b"", rng.randbytes(32)])))
            yield Send(number, Origins(tuple((key, rng.randbytes(32)) for key in keys)))
            yield Send(number, Vector((OriginVector(origin, rng.randbytes(32), everything),), reply=rng.random() < 0.5))
            yield Send(number, Ids(origin, tuple(sorted(rng.randbytes(32) for _ in range(20))), reply=False))


class Flood(Strategy):
    """Announces a thousand records a second that nobody has, as if honest nodes had written them; answers no Want."""

    def hears(self, liar: Liar, event: Event) -> Event | None:
        return None if isinstance(event, FrameIn) and isinstance(event.frame, Want) else event

    def says(self, liar: Liar) -> Iterator[Action]:
        keys = [key.raw for key in liar.chronicle.names]
        for number in liar.links:
            adverts = (
                Advert(liar.rng.randbytes(32), Kind.SUMMARY, liar.rng.choice(keys), liar.rng.choice([0, 100, 2**20]))
                for _ in range(1_000)
            )
            yield Send(number, Announce(tuple(adverts)))


class Accuse(Strategy):
    """Signs evidence against honest nodes: of a record of theirs and one that they never signed."""

    def says(self, liar: Liar) -> Iterator[Action]:
        for number in liar.links:
            held = liar.rng.choice(liar.store.held(kind=Kind.KEY_CARD))
            made_up = replace(claim_of(held.record), id=liar.rng.randbytes(32))
            yield Send(number, Records((signed_falsely(liar, evidence_of(held.record, made_up)),)))


class Together(Strategy):
    """Several strategies at once."""

    def __init__(self, *parts: Strategy) -> None:
        self._parts = parts

    def begin(self, liar: Liar) -> None:
        for part in self._parts:
            part.begin(liar)

    def hears(self, liar: Liar, event: Event) -> Event | None:
        heard: Event | None = event
        for part in self._parts:
            heard = part.hears(liar, heard) if heard is not None else None
        return heard

    def does(self, liar: Liar, action: Action) -> Iterable[Action]:
        actions: list[Action] = [action]
        for part in self._parts:
            actions = [changed for one in actions for changed in part.does(liar, one)]
        return actions

    def says(self, liar: Liar) -> Iterator[Action]:
        for part in self._parts:
            yield from part.says(liar)


def signed(record: Record, body: bytes = b"") -> SignedRecord:
    return SignedRecord(record.header_bytes, record.signature, body)


def advert(one: SignedRecord) -> Advert:
    header = wire.read_header(one.header_bytes)
    return Advert(wire.record_id(one.header_bytes), header.kind, header.origin.raw, header.body_bytes)


def signed_falsely(liar: Liar, evidence: Evidence) -> SignedRecord:
    """An EVIDENCE that its author signed and the accused did not."""
    sequence = liar.rng.randrange(1, 2**40)
    header = Header(Kind.EVIDENCE, liar.key, b"accuser!", sequence, 0, payload=wire.write_payload(evidence))
    header_bytes = wire.write_header(header)
    statement = statement_of(header, wire.record_id(header_bytes))
    return SignedRecord(header_bytes, sign_record(liar.keystore.identity, statement), b"")


# ---------------------------------------------------------------------------------------------------------- the nodes


class Honest(Partner):
    """A node that remembers which links it ended, and why."""

    def start(self) -> None:
        self.closed: list[tuple[str, str]] = []
        super().start()

    def release(self, folder: Path, rows: str) -> bytes:
        """`publish`, of these rows; the id of the summary."""
        with self._opened() as home:
            return _publish(home, folder, rows, "later").id

    def take_back(self) -> bytes:
        """`withdraw`, of the summary that is live; its id."""
        with self._opened() as home:
            held = home.store.held(kind=Kind.SUMMARY, origin=home.me)
            live = next(one.record.id for one in held if one.state is HeldState.COMPLETE)
            withdraw(home, live.hex())
        return live

    def _do(self, action: Action) -> None:
        if isinstance(action, Close) and action.link in self.links:
            self.closed.append((self.links[action.link].other(self).name, action.reason))  # type: ignore[attr-defined]
        super()._do(action)


class Liar(Partner):
    """A node with a strategy."""

    strategy = Strategy()
    rng: random.Random

    def start(self) -> None:
        self.rng = seeded(self.number)
        self.strategy.begin(self)
        super().start()
        self._soon(self._lie, 1.0)

    def tell(self, event: Event) -> None:
        heard = self.strategy.hears(self, event)
        if heard is not None:
            super().tell(heard)

    def say(self, number: int, frame: Records) -> None:
        super()._do(Send(number, frame))

    def _do(self, action: Action) -> None:
        for changed in self.strategy.does(self, action):
            super()._do(changed)

    def _lie(self) -> None:
        for action in list(self.strategy.says(self)):
            super()._do(action)
        self._soon(self._lie, 1.0)


class Coalition:
    """Twenty nodes of a world, copied to `place`; the first three follow these strategies."""

    def __init__(self, world: World, place: Path, strategies: list[Strategy], seed: int) -> None:
        shutil.copytree(world.path / "new", place, dirs_exist_ok=True)
        self.swarm = Swarm(seed, 0, [], conditions=Conditions(bandwidth=1_000_000, late_notice_s=2.0))
        chronicle = Chronicle()
        self.nodes: list[Partner] = []
        for number, name in enumerate(NAMES):
            rolled_back(place / name)
            kind = Liar if number < LIARS else Honest
            self.nodes.append(kind(self.swarm, number, name, place / name, chronicle))
        for liar, strategy in zip(self.nodes, strategies, strict=False):
            liar.strategy = strategy  # type: ignore[attr-defined]
        self.honest = [node for node in self.nodes if isinstance(node, Honest)]
        self.swarm.nodes = list(self.nodes)
        self.swarm.by_key = {node.key: node for node in self.nodes}
        for number, others in addresses(seed).items():
            self._introduce(self.nodes[number], others)
        for node in self.nodes:
            self.swarm.after(self.swarm.rng.random(), node.start)
        self.began = self.swarm.now

    def _introduce(self, node: Partner, others: set[int]) -> None:
        home = Home.open(node.path)
        with home.store.batch():
            for other in self.nodes:
                if other is not node:
                    known = other.addresses if other.number in others else ()
                    node.trust.add(other.name, with_address=bool(known), query_only=False)
                    home.store.add_peer(Peer(other.key, other.name, known, query_only=False, added_at=0.0))
        home.store.close()

    def run(self, limit_s: float, until: Callable[[], bool]) -> float:
        """The simulated seconds since the beginning until this held for all honest nodes; AssertionError if not."""
        assert self.swarm.run(limit_s, lambda: all(node.is_up for node in self.nodes) and until()), (
            "not within the time"
        )
        return self.swarm.now - self.began

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


def addresses(seed: int) -> dict[int, set[int]]:
    """Whose addresses each node has: three of all, and the honest ones a line of their own, so that liars cannot part
    them by being silent."""
    edges: list[Edge] = random_graph(NODES, 3, seeded(seed))
    edges += [(a + LIARS, b + LIARS) for a, b in line(NODES - LIARS)]
    known: dict[int, set[int]] = {number: set() for number in range(NODES)}
    for a, b in edges:
        known[a].add(b)
    return known
