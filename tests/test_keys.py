"""Keys and their text form."""

import nacl.bindings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import keys
from crypto.errors import Malformed
from crypto.keys import EncryptionKey, Identity, PublicKey, parse_encryption_public

SEEDS = st.binary(min_size=32, max_size=32)
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"

# The eight points of small order and two second spellings of them (y >= 2^255 - 19), as Ed25519 encodes them.
INVALID_POINTS = {
    "order 1": "01" + "00" * 31,
    "order 2": "ec" + "ff" * 30 + "7f",
    "order 4": "00" * 32,
    "order 4, other sign": "00" * 31 + "80",
    "order 8": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "order 8, other sign": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "order 8, other root": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "order 8, other root and sign": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "zero, not canonical": "ed" + "ff" * 30 + "7f",
    "one, not canonical": "ee" + "ff" * 30 + "7f",
    "not on the curve": "02" + "00" * 31,
}


@given(SEEDS)
def test_a_key_survives_its_text_form_in_any_case_and_spacing(seed):
    key = Identity.from_seed(seed).public_key
    assert len(key.text) == keys.TEXT_CHARS
    assert PublicKey.parse(key.text) == key
    assert PublicKey.parse(f"  {key.text[:30].upper()}\n{key.text[30:]}\t") == key


@given(SEEDS, st.integers(0, keys.TEXT_CHARS - 1), st.sampled_from(ALPHABET + "0189-é"))
def test_a_key_with_one_mistyped_letter_is_refused(seed, position, letter):
    text = Identity.from_seed(seed).public_key.text
    mistyped = text[:position] + letter + text[position + 1 :]
    if mistyped != text:
        with pytest.raises(Malformed):
            PublicKey.parse(mistyped)


@given(SEEDS, st.integers(0, keys.TEXT_CHARS - 2))
def test_a_key_with_two_neighbouring_letters_swapped_is_refused(seed, position):
    text = Identity.from_seed(seed).public_key.text
    swapped = text[:position] + text[position + 1] + text[position] + text[position + 2 :]
    if swapped != text:
        with pytest.raises(Malformed):
            PublicKey.parse(swapped)


def test_no_key_has_a_second_spelling_in_the_unused_bits_of_its_last_letter():
    text = Identity.from_seed(bytes(32)).public_key.text
    others = [text[:-1] + letter for letter in ALPHABET if letter != text[-1]]
    for other in others:
        with pytest.raises(Malformed):
            PublicKey.parse(other)


def test_a_mistyped_key_is_told_that_it_looks_mistyped():
    text = Identity.from_seed(bytes(32)).public_key.text
    for wrong in (text[:-1], text + "a", text[:20] + "1" + text[21:], text[:20] + "aaaa" + text[24:]):
        with pytest.raises(Malformed, match="looks mistyped"):
            PublicKey.parse(wrong)
    with pytest.raises(Malformed, match="starts with 'tidings1'"):
        PublicKey.parse("bitcoin1" + text[8:])


@given(st.text(max_size=100) | st.text(ALPHABET, max_size=70).map("tidings1".__add__))
def test_any_other_text_is_malformed_and_nothing_worse(text):
    with pytest.raises(Malformed):
        PublicKey.parse(text)


@pytest.mark.parametrize("encoding", INVALID_POINTS.values(), ids=INVALID_POINTS.keys())
def test_a_point_that_no_node_can_have_is_refused_raw_and_as_text(encoding):
    raw = bytes.fromhex(encoding)
    with pytest.raises(Malformed, match="not a valid Ed25519 public key"):
        PublicKey(raw)
    with pytest.raises(Malformed, match="not a valid Ed25519 public key"):
        PublicKey.parse(keys.TEXT_FORM.write(raw))


def test_a_key_with_a_small_order_component_is_refused():
    honest = Identity.from_seed(bytes(32)).public_key.raw
    mixed = nacl.bindings.crypto_core_ed25519_add(honest, bytes.fromhex(INVALID_POINTS["order 8"]))
    with pytest.raises(Malformed):
        PublicKey(mixed)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_public_key_of_another_length_is_refused(length):
    with pytest.raises(Malformed, match="exactly 32 bytes"):
        PublicKey(bytes(length))


def test_public_keys_can_be_compared_sorted_and_kept_in_sets():
    identities = [Identity.from_seed(bytes([n]) * 32) for n in range(5)]
    public = [identity.public_key for identity in identities]
    assert sorted(public) == sorted(public, key=lambda key: key.raw)
    assert len({*public, PublicKey(public[0].raw)}) == 5
    assert str(public[0]) == public[0].text
    assert public[0].text.startswith(public[0].short)


def test_an_identity_is_its_seed():
    identity = Identity.generate()
    assert Identity.from_seed(identity.seed).public_key == identity.public_key
    assert Identity.generate().public_key != identity.public_key
    with pytest.raises(Malformed):
        Identity.from_seed(bytes(31))


def test_an_encryption_key_survives_its_bytes():
    key = EncryptionKey.generate()
    assert EncryptionKey.from_bytes(key.to_bytes()).public == key.public
    assert len(key.public) == keys.ENCRYPTION_PUBLIC_BYTES
    assert EncryptionKey.generate().public != key.public
    with pytest.raises(Malformed):
        EncryptionKey.from_bytes(key.to_bytes()[:-1])


@pytest.mark.parametrize("length", [0, 32, 1184, 1215, 1217])
def test_an_encryption_public_key_of_another_length_is_refused(length):
    with pytest.raises(Malformed, match="new key card"):
        parse_encryption_public(bytes(length))


def test_an_encryption_public_key_with_coefficients_out_of_range_is_refused():
    with pytest.raises(Malformed, match="new key card"):
        parse_encryption_public(b"\xff" * keys.ENCRYPTION_PUBLIC_BYTES)


def test_an_encryption_public_key_with_a_small_order_half_is_refused_before_anything_is_wrapped():
    mlkem = EncryptionKey.generate().public[:-32]
    order_8 = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")
    for point in (bytes(32), b"\1" + bytes(31), order_8):
        with pytest.raises(Malformed, match="new key card"):
            parse_encryption_public(mlkem + point)
