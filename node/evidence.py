"""Evidence: what this node tells others of origins that signed two records with one number, and what it tells people.

A node that meets the second record of a number notes the proof (`proofs`) and, unless a member has told of it by then,
signs an EVIDENCE record that carries it. The daemon waits a random while first, as receivers of a multicast do before
they ask for what is missing (Floyd et al., "A reliable multicast framework", 1997): the first to speak silences most.
A proof whose only witnesses were removed, or condemned, or equivocated with that very record, is told again.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Iterator
from typing import Final

from crypto.keys import PublicKey
from node.home import Home
from node.records import Evidence, Record, Slot, slot_of

PATIENCE_S: Final = 2.0
"""A daemon tells of a proof after up to so long, at random: a lone witness a second later on average. Of those that
meet two records at once, all speak whose time comes before the news of the first does; waiting longer silences more."""

AT_ONCE: Final = 8
"""Proofs told in one go. Who meets a hundred at once tells of some, as all others do who have met them: together they
tell of each about once."""

MAX_NAMED: Final = 3


def witness(home: Home, unheard: Container[Slot] = ()) -> list[Record]:
    """Sign an EVIDENCE for some proofs about origins that are trusted here, of which no member tells; returns them.
    Numbers in `unheard` this node itself must tell of: a peer does not believe who did. Call it again while it returns
    any: a while later, since others may tell of the rest meanwhile."""
    if home.me in home.store.standing().endings:
        return []  # nobody counts what this node signs
    with home.author.lock:
        untold = list(_untold(home, unheard))
        chosen = random.sample(untold, min(AT_ONCE, len(untold)))
        return [home.author.evidence(proof) for proof in chosen]


def _untold(home: Home, unheard: Container[Slot]) -> Iterator[Evidence]:
    store = home.store
    # Ended identities are origins too. One that is condemned stays: all must come to know why.
    about = store.standing().trusted | {home.me}
    proofs = store.proofs(about)
    if not proofs:
        return
    witnesses = {key.raw for key in home.trusted}
    told: dict[Slot, list[bytes]] = {}
    for slot, author, record_id in store.testimonies():
        is_believed = author == home.me.raw if slot in unheard else author in witnesses
        if is_believed and not _is_contested(home, record_id):
            told.setdefault(slot, []).append(record_id)
    for proof in proofs:
        records = told.get(proof.slot, [])
        if not records or not proof.targets <= store.targets_of(records):
            yield proof


def _is_contested(home: Home, record_id: bytes) -> bool:
    held = home.store.get(record_id)
    return held is not None and home.store.is_contested(slot_of(held.record.header))


def findings(home: Home) -> list[tuple[PublicKey, str]]:
    """Each origin that is proven to have signed two records with one number, with what follows, in words. Proofs
    against keys that nobody here trusts, and of which nothing is here, are carried and not told: a member can make up
    as many as it likes."""
    numbers: dict[PublicKey, set[Slot]] = {}
    for proof in home.store.proofs(home.store.accused_origins() | home.store.standing().trusted):
        numbers.setdefault(proof.accused, set()).add(proof.slot)
    witnesses: dict[bytes, dict[bytes, None]] = {}
    for (origin, _, _), author, _ in home.store.testimonies():
        witnesses.setdefault(origin, {})[author] = None
    condemned = home.store.condemned()
    return [
        (
            origin,
            _words(len(slots), _names(home, witnesses.get(origin.raw, {home.me.raw: None})), origin in condemned),
        )
        for origin, slots in numbers.items()
    ]


def _words(numbers: int, witnesses: str, is_condemned: bool) -> str:
    if is_condemned:
        what = f"each of {numbers} numbers" if numbers > 1 else "one number"
        return f"it signed two records with {what}; proof from {witnesses}; nothing that it signs is used: remove it"
    if numbers == 1:
        what, used = "one number", "neither is used"
    else:
        what, used = f"each of {numbers} numbers", "none of these is used"
    return (
        f"it signed two records with {what}; proof from {witnesses}; {used}: "
        "two copies of its home are in use, or it deceives"
    )


def _names(home: Home, keys: Iterable[bytes]) -> str:
    named = sorted(home.peers.name_of(PublicKey(key)) for key in keys)
    if len(named) <= MAX_NAMED:
        return " and ".join(named)
    return f"{', '.join(named[:MAX_NAMED])} and {len(named) - MAX_NAMED} more"
