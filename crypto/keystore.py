"""The keystore: the file that holds a node's secrets, open (version 1) or sealed under a passphrase (version 2).
Versions 3 and 4 are the same with the seeds of former identities, which this one took the place of.

The key that seals is Argon2id (RFC 9106, version 1.3, one lane, as in libsodium) of the passphrase and 16 random bytes
of salt; the cipher is XChaCha20-Poly1305, with everything that is stored in the clear as associated data: the public
identity, the ids of the encryption keys, salt and cost. So the public key can be told without the passphrase, and a
change to it shows once the file is opened. The nonce is drawn anew at every writing: the key outlives a rotation.

A file is trusted with nothing: its size, its number of keys and the cost that it names are bounded before they matter.
A new file takes the place of the old one at once and whole (`private_files`).

What this module does not do: ask for a passphrase, or judge how good one is. What Python once held in memory it
cannot wipe.
"""

import hashlib
import hmac
import json
import os
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import nacl.exceptions
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as aead_decrypt
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as aead_encrypt
from nacl.pwhash import argon2id

from crypto import private_files
from crypto.errors import KeystoreError, KeystoreLocked, Malformed, WrongPassphrase
from crypto.keys import (
    ENCRYPTION_ID_BYTES,
    ENCRYPTION_PRIVATE_BYTES,
    SEED_BYTES,
    EncryptionKey,
    Identity,
    PublicKey,
    encryption_id,
)

FORMAT: Final = "tidings-keystore"
OPEN_VERSION: Final = 1
SEALED_VERSION: Final = 2
OPEN_FORMER_VERSION: Final = 3
SEALED_FORMER_VERSION: Final = 4
OPEN_PERSON: Final = b"tidings-store-v1"
SEALED_PERSON: Final = b"tidings-store-v2"
SEALED_LABEL: Final = b"tidings/v1/keystore\0"
FORMER_LABEL: Final = b"tidings/v1/keystore-with-former\0"
KDF: Final = "argon2id13"
SALT_BYTES: Final = argon2id.SALTBYTES
WRAPPING_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16

MAX_ENCRYPTION_KEYS: Final = 1000
"""The newest one and those it followed; daily rotation reaches this in 2.7 years."""
MAX_FORMER: Final = 16
"""Identities that one home had before its present one."""
MAX_SECRET_BYTES: Final = 1 + (1 + MAX_FORMER) * SEED_BYTES + MAX_ENCRYPTION_KEYS * ENCRYPTION_PRIVATE_BYTES
# A key is about 240 characters of JSON, its id included.
MAX_KEYSTORE_BYTES: Final = 1 << 18

Ask = Callable[[Path], str]
"""Gives the passphrase of the keystore at a path; KeystoreLocked if there is nobody to ask."""


@dataclass(frozen=True)
class Cost:
    """What one guess at a passphrase costs: passes over so many bytes of memory. Malformed beyond 4 and 1 GiB."""

    operations: int
    memory_bytes: int

    def __post_init__(self) -> None:
        if not argon2id.OPSLIMIT_MIN <= self.operations <= argon2id.OPSLIMIT_SENSITIVE:
            raise Malformed(f"Argon2id passes must be {argon2id.OPSLIMIT_MIN} to {argon2id.OPSLIMIT_SENSITIVE}.")
        if not argon2id.MEMLIMIT_MIN <= self.memory_bytes <= argon2id.MEMLIMIT_SENSITIVE:
            raise Malformed(f"Argon2id memory must be {argon2id.MEMLIMIT_MIN} to {argon2id.MEMLIMIT_SENSITIVE} bytes.")


MODERATE: Final = Cost(argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE)
"""3 passes over 256 MiB: about 0.6 s of one core."""
LEAST: Final = Cost(argon2id.OPSLIMIT_MIN, argon2id.MEMLIMIT_MIN)
"""Protects nothing: for tests."""


@dataclass(frozen=True)
class WrappingKey:
    """What a keystore is sealed under: Argon2id of a passphrase, this salt and this cost."""

    salt: bytes
    cost: Cost
    key: bytes = field(repr=False)

    @classmethod
    def derive(cls, passphrase: str, cost: Cost, salt: bytes | None = None) -> "WrappingKey":
        """The key of a passphrase, under a new salt unless one is given; KeystoreError if there is too little memory.

        Letters that can be typed in two ways (a composed or a decomposed umlaut) count as the same (Unicode NFC).
        """
        secret = unicodedata.normalize("NFC", passphrase).encode("utf-8", errors="surrogatepass")
        salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        try:
            key = argon2id.kdf(WRAPPING_KEY_BYTES, secret, salt, cost.operations, cost.memory_bytes)
        except (nacl.exceptions.CryptoError, MemoryError):
            needed = cost.memory_bytes >> 20
            raise KeystoreError(f"Opening this keystore takes {needed} MiB of free memory: make room for it.") from None
        return cls(salt, cost, key)


@dataclass(frozen=True, repr=False)
class Keystore:
    """The secrets of one node; encryption keys and former identities newest first. Malformed for more of either than a
    file may hold."""

    identity: Identity
    encryption_keys: tuple[EncryptionKey, ...]
    former: tuple[Identity, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.encryption_keys) <= MAX_ENCRYPTION_KEYS:
            raise Malformed(f"A keystore holds 1 to {MAX_ENCRYPTION_KEYS} encryption keys.")
        if len(self.former) > MAX_FORMER:
            raise Malformed(f"A keystore holds at most {MAX_FORMER} former identities.")

    @classmethod
    def generate(cls) -> "Keystore":
        """New keys."""
        return cls(Identity.generate(), (EncryptionKey.generate(),))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Keystore":
        """The keystore that `to_bytes` wrote; Malformed if it is none."""
        has_former = len(data) % SEED_BYTES == 1
        if has_former and data[0] == 0:
            raise Malformed("What was handed over counts no former identity: start the node again.")
        return cls._from_secrets(data[1:], data[0]) if has_former else cls._from_secrets(data, 0)

    def to_bytes(self) -> bytes:
        """Every secret, for a process that this one starts on the same home: the seed of the identity and 96 bytes for
        each encryption key; where there are former identities, their number in a byte before all, and their seeds
        after the first one. So the length tells the two forms apart."""
        return bytes([len(self.former)] if self.former else []) + self._secrets()

    def _secrets(self) -> bytes:
        seeds = b"".join(one.seed for one in (self.identity, *self.former))
        return seeds + b"".join(key.to_bytes() for key in self.encryption_keys)

    @classmethod
    def _from_secrets(cls, data: bytes, former: int) -> "Keystore":
        seeds = [data[at : at + SEED_BYTES] for at in range(0, (1 + former) * SEED_BYTES, SEED_BYTES)]
        identity, *others = (Identity.from_seed(seed) for seed in seeds)
        starts = range((1 + former) * SEED_BYTES, len(data), ENCRYPTION_PRIVATE_BYTES)
        keys = (EncryptionKey.from_bytes(data[at : at + ENCRYPTION_PRIVATE_BYTES]) for at in starts)
        return cls(identity, tuple(keys), tuple(others))

    @property
    def public_key(self) -> PublicKey:
        return self.identity.public_key

    @property
    def former_keys(self) -> tuple[PublicKey, ...]:
        return tuple(one.public_key for one in self.former)

    @property
    def encryption_ids(self) -> tuple[bytes, ...]:
        return tuple(encryption_id(key.public) for key in self.encryption_keys)

    def write_new(self, path: Path, wrapping: WrappingKey | None = None) -> None:
        """Write a keystore where there is none, on disk when this returns; KeystoreError if that cannot be."""
        try:
            private_files.write_new(path, self._encoded(wrapping))
        except FileExistsError:
            raise KeystoreError(f"There is already a keystore at {path}: use it, or choose another home.") from None
        except OSError as error:
            raise _not_written(path, error) from None

    def replace(self, path: Path, wrapping: WrappingKey | None) -> None:
        """Put this keystore in the place of one; KeystoreError leaves that one as it was."""
        try:
            private_files.replace(path, self._encoded(wrapping))
        except OSError as error:
            raise _not_written(path, error) from None

    def _encoded(self, wrapping: WrappingKey | None) -> bytes:
        fields = self._open_fields() if wrapping is None else SealedKeystore.seal(self, wrapping).fields()
        return (json.dumps(fields, indent=2) + "\n").encode("ascii")

    def _open_fields(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": OPEN_FORMER_VERSION if self.former else OPEN_VERSION,
            "identity_seed": self.identity.seed.hex(),
            **({"former_seeds": [one.seed.hex() for one in self.former]} if self.former else {}),
            "encryption_keys": [key.to_bytes().hex() for key in self.encryption_keys],
            "checksum": self._checksum().hex(),
        }

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> "Keystore":
        keystore = cls(
            Identity.from_seed(bytes.fromhex(fields["identity_seed"])),
            tuple(EncryptionKey.from_bytes(bytes.fromhex(text)) for text in fields["encryption_keys"]),
            tuple(Identity.from_seed(bytes.fromhex(text)) for text in _former_fields(fields, "former_seeds")),
        )
        # One flipped digit would otherwise be a different node, quietly.
        if not hmac.compare_digest(bytes.fromhex(fields["checksum"]), keystore._checksum()):
            raise ValueError("wrong checksum")
        return keystore

    def _checksum(self) -> bytes:
        return hashlib.blake2b(self._secrets(), digest_size=32, person=OPEN_PERSON).digest()

    def __repr__(self) -> str:
        return f"Keystore({self.public_key.text}, {len(self.encryption_keys)} encryption keys)"


@dataclass(frozen=True)
class SealedKeystore:
    """A keystore under a passphrase: what its file says without it."""

    public_key: PublicKey
    encryption_ids: tuple[bytes, ...]
    cost: Cost
    salt: bytes
    nonce: bytes
    sealed: bytes = field(repr=False)
    former_keys: tuple[PublicKey, ...] = ()

    @classmethod
    def seal(cls, keystore: Keystore, wrapping: WrappingKey) -> "SealedKeystore":
        """Seal under a new nonce."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        clear = cls(
            keystore.public_key,
            keystore.encryption_ids,
            wrapping.cost,
            wrapping.salt,
            nonce,
            b"",
            keystore.former_keys,
        )
        return replace(clear, sealed=aead_encrypt(keystore._secrets(), clear._associated(), nonce, wrapping.key))

    def is_under(self, wrapping: WrappingKey) -> bool:
        """Whether this was sealed under the passphrase that the key was derived from, as far as the file tells."""
        return (wrapping.salt, wrapping.cost) == (self.salt, self.cost)

    def open(self, wrapping: WrappingKey) -> Keystore:
        """The secrets; WrongPassphrase if this key does not open them."""
        try:
            data = aead_decrypt(self.sealed, self._associated(), self.nonce, wrapping.key)
            keystore = Keystore._from_secrets(data, len(self.former_keys))
        except (nacl.exceptions.CryptoError, Malformed):
            raise WrongPassphrase("This is not the passphrase of the keystore: nothing was changed.") from None
        named = (self.public_key, self.encryption_ids, self.former_keys)
        if (keystore.public_key, keystore.encryption_ids, keystore.former_keys) != named:
            raise KeystoreError("The keystore names other keys than it holds: restore it from its backup.")
        return keystore

    def fields(self) -> dict[str, Any]:
        """What the file says, as JSON."""
        return {
            "format": FORMAT,
            "version": SEALED_FORMER_VERSION if self.former_keys else SEALED_VERSION,
            "public_key": self.public_key.text,
            **({"former_identities": [one.text for one in self.former_keys]} if self.former_keys else {}),
            "encryption_key_ids": [one.hex() for one in self.encryption_ids],
            "protection": {
                "kdf": KDF,
                "operations": self.cost.operations,
                "memory_bytes": self.cost.memory_bytes,
                "salt": self.salt.hex(),
            },
            "nonce": self.nonce.hex(),
            "sealed": self.sealed.hex(),
            "checksum": self._checksum().hex(),
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "SealedKeystore":
        """The inverse of `fields`; ValueError, KeyError, TypeError or Malformed for anything else."""
        protection = fields["protection"]
        if protection["kdf"] != KDF:
            raise ValueError("another derivation")
        keystore = cls(
            PublicKey.parse(fields["public_key"]),
            tuple(_of_length(text, ENCRYPTION_ID_BYTES) for text in fields["encryption_key_ids"]),
            Cost(_whole(protection["operations"]), _whole(protection["memory_bytes"])),
            _of_length(protection["salt"], SALT_BYTES),
            _of_length(fields["nonce"], NONCE_BYTES),
            bytes.fromhex(fields["sealed"]),
            tuple(PublicKey.parse(text) for text in _former_fields(fields, "former_identities")),
        )
        count, seeds = len(keystore.encryption_ids), 1 + len(keystore.former_keys)
        secret_bytes = seeds * SEED_BYTES + count * ENCRYPTION_PRIVATE_BYTES
        if not 1 <= count <= MAX_ENCRYPTION_KEYS or len(keystore.sealed) != secret_bytes + TAG_BYTES:
            raise ValueError("not as many keys as ids")
        # Tells damage from a wrong passphrase. Whoever changes the file on purpose makes a new one: the seal is
        # what protects.
        if not hmac.compare_digest(bytes.fromhex(fields["checksum"]), keystore._checksum()):
            raise ValueError("wrong checksum")
        return keystore

    def _associated(self) -> bytes:
        """Everything in the clear, at fixed lengths."""
        former = b""
        if self.former_keys:
            former = len(self.former_keys).to_bytes(4, "big") + b"".join(key.raw for key in self.former_keys)
        return b"".join(
            (
                FORMER_LABEL if former else SEALED_LABEL,
                self.public_key.raw,
                former,
                len(self.encryption_ids).to_bytes(4, "big"),
                *self.encryption_ids,
                self.cost.operations.to_bytes(4, "big"),
                self.cost.memory_bytes.to_bytes(8, "big"),
                self.salt,
            )
        )

    def _checksum(self) -> bytes:
        data = self._associated() + self.nonce + self.sealed
        return hashlib.blake2b(data, digest_size=32, person=SEALED_PERSON).digest()


def read(path: Path) -> Keystore | SealedKeystore:
    """What a keystore file holds; KeystoreError if there is none, others may read it, or it is damaged."""
    try:
        return _decoded(private_files.read(path, "keystore", MAX_KEYSTORE_BYTES))
    except FileNotFoundError:
        raise KeystoreError(f"There is no keystore at {path}: run `tidings init` first.") from None
    except OSError as error:
        raise KeystoreError(
            f"The keystore {path} cannot be read ({error.strerror}): check its owner and permissions."
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, Malformed):
        # The cause may quote the secrets it tripped over, so it is dropped.
        raise KeystoreError(f"The keystore {path} is damaged: restore it from its backup.") from None


def _decoded(data: bytes) -> Keystore | SealedKeystore:
    fields: Any = json.loads(data)
    if fields["format"] != FORMAT:
        raise ValueError("not a keystore")
    if fields["version"] in (OPEN_VERSION, OPEN_FORMER_VERSION):
        return Keystore._from_fields(fields)
    if fields["version"] in (SEALED_VERSION, SEALED_FORMER_VERSION):
        return SealedKeystore.from_fields(fields)
    raise KeystoreError(
        f"This keystore is not of version {OPEN_VERSION} to {SEALED_FORMER_VERSION}: use the release that wrote it."
    )


def _former_fields(fields: dict[str, Any], name: str) -> list[str]:
    """The list that the versions with former identities have, 1 to MAX_FORMER entries long."""
    if fields["version"] in (OPEN_VERSION, SEALED_VERSION):
        return []
    former = fields[name]
    if type(former) is not list or not 1 <= len(former) <= MAX_FORMER:
        raise ValueError("not a list of former identities")
    return former


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("not a whole number")
    return value


def _of_length(text: str, length: int) -> bytes:
    data = bytes.fromhex(text)
    if len(data) != length:
        raise ValueError("wrong length")
    return data


def _not_written(path: Path, error: OSError) -> KeystoreError:
    return KeystoreError(f"The keystore {path} cannot be written ({error.strerror}): check the disk and permissions.")


def nobody_to_ask(path: Path) -> str:
    """An `Ask` for programs that have no passphrase."""
    raise KeystoreLocked(
        f"The keystore {path} is protected by a passphrase, and none was given: name a file with --passphrase-file, "
        "set TIDINGS_PASSPHRASE, or run this on a terminal."
    )


class Keyring:
    """The keystore of one home, as a running program uses it.

    It is opened when a secret is first needed, and read again when its file has changed: a node that runs for months
    notices `keys rotate` by itself. The passphrase is not kept, the wrapping key is: it opens what a rotation wrote.
    The passphrase is asked for again only where a new one sealed new keys. Not for use by several threads at once.
    """

    def __init__(self, path: Path, ask: Ask = nobody_to_ask, opened: Keystore | None = None) -> None:
        """KeystoreError if there is no keystore that can be read. `opened` are secrets that were handed over by a
        process that opened this keystore before."""
        self._path = path
        self._ask = ask
        self._stamp = self._changed_at()
        self._content = read(path)
        self._wrapping: WrappingKey | None = None
        self._opened = self._content if isinstance(self._content, Keystore) else opened
        if opened is not None and opened.public_key != self._content.public_key:
            raise KeystoreError(f"The keystore {path} is another node's than the keys that were handed over.")
        #: The public half of the identity, for which nobody needs the passphrase.
        self.public_key: PublicKey = self._content.public_key

    @property
    def is_protected(self) -> bool:
        """Whether the file is sealed under a passphrase, as of now."""
        self._notice_change()
        return isinstance(self._content, SealedKeystore)

    @property
    def encryption_ids(self) -> tuple[bytes, ...]:
        """The ids of the encryption keys in the file, newest first; needs no passphrase."""
        self._notice_change()
        return self._content.encryption_ids

    @property
    def former_keys(self) -> tuple[PublicKey, ...]:
        """The identities that this one took the place of and whose seeds are in the file; needs no passphrase."""
        return self._content.former_keys

    @property
    def identity(self) -> Identity:
        """The identity, which only `succeed` changes; asks as `open` does."""
        return (self._opened or self.open()).identity

    @property
    def former(self) -> tuple[Identity, ...]:
        """The identities that this one took the place of, newest first; asks as `open` does."""
        return (self._opened or self.open()).former

    @property
    def encryption_keys(self) -> tuple[EncryptionKey, ...]:
        """The encryption keys of now, newest first; asks as `open` does."""
        return self.open().encryption_keys

    def open(self) -> Keystore:
        """The secrets of now; asks for the passphrase the first time. KeystoreLocked if there is nobody to ask, or if
        new keys came under a new passphrase; WrongPassphrase."""
        self._notice_change()
        content = self._content
        if isinstance(content, Keystore):
            self._opened = content
        elif self._opened is None:
            wrapping = WrappingKey.derive(self._ask(self._path), content.cost, content.salt)
            self._opened, self._wrapping = content.open(wrapping), wrapping
        elif self._opened.encryption_ids != content.encryption_ids:
            self._opened = content.open(self._wrapping_of(content))
        return self._opened

    def refuse_if_replaced(self) -> None:
        """KeystoreError if the file cannot be read, or holds another identity than this program goes by: another one
        has replaced it since, and what this one wrote in its place would be the old one's again."""
        if read(self._path).public_key != self.public_key:
            raise KeystoreError(
                f"The keystore {self._path} has another identity since this program opened it: nothing was changed, "
                "start the program again."
            )

    def add_encryption_key(self) -> EncryptionKey:
        """Make a new encryption key, in front of those there are, and keep it on disk. The caller holds the home's
        lock; KeystoreError changes nothing."""
        self.refuse_if_replaced()
        before = self.open()
        if len(before.encryption_keys) == MAX_ENCRYPTION_KEYS:
            raise KeystoreError(f"This keystore holds {MAX_ENCRYPTION_KEYS} encryption keys, the most it can.")
        wrapping = self._wrapping_of(self._content) if isinstance(self._content, SealedKeystore) else None
        newest = EncryptionKey.generate()
        self._replace(replace(before, encryption_keys=(newest, *before.encryption_keys)), wrapping)
        return newest

    def succeed(self, successor: Identity) -> None:
        """Become another identity, with a new encryption key, and keep everything that there was behind them: one
        writing of the file. The caller holds the home's lock and no program serves it; KeystoreError changes nothing.
        """
        self.refuse_if_replaced()
        before = self.open()
        if len(before.former) == MAX_FORMER or len(before.encryption_keys) == MAX_ENCRYPTION_KEYS:
            raise KeystoreError(
                f"This keystore holds {MAX_FORMER} former identities or {MAX_ENCRYPTION_KEYS} encryption keys, the "
                "most it can: make a new home, and have your peers add its key."
            )
        wrapping = self._wrapping_of(self._content) if isinstance(self._content, SealedKeystore) else None
        keys = (EncryptionKey.generate(), *before.encryption_keys)
        self._replace(Keystore(successor, keys, (before.identity, *before.former)), wrapping)
        self.public_key = successor.public_key

    def set_passphrase(self, passphrase: str | None, cost: Cost = MODERATE) -> None:
        """Seal the file under another passphrase, or under none. The caller holds the home's lock; KeystoreError
        changes nothing."""
        self.refuse_if_replaced()
        wrapping = WrappingKey.derive(passphrase, cost) if passphrase is not None else None
        self._replace(self.open(), wrapping)

    def _replace(self, keystore: Keystore, wrapping: WrappingKey | None) -> None:
        keystore.replace(self._path, wrapping)
        self._stamp, self._content = self._changed_at(), read(self._path)
        self._opened, self._wrapping = keystore, wrapping

    def _wrapping_of(self, content: SealedKeystore) -> WrappingKey:
        """The key that the file is sealed under now; asks again if that is not the one that is known."""
        if self._wrapping is not None and content.is_under(self._wrapping):
            return self._wrapping
        try:
            wrapping = WrappingKey.derive(self._ask(self._path), content.cost, content.salt)
            content.open(wrapping)
        except KeystoreError:  # nobody to ask, the wrong one, or the file that held it is gone
            raise KeystoreLocked(
                f"The keystore {self._path} was sealed under another passphrase since this program opened it, and has "
                "new keys: start the program again."
            ) from None
        self._wrapping = wrapping
        return wrapping

    def _notice_change(self) -> None:
        """Read the file again if it is another one. A program that holds the secrets goes on with them where the file
        cannot be read now, or is another node's."""
        stamp = self._changed_at()
        if stamp == self._stamp:
            return
        try:
            content = read(self._path)
        except KeystoreError:
            if self._opened is None:
                raise
            return
        if content.public_key != self.public_key:
            if self._opened is None:
                raise KeystoreError(f"The keystore {self._path} became another node's: start the program again.")
            return
        self._stamp, self._content = stamp, content

    def _changed_at(self) -> tuple[int, int, int] | None:
        """What tells one version of the file from the next: each is a file of its own."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
