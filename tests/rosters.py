"""Rosters for tests, by identities that come out the same every time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from crypto.keys import Identity, PublicKey
from node.config import ROSTER_LIMIT_BYTES
from node.pb import tidings_pb2 as pb
from node.roster import MAX_MEMBERS, Roster, RosterMember, SignedRoster, in_order, unsigned
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


ONE = signed(first())
TWO = signed(after(ONE, members=members(ALICE, BOB, CAROL, DORA)))

MEMBER = RosterMember(DORA.public_key, "dora", ("10.0.0.4:7410",))
BAD: dict[str, tuple[dict[str, Any], str]] = {
    # what is wrong: fields of version 1 that are otherwise, words of the refusal
    "of another format": ({"format": 2}, "format 2 is not known"),
    "of version 0": ({"version": 0}, "is from 1"),
    "of version 1 that follows another": ({"previous": bytes(32)}, "but the first names"),
    "of version 1 that names a coalition": ({"coalition": bytes(32)}, "but the first names"),
    "of version 2 that follows nothing": ({"version": 2}, "but the first names"),
    "of version 2 with short hashes": ({"version": 2, "previous": bytes(31), "coalition": bytes(32)}, "but the first"),
    "without a name": ({"name": ""}, "name of a coalition"),
    "with a name of two lines": ({"name": "a\nb"}, "name of a coalition"),
    "with a name that looks like a key": ({"name": "tidings1abc"}, "name of a coalition"),
    "with a name that begins with a space": ({"name": " heart"}, "begins or ends with a space"),
    "without administrators": ({"administrators": ()}, "1 to 32 administrators"),
    "with the same administrator twice": ({"administrators": keys(ALICE, ALICE)}, "each once"),
    "with administrators in no order": ({"administrators": sorted(keys(ALICE, BOB), reverse=True)}, "ascending"),
    "with a threshold of 0": ({"threshold": 0}, "threshold of 0"),
    "with a threshold that nobody can meet": ({"threshold": 4}, "threshold of 4"),
    "without members": ({"members": ()}, "1 to 1000 members"),
    "with a member twice": ({"members": members(ALICE, ALICE)}, "each once"),
    "with two members of one name": (
        {"members": tuple(sorted((MEMBER, replace(MEMBER, key=EVE.public_key, name="DORA")), key=lambda m: m.key))},
        "same name",
    ),
    "with a member without a name": ({"members": (replace(MEMBER, name=""),)}, "name of a member"),
    "with an address that is none": ({"members": (replace(MEMBER, addresses=("nowhere",)),)}, "address of dora"),
    "with an address without a port": ({"members": (replace(MEMBER, addresses=("host:0",)),)}, "address of dora"),
    "with an address twice": ({"members": (replace(MEMBER, addresses=("h:1", "h:1")),)}, "each once"),
    "with nine addresses": (
        {"members": (replace(MEMBER, addresses=tuple(f"h:{n}" for n in range(1, 10))),)},
        "at most 8",
    ),
}


def unknown_field(document: bytes) -> bytes:
    return document + bytes([15 << 3 | 2, 3]) + b"yes"


ODD_DOCUMENTS: Mapping[str, tuple[bytes, str]] = {
    "with a field that is not shown": (unknown_field(ONE.document), "does not show"),
    "with a field written out that has its default": (ONE.document + bytes([7 << 3, 2]), "does not show"),
    "with its fields in another order": (bytes([2 << 3, 1]) + ONE.document[:2] + ONE.document[4:], "does not show"),
    "cut off": (ONE.document[:-1], "not a roster"),
    "too large": (bytes(ROSTER_LIMIT_BYTES + 1), "at most"),
    "with a key that is none": (
        pb.Roster(format=1, administrators=[bytes(32)]).SerializeToString(),
        "not a public key",
    ),
    "with thousands of empty members": (
        pb.Roster(format=1, members=[pb.RosterMember()] * (MAX_MEMBERS + 1)).SerializeToString(),
        "1 to 1000 members",
    ),
}
