"""Signatures: whose they are, over what, and under which label."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import signing
from crypto.errors import BadSignature
from crypto.keys import Identity, PublicKey
from crypto.signing import MODEL_CARD_LABEL, Statement, record_id, sign, sign_record, verify, verify_record

ALICE = Identity.from_seed(b"a" * 32)
BOB = Identity.from_seed(b"b" * 32)
INCARNATION = b"12345678"
KINDS = st.sampled_from(["key-card", "key-grant", "task", "summary", "model", "withdrawal"])


def record_signature(identity: Identity, kind: str, header: bytes, number: int = 1, supersedes: bytes = b"") -> bytes:
    return sign_record(identity, Statement(kind, INCARNATION, number, supersedes, record_id(header)))


def verify_header(
    key: PublicKey, kind: str, header: bytes, signature: bytes, number: int = 1, supersedes: bytes = b""
) -> None:
    verify_record(key, Statement(kind, INCARNATION, number, supersedes, record_id(header)), signature)


# The order of the group of Ed25519: S and S + order sign the same thing wherever S is not checked.
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


@given(KINDS, st.binary(max_size=300))
def test_a_signature_verifies_under_its_own_key_kind_and_header(kind, header):
    signature = record_signature(ALICE, kind, header)
    assert len(signature) == signing.SIGNATURE_BYTES
    verify_header(ALICE.public_key, kind, header, signature)


@given(KINDS, KINDS, st.binary(max_size=100))
def test_a_signature_of_one_kind_is_worthless_for_another(kind, other, header):
    signature = record_signature(ALICE, kind, header)
    if kind != other:
        with pytest.raises(BadSignature):
            verify_header(ALICE.public_key, other, header, signature)
    with pytest.raises(BadSignature):
        verify(ALICE.public_key, MODEL_CARD_LABEL, header, signature)


@given(st.binary(max_size=100), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_signature_of_one_number_is_worthless_for_another(header, number, other):
    signature = record_signature(ALICE, "task", header, number)
    if number != other:
        with pytest.raises(BadSignature):
            verify_header(ALICE.public_key, "task", header, signature, other)


SUPERSEDED = st.one_of(st.just(b""), st.binary(min_size=32, max_size=32))


@given(SUPERSEDED, SUPERSEDED)
def test_a_signature_of_what_supersedes_one_record_is_worthless_for_what_supersedes_another(target, other):
    signature = record_signature(ALICE, "task", b"header", supersedes=target)
    if target != other:
        with pytest.raises(BadSignature):
            verify_header(ALICE.public_key, "task", b"header", signature, supersedes=other)


def test_only_an_id_is_signed_as_a_record():
    with pytest.raises(ValueError, match="record id has 32 bytes"):
        sign_record(ALICE, Statement("task", INCARNATION, 1, b"", b"header"))


def test_a_signature_with_any_one_bit_flipped_is_refused():
    signature = record_signature(ALICE, "task", b"header")
    for bit in range(8 * len(signature)):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadSignature):
            verify_header(ALICE.public_key, "task", b"header", bytes(flipped))


def test_a_header_with_any_one_bit_flipped_is_refused():
    header = bytes(range(40))
    signature = record_signature(ALICE, "task", header)
    for bit in range(8 * len(header)):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadSignature):
            verify_header(ALICE.public_key, "task", bytes(flipped), signature)


def test_a_signature_of_another_key_is_refused_and_the_error_names_what_and_who():
    signature = record_signature(BOB, "task", b"header")
    with pytest.raises(BadSignature, match=f"record/task was not signed by {ALICE.public_key.short}"):
        verify_header(ALICE.public_key, "task", b"header", signature)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_signature_are_refused(signature):
    with pytest.raises(BadSignature):
        verify_header(ALICE.public_key, "task", b"header", signature)


def test_a_signature_has_no_second_spelling():
    """The id of a record excludes its signature, so nothing may hang on this; it holds all the same."""
    signature = record_signature(ALICE, "task", b"header")
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    with pytest.raises(BadSignature):
        verify_header(ALICE.public_key, "task", b"header", signature[:32] + scalar.to_bytes(32, "little"))


LABELS = st.text("ab", min_size=1, max_size=3).map(lambda name: f"tidings/v1/{name}\0".encode())
MESSAGES = st.lists(st.sampled_from([b"a", b"b", b"\0"]), max_size=4).map(b"".join)


@given(LABELS, MESSAGES, LABELS, MESSAGES)
def test_bytes_cannot_move_between_label_and_message(label, message, other_label, other_message):
    """'a' + 'bc' and 'ab' + 'c' are the same bytes: the NUL that ends a label keeps them apart."""
    same_signature = sign(ALICE, label, message) == sign(ALICE, other_label, other_message)
    assert same_signature == ((label, message) == (other_label, other_message))


@pytest.mark.parametrize(
    "label",
    [
        b"",
        b"tidings/v1/x",
        b"tidings/v1/\0",
        b"tidings/v1/a\0b\0",
        b"other/v1/x\0",
        b"tidings/v1/x\0\n",
        b"\0",
    ],
)
def test_nothing_is_signed_or_verified_without_a_proper_label(label):
    with pytest.raises(ValueError, match="is not a label"):
        sign(ALICE, label, b"message")
    with pytest.raises(ValueError, match="is not a label"):
        verify(ALICE.public_key, label, b"message", bytes(64))


@pytest.mark.parametrize("kind", ["", "task\0", "ta sk", "../x", "É", "task\n"])
def test_a_kind_that_would_bend_the_label_is_refused(kind):
    with pytest.raises(ValueError, match="not the name of a record kind"):
        record_signature(ALICE, kind, b"header")


def test_no_label_can_pass_for_a_certificate():
    """Certificates are signed by the same key without a label; DER begins with 0x30."""
    assert signing.RECORD_LABEL_PREFIX[0] != 0x30
    assert MODEL_CARD_LABEL[0] != 0x30


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_two_headers_have_one_id_only_if_they_are_one(first, second):
    assert len(record_id(first)) == signing.RECORD_ID_BYTES
    assert (record_id(first) == record_id(second)) == (first == second)
