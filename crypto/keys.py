"""Keys: a node's identity, its encryption keys, and the text form people exchange.

* The identity is an Ed25519 key (RFC 8032). Its public half is the node's name. Points that libsodium
  calls invalid (off the curve, small order, outside the prime subgroup, non-canonical) never become a
  `PublicKey`.
* The encryption key is ML-KEM-768 (FIPS 203) beside X25519 (RFC 7748), the hybrid that HPKE knows as
  MLKEM768_X25519: what is recorded today stays closed unless both are broken.
* The text form is `tidings1` and the base32 of key || checksum (see `text_form`).

What this module is not: it labels no signature and seals nothing (see `signing`, `sealing`), it stores
nothing (see `keystore`), and no secret of it shows in a repr, a str or an error.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Final

import nacl.bindings
import nacl.signing
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey

from crypto.errors import Malformed
from crypto.text_form import TextForm

PUBLIC_KEY_BYTES: Final = 32
SEED_BYTES: Final = 32

TEXT_PREFIX: Final = "tidings1"
TEXT_FORM: Final = TextForm(
    TEXT_PREFIX, b"tidings-key-v1", "public key", "copy the whole line that `tidings id` prints"
)
TEXT_CHARS: Final = TEXT_FORM.chars

DATASET_NAMES_PERSON: Final = b"tidings-names-v1"  # the key that hides dataset names from peers

_MLKEM_PUBLIC_BYTES: Final = 1184
_MLKEM_SEED_BYTES: Final = 64
_X25519_BYTES: Final = 32
ENCRYPTION_PUBLIC_BYTES: Final = _MLKEM_PUBLIC_BYTES + _X25519_BYTES
ENCRYPTION_PRIVATE_BYTES: Final = _MLKEM_SEED_BYTES + _X25519_BYTES

ENCRYPTION_ID_BYTES: Final = 16
ENCRYPTION_ID_PERSON: Final = b"tidings-ekey-v1"


@dataclass(frozen=True, order=True)
class PublicKey:
    """An Ed25519 public key: 32 bytes that name a node. Malformed for bytes that no node can have."""

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != PUBLIC_KEY_BYTES:
            raise Malformed("A public key is exactly 32 bytes: ask its owner for it again.")
        if not nacl.bindings.crypto_core_ed25519_is_valid_point(self.raw):
            raise Malformed("These 32 bytes are not a valid Ed25519 public key: ask its owner for it again.")

    @classmethod
    def parse(cls, text: str) -> "PublicKey":
        """The key of a text form, typed or pasted: letter case and white space do not matter."""
        return cls(TEXT_FORM.read(text))

    @property
    def text(self) -> str:
        """The form that people exchange: 66 characters, the last ones a checksum."""
        return TEXT_FORM.write(self.raw)

    @property
    def short(self) -> str:
        """The first characters, for display only: never compare or trust a key by these."""
        return self.text[: len(TEXT_PREFIX) + 8]

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"PublicKey({self.text})"


@functools.lru_cache(maxsize=4_096)
def public_key(raw: bytes) -> PublicKey:
    """The key of these bytes, or Malformed. Checking a point costs 30 times as much as decoding the header it is in,
    and the same few keys keep coming."""
    return PublicKey(raw)


class Identity:
    """An Ed25519 key pair: what a node is. Whoever holds the seed is the node."""

    __slots__ = ("_signing_key", "public_key")

    def __init__(self, signing_key: nacl.signing.SigningKey) -> None:
        self._signing_key = signing_key
        self.public_key = PublicKey(bytes(signing_key.verify_key))

    @classmethod
    def generate(cls) -> "Identity":
        return cls(nacl.signing.SigningKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "Identity":
        if len(seed) != SEED_BYTES:
            raise Malformed("An identity seed is exactly 32 bytes: restore the keystore from its backup.")
        return cls(nacl.signing.SigningKey(seed))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes: for the keystore, the certificate and `derive`, and for nothing else."""
        return bytes(self._signing_key)

    def derive(self, person: bytes) -> bytes:
        """32 secret bytes for one use, named by `person` (at most 16 bytes): they come back with the identity."""
        return hashlib.blake2b(b"", digest_size=32, key=self.seed, person=person).digest()

    def sign_raw(self, message: bytes) -> bytes:
        """64 bytes of signature over exactly these bytes. Call `signing.sign`, which adds the label."""
        return self._signing_key.sign(message).signature

    def __repr__(self) -> str:
        return f"Identity({self.public_key.text})"


class EncryptionKey:
    """An ML-KEM-768 + X25519 key pair, to which others wrap their epoch keys."""

    __slots__ = ("_mlkem", "_x25519", "public")

    def __init__(self, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self._mlkem = mlkem
        self._x25519 = x25519
        #: 1,216 bytes, ML-KEM-768 then X25519: what a key card publishes.
        self.public: bytes = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "EncryptionKey":
        return cls(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, data: bytes) -> "EncryptionKey":
        if len(data) != ENCRYPTION_PRIVATE_BYTES:
            raise Malformed("An encryption key is exactly 96 bytes: restore the keystore from its backup.")
        return cls(
            MLKEM768PrivateKey.from_seed_bytes(data[:_MLKEM_SEED_BYTES]),
            X25519PrivateKey.from_private_bytes(data[_MLKEM_SEED_BYTES:]),
        )

    def to_bytes(self) -> bytes:
        """The 96 secret bytes (ML-KEM seed, X25519 scalar): for the keystore, and for nothing else."""
        return self._mlkem.private_bytes_raw() + self._x25519.private_bytes_raw()

    def hpke_private_key(self) -> MLKEM768X25519PrivateKey:
        return MLKEM768X25519PrivateKey(self._mlkem, self._x25519)

    def __repr__(self) -> str:
        return "EncryptionKey(secret)"


def encryption_id(public: bytes) -> bytes:
    """16 bytes that name an encryption key, from its 1,216 public ones."""
    return hashlib.blake2b(public, digest_size=ENCRYPTION_ID_BYTES, person=ENCRYPTION_ID_PERSON).digest()


def parse_encryption_public(public: bytes) -> MLKEM768X25519PublicKey:
    """The HPKE key in a key card's bytes; Malformed when nothing could be wrapped for it."""
    try:
        mlkem = MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC_BYTES])
        x25519 = X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC_BYTES:])
        # A point of small order shares the same secret with everyone; the exchange refuses it.
        X25519PrivateKey.from_private_bytes(bytes(_X25519_BYTES)).exchange(x25519)
    except ValueError:
        raise Malformed(
            f"These {len(public)} bytes are not an ML-KEM-768 + X25519 public key: "
            "its owner must publish a new key card."
        ) from None
    return MLKEM768X25519PublicKey(mlkem, x25519)
