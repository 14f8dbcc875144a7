"""Keys, seals, certificates, and the small files of a home."""

from __future__ import annotations

import json

from crypto import keystore, tls
from crypto.recovery import RecoveryKey
from crypto.sealing import wrap_epoch_key
from tests.door_mutators import pem
from tests.doors import (
    certificate_of,
    content_key,
    encryption_key,
    identity,
    keystore_checksum,
    sealed_body,
    sealed_under,
)
from tests.vector_cases import Cases

KEY = identity().public_key


def _key_texts() -> Cases:
    text = KEY.text
    return {
        "good": (text.encode(), ""),
        "good-in-upper-case-and-lines": (f"{text[:20].upper()}\n {text[20:]}".encode(), ""),
        "another-prefix": (text.replace("tidings1", "tidings2").encode(), "starts with 'tidings1'"),
        "cut-off": (text[:-1].encode(), "has 66 characters and this one has 65"),
        "a-letter-that-no-key-has": ((text[:-1] + "!").encode(), "character that no key has"),
        "a-letter-beyond-ascii": ((text[:-1] + "é").encode(), "character that no key has"),
        "mistyped": ((text[:20] + ("a" if text[20] != "a" else "b") + text[21:]).encode(), "checksum"),
        "stray-bits": ((text[:-1] + chr(ord(text[-1]) + 1)).encode(), "checksum"),
        "a-point-off-the-curve": (_text_of(b"\2" + bytes(31)), "not a valid Ed25519 public key"),
        "a-point-of-small-order": (_text_of(bytes(32)), "not a valid Ed25519 public key"),
        "a-point-that-is-not-canonical": (_text_of(b"\xee" + b"\xff" * 30 + b"\x7f"), "not a valid Ed25519 public key"),
        "nothing": (b"", "starts with 'tidings1'"),
    }


def _text_of(raw: bytes) -> bytes:
    from crypto.keys import TEXT_FORM

    return TEXT_FORM.write(raw).encode()


def _recovery_keys() -> Cases:
    text = RecoveryKey(bytes(range(32))).text
    return {
        "good": (text.encode(), ""),
        "a-public-key": (KEY.text.encode(), "starts with 'tidings-recovery1'"),
        "cut-off": (text[:-1].encode(), "has 75 characters and this one has 74"),
        "a-letter-that-no-key-has": ((text[:-1] + "!").encode(), "character that no key has"),
        "mistyped": ((text[:20] + ("a" if text[20] != "a" else "b") + text[21:]).encode(), "checksum"),
        "nothing": (b"", "starts with 'tidings-recovery1'"),
    }


def _sealed() -> Cases:
    good = sealed_body(b"what nobody else may read")
    return {
        "good": (good, ""),
        "good-empty": (sealed_body(b""), ""),
        "another-commitment": (bytes(32) + good[32:], "committed to another key"),
        "too-short": (good[:32] + good[32 : 32 + 39], "too short to be one"),
        "cut-off": (good[:-1], "was changed or belongs to another record"),
        "one-bit-flipped": (good[:-1] + bytes([good[-1] ^ 1]), "was changed or belongs to another record"),
        "another-nonce": (good[:32] + b"\1" + good[33:], "was changed or belongs to another record"),
        "of-another-record": (sealed_under(b"x", content_key(), b"another core"), "belongs to another record"),
    }


def _wrapped() -> Cases:
    good = _golden_wrapped()
    return {
        "good": (good, ""),
        "a-byte-short": (good[:-1], "1168 bytes"),
        "a-byte-long": (good + b"\0", "1168 bytes"),
        "one-bit-flipped": (good[:-1] + bytes([good[-1] ^ 1]), "wrapped for another key"),
        "zeros": (bytes(1168), "wrapped for another key"),
    }


def _golden_wrapped() -> bytes:
    """The one that is there; wrapping draws its randomness anew."""
    from tests.vector_files import VECTORS, read

    path = VECTORS / "wrapped-key" / "good.json"
    return read(path).data if path.exists() else wrap_epoch_key(bytes(32), encryption_key().public, context=b"vector")


def _keystores() -> Cases:
    ours = keystore.Keystore(identity(), (encryption_key(),))
    opened = ours._open_fields()
    with_former = keystore.Keystore(identity(), (encryption_key(),), (identity(8),))._open_fields()
    wrapping = keystore.WrappingKey(bytes(16), keystore.LEAST, bytes(32))
    fixed = keystore.SealedKeystore(KEY, ours.encryption_ids, wrapping.cost, bytes(16), bytes(24), bytes(144))
    sealed = fixed.fields()

    def v1(**changes: object) -> bytes:
        return json.dumps(opened | changes).encode()

    def v2(*, checked: bool = True, **changes: object) -> bytes:
        fields = sealed | changes
        return json.dumps(fields | ({"checksum": keystore_checksum(fields)} if checked else {})).encode()

    def protection(**changes: object) -> dict[str, object]:
        return sealed["protection"] | changes

    damaged = "is damaged: restore it from its backup"
    return {
        "good-open": (v1(), ""),
        "good-sealed": (v2(), ""),
        "not-json": (b"{", damaged),
        "not-utf-8": (b'"\xff"', damaged),
        "a-list": (b"[]", damaged),
        "nested-deeply": (b"[" * 100_000, damaged),
        "too-large": (b" " * (keystore.MAX_KEYSTORE_BYTES + 1), "too large to be one"),
        "another-format": (v1(format="keys"), damaged),
        "a-version-from-the-future": (v1(version=9), "not of version"),
        "a-flipped-digit": (v1(identity_seed="08" + opened["identity_seed"][2:]), damaged),
        "a-short-seed": (v1(identity_seed="07"), damaged),
        "a-seed-of-odd-letters": (v1(identity_seed="xy" * 32), damaged),
        "no-encryption-key": (v1(encryption_keys=[]), damaged),
        "a-short-encryption-key": (v1(encryption_keys=["00"]), damaged),
        "encryption-keys-that-are-a-number": (v1(encryption_keys=5), damaged),
        "good-with-a-former-identity": (json.dumps(with_former).encode(), ""),
        "no-former-identity-where-there-must-be": (json.dumps(with_former | {"former_seeds": []}).encode(), damaged),
        "former-identities-that-are-a-number": (json.dumps(with_former | {"former_seeds": 5}).encode(), damaged),
        "sealed-with-a-public-key-that-is-a-number": (v2(checked=False, public_key=5), damaged),
        "sealed-with-a-mistyped-public-key": (v2(checked=False, public_key=KEY.text[:-1] + "a"), damaged),
        "sealed-with-another-derivation": (v2(protection=protection(kdf="scrypt")), damaged),
        "sealed-at-a-cost-of-terabytes": (v2(protection=protection(memory_bytes=2**40)), damaged),
        "sealed-at-a-thousand-passes": (v2(protection=protection(operations=1_000)), damaged),
        "sealed-at-half-a-pass": (v2(checked=False, protection=protection(operations=1.5)), damaged),
        "sealed-with-a-short-salt": (v2(protection=protection(salt="00")), damaged),
        "sealed-with-a-short-nonce": (v2(nonce="00"), damaged),
        "sealed-with-an-id-too-many": (v2(encryption_key_ids=sealed["encryption_key_ids"] * 2), damaged),
        "sealed-with-a-wrong-checksum": (v2(checked=False, checksum="00" * 32), damaged),
    }


def _handed() -> Cases:
    ours = keystore.Keystore(identity(), (encryption_key(),)).to_bytes()
    start, key = ours[:32], ours[32:]
    many = bytes([keystore.MAX_FORMER + 1]) + bytes(32) * (keystore.MAX_FORMER + 2) + key
    return {
        "good": (ours, ""),
        "good-with-a-former-identity": (
            keystore.Keystore(identity(), (encryption_key(),), (identity(8),)).to_bytes(),
            "",
        ),
        "no-former-identity-where-one-is-counted": (b"\0" + ours, "counts no former identity"),
        "nothing": (b"", "identity seed is exactly 32 bytes"),
        "no-encryption-key": (start, "1 to 1000 encryption keys"),
        "cut-off": (ours[:-1], "encryption key is exactly 96 bytes"),
        "too-many-keys": (start + key * 1_001, "1 to 1000 encryption keys"),
        "too-many-former-identities": (many, "former identities"),
    }


def _settings() -> Cases:
    unreadable, quotas = "is not readable", "quotas multiplies each quota"
    return {
        "good": (b'{"name": "alpha", "listen": null}', ""),
        "good-with-an-address": (b'{"name": "alpha", "listen": "127.0.0.1:7410"}', ""),
        "not-json": (b"{", unreadable),
        "not-utf-8": (b'"\xff"', unreadable),
        "nested-deeply": (b"[" * 50_000, unreadable),
        "too-large": (b" " * 70_000, unreadable),
        "a-list": (b"[]", unreadable),
        "no-address": (b'{"name": "alpha"}', unreadable),
        "a-name-that-is-a-number": (b'{"name": 5, "listen": null}', unreadable),
        "an-address-that-is-a-number": (b'{"name": "alpha", "listen": 7410}', unreadable),
        "a-name-that-garbles-a-terminal": (b'{"name": "\\u001b[2J", "listen": null}', "1 to 64 printable characters"),
        "a-name-that-looks-like-a-key": (b'{"name": "tidings1abc", "listen": null}', "must not look like a key"),
        "good-with-quotas": (b'{"name": "alpha", "listen": null, "quotas": 10}', ""),
        "quotas-of-nothing": (b'{"name": "alpha", "listen": null, "quotas": 0}', quotas),
        "quotas-that-are-true": (b'{"name": "alpha", "listen": null, "quotas": true}', quotas),
        "quotas-beyond-all-numbers": (b'{"name": "alpha", "listen": null, "quotas": 1' + b"0" * 400 + b"}", quotas),
        "an-address-without-a-port": (b'{"name": "alpha", "listen": "localhost"}', "is not an address"),
    }


def _passphrases() -> Cases:
    return {
        "good": (b"five words drawn by chance\n", ""),
        "good-of-windows": (b"five words drawn by chance\r\n", ""),
        "empty": (b"", "is empty"),
        "a-newline-alone": (b"\n", "is empty"),
        "not-utf-8": (b"\xff\xfe", "is not text"),
        "too-large": (b"x" * 4_097, "too large to be one"),
    }


def _addresses() -> Cases:
    cases: Cases = {
        "good": (b"node.example:7410", ""),
        "good-ipv6": (b"[::1]:7410", ""),
        "good-link-local": (b"[fe80::1%eth0]:7410", ""),
    }
    for name, text in {
        "no-port": "node.example",
        "a-port-beyond-65535": "node.example:65536",
        "a-port-of-thousands-of-digits": "node.example:" + "9" * 5_000,
        "a-port-of-other-digits": "node.example:٧٤١٠",
        "no-host": ":7410",
        "a-scheme": "http://node.example:7410",
        "ipv6-without-brackets": "::1:7410x",
        "ipv6-that-is-none": "[zz]:7410",
        "a-host-with-a-zero-byte": "a\0b:7410",
        "a-host-of-300-letters": "a" * 300 + ":7410",
    }.items():
        cases[name] = (text.encode(), "is not an address")
    return cases


def _certificates() -> Cases:
    leaf = _golden_leaf()
    tbs = _tbs_of(leaf)
    unread, form = "cannot be read", "names nobody in a form we know"
    name = tls.server_name(KEY).encode()
    san = bytes([0x82, len(name)]) + name
    short = tbs.replace(name, b"x" * len(name))
    other = tbs.replace(name, tls.server_name(identity(8).public_key).encode())
    off_curve = tbs.replace(name, b"02" + b"0" * 30 + b"." + b"0" * 32)
    return {
        "good": (leaf, ""),
        "nothing": (b"", unread),
        "too-large": (leaf + b" " * tls.MAX_CERTIFICATE_BYTES, "too large to be one of ours"),
        "two-of-them": (leaf + leaf, "several certificates"),
        "garbage-inside": (pem(lambda der_, *_: b"\x30\x03\x02\x01")(leaf, bytes, None), unread),  # type: ignore[arg-type]
        "of-another-version": (
            _pem_of(certificate_of(tbs.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"))),
            unread,
        ),
        "another-name": (_pem_of(certificate_of(short)), "does not name an identity key"),
        "a-name-that-is-no-point": (_pem_of(certificate_of(off_curve)), "not a valid Ed25519 public key"),
        "an-address-for-a-name": (
            _pem_of(certificate_of(tbs.replace(san, b"\x86" + san[1:]))),
            "one DNS name and no other",
        ),
        "no-name": (_pem_of(certificate_of(tbs.replace(b"\x06\x03\x55\x1d\x11", b"\x06\x03\x55\x1d\x12"))), form),
        "signed-by-another": (_pem_of(certificate_of(other)), "another key signed it"),
        "one-bit-flipped": (_pem_of(_flipped(_der_of(leaf))), "another key signed it"),
    }


def _golden_leaf() -> bytes:
    """The one that is there: its key is drawn anew whenever one is made."""
    from tests.vector_files import VECTORS, read

    path = VECTORS / "certificate" / "good.json"
    return read(path).data if path.exists() else tls.make_leaf(identity()).certificate_pem


def _der_of(text: bytes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_certificate(text).public_bytes(Encoding.DER)


def _pem_of(der_: bytes) -> bytes:
    return pem(lambda *_: der_)(b"", bytes, None)  # type: ignore[arg-type]


def _tbs_of(text: bytes) -> bytes:
    from cryptography import x509

    return x509.load_pem_x509_certificate(text).tbs_certificate_bytes


def _flipped(der_: bytes) -> bytes:
    return der_[:-1] + bytes([der_[-1] ^ 1])


CASES: dict[str, Cases] = {
    "key-text": _key_texts(),
    "recovery-key": _recovery_keys(),
    "sealed-body": _sealed(),
    "wrapped-key": _wrapped(),
    "keystore": _keystores(),
    "handed-keys": _handed(),
    "node-settings": _settings(),
    "passphrase-file": _passphrases(),
    "address": _addresses(),
    "certificate": _certificates(),
}
