"""How identities end: the payloads of SUCCESSION and REVOKE, and the records that carry them."""

from __future__ import annotations

from dataclasses import replace

from crypto.recovery import consent
from node import wire
from node.pb import tidings_pb2 as pb
from node.records import MAX_GOOD, Header, Kind, LastGood, Revocation, Succession
from tests.doors import RECOVERY, identity, signed_header
from tests.vector_cases import Cases

OLD, NEW, PAPER = identity().public_key, identity(8).public_key, identity(RECOVERY).public_key
CONSENT = consent(identity(8), OLD)
GOOD: LastGood = ((b"12345678", 7), (b"23456789", 1))

WRONG_GOOD: dict[str, tuple[LastGood, str]] = {
    "an-incarnation-too-many": (tuple((n.to_bytes(8, "big"), 1) for n in range(1, MAX_GOOD + 2)), "at most"),
    "a-short-incarnation": (((b"1234567", 1),), "they are not all zero"),
    "no-incarnation": (((bytes(8), 1),), "they are not all zero"),
    "an-incarnation-twice": ((GOOD[0], GOOD[0]), "in ascending order, each once"),
    "incarnations-that-descend": (GOOD[::-1], "in ascending order, each once"),
    "sequence-0": (((b"12345678", 0),), "last sequence is from 1"),
    "a-sequence-above-2-63": (((b"12345678", 2**63),), "last sequence is from 1"),
}


def _successions() -> Cases:
    good = Succession(NEW, CONSENT, GOOD)
    cases: Cases = {
        "good": (wire.write_payload(good), ""),
        "good-without-numbers": (wire.write_payload(replace(good, good=())), ""),
        "garbage": (b"\xff", "payload of a succession is not one"),
        "nothing": (b"", "names a key that is none"),
        "a-successor-that-is-no-key": (
            pb.Succession(successor=bytes(32)).SerializeToString(),
            "names a key that is none",
        ),
    }
    return cases | {
        name: (wire.write_payload(replace(good, good=wrong)), words) for name, (wrong, words) in WRONG_GOOD.items()
    }


def _revocations() -> Cases:
    good = Revocation(PAPER, GOOD, NEW, CONSENT)
    cases: Cases = {
        "good": (wire.write_payload(good), ""),
        "good-without-a-successor": (wire.write_payload(Revocation(PAPER, ())), ""),
        "garbage": (b"\xff", "payload of a revoke is not one"),
        "nothing": (b"", "names a key that is none"),
        "a-successor-that-is-no-key": (
            pb.Revocation(recovery_key=PAPER.raw, successor=bytes(32)).SerializeToString(),
            "names a key that is none",
        ),
    }
    return cases | {
        name: (wire.write_payload(replace(good, good=wrong)), words) for name, (wrong, words) in WRONG_GOOD.items()
    }


def _record(kind: Kind, payload: Succession | Revocation, incarnation: bytes | None = None) -> bytes:
    usual = bytes(8) if kind is Kind.REVOKE else b"12345678"
    number = usual if incarnation is None else incarnation
    return signed_header(wire.write_header(Header(kind, OLD, number, 9, 0, payload=wire.write_payload(payload))))


def _records() -> Cases:
    ends, revokes = Succession(NEW, CONSENT, GOOD), Revocation(PAPER, GOOD, NEW, CONSENT)
    numbered = "has no incarnation, and every other record has one"
    unwilling = "has not signed that it takes the place of another"
    return {
        "good-succession": (_record(Kind.SUCCESSION, ends), ""),
        "good-revoke": (_record(Kind.REVOKE, revokes), ""),
        "good-revoke-without-a-successor": (_record(Kind.REVOKE, Revocation(PAPER, ())), ""),
        "a-succession-without-an-incarnation": (_record(Kind.SUCCESSION, ends, bytes(8)), numbered),
        "a-revocation-with-an-incarnation": (_record(Kind.REVOKE, revokes, b"12345678"), numbered),
        "a-succession-without-consent": (_record(Kind.SUCCESSION, replace(ends, consent=bytes(64))), unwilling),
        "a-revocation-without-consent": (_record(Kind.REVOKE, replace(revokes, consent=b"")), unwilling),
        "a-succession-to-itself": (_record(Kind.SUCCESSION, replace(ends, successor=OLD)), "the place of itself"),
        "consent-of-nobody": (_record(Kind.REVOKE, replace(revokes, successor=None)), "that it does not name"),
        "a-revocation-signed-by-another-key": (
            _record(Kind.REVOKE, replace(revokes, recovery_key=NEW)),
            "is not that of its recovery key",
        ),
    }


CASES: dict[str, Cases] = {"succession": _successions(), "revoke": _revocations(), "record": _records()}
