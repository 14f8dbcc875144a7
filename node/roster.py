"""Rosters: a coalition's list of members, signed by its administrators, version after version.

The rules are those of the root role of The Update Framework (TUF specification 1.0, section 5.3), without its clock: a
version does not expire, because here time is never a reason to refuse anything.

    document   The first version names administrators (keys of nodes) and a threshold. Its hash names the coalition.
    follows    A version N + 1 names the hash of version N. It counts if as many administrators of N as N asks for have
               signed it, and as many of its own as it asks for itself (5.3.4). No other number follows N (5.3.5).
    dispute    Two different versions that both follow N: those who may sign have said two things. From then on nobody
               comes in, and whoever a version on either branch leaves out stays out, until an operator chooses.

What a node goes by depends on the versions that it holds, and not on the order in which they came (`RosterTree`): two
nodes with the same ones, and the same choices of their operators, have the same members.

This module does no I/O and knows no encoding (`roster_wire`). It decides what a roster says, not what a node does about
it (`roster_follow`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from crypto.errors import BadSignature
from crypto.keys import Identity, PublicKey
from crypto.signing import ROSTER_HASH_BYTES, ROSTER_LABEL, SIGNATURE_BYTES, roster_hash, sign, verify
from node.errors import NodeError, RosterError
from node.peers import check_addresses, check_name

FORMAT: Final = 1
MAX_ADMINISTRATORS: Final = 32
MAX_SIGNATURES: Final = 2 * MAX_ADMINISTRATORS
"""Those of one version, and those of the version before it."""

MAX_MEMBERS: Final = 1_000
MAX_VERSION: Final = 2**32 - 1
MAX_RIVALS: Final = 16
"""Versions kept that follow the same one: two prove the dispute, and some show what happened."""

Signatures = tuple[tuple[PublicKey, bytes], ...]


@dataclass(frozen=True, slots=True)
class RosterMember:
    """A member as the administrators put it down."""

    key: PublicKey
    name: str
    addresses: tuple[str, ...] = ()
    query_only: bool = False


@dataclass(frozen=True, slots=True)
class Roster:
    """What one version says. `coalition` and `previous` are empty in version 1."""

    version: int
    name: str
    administrators: tuple[PublicKey, ...]
    threshold: int
    members: tuple[RosterMember, ...]
    coalition: bytes = b""
    previous: bytes = b""
    format: int = FORMAT

    @property
    def keys(self) -> frozenset[PublicKey]:
        """The members' keys."""
        return frozenset(member.key for member in self.members)

    @property
    def origins(self) -> frozenset[PublicKey]:
        """The keys of those who take part in gossip."""
        return frozenset(member.key for member in self.members if not member.query_only)


@dataclass(frozen=True, slots=True)
class SignedRoster:
    """One version, its document exactly as it was signed, and the signatures by ascending key."""

    roster: Roster
    document: bytes = field(repr=False)
    signatures: Signatures = field(repr=False)
    hash: bytes

    @property
    def coalition(self) -> bytes:
        """What names the coalition: the hash of version 1."""
        return self.roster.coalition or self.hash

    @property
    def signers(self) -> frozenset[PublicKey]:
        """Who signed it."""
        return frozenset(administrator for administrator, _ in self.signatures)

    def signed_by(self, identity: Identity) -> SignedRoster:
        """The same with the signature of one administrator more."""
        return self.with_signatures(((identity.public_key, sign(identity, ROSTER_LABEL, self.document)),))

    def with_signatures(self, more: Signatures) -> SignedRoster:
        """The same with these signatures too, which were checked."""
        return replace(self, signatures=tuple(sorted((dict(more) | dict(self.signatures)).items())))


def in_order(roster: Roster) -> Roster:
    """The same list as a document has it: administrators and members by key."""
    administrators = tuple(sorted(set(roster.administrators)))
    return replace(roster, administrators=administrators, members=tuple(sorted(roster.members, key=lambda m: m.key)))


# -------------------------------------------------------------------------------------------------- the rules, in order


def check_roster(roster: Roster) -> None:
    """What one version must be whatever came before it; RosterError names the first rule that is broken."""
    if roster.format != FORMAT:
        raise RosterError(f"A roster of format {roster.format} is not known to this version; update it.")
    if not 1 <= roster.version <= MAX_VERSION:
        raise RosterError(f"The version of a roster is from 1 to {MAX_VERSION}, this one is {roster.version}.")
    lengths = (len(roster.coalition), len(roster.previous))
    if lengths != ((0, 0) if roster.version == 1 else (ROSTER_HASH_BYTES, ROSTER_HASH_BYTES)):
        raise RosterError("Every version of a roster but the first names its coalition and the version before it.")
    _check_text("a coalition", roster.name)
    if not 1 <= len(roster.administrators) <= MAX_ADMINISTRATORS or not _is_ascending(roster.administrators):
        raise RosterError(f"A roster has 1 to {MAX_ADMINISTRATORS} administrators, by ascending key, each once.")
    if not 1 <= roster.threshold <= len(roster.administrators):
        raise RosterError(f"A threshold of {roster.threshold} cannot be met by {len(roster.administrators)} keys.")
    _check_members(roster.members)


def check_signatures(document: bytes, signatures: Signatures) -> None:
    """Each is by the key that it names, over this document; RosterError otherwise."""
    if len(signatures) > MAX_SIGNATURES or not _is_ascending([key for key, _ in signatures]):
        raise RosterError(f"A roster has at most {MAX_SIGNATURES} signatures, by ascending key, each key once.")
    for administrator, signature in signatures:
        if len(signature) != SIGNATURE_BYTES:
            raise RosterError(f"A signature of a roster has {SIGNATURE_BYTES} bytes, this one {len(signature)}.")
        try:
            verify(administrator, ROSTER_LABEL, document, signature)
        except BadSignature:
            raise RosterError(f"A signature of this roster is not {administrator.short}'s: discard the copy.") from None


def check_carried(signed: SignedRoster) -> None:
    """What a relay can check of a version without the one before it: enough of its own administrators signed."""
    _check_threshold(signed, signed.roster)


def check_first(signed: SignedRoster) -> None:
    """A version that nothing here comes before: signed by its own administrators, as many as it asks for, and by nobody
    else if it is version 1."""
    _check_threshold(signed, signed.roster)
    strangers = signed.signers - set(signed.roster.administrators)
    if signed.roster.version == 1 and strangers:
        raise RosterError(f"{min(strangers).short} signed this roster and is none of its administrators.")


def check_follows(signed: SignedRoster, before: SignedRoster) -> None:
    """A version that comes after `before` (TUF 5.3.4 and 5.3.5); RosterError says which rule it breaks."""
    check_proposed(signed, before)
    _check_threshold(signed, before.roster)
    _check_threshold(signed, signed.roster)


def check_proposed(signed: SignedRoster, before: SignedRoster) -> None:
    """The same but for the number of signatures: a version that is still being signed."""
    roster = signed.roster
    if signed.coalition != before.coalition:
        raise RosterError("This roster is another coalition's.")
    if roster.version != before.roster.version + 1 or roster.previous != before.hash:
        raise RosterError(f"Version {roster.version} does not follow version {before.roster.version}.")
    strangers = signed.signers - set(before.roster.administrators) - set(roster.administrators)
    if strangers:
        raise RosterError(
            f"{min(strangers).short} signed version {roster.version} and is an administrator neither of it nor of "
            f"version {before.roster.version}."
        )


def lacking(signed: SignedRoster, by: Roster) -> int:
    """How many signatures of the administrators of `by` are missing for its threshold."""
    return max(0, by.threshold - len(signed.signers & set(by.administrators)))


def _check_threshold(signed: SignedRoster, by: Roster) -> None:
    missing = lacking(signed, by)
    if missing:
        raise RosterError(
            f"Version {signed.roster.version} lacks {missing} of the {by.threshold} signatures that version "
            f"{by.version} asks of its administrators."
        )


def _check_members(members: tuple[RosterMember, ...]) -> None:
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise RosterError(f"A roster has 1 to {MAX_MEMBERS} members, this one {len(members)}.")
    if not _is_ascending([member.key for member in members]):
        raise RosterError("The members of a roster come by ascending key, each once.")
    for member in members:
        _check_text("a member", member.name)
        try:
            is_proper = check_addresses(member.addresses) == member.addresses
        except NodeError as error:
            raise RosterError(f"An address of {member.name} cannot be used: {error}") from error
        if not is_proper:
            raise RosterError(f"The addresses of {member.name} are not written as addresses are, each once.")
    names = {member.name.casefold() for member in members}
    if len(names) != len(members):
        raise RosterError("Two members of a roster have the same name.")


def _check_text(whose: str, name: str) -> None:
    try:
        is_proper = check_name(name) == name
    except NodeError as error:
        raise RosterError(f"The name of {whose} in a roster cannot be used: {error}") from error
    if not is_proper:
        raise RosterError(f"The name of {whose} in a roster begins or ends with a space.")


def _is_ascending(keys: Iterable[PublicKey]) -> bool:
    return all(one < other for one, other in itertools.pairwise(keys))


# ----------------------------------------------------------------------------------------------------- what is in force


@dataclass(frozen=True, slots=True)
class Place:
    """Where a version stands among the others."""

    hash: bytes
    previous: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What a node goes by: the undisputed versions, the last of which is in force; those that dispute what follows it;
    and all that came after it on any branch. The last two are empty without a dispute."""

    trunk: tuple[bytes, ...]
    rivals: tuple[bytes, ...] = ()
    branches: tuple[bytes, ...] = ()

    @property
    def in_force(self) -> bytes:
        """The hash of the version in force."""
        return self.trunk[-1]

    @property
    def is_disputed(self) -> bool:
        """Whether changes are frozen."""
        return bool(self.rivals)


class RosterTree:
    """The versions that a node holds, each placed under the one that it follows.

    `load` gives a version by its hash. `root` is the first version that the operator took, `chosen` one that the
    operator chose in a dispute: where branches part on the way to it, the way to it is taken.
    """

    def __init__(
        self, root: bytes, places: Iterable[Place], load: Callable[[bytes], SignedRoster], chosen: bytes = b""
    ) -> None:
        self._root = root
        self._load = load
        self._chosen = chosen
        self._places: dict[bytes, Place] = {}
        self._following: dict[bytes, list[bytes]] = {}
        for place in sorted(places, key=lambda one: one.version):
            self._add(place)

    def __contains__(self, version_hash: bytes) -> bool:
        return version_hash in self._places

    @property
    def newest(self) -> int:
        """The highest version number held."""
        return max(place.version for place in self._places.values())

    def place(self, signed: SignedRoster) -> bool:
        """Take in a version whose signatures were checked; False if it is held, RosterError if it does not belong.

        Whether it comes to be in force, or is one of two, is what `standing` says afterwards.
        """
        root = self._load(self._root)
        if signed.coalition != root.coalition:
            raise RosterError(f"This roster is of another coalition than {root.roster.name}, which this node follows.")
        if signed.hash in self._places:
            return False
        roster = signed.roster
        if roster.version <= root.roster.version:
            raise RosterError(
                f"Version {roster.version} is not newer than the first version that this node took; it changes nothing."
            )
        if roster.previous not in self._places:
            raise RosterError(self._gap(roster))
        check_follows(signed, self._load(roster.previous))
        if len(self._following.get(roster.previous, ())) >= MAX_RIVALS:
            raise RosterError(f"{MAX_RIVALS} versions {roster.version} are held already; one more proves no more.")
        self._add(Place(signed.hash, roster.previous, roster.version))
        return True

    def may_follow_later(self, signed: SignedRoster) -> bool:
        """Whether a version that `place` refused may come to belong: what it follows is not here."""
        return signed.roster.version > self._load(self._root).roster.version and signed.roster.previous not in self

    def _gap(self, roster: Roster) -> str:
        if roster.version > self.newest + 1:
            return f"Version {roster.version} has come, and {self.newest + 1} to {roster.version - 1} have not."
        return f"Version {roster.version} follows a version {roster.version - 1} that is not known here."

    def standing(self) -> Standing:
        """What is in force, from everything held."""
        chosen_way = set(self.way_to(self._chosen)) if self._chosen in self._places else set()
        trunk = [self._root]
        while following := self._following.get(trunk[-1], []):
            on_the_way = [one for one in following if one in chosen_way]
            if len(following) > 1 and not on_the_way:
                return Standing(tuple(trunk), tuple(sorted(following)), tuple(sorted(self._after(trunk[-1]))))
            trunk.append(next(iter(on_the_way), following[0]))
        return Standing(tuple(trunk))

    def way_to(self, version_hash: bytes) -> list[bytes]:
        """The versions from the first one to this one."""
        way = [version_hash]
        while way[-1] != self._root:
            way.append(self._places[way[-1]].previous)
        return way[::-1]

    def members(self) -> Mapping[PublicKey, RosterMember]:
        """Who is a member now, by key. In a dispute: who is one in the version in force and in every version after it,
        and may do no more than the least that any of them says."""
        standing = self.standing()
        members = {member.key: member for member in self._load(standing.in_force).roster.members}
        for version_hash in standing.branches:
            said = {member.key: member for member in self._load(version_hash).roster.members}
            members = {
                key: replace(member, query_only=member.query_only or said[key].query_only)
                for key, member in members.items()
                if key in said
            }
        return members

    def _after(self, version_hash: bytes) -> list[bytes]:
        after: list[bytes] = []
        waiting = [version_hash]
        while waiting:
            following = self._following.get(waiting.pop(), [])
            after += following
            waiting += following
        return after

    def _add(self, place: Place) -> None:
        self._places[place.hash] = place
        if place.hash != self._root:
            self._following.setdefault(place.previous, []).append(place.hash)


def signed_both(one: SignedRoster, other: SignedRoster) -> list[PublicKey]:
    """The administrators who signed two versions that cannot both be true."""
    return sorted(one.signers & other.signers)


def new_version(before: SignedRoster, change: Callable[[Roster], Roster]) -> Roster:
    """The unsigned version after `before`, changed; RosterError if it breaks a rule or changes nothing."""
    same = replace(before.roster, version=before.roster.version + 1, coalition=before.coalition, previous=before.hash)
    changed = in_order(change(same))
    if changed == same:
        raise RosterError("These changes leave the roster as it is; say what is to change, see --help.")
    check_roster(changed)
    return changed


def unsigned(roster: Roster, document: bytes) -> SignedRoster:
    """A version that nobody has signed yet."""
    return SignedRoster(roster, document, (), roster_hash(document))
