"""Keys: a node's identity, its encryption key, the text form people exchange, and the file of secrets.

* The identity is an Ed25519 key (RFC 8032). Its public half is the node's name. Points that libsodium
  calls invalid (off the curve, small order, outside the prime subgroup, non-canonical) never become a
  `PublicKey`.
* The encryption key is ML-KEM-768 (FIPS 203) beside X25519 (RFC 7748), the hybrid that HPKE knows as
  MLKEM768_X25519: what is recorded today stays closed unless both are broken.
* The text form is `tidings1` and the base32 (RFC 4648, lower case, no padding) of key || checksum.

What this module is not: it labels no signature and seals nothing (see `signing`, `sealing`), it has no
passphrases, and no secret of it shows in a repr, a str or an error.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nacl.bindings
import nacl.signing
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey

from crypto.errors import KeystoreError, Malformed

PUBLIC_KEY_BYTES: Final = 32
SEED_BYTES: Final = 32

TEXT_PREFIX: Final = "tidings1"
CHECKSUM_BYTES: Final = 4
CHECKSUM_PERSON: Final = b"tidings-key-v1"
# 36 bytes are 288 bits; 58 letters hold 290, of which the last two are always zero.
TEXT_CHARS: Final = len(TEXT_PREFIX) + 58

DATASET_NAMES_PERSON: Final = b"tidings-names-v1"  # the key that hides dataset names from peers

_MLKEM_PUBLIC_BYTES: Final = 1184
_MLKEM_SEED_BYTES: Final = 64
_X25519_BYTES: Final = 32
ENCRYPTION_PUBLIC_BYTES: Final = _MLKEM_PUBLIC_BYTES + _X25519_BYTES
ENCRYPTION_PRIVATE_BYTES: Final = _MLKEM_SEED_BYTES + _X25519_BYTES

KEYSTORE_FORMAT: Final = "tidings-keystore"
KEYSTORE_VERSION: Final = 1
KEYSTORE_PERSON: Final = b"tidings-store-v1"
# A key is about 200 characters of JSON; a node that rotates daily for a year stays well below.
MAX_KEYSTORE_BYTES: Final = 1 << 18


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
        compact = "".join(text.split()).lower()
        if not compact.startswith(TEXT_PREFIX):
            raise Malformed(f"A public key starts with '{TEXT_PREFIX}': copy the whole line that `tidings id` prints.")
        if len(compact) != TEXT_CHARS:
            raise Malformed(
                f"A public key has {TEXT_CHARS} characters and this one has {len(compact)}: "
                "it looks mistyped or cut off, copy it again."
            )
        try:
            data = base64.b32decode(compact[len(TEXT_PREFIX) :].upper() + "======")
        except (binascii.Error, ValueError):
            raise Malformed(
                "This public key holds a character that no key has: it looks mistyped, copy it again."
            ) from None
        raw, checksum = data[:PUBLIC_KEY_BYTES], data[PUBLIC_KEY_BYTES:]
        # The second comparison refuses stray bits in the last letter, which base32 decoders ignore.
        if checksum != _checksum(raw) or _text_of(raw) != compact:
            raise Malformed("The checksum of this public key is wrong: it looks mistyped, copy it again.")
        return cls(raw)

    @property
    def text(self) -> str:
        """The form that people exchange: 66 characters, the last ones a checksum."""
        return _text_of(self.raw)

    @property
    def short(self) -> str:
        """The first characters, for display only: never compare or trust a key by these."""
        return self.text[: len(TEXT_PREFIX) + 8]

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"PublicKey({self.text})"


def _text_of(raw: bytes) -> str:
    return TEXT_PREFIX + base64.b32encode(raw + _checksum(raw)).decode("ascii").rstrip("=").lower()


def _checksum(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=CHECKSUM_BYTES, person=CHECKSUM_PERSON).digest()


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


@dataclass(frozen=True, repr=False)
class Keystore:
    """The secrets of one node, one JSON file that only its owner can read; encryption keys newest first."""

    identity: Identity
    encryption_keys: tuple[EncryptionKey, ...]

    @classmethod
    def create(cls, path: Path) -> "Keystore":
        """New keys, synced to disk before this returns; KeystoreError if that cannot be, or one exists."""
        keystore = cls(Identity.generate(), (EncryptionKey.generate(),))
        try:
            _write_new_file(path, keystore._to_json())
        except FileExistsError:
            raise KeystoreError(f"There is already a keystore at {path}: use it, or choose another home.") from None
        except OSError as error:
            raise KeystoreError(
                f"The keystore {path} cannot be written ({error.strerror}): check the disk and permissions."
            ) from None
        return keystore

    @classmethod
    def load(cls, path: Path) -> "Keystore":
        """The keys of a file; KeystoreError if there is none, others may read it, or it is damaged."""
        try:
            return cls._from_json(_read_private_file(path))
        except FileNotFoundError:
            raise KeystoreError(f"There is no keystore at {path}: run `tidings init` first.") from None
        except OSError as error:
            raise KeystoreError(
                f"The keystore {path} cannot be read ({error.strerror}): check its owner and permissions."
            ) from None
        except (ValueError, TypeError, KeyError, RecursionError, Malformed):
            # The cause may quote the secrets it tripped over, so it is dropped.
            raise KeystoreError(f"The keystore {path} is damaged: restore it from its backup.") from None

    def _to_json(self) -> bytes:
        fields = {
            "format": KEYSTORE_FORMAT,
            "version": KEYSTORE_VERSION,
            "identity_seed": self.identity.seed.hex(),
            "encryption_keys": [key.to_bytes().hex() for key in self.encryption_keys],
            "checksum": self._checksum().hex(),
        }
        return (json.dumps(fields, indent=2) + "\n").encode("ascii")

    @classmethod
    def _from_json(cls, data: bytes) -> "Keystore":
        fields: Any = json.loads(data)
        if fields["format"] != KEYSTORE_FORMAT:
            raise ValueError("not a keystore")
        if fields["version"] != KEYSTORE_VERSION:
            raise KeystoreError(f"This keystore is not of version {KEYSTORE_VERSION}: use the release that wrote it.")
        if not fields["encryption_keys"]:
            raise ValueError("no encryption key")
        keystore = cls(
            Identity.from_seed(bytes.fromhex(fields["identity_seed"])),
            tuple(EncryptionKey.from_bytes(bytes.fromhex(text)) for text in fields["encryption_keys"]),
        )
        # One flipped digit would otherwise be a different node, quietly.
        if not hmac.compare_digest(bytes.fromhex(fields["checksum"]), keystore._checksum()):
            raise ValueError("wrong checksum")
        return keystore

    def _checksum(self) -> bytes:
        secret = self.identity.seed + b"".join(key.to_bytes() for key in self.encryption_keys)
        return hashlib.blake2b(secret, digest_size=32, person=KEYSTORE_PERSON).digest()

    def __repr__(self) -> str:
        return f"Keystore({self.identity.public_key.text}, {len(self.encryption_keys)} encryption keys)"


def _write_new_file(path: Path, data: bytes) -> None:
    """Write a 0600 file that did not exist, so that a crash leaves none or all of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask took away
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, refuses to replace a file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_private_file(path: Path) -> bytes:
    """The bytes of a regular file that only its owner may read. O_NONBLOCK: a named pipe must not hang us."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise KeystoreError(f"The keystore {path} is not a regular file: restore it from its backup.")
        if stat.S_IMODE(mode) & 0o077:
            command = f"chmod 600 {shlex.quote(str(path))}"
            raise KeystoreError(f"The keystore {path} is open to others than its owner: run `{command}`.")
        data = file.read(MAX_KEYSTORE_BYTES + 1)
    if len(data) > MAX_KEYSTORE_BYTES:
        raise KeystoreError(f"The keystore {path} is too large to be one: restore it from its backup.")
    return data
