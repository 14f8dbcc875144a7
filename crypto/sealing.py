"""Seals: who may read a record's body, and the proof that all who may read it read the same.

From the outside in (docs/protocol.md, "Identity and keys" and "Records"):

* an epoch key (32 random bytes per origin and epoch) is wrapped for each member with HPKE (RFC 9180,
  base mode) under ML-KEM-768 + X25519, HKDF-SHA256 and ChaCha20-Poly1305;
* a content key, one per record, is BLAKE2b keyed with the epoch key over the hash of the record's core;
* the body is XChaCha20-Poly1305 with a random 24-byte nonce in front and that same hash as its associated
  data;
* the key commitment, a BLAKE2b of the content key, goes into the signed header. The AEAD alone does not
  commit to its key: one ciphertext can be made to open as two plaintexts under two keys (Dodis, Grubbs,
  Ristenpart and Woodage, "Fast Message Franking", CRYPTO 2018).

What this module is not: HPKE base mode does not say who wrapped a key, nor a seal who sealed; the record's
signature does. There is no forward secrecy within an epoch.
"""

import hashlib
import hmac
import secrets
from typing import Final

import nacl.exceptions
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_ABYTES,
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
)

from crypto.errors import BadSeal, Malformed, NotForUs
from crypto.keys import EncryptionKey, parse_encryption_public

KEY_BYTES: Final = 32
HASH_BYTES: Final = 32
NONCE_BYTES: Final = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
SEAL_OVERHEAD_BYTES: Final = NONCE_BYTES + crypto_aead_xchacha20poly1305_ietf_ABYTES
# ML-KEM ciphertext 1,088, X25519 share 32, epoch key 32, tag 16.
WRAPPED_KEY_BYTES: Final = 1168

EPOCH_KEY_LABEL: Final = b"tidings/v1/epoch-key\0"
STREAM_KEY_LABEL: Final = b"tidings/v1/stream-key\0"
COMMITMENT_LABEL: Final = b"tidings/v1/key-commitment\0"
CORE_PERSON: Final = b"tidings-core-v1"
CONTENT_KEY_PERSON: Final = b"tidings-ckey-v1"
COMMITMENT_PERSON: Final = b"tidings-kcom-v1"
CHUNK_PERSON: Final = b"tidings-chunk-v1"

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def new_epoch_key() -> bytes:
    """32 fresh random bytes."""
    return secrets.token_bytes(KEY_BYTES)


def wrap_epoch_key(epoch_key: bytes, encryption_public: bytes, *, context: bytes) -> bytes:
    """1,168 bytes that only the holder of the encryption key can open, and only with the same context.

    Raises Malformed when `encryption_public` is not a usable key.
    """
    return _wrap(epoch_key, encryption_public, EPOCH_KEY_LABEL + context)


def unwrap_epoch_key(wrapped: bytes, encryption_key: EncryptionKey, *, context: bytes) -> bytes:
    """The 32-byte epoch key; Malformed for a wrong length, NotForUs if key and context do not open it."""
    if len(wrapped) != WRAPPED_KEY_BYTES:
        raise Malformed(
            f"A wrapped epoch key is {WRAPPED_KEY_BYTES} bytes, not {len(wrapped)}: discard this key grant."
        )
    try:
        return _unwrap(wrapped, encryption_key, EPOCH_KEY_LABEL + context)
    except InvalidTag:
        raise NotForUs("This epoch key was wrapped for another key: ask its origin for a grant.") from None


def wrap_stream_key(stream_key: bytes, encryption_public: bytes, *, context: bytes) -> bytes:
    """As `wrap_epoch_key`, for the key of one sealed stream (`crypto.streams`): neither opens as the other."""
    return _wrap(stream_key, encryption_public, STREAM_KEY_LABEL + context)


def unwrap_stream_key(wrapped: bytes, encryption_key: EncryptionKey, *, context: bytes) -> bytes:
    """The 32-byte stream key; Malformed for a wrong length, NotForUs if key and context do not open it."""
    if len(wrapped) != WRAPPED_KEY_BYTES:
        raise Malformed(f"A wrapped stream key is {WRAPPED_KEY_BYTES} bytes, not {len(wrapped)}: discard it.")
    try:
        return _unwrap(wrapped, encryption_key, STREAM_KEY_LABEL + context)
    except InvalidTag:
        raise NotForUs("This stream was sealed for another key.") from None


def content_key(epoch_key: bytes, core: bytes) -> bytes:
    """The 32-byte key of the one record with this core."""
    _require_key(epoch_key)
    return hashlib.blake2b(_core_hash(core), digest_size=KEY_BYTES, key=epoch_key, person=CONTENT_KEY_PERSON).digest()


def key_commitment(content_key: bytes) -> bytes:
    """32 public bytes that fit this content key and, collisions of BLAKE2b aside, no other."""
    _require_key(content_key)
    return hashlib.blake2b(COMMITMENT_LABEL, digest_size=HASH_BYTES, key=content_key, person=COMMITMENT_PERSON).digest()


def seal(plaintext: bytes, content_key: bytes, core: bytes) -> bytes:
    """nonce || ciphertext || tag: `SEAL_OVERHEAD_BYTES` longer than the plaintext."""
    _require_key(content_key)
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, _core_hash(core), nonce, content_key)


def open_sealed(ciphertext: bytes, content_key: bytes, core: bytes, commitment: bytes) -> bytes:
    """The plaintext; BadSeal unless key, commitment, ciphertext and core all belong together."""
    if not hmac.compare_digest(key_commitment(content_key), commitment):
        raise BadSeal("This record's origin committed to another key: discard it.")
    if len(ciphertext) < SEAL_OVERHEAD_BYTES:
        raise BadSeal("This sealed body is too short to be one: discard it.")
    nonce, sealed = ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:]
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, _core_hash(core), nonce, content_key)
    except nacl.exceptions.CryptoError:
        raise BadSeal("This sealed body was changed or belongs to another record: discard it.") from None


def chunk_hash(chunk: bytes) -> bytes:
    """32 bytes: BLAKE2b-256 of one chunk of a body."""
    return hashlib.blake2b(chunk, digest_size=HASH_BYTES, person=CHUNK_PERSON).digest()


def chunk_hashes(body: bytes, chunk_bytes: int) -> tuple[bytes, ...]:
    """The hash of each chunk in order; the last chunk may be short, an empty body has none."""
    if chunk_bytes < 1:
        raise ValueError("a chunk holds at least one byte")
    return tuple(chunk_hash(body[start : start + chunk_bytes]) for start in range(0, len(body), chunk_bytes))


def _wrap(key: bytes, encryption_public: bytes, info: bytes) -> bytes:
    _require_key(key)
    return _SUITE.encrypt(key, parse_encryption_public(encryption_public), info=info)


def _unwrap(wrapped: bytes, encryption_key: EncryptionKey, info: bytes) -> bytes:
    return _SUITE.decrypt(wrapped, encryption_key.hpke_private_key(), info=info)


def _core_hash(core: bytes) -> bytes:
    return hashlib.blake2b(core, digest_size=HASH_BYTES, person=CORE_PERSON).digest()


def _require_key(key: bytes) -> None:
    # BLAKE2b would take any shorter key, even none, without a word.
    if len(key) != KEY_BYTES:
        raise ValueError("a symmetric key is exactly 32 bytes")
