"""Epoch keys, content keys, commitments, seals and chunk hashes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import sealing
from crypto.errors import BadSeal, Malformed, NotForUs
from crypto.keys import ENCRYPTION_PUBLIC_BYTES, EncryptionKey
from crypto.sealing import (
    chunk_hash,
    chunk_hashes,
    content_key,
    key_commitment,
    new_epoch_key,
    open_sealed,
    seal,
    unwrap_epoch_key,
    wrap_epoch_key,
)

OURS = EncryptionKey.generate()
THEIRS = EncryptionKey.generate()
SECRET = st.binary(min_size=32, max_size=32)


def flip(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


# Epoch keys


@given(SECRET, st.binary(max_size=100))
def test_an_epoch_key_survives_wrapping(epoch_key, context):
    wrapped = wrap_epoch_key(epoch_key, OURS.public, context=context)
    assert len(wrapped) == sealing.WRAPPED_KEY_BYTES
    assert unwrap_epoch_key(wrapped, OURS, context=context) == epoch_key


def test_epoch_keys_and_wrappings_are_fresh_every_time():
    assert new_epoch_key() != new_epoch_key()
    epoch_key = new_epoch_key()
    assert len(epoch_key) == sealing.KEY_BYTES
    assert wrap_epoch_key(epoch_key, OURS.public, context=b"") != wrap_epoch_key(epoch_key, OURS.public, context=b"")


def test_an_epoch_key_wrapped_for_another_is_not_for_us():
    wrapped = wrap_epoch_key(new_epoch_key(), THEIRS.public, context=b"epoch 1")
    with pytest.raises(NotForUs):
        unwrap_epoch_key(wrapped, OURS, context=b"epoch 1")


def test_whoever_has_one_half_of_the_hybrid_key_opens_nothing():
    """A quantum computer would give away the X25519 half of a recorded grant, a flaw in ML-KEM the other one."""
    epoch_key, ours, guessed = new_epoch_key(), OURS.to_bytes(), EncryptionKey.generate().to_bytes()
    wrapped = wrap_epoch_key(epoch_key, OURS.public, context=b"epoch 1")
    for half in (guessed[:64] + ours[64:], ours[:64] + guessed[64:]):
        with pytest.raises(NotForUs):
            unwrap_epoch_key(wrapped, EncryptionKey.from_bytes(half), context=b"epoch 1")
    assert unwrap_epoch_key(wrapped, EncryptionKey.from_bytes(ours), context=b"epoch 1") == epoch_key


def test_an_epoch_key_does_not_move_to_another_context():
    wrapped = wrap_epoch_key(new_epoch_key(), OURS.public, context=b"epoch 1")
    for other in (b"epoch 2", b"", b"epoch 1\0"):
        with pytest.raises(NotForUs):
            unwrap_epoch_key(wrapped, OURS, context=other)


@given(st.integers(0, 8 * sealing.WRAPPED_KEY_BYTES - 1))
def test_a_wrapped_key_with_any_bit_flipped_does_not_open(bit):
    wrapped = wrap_epoch_key(bytes(32), OURS.public, context=b"c")
    with pytest.raises(NotForUs):
        unwrap_epoch_key(flip(wrapped, bit), OURS, context=b"c")


@given(st.binary(max_size=2000))
def test_bytes_that_are_no_wrapped_key_are_malformed(data):
    if len(data) != sealing.WRAPPED_KEY_BYTES:
        with pytest.raises(Malformed, match="1168 bytes"):
            unwrap_epoch_key(data, OURS, context=b"c")


@given(st.binary(min_size=sealing.WRAPPED_KEY_BYTES, max_size=sealing.WRAPPED_KEY_BYTES))
def test_random_bytes_of_the_right_length_are_not_for_us(data):
    with pytest.raises(NotForUs):
        unwrap_epoch_key(data, OURS, context=b"c")


def test_no_key_is_wrapped_for_an_encryption_key_that_anyone_could_open():
    """An X25519 point of small order would void the classical half."""
    small_order = OURS.public[:-32] + bytes(32)
    for public in (small_order, b"", bytes(ENCRYPTION_PUBLIC_BYTES), b"\xff" * ENCRYPTION_PUBLIC_BYTES):
        with pytest.raises(Malformed):
            wrap_epoch_key(new_epoch_key(), public, context=b"c")


# Content keys and commitments


FEW_KEYS = st.sampled_from([bytes(32), bytes(31) + b"\1", b"\1" + bytes(31)])
FEW_CORES = st.sampled_from([b"", b"\0", b"core", b"core\0", bytes(128)])


@given(FEW_KEYS, FEW_CORES, FEW_KEYS, FEW_CORES)
def test_every_epoch_key_and_core_have_a_content_key_of_their_own(epoch_key, core, other_key, other_core):
    same_key = content_key(epoch_key, core) == content_key(other_key, other_core)
    assert same_key == ((epoch_key, core) == (other_key, other_core))


@given(FEW_KEYS, FEW_KEYS)
def test_a_commitment_fits_one_key_only_and_is_not_the_key(first, second):
    assert (key_commitment(first) == key_commitment(second)) == (first == second)
    assert key_commitment(first) != first


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_is_a_mistake_of_ours(length):
    short = bytes(length)
    for use in (
        lambda: content_key(short, b"core"),
        lambda: key_commitment(short),
        lambda: seal(b"", short, b"core"),
        lambda: open_sealed(bytes(40), short, b"core", bytes(32)),
        lambda: wrap_epoch_key(short, OURS.public, context=b""),
    ):
        with pytest.raises(ValueError, match="exactly 32 bytes"):
            use()


# Seals


@given(st.binary(max_size=500), SECRET, st.binary(max_size=60))
def test_a_sealed_body_opens_with_its_key_core_and_commitment(plaintext, key, core):
    sealed = seal(plaintext, key, core)
    assert len(sealed) == len(plaintext) + sealing.SEAL_OVERHEAD_BYTES
    assert open_sealed(sealed, key, core, key_commitment(key)) == plaintext


def test_the_same_body_never_seals_to_the_same_bytes():
    assert seal(b"body", bytes(32), b"core") != seal(b"body", bytes(32), b"core")


def test_a_sealed_body_with_any_one_bit_flipped_does_not_open():
    key = new_epoch_key()
    sealed = seal(b"a body", key, b"core")
    for bit in range(8 * len(sealed)):
        with pytest.raises(BadSeal, match="changed"):
            open_sealed(flip(sealed, bit), key, b"core", key_commitment(key))


def test_a_sealed_body_does_not_move_to_another_record():
    key = new_epoch_key()
    with pytest.raises(BadSeal, match="another record"):
        open_sealed(seal(b"body", key, b"core"), key, b"other core", key_commitment(key))


def test_a_key_that_the_origin_did_not_commit_to_opens_nothing():
    """The ciphertext is good under this key: only the commitment keeps two readers from two bodies."""
    key, committed = new_epoch_key(), new_epoch_key()
    sealed = seal(b"for one reader only", key, b"core")
    with pytest.raises(BadSeal, match="committed to another key"):
        open_sealed(sealed, key, b"core", key_commitment(committed))
    assert open_sealed(sealed, key, b"core", key_commitment(key)) == b"for one reader only"


@given(st.binary(max_size=100), st.binary(max_size=64))
def test_any_other_bytes_are_a_bad_seal_and_nothing_worse(ciphertext, commitment):
    key = bytes(32)
    with pytest.raises(BadSeal):
        open_sealed(ciphertext, key, b"core", commitment)
    with pytest.raises(BadSeal):
        open_sealed(ciphertext, key, b"core", key_commitment(key))


# Chunks


@given(st.binary(max_size=300), st.integers(1, 400))
def test_chunk_hashes_are_the_hashes_of_the_chunks_in_order(body, chunk_bytes):
    hashes = chunk_hashes(body, chunk_bytes)
    assert len(hashes) == -(-len(body) // chunk_bytes)
    rest = body
    for digest in hashes:
        assert chunk_hash(rest[:chunk_bytes]) == digest
        rest = rest[chunk_bytes:]
    assert not rest


def test_a_chunk_holds_at_least_one_byte():
    with pytest.raises(ValueError, match="at least one byte"):
        chunk_hashes(b"body", 0)


def test_one_input_hashes_differently_for_every_use():
    key = bytes(32)
    uses = {chunk_hash(b"x"), sealing._core_hash(b"x"), content_key(key, b"x"), key_commitment(key)}
    assert len(uses) == 4
