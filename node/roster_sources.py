"""Whom and what an operator means: a roster by file or coalition id, a disputed version, a key by any of its names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from crypto.keys import PublicKey
from node.errors import RosterError, UsageError
from node.home import Home
from node.roster import SignedRoster, check_first, check_follows, check_proposed
from node.roster_follow import carried, roll, version
from node.roster_propose import look_at, united
from node.roster_status import status

COALITION_DIGITS: Final = 64


def versions_of(home: Home, references: Sequence[str]) -> list[SignedRoster]:
    """The versions in a file, or in copies of it that several administrators signed, or of a coalition by its id.
    RosterError, UsageError, OSError."""
    if len(references) == 1 and not Path(references[0]).exists():
        coalition = "".join(references[0].split()).lower()
        if len(coalition) == COALITION_DIGITS and set(coalition) <= set("0123456789abcdef"):
            return _carried_chain(home, bytes.fromhex(coalition))
        raise UsageError(f"{references[0]} is neither a file nor the id of a coalition, which has 64 digits.")
    return united([look_at(home, Path(one)).versions for one in references])


def disputed(home: Home, typed: str) -> SignedRoster:
    """The disputed version whose hash begins like this; UsageError, RosterError if there is none."""
    held = roll(home)
    if held is None or not held.standing.is_disputed:
        raise RosterError("Nothing is disputed here; `tidings roster status` shows what is in force.")
    found = [one for one in held.standing.rivals if one.hex().startswith(typed.lower())]
    if len(found) != 1 or not typed:
        raise UsageError(f"{typed!r} is not one of the disputed versions; `tidings roster status` shows them.")
    return version(home, found[0])


def named_key(home: Home, typed: str) -> tuple[PublicKey, str]:
    """A key and what to call it: of a peer, of a member in the roster, of one that is denied, or as typed."""
    held = roll(home)
    listed = held.in_force.roster.members if held else ()
    named = {one["name"]: PublicKey.parse(one["key"]) for one in status(home)["denied"]}
    named |= {member.name: member.key for member in listed}
    key = named.get(typed.strip()) or home.peers.key_of(typed)
    if key == home.me:
        raise UsageError("This is this node itself; say another.")
    name = next((name for name, one in named.items() if one == key), home.peers.name_of(key))
    return key, name


def _carried_chain(home: Home, coalition: bytes) -> list[SignedRoster]:
    """The undisputed versions of a coalition that gossip brought, from the first one on, one copy of each."""
    copies = carried(home, coalition)
    chain: list[SignedRoster] = []
    while found := _next_of(chain, copies):
        chain.append(found)
    if not chain:
        raise RosterError(
            "No version 1 of this coalition has come by gossip: ask an administrator for its roster file."
        )
    return chain


def _next_of(chain: list[SignedRoster], copies: list[SignedRoster]) -> SignedRoster | None:
    """What follows the last version of a chain, with the signatures of all copies that hold no stranger's; None if
    nothing that enough have signed does, or two versions do."""
    fitting: dict[bytes, SignedRoster] = {}
    for one in copies:
        try:
            if chain:
                check_proposed(one, chain[-1])
            elif one.hash != one.coalition:
                continue
        except RosterError:
            continue
        fitting[one.hash] = fitting[one.hash].with_signatures(one.signatures) if one.hash in fitting else one
    found = [one for one in fitting.values() if _is_next(one, chain)]
    return found[0] if len(found) == 1 else None


def _is_next(signed: SignedRoster, chain: list[SignedRoster]) -> bool:
    """Whether enough have signed it. Any member can publish a version that claims to follow."""
    try:
        check_follows(signed, chain[-1]) if chain else check_first(signed)
    except RosterError:
        return False
    return True
