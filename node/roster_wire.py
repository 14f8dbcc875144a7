"""Rosters to and from bytes: the payload of a ROSTER record, and the file that administrators mail to one another.

Both are doors for what comes from outside: sizes first, then the message, then the rules of `roster`, then signatures.
A document is checked by writing it again (as model files are, ADR 6): bytes that differ from what this software writes
for what it read hold something that no administrator was shown. What is kept and passed on are the bytes that came.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from crypto.errors import Malformed
from crypto.keys import public_key
from crypto.signing import roster_hash
from node.config import ROSTER_LIMIT_BYTES, ROSTER_PAYLOAD_LIMIT_BYTES
from node.errors import RosterError
from node.files import written_whole
from node.pb import tidings_pb2 as pb
from node.roster import (
    MAX_MEMBERS,
    MAX_SIGNATURES,
    Roster,
    RosterMember,
    Signatures,
    SignedRoster,
    check_roster,
    check_signatures,
)

FILE_START: Final = b"tidings roster 1\n"
MAX_FILE_BYTES: Final = 32 * 1024 * 1024
"""A version a week for ten years of a coalition with 500 members of 85 bytes is 22 MB."""

LENGTH_BYTES: Final = 4
"""Before each version in a file: one is in memory at a time until it is checked."""

DOCUMENTS_REMEMBERED: Final = 64


def write_document(roster: Roster) -> bytes:
    """The bytes to sign; RosterError if the roster breaks a rule or is too large."""
    check_roster(roster)
    document = _document(roster)
    if len(document) > ROSTER_LIMIT_BYTES:
        raise RosterError(
            f"This roster has {len(document)} bytes and can have {ROSTER_LIMIT_BYTES}: shorten names, or leave "
            "addresses out, which members can be told in other ways."
        )
    return document


def read_signed(payload: bytes) -> SignedRoster:
    """A version from outside, with signatures that hold; whether they are enough is for the caller. RosterError."""
    if len(payload) > ROSTER_PAYLOAD_LIMIT_BYTES:
        raise RosterError(f"A signed roster has at most {ROSTER_PAYLOAD_LIMIT_BYTES} bytes, this one {len(payload)}.")
    try:
        message = pb.SignedRoster.FromString(payload)
    except DecodeError:
        raise RosterError("These bytes are not a signed roster.") from None
    return _checked(message)


def read_kept(payload: bytes) -> SignedRoster:
    """A version out of our own store, from a row or a record: its signatures were checked when it came. RosterError if
    the disk lost some of it."""
    try:
        message = pb.SignedRoster.FromString(payload)
        signatures = tuple((public_key(one.administrator), one.signature) for one in message.signatures)
    except (DecodeError, Malformed):
        raise RosterError("What the store kept is not a signed roster.") from None
    return SignedRoster(read_document(message.document), message.document, signatures, roster_hash(message.document))


def write_signed(signed: SignedRoster) -> bytes:
    """The payload of a ROSTER record. The document goes as it came."""
    return _signed(signed).SerializeToString()


def hash_in(payload: bytes) -> bytes:
    """Which version a payload that was checked holds: cheaper than to read it."""
    return roster_hash(pb.SignedRoster.FromString(payload).document)


@functools.lru_cache(maxsize=DOCUMENTS_REMEMBERED)
def read_document(document: bytes) -> Roster:
    """What a document says, after every rule that needs no signature; RosterError names the first broken one."""
    if len(document) > ROSTER_LIMIT_BYTES:
        raise RosterError(f"A roster has at most {ROSTER_LIMIT_BYTES} bytes, this one {len(document)}.")
    try:
        message = pb.Roster.FromString(document)
        if len(message.members) > MAX_MEMBERS:
            raise RosterError(f"A roster has 1 to {MAX_MEMBERS} members, this one {len(message.members)}.")
        roster = Roster(
            message.version,
            message.name,
            tuple(map(public_key, message.administrators)),
            message.threshold,
            tuple(
                RosterMember(public_key(one.key), one.name, tuple(one.addresses), one.query_only)
                for one in message.members
            ),
            message.coalition,
            message.previous,
            message.format,
        )
    except DecodeError:
        raise RosterError("These bytes are not a roster.") from None
    except Malformed:
        raise RosterError("A roster names an administrator or a member that is not a public key.") from None
    check_roster(roster)
    if _document(roster) != document:
        raise RosterError("A roster holds something that this node does not show; update it, or discard the roster.")
    return roster


def write_file(path: Path, versions: Sequence[SignedRoster]) -> None:
    """Versions that follow one another, in a file that takes the place of `path` whole."""
    parts = [write_signed(one) for one in versions]
    content = FILE_START + b"".join(len(part).to_bytes(LENGTH_BYTES, "big") + part for part in parts)
    if len(content) > MAX_FILE_BYTES:
        raise RosterError(f"These versions have {len(content)} bytes, and a roster file at most {MAX_FILE_BYTES}.")
    with written_whole(path, "wb", private=True) as file:
        file.write(content)


def read_file(path: Path) -> list[SignedRoster]:
    """The versions in a file, each with signatures that hold, the last one perhaps without all it needs. RosterError,
    OSError."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    return read_versions(content, str(path))


def read_versions(content: bytes, name: str) -> list[SignedRoster]:
    """As `read_file`, from the bytes of the file that has this name."""
    if len(content) > MAX_FILE_BYTES:
        raise RosterError(f"{name} is larger than a roster file, which has at most {MAX_FILE_BYTES} bytes.")
    if not content.startswith(FILE_START):
        raise RosterError(f"{name} is not a roster file; `tidings roster create` and `roster propose` write one.")
    versions: list[SignedRoster] = []
    at = len(FILE_START)
    while at < len(content):
        length = int.from_bytes(content[at : at + LENGTH_BYTES], "big")
        at += LENGTH_BYTES
        if length > ROSTER_PAYLOAD_LIMIT_BYTES or at + length > len(content):
            raise RosterError(f"{name} is damaged or cut off: ask for the roster file again.")
        versions.append(read_signed(content[at : at + length]))
        at += length
    if not versions:
        raise RosterError(f"{name} holds no roster: ask for the roster file again.")
    return versions


def _checked(message: pb.SignedRoster) -> SignedRoster:
    roster = read_document(message.document)
    if len(message.signatures) > MAX_SIGNATURES:
        raise RosterError(f"A roster has at most {MAX_SIGNATURES} signatures, this one {len(message.signatures)}.")
    try:
        signatures: Signatures = tuple((public_key(one.administrator), one.signature) for one in message.signatures)
    except Malformed:
        raise RosterError("A roster is signed with something that is not a public key.") from None
    check_signatures(message.document, signatures)
    return SignedRoster(roster, message.document, signatures, roster_hash(message.document))


def _signed(signed: SignedRoster) -> pb.SignedRoster:
    signatures = [pb.RosterSignature(administrator=key.raw, signature=one) for key, one in signed.signatures]
    return pb.SignedRoster(document=signed.document, signatures=signatures)


def _document(roster: Roster) -> bytes:
    members = [
        pb.RosterMember(key=one.key.raw, name=one.name, addresses=one.addresses, query_only=one.query_only)
        for one in roster.members
    ]
    message = pb.Roster(
        format=roster.format,
        version=roster.version,
        coalition=roster.coalition,
        previous=roster.previous,
        name=roster.name,
        administrators=[key.raw for key in roster.administrators],
        threshold=roster.threshold,
        members=members,
    )
    return message.SerializeToString(deterministic=True)
