"""Streams: a long message sealed block by block under a key of its own, so that neither side holds more than a block.

libsodium's secretstream (XChaCha20-Poly1305): every block is bound to the ones before it, and the last one is tagged as
the last. So a reader notices blocks that are changed, left out, repeated or reordered when it meets the first of them,
and a stream that was cut off by the absence of its end. Every block has the same size, the last one is filled up with
zeros: what a finder sees of the length is the number of blocks.

What this module is not: it does not say who sealed a stream. Give every stream a fresh key (`sealing.wrap_stream_key`).
"""

from __future__ import annotations

import secrets
from typing import Final

import nacl.exceptions
from nacl.bindings import (
    crypto_secretstream_xchacha20poly1305_ABYTES,
    crypto_secretstream_xchacha20poly1305_HEADERBYTES,
    crypto_secretstream_xchacha20poly1305_init_pull,
    crypto_secretstream_xchacha20poly1305_init_push,
    crypto_secretstream_xchacha20poly1305_pull,
    crypto_secretstream_xchacha20poly1305_push,
    crypto_secretstream_xchacha20poly1305_state,
    crypto_secretstream_xchacha20poly1305_TAG_FINAL,
    crypto_secretstream_xchacha20poly1305_TAG_MESSAGE,
)

from crypto.errors import BadSeal
from crypto.sealing import KEY_BYTES

STREAM_HEADER_BYTES: Final = crypto_secretstream_xchacha20poly1305_HEADERBYTES
BLOCK_BYTES: Final = 64 * 1024
SEALED_BLOCK_BYTES: Final = BLOCK_BYTES + crypto_secretstream_xchacha20poly1305_ABYTES


def new_stream_key() -> bytes:
    """32 fresh random bytes."""
    return secrets.token_bytes(KEY_BYTES)


class StreamSealer:
    """Seals one stream. `header` goes before the first block."""

    def __init__(self, key: bytes) -> None:
        self._state = crypto_secretstream_xchacha20poly1305_state()
        #: 24 bytes that whoever opens the stream needs.
        self.header: bytes = crypto_secretstream_xchacha20poly1305_init_push(self._state, key)

    def seal(self, block: bytes, *, is_last: bool) -> bytes:
        """`SEALED_BLOCK_BYTES` for the next block; only the last one may be shorter than `BLOCK_BYTES`."""
        if len(block) > BLOCK_BYTES or (len(block) < BLOCK_BYTES and not is_last):
            raise ValueError(f"a block has {BLOCK_BYTES} bytes, the last one at most")
        tag = (
            crypto_secretstream_xchacha20poly1305_TAG_FINAL
            if is_last
            else crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
        )
        return crypto_secretstream_xchacha20poly1305_push(self._state, block.ljust(BLOCK_BYTES, b"\0"), None, tag)


class StreamOpener:
    """Opens one stream."""

    def __init__(self, key: bytes, header: bytes) -> None:
        self._state = crypto_secretstream_xchacha20poly1305_state()
        crypto_secretstream_xchacha20poly1305_init_pull(self._state, header, key)

    def open(self, sealed: bytes) -> tuple[bytes, bool]:
        """The next block, filled up with zeros if it is the last, and whether it is; BadSeal if it is not the next
        block of this stream."""
        if len(sealed) != SEALED_BLOCK_BYTES:
            raise BadSeal("This block is cut off: nothing after it can be read.")
        try:
            block, tag = crypto_secretstream_xchacha20poly1305_pull(self._state, sealed)
        except nacl.exceptions.CryptoError:
            raise BadSeal("This block was changed or is not the next one: nothing after it can be read.") from None
        return block, tag == crypto_secretstream_xchacha20poly1305_TAG_FINAL
