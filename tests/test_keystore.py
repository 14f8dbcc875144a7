"""The keystore file: open, and sealed under a passphrase."""

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import signal
import stat
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from crypto import keystore
from crypto.errors import CryptoError, KeystoreError, KeystoreLocked, WrongPassphrase
from crypto.keys import EncryptionKey, Identity
from crypto.keystore import LEAST, Cost, Keyring, Keystore, SealedKeystore, WrappingKey


@pytest.fixture
def keystore_path(tmp_path):
    return tmp_path / "keystore.json"


def created_at(path):
    made = Keystore.generate()
    made.write_new(path)
    return made


def secrets_of(made):
    yield made.identity.seed
    for key in made.encryption_keys:
        yield key.to_bytes()


def test_a_keystore_loads_as_it_was_created(keystore_path):
    created = created_at(keystore_path)
    loaded = keystore.read(keystore_path)
    assert list(secrets_of(loaded)) == list(secrets_of(created))
    assert loaded.identity.public_key == created.identity.public_key


def test_a_keystore_keeps_several_encryption_keys_newest_first(keystore_path):
    newest, oldest = EncryptionKey.generate(), EncryptionKey.generate()
    Keystore(Identity.generate(), (newest, oldest)).write_new(keystore_path)
    assert [key.public for key in keystore.read(keystore_path).encryption_keys] == [
        newest.public,
        oldest.public,
    ]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_new_keystore_is_0600_whatever_the_umask(keystore_path, umask):
    before = os.umask(umask)
    try:
        created_at(keystore_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(keystore_path.stat().st_mode) == 0o600
    keystore.read(keystore_path)


def test_an_existing_keystore_is_never_replaced(keystore_path):
    created_at(keystore_path)
    before = keystore_path.read_bytes()
    with pytest.raises(KeystoreError, match="already a keystore"):
        created_at(keystore_path)
    assert keystore_path.read_bytes() == before
    assert os.listdir(keystore_path.parent) == [keystore_path.name]


def test_a_keystore_takes_its_name_only_when_it_is_whole_and_private(keystore_path, monkeypatch):
    """A crash at any moment leaves no keystore or a whole one: the name appears last, after the sync."""
    steps = []
    fsync, link = os.fsync, os.link

    def recorded_link(source, target):
        steps.append("link")
        assert not keystore_path.exists()
        keystore.read(source)  # whole, and 0600
        link(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "link", recorded_link)
    created_at(keystore_path)
    assert steps == ["fsync", "link", "fsync"]  # the file, its name, the directory


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_full_disk_leaves_neither_a_keystore_nor_scraps_of_one(keystore_path, monkeypatch, call):
    def disk_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, disk_full)
    with pytest.raises(KeystoreError, match="No space left on device"):
        created_at(keystore_path)
    assert os.listdir(keystore_path.parent) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o601, 0o666])
def test_a_keystore_open_to_others_is_refused_with_the_command_that_mends_it(keystore_path, mode):
    created_at(keystore_path)
    keystore_path.chmod(mode)
    with pytest.raises(KeystoreError, match="chmod 600"):
        keystore.read(keystore_path)
    keystore_path.chmod(0o600)
    keystore.read(keystore_path)


def test_a_missing_keystore_is_told_how_to_make_one(keystore_path):
    with pytest.raises(KeystoreError, match="tidings init"):
        keystore.read(keystore_path)


def test_a_keystore_that_is_no_regular_file_neither_loads_nor_hangs(keystore_path):
    keystore_path.mkdir(mode=0o700)
    with pytest.raises(KeystoreError):
        keystore.read(keystore_path)
    keystore_path.rmdir()
    os.mkfifo(keystore_path, 0o600)
    with pytest.raises(KeystoreError, match="not a regular file"):
        keystore.read(keystore_path)


def rewrite(path, data):
    path.write_bytes(data)
    path.chmod(0o600)


def test_a_keystore_of_another_version_asks_for_the_release_that_wrote_it(keystore_path):
    created_at(keystore_path)
    fields = json.loads(keystore_path.read_bytes())
    rewrite(keystore_path, json.dumps(fields | {"version": 5}).encode())
    with pytest.raises(KeystoreError, match="not of version 1 to 4"):
        keystore.read(keystore_path)


def test_a_keystore_with_any_hex_digit_changed_is_refused(keystore_path):
    """Otherwise one flipped digit of the seed would be another node, quietly."""
    created_at(keystore_path)
    data = keystore_path.read_bytes()
    seed_at = data.index(b"identity_seed")
    digits = [at for at in range(seed_at, len(data)) if chr(data[at]) in "0123456789" and at % 3 == 0]
    assert len(digits) > 50
    for at in digits:
        other = b"1" if data[at : at + 1] == b"0" else b"0"
        rewrite(keystore_path, data[:at] + other + data[at + 1 :])
        with pytest.raises(KeystoreError, match="damaged"):
            keystore.read(keystore_path)


def test_a_keystore_cut_short_anywhere_is_refused(keystore_path):
    created_at(keystore_path)
    data = keystore_path.read_bytes()
    for length in range(0, len(data) - 1, 7):
        rewrite(keystore_path, data[:length])
        with pytest.raises(KeystoreError, match="damaged"):
            keystore.read(keystore_path)


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
    "no encryption keys": json.dumps(
        {
            "format": "tidings-keystore",
            "version": 1,
            "identity_seed": "00" * 32,
            "encryption_keys": [],
            "checksum": hashlib.blake2b(bytes(32), digest_size=32, person=keystore.OPEN_PERSON).hexdigest(),
        }
    ).encode(),
}


@pytest.mark.parametrize("data", NOT_KEYSTORES.values(), ids=NOT_KEYSTORES.keys())
def test_a_file_that_is_no_keystore_is_refused(keystore_path, data):
    rewrite(keystore_path, data)
    with pytest.raises(KeystoreError, match="damaged"):
        keystore.read(keystore_path)


def test_an_oversized_keystore_is_not_parsed(keystore_path):
    rewrite(keystore_path, b" " * (keystore.MAX_KEYSTORE_BYTES + 1))
    with pytest.raises(KeystoreError, match="too large"):
        keystore.read(keystore_path)


def test_no_secret_shows_in_a_repr_a_str_or_an_error(keystore_path):
    made = created_at(keystore_path)
    shown = [repr(made), str(made), repr(made.identity), str(made.identity)]
    shown += [repr(made.encryption_keys), str(made.encryption_keys[0])]
    rewrite(keystore_path, keystore_path.read_bytes().replace(b'"checksum"', b'"checksun"'))
    with pytest.raises(CryptoError) as caught:
        keystore.read(keystore_path)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    shown.append(str(caught.value))
    for secret in secrets_of(made):
        for text in shown:
            assert secret.hex()[:8] not in text


# Sealed under a passphrase

PASSPHRASE = "correct horse battery staple"  # noqa: S105


def sealed_at(path, passphrase=PASSPHRASE):
    made = Keystore.generate()
    made.write_new(path, WrappingKey.derive(passphrase, LEAST))
    return made


def giving(passphrase):
    return lambda path: passphrase


def test_a_sealed_keystore_opens_with_its_passphrase_and_tells_its_public_half_without(keystore_path):
    made = sealed_at(keystore_path)
    closed = Keyring(keystore_path)
    assert closed.public_key == made.public_key
    assert closed.encryption_ids == made.encryption_ids
    assert closed.is_protected
    assert Keyring(keystore_path, giving(PASSPHRASE)).open().to_bytes() == made.to_bytes()


def test_a_sealed_keystore_holds_no_secret_in_any_form(keystore_path):
    made = sealed_at(keystore_path)
    text = keystore_path.read_text()
    for secret in secrets_of(made):
        for start in range(0, len(secret) - 16, 8):
            assert secret[start : start + 16].hex() not in text
    assert stat.S_IMODE(keystore_path.stat().st_mode) == 0o600


def test_the_same_secrets_never_seal_to_the_same_bytes(keystore_path):
    made, wrapping = Keystore.generate(), WrappingKey.derive(PASSPHRASE, LEAST)
    one, two = SealedKeystore.seal(made, wrapping), SealedKeystore.seal(made, wrapping)
    assert one.nonce != two.nonce
    assert one.sealed != two.sealed
    assert WrappingKey.derive(PASSPHRASE, LEAST).key != wrapping.key  # another salt


@pytest.mark.parametrize("wrong", ["", "correct horse battery stapl", PASSPHRASE + " ", PASSPHRASE.upper(), "\0"])
def test_a_wrong_passphrase_is_one_sentence_and_changes_nothing(keystore_path, wrong):
    sealed_at(keystore_path)
    before = keystore_path.read_bytes()
    ring = Keyring(keystore_path, giving(wrong))
    for use in (ring.open, ring.add_encryption_key, lambda: ring.set_passphrase(None)):
        with pytest.raises(WrongPassphrase, match="not the passphrase") as caught:
            use()
        assert caught.value.__cause__ is None
    assert keystore_path.read_bytes() == before
    assert os.listdir(keystore_path.parent) == [keystore_path.name]


def test_every_guess_at_a_passphrase_costs_one_derivation(keystore_path, monkeypatch):
    sealed_at(keystore_path)
    costs = []
    derive = keystore.argon2id.kdf
    monkeypatch.setattr(keystore.argon2id, "kdf", lambda *call: (costs.append(call[3:]), derive(*call))[1])
    for guess in ("", "a", PASSPHRASE, "x" * 4000):
        with contextlib.suppress(WrongPassphrase):
            Keyring(keystore_path, giving(guess)).open()
    assert costs == [(LEAST.operations, LEAST.memory_bytes)] * 4


def test_nobody_to_ask_is_told_where_a_passphrase_may_come_from(keystore_path):
    sealed_at(keystore_path)
    with pytest.raises(KeystoreLocked, match=r"--passphrase-file.*TIDINGS_PASSPHRASE.*terminal"):
        Keyring(keystore_path).open()


def test_a_passphrase_typed_in_composed_and_decomposed_letters_is_the_same(keystore_path):
    sealed_at(keystore_path, "sch\u00f6nes Wetter heute")
    Keyring(keystore_path, giving("scho\u0308nes Wetter heute")).open()


def with_cost(sealed, operations, memory_bytes):
    """The file of somebody who can compute checksums."""
    object.__setattr__(sealed, "cost", SimpleNamespace(operations=operations, memory_bytes=memory_bytes))
    return json.dumps(sealed.fields()).encode()


@pytest.mark.parametrize(
    ("operations", "memory_bytes"),
    [(3, 100 << 30), (3, (1 << 30) + 1), (5, 1 << 20), (2**32 - 1, 8192), (0, 8192), (1, 0)],
)
def test_a_file_cannot_ask_for_more_work_than_a_node_spends(keystore_path, operations, memory_bytes):
    sealed = SealedKeystore.seal(Keystore.generate(), WrappingKey.derive(PASSPHRASE, LEAST))
    rewrite(keystore_path, with_cost(sealed, operations, memory_bytes))
    with pytest.raises(KeystoreError, match="damaged"):
        Keyring(keystore_path, giving(PASSPHRASE))


def test_a_sealed_file_with_any_digit_changed_is_damaged_whoever_asks(keystore_path):
    sealed_at(keystore_path)
    data = keystore_path.read_bytes()
    digits = [at for at, byte in enumerate(data) if byte in b"0123456789abcdef"]
    for at in digits[::7]:
        other = b"0" if data[at : at + 1] != b"0" else b"1"
        rewrite(keystore_path, data[:at] + other + data[at + 1 :])
        with pytest.raises(KeystoreError):
            Keyring(keystore_path, giving(PASSPHRASE))
    for length in range(0, len(data) - 1, 41):
        rewrite(keystore_path, data[:length])
        with pytest.raises(KeystoreError, match="damaged"):
            Keyring(keystore_path, giving(PASSPHRASE))


def test_what_a_sealed_file_says_in_the_clear_cannot_be_exchanged(keystore_path):
    """Whoever can write to the disk can make checksums, and not seals."""
    wrapping = WrappingKey.derive(PASSPHRASE, LEAST)
    sealed = SealedKeystore.seal(Keystore.generate(), wrapping)
    other = Keystore.generate()
    for changed in (
        replace(sealed, public_key=other.public_key),
        replace(sealed, encryption_ids=other.encryption_ids),
        replace(sealed, cost=Cost(2, LEAST.memory_bytes)),
        replace(sealed, nonce=bytes(24)),
    ):
        rewrite(keystore_path, json.dumps(changed.fields()).encode())
        with pytest.raises(WrongPassphrase):
            Keyring(keystore_path, giving(PASSPHRASE)).open()


def test_a_file_with_more_keys_than_allowed_is_refused(keystore_path):
    key = EncryptionKey.generate()
    with pytest.raises(CryptoError, match="1 to 1000"):
        Keystore(Identity.generate(), (key,) * (keystore.MAX_ENCRYPTION_KEYS + 1))
    full = Keystore(Identity.generate(), (key,) * keystore.MAX_ENCRYPTION_KEYS)
    for wrapping in (None, WrappingKey.derive(PASSPHRASE, LEAST)):
        full.replace(keystore_path, wrapping)
        assert keystore_path.stat().st_size <= keystore.MAX_KEYSTORE_BYTES
        ring = Keyring(keystore_path, giving(PASSPHRASE))
        with pytest.raises(KeystoreError, match="the most it can"):
            ring.add_encryption_key()


def test_no_secret_of_a_sealed_keystore_shows_in_a_repr_or_an_error(keystore_path):
    made = sealed_at(keystore_path)
    wrapping = WrappingKey.derive(PASSPHRASE, LEAST)
    ring = Keyring(keystore_path, giving(PASSPHRASE))
    ring.open()
    with pytest.raises(WrongPassphrase) as caught:
        Keyring(keystore_path, giving("a wrong passphrase")).open()
    shown = " ".join([repr(ring), repr(wrapping), repr(keystore.read(keystore_path)), str(caught.value)])
    for secret in (*secrets_of(made), wrapping.key):
        assert secret.hex()[:8] not in shown
        assert repr(secret)[2:10] not in shown
    assert "wrong passphrase" not in shown


# In use


def test_a_rotation_by_another_process_is_noticed_without_asking_again(keystore_path):
    sealed_at(keystore_path)
    asked = []
    running = Keyring(keystore_path, lambda path: (asked.append(path), PASSPHRASE)[1])
    assert len(running.encryption_keys) == 1
    newest = Keyring(keystore_path, giving(PASSPHRASE)).add_encryption_key()
    assert running.encryption_keys[0].public == newest.public
    assert len(running.encryption_keys) == 2
    assert len(asked) == 1


def test_an_open_keystore_that_is_sealed_and_opened_again_is_followed(keystore_path):
    created_at(keystore_path)
    running, command = Keyring(keystore_path), Keyring(keystore_path)
    before = running.open().to_bytes()
    command.set_passphrase(PASSPHRASE, LEAST)
    assert running.is_protected
    assert running.open().to_bytes() == before
    command.set_passphrase(None)
    command.add_encryption_key()
    assert not running.is_protected
    assert len(running.encryption_keys) == 2


def test_new_keys_under_a_new_passphrase_need_that_one_and_the_identity_stays(keystore_path):
    sealed_at(keystore_path)
    told = [PASSPHRASE]
    running = Keyring(keystore_path, lambda path: told[0])
    identity = running.open().identity
    command = Keyring(keystore_path, giving(PASSPHRASE))
    command.set_passphrase("another passphrase", LEAST)
    assert len(running.encryption_keys) == 1
    command.add_encryption_key()
    with pytest.raises(KeystoreLocked, match="start the program again"):
        running.open()
    assert running.identity is identity
    told[0] = "another passphrase"  # a service whose file was written again
    assert len(running.encryption_keys) == 2


def test_new_keys_under_a_new_passphrase_whose_file_is_gone_lock_the_keystore_and_no_more(keystore_path):
    sealed_at(keystore_path)
    reachable = [True]

    def ask(path):
        if not reachable:
            raise KeystoreError("The passphrase file FILE cannot be read (No such file or directory).")
        return PASSPHRASE

    running = Keyring(keystore_path, ask)
    running.open()
    reachable.clear()  # as who follows deploy/README.md shreds it
    command = Keyring(keystore_path, giving(PASSPHRASE))
    command.set_passphrase("another passphrase", LEAST)
    command.add_encryption_key()
    with pytest.raises(KeystoreLocked, match="start the program again"):
        running.open()


def test_a_program_that_holds_the_secrets_outlives_the_file(keystore_path):
    sealed_at(keystore_path)
    running = Keyring(keystore_path, giving(PASSPHRASE))
    secrets = running.open().to_bytes()
    for damage in (b"{}", b""):
        rewrite(keystore_path, damage)
        assert running.open().to_bytes() == secrets
    keystore_path.unlink()
    assert running.open().to_bytes() == secrets
    created_at(keystore_path)  # another node's
    assert running.open().to_bytes() == secrets


def test_keys_that_were_handed_over_need_no_passphrase_and_must_be_of_this_node(keystore_path):
    made = sealed_at(keystore_path)
    assert Keyring(keystore_path, opened=Keystore.from_bytes(made.to_bytes())).open().to_bytes() == made.to_bytes()
    with pytest.raises(KeystoreError, match="another node's"):
        Keyring(keystore_path, opened=Keystore.generate())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_passphrase_as_it_was(keystore_path, monkeypatch, call):
    sealed_at(keystore_path)
    before = keystore_path.read_bytes()
    ring = Keyring(keystore_path, giving(PASSPHRASE))
    ring.open()

    def disk_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, disk_full)
    for change in (ring.add_encryption_key, lambda: ring.set_passphrase(None)):
        with pytest.raises(KeystoreError, match="No space left on device"):
            change()
    assert keystore_path.read_bytes() == before
    assert os.listdir(keystore_path.parent) == [keystore_path.name]


def seed_at(path):
    content = keystore.read(path)
    if isinstance(content, SealedKeystore):
        content = content.open(WrappingKey.derive(PASSPHRASE, content.cost, content.salt))
    return content.identity.seed


def change_for_ever(path):
    ring = Keyring(path, giving(PASSPHRASE))
    while True:
        ring.add_encryption_key()
        ring.set_passphrase(None)
        ring.set_passphrase(PASSPHRASE, LEAST)


def test_a_kill_in_the_middle_of_a_change_leaves_a_keystore_that_opens(keystore_path):
    made = sealed_at(keystore_path)
    fork = multiprocessing.get_context("fork")
    for number in range(12):
        process = fork.Process(target=change_for_ever, args=(keystore_path,))
        process.start()
        deadline = time.monotonic() + 0.05 + 0.007 * number
        while time.monotonic() < deadline:  # there is a whole one at every moment
            assert seed_at(keystore_path) == made.identity.seed
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert seed_at(keystore_path) == made.identity.seed
    ring = Keyring(keystore_path, giving(PASSPHRASE))
    assert len(ring.encryption_keys) > 1
    ring.set_passphrase(PASSPHRASE, LEAST)
    assert os.listdir(keystore_path.parent) == [keystore_path.name]  # and no scraps, once the next change is made
