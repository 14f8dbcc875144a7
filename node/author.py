"""Authors this node's own records: reserve a sequence, seal, sign, keep.

The order is what makes a crash harmless. The sequence is reserved with an fsync before anything is signed,
so no two different records of this node can ever share one; a crash in between leaves a gap, which means
nothing. If a record is here that another copy of this home signed, the store begins a new incarnation first.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from crypto.keys import PublicKey
from crypto.keystore import Keyring
from crypto.sealing import content_key, key_commitment, seal
from node import wire
from node.records import Evidence, Head, Header, KeyCard, KeyGrant, Kind, Record, core, with_body
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
        """Publish the newest encryption key, so that members can grant us theirs."""
        card = KeyCard(self._keystore.encryption_keys[0].public)
        return self._without_body(Kind.KEY_CARD, payload=wire.write_payload(card))

    def grant(self, recipient: PublicKey, epoch: int, wrapped_key: bytes, key_card: bytes) -> Record:
        """Hand a wrapped epoch key to the member whose key card (a record id) it was wrapped to."""
        payload = wire.write_payload(KeyGrant(wrapped_key, key_card))
        return self._without_body(Kind.KEY_GRANT, epoch=epoch, recipient=recipient, payload=payload)

    def withdrawal(self, target: Record) -> Record:
        """Take back a record of ours: every node that hears of it drops the body for ever."""
        return self._without_body(Kind.WITHDRAWAL, supersedes=target.id, task_id=target.header.task_id)

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

    def _without_body(self, kind: Kind, **fields: Any) -> Record:
        with self.lock:
            record = wire.author(self._keystore.identity, self._header(kind, **fields))
            self._store.add(record, None)
            return record

    def _header(self, kind: Kind, **fields: Any) -> Header:
        origin = self._keystore.public_key
        incarnation, sequence = self._store.reserve_sequence(origin)
        return Header(
            kind=kind,
            origin=origin,
            incarnation=incarnation,
            sequence=sequence,
            created_unix_ms=time.time_ns() // 1_000_000,
            **fields,
        )
