"""Records: every rule has a case that breaks it and nothing else, and no flipped bit gets through."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.keys import ENCRYPTION_PUBLIC_BYTES, EncryptionKey, Identity
from crypto.sealing import WRAPPED_KEY_BYTES, chunk_hash
from crypto.signing import Statement, record_id, sign_record
from node import wire
from node.config import BODY_LIMIT_BYTES, HEADER_LIMIT_BYTES, PAYLOAD_LIMIT_BYTES
from node.errors import RecordError
from node.pb import tidings_pb2 as pb
from node.records import (
    Claim,
    DatasetTotal,
    Evidence,
    Head,
    Header,
    KeyCard,
    KeyGrant,
    Kind,
    Record,
    can_bury,
    chunk_size,
    core,
    statement_of,
    with_body,
)

ORIGIN = Identity.from_seed(bytes(range(32)))
OTHER = Identity.from_seed(bytes(range(1, 33)))
BODY = bytes(range(256)) * 570

KEY_CARD = wire.write_payload(KeyCard(EncryptionKey.from_bytes(bytes(range(96))).public))
KEY_GRANT = wire.write_payload(KeyGrant(bytes(WRAPPED_KEY_BYTES), bytes(32)))


TOTAL = DatasetTotal(bytes(15) + b"\1", 1.0, 1e-6, (2**40,))
HEAD = Head(5, bytes(32), 7, b"\7" * 32, (TOTAL, replace(TOTAL, tag=b"\1" * 16, charged=(1, 2, 2**63))), (bytes(32),))


def claim(number: int, kind: Kind = Kind.WITHDRAWAL, sequence: int = 7, by: Identity = OTHER) -> Claim:
    """That OTHER signed a record of this kind with sequence 7, whose id is `number`, and which supersedes as much."""
    id_ = supersedes = number.to_bytes(32, "big")
    statement = Statement(kind.label, b"12345678", sequence, supersedes, id_)
    return Claim(kind, id_, supersedes, sign_record(by, statement))


EVIDENCE = Evidence(OTHER.public_key, b"12345678", 7, (claim(1), claim(2, Kind.SUMMARY)))


def header_of(kind: Kind, **changes: Any) -> Header:
    """A header of this kind that breaks no rule, before the changes."""
    header = Header(kind, ORIGIN.public_key, b"12345678", 1, 1_700_000_000_000)
    match kind:
        case Kind.KEY_CARD:
            header = replace(header, payload=KEY_CARD)
        case Kind.KEY_GRANT:
            header = replace(header, payload=KEY_GRANT, epoch=1, recipient=OTHER.public_key)
        case Kind.TASK | Kind.SUMMARY | Kind.MODEL:
            header = with_body(replace(header, epoch=1, task_id=bytes(32)), BODY, bytes(32))
        case Kind.WITHDRAWAL:
            header = replace(header, supersedes=bytes(32))
        case Kind.HEAD:
            header = replace(header, payload=wire.write_payload(HEAD))
        case Kind.EVIDENCE:
            header = replace(header, payload=wire.write_payload(EVIDENCE))
    return replace(header, **changes)


def head_with(**changes: Any) -> Header:
    return header_of(Kind.HEAD, payload=wire.write_payload(replace(HEAD, **changes)))


def evidence_with(*claims: Claim, **changes: Any) -> Header:
    """Evidence of these claims, or with other changes."""
    changed = replace(EVIDENCE, claims=claims or EVIDENCE.claims, **changes)
    return header_of(Kind.EVIDENCE, payload=wire.write_payload(changed))


def signed(header: Header, by: Identity = ORIGIN) -> tuple[bytes, bytes]:
    """Header bytes and signature, without asking whether they make sense."""
    header_bytes = wire.write_header(header)
    return header_bytes, sign_record(by, statement_of(header, record_id(header_bytes)))


def summary() -> Record:
    return wire.author(ORIGIN, header_of(Kind.SUMMARY))


ACCEPTED = [
    Kind.KEY_CARD,
    Kind.KEY_GRANT,
    Kind.TASK,
    Kind.SUMMARY,
    Kind.MODEL,
    Kind.WITHDRAWAL,
    Kind.HEAD,
    Kind.EVIDENCE,
]


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_record_of_each_kind_comes_back_as_it_was_written(kind: Kind) -> None:
    record = wire.author(ORIGIN, header_of(kind))
    again = wire.read_record(record.header_bytes, record.signature)
    assert again == record
    assert again.header == header_of(kind)
    assert again.id == record_id(record.header_bytes)


def test_a_head_says_what_was_written_into_it() -> None:
    record = wire.author(ORIGIN, header_of(Kind.HEAD, supersedes=bytes(32)))
    assert wire.read_payload(record.header) == HEAD


def test_a_head_follows_a_summary_and_does_not_bury_it() -> None:
    earlier = summary()
    assert can_bury(header_of(Kind.WITHDRAWAL, supersedes=earlier.id), earlier.header)
    assert not can_bury(header_of(Kind.HEAD, supersedes=earlier.id), earlier.header)


def test_a_header_with_any_one_bit_flipped_is_refused() -> None:
    record = summary()
    for position in range(len(record.header_bytes) * 8):
        damaged = bytearray(record.header_bytes)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(RecordError):
            wire.read_record(bytes(damaged), record.signature)


def test_a_signature_with_any_one_bit_flipped_is_refused() -> None:
    record = summary()
    for position in range(len(record.signature) * 8):
        damaged = bytearray(record.signature)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(RecordError):
            wire.read_record(record.header_bytes, bytes(damaged))


@given(st.binary(max_size=300), st.binary(min_size=60, max_size=70))
def test_no_bytes_make_it_raise_anything_but_a_record_error(header: bytes, signature: bytes) -> None:
    with pytest.raises(RecordError):
        wire.read_record(header, signature)


@given(st.data())
def test_cutting_or_inserting_bytes_in_a_header_is_refused(data: st.DataObject) -> None:
    record = summary()
    start = data.draw(st.integers(0, len(record.header_bytes)))
    end = data.draw(st.integers(start, len(record.header_bytes)))
    inserted = data.draw(st.binary(max_size=40))
    changed = record.header_bytes[:start] + inserted + record.header_bytes[end:]
    if changed != record.header_bytes:
        with pytest.raises(RecordError):
            wire.read_record(changed, record.signature)


BROKEN_RULES: dict[str, tuple[Header, str]] = {
    "a version from the future": (header_of(Kind.SUMMARY, version=2), "version 2"),
    "no version": (header_of(Kind.SUMMARY, version=0), "version 0"),
    "a head without digests": (header_of(Kind.HEAD, payload=b""), "digests of a head"),
    "a head with a task": (header_of(Kind.HEAD, task_id=bytes(32)), "must not have a task"),
    "a head with an epoch": (header_of(Kind.HEAD, epoch=1), "must not have a key epoch"),
    "a head with a position beyond 2^53": (head_with(ledger_position=2**53 + 1), "cannot be"),
    "a head with a sequence beyond 2^63": (head_with(highest_sequence=2**63), "cannot be"),
    "a head with a short chain": (head_with(ledger_head=bytes(31)), "digests of a head"),
    "a head with a short digest": (head_with(records_digest=bytes(31)), "digests of a head"),
    "a head with a short tag": (head_with(datasets=(replace(TOTAL, tag=bytes(15)),)), "tags of 16 bytes"),
    "a head that names a dataset twice": (head_with(datasets=(TOTAL, TOTAL)), "in ascending order"),
    "a head with too many datasets": (
        head_with(datasets=tuple(replace(TOTAL, tag=n.to_bytes(16, "big")) for n in range(101))),
        "at most 100 datasets",
    ),
    "a head with an endless budget": (head_with(datasets=(replace(TOTAL, cap_epsilon=math.inf),)), "that cannot be"),
    "a head with a budget of NaN": (head_with(datasets=(replace(TOTAL, cap_epsilon=math.nan),)), "that cannot be"),
    "a head with delta 0": (head_with(datasets=(replace(TOTAL, delta=0.0),)), "that cannot be"),
    "a head that charged nothing": (head_with(datasets=(replace(TOTAL, charged=()),)), "1 to 32 numbers"),
    "a head that charged too much at once": (
        head_with(datasets=(replace(TOTAL, charged=(1,) * 33),)),
        "1 to 32 numbers",
    ),
    "a head that accepts a short id": (head_with(accepted=(bytes(31),)), "accepts at most 64"),
    "a head that accepts too much": (head_with(accepted=(bytes(32),) * 65), "accepts at most 64"),
    "a payload that is no head": (header_of(Kind.HEAD, payload=b"\xff"), "payload of a head"),
    "a payload that is no evidence": (header_of(Kind.EVIDENCE, payload=b"\xff"), "payload of a evidence"),
    "evidence against nobody": (header_of(Kind.EVIDENCE, payload=b""), "not a public key"),
    "evidence of one record": (evidence_with(claim(1)), "2 records, this one of 1"),
    "evidence of three records": (evidence_with(claim(1), claim(2), claim(3)), "2 records, this one of 3"),
    "evidence of one record twice": (evidence_with(claim(1), claim(1)), "two different records"),
    "evidence that descends": (evidence_with(claim(2), claim(1)), "in ascending order"),
    "evidence with a short incarnation": (evidence_with(incarnation=bytes(7)), "incarnation"),
    "evidence of sequence 0": (evidence_with(sequence=0), "sequence"),
    "evidence of a short id": (evidence_with(replace(claim(1), id=bytes(31)), claim(2)), "names records by 32"),
    "evidence of what supersedes a short id": (
        evidence_with(replace(claim(1), supersedes=bytes(31)), claim(2)),
        "names records by 32",
    ),
    "evidence with a short signature": (
        evidence_with(replace(claim(1), signature=bytes(63)), claim(2)),
        "signature in evidence",
    ),
    "evidence that one record was not signed": (
        evidence_with(claim(1), replace(claim(2), signature=claim(1).signature)),
        "did not sign",
    ),
    "evidence of two sequences": (evidence_with(claim(1, sequence=6), claim(2)), "did not sign"),
    "evidence of two origins": (evidence_with(claim(1, by=ORIGIN), claim(2)), "did not sign"),
    "evidence of another kind": (evidence_with(claim(1), replace(claim(2), kind=Kind.MODEL)), "did not sign"),
    "evidence of another burial": (evidence_with(claim(1), replace(claim(2), supersedes=bytes(32))), "did not sign"),
    "evidence with a task": (header_of(Kind.EVIDENCE, task_id=bytes(32)), "must not have a task"),
    "evidence that supersedes": (header_of(Kind.EVIDENCE, supersedes=bytes(32)), "must not have a superseded"),
    "a coalition": (header_of(Kind.SUMMARY, coalition=b"c"), "coalition"),
    "a short incarnation": (header_of(Kind.SUMMARY, incarnation=b"1234567"), "incarnation"),
    "a long incarnation": (header_of(Kind.SUMMARY, incarnation=b"123456789"), "incarnation"),
    "sequence 0": (header_of(Kind.SUMMARY, sequence=0), "sequence"),
    "a sequence above 2^63 - 1": (header_of(Kind.SUMMARY, sequence=2**63), "sequence"),
    "a summary without a body": (header_of(Kind.SUMMARY, body_bytes=0), "must have a body"),
    "a withdrawal with a body": (
        with_body(header_of(Kind.WITHDRAWAL), BODY, bytes(32)),
        "must not have a body",
    ),
    "a summary without an epoch": (header_of(Kind.SUMMARY, epoch=0), "must have a key epoch"),
    "a key card with an epoch": (header_of(Kind.KEY_CARD, epoch=1), "must not have a key epoch"),
    "a summary without a task": (header_of(Kind.SUMMARY, task_id=b""), "must have a task"),
    "a key card with a task": (header_of(Kind.KEY_CARD, task_id=bytes(32)), "must not have a task"),
    "a grant without a recipient": (header_of(Kind.KEY_GRANT, recipient=None), "must have a recipient"),
    "a summary with a recipient": (
        header_of(Kind.SUMMARY, recipient=OTHER.public_key),
        "must not have a recipient",
    ),
    "a withdrawal of nothing": (header_of(Kind.WITHDRAWAL, supersedes=b""), "must have a superseded"),
    "a task that supersedes": (header_of(Kind.TASK, supersedes=bytes(32)), "must not have a superseded"),
    "a short task id": (header_of(Kind.SUMMARY, task_id=bytes(31)), "task id"),
    "a short superseded id": (header_of(Kind.WITHDRAWAL, supersedes=bytes(31)), "record id"),
    "a payload in a summary": (header_of(Kind.SUMMARY, payload=b"x"), "must not have a payload"),
    "too large a payload": (
        header_of(Kind.KEY_CARD, payload=bytes(PAYLOAD_LIMIT_BYTES + 1)),
        "has at most 16384 bytes",
    ),
    "a payload that is no key card": (header_of(Kind.KEY_CARD, payload=b"\xff"), "payload of a key-card"),
    "a key card with a key that nobody can use": (
        header_of(Kind.KEY_CARD, payload=wire.write_payload(KeyCard(bytes(ENCRYPTION_PUBLIC_BYTES)))),
        "cannot be used",
    ),
    "a key card without a key": (header_of(Kind.KEY_CARD, payload=b""), "encryption key"),
    "a grant without a key": (header_of(Kind.KEY_GRANT, payload=b""), "wrapped epoch key"),
    "a grant without a card": (
        header_of(Kind.KEY_GRANT, payload=wire.write_payload(KeyGrant(bytes(WRAPPED_KEY_BYTES), b""))),
        "key card",
    ),
    "chunks without a body": (header_of(Kind.WITHDRAWAL, chunk_bytes=65_536), "describes chunks"),
    "hashes without a body": (header_of(Kind.WITHDRAWAL, chunk_hashes=(bytes(32),)), "describes chunks"),
    "a commitment without a body": (header_of(Kind.WITHDRAWAL, key_commitment=bytes(32)), "describes chunks"),
    "a body too small to be sealed": (
        with_body(header_of(Kind.SUMMARY), bytes(39), bytes(32)),
        "too small",
    ),
    "a body above the limit": (header_of(Kind.SUMMARY, body_bytes=BODY_LIMIT_BYTES + 1), "too small or above"),
    "chunks below the least size": (header_of(Kind.SUMMARY, chunk_bytes=1023), "Chunks of 1023"),
    "chunks above the limit": (header_of(Kind.SUMMARY, chunk_bytes=65_537), "Chunks of 65537"),
    "a hash too few": (header_of(Kind.SUMMARY, chunk_hashes=(bytes(32),) * 8), "8 chunk hashes"),
    "a hash too many": (header_of(Kind.SUMMARY, chunk_hashes=(bytes(32),) * 10), "10 chunk hashes"),
    "a short hash": (header_of(Kind.SUMMARY, chunk_hashes=(bytes(31),) * 9), "chunk hash"),
    "a short commitment": (header_of(Kind.SUMMARY, key_commitment=bytes(31)), "commitment"),
}


@pytest.mark.parametrize("case", BROKEN_RULES)
def test_a_record_that_breaks_one_rule_is_refused_although_well_signed(case: str) -> None:
    header, reason = BROKEN_RULES[case]
    with pytest.raises(RecordError, match=reason):
        wire.read_record(*signed(header))
    with pytest.raises(RecordError, match=reason):
        wire.author(ORIGIN, header)


def test_the_rules_are_checked_in_the_order_that_the_module_states() -> None:
    """Break them all, mend them one by one from the first: each time the next one is named."""
    broken = header_of(Kind.WITHDRAWAL, version=2, sequence=0, supersedes=b"", key_commitment=b"x")
    steps: list[tuple[dict[str, Any], str]] = [
        ({}, "version 2"),
        ({"version": 1}, "sequence"),
        ({"sequence": 1}, "superseded"),
        ({"supersedes": bytes(32)}, "describes chunks"),
        ({"key_commitment": b""}, "signature"),
    ]
    for changes, reason in steps:
        broken = replace(broken, **changes)
        header_bytes, _ = signed(broken)
        with pytest.raises(RecordError, match=reason):
            wire.read_record(header_bytes, bytes(64))
    wire.read_record(*signed(broken))


def test_an_origin_cannot_be_signed_for_by_another() -> None:
    with pytest.raises(RecordError, match="signature"):
        wire.read_record(*signed(header_of(Kind.SUMMARY), by=OTHER))
    with pytest.raises(RecordError, match="signed by its origin"):
        wire.author(OTHER, header_of(Kind.SUMMARY))


def test_a_signature_for_one_kind_does_not_serve_another() -> None:
    header = header_of(Kind.SUMMARY)
    header_bytes = wire.write_header(header)
    with pytest.raises(RecordError, match="signature"):
        wire.read_record(
            header_bytes, sign_record(ORIGIN, statement_of(replace(header, kind=Kind.MODEL), record_id(header_bytes)))
        )


@pytest.mark.parametrize("change", [{"sequence": 2}, {"incarnation": b"12345679"}, {"supersedes": bytes(32)}])
def test_a_signature_says_what_number_and_what_is_superseded(change: dict[str, Any]) -> None:
    header = header_of(Kind.SUMMARY)
    header_bytes = wire.write_header(header)
    with pytest.raises(RecordError, match="signature"):
        wire.read_record(
            header_bytes, sign_record(ORIGIN, statement_of(replace(header, **change), record_id(header_bytes)))
        )


def test_sizes_come_before_everything_else() -> None:
    with pytest.raises(RecordError, match="header has 1 to"):
        wire.read_record(b"", bytes(64))
    with pytest.raises(RecordError, match="header has 1 to"):
        wire.read_record(bytes(HEADER_LIMIT_BYTES + 1), bytes(64))
    with pytest.raises(RecordError, match="signature has 64"):
        wire.read_record(b"x", bytes(63))


def test_keys_that_no_node_can_have_are_refused() -> None:
    for field in ("origin", "recipient"):
        message = pb.Header.FromString(wire.write_header(header_of(Kind.KEY_GRANT)))
        setattr(message, field, bytes(32))
        with pytest.raises(RecordError, match="not a public key"):
            wire.read_record(message.SerializeToString(), bytes(64))


def test_a_kind_that_nobody_has_defined_is_refused() -> None:
    message = pb.Header.FromString(wire.write_header(header_of(Kind.SUMMARY)))
    message.kind = 77  # type: ignore[assignment]
    with pytest.raises(RecordError, match="kind 77"):
        wire.read_record(message.SerializeToString(), bytes(64))


def test_the_bytes_that_were_signed_are_kept_with_fields_that_we_do_not_know() -> None:
    header_bytes = wire.write_header(header_of(Kind.SUMMARY)) + bytes.fromhex("c20205") + b"later"  # field 40
    record = wire.read_record(
        header_bytes, sign_record(ORIGIN, statement_of(header_of(Kind.SUMMARY), record_id(header_bytes)))
    )
    assert record.header == header_of(Kind.SUMMARY)
    assert record.header_bytes == header_bytes
    assert record.id != summary().id


def test_the_core_tells_any_two_records_apart() -> None:
    base = header_of(Kind.SUMMARY)
    others = [
        replace(base, origin=OTHER.public_key),
        replace(base, sequence=2),
        replace(base, incarnation=b"87654321"),
        replace(base, task_id=bytes(31) + b"1"),
        replace(base, coalition=b"c"),
    ]
    assert len({core(header) for header in [base, *others]}) == len(others) + 1


@given(st.binary(max_size=4), st.binary(max_size=4), st.binary(max_size=4), st.binary(max_size=4))
def test_no_two_splits_of_the_same_bytes_share_a_core(a: bytes, b: bytes, c: bytes, d: bytes) -> None:
    base = header_of(Kind.SUMMARY)
    first, second = replace(base, coalition=a, task_id=b), replace(base, coalition=c, task_id=d)
    assert (core(first) == core(second)) == ((a, b) == (c, d))


def test_the_core_is_what_the_documents_say() -> None:
    header = header_of(Kind.SUMMARY, sequence=7)
    expected = b"tidings/v1/core\0" + (
        (32).to_bytes(4, "big") + ORIGIN.public_key.raw
        + (0).to_bytes(4, "big")
        + (32).to_bytes(4, "big") + bytes(32)
        + (8).to_bytes(4, "big") + b"12345678"
        + (8).to_bytes(4, "big") + (7).to_bytes(8, "big")
    )  # fmt: skip
    assert core(header) == expected


def test_with_body_describes_chunks_that_add_up_to_the_body() -> None:
    header = header_of(Kind.SUMMARY)
    sizes = [chunk_size(header, index) for index in range(len(header.chunk_hashes))]
    assert sizes == [16_384] * 8 + [14_848]
    assert header.chunk_hashes[1] == chunk_hash(BODY[16_384:32_768])
