"""Authors this node's own records: reserve a sequence, seal, sign, keep.

The order is what makes a crash harmless. The sequence is reserved with an fsync before anything is signed,
so no two different records of this node can ever share one; a crash in between leaves a gap, which means
nothing. If a record is here that another copy of this home signed, the store begins a new incarnation first.
"""

from __future__ import annotations

import secrets
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from crypto.keys import Identity, PublicKey
from crypto.keystore import Keyring
from crypto.recovery import consent
from crypto.sealing import content_key, key_commitment, seal
from node import wire
from node.records import (
    MAX_SEQUENCE,
    NO_INCARNATION,
    Evidence,
    Head,
    Header,
    KeyCard,
    KeyGrant,
    Kind,
    Record,
    Revocation,
    Succession,
    core,
    newest,
    with_body,
)
from node.roster import SignedRoster
from node.store import Store


@dataclass(frozen=True, slots=True)
class EpochKey:
    """One epoch of an origin: its number and the secret that wraps everything sealed in it."""

    number: int
    key: bytes = field(repr=False)


class Author:
    """Writes records in this node's name.

    `lock` is held while a record is made. It is shared by every process that works on the home and may be
    taken again by its holder.
    """

    def __init__(self, store: Store, keystore: Keyring, lock: AbstractContextManager[object]) -> None:
        self._store = store
        self._keystore = keystore
        self.lock = lock

    def key_card(self) -> Record:
        """Publish the newest encryption key, so that members can grant us theirs, and the hash of the recovery key."""
        card = KeyCard(self._keystore.encryption_keys[0].public, self.recovery_hash() or b"")
        return self._without_body(Kind.KEY_CARD, payload=wire.write_payload(card))

    def recovery_hash(self) -> bytes | None:
        """The hash of this identity's recovery key, as far as this home knows of one."""
        me = self._keystore.public_key
        published = self._store.recovery_hashes(me)
        return published[0] if published else self._store.own_recovery_hash(me)

    def succession(self, former: Identity, succession: Succession) -> Record:
        """The last word of an identity that this home had: another takes its place."""
        return self._without_body(Kind.SUCCESSION, former, payload=wire.write_payload(succession))

    def finish_succession(self) -> Record | None:
        """Say the last word of the identity that this one took the place of, unless that was done. The keystore changes
        first and in one step; whatever stops a replacement after that, this makes up for it."""
        former, me = self.untold(), self._keystore.public_key  # under `lock`
        if former is None:
            return None
        identity = self._keystore.former[0]
        self._store.renew_incarnation()  # a number that another copy of this home may have used would not be believed
        good = newest(self._store.last_sequences(former))
        return self.succession(identity, Succession(me, consent(self._keystore.identity, former), good))

    def untold(self) -> PublicKey | None:
        """The identity that this one took the place of, if nobody was told of it yet: a replacement, or a revocation,
        was stopped in the middle."""
        former = next(iter(self._keystore.former_keys), None)
        return None if former is None or self._is_told(former, self._keystore.public_key) else former

    def _is_told(self, former: PublicKey, me: PublicKey) -> bool:
        ending = self._store.standing().endings.get(former)
        if ending is not None and me in ending.named:
            return True
        # Said, although it does not count: somebody signed another record with its number, or too many.
        words = (wire.read_payload(held.record.header) for held in self._store.held(Kind.SUCCESSION, origin=former))
        return any(isinstance(word, Succession) and word.successor == me for word in words)

    def revocation(self, origin: PublicKey, recovery: Identity, revocation: Revocation) -> Record:
        """Take an identity out of service with its recovery key. It has no incarnation to number records in, and a
        number that is drawn falls on that of another copy by no chance that matters."""
        header = Header(
            kind=Kind.REVOKE,
            origin=origin,
            incarnation=NO_INCARNATION,
            sequence=1 + secrets.randbelow(MAX_SEQUENCE),
            created_unix_ms=_now_ms(),
            payload=wire.write_payload(revocation),
        )
        return self._kept(wire.author(recovery, header))

    def grant(self, recipient: PublicKey, epoch: int, wrapped_key: bytes, key_card: bytes) -> Record:
        """Hand a wrapped epoch key to the member whose key card (a record id) it was wrapped to."""
        payload = wire.write_payload(KeyGrant(wrapped_key, key_card))
        return self._without_body(Kind.KEY_GRANT, epoch=epoch, recipient=recipient, payload=payload)

    def withdrawal(self, target: Record) -> Record:
        """Take back a record of ours: every node that hears of it drops the body for ever. One of an earlier identity
        is taken back with its key; where that is lost, with the present one, and then nobody uses the body any more."""
        signer = next((one for one in self._keystore.former if one.public_key == target.header.origin), None)
        fields = {"supersedes": target.id, "task_id": target.header.task_id}
        return self._without_body(Kind.WITHDRAWAL, signer, **fields)

    def head(self, head: Head, previous: bytes) -> Record:
        """Tell peers how far our records and our privacy ledger have come; `previous` is the HEAD before this one."""
        return self._without_body(Kind.HEAD, payload=wire.write_payload(head), supersedes=previous)

    def roster(self, signed: SignedRoster) -> Record:
        """Pass on a version of a roster, which administrators signed."""
        return self._without_body(Kind.ROSTER, payload=wire.write_payload(signed))

    def evidence(self, evidence: Evidence) -> Record:
        """Tell others that an origin signed two records with one number."""
        return self._without_body(Kind.EVIDENCE, payload=wire.write_payload(evidence))

    def sealed(
        self,
        kind: Kind,
        task_id: bytes,
        plaintext: bytes,
        epoch: EpochKey,
        *,
        supersedes: bytes = b"",
        note: str | None = None,
    ) -> Record:
        """Encrypt `plaintext` under the epoch key, sign a header that commits to it, keep both.

        `note` ties the record to something local (a release of the ledger) in the same transaction.
        """
        with self.lock:
            header = self._header(kind, task_id=task_id, epoch=epoch.number, supersedes=supersedes)
            key = content_key(epoch.key, core(header))
            body = seal(plaintext, key, core(header))
            record = wire.author(self._keystore.identity, with_body(header, body, key_commitment(key)))
            self._store.add(record, body, note=note)
            return record

    def _without_body(self, kind: Kind, signer: Identity | None = None, **fields: Any) -> Record:
        identity = signer or self._keystore.identity
        with self.lock:
            return self._kept(wire.author(identity, self._header(kind, identity.public_key, **fields)))

    def _kept(self, record: Record) -> Record:
        self._store.add(record, None)
        return record

    def _header(self, kind: Kind, origin: PublicKey | None = None, **fields: Any) -> Header:
        origin = origin or self._keystore.public_key
        incarnation, sequence = self._store.reserve_sequence(origin)
        return Header(
            kind=kind,
            origin=origin,
            incarnation=incarnation,
            sequence=sequence,
            created_unix_ms=_now_ms(),
            **fields,
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
