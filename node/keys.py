"""The life of this node's keys: what there is, a new epoch, a new encryption key, another passphrase.

A rotation is safe to interrupt anywhere. The new encryption key is on disk before its card is signed; whatever is
missing after that (the card, the epoch, grants) is made up for the next time anything is granted (`node.epochs`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crypto.keys import PublicKey, encryption_id
from crypto.keystore import MODERATE, Cost
from node import wire
from node.home import Home
from node.records import KeyCard, Kind, Record
from node.show import moment


@dataclass(frozen=True)
class Rotated:
    """What a rotation made."""

    epoch: int
    granted: tuple[str, ...]
    waiting: tuple[str, ...]
    encryption_key: str | None
    """The id of the new encryption key; None if none was made."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "epoch": self.epoch,
            "granted": list(self.granted),
            "waiting": list(self.waiting),
            "encryption_key": self.encryption_key,
        }

    def describe(self) -> str:
        """For people."""
        lines = [f"Epoch {self.epoch} begins: what this node publishes from now on is sealed under a new key."]
        lines.append(f"Granted to: {', '.join(self.granted) or 'nobody yet'}.")
        if self.waiting:
            lines.append(f"Waiting for the key card of: {', '.join(self.waiting)}.")
        if self.encryption_key:
            lines.append(
                f"Encryption key {self.encryption_key} is new; peers grant to it once its card has reached them."
            )
            lines.append("Earlier ones stay, to open what was granted before. Back the keystore up again.")
        return "\n".join(lines)


def rotate(home: Home, *, encryption: bool) -> Rotated:
    """Begin a new epoch now, granted to those who are members; with `encryption`, also make a new encryption key and
    publish its card. KeystoreError changes nothing."""
    with home.author.lock:
        newest = encryption_id(home.keystore.add_encryption_key().public).hex() if encryption else None
        epoch = home.epochs.rotate()
    granted, waiting = _members(home)
    return Rotated(epoch, tuple(granted), tuple(one["peer"] for one in waiting), newest)


def set_passphrase(home: Home, choose: Callable[[], str] | None, cost: Cost = MODERATE) -> None:
    """Seal the keystore under the passphrase that `choose` gives, or under none. KeystoreError and UsageError change
    nothing."""
    passphrase = choose() if choose else None
    with home.author.lock:
        home.keystore.set_passphrase(passphrase, cost)


def show(home: Home) -> dict[str, Any]:
    """An object with `identity`, `ended`, `former`, `recovery_key`, `protected`, `encryption_keys`, `epoch`, `granted`,
    `waiting`; needs no passphrase."""
    granted, waiting = _members(home)
    standing, grants = home.store.standing(), home.epochs.live_grants()
    began = moment(grants[0].header.created_unix_ms / 1000) if grants else None
    return {
        "identity": home.me.text,
        "ended": ending.word if (ending := standing.endings.get(home.me)) else None,
        "former": [
            {"identity": key.text, "state": standing.endings[key].word if key in standing.endings else "replaced"}
            for key in dict.fromkeys((*home.keystore.former_keys, *sorted(standing.selves - {home.me})))
        ],
        "recovery_key": home.author.recovery_hash() is not None,
        "protected": home.keystore.is_protected,
        "encryption_keys": _encryption_keys(home),
        "epoch": {"number": grants[0].header.epoch, "since": began} if grants else None,
        "granted": granted,
        "waiting": waiting,
    }


def _encryption_keys(home: Home) -> list[dict[str, Any]]:
    """`{id, since, state}` for each encryption key, newest first, those of which the private half is lost last."""
    cards = _cards(home, home.me)
    held = home.keystore.encryption_ids
    lost = [one for one in cards if one not in held]
    for former in home.keystore.former_keys:  # what else these published may be a thief's, and is not lost
        cards = _cards(home, former) | cards
    listed = []
    for position, one in enumerate([*held, *lost]):
        card = cards.get(one)
        state = "lost" if one in lost else "newest" if position == 0 else "opens earlier grants"
        since = moment(card.header.created_unix_ms / 1000) if card else None
        listed.append({"id": one.hex(), "since": since, "state": state})
    return listed


def _cards(home: Home, identity: PublicKey) -> dict[bytes, Record]:
    """The key cards of one of this node's identities, by the id of the key on it."""
    return {_id_of(held.record): held.record for held in home.store.held(kind=Kind.KEY_CARD, origin=identity)}


def _id_of(card: Record) -> bytes:
    payload = wire.read_payload(card.header)
    if not isinstance(payload, KeyCard):
        raise TypeError("the store handed out a key card without its payload")
    return encryption_id(payload.encryption_public)


def _members(home: Home) -> tuple[list[str], list[dict[str, str]]]:
    """The members who were granted the live epoch, and `{peer, reason}` for those who wait."""
    grants = home.epochs.granted()
    granted, waiting = [], []
    for member in home.epochs.members():
        name, card = home.peers.name_of(member), home.epochs.key_card(member)
        if card is not None and (member, card.id) in grants:
            granted.append(name)
        else:
            reason = "its key card has not come yet" if card is None else "granted as soon as this node runs"
            waiting.append({"peer": name, "reason": reason})
    return granted, waiting
