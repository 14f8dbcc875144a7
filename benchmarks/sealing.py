"""P2: sealing and opening a 1 MB body, as a ratio of what libsodium's AEAD alone takes for the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt as aead_decrypt,
)
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_encrypt as aead_encrypt,
)

from crypto.keys import Identity
from crypto.sealing import chunk_hashes, content_key, key_commitment, new_epoch_key, open_sealed, seal
from crypto.signing import Statement, record_id, sign_record, verify_record

BODY_BYTES = 1_000_000
RUNS = 41


def statement(header: bytes) -> Statement:
    """What is signed of a summary with this header."""
    return Statement("summary", bytes(8), 1, b"", record_id(header))


def run(_out: Path) -> str:
    """The section of RESULTS.md; it takes a second, so that there is nothing quicker."""
    identity, epoch_key, body, core = Identity.generate(), new_epoch_key(), bytes(BODY_BYTES), b"core" * 30
    nonce, header = bytes(24), bytes(700)
    raw = aead_encrypt(body, core, nonce, epoch_key)
    key = content_key(epoch_key, core)
    commitment, sealed = key_commitment(key), seal(body, key, core)
    signature = sign_record(identity, statement(header))

    def seal_and_sign() -> None:
        made = content_key(epoch_key, core)
        key_commitment(made)
        seal(body, made, core)
        sign_record(identity, statement(header))

    def open_and_verify() -> None:
        verify_record(identity.public_key, statement(header), signature)
        open_sealed(sealed, content_key(epoch_key, core), core, commitment)

    rows = []
    for name, ours, peer in (
        ("seal + sign", seal_and_sign, lambda: aead_encrypt(body, core, nonce, epoch_key)),
        ("open + verify", open_and_verify, lambda: aead_decrypt(raw, core, nonce, epoch_key)),
    ):
        ours_s, peer_s = _paired(ours, peer)
        speed = BODY_BYTES / peer_s / 1e6
        rows.append(
            f"| {name} | {1e3 * ours_s:.2f} ms | {1e3 * peer_s:.2f} ms ({speed:.0f} MB/s) | {peer_s / ours_s:.0%} |"
        )
    hashing_s, _ = _paired(lambda: chunk_hashes(body, 65_536), lambda: None)
    return (
        "## P2: sealing a 1 MB body\n\n"
        "| what | ours | libsodium's AEAD alone | speed against it |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n\n"
        f"Medians of {RUNS} alternating runs; target at least 80 %. Hashing the chunks, which authoring and every hop "
        f"do as well, takes {1e3 * hashing_s:.2f} ms more.\n"
    )


quick = run


def _paired(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of each, run in turn so that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for taken, call in zip(times, (ours, peer), strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return median(times[0]), median(times[1])
