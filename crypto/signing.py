"""Signatures over bytes as they were carried or over their hash, each under a label of its own, and the id of a record.

Ed25519 (RFC 8032) over `label || message`, verified by libsodium's strict rules. A label ends with its
only NUL byte, so no label is the beginning of another and a signature made for one use is worthless for
every other. Certificates (see `tls`) are signed by the same key without a label; they are DER and begin
with 0x30, which no label does.

Refuses to sign without a label, and to re-serialise anything: what is verified is what arrived.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

import nacl.exceptions
import nacl.signing

from crypto.errors import BadSignature
from crypto.keys import Identity, PublicKey

SIGNATURE_BYTES: Final = 64
RECORD_ID_BYTES: Final = 32

RECORD_LABEL_PREFIX: Final = b"tidings/v1/record/"
MODEL_CARD_LABEL: Final = b"tidings/v1/model-card\0"
BUNDLE_LABEL: Final = b"tidings/v1/bundle\0"
ROSTER_LABEL: Final = b"tidings/v1/roster\0"
RECORD_ID_PERSON: Final = b"tidings-id-v1"
ROSTER_PERSON: Final = b"tidings-roster"
ROSTER_HASH_BYTES: Final = 32

_LABEL: Final = re.compile(rb"tidings/v1/[a-zA-Z0-9_/-]+\x00")
_KIND: Final = re.compile(r"[a-zA-Z0-9_-]+")


def sign(identity: Identity, label: bytes, message: bytes) -> bytes:
    """64 bytes of Ed25519 signature over label || message."""
    return identity.sign_raw(_labelled(label, message))


def verify(public_key: PublicKey, label: bytes, message: bytes, signature: bytes) -> None:
    """Return if the signature is by this key under this label; BadSignature otherwise."""
    try:
        nacl.signing.VerifyKey(public_key.raw).verify(_labelled(label, message), signature)
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.ValueError):
        name = label[:-1].decode("ascii")
        raise BadSignature(f"This {name} was not signed by {public_key.short}: discard it.") from None


@dataclass(frozen=True, slots=True)
class Statement:
    """What an origin signs of a record: all that others must know of it if it clashes with another.

    Two statements with one number and two ids are proof of equivocation in a few hundred bytes, without the headers.
    """

    kind: str
    incarnation: bytes  # 8 bytes
    sequence: int  # below 2^64
    supersedes: bytes  # 32 bytes, or none
    id: bytes

    @property
    def message(self) -> bytes:
        """What is signed after the label. All but one field have a fixed length, so no byte can move between them."""
        if len(self.id) != RECORD_ID_BYTES:
            raise ValueError(f"a record id has {RECORD_ID_BYTES} bytes, this one {len(self.id)}")
        return self.incarnation + self.sequence.to_bytes(8, "big") + self.supersedes + self.id


def sign_record(identity: Identity, statement: Statement) -> bytes:
    """The signature of the record that this is about."""
    return sign(identity, _record_label(statement.kind), statement.message)


def verify_record(public_key: PublicKey, statement: Statement, signature: bytes) -> None:
    """Return if the origin signed a record that this is about; BadSignature otherwise."""
    verify(public_key, _record_label(statement.kind), statement.message, signature)


def record_id(header: bytes) -> bytes:
    """32 bytes: BLAKE2b-256 of the header as carried. The signature is no part of it."""
    return hashlib.blake2b(header, digest_size=RECORD_ID_BYTES, person=RECORD_ID_PERSON).digest()


def roster_hash(document: bytes) -> bytes:
    """32 bytes that name one version of a roster: BLAKE2b-256 of its document as carried, without signatures."""
    return hashlib.blake2b(document, digest_size=ROSTER_HASH_BYTES, person=ROSTER_PERSON).digest()


def _record_label(kind: str) -> bytes:
    if not _KIND.fullmatch(kind):
        raise ValueError(f"{kind!r} is not the name of a record kind")
    return RECORD_LABEL_PREFIX + kind.encode("ascii") + b"\0"


def _labelled(label: bytes, message: bytes) -> bytes:
    if not _LABEL.fullmatch(label):
        raise ValueError(f"{label!r} is not a label: it begins with tidings/v1/ and ends with its only NUL")
    return label + message
