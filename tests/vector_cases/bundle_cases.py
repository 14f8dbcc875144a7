"""Bundles: the preamble, the seal, and what counts as refused behind them.

Behind its start a bundle is never refused whole: the frames that are wrong are, each with its sentence, and how the
reading ended is told. So most cases are "accepted", and their digest covers those sentences.
"""

from __future__ import annotations

from node import wire
from node.config import FRAME_LIMIT_BYTES
from node.frames import Chunk, Hello, Records, SignedRecord
from node.records import Header, Kind, with_body
from tests.doors import bundle_of, framed, identity
from tests.vector_cases import Cases
from tests.vector_files import VECTORS, read

BODY = bytes(range(256)) * 5


def _frames() -> tuple[bytes, bytes, bytes]:
    key = identity().public_key
    withdrawal = wire.author(identity(), Header(Kind.WITHDRAWAL, key, b"12345678", 1, 0, supersedes=bytes(32)))
    header = Header(Kind.SUMMARY, key, b"12345678", 2, 0, epoch=1, task_id=bytes(32))
    summary = wire.author(identity(), with_body(header, BODY, bytes(32)))
    both = Records(tuple(SignedRecord(one.header_bytes, one.signature) for one in (withdrawal, summary)))
    damaged = Records((SignedRecord(summary.header_bytes, bytes(64)),))
    return wire.encode(both), wire.encode(Chunk(summary.id, 0, BODY)), wire.encode(damaged)


def _cases() -> Cases:
    records, chunk, damaged = _frames()
    content = framed(records) + framed(chunk)
    good = bundle_of(content)
    sealed = _golden("good-sealed") or bundle_of(content, is_sealed=True)
    unfinished = _golden("good-sealed-but-its-last-frame-is-cut-off") or bundle_of(
        (200_000).to_bytes(4, "big"), is_sealed=True, is_cut=True
    )
    cases: Cases = {
        "good": (good, ""),
        "good-empty": (bundle_of(b""), ""),
        "good-sealed": (sealed, ""),
        "good-with-a-frame-of-a-later-version": (bundle_of(framed(bytes.fromhex("f201021234")) + content), ""),
        "good-until-it-is-cut-off": (bundle_of(content, is_cut=True), ""),
        "good-until-it-is-cut-off-within-a-frame": (good[:200], ""),
        "good-but-signed-by-another": (good[:-1] + bytes([good[-1] ^ 1]), ""),
        "good-but-more-follows": (good + b"x", ""),
        "good-but-for-another-reader": (bundle_of(content, to=identity(8).public_key.raw), ""),
        "good-but-the-exporter-is-no-key": (good[:16] + b"\2" + bytes(31) + good[48:], ""),
        "good-but-a-frame-is-none": (bundle_of(framed(b"\xff\xff") + content), ""),
        "good-but-a-frame-is-not-for-bundles": (bundle_of(framed(wire.encode(Hello(1, bytes(8)))) + content), ""),
        "good-but-a-record-is-damaged": (bundle_of(framed(damaged) + content), ""),
        "good-until-a-length-above-the-limit": (
            bundle_of(content + (FRAME_LIMIT_BYTES + 1).to_bytes(4, "big") + bytes(99)),
            "",
        ),
        "good-until-a-length-of-four-gigabytes": (bundle_of(content + b"\xff\xff\xff\xff" + bytes(99)), ""),
        "sealed-with-a-bit-flipped": (sealed[:-9] + bytes([sealed[-9] ^ 1]) + sealed[-8:], "ends before its first"),
        "good-sealed-but-its-last-frame-is-cut-off": (unfinished, ""),
        "good-sealed-but-more-follows": (sealed + b"x", ""),
    }
    ends, other = "ends before its first record", "by another version of Tidings"
    for name, data, words in (
        ("nothing", b"", "is not a bundle"),
        ("another-file", b"PK\3\4" + bytes(99), "is not a bundle"),
        ("a-preamble-cut-off", good[:15], "is not a bundle"),
        ("another-version", good[:14] + b"\2" + good[15:], other),
        ("another-form", good[:15] + b"\2" + good[16:], other),
        ("a-start-cut-off", good[:95], ends),
        ("sealed-with-the-key-cut-off", sealed[:1_000], ends),
        ("sealed-with-the-stream-header-cut-off", sealed[: 16 + 1_168 + 10], ends),
        ("sealed-with-the-first-block-cut-off", sealed[: 16 + 1_168 + 24 + 100], ends),
        ("sealed-for-another", sealed[:16] + bytes(1_168), "is sealed for another node"),
    ):
        cases[name] = (data, words)
    return cases


def _golden(name: str) -> bytes | None:
    """The sealed one that is there: sealing draws its randomness anew."""
    path = VECTORS / "bundle" / f"{name}.json"
    return read(path).data if path.exists() else None


CASES: dict[str, Cases] = {"bundle": _cases()}
