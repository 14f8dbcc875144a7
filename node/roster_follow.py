"""Following a roster: the versions that a node takes, and what it does because of them.

    take      a version came, by gossip, in a bundle or in a file: check it in full, then write it down
    act       members of the version in force come, those who are gone leave, by the door of `membership`
    publish   see to it that those who missed the version can get it from somebody whom they trust

Nothing is done before the version is on disk, and everything is done again from there: a node that stops in between
goes on when it starts. What the operator decided stands above the roster: whom he removed or denied stays out, whom he
added by hand stays.

A version is passed on as a ROSTER record. It reaches those who are at the version before it if an origin has published
it that they trust, which are members of that version before, and that is still passed on by others, which is so for
those who are members now. `COPIES` of these publish each version; who they are follows from hashes, so that they need
not talk about it. The others wait their turn, in case the first ones are gone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from crypto.keys import PublicKey
from node.errors import RosterError, StoreError
from node.home import Home
from node.local_tables import OPERATOR, Peer
from node.membership import Changed, change_members, change_tables, free_name
from node.records import Kind
from node.roster import (
    Place,
    RosterMember,
    RosterTree,
    SignedRoster,
    Standing,
    check_carried,
    check_first,
    check_follows,
    check_signatures,
)
from node.roster_tables import Followed
from node.roster_wire import hash_in, read_kept, write_signed

ROSTER: Final = "roster"
COPIES: Final = 3
"""Origins that publish a version: a node that keeps one of them out hears it from another."""

TURN_S: Final = 10.0
"""How long each next one waits for those before it. Ten members that were away at once delay a version by 100 s for
those who have no other source; everybody at once would send it a thousand times in the greatest coalition."""

ORDER_PERSON: Final = b"tidings-rost-ord"


@dataclass(frozen=True)
class Roll:
    """The roster that this node follows: its versions, and what is in force."""

    followed: Followed
    tree: RosterTree
    standing: Standing
    in_force: SignedRoster

    @property
    def members(self) -> Mapping[PublicKey, RosterMember]:
        """Who is a member now."""
        return self.tree.members()


@dataclass(frozen=True)
class Wanting:
    """A version that too few have published, and after how many others it is this node's turn."""

    signed: SignedRoster
    turn: int


def roll(home: Home) -> Roll | None:
    """What this node follows; None if it follows no roster."""
    followed = home.store.followed_roster()
    if followed is None:
        return None
    tree = RosterTree(followed.root, home.store.rosters(), lambda one: version(home, one), followed.chosen)
    standing = tree.standing()
    return Roll(followed, tree, standing, version(home, standing.in_force))


def version(home: Home, version_hash: bytes) -> SignedRoster:
    """A version that is held; StoreError if it is damaged on disk."""
    try:
        signed = read_kept(home.store.roster(version_hash))
    except RosterError as error:
        raise _damaged(home) from error
    if signed.hash != version_hash:
        raise _damaged(home)
    return signed


def _damaged(home: Home) -> StoreError:
    return StoreError(
        f"A version of the roster in {home.path} is damaged: `tidings roster unfollow`, then follow again."
    )


# ------------------------------------------------------------------------------------------------------------ following


def follow(home: Home, versions: Sequence[SignedRoster], *, adopt: bool) -> Changed:
    """Follow the roster in these versions, which come one after the other, or take them if it is followed already.

    The first time, the operator vouches for the first of them; every later one must follow from the one before it.
    `adopt`: members whom the operator added by hand are the roster's from now on. RosterError changes nothing.
    """
    with home.store.batch():
        if home.store.followed_roster() is None:
            first = versions[0]
            check_first(first)
            home.store.follow_roster(first.coalition, first.hash)
            _keep(home, first)
            versions = versions[1:]
        _take_all(home, versions)
        if adopt:
            _adopt(home)
    return act(home)


def unfollow(home: Home, *, keep: bool) -> Changed:
    """Leave the roster. Members whom it brought go, or with `keep` are the operator's own from now on."""
    with home.store.batch():
        brought = [peer for peer in home.store.added_peers() if is_brought(peer)]
        if keep:
            for peer in brought:
                home.store.add_peer(replace(peer, via=OPERATOR))
        home.store.unfollow_roster()
    return change_members(home, [], [] if keep else [peer.key for peer in brought])


def choose(home: Home, version_hash: bytes) -> Changed:
    """The operator's word in a dispute: go on with this version, whatever else follows the same one."""
    home.store.choose_roster(version_hash)
    return act(home)


def deny(home: Home, key: PublicKey, name: str) -> None:
    """Keep a key, and whoever has taken its place, out whatever the roster says; it leaves if it is a peer."""
    with home.store.batch():
        for one in (key, *home.store.standing().heirs(key)):
            home.store.remove_peer(one)
            home.store.deny(one, f"{name} was denied here")
    home.epochs.grant_missing()


def allow(home: Home, key: PublicKey) -> Changed:
    """Keep it out no longer, nor whoever stood before or after it: the roster brings it in if it is a member.
    RosterError if it was not denied."""
    with home.store.batch():
        person, denied = home.store.standing().person, [one.key for one in home.store.denied()]
        if key not in denied:
            raise RosterError(f"{key.short} is not denied here; `tidings roster status` shows who is.")
        for one in denied:
            if person(one) == person(key):
                home.store.allow(one)
    return act(home)


def _take_all(home: Home, versions: Sequence[SignedRoster]) -> None:
    """Take versions from a file: each must belong, and the last must not be behind what is in force."""
    before = roll(home)
    if before is None or not versions:
        return
    first = version(home, before.followed.root).roster.version
    is_news = [_take(home, before.tree, one) for one in versions if one.roster.version >= first]
    last = versions[-1]
    if not any(is_news) and last.roster.version < before.in_force.roster.version:
        raise RosterError(
            f"Version {last.roster.version} is older than version {before.in_force.roster.version}, which this node "
            "follows: ask for the newest file."
        )


def _take(home: Home, tree: RosterTree, signed: SignedRoster) -> bool:
    """Check one version in full, then write it down; False if it is held."""
    is_new = tree.place(signed)
    if is_new:
        _keep(home, signed)
    return is_new


def _keep(home: Home, signed: SignedRoster) -> None:
    roster = signed.roster
    home.store.add_roster(Place(signed.hash, roster.previous, roster.version), write_signed(signed))


def _adopt(home: Home) -> None:
    """Members that the operator added by hand are the roster's from now on."""
    held = roll(home)
    if held is None:
        return
    person = home.store.standing().person
    for peer in home.store.added_peers():
        if peer.via == OPERATOR and peer.key in held.members:
            home.store.add_peer(replace(peer, via=_via(held.in_force.roster.version)))
        elif peer.via == OPERATOR and person(peer.key) in held.members:
            home.store.remove_peer(peer.key)  # the roster brings who stands in its place, and may use its name


# --------------------------------------------------------------------------------------------------------- from others


@dataclass
class Seen:
    """What came of ROSTER records that were looked at, while one roster is followed. Any member can publish thousands
    of large ones, of this coalition by their own word; each is read once, and not whenever something changes."""

    following: tuple[bytes, bytes, float] | None = None
    settled: set[bytes] = field(default_factory=set)
    """Ids of those that are taken, of another coalition, or refused for good."""
    early: dict[bytes, bytes] = field(default_factory=dict)
    """Ids of those that follow a version that is not here, with its hash."""

    def begin(self, followed: Followed) -> None:
        """Go on, or begin anew if something else is followed now."""
        following = (followed.coalition, followed.root, followed.since)
        if following != self.following:
            self.following, self.settled, self.early = following, set(), {}

    def is_news(self, record_id: bytes, known: Collection[bytes]) -> bool:
        """Whether something may come of this record now that these versions are known."""
        previous = self.early.get(record_id)
        return record_id not in self.settled and (previous is None or previous in known)


def catch_up(home: Home, seen: Seen | None = None) -> tuple[Changed | None, dict[bytes, str]]:
    """Take what has come of the roster that is followed, and act; None if that changed no member. Also the versions
    that were refused, by the ids of their records, with the reason: each once where `seen` is kept from call to call.
    """
    followed, seen = home.store.followed_roster(), seen or Seen()
    if followed is None:
        return None, {}
    seen.begin(followed)
    offered = sorted(_news(home, followed.coalition, seen), key=lambda one: one[1].roster.version)
    refused = _take_what_belongs(home, offered, seen) if offered else {}
    changed = act(home)
    return (None if changed.is_nothing else changed), refused


def _news(home: Home, coalition: bytes, seen: Seen) -> Iterator[tuple[bytes, SignedRoster]]:
    """What ROSTER records hold that may belong now. Their signatures were checked when the records came."""
    known = {place.hash for place in home.store.rosters()}
    for held in home.store.held(kind=Kind.ROSTER):
        payload, record_id = held.record.header.payload, held.record.id
        if not seen.is_news(record_id, known):
            continue
        signed = read_kept(payload) if hash_in(payload) not in known else None
        if signed is not None and signed.coalition == coalition:
            yield record_id, signed
        else:
            seen.settled.add(record_id)


def _take_what_belongs(home: Home, offered: Sequence[tuple[bytes, SignedRoster]], seen: Seen) -> dict[bytes, str]:
    """Take versions, by number, and go on after one that is refused; the reasons by the ids of the records."""
    refused: dict[bytes, str] = {}
    with home.store.batch():
        held = roll(home)
        if held is None:
            return refused
        for record_id, signed in offered:
            try:
                _take(home, held.tree, signed)
            except RosterError as error:
                refused[record_id] = str(error)
                if held.tree.may_follow_later(signed):
                    seen.early[record_id] = signed.roster.previous
                else:
                    seen.settled.add(record_id)
    return refused


def carried(home: Home, coalition: bytes) -> list[SignedRoster]:
    """Every version of a coalition that ROSTER records brought here, by number. Signatures are enough by themselves;
    whether one follows from another was not looked at."""
    copies = (read_kept(held.record.header.payload) for held in home.store.held(kind=Kind.ROSTER))
    return sorted((one for one in copies if one.coalition == coalition), key=lambda one: one.roster.version)


# --------------------------------------------------------------------------------------------------------------- acting


def is_brought(peer: Peer) -> bool:
    """Whether the roster made this one a peer."""
    return peer.via.startswith(ROSTER)


def act(home: Home) -> Changed:
    """Make the peers those of the version in force, as far as the operator lets it. Again is no change.

    One transaction from the reading to the writing: a command may take a newer version meanwhile, or leave the roster,
    and whom that removed must not come back and be granted a key.
    """
    with home.store.batch():
        changed = _act(home)
    if not changed.is_nothing:
        home.epochs.grant_missing()
    return changed


def _act(home: Home) -> Changed:
    held = roll(home)
    if held is None:
        return Changed((), (), ())
    peers = {peer.key: peer for peer in home.store.added_peers()}
    others = {home.settings.name, *(peer.name for peer in peers.values() if not is_brought(peer))}
    selves = home.store.standing().selves
    wanted = {key: _peer(held, member, others) for key, member in held.members.items() if key not in selves}
    here = {key: peer for key, peer in peers.items() if is_brought(peer)}
    leaving = [key for key in here if key not in wanted]
    changing = [
        replace(wanted[key], added_at=peer.added_at, via=peer.via)
        for key, peer in here.items()
        if key in wanted and _shown(peer) != _shown(wanted[key])
    ]
    joining = [peer for key, peer in wanted.items() if key not in peers]
    return change_tables(home, joining, leaving, changing)


def _peer(held: Roll, member: RosterMember, others: set[str]) -> Peer:
    name = free_name(member.name, member.key, others)
    return Peer(member.key, name, member.addresses, member.query_only, time.time(), _via(held.in_force.roster.version))


def _shown(peer: Peer) -> tuple[str, tuple[str, ...], bool]:
    return peer.name, peer.addresses, peer.query_only


def _via(number: int) -> str:
    return f"{ROSTER} version {number}"


# ----------------------------------------------------------------------------------------------------------- publishing


def wanting(home: Home) -> list[Wanting]:
    """The versions that too few have published, of those that this node may publish, by number."""
    held = roll(home)
    if held is None or home.me in home.store.standing().endings:
        return []
    places = {place.hash: place for place in home.store.rosters()}
    publishers = _publishers(home, held, places)
    now = home.trusted
    found = []
    for place in places.values():
        turn = _turn(home.me, place, _candidates(home, held, place, now), publishers.get(place.hash, set()))
        if turn is not None:
            found.append(Wanting(version(home, place.hash), turn))
    return found


def publish(home: Home, signed: SignedRoster) -> None:
    """Pass a version on in this node's name; StoreError if it was damaged on disk."""
    try:
        check_signatures(signed.document, signed.signatures)
        check_carried(signed)
    except RosterError as error:
        raise _damaged(home) from error
    home.author.roster(signed)


def publish_at_once(home: Home) -> int:
    """Publish what it is this node's turn to publish without waiting for others; returns how many versions."""
    due = [one for one in wanting(home) if one.turn == 0]
    for one in due:
        publish(home, one.signed)
    return len(due)


def _turn(me: PublicKey, place: Place, candidates: frozenset[PublicKey], published: set[PublicKey]) -> int | None:
    """After how many others it is this node's turn to publish a version; None if it is not to."""
    free = COPIES - len(published & candidates)
    if me not in candidates or me in published or free <= 0:
        return None
    waiting = sorted(candidates - published, key=lambda key: _order(place.hash, key))
    return max(0, waiting.index(me) - free + 1)


def _candidates(home: Home, held: Roll, place: Place, now: frozenset[PublicKey]) -> frozenset[PublicKey]:
    """Who is trusted now, and was by those who lack this version: the members of the one before it. If none of them is
    left, those trusted now."""
    is_root = place.hash == held.followed.root
    before = version(home, place.hash if is_root else place.previous).roster.origins
    return before & now or held.in_force.roster.origins & now


def _publishers(home: Home, held: Roll, places: Mapping[bytes, Place]) -> dict[bytes, set[PublicKey]]:
    """Who has published which version so that it can be taken."""
    found: dict[bytes, set[PublicKey]] = {}
    for record in (one.record for one in home.store.held(kind=Kind.ROSTER)):
        place = places.get(hash_in(record.header.payload))
        if place is not None and _can_be_taken(home, held, place, record.header.payload):
            found.setdefault(place.hash, set()).add(record.header.origin)
    return found


def _can_be_taken(home: Home, held: Roll, place: Place, payload: bytes) -> bool:
    """Whether those who are at the version before would take this copy of it: the document is a version that is held,
    and the signatures can be others."""
    kept = home.store.roster(place.hash)
    if payload == kept:
        return True
    try:
        copy = read_kept(payload)
        if place.hash == held.followed.root:
            check_first(copy)
        else:
            check_follows(copy, version(home, place.previous))
    except RosterError:
        return False
    return True


def _order(version_hash: bytes, key: PublicKey) -> bytes:
    """Another order of the members for every version, the same at every node."""
    return hashlib.blake2b(version_hash + key.raw, digest_size=16, person=ORDER_PERSON).digest()
