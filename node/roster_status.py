"""The roster in words: what is in force, who signed it, who is held back and why, what is disputed.

Everything is read from the store, with or without a running daemon; nothing needs the passphrase.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

from crypto.keys import PublicKey
from node.home import Home
from node.local_tables import OPERATOR, Peer
from node.records import Kind
from node.roster import SignedRoster, signed_both
from node.roster_follow import Roll, carried, roll, version
from node.roster_propose import Proposal
from node.roster_wire import read_kept
from node.show import moment
from node.succession import Standing


def status(home: Home) -> dict[str, Any]:
    """An object with `followed` (None if no roster is), `denied`, and `carried`: other coalitions' rosters that have
    come by gossip."""
    held = roll(home)
    return {
        "followed": _followed(home, held) if held else None,
        "denied": [
            {"name": _name(home, held, one.key), "key": one.key.text, "since": moment(one.since), "reason": one.reason}
            for one in home.store.denied()
        ],
        "carried": _carried(home, held.followed.coalition if held else b""),
    }


def file_status(home: Home, proposal: Proposal) -> dict[str, Any]:
    """A roster file: its last version, who signed it, what is missing, what it changes."""
    last = proposal.last
    return {
        **_heading(last),
        "administrators": _administrators(home, last),
        "threshold": last.roster.threshold,
        "signed_by": [_name_in(home, last, key) for key in sorted(last.signers)],
        "missing": proposal.missing,
        "complete": not proposal.missing,
        "changes": proposal.changes,
    }


def notices(home: Home) -> list[str]:
    """What the operator must hear of, a sentence each."""
    held = roll(home)
    if held is None:
        return []
    told = [_dispute(home, held)] if held.standing.is_disputed else []
    stayed = [peer.name for peer in home.store.added_peers() if peer.via == OPERATOR and _left(home, held, peer.key)]
    return told + [
        f"{name} left the roster and stays because it was added by hand; `tidings peer remove {name}`"
        for name in stayed
    ]


def waiting(home: Home, held: Roll) -> list[str]:
    """Versions that came before those that they follow, in words."""
    newest = held.tree.newest
    early = {one.roster.version for one in carried(home, held.followed.coalition) if one.hash not in held.tree}
    return [
        f"version {number} has come, and {newest + 1} has not: it comes by gossip, or with the newest roster file"
        for number in sorted(early)
        if number > newest + 1
    ]


def _followed(home: Home, held: Roll) -> dict[str, Any]:
    signed, members = held.in_force, held.members
    return {
        **_heading(signed),
        "since": moment(held.followed.since),
        "administrators": _administrators(home, signed),
        "threshold": signed.roster.threshold,
        "signed_by": [_name_in(home, signed, key) for key in sorted(signed.signers)],
        "is_member": not home.store.standing().selves.isdisjoint(members),
        "members": _members(home, signed, members),
        "frozen": _dispute(home, held) if held.standing.is_disputed else "",
        "rivals": [_rival(home, version(home, one)) for one in held.standing.rivals],
        "waiting": waiting(home, held),
    }


def _heading(signed: SignedRoster) -> dict[str, Any]:
    return {
        "name": signed.roster.name,
        "coalition": signed.coalition.hex(),
        "version": signed.roster.version,
        "hash": signed.hash.hex(),
    }


def _administrators(home: Home, signed: SignedRoster) -> list[dict[str, Any]]:
    return [
        {"name": _name_in(home, signed, key), "key": key.text, "signed": key in signed.signers}
        for key in signed.roster.administrators
    ]


def _members(home: Home, signed: SignedRoster, members: Collection[PublicKey]) -> list[dict[str, Any]]:
    peers = {peer.key: peer for peer in home.store.added_peers()}
    standing = home.store.standing()
    denied = {one.key: one.reason for one in home.store.denied()}
    carded = {held.record.header.origin for held in home.store.held(kind=Kind.KEY_CARD)}
    present = {one.key for one in standing.peers}
    listed = []
    for member in signed.roster.members:
        peer = peers.get(member.key)
        if member.key in standing.selves:
            state, reason = "this node", "under its earlier key" if member.key != home.me else ""
        elif member.key in denied:
            state, reason = "denied", f"{denied[member.key]}; `tidings roster allow {member.name}` lets it in"
        elif member.key not in members:
            state, reason = "left out", "another version that is disputed leaves it out"
        elif member.key in standing.endings and standing.person(member.key) not in present:
            state, reason = "left out", _why_nobody(standing, member.key, denied)
        else:
            state, reason = _peer_state(peer, has_card=standing.person(member.key) in carded)
        listed.append(
            {
                "name": member.name,
                "key": member.key.text,
                "addresses": list(member.addresses),
                "query_only": member.query_only,
                "via": peer.via if peer else None,
                "state": state,
                "reason": reason,
            }
        )
    return listed


def _why_nobody(standing: Standing, key: PublicKey, denied: Collection[PublicKey]) -> str:
    """Why nobody is a member in the place of a key that ended."""
    ending = standing.endings[key]
    if any(heir in denied for heir in standing.heirs(key)):
        return f"its key was {ending.word}, and the new one is denied"
    if ending.is_disputed:
        return f"its key was {ending.word}, and it is disputed whose the place is"
    return f"its key was {ending.word}, and nobody has its place: a version with the new key brings it back"


def _peer_state(peer: Peer | None, *, has_card: bool) -> tuple[str, str]:
    """How a member that nothing keeps out stands here: a word, and what is missing."""
    if peer is None:
        return "waiting", "comes in as soon as this node runs"
    if not peer.query_only and not has_card:
        return "waiting", "its key card has not come yet"
    return "query-only" if peer.query_only else "member", "added by hand" if peer.via == OPERATOR else ""


def _rival(home: Home, signed: SignedRoster) -> dict[str, Any]:
    return {**_heading(signed), "signed_by": [_name_in(home, signed, key) for key in sorted(signed.signers)]}


def _dispute(home: Home, held: Roll) -> str:
    rivals = [version(home, one) for one in held.standing.rivals]
    twice = sorted({key for one, other in itertools.combinations(rivals, 2) for key in signed_both(one, other)})
    who = ", ".join(_name_in(home, held.in_force, key) for key in twice)
    roster = held.in_force.roster
    return (
        f"{len(rivals)} different versions {roster.version + 1} of roster {roster.name} count, so changes are frozen "
        f"at version {roster.version}{f'; more than one of them is signed by {who}' if who else ''}"
    )


def _left(home: Home, held: Roll, key: PublicKey) -> bool:
    """Whether this key was a member in an earlier version and is none now."""
    if key in held.members:
        return False
    return any(key in version(home, one).roster.keys for one in held.standing.trunk)


def _carried(home: Home, followed: bytes) -> list[dict[str, Any]]:
    found: dict[bytes, dict[str, Any]] = {}
    for record in (held.record for held in home.store.held(kind=Kind.ROSTER)):
        signed = read_kept(record.header.payload)
        if signed.coalition == followed:
            continue
        one = found.setdefault(signed.coalition, {**_heading(signed), "from": []})
        if signed.roster.version > one["version"]:
            one.update(_heading(signed))
        one["from"] = sorted({*one["from"], home.peers.name_of(record.header.origin)})
    return list(found.values())


def _name(home: Home, held: Roll | None, key: PublicKey) -> str:
    return _name_in(home, held.in_force, key) if held else home.peers.name_of(key)


def _name_in(home: Home, signed: SignedRoster, key: PublicKey) -> str:
    """What the roster calls a key; else what people here call it."""
    named = {member.key: member.name for member in signed.roster.members}
    return named.get(key) or home.peers.name_of(key)
