"""What administrators do: write a version, sign the file that goes from one to the next, see what it changes.

    create | propose  -> FILE ->  sign  -> FILE ->  sign  -> FILE ->  follow

A roster file holds every version from the first one on, so that whoever follows it needs nothing else. What a node
signs it first writes down: it does not sign two versions with one number unless its operator insists, because both may
come to count, and that freezes the roster for everybody.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from crypto.keys import PublicKey
from node import show
from node.errors import RosterError, UsageError
from node.home import Home
from node.peers import check_addresses, check_name, parse_key
from node.roster import (
    Roster,
    RosterMember,
    SignedRoster,
    check_first,
    check_follows,
    check_proposed,
    in_order,
    lacking,
    new_version,
    unsigned,
)
from node.roster_follow import Roll, roll, version
from node.roster_wire import read_file, write_document, write_file

# ------------------------------------------------------------------------------------------------------- what was typed


@dataclass(frozen=True)
class Changes:
    """What a proposal changes, as it was typed: members as KEY=NAME, other members and administrators by name or key,
    addresses as NAME=HOST:PORT, new names as OLD=NEW, replaced keys as OLD=KEY."""

    add: Sequence[str] = ()
    query_only: Sequence[str] = ()
    addresses: Sequence[str] = ()
    remove: Sequence[str] = ()
    rename: Sequence[str] = ()
    replace: Sequence[str] = ()
    add_admins: Sequence[str] = ()
    remove_admins: Sequence[str] = ()
    threshold: int | None = None


@dataclass
class _Draft:
    """The lists of a version while it is changed."""

    home: Home
    members: dict[PublicKey, RosterMember] = field(default_factory=dict)
    administrators: set[PublicKey] = field(default_factory=set)

    def add(self, typed: str, *, query_only: bool) -> None:
        """KEY=NAME."""
        key_text, name = _halves(typed, "KEY=NAME")
        key = parse_key(key_text)
        if key in self.members:
            raise UsageError(
                f"The key of {self.members[key].name} is in the roster already; say --rename or --address to change it."
            )
        self.members[key] = RosterMember(key, check_name(name), (), query_only)

    def remove(self, typed: str) -> None:
        """NAME or KEY."""
        del self.members[self.member(typed).key]

    def rename(self, typed: str) -> None:
        """OLD=NEW."""
        old, new = _halves(typed, "OLD=NEW")
        member = self.member(old)
        self.members[member.key] = replace(member, name=check_name(new))

    def replace(self, typed: str) -> None:
        """OLD=KEY: the same member, or administrator, or both, under another key."""
        old, new = _halves(typed, "OLD=KEY")
        key, old_key = parse_key(new), self.key(old)
        if key in self.members or old_key not in {*self.members, *self.administrators}:
            raise UsageError(f"{typed!r} replaces nobody: the first must be in the roster, and the second must not.")
        if old_key in self.members:
            self.members[key] = replace(self.members.pop(old_key), key=key)
        if old_key in self.administrators:
            self.administrators = self.administrators - {old_key} | {key}

    def set_addresses(self, typed: Iterable[str]) -> None:
        """NAME=HOST:PORT, several for several addresses, in order; NAME= for none."""
        told: dict[PublicKey, list[str]] = {}
        for one in typed:
            name, address = _halves(one, "NAME=HOST:PORT", may_be_empty=True)
            told.setdefault(self.member(name).key, []).extend([address] if address else [])
        for key, addresses in told.items():
            self.members[key] = replace(self.members[key], addresses=check_addresses(addresses))

    def member(self, typed: str) -> RosterMember:
        """Whom a person means; UsageError if it is no member."""
        named = [member for member in self.members.values() if member.name.casefold() == typed.strip().casefold()]
        found = named[0] if named else self.members.get(self.key(typed))
        if found is None:
            raise UsageError(f"{typed} is not a member in the roster; `tidings roster status` shows who is.")
        return found

    def key(self, typed: str) -> PublicKey:
        """A key, or that of a member, or of a peer here, or of this node."""
        named = [member.key for member in self.members.values() if member.name.casefold() == typed.strip().casefold()]
        return named[0] if named else self.home.peers.key_of(typed)


def _halves(typed: str, form: str, *, may_be_empty: bool = False) -> tuple[str, str]:
    before, sign, after = (part.strip() for part in typed.partition("="))
    if not sign or not before or not (after or may_be_empty):
        raise UsageError(f"{typed!r} is not of the form {form}.")
    return before, after


# -------------------------------------------------------------------------------------------------------------- writing


def create(home: Home, name: str, changes: Changes) -> list[SignedRoster]:
    """The unsigned version 1 of a new coalition. Without members in `changes` they are the peers of this node and
    itself; without administrators this node is the only one; without a threshold it is more than half of them."""
    draft = _Draft(home)
    for typed in changes.add:
        draft.add(typed, query_only=False)
    if not changes.add:
        draft.members = {member.key: member for member in _present(home)}
    for typed in changes.query_only:
        draft.add(typed, query_only=True)
    draft.administrators = {draft.key(typed) for typed in changes.add_admins} or {home.me}
    draft.set_addresses(changes.addresses)
    threshold = changes.threshold or len(draft.administrators) // 2 + 1
    roster = in_order(
        Roster(1, check_name(name), tuple(draft.administrators), threshold, tuple(draft.members.values()))
    )
    return [unsigned(roster, write_document(roster))]


def propose(home: Home, changes: Changes) -> list[SignedRoster]:
    """The versions from the first one to the one in force, and an unsigned one with the changes after it."""
    held = roll(home)
    if held is None:
        raise RosterError("This node follows no roster; `tidings roster create` makes one, `roster follow` takes one.")
    _refuse_disputed(held)

    def change(roster: Roster) -> Roster:
        draft = _Draft(home, {member.key: member for member in roster.members}, set(roster.administrators))
        for typed in changes.replace:
            draft.replace(typed)
        for typed in changes.remove:
            draft.remove(typed)
        for typed in changes.add:
            draft.add(typed, query_only=False)
        for typed in changes.query_only:
            draft.add(typed, query_only=True)
        for typed in changes.rename:
            draft.rename(typed)
        draft.set_addresses(changes.addresses)
        draft.administrators |= {draft.key(typed) for typed in changes.add_admins}
        draft.administrators -= {draft.key(typed) for typed in changes.remove_admins}
        return replace(
            roster,
            administrators=tuple(draft.administrators),
            members=tuple(draft.members.values()),
            threshold=changes.threshold or roster.threshold,
        )

    proposed = new_version(held.in_force, change)
    chain = [version(home, one) for one in held.standing.trunk]
    return [*chain, unsigned(proposed, write_document(proposed))]


def _present(home: Home) -> list[RosterMember]:
    """The peers of this node, and itself."""
    listen = home.settings.listen
    is_open = listen is not None and not listen.startswith(("0.0.0.0:", "[::]:")) and not listen.endswith(":0")
    me = RosterMember(home.me, home.settings.name, (listen,) if listen is not None and is_open else ())
    return [me, *(RosterMember(one.key, one.name, one.addresses, one.query_only) for one in home.store.peers())]


# -------------------------------------------------------------------------------------------------------------- signing


@dataclass(frozen=True)
class Proposal:
    """A file with a version to sign, checked: the versions before it, and what it changes, in words."""

    versions: list[SignedRoster]
    changes: list[str]

    @property
    def last(self) -> SignedRoster:
        """The version to sign."""
        return self.versions[-1]

    @property
    def before(self) -> SignedRoster | None:
        """The version before it; None if it is the first."""
        return self.versions[-2] if len(self.versions) > 1 else None

    @property
    def missing(self) -> list[str]:
        """The signatures that are still needed, in words; empty if it is complete."""
        before, last = self.before.roster if self.before else None, self.last.roster
        if before is not None and (before.administrators, before.threshold) == (last.administrators, last.threshold):
            before = None
        counts = {roster.version: lacking(self.last, roster) for roster in (before, last) if roster is not None}
        return [
            f"{show.counted(count, 'signature')}{f' of administrators of version {number}' if before else ''}"
            for number, count in counts.items()
            if count
        ]


def look_at(home: Home, path: Path) -> Proposal:
    """What is in a roster file, after every check but for the number of signatures of its last version, and for whether
    this node follows that coalition. RosterError, OSError."""
    versions = read_file(path)
    if len(versions) > 1:
        check_first(versions[0])
    for one, other in itertools.pairwise(versions[:-1]):
        check_follows(other, one)
    before = versions[-2] if len(versions) > 1 else None
    if before is not None:
        check_proposed(versions[-1], before)
    return Proposal(versions, difference(home, before.roster if before else None, versions[-1].roster))


def check_signing(home: Home, proposal: Proposal, *, again: bool) -> None:
    """Whether this node may sign it; RosterError if it is no administrator's business, does not follow what is in force
    here, or is a second version with a number that this node has signed (but for `again`)."""
    last, before = proposal.last, proposal.before
    held = roll(home)
    if held is not None:
        _refuse_disputed(held)
        if last.coalition != held.followed.coalition:
            raise RosterError(f"This node follows {held.in_force.roster.name}, and the file is of another coalition.")
        if last.hash != held.in_force.hash and (before is None or before.hash != held.in_force.hash):
            raise RosterError(
                f"The file does not follow version {held.in_force.roster.version}, which is in force here: take the "
                "newest file, or propose the change again."
            )
    administrators = {*last.roster.administrators, *(before.roster.administrators if before else ())}
    if home.me not in administrators:
        raise RosterError("This node is no administrator of this roster, so its signature counts for nothing.")
    others = home.store.signed_rosters(last.coalition, last.roster.version) - {last.hash}
    if others and not again:
        raise RosterError(
            f"This node has signed another version {last.roster.version} ({min(others).hex()[:12]}): if both come to "
            "count, the roster freezes for everybody. Sign with --again if that one was given up."
        )


def sign(home: Home, path: Path, proposal: Proposal) -> Proposal:
    """Add this node's signature to the file, beside those that others added while a person looked at it. What is signed
    is on disk here first. RosterError if the file holds another version by now."""
    *before, last = look_at(home, path).versions
    if last.hash != proposal.last.hash:
        raise RosterError(f"{path} holds another version than the one that was shown: look at it again.")
    home.store.note_signed_roster(last.coalition, last.roster.version, last.hash)
    signed = Proposal([*before, last.signed_by(home.keystore.identity)], proposal.changes)
    write_file(path, signed.versions)
    return signed


def _refuse_disputed(held: Roll) -> None:
    if held.standing.is_disputed:
        raise RosterError(
            "Two versions of this roster count, so that changes are frozen; `tidings roster status` shows them, "
            "`tidings roster choose` goes on with one."
        )


def united(files: Iterable[list[SignedRoster]]) -> list[SignedRoster]:
    """The versions of several copies of one file, each with the signatures of all copies."""
    copies = list(files)
    together = {one.hash: one for one in copies[0]}
    for one in (one for copy in copies[1:] for one in copy):
        if one.hash not in together:
            raise RosterError("These files hold different versions; give copies of one file, or one after the other.")
        together[one.hash] = together[one.hash].with_signatures(one.signatures)
    return list(together.values())


# ---------------------------------------------------------------------------------------------------------- in words


def difference(home: Home, before: Roster | None, after: Roster) -> list[str]:
    """What a version changes, a line for each thing; everything that it says if it is the first."""
    old = {member.key: member for member in before.members} if before else {}
    new = {member.key: member for member in after.members}
    lines = [] if before is None or before.name == after.name else [f"the coalition is called {after.name} now"]
    lines += sorted(f"+ {_described(new[key])}" for key in new.keys() - old.keys())
    lines += sorted(f"- {_described(old[key])}" for key in old.keys() - new.keys())
    for key in sorted(new.keys() & old.keys()):
        lines += _changes_of(old[key], new[key])
    names = {key: member.name for key, member in (old | new).items()}
    was = set(before.administrators) if before else set()
    now = set(after.administrators)
    lines += [f"+ administrator {_named(home, names, key)}" for key in sorted(now - was)]
    lines += [f"- administrator {_named(home, names, key)}" for key in sorted(was - now)]
    lines += [f"{old[key].name} stays an administrator" for key in sorted((old.keys() - new.keys()) & was & now)]
    if before is None or (before.threshold, len(was)) != (after.threshold, len(now)):
        lines.append(f"{after.threshold} of {len(now)} administrators must sign")
    return lines


def _described(member: RosterMember) -> str:
    rights = ", may only ask for models" if member.query_only else ""
    addresses = f", at {', '.join(member.addresses)}" if member.addresses else ""
    return f"{member.name}  {member.key.text}{addresses}{rights}"


def _changes_of(old: RosterMember, new: RosterMember) -> list[str]:
    lines = []
    if old.name != new.name:
        lines.append(f"{old.name} is called {new.name} now")
    if old.addresses != new.addresses:
        lines.append(f"{new.name} is reached at {', '.join(new.addresses) or 'no address'} now")
    if old.query_only != new.query_only:
        lines.append(f"{new.name} {'may only ask for models' if new.query_only else 'takes part in full'} now")
    return lines


def _named(home: Home, names: Mapping[PublicKey, str], key: PublicKey) -> str:
    return f"{names.get(key) or home.peers.name_of(key)}  {key.text}"
