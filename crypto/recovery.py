"""The recovery key: what its owner keeps on paper, and what takes a stolen identity out of service.

An Ed25519 key apart from the identity. Peers are told the hash of its public half alone, with the first key card, so
until it is used nobody can even begin to attack it; no copy of the home holds it. A revocation shows the public half
and is signed with the other one (`records`, kind REVOKE).

Here too is the *consent* of a successor: an identity that takes the place of another says so itself, with a signature
of its own. So nobody can name a key that is not willing, and a record that names one binds both.

Neither `repr` nor an error shows the secret; `text` does, once, for the person who writes it down.
"""

from __future__ import annotations

import hashlib
from typing import Final

import nacl.signing

from crypto.keys import Identity, PublicKey
from crypto.signing import sign, verify
from crypto.text_form import TextForm

RECOVERY_HASH_BYTES: Final = 32
RECOVERY_HASH_PERSON: Final = b"tidings-rcov-v1"
SUCCESSOR_LABEL: Final = b"tidings/v1/successor\0"

TEXT_FORM: Final = TextForm(
    "tidings-recovery1", b"tidings-rtxt-v1", "recovery key", "copy the whole line that `tidings init` printed"
)


class RecoveryKey:
    """The secret half. Whoever holds it can revoke the identities that published its hash, and do nothing else."""

    __slots__ = ("_seed", "identity")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        #: The Ed25519 key pair that signs a revocation. It names no node.
        self.identity = Identity(nacl.signing.SigningKey(seed))

    @classmethod
    def generate(cls) -> RecoveryKey:
        """A new one."""
        return cls(bytes(nacl.signing.SigningKey.generate()))

    @classmethod
    def parse(cls, text: str) -> RecoveryKey:
        """The key of a text form, as typed; Malformed if it is mistyped."""
        return cls(TEXT_FORM.read(text))

    @property
    def text(self) -> str:
        """The form to write down: 75 characters, the last ones a checksum."""
        return TEXT_FORM.write(self._seed)

    @property
    def hash(self) -> bytes:
        """What a key card publishes of it."""
        return recovery_hash(self.identity.public_key)

    def __repr__(self) -> str:
        return "RecoveryKey(secret)"


def recovery_hash(public_key: PublicKey) -> bytes:
    """32 bytes that commit to the public half of a recovery key."""
    return hashlib.blake2b(public_key.raw, digest_size=RECOVERY_HASH_BYTES, person=RECOVERY_HASH_PERSON).digest()


def consent(successor: Identity, predecessor: PublicKey) -> bytes:
    """64 bytes: `successor` is willing to take the place of `predecessor`."""
    return sign(successor, SUCCESSOR_LABEL, _named(predecessor, successor.public_key))


def check_consent(successor: PublicKey, predecessor: PublicKey, signature: bytes) -> None:
    """Return if the successor has signed that it takes the place of the predecessor; BadSignature otherwise."""
    verify(successor, SUCCESSOR_LABEL, _named(predecessor, successor), signature)


def _named(predecessor: PublicKey, successor: PublicKey) -> bytes:
    return predecessor.raw + successor.raw
