"""Bundle files: the frames of a link in a file, signed by the node that wrote them, open or sealed for one reader.

Follows docs/protocol.md, section "Bundles":

    open     preamble || content
    sealed   preamble || wrapped stream key || stream header || the content, filled up with zeros, in sealed blocks
    content  start || { length (4 bytes) || frame }* || 0 (4 bytes) || signature

A reader holds one frame at a time and checks every length before it allocates anything for it. What ends early is read
as far as it goes: whether the end was met, and whether the signature holds, is known when the last frame was read. A
signature says who put these frames together, nothing about the records in them: they carry signatures of their own.

This module knows no store and no trust, and refuses frames other than Records and Chunk.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from crypto.errors import BadSeal, BadSignature, Malformed, NotForUs
from crypto.keys import PUBLIC_KEY_BYTES, EncryptionKey, Identity, PublicKey
from crypto.sealing import HASH_BYTES, WRAPPED_KEY_BYTES, unwrap_stream_key, wrap_stream_key
from crypto.signing import BUNDLE_LABEL, SIGNATURE_BYTES, sign, verify
from crypto.streams import (
    BLOCK_BYTES,
    SEALED_BLOCK_BYTES,
    STREAM_HEADER_BYTES,
    StreamOpener,
    StreamSealer,
    new_stream_key,
)
from node.config import FRAME_LIMIT_BYTES, MAX_WANT
from node.errors import BundleError, WireError
from node.frames import Chunk, Records, SignedRecord
from node.gossip.compare import FRAME_ROOM_BYTES
from node.records import Record
from node.wire import decode, encode

MAGIC: Final = b"tidings-bundle"
VERSION: Final = 1
PREAMBLE_BYTES: Final = len(MAGIC) + 2
LENGTH_BYTES: Final = 4
NUMBER_BYTES: Final = 8
START_BYTES: Final = 2 * PUBLIC_KEY_BYTES + 2 * NUMBER_BYTES
DIGEST_PERSON: Final = b"tidings-bndl-v1"


class Form(enum.IntEnum):
    """The last byte of the preamble."""

    OPEN = 0
    SEALED = 1


class Ending(enum.StrEnum):
    """How far a bundle could be read."""

    WHOLE = "whole"
    CUT = "ends early"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Start:
    """What a bundle says first: who wrote it, for whom it is sealed if it is, when, and how many records it set out to
    hold. `exporter` is None where the bytes are no key."""

    exporter: PublicKey | None
    recipient: PublicKey | None
    created_unix_ms: int
    records: int


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom a bundle is sealed for: its identity, and the encryption key of its key card."""

    key: PublicKey
    encryption_public: bytes


class BundleWriter:
    """Writes one bundle, front to back."""

    def __init__(
        self, file: IO[bytes], identity: Identity, recipient: Recipient | None, created_unix_ms: int, records: int
    ) -> None:
        self._identity = identity
        self._waiting: list[SignedRecord] = []
        self._waiting_bytes = 0
        preamble = MAGIC + bytes([VERSION, Form.SEALED if recipient else Form.OPEN])
        file.write(preamble)
        self._out: _OpenOut | _SealedOut = _SealedOut(file, recipient) if recipient else _OpenOut(file)
        self._hash = _new_hash(preamble)
        to = recipient.key.raw if recipient else bytes(PUBLIC_KEY_BYTES)
        numbers = (created_unix_ms, records)
        self._put(identity.public_key.raw + to + b"".join(number.to_bytes(NUMBER_BYTES, "big") for number in numbers))

    def record(self, record: Record) -> None:
        """The next header. Several without a body share a frame."""
        size = len(record.header_bytes) + len(record.signature)
        if self._waiting and (self._waiting_bytes + size > FRAME_ROOM_BYTES or len(self._waiting) == MAX_WANT):
            self._flush()
        self._waiting.append(SignedRecord(record.header_bytes, record.signature))
        self._waiting_bytes += size

    def chunk(self, record_id: bytes, index: int, data: bytes) -> None:
        """A chunk of the record that came last."""
        self._flush()
        self._frame(Chunk(record_id, index, data))

    def finish(self) -> None:
        """Say that this was all, and sign it."""
        self._flush()
        self._put(bytes(LENGTH_BYTES))
        self._out.write(sign(self._identity, BUNDLE_LABEL, self._hash.digest()))
        self._out.close()

    def _flush(self) -> None:
        if self._waiting:
            self._frame(Records(tuple(self._waiting)))
            self._waiting, self._waiting_bytes = [], 0

    def _frame(self, frame: Records | Chunk) -> None:
        data = encode(frame)
        self._put(len(data).to_bytes(LENGTH_BYTES, "big") + data)

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._out.write(data)


class BundleReader:
    """Reads one bundle once, from its beginning; BundleError where it is none, or none for this node."""

    def __init__(self, file: IO[bytes], path: Path, me: PublicKey, keys: Sequence[EncryptionKey]) -> None:
        file.seek(0)
        form, preamble = _read_preamble(file, path)
        self._source: _OpenSource | _SealedSource = (
            _OpenSource(file) if form is Form.OPEN else _SealedSource(file, _unseal(file, path, me, keys))
        )
        self._file = file
        self._hash = _new_hash(preamble)
        self.is_sealed = form is Form.SEALED
        try:
            self.start = _read_start(self._take(START_BYTES))
        except _EndedError:
            raise BundleError(f"{path} ends before its first record: ask for the bundle again.") from None
        #: Known when `frames` has come to its end.
        self.ending = Ending.CUT
        #: Whether `start.exporter` signed everything that was read, and wrote it for this node or for anybody.
        self.is_signed = False
        self._is_for_us = self.start.recipient == (me if self.is_sealed else None)

    @property
    def bytes_read(self) -> int:
        """How far the file was read."""
        return self._file.tell()

    @property
    def digest(self) -> bytes:
        """The hash of what was read so far."""
        return self._hash.digest()

    def frames(self) -> Iterator[Records | Chunk | WireError]:
        """The frames in order, an error in the place of one that is malformed; frames of unknown kinds are skipped."""
        try:
            while size := int.from_bytes(self._take(LENGTH_BYTES), "big"):
                if size > FRAME_LIMIT_BYTES:
                    raise _EndedError(Ending.DAMAGED)
                frame = _read_frame(self._take(size))
                if frame is not None:
                    yield frame
            digest = self._hash.digest()
            signature = self._take(SIGNATURE_BYTES)
            self.ending = self._source.ending()
        except _EndedError as ended:
            self.ending = ended.ending
        else:
            self.is_signed = self.ending is Ending.WHOLE and self._is_for_us and self._verifies(digest, signature)

    def _verifies(self, digest: bytes, signature: bytes) -> bool:
        if self.start.exporter is None:
            return False
        try:
            verify(self.start.exporter, BUNDLE_LABEL, digest, signature)
        except BadSignature:
            return False
        return True

    def _take(self, size: int) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        return data


def is_bundle(path: Path) -> bool:
    """Whether a file begins as a bundle does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


# ------------------------------------------------------------------------------------------------------------- writing


class _OpenOut:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def close(self) -> None:
        """Nothing follows the content."""


class _SealedOut:
    """Collects blocks and seals them under a fresh key."""

    def __init__(self, file: IO[bytes], recipient: Recipient) -> None:
        key = new_stream_key()
        self._file = file
        self._sealer = StreamSealer(key)
        self._waiting = bytearray()
        wrapped = wrap_stream_key(key, recipient.encryption_public, context=recipient.key.raw)
        file.write(wrapped + self._sealer.header)

    def write(self, data: bytes) -> None:
        self._waiting += data
        while len(self._waiting) > BLOCK_BYTES:  # a full block may be the last one
            self._seal(bytes(self._waiting[:BLOCK_BYTES]), is_last=False)
            del self._waiting[:BLOCK_BYTES]

    def close(self) -> None:
        self._seal(bytes(self._waiting), is_last=True)

    def _seal(self, block: bytes, *, is_last: bool) -> None:
        self._file.write(self._sealer.seal(block, is_last=is_last))


# ------------------------------------------------------------------------------------------------------------- reading


class _EndedError(Exception):
    """Nothing more can be read."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


class _OpenSource:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise _EndedError(Ending.CUT)
        return data

    def ending(self) -> Ending:
        return Ending.DAMAGED if self._file.read(1) else Ending.WHOLE


class _SealedSource:
    def __init__(self, file: IO[bytes], key: bytes) -> None:
        self._file = file
        header = file.read(STREAM_HEADER_BYTES)
        self._opener = StreamOpener(key, header) if len(header) == STREAM_HEADER_BYTES else None
        self._block = b""
        self._at = 0
        self._was_last = False

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            if self._at == len(self._block):
                self._next_block()
            parts.append(self._block[self._at : self._at + size])
            self._at += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def ending(self) -> Ending:
        is_end = self._was_last and not self._file.read(1)
        return Ending.WHOLE if is_end and not any(self._block[self._at :]) else Ending.DAMAGED

    def _next_block(self) -> None:
        sealed = self._file.read(SEALED_BLOCK_BYTES)
        if self._opener is None or (len(sealed) < SEALED_BLOCK_BYTES and not self._was_last):
            raise _EndedError(Ending.CUT)
        if self._was_last:
            raise _EndedError(Ending.DAMAGED)
        try:
            self._block, self._was_last = self._opener.open(sealed)
        except BadSeal:
            raise _EndedError(Ending.DAMAGED) from None
        self._at = 0


def _read_preamble(file: IO[bytes], path: Path) -> tuple[Form, bytes]:
    preamble = file.read(PREAMBLE_BYTES)
    if len(preamble) < PREAMBLE_BYTES or not preamble.startswith(MAGIC):
        raise BundleError(f"{path} is not a bundle: give the file that `tidings bundle export` wrote.")
    version, form = preamble[-2:]
    if version != VERSION or form not in list(Form):
        raise BundleError(f"{path} was written by another version of Tidings: use that one.")
    return Form(form), preamble


def _unseal(file: IO[bytes], path: Path, me: PublicKey, keys: Sequence[EncryptionKey]) -> bytes:
    """The stream key, with whichever of our keys opens it."""
    wrapped = file.read(WRAPPED_KEY_BYTES)
    if len(wrapped) < WRAPPED_KEY_BYTES:
        raise BundleError(f"{path} ends before its first record: ask for the bundle again.")
    for key in keys:
        try:
            return unwrap_stream_key(wrapped, key, context=me.raw)
        except NotForUs:
            continue
    raise BundleError(
        f"{path} is sealed for another node, or damaged: ask for one made with `--for` and this node's key."
    )


def _read_start(data: bytes) -> Start:
    exporter, to = data[:PUBLIC_KEY_BYTES], data[PUBLIC_KEY_BYTES : 2 * PUBLIC_KEY_BYTES]
    created, records = data[-2 * NUMBER_BYTES : -NUMBER_BYTES], data[-NUMBER_BYTES:]
    return Start(_public_key(exporter), _public_key(to), int.from_bytes(created, "big"), int.from_bytes(records, "big"))


def _public_key(raw: bytes) -> PublicKey | None:
    try:
        return PublicKey(raw)
    except Malformed:
        return None


def _read_frame(data: bytes) -> Records | Chunk | WireError | None:
    try:
        frame = decode(data)
    except WireError as error:
        return error
    if frame is None or isinstance(frame, Records | Chunk):
        return frame
    return WireError("A bundle holds records and chunks, and no other frames.")


def _new_hash(preamble: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(preamble, digest_size=HASH_BYTES, person=DIGEST_PERSON)
