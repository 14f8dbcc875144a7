"""Looking for secrets in bytes, in every form in which one could have been written down by mistake."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

from crypto.keys import DATASET_NAMES_PERSON
from node.home import KEYSTORE_FILE, Home

WINDOW = 16
"""Bytes that must match: half a key would be bad enough, and chance never gives as many."""


def secrets_of(home: Home) -> dict[str, bytes]:
    """The secrets of a home: those of its keystore, those derived from it, and every epoch key that it can unwrap."""
    opened = home.keystore.open()
    found = {"seed": opened.identity.seed, "name key": opened.identity.derive(DATASET_NAMES_PERSON)}
    for number, former in enumerate(opened.former):
        found |= {
            f"former seed {number}": former.seed,
            f"former name key {number}": former.derive(DATASET_NAMES_PERSON),
        }
    for number, key in enumerate(opened.encryption_keys):
        private = key.to_bytes()
        found |= {f"ML-KEM seed {number}": private[:64], f"X25519 key {number}": private[64:]}
    for held in home.store.held():
        home.epochs._unwrap(held.record) if held.record.header.recipient == home.me else None
    found |= {f"epoch key {number}": key for number, key in enumerate(home.epochs._unwrapped.values())}
    if home.keystore._wrapping is not None:
        found["wrapping key"] = home.keystore._wrapping.key
    return found


def forms(secret: bytes) -> Iterator[bytes]:
    """A window of the secret raw, in hexadecimal, base64, base32, and as Python shows bytes and lists of them."""
    window = secret[:WINDOW]
    yield window
    yield window.hex().encode()
    yield window.hex().upper().encode()
    yield base64.b32encode(secret)[:24]
    yield base64.b32encode(secret)[:24].lower()
    for shift in range(3):  # base64 looks different at each of three places in a longer text
        inner = base64.b64encode(bytes(shift) + secret)[4:24]
        yield inner
        yield inner.replace(b"+", b"-").replace(b"/", b"_")
    yield repr(window)[2:-1].encode()
    yield ", ".join(map(str, window)).encode()


def found_in(data: bytes, secrets: dict[str, bytes]) -> list[str]:
    """The names of the secrets that are in these bytes in any form."""
    return [name for name, secret in secrets.items() if any(form in data for form in forms(secret))]


def bytes_of(home: Path, *, but: Iterable[str] = (KEYSTORE_FILE,)) -> bytes:
    """Every byte of every file below a home, write-ahead logs and locks included."""
    left_out = set(but)
    files = sorted(path for path in home.rglob("*") if path.is_file() and path.name not in left_out)
    return b"\0".join(path.read_bytes() for path in files)
