"""Rosters for tests, by identities that come out the same every time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from crypto.keys import Identity, PublicKey
from node.roster import Roster, RosterMember, SignedRoster, in_order, unsigned
from node.roster_wire import write_document

ALICE, BOB, CAROL, DORA, EVE, FRED = IDENTITIES = [Identity.from_seed(bytes([number]) * 32) for number in range(1, 7)]
NAMES = dict(zip((one.public_key for one in IDENTITIES), ("alice", "bob", "carol", "dora", "eve", "fred"), strict=True))


def members(*identities: Identity) -> tuple[RosterMember, ...]:
    """Them as members, under their names."""
    return tuple(RosterMember(one.public_key, NAMES[one.public_key]) for one in identities)


def keys(*identities: Identity) -> tuple[PublicKey, ...]:
    """Their public keys."""
    return tuple(one.public_key for one in identities)


def first(*administrators: Identity, threshold: int = 2, **fields: Any) -> Roster:
    """Version 1 of a coalition; alice, bob and carol administer it and are its members unless told otherwise."""
    administrators = administrators or (ALICE, BOB, CAROL)
    lists: dict[str, Any] = {"members": members(ALICE, BOB, CAROL)} | fields
    return in_order(Roster(1, "heart", keys(*administrators), threshold, **lists))


def after(before: SignedRoster, **fields: Any) -> Roster:
    """The version after this one."""
    number = before.roster.version + 1
    changed = replace(before.roster, version=number, coalition=before.coalition, previous=before.hash, **fields)
    return in_order(changed)


def signed(roster: Roster, *signers: Identity) -> SignedRoster:
    """The roster with the signatures of alice and bob, or of these."""
    return signed_by(unsigned(roster, write_document(roster)), signers or (ALICE, BOB))


def signed_by(version: SignedRoster, signers: Iterable[Identity]) -> SignedRoster:
    """The version with their signatures too."""
    for one in signers:
        version = version.signed_by(one)
    return version
