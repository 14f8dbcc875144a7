"""Wire: every frame comes back as it went, every limit holds, and no bytes raise anything but their own error."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import wire
from node.config import (
    BODY_LIMIT_BYTES,
    CHUNKS_MAX_BYTES,
    FRAME_LIMIT_BYTES,
    MAX_ADVERTS,
    MAX_IDS,
    MAX_ORIGINS,
    MAX_PREFIXES,
    MAX_RANGES,
    MAX_SPANS,
    MAX_WANT,
    MAX_WANT_CHUNKS,
    SMALL_BODY_BYTES,
)
from node.errors import RecordError, WireError
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
from node.records import MAX_SEQUENCE


def numbered(count: int, size: int = 32) -> tuple[bytes, ...]:
    """`count` different byte strings."""
    return tuple(number.to_bytes(size, "big") for number in range(count))


hashes = st.binary(min_size=32, max_size=32)
sequences = st.integers(1, MAX_SEQUENCE)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    bounds = sorted(draw(st.sets(st.integers(1, MAX_SEQUENCE // 2), min_size=2, max_size=8)))
    # Twice as far apart, so that no range touches the next.
    doubled = [2 * bound for bound in bounds[: len(bounds) // 2 * 2]]
    return tuple(zip(doubled[::2], doubled[1::2], strict=True))


@st.composite
def origin_vectors(draw: st.DrawFn) -> OriginVector:
    incarnations = draw(st.lists(st.binary(min_size=8, max_size=8), unique=True, max_size=3))
    return OriginVector(draw(hashes), draw(hashes), tuple((inc, draw(ranges())) for inc in incarnations))


def origin_digests() -> st.SearchStrategy[tuple[tuple[bytes, bytes], ...]]:
    return st.lists(st.tuples(hashes, hashes), unique_by=lambda pair: pair[0], max_size=5).map(tuple)


def prefixes(most_digits: int = 64, least: int = 0) -> st.SearchStrategy[tuple[str, ...]]:
    """Ranges of origins, ascending, none within another."""
    digits = st.text("0123456789abcdef", max_size=most_digits)
    return st.lists(digits, min_size=least, max_size=4).map(apart)


def apart(texts: list[str]) -> tuple[str, ...]:
    kept: list[str] = []
    for text in sorted(texts):
        if not kept or not text.startswith(kept[-1]):
            kept.append(text)
    return tuple(kept)


def spans_of(texts: tuple[str, ...]) -> st.SearchStrategy[tuple[Span, ...]]:
    digests = st.lists(st.one_of(st.just(b""), hashes), min_size=16, max_size=16).map(tuple)
    return st.tuples(*(st.builds(Span, st.just(text), digests) for text in texts))


FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Hello, st.integers(0, 2**32 - 1), st.binary(min_size=8, max_size=8), st.integers(-(2**63), 2**63 - 1)),
    st.builds(Digest, hashes, st.one_of(st.just(b""), hashes)),
    st.builds(Origins, origin_digests(), prefixes()),
    st.builds(Origins, origin_digests(), common=hashes),
    st.builds(Spans, prefixes(most_digits=63, least=1).flatmap(spans_of)),
    st.builds(
        Vector,
        st.lists(origin_vectors(), unique_by=lambda v: v.origin, min_size=1, max_size=4).map(tuple),
        st.booleans(),
    ),
    st.builds(Ids, hashes, st.lists(hashes, unique=True, max_size=5).map(tuple), st.booleans()),
    st.builds(
        Announce,
        st.lists(
            st.builds(Advert, hashes, st.integers(0, 2**31 - 1), hashes, st.integers(0, BODY_LIMIT_BYTES)),
            min_size=1,
            max_size=5,
        ).map(tuple),
    ),
    st.builds(Want, st.lists(hashes, unique=True, min_size=1, max_size=5).map(tuple)),
    st.builds(
        Records,
        st.lists(
            st.builds(SignedRecord, st.binary(max_size=90), st.binary(max_size=70), st.binary(max_size=50)), min_size=1
        ).map(tuple),
    ),
    st.builds(
        WantChunks,
        hashes,
        st.lists(st.integers(0, wire.MAX_CHUNKS), unique=True, min_size=1, max_size=5).map(tuple),
        st.integers(1, 2**32 - 1),
    ),
    st.builds(Chunk, hashes, st.integers(0, wire.MAX_CHUNKS), st.binary(min_size=1, max_size=99)),
    st.builds(Missing, hashes),
    st.just(Bye()),
)


@given(FRAMES)
def test_a_frame_comes_back_as_it_went(frame: Frame) -> None:
    assert wire.decode(wire.encode(frame)) == frame


@given(FRAMES, st.data())
def test_a_damaged_frame_is_another_frame_or_a_wire_error(frame: Frame, data: st.DataObject) -> None:
    encoded = bytearray(wire.encode(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = wire.decode(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))
    except WireError:
        return
    if again is not None:
        assert wire.decode(wire.encode(again)) == again


@given(st.binary(max_size=400))
def test_no_bytes_make_a_decoder_raise_anything_but_its_own_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        wire.decode(data)
    with contextlib.suppress(RecordError):
        wire.read_header(data)


AT_THE_LIMIT: dict[str, Frame] = {
    "origins": Origins(tuple((origin, bytes(32)) for origin in numbered(MAX_ORIGINS))),
    "spans": Spans(tuple(Span(f"{n:063x}", numbered(16)) for n in range(MAX_SPANS))),
    "prefixes": Origins((), tuple(f"{n:064x}" for n in range(MAX_PREFIXES))),
    "ids": Ids(bytes(32), numbered(MAX_IDS), reply=False),
    "adverts": Announce(tuple(Advert(i, 4, bytes(32), BODY_LIMIT_BYTES) for i in numbered(MAX_ADVERTS))),
    "want": Want(numbered(MAX_WANT)),
    "chunks": WantChunks(bytes(32), tuple(range(MAX_WANT_CHUNKS))),
    "ranges": Vector(
        (OriginVector(bytes(32), bytes(32), ((bytes(8), tuple((2**62 + 2 * n,) * 2 for n in range(MAX_RANGES))),)),),
        reply=False,
    ),
    "records": Records(tuple(SignedRecord(bytes(500), bytes(64), bytes(SMALL_BODY_BYTES)) for _ in range(55))),
    "chunk": Chunk(bytes(32), wire.MAX_CHUNKS, bytes(CHUNKS_MAX_BYTES)),
}


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_the_largest_frame_of_each_kind_fits(name: str) -> None:
    encoded = wire.encode(AT_THE_LIMIT[name])
    assert len(encoded) <= FRAME_LIMIT_BYTES
    assert wire.decode(encoded) == AT_THE_LIMIT[name]


def vector(*bounds: int) -> pb.Frame:
    """A vector of one origin and incarnation with these bounds, whatever they are."""
    part = pb.IncarnationRanges(incarnation=bytes(8), bounds=bounds)
    entry = pb.OriginVector(origin=bytes(32), digest=bytes(32), incarnations=[part])
    return pb.Frame(vector=pb.Vector(origins=[entry]))


def advert(**changes: Any) -> pb.Frame:
    fields: dict[str, Any] = {"id": bytes(32), "kind": 4, "origin": bytes(32), **changes}
    return pb.Frame(announce=pb.Announce(adverts=[pb.Advert(**fields)]))


def span(prefix: str = "", digests: int = 16, size: int = 32) -> pb.Span:
    return pb.Span(prefix=prefix, digests=[bytes(size)] * digests)


def spans(*several: pb.Span) -> pb.Frame:
    return pb.Frame(spans=pb.Spans(spans=several))


def origins_in(*texts: str, **more: Any) -> pb.Frame:
    return pb.Frame(origins=pb.Origins(prefixes=texts, **more))


MALFORMED: dict[str, tuple[pb.Frame, str]] = {
    "a short store id": (pb.Frame(hello=pb.Hello(version=1, store_id=bytes(7))), "store id has 8"),
    "a short digest": (pb.Frame(digest=pb.Digest(root=bytes(31))), "digest has 32"),
    "an origin too many": (
        pb.Frame(origins=pb.Origins(origins=[pb.OriginDigest()] * (MAX_ORIGINS + 1))),
        "0 to 2048 origins",
    ),
    "an origin twice": (
        pb.Frame(origins=pb.Origins(origins=[pb.OriginDigest(origin=bytes(32), digest=bytes(32))] * 2)),
        "origins twice",
    ),
    "a short origin": (
        pb.Frame(origins=pb.Origins(origins=[pb.OriginDigest(origin=bytes(31), digest=bytes(32))])),
        "origin has 32",
    ),
    "a short common digest": (pb.Frame(digest=pb.Digest(root=bytes(32), common=bytes(31))), "common digest has 32"),
    "no spans": (pb.Frame(spans=pb.Spans()), "1 to 256 spans"),
    "a span too many": (spans(*[span(f"{n:03x}") for n in range(MAX_SPANS + 1)]), "1 to 256 spans"),
    "a span of fifteen": (spans(span(digests=15)), "16 sub-ranges"),
    "a span with a short digest": (spans(span(size=31)), "digest has 32"),
    "a span of one key": (spans(span("0" * 64)), "length of a prefix is at most 63"),
    "a span in upper case": (spans(span("A")), "lower-case hexadecimal"),
    "a span within another": (spans(span("ab"), span("abc")), "do not overlap"),
    "spans that descend": (spans(span("b"), span("a")), "ascending"),
    "a prefix twice": (origins_in("a", "a"), "do not overlap"),
    "a range within all": (origins_in("", "a"), "do not overlap"),
    "a prefix too many": (origins_in(*(f"{n:04x}" for n in range(MAX_PREFIXES + 1))), "0 to 2048 prefixes"),
    "a prefix too long": (origins_in("0" * 65), "at most 64"),
    "ranges and a common digest": (origins_in("a", common=bytes(32)), "not both"),
    "a vector of nothing": (pb.Frame(vector=pb.Vector()), "1 to 2048 origins"),
    "an incarnation twice": (
        pb.Frame(
            vector=pb.Vector(
                origins=[
                    pb.OriginVector(
                        origin=bytes(32),
                        digest=bytes(32),
                        incarnations=[pb.IncarnationRanges(incarnation=bytes(8), bounds=[1, 1])] * 2,
                    )
                ]
            )
        ),
        "incarnations twice",
    ),
    "a range with one end": (vector(1), "pairs"),
    "no range at all": (vector(), "pairs"),
    "a range from 0": (vector(0, 5), "from 1"),
    "a range that ends before it begins": (vector(5, 4), "ascend"),
    "ranges that touch": (vector(1, 2, 3, 4), "touch"),
    "ranges that overlap": (vector(1, 5, 4, 9), "ascend"),
    "a range beyond 2^63": (vector(1, 2**63), "2\\^63"),
    "a range too many": (vector(*range(1, 4 * MAX_RANGES + 6, 2)), "at most 8192 ranges"),
    "an id too many": (pb.Frame(ids=pb.Ids(origin=bytes(32), ids=numbered(MAX_IDS + 1))), "0 to 4096 ids"),
    "an id twice": (pb.Frame(ids=pb.Ids(origin=bytes(32), ids=[bytes(32)] * 2)), "ids twice"),
    "an announcement of nothing": (pb.Frame(announce=pb.Announce()), "1 to 1024 adverts"),
    "an advert too many": (
        pb.Frame(announce=pb.Announce(adverts=[pb.Advert()] * (MAX_ADVERTS + 1))),
        "1 to 1024 adverts",
    ),
    "a short id": (advert(id=bytes(31)), "record id has 32"),
    "a body above the limit": (advert(body_bytes=BODY_LIMIT_BYTES + 1), "body size is at most"),
    "a want of nothing": (pb.Frame(want=pb.Want()), "1 to 256 ids"),
    "a want too many": (pb.Frame(want=pb.Want(ids=numbered(MAX_WANT + 1))), "1 to 256 ids"),
    "no records": (pb.Frame(records=pb.Records()), "1 to 256 records"),
    "a record too many": (
        pb.Frame(records=pb.Records(records=[pb.SignedRecord()] * (MAX_WANT + 1))),
        "1 to 256 records",
    ),
    "a header above the limit": (
        pb.Frame(records=pb.Records(records=[pb.SignedRecord(header=bytes(65_537))])),
        "header size is at most 65536",
    ),
    "a body that is too large to ride along": (
        pb.Frame(records=pb.Records(records=[pb.SignedRecord(header=b"h", body=bytes(SMALL_BODY_BYTES + 1))])),
        "size of a body in it is at most 4096",
    ),
    "a chunk twice": (pb.Frame(want_chunks=pb.WantChunks(id=bytes(32), indexes=[1, 1])), "chunks twice"),
    "a chunk too many": (
        pb.Frame(want_chunks=pb.WantChunks(id=bytes(32), indexes=range(MAX_WANT_CHUNKS + 1))),
        "1 to 64 chunks",
    ),
    "a chunk that no body has": (
        pb.Frame(want_chunks=pb.WantChunks(id=bytes(32), indexes=[2**32 - 1])),
        "chunk number is at most",
    ),
    "an empty chunk": (pb.Frame(chunk=pb.Chunk(id=bytes(32))), "bytes of chunk"),
    "a chunk above the limit": (
        pb.Frame(chunk=pb.Chunk(id=bytes(32), data=bytes(CHUNKS_MAX_BYTES + 1))),
        "bytes of chunk",
    ),
    "nothing missing": (pb.Frame(missing=pb.Missing()), "record id has 32"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_frame_is_refused_with_its_reason(case: str) -> None:
    message, reason = MALFORMED[case]
    with pytest.raises(WireError, match=reason):
        wire.frame_from_pb(message)


def test_a_frame_above_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(WireError, match="frame has at most"):
        wire.decode(bytes(FRAME_LIMIT_BYTES + 1))


def test_a_range_that_claims_every_sequence_stays_a_pair() -> None:
    frame = wire.frame_from_pb(vector(1, MAX_SEQUENCE))
    assert isinstance(frame, Vector)
    assert frame.origins[0].ranges == ((bytes(8), ((1, MAX_SEQUENCE),)),)


def test_a_frame_of_a_kind_that_we_do_not_know_is_skipped() -> None:
    assert wire.decode(b"") is None
    assert wire.decode(bytes.fromhex("f201021234")) is None  # field 30, as a later version may add


def test_an_equal_pair_says_less_than_100_bytes_in_each_direction() -> None:
    assert len(wire.encode(Hello(1, bytes(8), 2**63 - 1))) + len(wire.encode(Digest(bytes(32)))) < 100


QUERY = Query(bytes(32), "lda", (bytes(32),), (), "onnx")


def test_a_query_comes_back_as_it_went() -> None:
    assert wire.query_from_pb(wire.query_to_pb(QUERY)) == QUERY


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task_id": b"x"}, "task id"),
        ({"head": "h" * 65}, "head's name"),
        ({"format": "pickle"}, "one of onnx, safetensors"),
        ({"only_origins": [b"x"]}, "origin has 32"),
        ({"without_origins": [bytes(32)] * (MAX_ORIGINS + 1)}, "0 to 2048 origins"),
    ],
)
def test_a_malformed_query_is_refused(changes: dict[str, Any], reason: str) -> None:
    message = wire.query_to_pb(QUERY)
    for name, value in changes.items():
        message.ClearField(name)
        message.MergeFrom(pb.QueryRequest(**{name: value}))
    with pytest.raises(WireError, match=reason):
        wire.query_from_pb(message)
