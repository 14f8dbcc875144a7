"""Frames: what two linked nodes say to each other. proto/tidings.proto says what each one means and its limits.

Frozen values between `wire` (bytes) and `gossip` (decisions). A frame that came out of `wire` is within its
limits and its fields have their lengths; whether what it claims is true is for the core to find out.
Origins are raw 32-byte keys here: most of them are only looked up.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame each way. `clock_unix_ms` is what the sender's clock shows, any number; 0 if it does not say."""

    version: int
    store_id: bytes
    clock_unix_ms: int = 0


@dataclass(frozen=True, slots=True)
class Digest:
    """The digest of everything the sender has settled, and perhaps an earlier one of its own."""

    root: bytes
    common: bytes = b""


@dataclass(frozen=True, slots=True)
class Origins:
    """Origins of which the sender has settled records, each with their digest: all of them, or all in the ranges of
    `prefixes`, or all that changed since the sender had the root `common`."""

    digests: tuple[tuple[bytes, bytes], ...]
    prefixes: tuple[str, ...] = ()
    common: bytes = b""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of the key space of origins, and the digests of its sixteen sub-ranges; empty ones have nothing."""

    prefix: str
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Spans:
    """Ranges by ascending prefix, none within another."""

    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class OriginVector:
    """What is settled of one origin: per incarnation, ascending (first, last) ranges that do not touch."""

    origin: bytes
    digest: bytes
    ranges: tuple[tuple[bytes, tuple[tuple[int, int], ...]], ...]


@dataclass(frozen=True, slots=True)
class Vector:
    """What the sender has settled of some origins."""

    origins: tuple[OriginVector, ...]
    reply: bool


@dataclass(frozen=True, slots=True)
class Ids:
    """The settled records of one origin, by id, ascending."""

    origin: bytes
    ids: tuple[bytes, ...]
    reply: bool


@dataclass(frozen=True, slots=True)
class Advert:
    """A record that the sender has settled. `kind` is a bare number: a later version may know more of them."""

    id: bytes
    kind: int
    origin: bytes
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Records that the sender has settled and the receiver may lack."""

    adverts: tuple[Advert, ...]


@dataclass(frozen=True, slots=True)
class Want:
    """Asks for records by id."""

    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A header and its signature as carried, not yet checked, and the whole of a small body or nothing of it."""

    header_bytes: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Records:
    """Signed headers, small bodies with them."""

    records: tuple[SignedRecord, ...]


@dataclass(frozen=True, slots=True)
class WantChunks:
    """Asks for chunks of one record's body, of which so many in a row may share a frame."""

    id: bytes
    indexes: tuple[int, ...]
    together: int = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a sealed body, or several in a row."""

    id: bytes
    index: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Missing:
    """The sender does not have what was asked of this record."""

    id: bytes


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender is being stopped: the link ends through nobody's fault."""


Frame = Hello | Digest | Origins | Spans | Vector | Ids | Announce | Want | Records | WantChunks | Chunk | Missing | Bye


def frame_name(frame: Frame) -> str:
    """What the wire contract calls a frame of this kind: `want_chunks`."""
    return _snake_case(type(frame).__name__)


def entries(frame: Frame) -> int:
    """How many things a frame names: about what it takes in memory while it waits, in units of 100 to 200 bytes."""
    match frame:
        case Origins(digests, prefixes):
            return 1 + len(digests) + len(prefixes)
        case Spans(spans):
            return 1 + sum(len(span.digests) for span in spans)
        case Vector(origins):
            return 1 + sum(1 + len(ranges) for vector in origins for _, ranges in vector.ranges) + len(origins)
        case Ids(_, ids) | Want(ids):
            return 1 + len(ids)
        case Announce(adverts):
            return 1 + len(adverts)
        case Records(records):
            return 1 + len(records)
        case _:
            return 1


@functools.cache
def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True, slots=True)
class Query:
    """Which model is asked for. Origins are raw keys; an empty `head` lets the answering node choose; `robust` is how
    many lying partners it must withstand."""

    task_id: bytes
    head: str
    only: tuple[bytes, ...]
    without: tuple[bytes, ...]
    format: str
    robust: int = 0
