"""Keys, their text form, and the keystore file."""

import errno
import json
import os
import stat

import nacl.bindings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import keys
from crypto.errors import CryptoError, KeystoreError, Malformed
from crypto.keys import EncryptionKey, Identity, Keystore, PublicKey, parse_encryption_public

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
        PublicKey.parse(keys._text_of(raw))


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


# The keystore file


@pytest.fixture
def keystore_path(tmp_path):
    return tmp_path / "keystore.json"


def secrets_of(keystore):
    yield keystore.identity.seed
    for key in keystore.encryption_keys:
        yield key.to_bytes()


def test_a_keystore_loads_as_it_was_created(keystore_path):
    created = Keystore.create(keystore_path)
    loaded = Keystore.load(keystore_path)
    assert list(secrets_of(loaded)) == list(secrets_of(created))
    assert loaded.identity.public_key == created.identity.public_key


def test_a_keystore_keeps_several_encryption_keys_newest_first(keystore_path):
    newest, oldest = EncryptionKey.generate(), EncryptionKey.generate()
    keystore = Keystore(Identity.generate(), (newest, oldest))
    keys._write_new_file(keystore_path, keystore._to_json())
    assert [key.public for key in Keystore.load(keystore_path).encryption_keys] == [
        newest.public,
        oldest.public,
    ]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_new_keystore_is_0600_whatever_the_umask(keystore_path, umask):
    before = os.umask(umask)
    try:
        Keystore.create(keystore_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(keystore_path.stat().st_mode) == 0o600
    Keystore.load(keystore_path)


def test_an_existing_keystore_is_never_replaced(keystore_path):
    Keystore.create(keystore_path)
    before = keystore_path.read_bytes()
    with pytest.raises(KeystoreError, match="already a keystore"):
        Keystore.create(keystore_path)
    assert keystore_path.read_bytes() == before
    assert os.listdir(keystore_path.parent) == [keystore_path.name]


def test_a_keystore_takes_its_name_only_when_it_is_whole_and_private(keystore_path, monkeypatch):
    """A crash at any moment leaves no keystore or a whole one: the name appears last, after the sync."""
    steps = []
    fsync, link = os.fsync, os.link

    def recorded_link(source, target):
        steps.append("link")
        assert not keystore_path.exists()
        Keystore.load(source)  # whole, and 0600
        link(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "link", recorded_link)
    Keystore.create(keystore_path)
    assert steps == ["fsync", "link", "fsync"]  # the file, its name, the directory


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_full_disk_leaves_neither_a_keystore_nor_scraps_of_one(keystore_path, monkeypatch, call):
    def disk_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, disk_full)
    with pytest.raises(KeystoreError, match="No space left on device"):
        Keystore.create(keystore_path)
    assert os.listdir(keystore_path.parent) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o601, 0o666])
def test_a_keystore_open_to_others_is_refused_with_the_command_that_mends_it(keystore_path, mode):
    Keystore.create(keystore_path)
    keystore_path.chmod(mode)
    with pytest.raises(KeystoreError, match="chmod 600"):
        Keystore.load(keystore_path)
    keystore_path.chmod(0o600)
    Keystore.load(keystore_path)


def test_a_missing_keystore_is_told_how_to_make_one(keystore_path):
    with pytest.raises(KeystoreError, match="tidings init"):
        Keystore.load(keystore_path)


def test_a_keystore_that_is_no_regular_file_neither_loads_nor_hangs(keystore_path):
    keystore_path.mkdir(mode=0o700)
    with pytest.raises(KeystoreError):
        Keystore.load(keystore_path)
    keystore_path.rmdir()
    os.mkfifo(keystore_path, 0o600)
    with pytest.raises(KeystoreError, match="not a regular file"):
        Keystore.load(keystore_path)


def rewrite(path, data):
    path.write_bytes(data)
    path.chmod(0o600)


def test_a_keystore_of_another_version_asks_for_the_release_that_wrote_it(keystore_path):
    Keystore.create(keystore_path)
    fields = json.loads(keystore_path.read_bytes())
    rewrite(keystore_path, json.dumps(fields | {"version": 2}).encode())
    with pytest.raises(KeystoreError, match="not of version 1"):
        Keystore.load(keystore_path)


def test_a_keystore_with_any_hex_digit_changed_is_refused(keystore_path):
    """Otherwise one flipped digit of the seed would be another node, quietly."""
    Keystore.create(keystore_path)
    data = keystore_path.read_bytes()
    seed_at = data.index(b"identity_seed")
    digits = [at for at in range(seed_at, len(data)) if chr(data[at]) in "0123456789" and at % 3 == 0]
    assert len(digits) > 50
    for at in digits:
        other = b"1" if data[at : at + 1] == b"0" else b"0"
        rewrite(keystore_path, data[:at] + other + data[at + 1 :])
        with pytest.raises(KeystoreError, match="damaged"):
            Keystore.load(keystore_path)


def test_a_keystore_cut_short_anywhere_is_refused(keystore_path):
    Keystore.create(keystore_path)
    data = keystore_path.read_bytes()
    for length in range(0, len(data) - 1, 7):
        rewrite(keystore_path, data[:length])
        with pytest.raises(KeystoreError, match="damaged"):
            Keystore.load(keystore_path)


NOT_KEYSTORES = {
    "empty": b"",
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "another format": b'{"format": "other", "version": 1}',
    "no fields": b'{"format": "tidings-keystore", "version": 1}',
    "deeply nested": b"[" * 100_000,
    "a huge number": b'{"format": "tidings-keystore", "version": 1, "encryption_keys": ' + b"9" * 5000 + b"}",
    "keys of the wrong type": b'{"format": "tidings-keystore", "version": 1, "encryption_keys": 3,'
    b' "identity_seed": "' + b"00" * 32 + b'", "checksum": ""}',
    "no encryption keys": Keystore(Identity.from_seed(bytes(32)), ())._to_json(),
}


@pytest.mark.parametrize("data", NOT_KEYSTORES.values(), ids=NOT_KEYSTORES.keys())
def test_a_file_that_is_no_keystore_is_refused(keystore_path, data):
    rewrite(keystore_path, data)
    with pytest.raises(KeystoreError, match="damaged"):
        Keystore.load(keystore_path)


def test_an_oversized_keystore_is_not_parsed(keystore_path):
    rewrite(keystore_path, b" " * (keys.MAX_KEYSTORE_BYTES + 1))
    with pytest.raises(KeystoreError, match="too large"):
        Keystore.load(keystore_path)


def test_no_secret_shows_in_a_repr_a_str_or_an_error(keystore_path):
    keystore = Keystore.create(keystore_path)
    shown = [repr(keystore), str(keystore), repr(keystore.identity), str(keystore.identity)]
    shown += [repr(keystore.encryption_keys), str(keystore.encryption_keys[0])]
    rewrite(keystore_path, keystore_path.read_bytes().replace(b'"checksum"', b'"checksun"'))
    with pytest.raises(CryptoError) as caught:
        Keystore.load(keystore_path)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    shown.append(str(caught.value))
    for secret in secrets_of(keystore):
        for text in shown:
            assert secret.hex()[:8] not in text
