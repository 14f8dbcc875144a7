"""Simulated nodes with real homes: store, ledger, keys and author of the product, its gossip core between them.

`Partner` does what the daemon does around the core, on the simulator's clock, and what an operator does beside it, each
command on a connection of its own. `Chronicle` watches every record at the moment it is signed and knows, from what
operators did and from nothing the product decides, who was trusted then and who may read what.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from disks import rolled_back

from crypto.errors import BadSeal, CryptoError
from crypto.keys import PublicKey
from crypto.sealing import content_key, open_sealed, unwrap_epoch_key
from node import evidence, heads, wire
from node.daemon import POLL_S, RETRY_STORE_S
from node.errors import NotReadable, StoreError
from node.gossip.core import Gossip
from node.gossip.events import Action, Alarm, Event, PeersChanged, RecordAdded, Unheard
from node.home import Home
from node.membership import add_peer, remove_peer
from node.publish import finish_interrupted, withdraw
from node.records import Held, HeldState, KeyGrant, Kind, Record, Slot, core, slot_of
from node.simulation.network import seeded
from node.simulation.simulator import Node, Swarm
from node.succession import ABOUT_KEYS

TASK_ID = b"task" * 8
SEALED = (Kind.SUMMARY, Kind.MODEL)


@dataclass
class Trust:
    """What one operator decided: peers by name, whether each is a member, and whose address is known."""

    is_member: dict[str, bool] = field(default_factory=dict)
    addressed: set[str] = field(default_factory=set)

    @property
    def members(self) -> set[str]:
        return {name for name, is_member in self.is_member.items() if is_member}

    def add(self, name: str, *, with_address: bool, query_only: bool) -> None:
        self.is_member[name] = not query_only
        if with_address:
            self.addressed.add(name)

    def remove(self, name: str) -> None:
        self.is_member.pop(name, None)
        self.addressed.discard(name)

    def copy(self) -> Trust:
        return Trust(dict(self.is_member), set(self.addressed))


@dataclass(frozen=True)
class Backup:
    """A home as it was, on disk, and what was true of it then."""

    path: Path
    trust: Trust
    made: frozenset[bytes]
    buried: frozenset[bytes]


@dataclass
class Sealed:
    """A record with a body: all its bytes, who may read it, and whether a restored home made it before a record of its
    lost time came back: the lost home may have used the number of its epoch for another key."""

    record: Record
    body: bytes
    readers: set[str]
    is_blind: bool


class Chronicle:
    """Every record ever signed, in whatever copy of a home, and what must have been true when it was."""

    def __init__(self) -> None:
        self.names: dict[PublicKey, str] = {}
        self.signed: dict[bytes, Record] = {}
        self.slots: dict[Slot, set[bytes]] = {}
        self.grants: list[Record] = []
        self.sealed: dict[bytes, Sealed] = {}
        self._unwrapped: dict[tuple[str, bytes], bytes | None] = {}

    def sign(self, partner: Partner, home: Home, record: Record, body: bytes | None) -> None:
        """`partner` has just signed this, and has not kept it yet."""
        known = own_records(home)
        self._check_number(partner, known, record)
        self.signed[record.id] = record
        self.slots.setdefault(slot_of(record.header), set()).add(record.id)
        partner.made.add(record.id)
        if record.header.kind is Kind.KEY_GRANT:
            self._grant(partner, record)
        elif body is not None:
            self._seal(partner, known, record, body)

    def _check_number(self, partner: Partner, known: list[Record], record: Record) -> None:
        """A number is given out twice by a copy alone that has met nothing of what the lost home signed since."""
        taken = self.slots.get(slot_of(record.header), set())
        strange = [one for one in known if one.id not in partner.made]
        met = [one for one in strange if one.header.incarnation == record.header.incarnation]
        assert not met, f"{partner.name} signs in an incarnation that it knows to be shared"
        if taken:
            assert partner.restores > 0, f"{partner.name} gave out sequence {record.header.sequence} twice"

    def _grant(self, partner: Partner, record: Record) -> None:
        assert record.header.recipient is not None
        recipient = self.names[record.header.recipient]
        assert recipient in {partner.name, *partner.trust.members}, f"{partner.name} granted {recipient}, no member"
        self.grants.append(record)
        for sealed in self.sealed.values():
            header = sealed.record.header
            if (header.origin, header.epoch) == (record.header.origin, record.header.epoch):
                sealed.readers.add(recipient)

    def _seal(self, partner: Partner, known: list[Record], record: Record, body: bytes) -> None:
        may_read = {partner.name, *partner.trust.members}
        grants = [one for one in self.grants if one.header.origin == partner.key]
        grants = [one for one in grants if one.header.epoch == record.header.epoch]
        known_ids = {one.id for one in known}
        holders = {self._recipient(one) for one in grants if one.id in known_ids}
        assert holders <= may_read, f"{partner.name} seals for {may_read}, and {holders} hold the key"
        # What the lost home granted and no peer has told of yet cannot be taken into account.
        untold = {self._recipient(one) for one in grants if one.id not in known_ids}
        lost = (one for one in self.signed.values() if one.id not in partner.made)
        is_blind = any(one.header.incarnation == record.header.incarnation for one in lost)
        self.sealed[record.id] = Sealed(record, body, may_read | untold, is_blind)

    def _recipient(self, grant: Record) -> str:
        assert grant.header.recipient is not None
        return self.names[grant.header.recipient]

    def readable(self, partner: Partner) -> set[bytes]:
        """What a node can decrypt with its keys if it is handed every byte that any node ever wrote, taken back or not,
        and keeps to no rule of the product's."""
        keys = [key for grant in self.grants if (key := self._unwrap(partner, grant)) is not None]
        return {one for one, sealed in self.sealed.items() if any(_opens(sealed, key) for key in keys)}

    def _unwrap(self, partner: Partner, grant: Record) -> bytes | None:
        if (partner.name, grant.id) not in self._unwrapped:
            self._unwrapped[partner.name, grant.id] = _try_to_unwrap(partner, grant)
        return self._unwrapped[partner.name, grant.id]


def own_records(home: Home) -> list[Record]:
    """What a home knows of its own key's records, those that clash with another included."""
    held = [held.record for held in home.store.held(origin=home.me)]
    return [*held, *(one for one in home.store.conflicts() if one.header.origin == home.me)]


def _try_to_unwrap(partner: Partner, grant: Record) -> bytes | None:
    payload, header = wire.read_payload(grant.header), grant.header
    assert isinstance(payload, KeyGrant)
    assert header.recipient is not None
    context = header.origin.raw + header.epoch.to_bytes(4, "big") + header.recipient.raw
    for key in partner.keystore.encryption_keys:
        try:
            return unwrap_epoch_key(payload.wrapped_key, key, context=context)
        except CryptoError:
            continue
    return None


def _opens(sealed: Sealed, epoch_key: bytes) -> bool:
    header = sealed.record.header
    try:
        open_sealed(sealed.body, content_key(epoch_key, core(header)), core(header), header.key_commitment)
    except BadSeal:
        return False
    return True


class Partner(Node):
    """A simulated node that is a real home."""

    def __init__(self, swarm: Swarm, number: int, name: str, path: Path, chronicle: Chronicle) -> None:
        super().__init__(swarm, number)
        self.name, self.path, self.chronicle = name, path, chronicle
        self.addresses = (f"{name}:1",)
        self.trust = Trust()
        self.removed_at: dict[str, float] = {}
        self.made: set[bytes] = set()
        self.buried: set[bytes] = set()
        self.restores = 0
        self.copied: Backup | None = None
        with self._opened() as home:
            self.key, self.keystore = home.me, home.keystore
            self.made |= {held.record.id for held in home.store.held()}
            for held in home.store.held():
                chronicle.signed[held.record.id] = held.record
                chronicle.slots[slot_of(held.record.header)] = {held.record.id}
        chronicle.names[self.key] = name
        self.home: Home | None = None
        self.origins: frozenset[bytes] = frozenset()

    # ---------------------------------------------------------------------------------- what the daemon does

    def start(self) -> None:
        """As `tidings serve` does."""
        self.home = self._open()
        self.store = self.home.store
        held, self._position = self.store.held_after(0)
        self.life += 1
        self._will_witness, self._unheard = False, set[Slot]()
        self.is_up, self.ticks_at = True, None
        rng = seeded(self.swarm.rng.random())
        self.core = Gossip(self.swarm.settings, rng, self.key, self.store.store_id, held)
        self.members, self.origins = {}, frozenset()
        self._read_peers()

    def stop(self) -> None:
        """Killed: no goodbye, whatever was going on."""
        super().stop()
        if self.home is not None:
            self.home.store.close()
            self.home = None

    def tell(self, event: Event) -> None:
        """Everything that one event brings is written in one transaction; grants come after. If the store refuses, the
        core starts again from what is held: a command may have signed what the core has not seen yet."""
        if not self.is_up:
            return
        try:
            with self.store.batch():
                super().tell(event)
        except StoreError:
            self.stop()
            life = self.life
            self.swarm.after(RETRY_STORE_S, lambda: self.start() if self.life == life and not self.is_up else None)

    def _do(self, action: Action) -> None:
        if isinstance(action, Alarm) and action.proof is not None:
            self.store.add_conflict(action.proof)
            self._witness_soon()
        if isinstance(action, Unheard):
            self._witness_soon(action.slot)
        super()._do(action)

    def _witness_soon(self, *unheard: Slot) -> None:
        self._unheard.update(unheard)
        if not self._will_witness:
            self._will_witness = True
            self._soon(self._witness, self.swarm.rng.uniform(0.0, evidence.PATIENCE_S))

    def _witness(self) -> None:
        self._will_witness = False
        told = evidence.witness(self.home, self._unheard) if self.home is not None else []
        self._unheard.clear()
        if told:
            self._read_records()
            self._witness_soon()

    def _keep(self, record: Record) -> None:
        origin = self.chronicle.names[record.header.origin]
        since_s = self.swarm.now - self.removed_at.get(origin, -POLL_S)
        is_trusted = origin in {self.name, *self.trust.members} or since_s <= POLL_S
        assert is_trusted, f"{self.name} keeps a record of {origin}, whom it does not trust"
        super()._keep(record)

    def _look_at(self, record: Record) -> None:
        kind, origin = record.header.kind, record.header.origin
        if kind is Kind.EVIDENCE:
            origin = wire.read_evidence(record).accused
            self._witness_soon()
        if kind in (*ABOUT_KEYS, Kind.EVIDENCE):
            self._soon(self._read_peers)
        if kind is Kind.KEY_CARD or origin == self.key:
            self._soon(self._grant)

    def _soon(self, action: Callable[[], None], delay_s: float = 0.0) -> None:
        life = self.life

        def act() -> None:
            if self.is_up and self.life == life:
                action()

        self.swarm.after(delay_s, act)

    def _poll(self) -> None:
        self._read_peers()
        self._read_records()

    def _read_peers(self) -> None:
        peers = [peer for peer in self.store.peers() if not peer.query_only]
        members = {peer.key: peer.addresses for peer in peers}
        assert self.home is not None
        origins = frozenset(origin.raw for origin in self.home.trusted)
        if members != self.members or origins != self.origins or not members:
            self.members, self.origins = members, origins
            self.tell(PeersChanged(members, origins))
            self._grant()
            self._witness_soon()

    def _read_records(self) -> None:
        if not self.is_up:
            return
        added, self._position = self.store.held_after(self._position)
        for held in added:
            self.tell(RecordAdded(held))
        if any(held.record.header.kind is Kind.KEY_CARD for held in added):
            self._grant()

    def _grant(self) -> None:
        if self.home is not None and self.home.epochs.grant_missing():
            self._read_records()

    # -------------------------------------------------------------------------------- what the operator does

    def add(self, peer: Partner, addresses: Sequence[str] = (), *, query_only: bool = False) -> None:
        """`peer add`."""
        if query_only:
            self.removed_at[peer.name] = self.swarm.now
        self.trust.add(peer.name, with_address=bool(addresses), query_only=query_only)
        with self._opened() as home:
            add_peer(home, peer.key.text, peer.name, *addresses, query_only=query_only)

    def remove(self, peer: Partner) -> None:
        """`peer remove`."""
        self.trust.remove(peer.name)
        self.removed_at[peer.name] = self.swarm.now
        with self._opened() as home:
            remove_peer(home, peer.name)

    def publish(self, dataset: str, body: bytes) -> Record:  # type: ignore[override]
        """`publish`, from the moment the noise is drawn; a second summary of a dataset replaces the first. An operator
        who is told that the ledger is behind accepts that first."""
        with self._opened() as home:
            ledger = home.ledger()
            heads.accept_rollback(home, ledger)
            heads.refuse_if_behind(home, ledger)
            spent = ledger.reserve(dataset, TASK_ID, 0.001, 1e-6, None, default_cap_epsilon=100.0)
            ledger.ready(spent.release_id, body)
            return finish_interrupted(home, ledger)[-1]

    def share(self, body: bytes) -> Record:
        """`share`, with any bytes for a model; a second one replaces the first."""
        with self._opened() as home:
            models = home.store.held(kind=Kind.MODEL, origin=home.me)
            live = [held.record.id for held in models if held.state is HeldState.COMPLETE]
            with home.author.lock:
                before = live[-1] if live else b""
                return home.author.sealed(Kind.MODEL, TASK_ID, body, home.epochs.live(), supersedes=before)

    def withdraw(self, record: Record) -> None:
        """`withdraw`; the node knows the record unless it was restored from an older copy."""
        with self._opened() as home:
            if home.store.get(record.id) is not None:
                withdraw(home, record.id.hex())

    def back_up(self) -> None:
        """A copy of the home, with the node stopped; it runs on if it did before."""
        was_up = self.is_up
        self.stop()
        target = self.path.with_name(f"{self.path.name}.copy")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.path, target)
        self.copied = Backup(target, self.trust.copy(), frozenset(self.made), frozenset(self.buried))
        if was_up:
            self.start()

    def put_back(self) -> None:
        """The copy takes the place of the home, as when the disk is rolled back. The node is left stopped."""
        assert self.copied is not None
        self.stop()
        shutil.rmtree(self.path)
        rolled_back(Path(shutil.copytree(self.copied.path, self.path)))
        self.trust = self.copied.trust.copy()
        self.made, self.buried = set(self.copied.made), set(self.copied.buried)
        self.restores += 1

    @contextmanager
    def _opened(self) -> Iterator[Home]:
        """The home as a command has it: opened for this alone. A running node notices within `POLL_S`."""
        home = self._open()
        try:
            yield home
        finally:
            home.store.close()
        if self.is_up:
            self._soon(self._poll, POLL_S)

    def _open(self) -> Home:
        """The home, with the chronicle looking at whatever is signed."""
        home = Home.open(self.path)
        keep = home.store.add

        @functools.wraps(keep)
        def watched(record: Record, body: bytes | None = None, *, note: str | None = None) -> Held:
            self.chronicle.sign(self, home, record, body)
            return keep(record, body, note=note)

        home.store.add = watched  # type: ignore[method-assign]
        return home

    # ------------------------------------------------------------------------------------------ what is seen

    def held(self) -> dict[bytes, Held]:
        """Every record here."""
        with nullcontext(self.home) if self.home is not None else self._opened() as home:
            return {held.record.id: held for held in home.store.held()}

    def live_epoch(self) -> tuple[bytes, int]:
        """Incarnation and number of the epoch that the node seals under; 0 before it seals anything. It is up."""
        assert self.home is not None
        incarnation = self.store.incarnation
        grants = [one.header for one in own_records(self.home) if one.header.kind is Kind.KEY_GRANT]
        return incarnation, max((one.epoch for one in grants if one.incarnation == incarnation), default=0)

    def can_open(self, held: Held) -> bool:
        """Whether the product opens it; the node is up."""
        assert self.home is not None
        try:
            self.home.epochs.open(held)
        except NotReadable:
            return False
        return True


def islands(partners: Iterable[Partner], origin: Partner) -> list[set[str]]:
    """The groups of nodes in which what `origin` wrote spreads: linked by nodes that trust each other and the origin.
    A pair can link if each is the other's member and one has the address of the other."""
    trusting = {one.name: one for one in partners if one is origin or origin.name in one.trust.members}
    groups: list[set[str]] = []
    while trusting:
        group, border = set(), [next(iter(trusting))]
        while border:
            one = trusting.pop(border.pop())
            group.add(one.name)
            border += [name for name, other in trusting.items() if name not in border and can_link(one, other)]
        groups.append(group)
    return groups


def can_link(one: Partner, other: Partner) -> bool:
    """Whether two nodes that are up and not cut off will be linked."""
    is_mutual = other.name in one.trust.members and one.name in other.trust.members
    return is_mutual and (other.name in one.trust.addressed or one.name in other.trust.addressed)
