"""Frames, records, the payloads in them, queries and their replies."""

from __future__ import annotations

from dataclasses import replace

from crypto.signing import record_id, sign_record
from node import wire
from node.config import FRAME_LIMIT_BYTES, HEADER_LIMIT_BYTES, MAX_ORIGINS, PAYLOAD_LIMIT_BYTES, QUERY_CHUNK_BYTES
from node.errors import RecordError
from node.frames import (
    Advert,
    Announce,
    Bye,
    Chunk,
    Digest,
    Frame,
    Hello,
    Ids,
    Missing,
    Origins,
    OriginVector,
    Query,
    Records,
    SignedRecord,
    Span,
    Spans,
    Vector,
    Want,
    WantChunks,
)
from node.pb import tidings_pb2 as pb
from node.records import Evidence, Header, KeyCard, Kind, statement_of
from tests.doors import identity, signed_header, signed_record
from tests.test_records import (
    ACCEPTED,
    BROKEN_RULES,
    EVIDENCE,
    HEAD,
    KEY_CARD,
    KEY_GRANT,
    ORIGIN,
    OTHER,
    claim,
    header_of,
    signed,
)
from tests.test_wire import MALFORMED
from tests.vector_cases import Cases


def _id(number: int, size: int = 32) -> bytes:
    return number.to_bytes(size, "big")


GOOD_FRAMES: dict[str, Frame] = {
    "hello": Hello(1, bytes(8), 1_700_000_000_000),
    "hello-with-a-clock-before-1970": Hello(1, bytes(8), -1),
    "digest": Digest(_id(7), _id(8)),
    "origins": Origins(((_id(1), _id(2)), (_id(3), _id(4)))),
    "origins-of-ranges": Origins(((_id(1), _id(2)),), ("0", "a1")),
    "origins-since": Origins((), common=_id(9)),
    "spans": Spans((Span("", (_id(1), *(b"",) * 15)), Span("ab", (_id(2),) * 16))[:1]),
    "vector": Vector((OriginVector(_id(1), _id(2), ((_id(3, 8), ((1, 5), (7, 7))),)),), reply=True),
    "ids": Ids(_id(1), (_id(2), _id(3)), reply=False),
    "announce": Announce((Advert(_id(1), 4, _id(2), 1_000),)),
    "want": Want((_id(1), _id(2))),
    "records": Records((SignedRecord(b"a header", bytes(64)),)),
    "records-with-a-body": Records((SignedRecord(b"a header", bytes(64), b"a small body"),)),
    "want-chunks": WantChunks(_id(1), (0, 3, 7)),
    "chunk": Chunk(_id(1), 2, b"some bytes"),
    "missing": Missing(_id(1)),
    "bye": Bye(),
}


def _frames() -> Cases:
    cases: Cases = {f"good-{name}": (wire.encode(frame), "") for name, frame in GOOD_FRAMES.items()}
    cases["good-of-a-later-version"] = (bytes.fromhex("f201021234"), "")
    for name, (message, reason) in MALFORMED.items():
        data = message.SerializeToString()
        cases[name] = (data, reason.replace("\\", "") if len(data) <= FRAME_LIMIT_BYTES else "frame has at most")
    cases["above-the-limit"] = (bytes(FRAME_LIMIT_BYTES + 1), "frame has at most")
    cases["garbage"] = (b"\xff\xff\xff", "not a frame")
    cases["cut-off"] = (wire.encode(GOOD_FRAMES["records"])[:-1], "not a frame")
    return cases


def _records() -> Cases:
    cases: Cases = {}
    for kind in ACCEPTED:
        header = replace(header_of(kind), origin=identity().public_key)
        cases[f"good-{kind.label}"] = (signed_header(wire.write_header(header)), "")
    for name, (broken, reason) in BROKEN_RULES.items():
        header_bytes, signature = signed(broken)
        cases[name] = (signed_record(header_bytes, signature), reason.replace("\\", ""))
    header_bytes, signature = signed(header_of(Kind.SUMMARY))
    flipped = header_bytes[:-1] + bytes([header_bytes[-1] ^ 1])
    as_another = sign_record(ORIGIN, statement_of(header_of(Kind.HEAD), record_id(header_bytes)))
    for name, header, seal, reason in (
        ("one-bit-flipped", flipped, signature, "signature of a summary is not"),
        ("signed-by-another", *signed(header_of(Kind.SUMMARY), by=OTHER), "signature of a summary is not"),
        ("signed-as-another-kind", header_bytes, as_another, "signature of a summary is not"),
        ("no-header", b"", signature, "header has 1 to"),
        ("a-header-above-the-limit", bytes(HEADER_LIMIT_BYTES + 1), signature, "header has 1 to"),
        ("a-short-signature", header_bytes, signature[:-1], "signature has 64 bytes"),
        ("garbage", b"\xff\xff", signature, "not a record header"),
    ):
        cases[name] = (signed_record(header, seal), reason)
    message = pb.Header.FromString(header_bytes)
    for name, changes, reason in (
        ("an-origin-off-the-curve", {"origin": b"\2" + bytes(31)}, "not a public key"),
        ("a-short-origin", {"origin": bytes(31)}, "not a public key"),
        ("a-recipient-of-small-order", {"recipient": bytes(32)}, "not a public key"),
        ("a-kind-that-nobody-knows", {"kind": 99}, "kind 99 is not known"),
    ):
        changed = pb.Header()
        changed.CopyFrom(message)
        for field, value in changes.items():
            setattr(changed, field, value)
        cases[name] = (signed_record(changed.SerializeToString(), signature), reason)
    return cases


def _payloads() -> dict[str, Cases]:
    doors: dict[str, Cases] = {
        "key-card": {"good": (KEY_CARD, "")},
        "key-grant": {"good": (KEY_GRANT, "")},
        "head": {"good": (wire.write_payload(HEAD), "")},
        "evidence": {"good": (wire.write_payload(EVIDENCE), ""), "good-of-two-heads": (_two_heads(), "")},
    }
    labels = {kind: kind.label for kind in Kind if kind.label in doors}
    for name, (broken, reason) in BROKEN_RULES.items():
        if broken.kind in labels and _is_payload_wrong(broken):
            doors[labels[broken.kind]][name] = (broken.payload, reason.replace("\\", ""))
    small_order = bytearray(pb.KeyCard.FromString(KEY_CARD).encryption_public)
    small_order[-32:] = bytes(32)
    for name, key in (
        ("a-key-of-small-order", bytes(small_order)),
        ("a-key-a-byte-short", bytes(small_order[:-1])),
        ("a-key-a-byte-long", bytes(small_order) + b"\0"),
    ):
        doors["key-card"][name] = (wire.write_payload(KeyCard(key)), "encryption key of a key card cannot be used")
    unknown = pb.Evidence.FromString(doors["evidence"]["good"][0])
    unknown.claims[0].kind = 99
    doors["evidence"]["a-record-of-a-kind-that-nobody-knows"] = (
        unknown.SerializeToString(),
        "of a kind that is not known",
    )
    drawn = pb.Evidence.FromString(doors["evidence"]["good"][0])
    drawn.incarnation = bytes(8)
    doors["evidence"]["numbers-of-a-revocation"] = (drawn.SerializeToString(), "those of revocations are drawn")
    card = pb.KeyCard.FromString(KEY_CARD)
    for name, size, words in (
        ("good-with-a-recovery-key", 32, ""),
        ("a-short-recovery-hash", 31, "recovery key has 32"),
    ):
        card.recovery_hash = bytes(size)
        doors["key-card"][name] = (card.SerializeToString(), words)
    doors["key-grant"]["garbage"] = (b"\xff", "payload of a key-grant")
    doors["key-grant"]["a-key-a-byte-long"] = (
        pb.KeyGrant(wrapped_key=bytes(1169)).SerializeToString(),
        "wrapped epoch",
    )
    return doors


def _two_heads() -> bytes:
    """Against the fixed identity, so that mutators can sign what they changed."""
    claims = tuple(claim(number, Kind.HEAD, by=identity()) for number in (1, 2))
    return wire.write_payload(Evidence(identity().public_key, b"12345678", 7, claims))


def _is_payload_wrong(header: Header) -> bool:
    """Whether it is the payload that rule 7 refuses, and not another field, or rule 9."""
    if header != header_of(header.kind, payload=header.payload) or len(header.payload) > PAYLOAD_LIMIT_BYTES:
        return False
    try:
        wire.read_payload(header)
    except RecordError:
        return True
    return False


GOOD_QUERY = Query(_id(1), "lda", (_id(2),), (_id(3),), "onnx")


def _queries() -> Cases:
    def changed(**fields: object) -> bytes:
        message = wire.query_to_pb(GOOD_QUERY)
        for name, value in fields.items():
            message.ClearField(name)  # type: ignore[arg-type]
            message.MergeFrom(pb.QueryRequest(**{name: value}))  # type: ignore[arg-type]
        return message.SerializeToString()

    return {
        "good": (changed(), ""),
        "good-without-a-head": (changed(head=""), ""),
        "garbage": (b"\xff", "is no query"),
        "a-short-task-id": (changed(task_id=b"x"), "task id has 32"),
        "a-long-head": (changed(head="h" * 65), "head's name has at most"),
        "a-head-with-a-zero-byte": (changed(head="lda\0"), "head's name has at most"),
        "a-head-that-looks-like-an-option": (changed(head="--output"), "head's name has at most"),
        "good-robust": (changed(robust=1), ""),
        "liars-beyond-all-members": (changed(robust=2**32 - 1), "number of liars to withstand is at most"),
        "another-format": (changed(format="pickle"), "one of onnx, safetensors"),
        "a-short-origin": (changed(only_origins=[b"x"]), "origin has 32"),
        "an-origin-too-many": (changed(without_origins=[bytes(32)] * (MAX_ORIGINS + 1)), "0 to 2048 origins"),
    }


def _replies() -> Cases:
    def progress(text: str) -> bytes:
        return pb.QueryReply(progress=pb.QueryProgress(message=text)).SerializeToString()

    return {
        "good-progress": (progress("fusing"), ""),
        "good-chunk": (pb.QueryReply(chunk=b"the file").SerializeToString(), ""),
        "good-of-a-later-version": (bytes.fromhex("7a021234"), ""),
        "garbage": (b"\xff", "not a reply"),
        "a-long-message": (progress("m" * 1_001), "length of a message is at most 1000"),
        "a-chunk-above-the-limit": (
            pb.QueryReply(chunk=bytes(QUERY_CHUNK_BYTES + 1)).SerializeToString(),
            "part of a model file is at most",
        ),
    }


CASES: dict[str, Cases] = {
    "frame": _frames(),
    "record": _records(),
    "query": _queries(),
    "reply": _replies(),
    **_payloads(),
}
