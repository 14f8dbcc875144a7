"""Wire: protobuf messages of proto/tidings.proto to and from the types of `records` and `frames`.

Every limit of the contract that can be seen in one message is checked here, before the message becomes one
of our types; `WireError` (frames, queries) and `RecordError` (records) say which one was broken. What is
checked costs time and memory in proportion to the message, whatever numbers it claims.

Unknown fields are skipped, and so is a frame of a kind we do not know (`frame_from_pb` returns None): a later minor
version may add some. Header bytes are decoded and never encoded again: what was signed is what is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from crypto.errors import Malformed
from crypto.keys import PUBLIC_KEY_BYTES, Identity, public_key
from crypto.sealing import HASH_BYTES
from crypto.signing import RECORD_ID_BYTES, record_id, sign_record
from node.config import (
    BODY_LIMIT_BYTES,
    CHUNK_MIN_BYTES,
    CHUNKS_MAX_BYTES,
    FRAME_LIMIT_BYTES,
    HEADER_LIMIT_BYTES,
    MAX_ADVERTS,
    MAX_IDS,
    MAX_LIARS,
    MAX_ORIGINS,
    MAX_PREFIXES,
    MAX_RANGES,
    MAX_SPANS,
    MAX_WANT,
    MAX_WANT_CHUNKS,
    QUERY_CHUNK_BYTES,
    SMALL_BODY_BYTES,
)
from node.errors import RecordError, RosterError, WireError
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
from node.gossip.digest_tree import DIGITS
from node.pb import tidings_pb2 as pb
from node.records import (
    INCARNATION_BYTES,
    MAX_SEQUENCE,
    RULES,
    TASK_ID_BYTES,
    Claim,
    DatasetTotal,
    Evidence,
    Head,
    Header,
    KeyCard,
    KeyGrant,
    Kind,
    LastGood,
    Payload,
    PayloadContent,
    Record,
    Revocation,
    Succession,
    check_header,
    check_payload,
    check_proof,
    check_sizes,
    signed_record,
    statement_of,
)
from node.roster import SignedRoster
from node.roster_wire import read_signed, write_signed

STORE_ID_BYTES: Final = 8
MAX_PREFIX_DIGITS: Final = 2 * PUBLIC_KEY_BYTES
MAX_CHUNKS: Final = BODY_LIMIT_BYTES // CHUNK_MIN_BYTES
MAX_PROGRESS_CHARS: Final = 1_000
MODEL_FORMATS: Final = ("onnx", "safetensors")
MAX_HEAD_CHARS: Final = 64
_HEAD: Final = re.compile(f"([a-z0-9][a-z0-9-]{{0,{MAX_HEAD_CHARS - 1}}})?")
"""It becomes an argument of a command: no bytes that an argument cannot have, nothing that looks like an option."""

# -------------------------------------------------------------------------------------------------------------- records


def author(identity: Identity, header: Header) -> Record:
    """Serialize the header once, sign it, and check it as a stranger would; RecordError if it breaks a rule. `identity`
    is the origin's, or for a REVOKE that of its recovery key."""
    if header.kind is not Kind.REVOKE and header.origin != identity.public_key:
        raise RecordError("A record is signed by its origin; this identity is another.")
    header_bytes = write_header(header)
    return read_record(header_bytes, sign_record(identity, statement_of(header, record_id(header_bytes))))


def read_record(header_bytes: bytes, signature: bytes) -> Record:
    """A record from outside, after rules 1 to 9 of `records`, in that order; RecordError names the first
    broken one."""
    check_sizes(header_bytes, signature)
    header = read_header(header_bytes)
    check_header(header)
    payload = read_payload(header)
    record = signed_record(header, header_bytes, signature, payload)
    if isinstance(payload, Evidence):
        check_proof(payload)
    return record


def write_header(header: Header) -> bytes:
    """The bytes to sign. Only for a header of our own: those of others are kept as they came."""
    message = pb.Header(
        version=header.version,
        kind=_pb_kind(header.kind),
        coalition=header.coalition,
        origin=header.origin.raw,
        incarnation=header.incarnation,
        sequence=header.sequence,
        created_unix_ms=header.created_unix_ms,
        epoch=header.epoch,
        body_bytes=header.body_bytes,
        chunk_bytes=header.chunk_bytes,
        chunk_hashes=header.chunk_hashes,
        key_commitment=header.key_commitment,
        task_id=header.task_id,
        recipient=header.recipient.raw if header.recipient else b"",
        supersedes=header.supersedes,
        payload=header.payload,
    )
    return message.SerializeToString()


def read_header(header_bytes: bytes) -> Header:
    """Decode a header's bytes (rule 2), and no more than that; RecordError if they are not a header."""
    message = pb.Header()
    try:
        message.ParseFromString(header_bytes)
        kind = Kind(message.kind)
        origin = public_key(message.origin)
        recipient = public_key(message.recipient) if message.recipient else None
    except DecodeError:
        raise RecordError("These bytes are not a record header.") from None
    except Malformed:
        raise RecordError("A record header names an origin or recipient that is not a public key.") from None
    except ValueError:
        raise RecordError(f"A record of kind {message.kind} is not known to this version.") from None
    return Header(
        version=message.version,
        kind=kind,
        coalition=message.coalition,
        origin=origin,
        incarnation=message.incarnation,
        sequence=message.sequence,
        created_unix_ms=message.created_unix_ms,
        epoch=message.epoch,
        body_bytes=message.body_bytes,
        chunk_bytes=message.chunk_bytes,
        chunk_hashes=tuple(message.chunk_hashes),
        key_commitment=message.key_commitment,
        task_id=message.task_id,
        recipient=recipient,
        supersedes=message.supersedes,
        payload=message.payload,
    )


def read_payload(header: Header) -> PayloadContent | None:
    """The payload that the header's kind calls for (rule 7); RecordError if it is something else."""
    try:
        payload: PayloadContent | None = None
        match RULES[header.kind].payload:
            case Payload.KEY_CARD:
                card = pb.KeyCard.FromString(header.payload)
                payload = KeyCard(card.encryption_public, card.recovery_hash)
            case Payload.KEY_GRANT:
                grant = pb.KeyGrant.FromString(header.payload)
                payload = KeyGrant(grant.wrapped_key, grant.key_card)
            case Payload.HEAD:
                payload = _head_from_pb(pb.Head.FromString(header.payload))
            case Payload.ROSTER:
                payload = read_signed(header.payload)
            case Payload.EVIDENCE:
                payload = _evidence_from_pb(pb.Evidence.FromString(header.payload))
            case Payload.REVOCATION:
                payload = _revocation_from_pb(pb.Revocation.FromString(header.payload))
            case Payload.SUCCESSION:
                ending = pb.Succession.FromString(header.payload)
                payload = Succession(public_key(ending.successor), ending.consent, _good_from_pb(ending.good))
    except Malformed:
        raise RecordError(f"A {header.kind.label} names a key that is none.") from None
    except DecodeError:
        raise RecordError(f"The payload of a {header.kind.label} is not one.") from None
    except RosterError as error:
        raise RecordError(f"The payload of a {header.kind.label} is refused: {error}") from error
    check_payload(header.kind, payload)
    return payload


def recovery_hash_in(card: Header) -> bytes:
    """The hash of a recovery key that a KEY_CARD publishes, or nothing. Of a card that passed rule 7 when it came in:
    that costs a hundred times as much."""
    return pb.KeyCard.FromString(card.payload).recovery_hash


def read_evidence(record: Record) -> Evidence:
    """What an EVIDENCE says."""
    return evidence_from_bytes(record.header.payload)


def evidence_from_bytes(data: bytes) -> Evidence:
    """Evidence that passed rules 7 and 9 when it came in."""
    return _evidence_from_pb(pb.Evidence.FromString(data))


def write_payload(payload: PayloadContent) -> bytes:
    """The payload bytes of a header of our own."""
    match payload:
        case KeyCard(encryption_public, recovery_hash):
            return pb.KeyCard(encryption_public=encryption_public, recovery_hash=recovery_hash).SerializeToString()
        case KeyGrant(wrapped_key, key_card):
            return pb.KeyGrant(wrapped_key=wrapped_key, key_card=key_card).SerializeToString()
        case Head():
            return _head_to_pb(payload).SerializeToString()
        case Revocation():
            return _revocation_to_pb(payload).SerializeToString()
        case Succession(successor, consent, good):
            message = pb.Succession(successor=successor.raw, consent=consent, good=_good_to_pb(good))
            return message.SerializeToString()
        case Evidence():
            return _evidence_to_pb(payload).SerializeToString()
        case SignedRoster():
            return write_signed(payload)


def _evidence_to_pb(evidence: Evidence) -> pb.Evidence:
    claims = [
        pb.Claim(kind=_pb_kind(claim.kind), id=claim.id, supersedes=claim.supersedes, signature=claim.signature)
        for claim in evidence.claims
    ]
    return pb.Evidence(
        accused=evidence.accused.raw, incarnation=evidence.incarnation, sequence=evidence.sequence, claims=claims
    )


def _evidence_from_pb(message: pb.Evidence) -> Evidence:
    try:
        claims = tuple(Claim(Kind(one.kind), one.id, one.supersedes, one.signature) for one in message.claims)
        return Evidence(public_key(message.accused), message.incarnation, message.sequence, claims)
    except Malformed:
        raise RecordError("Evidence accuses what is not a public key.") from None
    except ValueError:
        raise RecordError("Evidence names a record of a kind that is not known to this version.") from None


def _good_to_pb(good: LastGood) -> list[pb.LastGood]:
    return [pb.LastGood(incarnation=incarnation, sequence=sequence) for incarnation, sequence in good]


def _good_from_pb(message: Iterable[pb.LastGood]) -> LastGood:
    return tuple((one.incarnation, one.sequence) for one in message)


def _revocation_to_pb(revocation: Revocation) -> pb.Revocation:
    return pb.Revocation(
        recovery_key=revocation.recovery_key.raw,
        good=_good_to_pb(revocation.good),
        successor=revocation.successor.raw if revocation.successor else b"",
        consent=revocation.consent,
    )


def _revocation_from_pb(message: pb.Revocation) -> Revocation:
    successor = public_key(message.successor) if message.successor else None
    return Revocation(public_key(message.recovery_key), _good_from_pb(message.good), successor, message.consent)


def _head_to_pb(head: Head) -> pb.Head:
    totals = [
        pb.DatasetTotal(tag=total.tag, cap_epsilon=total.cap_epsilon, delta=total.delta, charged=total.charged)
        for total in head.datasets
    ]
    return pb.Head(
        highest_sequence=head.highest_sequence,
        records_digest=head.records_digest,
        ledger_position=head.ledger_position,
        ledger_head=head.ledger_head,
        datasets=totals,
        accepted=head.accepted,
    )


def _head_from_pb(message: pb.Head) -> Head:
    return Head(
        message.highest_sequence,
        message.records_digest,
        message.ledger_position,
        message.ledger_head,
        tuple(
            DatasetTotal(total.tag, total.cap_epsilon, total.delta, tuple(total.charged)) for total in message.datasets
        ),
        tuple(message.accepted),
    )


# --------------------------------------------------------------------------------------------------------------- frames


def encode(frame: Frame) -> bytes:
    """A frame as bytes."""
    return frame_to_pb(frame).SerializeToString()


def decode(data: bytes) -> Frame | None:
    """A frame from bytes, None for a kind of frame that we do not know; WireError if it is malformed."""
    if len(data) > FRAME_LIMIT_BYTES:
        raise WireError(f"A frame has at most {FRAME_LIMIT_BYTES} bytes, this one {len(data)}.")
    message = pb.Frame()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise WireError("These bytes are not a frame.") from None
    return frame_from_pb(message)


def frame_to_pb(frame: Frame) -> pb.Frame:
    """The message of a frame of our own."""
    match frame:
        case Hello():
            hello = pb.Hello(version=frame.version, store_id=frame.store_id, clock_unix_ms=frame.clock_unix_ms)
            return pb.Frame(hello=hello)
        case Digest():
            return pb.Frame(digest=pb.Digest(root=frame.root, common=frame.common))
        case Origins():
            digests = [pb.OriginDigest(origin=origin, digest=digest) for origin, digest in frame.digests]
            return pb.Frame(origins=pb.Origins(origins=digests, prefixes=frame.prefixes, common=frame.common))
        case Spans():
            spans = [pb.Span(prefix=span.prefix, digests=span.digests) for span in frame.spans]
            return pb.Frame(spans=pb.Spans(spans=spans))
        case Vector():
            vectors = [_vector_to_pb(vector) for vector in frame.origins]
            return pb.Frame(vector=pb.Vector(origins=vectors, reply=frame.reply))
        case Ids():
            return pb.Frame(ids=pb.Ids(origin=frame.origin, ids=frame.ids, reply=frame.reply))
        case Announce():
            adverts = [
                pb.Advert(
                    id=advert.id,
                    kind=_pb_kind(advert.kind),
                    origin=advert.origin,
                    body_bytes=advert.body_bytes,
                )
                for advert in frame.adverts
            ]
            return pb.Frame(announce=pb.Announce(adverts=adverts))
        case Want():
            return pb.Frame(want=pb.Want(ids=frame.ids))
        case Records():
            records = [
                pb.SignedRecord(header=signed.header_bytes, signature=signed.signature, body=signed.body)
                for signed in frame.records
            ]
            return pb.Frame(records=pb.Records(records=records))
        case WantChunks():
            together = frame.together if frame.together > 1 else 0
            return pb.Frame(want_chunks=pb.WantChunks(id=frame.id, indexes=frame.indexes, together=together))
        case Chunk():
            message = pb.Frame()  # filled in place: what a constructor is given it copies twice more
            message.chunk.id, message.chunk.index, message.chunk.data = frame.id, frame.index, frame.data
            return message
        case Missing():
            return pb.Frame(missing=pb.Missing(id=frame.id))
        case Bye():
            return pb.Frame(bye=pb.Bye())


def frame_from_pb(message: pb.Frame) -> Frame | None:
    """Our type for a message, None for a kind of frame that we do not know; WireError if it breaks a limit."""
    name = message.WhichOneof("frame")
    return None if name is None else _READERS[name](getattr(message, name))


def _vector_to_pb(vector: OriginVector) -> pb.OriginVector:
    incarnations = [
        pb.IncarnationRanges(incarnation=incarnation, bounds=[bound for pair in ranges for bound in pair])
        for incarnation, ranges in vector.ranges
    ]
    return pb.OriginVector(origin=vector.origin, digest=vector.digest, incarnations=incarnations)


def _read_hello(message: pb.Hello) -> Hello:
    return Hello(message.version, _sized("store id", message.store_id, STORE_ID_BYTES), message.clock_unix_ms)


def _read_digest(message: pb.Digest) -> Digest:
    return Digest(_sized("digest", message.root, HASH_BYTES), _read_common(message.common))


def _read_common(common: bytes) -> bytes:
    return _sized("common digest", common, HASH_BYTES) if common else b""


def _read_origins(message: pb.Origins) -> Origins:
    _count("origins", message.origins, 0, MAX_ORIGINS)
    _distinct("origins", (entry.origin for entry in message.origins))
    _count("prefixes", message.prefixes, 0, MAX_PREFIXES)
    if message.prefixes and message.common:
        raise WireError("A list of origins covers ranges, or what changed since a common digest, not both.")
    return Origins(
        tuple(
            (_sized("origin", entry.origin, PUBLIC_KEY_BYTES), _sized("digest", entry.digest, HASH_BYTES))
            for entry in message.origins
        ),
        _read_prefixes(message.prefixes, MAX_PREFIX_DIGITS),
        _read_common(message.common),
    )


def _read_spans(message: pb.Spans) -> Spans:
    _count("spans", message.spans, 1, MAX_SPANS)
    # A range of one key cannot be divided.
    _read_prefixes([span.prefix for span in message.spans], MAX_PREFIX_DIGITS - 1)
    return Spans(tuple(Span(span.prefix, _read_sub_ranges(span.digests)) for span in message.spans))


def _read_sub_ranges(digests: Sequence[bytes]) -> tuple[bytes, ...]:
    if len(digests) != len(DIGITS):
        raise WireError(f"A span has the digests of {len(DIGITS)} sub-ranges, this one of {len(digests)}.")
    return tuple(_sized("digest", digest, HASH_BYTES) if digest else b"" for digest in digests)


def _read_prefixes(prefixes: Sequence[str], most_digits: int) -> tuple[str, ...]:
    """Ranges that do not overlap: so what answering a frame costs is bounded by what is held, whatever it names."""
    before: str | None = None
    for prefix in prefixes:
        _at_most("length of a prefix", len(prefix), most_digits)
        if not set(prefix) <= _DIGITS:
            raise WireError("A prefix consists of lower-case hexadecimal digits.")
        if before is not None and (prefix <= before or prefix.startswith(before)):
            raise WireError("Ranges of origins come in ascending order and do not overlap; these do not.")
        before = prefix
    return tuple(prefixes)


def _read_vector(message: pb.Vector) -> Vector:
    _count("origins", message.origins, 1, MAX_ORIGINS)
    _distinct("origins", (entry.origin for entry in message.origins))
    bounds = sum(len(part.bounds) for entry in message.origins for part in entry.incarnations)
    if bounds > 2 * MAX_RANGES:
        raise WireError(f"A vector has at most {MAX_RANGES} ranges, this one {bounds // 2}.")
    return Vector(tuple(_read_origin_vector(entry) for entry in message.origins), message.reply)


def _read_origin_vector(entry: pb.OriginVector) -> OriginVector:
    _distinct("incarnations", (part.incarnation for part in entry.incarnations))
    return OriginVector(
        _sized("origin", entry.origin, PUBLIC_KEY_BYTES),
        _sized("digest", entry.digest, HASH_BYTES),
        tuple(
            (_sized("incarnation", part.incarnation, INCARNATION_BYTES), _read_ranges(part.bounds))
            for part in entry.incarnations
        ),
    )


def _read_ranges(bounds: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Pairs of bounds; kept as pairs, never expanded: a range may claim 2^63 sequences."""
    if not bounds or len(bounds) % 2:
        raise WireError(f"Ranges come as pairs of bounds, these are {len(bounds)}.")
    ranges = tuple(zip(bounds[::2], bounds[1::2], strict=True))
    last_before = -1
    for first, last in ranges:
        if not (last_before + 1 < first <= last <= MAX_SEQUENCE):
            raise WireError("Ranges of sequences are from 1 to 2^63 - 1, ascend and do not touch; these do not.")
        last_before = last
    return ranges


def _read_ids(message: pb.Ids) -> Ids:
    _count("ids", message.ids, 0, MAX_IDS)
    _distinct("ids", message.ids)
    ids = tuple(_sized("record id", record_id, RECORD_ID_BYTES) for record_id in message.ids)
    return Ids(_sized("origin", message.origin, PUBLIC_KEY_BYTES), ids, message.reply)


def _read_announce(message: pb.Announce) -> Announce:
    _count("adverts", message.adverts, 1, MAX_ADVERTS)
    return Announce(
        tuple(
            Advert(
                _sized("record id", advert.id, RECORD_ID_BYTES),
                advert.kind,
                _sized("origin", advert.origin, PUBLIC_KEY_BYTES),
                _at_most("body size", advert.body_bytes, BODY_LIMIT_BYTES),
            )
            for advert in message.adverts
        )
    )


def _read_want(message: pb.Want) -> Want:
    _count("ids", message.ids, 1, MAX_WANT)
    _distinct("ids", message.ids)
    return Want(tuple(_sized("record id", record_id, RECORD_ID_BYTES) for record_id in message.ids))


def _read_records(message: pb.Records) -> Records:
    _count("records", message.records, 1, MAX_WANT)
    _at_most("header size", max(len(signed.header) for signed in message.records), HEADER_LIMIT_BYTES)
    _at_most("size of a body in it", max(len(signed.body) for signed in message.records), SMALL_BODY_BYTES)
    return Records(tuple(SignedRecord(signed.header, signed.signature, signed.body) for signed in message.records))


def _read_want_chunks(message: pb.WantChunks) -> WantChunks:
    _count("chunks", message.indexes, 1, MAX_WANT_CHUNKS)
    _distinct("chunks", message.indexes)
    _at_most("chunk number", max(message.indexes), MAX_CHUNKS)
    together = max(1, message.together)
    return WantChunks(_sized("record id", message.id, RECORD_ID_BYTES), tuple(message.indexes), together)


def _read_chunk(message: pb.Chunk) -> Chunk:
    _count("bytes of chunks", message.data, 1, CHUNKS_MAX_BYTES)
    index = _at_most("chunk number", message.index, MAX_CHUNKS)
    return Chunk(_sized("record id", message.id, RECORD_ID_BYTES), index, message.data)


def _read_missing(message: pb.Missing) -> Missing:
    return Missing(_sized("record id", message.id, RECORD_ID_BYTES))


def _read_bye(_message: pb.Bye) -> Bye:
    return Bye()


_DIGITS: Final = frozenset(DIGITS)

_READERS: Final[dict[str, Any]] = {
    "hello": _read_hello,
    "digest": _read_digest,
    "origins": _read_origins,
    "spans": _read_spans,
    "vector": _read_vector,
    "ids": _read_ids,
    "announce": _read_announce,
    "want": _read_want,
    "records": _read_records,
    "want_chunks": _read_want_chunks,
    "chunk": _read_chunk,
    "missing": _read_missing,
    "bye": _read_bye,
}

# ---------------------------------------------------------------------------------------------------------------- query


def query_to_pb(query: Query) -> pb.QueryRequest:
    """The message of a query of our own."""
    return pb.QueryRequest(
        task_id=query.task_id,
        head=query.head,
        only_origins=query.only,
        without_origins=query.without,
        format=query.format,
        robust=query.robust,
    )


def query_from_pb(message: pb.QueryRequest) -> Query:
    """A query from outside; WireError if it is malformed."""
    if not _HEAD.fullmatch(message.head):
        raise WireError(f"A head's name has at most {MAX_HEAD_CHARS} lower-case letters, digits and hyphens.")
    if message.format not in MODEL_FORMATS:
        raise WireError(f"A model's format is one of {', '.join(MODEL_FORMATS)}.")
    return Query(
        _sized("task id", message.task_id, TASK_ID_BYTES),
        message.head,
        _read_query_origins(message.only_origins),
        _read_query_origins(message.without_origins),
        message.format,
        _at_most("number of liars to withstand", message.robust, MAX_LIARS),
    )


def reply_from_pb(message: pb.QueryReply) -> bytes | str:
    """A reply to a query: what the node is doing, in words to be shown, or the next bytes of the file (none for a kind
    of reply that we do not know); WireError if it is malformed."""
    if message.HasField("progress"):
        _at_most("length of a message", len(message.progress.message), MAX_PROGRESS_CHARS)
        return message.progress.message
    _at_most("part of a model file", len(message.chunk), QUERY_CHUNK_BYTES)
    return message.chunk


def query_to_bytes(query: Query) -> bytes:
    """The same as bytes, for a process of our own."""
    return query_to_pb(query).SerializeToString()


def query_from_bytes(data: bytes) -> Query:
    """The query that `query_to_bytes` wrote; WireError if it is none."""
    try:
        return query_from_pb(pb.QueryRequest.FromString(data))
    except DecodeError as error:
        raise WireError("This is no query.") from error


def _read_query_origins(origins: Sequence[bytes]) -> tuple[bytes, ...]:
    _count("origins", origins, 0, MAX_ORIGINS)
    return tuple(_sized("origin", origin, PUBLIC_KEY_BYTES) for origin in origins)


# --------------------------------------------------------------------------------------------------------------- checks


def _sized(name: str, value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise WireError(f"A {name} has {size} bytes, this one {len(value)}.")
    return value


def _at_most(name: str, value: int, limit: int) -> int:
    if value > limit:
        raise WireError(f"A {name} is at most {limit}, this one is {value}.")
    return value


def _count(name: str, values: Sequence[object], least: int, most: int) -> None:
    if not least <= len(values) <= most:
        raise WireError(f"A frame holds {least} to {most} {name}, this one {len(values)}.")


def _distinct(name: str, values: Iterable[object]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise WireError(f"A frame names one of its {name} twice.")
        seen.add(value)


def _pb_kind(kind: int) -> pb.Kind:
    # The stubs make the enum a class of its own; on the wire and at run time it is an int.
    return kind  # type: ignore[return-value]
