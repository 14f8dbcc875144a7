"""HEADs: what a node tells of its own records and privacy ledger, and what peers (and it itself) see in them.

Before a summary is put into the store, its HEAD is (`tell`): the end of the ledger's chain, and what every dataset was
ever charged. HEADs follow one another through `supersedes`, so with the HEADs of one origin in hand, in any order:

* Two follow the same one, and no HEAD accepts either: the ledger is in use in two copies.
* A total shrinks from one HEAD to the next: spending was forgotten.

A node applies the same to itself. A HEAD signed by its own key that is no beginning of its own ledger's chain was made
by another copy: its home was restored from a backup, or copied. It then releases nothing (`refuse_if_behind`) until
`accept_rollback` has charged what those HEADs added to their datasets. Parts are not told apart in a HEAD, so this is
charged to the whole dataset: never too little. The next HEAD names what it accepted, which settles the fork for peers.

A node that has not met a peer since it was restored cannot know; docs/operations.md says to serve first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from crypto.keys import PublicKey
from node import evidence, wire
from node.gossip.reconcile import SET_PERSON
from node.home import Home
from node.records import MAX_ACCEPTED, DatasetTotal, Head, Kind, Record

if TYPE_CHECKING:
    from fusion.accounts import Total
    from fusion.ledger import ForeignHead, Ledger

Charges = dict[bytes, tuple[int, ...]]  # tag -> entry by entry


@dataclass(frozen=True)
class Finding:
    """Something that the HEADs of an origin show, in words."""

    origin: PublicKey
    reason: str


@dataclass(frozen=True)
class SignedHead:
    """A HEAD record and its payload."""

    record: Record
    head: Head

    @property
    def charged(self) -> Charges:
        return {total.tag: total.charged for total in self.head.datasets}


BEHIND: Final = (
    "peers hold a record signed by this node that its privacy ledger knows nothing of: its home was restored from an "
    "old copy or runs twice; restore the newest ledger.db, or run `tidings budget accept-rollback`"
)
MAX_CHARGED = 2**63 - 1  # far above every cap; what is told stays inside 64 bits

# ----------------------------------------------------------------------------------------------- telling our own


def tell(home: Home, ledger: Ledger, accepted: tuple[bytes, ...] = ()) -> Record | None:
    """Author a HEAD if the ledger has moved since the last one; None if peers are told already."""
    with home.author.lock:
        totals = ledger.totals()
        last = _last(home, ledger)
        if last is not None and (last.head.ledger_position, last.head.ledger_head) == (totals.position, totals.head):
            return None
        sequence, digest = _records_so_far(home)
        datasets = tuple(
            DatasetTotal(one.tag, one.cap_epsilon, one.delta, tuple(min(cost, MAX_CHARGED) for cost in one.charged))
            for one in totals.datasets
        )
        head = Head(sequence, digest, totals.position, totals.head, datasets, accepted)
        return home.author.head(head, last.record.id if last else b"")


def own_heads(home: Home) -> dict[bytes, SignedHead]:
    """Every HEAD that counts, signed by a key that this home has or had, that is known here, those that clash with
    another record included."""
    ours, standing = {home.me, *home.keystore.former_keys}, home.store.standing()
    held = [held.record for held in home.store.held(kind=Kind.HEAD) if held.record.header.origin in ours]
    clashing = [
        record for record in home.store.conflicts() if record.header.origin in ours and record.header.kind is Kind.HEAD
    ]
    return _signed_heads(record for record in (*held, *clashing) if not standing.quarantine(record.header))


def _last(home: Home, ledger: Ledger) -> SignedHead | None:
    """The newest HEAD that this ledger made."""
    heads = own_heads(home)
    foreign = set(ledger.foreign(map(_claim, heads.values())))
    ours = [one for one in heads.values() if one.record.id not in foreign | ledger.accepted()]
    return max(ours, key=lambda one: one.head.ledger_position, default=None)


def _records_so_far(home: Home) -> tuple[int, bytes]:
    """The highest sequence of our records of this incarnation, and the digest of their ids."""
    incarnation = home.store.number_apart(home.me)
    mine = [held.record for held in home.store.held(origin=home.me)]
    counted = [record for record in mine if record.header.incarnation == incarnation]
    highest = max((record.header.sequence for record in counted), default=0)
    ids = sorted(record.id for record in counted)
    return highest, hashlib.blake2b(b"".join(ids), digest_size=32, person=SET_PERSON).digest()


# ------------------------------------------------------------------------------------------ another copy of ourselves


def refuse_if_behind(home: Home, ledger: Ledger) -> None:
    """BudgetError if another copy of this node's ledger has spent what this one does not know of."""
    from fusion.errors import BudgetError

    if foreign_heads(home, ledger):
        raise BudgetError(BEHIND)


def is_behind(home: Home) -> bool:
    """Whether `publish` would be refused because of another copy; reads the ledger only if there is a HEAD of ours, and
    makes none: a ledger that is gone knows nothing of any."""
    heads = own_heads(home)
    return bool(heads) and (not home.has_ledger or bool(foreign_heads(home, home.ledger())))


def foreign_heads(home: Home, ledger: Ledger) -> list[SignedHead]:
    """Our own HEADs that this ledger cannot have made, and that were not accepted yet."""
    heads = own_heads(home)
    # What an accepted HEAD follows was charged with it, even if it arrives later.
    settled = {one.record.id for accepted in ledger.accepted() for one in _lineage(accepted, heads)}
    return [heads[record_id] for record_id in ledger.foreign(map(_claim, heads.values())) if record_id not in settled]


def accept_rollback(home: Home, ledger: Ledger) -> list[Total]:
    """Charge what another copy spent, number this node's records apart from that copy's, and tell peers.

    Returns what was burned; empty if there was nothing to accept. Again is no change.
    """
    from fusion.accounts import Total

    with home.author.lock:
        foreign = foreign_heads(home, ledger)
        if not foreign:
            return []
        heads = own_heads(home)
        terms = {total.tag: total for one in foreign for total in one.head.datasets}
        burned = [
            Total(tag, terms[tag].cap_epsilon, terms[tag].delta, charged)
            for tag, charged in sorted(_sum_of(_increase(one, heads) for one in foreign).items())
            if any(charged)
        ]
        followed = {one.record.header.supersedes for one in foreign}
        ends = tuple(sorted(one.record.id for one in foreign if one.record.id not in followed))
        ledger.accept_rollback([one.record.id for one in foreign], burned)
        home.store.renew_incarnation()
        tell(home, ledger, ends[:MAX_ACCEPTED])
        return burned


def _claim(one: SignedHead) -> ForeignHead:
    from fusion.ledger import ForeignHead

    return ForeignHead(one.record.id, one.head.ledger_position, one.head.ledger_head)


# -------------------------------------------------------------------------------------------------- what HEADs show


def findings(home: Home) -> list[Finding]:
    """What the HEADs held here, and proofs of equivocation, say against their origins; for `status` and the log. A HEAD
    counts against its origin even if there are two with its number: it signed it."""
    by_partner: dict[PublicKey, list[Record]] = {}
    standing = home.store.standing()
    for held in home.store.held(kind=Kind.HEAD):
        header = held.record.header
        if not standing.quarantine(header):  # nor does what a thief says of a ledger that he does not have
            by_partner.setdefault(standing.person(header.origin), []).append(held.record)
    found = [
        Finding(partner, reason)
        for partner, records in by_partner.items()
        if (reason := quarrel(_signed_heads(records)))
    ]
    return found + [Finding(origin, reason) for origin, reason in evidence.findings(home)]


def quarrel(heads: dict[bytes, SignedHead]) -> str:
    """What the HEADs of one origin have against one another, in words; empty if nothing."""
    accepted = {other.record.id for one in heads.values() for other in _accepted_branches(one, heads)}
    followers: dict[bytes, list[bytes]] = {}
    for one in heads.values():
        followers.setdefault(one.record.header.supersedes, []).append(one.record.id)
    if any(len([one for one in group if one not in accepted]) > 1 for group in followers.values()):
        return "its privacy ledger is in use in two copies, and its budget counts one of them only"
    if any(not _covers(one.charged, _base(one, heads)) for one in heads.values()):
        return "its privacy ledger has forgotten spending: it was restored from an old copy, or tampered with"
    if accepted:
        return "its privacy ledger was restored from an old copy; what was spent since has been charged again"
    return ""


def _base(one: SignedHead, heads: dict[bytes, SignedHead]) -> Charges:
    """What must be in this HEAD's totals: those of the HEAD it follows, and the increases that it accepted."""
    return _sum_of([_before(one, heads), *(_increase(other, heads) for other in _accepted_branches(one, heads))])


def _increase(one: SignedHead, heads: dict[bytes, SignedHead]) -> Charges:
    """What this HEAD's totals have over those of the HEAD that it follows; all of them if that is not here."""
    before = _before(one, heads)
    return {tag: _difference(amounts, before.get(tag, ())) for tag, amounts in one.charged.items()}


def _before(one: SignedHead, heads: dict[bytes, SignedHead]) -> Charges:
    previous = heads.get(one.record.header.supersedes)
    return previous.charged if previous else {}


def _accepted_branches(one: SignedHead, heads: dict[bytes, SignedHead]) -> list[SignedHead]:
    """The HEADs of other copies that this one accepts: from each end back to where the copies parted."""
    if not one.head.accepted:
        return []
    own = {other.record.id for other in _lineage(one.record.id, heads)}
    branches: dict[bytes, SignedHead] = {}
    for end in one.head.accepted:
        branches |= {other.record.id: other for other in _lineage(end, heads, until=own | branches.keys())}
    return list(branches.values())


def _lineage(record_id: bytes, heads: dict[bytes, SignedHead], until: Set[bytes] = frozenset()) -> Iterator[SignedHead]:
    """This HEAD and those before it, as far as they are here, up to one of `until`. Hashes make no circles."""
    while record_id in heads and record_id not in until:
        yield heads[record_id]
        record_id = heads[record_id].record.header.supersedes


def _covers(charged: Charges, least: Charges) -> bool:
    """Whether nothing in `least` is above what is in `charged`."""
    return all(
        amounts == tuple(map(min, zip(amounts, charged.get(tag, (0,) * len(amounts)), strict=False)))
        for tag, amounts in least.items()
    )


def _difference(amounts: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(0, now - then) for now, then in zip_longest(amounts, before, fillvalue=0))


def _sum_of(parts: Iterable[Charges]) -> Charges:
    total: Charges = {}
    for part in parts:
        for tag, amounts in part.items():
            total[tag] = tuple(a + b for a, b in zip_longest(total.get(tag, ()), amounts, fillvalue=0))
    return total


def _signed_heads(records: Iterable[Record]) -> dict[bytes, SignedHead]:
    decoded = ((record, wire.read_payload(record.header)) for record in records)
    return {record.id: SignedHead(record, payload) for record, payload in decoded if isinstance(payload, Head)}
