"""Replacing and revoking an identity, and the recovery key: what `keys replace`, `keys revoke` and `keys recovery` do.

    replace    the keystore gets a new identity in front of the old one, in one writing of the file; then the old one
               says its last word (SUCCESSION) and the new one publishes its card and grants its epoch
    revoke     a REVOKE is signed with the recovery key and kept; for this node's own identity the keystore first gets
               a new one, which the REVOKE names

Whatever stops a replacement after the keystore was written is made up for the next time anything is granted
(`Author.finish_succession`), or the next identity is made; a revocation that was stopped is simply repeated. The home
keeps everything: records, peers, tasks, the ledger, whose datasets keep the tags under which peers know them.

The recovery key is read, used and forgotten; no file of the home ever holds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crypto.keys import Identity, PublicKey
from crypto.recovery import RecoveryKey, consent
from node.bundle_file import BundleWriter
from node.errors import UsageError
from node.files import written_whole
from node.home import Home
from node.records import (
    INCARNATION_BYTES,
    MAX_GOOD,
    MAX_SEQUENCE,
    NO_INCARNATION,
    LastGood,
    Record,
    Revocation,
    newest,
)
from node.show import moment
from node.succession import MAX_LINE

NOTHING_GOOD: Final = "none"


@dataclass(frozen=True)
class Replaced:
    """A home with another identity."""

    home: Home
    former: PublicKey

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"identity": self.home.me.text, "replaces": self.former.text}

    def describe(self) -> str:
        """For people."""
        return "\n".join(
            (
                "This node has a new identity, signed by the old one. Peers that trust that one follow by themselves:",
                self.home.me.text,
                "What it published under the old one stays good. Back the keystore up again, and start the node.",
            )
        )


@dataclass(frozen=True)
class Revoked:
    """A revocation that was kept in this home. `successor` is who takes the place of the identity."""

    home: Home
    record: Record
    identity: PublicKey
    successor: PublicKey | None
    good: LastGood
    is_checked: bool
    """Whether the recovery key was compared with what the identity published; else peers do that."""
    earlier: tuple[PublicKey, ...] = ()
    """Identities that this home had before the revoked one, and that are not revoked."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "record": self.record.id.hex(),
            "identity": self.identity.text,
            "successor": self.successor.text if self.successor else None,
            "last_good": {incarnation.hex(): sequence for incarnation, sequence in self.good},
            "checked": self.is_checked,
        }

    def describe(self) -> str:
        """For people."""
        lines = [f"{self.identity.text} is revoked."]
        if self.successor:
            lines.append(f"{self.successor.text} takes its place.")
        counted = ", ".join(f"{incarnation.hex()}:{sequence}" for incarnation, sequence in self.good)
        lines.append(f"Its records count up to {counted}." if counted else "None of its records counts any more.")
        if self.earlier:
            lines.append(
                "Whoever has the home has its earlier keys too. Revoke them as well, `tidings keys revoke KEY`:"
            )
            lines += [one.text for one in self.earlier]
        if not self.is_checked:
            lines.append("No key card of it is here, so only peers can tell whether this is its recovery key.")
        return "\n".join(lines)


# --------------------------------------------------------------------------------------------------- the recovery key


def publish_recovery(home: Home, recovery: RecoveryKey, show: Callable[[RecoveryKey], None]) -> None:
    """Publish the hash of a recovery key for an identity that has none; UsageError if it has. `show` is called before
    anything depends on the key: nobody is stopped with one that he has never seen."""
    with home.author.lock:
        if home.author.recovery_hash() is not None:
            raise UsageError(
                "This identity has published a recovery key, and peers hold to the first: use what `tidings init` "
                "printed. If it is lost, `tidings keys replace --new-recovery-key` makes a new identity with a new one."
            )
        home.epochs.refuse_if_ended()
        show(recovery)
        home.store.set_recovery_hash(home.me, recovery.hash)
        home.author.key_card()
    home.epochs.grant_missing()


# -------------------------------------------------------------------------------------------------------- replacement


def replace(home: Home, recovery: RecoveryKey | None) -> Replaced:
    """Give this home another identity, signed by the old one. `recovery` is the new one's recovery key; None keeps the
    old one's, if that has any. HomeError while the node runs."""
    with home.serving():
        home.epochs.refuse_if_ended()
        former = home.me
        renewed = _become(home, Identity.generate(), recovery.hash if recovery else home.author.recovery_hash())
        renewed.epochs.grant_missing()
    return Replaced(renewed, former)


def _become(home: Home, successor: Identity, recovery_hash: bytes | None) -> Home:
    """The home under another identity. The keystore is written last: until then nothing has changed that counts. A
    replacement that was stopped after that is finished first: only the newest identity's last word is made up for."""
    if len(home.keystore.former_keys) + 2 > MAX_LINE:
        raise UsageError(
            f"This node has had {MAX_LINE} identities, and peers follow no further: make a new home, and have your "
            "peers add its key."
        )
    with home.author.lock:
        home.author.finish_succession()
        if recovery_hash is not None:
            home.store.set_recovery_hash(successor.public_key, recovery_hash)
        home.keystore.succeed(successor)
    return Home.open(home.path, opened=home.keystore.open())


# --------------------------------------------------------------------------------------------------------- revocation


def revoke(
    home: Home,
    identity: PublicKey,
    recovery: RecoveryKey,
    good: LastGood,
    *,
    takes_over: bool,
    new_recovery: RecoveryKey | None = None,
) -> Revoked:
    """Take an identity out of service with its recovery key.

    `takes_over`: this node stands in its place from then on, with a new identity if the revoked one is its own;
    HomeError if the node runs then. The successor has the same recovery key, or `new_recovery`. UsageError changes
    nothing.
    """
    published = home.store.first_recovery_hash(identity)
    if published and published != recovery.hash:
        raise UsageError(f"This is not the recovery key of {identity.short}: it has published the hash of another one.")
    if not published and _is_own(home, identity):
        former = next(iter(home.keystore.former_keys), None)
        ending = home.store.standing().endings.get(former) if former and identity == home.me else None
        if former is not None and ending is not None and ending.is_revoked:
            raise UsageError(f"{former.short} is revoked, and this node has a new identity already: start the node.")
        raise UsageError(
            f"{identity.short} has published no recovery key, so that no peer would believe this; `tidings keys "
            "replace` gives this node a new identity all the same."
        )
    if identity == home.me and takes_over:
        with home.serving():
            renewed = _become(home, Identity.generate(), (new_recovery or recovery).hash)
            return _revoke(renewed, identity, recovery, good, takes_over=True)
    if takes_over:
        home.epochs.refuse_if_ended()
        if home.author.untold() == identity and home.store.first_recovery_hash(home.me) is None:
            # The same command was stopped before; a new key that it made may never have been shown.
            home.store.set_recovery_hash(home.me, (new_recovery or recovery).hash)
    return _revoke(home, identity, recovery, good, takes_over=takes_over)


def _revoke(home: Home, identity: PublicKey, recovery: RecoveryKey, good: LastGood, *, takes_over: bool) -> Revoked:
    public = recovery.identity.public_key
    named = Revocation(public, good)
    if takes_over:
        named = Revocation(public, good, home.me, consent(home.keystore.identity, identity))
    record = home.author.revocation(identity, recovery.identity, named)
    home.epochs.grant_missing()
    is_checked = home.store.first_recovery_hash(identity) is not None
    return Revoked(home, record, identity, named.successor, good, is_checked, _earlier(home, identity))


def _earlier(home: Home, identity: PublicKey) -> tuple[PublicKey, ...]:
    """The identities of this home before this one that no REVOKE ended: a SUCCESSION of theirs can be disputed by who
    has copied the keystore, and then nobody is their heir."""
    own, endings = (home.me, *home.keystore.former_keys), home.store.standing().endings
    before = own[own.index(identity) + 1 :] if identity in own else ()
    return tuple(one for one in before if one not in endings or not endings[one].is_revoked)


def write_bundle(home: Home, record: Record, path: Path) -> None:
    """A bundle with this record alone, for peers that no link reaches: `tidings bundle import`."""
    with written_whole(path, "wb", private=True) as file:
        writer = BundleWriter(file, home.keystore.identity, None, time.time_ns() // 1_000_000, 1)
        writer.record(record)
        writer.finish()


# ---------------------------------------------------------------------------------------------------- what still counts


def identity_meant(home: Home, text: str | None) -> PublicKey:
    """The identity that a person means: a key or a name, else this node's own; UsageError for a name with two keys. If
    this node's own is one that nobody was told of, because a revocation was stopped in the middle, it is the one before
    that: peers know no other, and the theft was of that."""
    if text is None:
        return home.author.untold() or home.me
    key = home.peers.key_of(text)
    replaced = next((peer.replaces for peer in home.store.peers() if peer.key == key), None)
    if replaced is not None and text.strip() != key.text:
        raise UsageError(
            f"{text} has had two keys: name the one to revoke, {replaced.text} (the old one) or {key.text}."
        )
    return key


def _is_own(home: Home, identity: PublicKey) -> bool:
    """Whether this home has, or had, this identity."""
    return identity == home.me or identity in home.keystore.former_keys


def last_good(home: Home, identity: PublicKey, until: float | None = None) -> LastGood:
    """How far the records of an identity count, as far as this home can tell: those here that arrived no later than
    `until` and still count. Of its own identity a home counts what it numbered itself, and only that: nothing that a
    thief signed meanwhile, whatever a SUCCESSION of his says counts."""
    is_own = _is_own(home, identity)
    highest = home.store.last_sequences(identity, until, counting=not is_own)
    if is_own:
        numbered = home.store.numbered()
        highest = {
            incarnation: min(sequence, numbered[incarnation])
            for incarnation, sequence in highest.items()
            if incarnation in numbered
        }
    return newest(highest)


def listing(home: Home, identity: PublicKey, good: LastGood) -> list[dict[str, Any]]:
    """For each incarnation of an identity that is known here `{incarnation, records, last, last_good, first_seen,
    last_seen}`: what a revocation would count, and what it would not."""
    seen: dict[bytes, list[tuple[int, float]]] = {}
    for held in home.store.held(origin=identity):
        if held.record.header.incarnation != NO_INCARNATION:
            entry = held.record.header.sequence, held.received_at
            seen.setdefault(held.record.header.incarnation, []).append(entry)
    counted = dict(good)
    return [
        {
            "incarnation": incarnation.hex(),
            "records": len(entries),
            "last": max(sequence for sequence, _ in entries),
            "last_good": counted.get(incarnation, 0),
            "first_seen": moment(min(at for _, at in entries)),
            "last_seen": moment(max(at for _, at in entries)),
        }
        for incarnation, entries in sorted(seen.items(), key=lambda one: min(at for _, at in one[1]))
    ]


def parse_last_good(texts: list[str]) -> LastGood:
    """What a person types: `none`, or INCARNATION:SEQUENCE, several times; UsageError otherwise."""
    if texts == [NOTHING_GOOD]:
        return ()
    good: dict[bytes, int] = {}
    for text in texts:
        incarnation, _, sequence = text.partition(":")
        try:
            raw, number = bytes.fromhex(incarnation), int(sequence)
        except ValueError:
            raw, number = b"", 0
        is_number = sequence.isascii() and sequence.isdigit() and 1 <= number <= MAX_SEQUENCE
        if len(raw) != INCARNATION_BYTES or raw == NO_INCARNATION or not is_number or raw in good:
            raise UsageError(
                f"--last-good {text!r} is no last good number; write INCARNATION:SEQUENCE as `tidings keys revoke "
                "--dry-run` shows them, each incarnation once, or none."
            )
        good[raw] = number
    if len(good) > MAX_GOOD:
        raise UsageError(f"A revocation names at most {MAX_GOOD} incarnations.")
    return tuple(sorted(good.items()))
