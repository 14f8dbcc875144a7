"""Golden vectors of the crypto package: fixed bytes that every release must reproduce or still open.

A test here that fails means that old records, keys or files can no longer be read: change the code, never
the vector.
"""

import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crypto import keystore, sealing, signing, tls
from crypto.keys import EncryptionKey, Identity, PublicKey

VECTORS = Path(__file__).parent / "vectors" / "crypto"


def vector(name: str) -> dict[str, str]:
    return json.loads((VECTORS / f"{name}.json").read_text())


def unhex(fields: dict[str, str], *names: str) -> list[bytes]:
    return [bytes.fromhex(fields[name]) for name in names]


def test_the_text_form_of_a_key_stays_as_it_is():
    fields = vector("key-text-form")
    seed, public_key = unhex(fields, "seed", "public_key")
    assert Identity.from_seed(seed).public_key.raw == public_key
    assert PublicKey(public_key).text == fields["text"]
    assert PublicKey.parse(fields["text"]).raw == public_key


def test_the_record_id_stays_as_it_is():
    header, expected = unhex(vector("record-id"), "header", "record_id")
    assert signing.record_id(header) == expected


def test_the_record_signature_stays_as_it_is_and_a_second_library_agrees():
    fields = vector("record-signature")
    names = ("seed", "incarnation", "supersedes", "record_id", "signature")
    seed, incarnation, supersedes, record_id, expected = unhex(fields, *names)
    identity, sequence = Identity.from_seed(seed), int(fields["sequence"])
    statement = signing.Statement(fields["kind"], incarnation, sequence, supersedes, record_id)
    assert signing.sign_record(identity, statement) == expected
    message = incarnation + sequence.to_bytes(8, "big") + supersedes + record_id
    label = b"tidings/v1/record/" + fields["kind"].encode() + b"\0"
    assert Ed25519PrivateKey.from_private_bytes(seed).sign(label + message) == expected


def test_the_content_key_stays_as_it_is():
    epoch_key, core, expected = unhex(vector("content-key"), "epoch_key", "core", "content_key")
    assert sealing.content_key(epoch_key, core) == expected
    core_hash = hashlib.blake2b(core, digest_size=32, person=b"tidings-core-v1").digest()
    second_route = hashlib.blake2b(core_hash, digest_size=32, key=epoch_key, person=b"tidings-ckey-v1")
    assert second_route.digest() == expected


def test_the_key_commitment_stays_as_it_is():
    content_key, expected = unhex(vector("key-commitment"), "content_key", "commitment")
    assert sealing.key_commitment(content_key) == expected


def test_the_chunk_hashes_stay_as_they_are():
    fields = vector("chunk-hash")
    hashes = sealing.chunk_hashes(bytes.fromhex(fields["body"]), fields["chunk_bytes"])
    assert [digest.hex() for digest in hashes] == fields["chunk_hashes"]


def test_the_name_in_a_leaf_certificate_stays_as_it_is():
    fields = vector("leaf-san")
    assert tls.server_name(PublicKey(bytes.fromhex(fields["public_key"]))) == fields["server_name"]


def test_a_body_sealed_by_an_earlier_release_still_opens():
    names = ("sealed", "content_key", "core", "commitment", "plaintext")
    sealed, content_key, core, commitment, plaintext = unhex(vector("sealed-body"), *names)
    assert sealing.open_sealed(sealed, content_key, core, commitment) == plaintext


def test_an_epoch_key_wrapped_by_an_earlier_release_still_unwraps():
    names = ("encryption_key", "encryption_public", "context", "epoch_key", "wrapped")
    private, public, context, epoch_key, wrapped = unhex(vector("wrapped-epoch-key"), *names)
    encryption_key = EncryptionKey.from_bytes(private)
    assert encryption_key.public == public
    assert sealing.unwrap_epoch_key(wrapped, encryption_key, context=context) == epoch_key


def test_an_open_keystore_written_by_an_earlier_release_still_loads(tmp_path):
    fields = vector("keystore-v1")
    loaded = keystore.Keyring(written(tmp_path / "keystore.json", fields["file"])).open()
    assert loaded.public_key.text == fields["public_key"]
    assert [key.public.hex() for key in loaded.encryption_keys] == [fields["encryption_public"]]


def test_a_sealed_keystore_written_by_an_earlier_release_still_opens(tmp_path):
    fields = vector("keystore-v2")
    ring = keystore.Keyring(written(tmp_path / "keystore.json", fields["file"]), lambda _: fields["passphrase"])
    assert ring.public_key.text == fields["public_key"]
    loaded = ring.open()
    assert loaded.identity.seed.hex() == fields["identity_seed"]
    assert [key.public.hex() for key in loaded.encryption_keys] == [fields["encryption_public"]]
    assert [one.hex() for one in ring.encryption_ids] == [fields["encryption_id"]]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_every_vector_says_what_it_is_and_no_vector_is_forgotten():
    source = Path(__file__).read_text()
    for path in sorted(VECTORS.glob("*.json")):
        assert json.loads(path.read_text())["comment"], path.name
        assert f'vector("{path.stem}")' in source, f"no test reads {path.name}"
