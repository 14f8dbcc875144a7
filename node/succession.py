"""How identities end and who takes their place: a function of the records held here and of the operator's decisions.

Two records end an identity. A SUCCESSION is its own last word and names a successor; a REVOKE is made with its recovery
key, after a theft, and may name one. Either says how far the identity's records still count, by incarnation. The
successor has signed its consent, so both sides stand behind the name.

    ending     of one identity: its REVOKEs decide if there are any, its SUCCESSIONs otherwise. Of several the smallest
               number counts for each incarnation; if they name different successors, nobody is one
    line       an identity, its successor, the successor's successor; who stands last and has not ended is the heir
    standing   each peer that the operator (or a roster) added stands for its heir, under its name and addresses

Nothing of this is stored: it is worked out from all the records whenever it is asked for. So it cannot depend on the
order in which they came, and a REVOKE undoes what a thief's SUCCESSION brought about, whichever comes first.

An identity that ended is no member: no link, no grant. It stays a trusted *origin*: what it signed while it counted is
good, and the record that ended it must spread. What else it signed is carried like the rest, so that all nodes hold the
same, and is *quarantined*: shown with the reason and used for nothing. Only what takes away, a withdrawal, works from
whoever has the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from crypto.keys import PublicKey, public_key
from node.config import MAX_LAST_WORDS
from node.local_tables import Peer
from node.records import Header, Kind, LastGood, Revocation, Slot, Succession

MAX_LINE: Final = 16
"""Identities that may follow one another. A partner who replaces its key every year gets by for a while, and one who
makes up successors gets no further."""

ENDINGS: Final = (Kind.REVOKE, Kind.SUCCESSION)
ABOUT_KEYS: Final = (Kind.KEY_CARD, *ENDINGS)
"""What can change who is trusted: a card may bring the hash that a REVOKE needs."""


@dataclass(frozen=True)
class Ending:
    """How one identity ended. `good` is the last sequence of each incarnation that counts, `named` whom the deciding
    records call its successor, `since` when the first of them arrived here (seconds since 1970)."""

    is_revoked: bool
    good: Mapping[bytes, int]
    named: frozenset[PublicKey]
    since: float
    is_disputed: bool = False
    """Whether the identity named several successors, or said more than anybody keeps (`MAX_LAST_WORDS`), or signed a
    second record with the number of a SUCCESSION: what that one says may not have reached everybody."""

    @property
    def successor(self) -> PublicKey | None:
        """The one that is named; None if there is none, or it is disputed."""
        return None if self.is_disputed else next(iter(self.named), None)

    @property
    def word(self) -> str:
        """What happened to the identity."""
        return "revoked" if self.is_revoked else "replaced"

    def covers(self, header: Header) -> bool:
        """Whether this record of the identity still counts. The records that end it always do."""
        return header.kind in ENDINGS or header.sequence <= self.good.get(header.incarnation, 0)


def ending_of(
    revocations: Sequence[Revocation], successions: Sequence[Succession], since: float, *, is_contested: bool
) -> Ending:
    """What the valid records that end one identity come to; of too many nothing counts, since nobody keeps more
    (`MAX_LAST_WORDS`). `is_contested`: it signed a SUCCESSION and another record
    with one number, so it has ended, and nothing that such a SUCCESSION says counts: it is not among these."""
    deciding: Sequence[Revocation | Succession] = revocations or successions
    named = frozenset(one.successor for one in deciding if one.successor is not None)
    if (is_contested and not revocations) or len(deciding) >= MAX_LAST_WORDS:
        return Ending(bool(revocations), {}, named, since, is_disputed=True)
    good = _smallest([one.good for one in deciding])
    return Ending(bool(revocations), good, named, since, is_disputed=len(named) > 1)


def _smallest(several: Sequence[LastGood]) -> dict[bytes, int]:
    """Of each incarnation that all of them list, the smallest number."""
    listed = [dict(good) for good in several]
    common = set(listed[0]).intersection(*listed)
    return {incarnation: min(good[incarnation] for good in listed) for incarnation in common}


@dataclass(frozen=True)
class Former:
    """An identity that ended: under which name it is known here, None for an earlier one of this node itself; how it
    ended; and who stands in its place, if anybody does."""

    name: str | None
    ending: Ending
    heir: PublicKey | None
    query_only: bool


@dataclass(frozen=True)
class Standing:
    """Who is trusted here, now that some identities have ended."""

    owner: PublicKey | None
    peers: tuple[Peer, ...]
    former: Mapping[PublicKey, Former]
    endings: Mapping[PublicKey, Ending]
    impostors: frozenset[PublicKey] = field(default=frozenset())
    """Keys that some record calls a successor, that are none, and that nobody here added or removed by hand."""

    @property
    def trusted(self) -> frozenset[PublicKey]:
        """The origins whose records are kept and passed on."""
        members = {peer.key for peer in self.peers if not peer.query_only}
        ended = {key for key, former in self.former.items() if not former.query_only}
        return frozenset(members | ended | ({self.owner} if self.owner else set()))

    @property
    def selves(self) -> frozenset[PublicKey]:
        """This node's identity and those that it took the place of."""
        return frozenset({self.owner, *self._before(self.owner)}) if self.owner else frozenset()

    def person(self, origin: PublicKey) -> PublicKey:
        """The last identity of an origin's line: the same for all identities of one partner."""
        return line(origin, self.endings)[-1]

    def heirs(self, origin: PublicKey) -> frozenset[PublicKey]:
        """Those that took the place of this origin, one after the other."""
        return frozenset(line(origin, self.endings)[1:])

    def quarantine(self, header: Header) -> str:
        """Why nothing may be made of this record, in words; empty if nothing here is against it."""
        ending = self.endings.get(header.origin)
        if ending is not None and not ending.covers(header):
            return f"not used: its origin's key was {ending.word}, and this is none of the records that still count"
        if header.origin in self.impostors:
            return "not used: its origin claims the place of another, and that claim does not count"
        return ""

    def counts(self, slot: Slot) -> bool:
        """Whether a record with this number may count, one that ends its origin left aside."""
        origin, incarnation, sequence = slot
        ending = self.endings.get(public_key(origin))
        return ending is None or sequence <= ending.good.get(incarnation, 0)

    def _before(self, heir: PublicKey) -> list[PublicKey]:
        return [key for key, former in self.former.items() if former.heir == heir]


def line(key: PublicKey, endings: Mapping[PublicKey, Ending]) -> list[PublicKey]:
    """An identity and those that took its place, in order; ends where nobody is named, and before a circle closes."""
    found = [key]
    while len(found) < MAX_LINE and (ending := endings.get(found[-1])) is not None:
        if ending.successor is None or ending.successor in found:
            break
        found.append(ending.successor)
    return found


def standing(
    owner: PublicKey | None,
    added: Sequence[Peer],
    denied: Iterable[PublicKey],
    endings: Mapping[PublicKey, Ending],
    claimed: Iterable[PublicKey],
) -> Standing:
    """Who is trusted, from the peers that were added by hand or by a roster, those that were removed by hand, how
    identities ended, and all whom any record calls a successor."""
    if not endings:
        return Standing(owner, tuple(added), {}, endings)
    shut_out = frozenset(denied)
    peers = _present(owner, added, shut_out, endings)
    former = _former(owner, added, peers, endings)
    known = {peer.key for peer in peers} | shut_out | former.keys() | {owner}
    return Standing(owner, peers, former, endings, frozenset(claimed) - known)


def _present(
    owner: PublicKey | None,
    added: Sequence[Peer],
    denied: frozenset[PublicKey],
    endings: Mapping[PublicKey, Ending],
) -> tuple[Peer, ...]:
    """Each peer, or its heir under the same name and addresses; each key once."""
    present = {peer.key: peer for peer in added if peer.key not in endings}
    for peer in added:
        _, *heirs = line(peer.key, endings)
        heir = heirs[-1] if heirs else peer.key
        if heir not in endings and denied.isdisjoint(heirs) and heir != owner:
            present.setdefault(heir, replace(peer, key=heir, replaces=peer.key))
    return tuple(sorted(present.values(), key=lambda one: (one.added_at, one.key)))


def _former(
    owner: PublicKey | None,
    added: Sequence[Peer],
    peers: Sequence[Peer],
    endings: Mapping[PublicKey, Ending],
) -> dict[PublicKey, Former]:
    """The ended identities in the lines of those that were added, and those whose line ends in a peer or in this
    node."""
    here: dict[PublicKey | None, tuple[str | None, bool]] = {peer.key: (peer.name, peer.query_only) for peer in peers}
    here[owner] = (None, False)
    former: dict[PublicKey, Former] = {}
    for key, ending in endings.items():
        heir = line(key, endings)[-1]
        if heir in here:
            former[key] = Former(here[heir][0], ending, heir, here[heir][1])
    for peer in added:
        for key in line(peer.key, endings):
            if key in endings:
                former.setdefault(key, Former(peer.name, endings[key], None, peer.query_only))
    return former
