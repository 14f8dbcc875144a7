"""A coalition in which anything happens in any order: hypothesis chooses, real homes and the real gossip core carry on.

Operators publish, replace, share, withdraw, add and remove peers, make them query-only, back homes up and put old
copies back; nodes are killed and started, cut off and met again, in the middle of whatever was going on. A failure
prints the steps that led to it as a script; nothing else is random (keys, network and clock come from fixed seeds), so
the script replays it.

What must hold, always:

* **Numbers.** No two records share origin, incarnation and sequence. The one exception that docs/protocol.md and
  docs/operations.md admit: a home restored from an old copy that signs *before* a record of its lost time came back to
  it. From that moment on it never signs in that incarnation again.
* **Graves.** What was taken back stays so in every store, without a chunk of its body.
* **Keys.** Epoch keys are granted to members alone, and nothing is sealed under a key of which a former member is known
  to hold a grant. A node that was no member when a record was sealed, nor became one while its epoch was the live one,
  cannot open it although it is handed every byte that anybody ever wrote (`Chronicle.readable`).

And after all nodes are up, no partition is left and some time has passed (`settle`):

* **Equality.** Nodes that are linked, directly or through others who all trust an origin, have settled the same records
  of it (`islands`). Where a restored home gave out a number twice, the records with that number, and what only they
  take back, are excepted: nodes keep the one that they met first.
* **Reading.** A node opens the body of every record that it holds if it was granted the key, and every member that an
  origin can exchange records with was granted its live one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from disks import rolled_back
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from crypto.keys import EncryptionKey, Identity
from node import author, epochs, store
from node.epochs import EpochKeys
from node.errors import StoreError
from node.gossip.fetch import Fetcher
from node.gossip.holdings import Holdings
from node.gossip.reconcile import OriginSet
from node.home import Home
from node.records import Held, HeldState, Kind, Record, slot_of
from node.simulation.network import Conditions, seeded
from node.simulation.simulator import Swarm
from node.store import Store
from tests.coalition import SEALED, Chronicle, Partner, islands
from tests.mutants import rewrite

NAMES = ("alpha", "beta", "gamma", "delta", "stranger")
MEMBERS = NAMES[:-1]
SETTLED_WITHIN_S = 400.0
"""Some dials at the longest wait, some periods of anti-entropy, a stalled fetch, and large bodies on a slow line."""

names = st.sampled_from(NAMES)
sizes = st.sampled_from([10, 3_000, 20_000, 90_000])
"""Bytes of a body: rides along, one chunk, two chunks, and one whose fetch takes a second or more."""


@pytest.fixture(scope="module")
def made_homes() -> Iterator[Path]:
    """One new home for each name, with keys that are the same in every run; in memory where the system allows it."""
    shared_memory = Path("/dev/shm")  # noqa: S108
    folder = tempfile.mkdtemp(dir=shared_memory if os.access(shared_memory, os.W_OK) else None)
    for number, name in enumerate(NAMES):
        rng = seeded(number)
        identity, encryption = Identity.from_seed(rng.randbytes(32)), EncryptionKey.from_bytes(rng.randbytes(96))
        with (
            mock.patch.object(Identity, "generate", return_value=identity),
            mock.patch.object(EncryptionKey, "generate", return_value=encryption),
            mock.patch.object(store.secrets, "token_bytes", rng.randbytes),
        ):
            Home.init(Path(folder) / "new" / name, name, None).store.close()
    yield Path(folder)
    shutil.rmtree(folder)


class CoalitionMachine(RuleBasedStateMachine):
    """Five nodes: four that begin as each other's members, and one that nobody knows yet."""

    published = Bundle("published")
    homes: Path

    @initialize(
        dials=st.sampled_from(["line", "ring", "star", "everybody"]),
        seed=st.integers(0, 3),
        meet_first=st.booleans(),
    )
    def found(self, dials: str, seed: int, meet_first: bool) -> None:
        """Everybody adds everybody but the stranger; who has whose address is what differs."""
        self.place = Path(tempfile.mkdtemp(dir=self.homes))
        shutil.copytree(self.homes / "new", self.place, dirs_exist_ok=True)
        for home in self.place.iterdir():
            rolled_back(home)
        self.swarm = Swarm(seed, 0, [], conditions=Conditions(bandwidth=100_000, late_notice_s=2.0))
        self.chronicle = Chronicle()
        self.clock = [mock.patch.object(module, "time", self) for module in (author, store)]
        self.patches = [*self.clock, mock.patch.object(store.secrets, "token_bytes", seeded(seed).randbytes)]
        for patch in self.patches:
            patch.start()
        self.partners = {
            name: Partner(self.swarm, number, name, self.place / name, self.chronicle)
            for number, name in enumerate(NAMES)
        }
        self.swarm.nodes = list(self.partners.values())
        self.swarm.by_key = {partner.key: partner for partner in self.partners.values()}
        for one in MEMBERS:
            for other in MEMBERS:
                if one != other:
                    has_address = _has_address(dials, MEMBERS.index(one), MEMBERS.index(other))
                    self.partners[one].add(self.partners[other], self.partners[other].addresses if has_address else ())
        for partner in self.partners.values():
            partner.start()
        if meet_first:
            self.swarm.run(30.0)
        for partner in self.partners.values():
            partner.back_up()

    # What `node.author` and `node.store` take for the module `time`.

    def time(self) -> float:
        return self.swarm.now

    def time_ns(self) -> int:
        return int(self.swarm.now * 1e9)

    def teardown(self) -> None:
        if not hasattr(self, "partners"):
            return
        try:
            self.settle()
        finally:
            for partner in self.partners.values():
                partner.stop()
            for patch in self.patches:
                patch.stop()
            shutil.rmtree(self.place)

    # ------------------------------------------------------------------------------------------------ operators

    @rule(target=published, origin=names, dataset=st.sampled_from(["cases", "stays"]), size=sizes)
    def publish(self, origin: str, dataset: str, size: int) -> Record:
        """A second summary of a dataset replaces the first."""
        return self.partners[origin].publish(dataset, self.swarm.rng.randbytes(size))

    @rule(target=published, origin=names, size=sizes)
    def share(self, origin: str, size: int) -> Record:
        return self.partners[origin].share(self.swarm.rng.randbytes(size))

    @rule(record=published)
    def withdraw(self, record: Record) -> None:
        self.partners[self.chronicle.names[record.header.origin]].withdraw(record)

    @rule(
        at=names,
        peer=names,
        addresses=st.sampled_from([0, 1, 2]),
        query_only=st.sampled_from([False, False, True]),
    )
    def add(self, at: str, peer: str, addresses: int, query_only: bool) -> None:
        """Of two addresses the first is an old one, at which nobody answers."""
        if at != peer:
            known = (f"{peer}:9", f"{peer}:1")[-addresses:] if addresses else ()
            self.partners[at].add(self.partners[peer], known, query_only=query_only)

    @rule(one=names, other=names)
    def befriend(self, one: str, other: str) -> None:
        if one != other:
            self.partners[one].add(self.partners[other], self.partners[other].addresses)
            self.partners[other].add(self.partners[one])

    @rule(at=names, peer=names)
    def remove(self, at: str, peer: str) -> None:
        if peer in self.partners[at].trust.is_member:
            self.partners[at].remove(self.partners[peer])

    @rule(at=names)
    def back_up(self, at: str) -> None:
        self.partners[at].back_up()

    @rule(at=names, is_patient=st.booleans())
    def restore(self, at: str, is_patient: bool) -> None:
        """An operator who reads docs/operations.md waits for the peers before doing anything else."""
        self.partners[at].put_back()
        self.partners[at].start()
        if is_patient:
            self.swarm.run(60.0)

    # ---------------------------------------------------------------------------------------------- the weather

    @rule(at=names)
    def kill_or_start(self, at: str) -> None:
        partner = self.partners[at]
        (partner.stop if partner.is_up else partner.start)()

    @rule(sides=st.lists(st.integers(0, 1), min_size=len(NAMES), max_size=len(NAMES)))
    def part(self, sides: list[int]) -> None:
        self.swarm.partition(sides)

    @rule()
    def heal(self) -> None:
        self.swarm.partition(None)

    @rule(at=names)
    def cut_links(self, at: str) -> None:
        for link in list(self.partners[at].links.values()):
            self.swarm.cut(link)

    @rule(seconds=st.sampled_from([0.1, 0.4, 1.0, 5.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.swarm.run(seconds)

    @rule()
    def settle(self) -> None:
        """All up and nobody cut off: what must hold then comes to hold, and nobody helps."""
        self.swarm.partition(None)
        for partner in self.partners.values():
            if not partner.is_up:
                partner.start()
        deadline = self.swarm.now + SETTLED_WITHIN_S
        while (wrong := self.what_is_wrong()) and self.swarm.now < deadline:
            self.swarm.run(5.0)
        assert not wrong, f"after {SETTLED_WITHIN_S:.0f} s: {wrong}"
        self.nobody_reads_who_may_not()

    # ------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def graves_stay_empty(self) -> None:
        if not hasattr(self, "partners"):
            return
        for partner in self.partners.values():
            if not partner.is_up:
                continue
            held = partner.held()
            buried = {one for one in held if held[one].state is HeldState.BURIED}
            assert partner.buried <= buried, f"{partner.name}: what was taken back has come back"
            partner.buried = buried
            for one in buried:
                chunks = range(len(held[one].record.header.chunk_hashes))
                assert all(partner.store.chunk(one, index) is None for index in chunks), f"{partner.name} kept a body"
            for one in held.values():
                target = held.get(one.record.header.supersedes)
                if target is not None and one.record.header.kind is not Kind.HEAD:
                    assert target.state is HeldState.BURIED, f"{partner.name}: what was taken back is still here"

    def nobody_reads_who_may_not(self) -> None:
        for partner in self.partners.values():
            for one in self.chronicle.readable(partner):
                sealed = self.chronicle.sealed[one]
                origin = self.chronicle.names[sealed.record.header.origin]
                assert partner.name in sealed.readers, f"{partner.name} can read what {origin} sealed for others"

    def what_is_wrong(self) -> list[str]:
        """What does not hold yet that must once everything has settled, in sentences."""
        if off := [partner.name for partner in self.partners.values() if not partner.is_up]:
            return [f"{name} has left the network, because its store refused something" for name in off]
        held = {partner.name: partner.held() for partner in self.partners.values()}
        wrong: list[str] = []
        for origin in self.partners.values():
            for island in islands(self.partners.values(), origin):
                settled = {name: _settled(self.partners[name], held[name], origin) for name in island}
                whole = set().union(*settled.values())
                wrong += [
                    f"{name} lacks {len(whole - there)} of what {island} have settled of {origin.name}"
                    for name, there in settled.items()
                    if there != whole
                ]
        return wrong or self._what_is_unreadable(held)

    def _what_is_unreadable(self, held: dict[str, dict[bytes, Held]]) -> list[str]:
        """Which members were not granted a live key, and which bodies do not open that should."""
        wrong: list[str] = []
        for origin in self.partners.values():
            epoch = origin.live_epoch()
            for reader in self.partners.values():
                granted = {
                    (one.header.incarnation, one.header.epoch)
                    for one in grants_of(origin, held[reader.name])
                    if one.header.recipient == reader.key
                }
                if epoch[1] and epoch not in granted and self._can_be_granted(origin, reader):
                    wrong.append(f"{reader.name} lacks the live epoch of {origin.name}")
                bodies = [here for here in held[reader.name].values() if here.record.header.origin == origin.key]
                wrong += [
                    f"{reader.name} has the key of {origin.name} and cannot open {here.record.id.hex()[:12]}"
                    for here in bodies
                    if here.record.header.kind in SEALED
                    and here.state is HeldState.COMPLETE
                    and (here.record.header.incarnation, here.record.header.epoch) in granted
                    and not self.chronicle.sealed[here.record.id].is_blind
                    and not reader.can_open(here)
                ]
        return wrong

    def _can_be_granted(self, origin: Partner, reader: Partner) -> bool:
        """Whether the reader's key card reaches the origin, which trusts it, and the grant reaches the reader."""
        both = {origin.name, reader.name}
        card, grant = (islands(self.partners.values(), one) for one in (reader, origin))
        is_trusted = reader.name in origin.trust.members or reader is origin
        return is_trusted and any(both <= island for island in card) and any(both <= island for island in grant)


def _settled(partner: Partner, held: dict[bytes, Held], origin: Partner) -> set[Any]:
    """What a node has settled of an origin: numbers known to be contested, other records, and which were taken back."""
    contested = {proof.slot for proof in partner.store.proofs() if proof.accused == origin.key}
    there = [here for here in held.values() if here.record.header.origin == origin.key]
    whole = [one for one in there if one.state is not HeldState.FETCHING]
    return contested | {(one.record.id, one.state) for one in whole if slot_of(one.record.header) not in contested}


def grants_of(origin: Partner, held: dict[bytes, Held]) -> list[Record]:
    return [
        here.record
        for here in held.values()
        if here.record.header.origin == origin.key and here.record.header.kind is Kind.KEY_GRANT
    ]


def _has_address(dials: str, one: int, other: int) -> bool:
    match dials:
        case "line":
            return other == one + 1
        case "ring":
            return other == (one + 1) % len(MEMBERS)
        case "star":
            return other == 0
    return True


def run_machine(homes: Path, examples: int, steps: int, **named: Any) -> None:
    machine = type("CoalitionMachine", (CoalitionMachine,), {"homes": homes})
    chosen = {"max_examples": examples, "stateful_step_count": steps, "derandomize": True, "deadline": None} | named
    run_state_machine_as_test(machine, settings=settings(**chosen, suppress_health_check=list(HealthCheck)))


def test_whatever_happens_stores_converge_graves_hold_and_only_members_read(made_homes: Path) -> None:
    run_machine(made_homes, examples=25, steps=30)


@pytest.mark.soak
def test_soak_whatever_happens_for_long(made_homes: Path) -> None:
    """Some twenty thousand steps each time; TIDINGS_EXAMPLES sets how many scripts of 80."""
    run_machine(made_homes, int(os.environ.get("TIDINGS_EXAMPLES", "300")), 80, derandomize=False)


# --- deliberate bugs, each of which the machine must catch ------------------------------------------------------------

MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the body of a record that is taken back stays": lambda patch: rewrite(
        patch, Store, "_bury", ('"DELETE FROM chunks WHERE record = (', '"DELETE FROM chunks WHERE 0 = (')
    ),
    "a record that was taken back before it came is kept whole": lambda patch: rewrite(
        patch, Store, "_insert", ("burier = self._burier_of(record)", "burier = None")
    ),
    "a removal begins no new epoch": lambda patch: rewrite(
        patch,
        EpochKeys,
        "_live_or_new",
        ("epoch is None or not {grant.header.recipient", "epoch is None or not set() & {grant.header.recipient"),
    ),
    "every epoch has the same key": lambda patch: patch.setattr(epochs, "new_epoch_key", lambda: bytes(32)),
    "nobody is granted anything": lambda patch: rewrite(
        patch, EpochKeys, "_grant_lacking", ("for member in lacking:", "for member in []:")
    ),
    "a restored home goes on in its old incarnation": lambda patch: rewrite(
        patch, Store, "number_apart", ("if self._is_shared(origin):", "if False:")
    ),
    "strangers' records are taken": lambda patch: patch.setattr(Holdings, "trusts", lambda self, origin: True),
}


RARE_MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "gossip fetches what was taken back": lambda patch: rewrite(
        patch, Holdings, "learn", ("is_whole or entry.buried_by", "is_whole")
    ),
    "those who may only query are granted keys": lambda patch: rewrite(
        patch, EpochKeys, "members", (" if not peer.query_only", "")
    ),
    "a new incarnation goes on with the old epoch": lambda patch: rewrite(
        patch, EpochKeys, "_live_grants", (" if grant.header.incarnation == incarnation", "")
    ),
    "a second record for a sequence is let in": lambda patch: patch.setattr(
        Holdings, "is_equivocation", lambda self, record: False
    ),
    "what is not whole is announced as if it were": lambda patch: rewrite(
        patch, Holdings, "learn", ("if is_whole or entry.buried_by else []", "")
    ),
    "incarnations are not told apart when sequences are compared": lambda patch: rewrite(
        patch, OriginSet, "outside", ("theirs.get(incarnation, ())", "next(iter(theirs.values()), ())")
    ),
    "what a lost link owed is never asked for again": lambda patch: rewrite(
        patch, Fetcher, "link_down", ("self.drop_source(link, record_id)", "pass")
    ),
}
"""What takes the machine longer than some seconds to find."""


def test_members_get_the_key_of_a_restored_home_whose_grants_were_refused(made_homes: Path) -> None:
    """Found by the soak. Restored, alpha removes gamma before it has met anybody: the grants of the new epoch go out
    under numbers that its lost summary had, and are refused. When that comes back, all are granted again."""
    CoalitionMachine.homes = made_homes
    machine = CoalitionMachine()
    machine.found(dials="line", seed=0, meet_first=True)
    try:
        machine.publish(dataset="cases", origin="alpha", size=10)
        machine.settle()
        machine.restore(at="alpha", is_patient=False)
        machine.remove(at="alpha", peer="gamma")
    finally:
        machine.teardown()  # settles


@pytest.mark.parametrize("name", [*MUTANTS, *(pytest.param(name, marks=pytest.mark.soak) for name in RARE_MUTANTS)])
def test_the_machine_catches(
    name: str, made_homes: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    (MUTANTS | RARE_MUTANTS)[name](monkeypatch)
    with pytest.raises((AssertionError, StoreError, KeyError)):  # a crash is a catch
        run_machine(made_homes, 200, 40, phases=[Phase.generate], report_multiple_bugs=False)
    record_property("mutant", (name, ("coalition machine",)))
