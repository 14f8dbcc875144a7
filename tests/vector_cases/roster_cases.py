"""Rosters: every rule of one version, its signatures, and the file that goes from administrator to administrator."""

from __future__ import annotations

from dataclasses import replace

from node.config import ROSTER_PAYLOAD_LIMIT_BYTES
from node.pb import tidings_pb2 as pb
from node.records import Header, Kind
from node.roster import MAX_SIGNATURES, Roster, RosterMember, in_order
from node.roster_wire import FILE_START, _document, write_document
from node.wire import write_header
from tests.doors import identity, roster_file, signed_header, signed_roster
from tests.rosters import BAD, ODD_DOCUMENTS
from tests.vector_cases import Cases

ADMINISTRATORS = (identity(7), identity(8), identity(9))


def roster(threshold: int = 1) -> Roster:
    """Version 1, which the usual identity and two others administer."""
    listed = (
        RosterMember(identity(7).public_key, "north", ("north.example:7410", "[2001:db8::7]:7410")),
        RosterMember(identity(8).public_key, "Süd", query_only=True),
    )
    return in_order(Roster(1, "heart", tuple(one.public_key for one in ADMINISTRATORS), threshold, listed))


ONE = signed_roster(write_document(roster()))


def _later() -> bytes:
    later = replace(roster(), version=2**32 - 1, coalition=bytes(range(32)), previous=bytes(32))
    return signed_roster(write_document(later))


def _signatures(*changed: pb.RosterSignature) -> bytes:
    return pb.SignedRoster(document=write_document(roster()), signatures=changed).SerializeToString()


def _payloads() -> Cases:
    message = pb.SignedRoster.FromString(ONE)
    (signature,) = message.signatures
    stranger = pb.RosterSignature(administrator=bytes(32), signature=signature.signature)
    cases: Cases = {
        "good": (ONE, ""),
        "good-later-version": (_later(), ""),
        "good-with-a-strangers-signature": (signed_roster(write_document(roster()), 7, 11), ""),
        "nothing": (b"", "format 0 is not known"),
        "no message": (b"\xff\xff", "not a signed roster"),
        "too large a payload": (bytes(ROSTER_PAYLOAD_LIMIT_BYTES + 1), "at most 64512 bytes"),
        "too few signatures": (signed_roster(write_document(roster(2))), "lacks 1 of the 2 signatures"),
        "a signature for something else": (
            _signatures(pb.RosterSignature(administrator=signature.administrator, signature=bytes(64))),
            "discard the copy",
        ),
        "a short signature": (
            _signatures(pb.RosterSignature(administrator=signature.administrator, signature=bytes(63))),
            "has 64 bytes",
        ),
        "the same signature twice": (_signatures(signature, signature), "each key once"),
        "a signature by what is no key": (_signatures(stranger), "something that is not a public key"),
        "too many signatures": (_signatures(*[signature] * (MAX_SIGNATURES + 1)), "at most 64 signatures"),
    }
    for wrong, (fields, words) in BAD.items():
        cases[wrong] = (signed_roster(_document(replace(roster(), **fields))), words)
    for wrong, (document, words) in ODD_DOCUMENTS.items():
        cases[f"a document {wrong}"] = (signed_roster(document), words)
    return cases


def _record() -> bytes:
    """The record that carries version 1."""
    header = Header(Kind.ROSTER, identity().public_key, b"12345678", 1, 0, payload=ONE)
    return signed_header(write_header(header))


CASES: dict[str, Cases] = {
    "record": {"good-roster": (_record(), "")},
    "roster": _payloads(),
    "roster-file": {
        "good": (roster_file(ONE), ""),
        "good-two-versions": (roster_file(ONE, _later()), ""),
        "good-last-lacks-signatures": (roster_file(ONE, signed_roster(write_document(roster(3)))), ""),
        "another file": (b"hello", "not a roster file"),
        "no version": (FILE_START, "holds no roster"),
        "cut off": (roster_file(ONE)[:-1], "damaged or cut off"),
        "cut off within a length": (roster_file(ONE) + bytes(2), "damaged or cut off"),
        "a length of four gigabytes": (FILE_START + b"\xff\xff\xff\xff" + ONE, "damaged or cut off"),
        "a version that is none": (roster_file(b"\xff\xff"), "not a signed roster"),
    },
}
