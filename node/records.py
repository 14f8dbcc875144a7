"""Records: what they are, and the rules that one from outside must pass, in the order they are checked.

Follows docs/protocol.md, section "Records". A record is a header, exactly as its origin signed it, and a
signature; a body, if the kind has one, is named in the header by the hashes of its chunks.

    1. Sizes: the header is at most 64 KiB, the signature 64 bytes.
    2. The header's bytes are a Header message of a known kind, with valid keys (`wire.read_header`).
    3. The version is 1, the kind one that this version accepts, the coalition empty.
    4. Fixed fields: 8 bytes of incarnation, a sequence from 1 to 2^63 - 1.
    5. The kind's row of RULES: body, epoch, task, recipient, superseded record, size of the payload.
    6. The body's geometry: sizes, number and length of chunk hashes, commitment.
    7. The payload is what the kind's row says (`wire.read_payload`).
    8. The signature is the origin's, over what the header says (`statement_of`), under the kind's label; that of a
       REVOKE is the recovery key's, which the payload names. A successor that is named has signed its consent.
    9. Both signatures in an evidence are those of the accused.

Whether the origin is trusted here, and whether it has published the hash of the recovery key of a REVOKE, are the
gossip core's questions; a body is checked chunk by chunk as it arrives.

This module does no I/O, knows no encoding and refuses to repair anything: a record is right or it is refused.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from crypto.errors import BadSignature, Malformed
from crypto.keys import PublicKey, parse_encryption_public
from crypto.recovery import RECOVERY_HASH_BYTES, check_consent, recovery_hash
from crypto.sealing import HASH_BYTES, SEAL_OVERHEAD_BYTES, WRAPPED_KEY_BYTES, chunk_hash, chunk_hashes
from crypto.signing import RECORD_ID_BYTES, SIGNATURE_BYTES, Statement, record_id, verify_record
from node.config import (
    BODY_LIMIT_BYTES,
    CHUNK_BYTES,
    CHUNK_MAX_BYTES,
    CHUNK_MIN_BYTES,
    HEADER_LIMIT_BYTES,
    PAYLOAD_LIMIT_BYTES,
    PROTOCOL_VERSION,
    ROSTER_PAYLOAD_LIMIT_BYTES,
)
from node.errors import RecordError, RosterError
from node.roster import SignedRoster, check_carried

INCARNATION_BYTES: Final = 8
NO_INCARNATION: Final = bytes(INCARNATION_BYTES)
MAX_GOOD: Final = 256
DATASET_TAG_BYTES: Final = 16
MAX_HEAD_DATASETS: Final = 100
MAX_ACCEPTED: Final = 64
MAX_CHARGES: Final = 32
MAX_LEDGER_POSITION: Final = 2**53
MAX_CAP_EPSILON: Final = 100.0
MAX_DELTA: Final = 1e-5
TASK_ID_BYTES: Final = 32
MAX_SEQUENCE: Final = 2**63 - 1
CORE_LABEL: Final = b"tidings/v1/core\0"


class Kind(enum.IntEnum):
    """What a record is for; the numbers are the wire's."""

    KEY_CARD = 1
    KEY_GRANT = 2
    TASK = 3
    SUMMARY = 4
    MODEL = 5
    WITHDRAWAL = 6
    HEAD = 7
    EVIDENCE = 8
    ROSTER = 9
    REVOKE = 10
    SUCCESSION = 11

    @property
    def label(self) -> str:
        """The kind's name in signatures and for people: `key-card`."""
        return self.name.lower().replace("_", "-")


class Need(enum.Enum):
    """Whether a kind must, may or must not have a field."""

    MUST = "must"
    MAY = "may"
    NOT = "must not"


class Payload(enum.Enum):
    """What rides in a header's payload."""

    NONE = "none"
    KEY_CARD = "key card"
    KEY_GRANT = "key grant"
    HEAD = "head"
    ROSTER = "signed roster"
    EVIDENCE = "evidence"
    REVOCATION = "revocation"
    SUCCESSION = "succession"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of record looks like."""

    body: Need
    epoch: Need
    task_id: Need
    recipient: Need
    supersedes: Need
    payload: Payload


RULES: Final = {
    #                    body       epoch      task_id    recipient  supersedes payload
    Kind.KEY_CARD: Rule(Need.NOT, Need.NOT, Need.NOT, Need.NOT, Need.NOT, Payload.KEY_CARD),
    Kind.KEY_GRANT: Rule(Need.NOT, Need.MUST, Need.NOT, Need.MUST, Need.NOT, Payload.KEY_GRANT),
    Kind.TASK: Rule(Need.MUST, Need.MUST, Need.MUST, Need.NOT, Need.NOT, Payload.NONE),
    Kind.SUMMARY: Rule(Need.MUST, Need.MUST, Need.MUST, Need.NOT, Need.MAY, Payload.NONE),
    Kind.MODEL: Rule(Need.MUST, Need.MUST, Need.MUST, Need.NOT, Need.MAY, Payload.NONE),
    Kind.WITHDRAWAL: Rule(Need.NOT, Need.NOT, Need.MAY, Need.NOT, Need.MUST, Payload.NONE),
    Kind.HEAD: Rule(Need.NOT, Need.NOT, Need.NOT, Need.NOT, Need.MAY, Payload.HEAD),
    Kind.EVIDENCE: Rule(Need.NOT, Need.NOT, Need.NOT, Need.NOT, Need.NOT, Payload.EVIDENCE),
    Kind.ROSTER: Rule(Need.NOT, Need.NOT, Need.NOT, Need.NOT, Need.NOT, Payload.ROSTER),
    Kind.REVOKE: Rule(Need.NOT, Need.NOT, Need.NOT, Need.NOT, Need.NOT, Payload.REVOCATION),
    Kind.SUCCESSION: Rule(Need.NOT, Need.NOT, Need.NOT, Need.NOT, Need.NOT, Payload.SUCCESSION),
}  # fmt: skip

PAYLOAD_LIMITS: Final = {Kind.ROSTER: ROSTER_PAYLOAD_LIMIT_BYTES}
"""Kinds whose payload may be larger than PAYLOAD_LIMIT_BYTES."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an origin says about a record; proto/tidings.proto says what each field means."""

    kind: Kind
    origin: PublicKey
    incarnation: bytes
    sequence: int
    created_unix_ms: int
    version: int = PROTOCOL_VERSION
    coalition: bytes = b""
    epoch: int = 0
    body_bytes: int = 0
    chunk_bytes: int = 0
    chunk_hashes: tuple[bytes, ...] = ()
    key_commitment: bytes = b""
    task_id: bytes = b""
    recipient: PublicKey | None = None
    supersedes: bytes = b""
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Record:
    """A header, its bytes as signed, the signature, and the id: the hash of those bytes."""

    header: Header
    header_bytes: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    id: bytes


@dataclass(frozen=True, slots=True)
class KeyCard:
    """The payload of a KEY_CARD; the hash is that of the origin's recovery key, or empty."""

    encryption_public: bytes
    recovery_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """The payload of a KEY_GRANT: the epoch key, and the id of the key card it was wrapped to."""

    wrapped_key: bytes
    key_card: bytes


@dataclass(frozen=True, slots=True)
class DatasetTotal:
    """What one dataset of an origin was charged so far, under a tag that hides its name."""

    tag: bytes
    cap_epsilon: float
    delta: float
    charged: tuple[int, ...]  # units of 2^-40; never shrinks from one HEAD to the next


@dataclass(frozen=True, slots=True)
class Head:
    """The payload of a HEAD: how far its origin's records and privacy ledger have come."""

    highest_sequence: int
    records_digest: bytes
    ledger_position: int
    ledger_head: bytes
    datasets: tuple[DatasetTotal, ...]
    accepted: tuple[bytes, ...] = ()  # HEADs of another copy of the ledger, whose increases are in the totals


Slot = tuple[bytes, bytes, int]
"""The number of a record: its origin's key, incarnation and sequence. An honest origin signs one record with each."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One of the records that an evidence is about, as far as its origin signed it (`statement_of`)."""

    kind: Kind
    id: bytes
    supersedes: bytes
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The payload of an EVIDENCE: two records that `accused` signed with one number, by ascending id."""

    accused: PublicKey
    incarnation: bytes
    sequence: int
    claims: tuple[Claim, ...]

    @property
    def slot(self) -> Slot:
        """The number of both."""
        return self.accused.raw, self.incarnation, self.sequence

    @property
    def targets(self) -> frozenset[bytes]:
        """The ids of what the two take back. A HEAD takes nothing back: it follows."""
        named = (claim.supersedes for claim in self.claims if claim.kind is not Kind.HEAD)
        return frozenset(target for target in named if target)


LastGood = tuple[tuple[bytes, int], ...]
"""Incarnations, ascending, each with the last sequence that counts."""


def newest(highest: Mapping[bytes, int]) -> LastGood:
    """These last sequences, of the incarnations that came last if a record cannot hold all of them."""
    return tuple(sorted(list(highest.items())[-MAX_GOOD:]))


@dataclass(frozen=True, slots=True)
class Succession:
    """The payload of a SUCCESSION: who takes the origin's place, and its consent."""

    successor: PublicKey
    consent: bytes
    good: LastGood


@dataclass(frozen=True, slots=True)
class Revocation:
    """The payload of a REVOKE, signed by the recovery key."""

    recovery_key: PublicKey
    good: LastGood
    successor: PublicKey | None = None
    consent: bytes = b""

    @property
    def recovery_hash(self) -> bytes:
        """What the origin must have published for this to count."""
        return recovery_hash(self.recovery_key)


PayloadContent = KeyCard | KeyGrant | Head | Evidence | SignedRoster | Revocation | Succession


class HeldState(enum.StrEnum):
    """What is held of a record. COMPLETE and BURIED are settled: nothing more of it is wanted."""

    COMPLETE = "complete"
    FETCHING = "fetching"
    BURIED = "buried"


@dataclass(frozen=True, slots=True)
class Held:
    """A record in the store: which chunks are missing, and which record took it back, if one did."""

    record: Record
    state: HeldState
    received_at: float
    missing: tuple[int, ...] = ()
    buried_by: bytes | None = None


def core(header: Header) -> bytes:
    """The bytes that a seal binds a body to: label, then each field with its length in 4 bytes, big-endian."""
    fields = (
        header.origin.raw,
        header.coalition,
        header.task_id,
        header.incarnation,
        header.sequence.to_bytes(8, "big"),
    )
    return CORE_LABEL + b"".join(len(part).to_bytes(4, "big") + part for part in fields)


def statement_of(header: Header, id_: bytes) -> Statement:
    """What the origin of the record with this header and id signs."""
    return Statement(header.kind.label, header.incarnation, header.sequence, header.supersedes, id_)


def with_body(header: Header, body: bytes, key_commitment: bytes) -> Header:
    """The header of a record that carries this sealed body, in chunks of the usual size."""
    return replace(
        header,
        body_bytes=len(body),
        chunk_bytes=CHUNK_BYTES,
        chunk_hashes=chunk_hashes(body, CHUNK_BYTES),
        key_commitment=key_commitment,
    )


def chunk_size(header: Header, index: int) -> int:
    """How many bytes chunk `index` has; only the last one may be short."""
    return min(header.chunk_bytes, header.body_bytes - index * header.chunk_bytes)


def cut(body: bytes, chunk_bytes: int) -> list[bytes]:
    """What claims to be a body, in chunks of the size that its header states, the last one perhaps shorter."""
    step = max(chunk_bytes, CHUNK_MIN_BYTES)  # a record without a body states none
    return [body[start : start + step] for start in range(0, len(body), step)]


def is_chunk(header: Header, index: int, data: bytes) -> bool:
    """Whether this is chunk `index` of the body. Its size counts too: an origin can list the hash of something else."""
    hashes = header.chunk_hashes
    return index < len(hashes) and len(data) == chunk_size(header, index) and chunk_hash(data) == hashes[index]


def can_bury(later: Header, earlier: Header) -> bool:
    """Whether `later` may take back `earlier`, if it names it: only what has a body, and only by its own
    origin. A HEAD takes nothing back: it follows."""
    return later.origin == earlier.origin and earlier.body_bytes > 0 and later.kind is not Kind.HEAD


def slot_of(header: Header) -> Slot:
    """The number of a record."""
    return header.origin.raw, header.incarnation, header.sequence


def claim_of(record: Record) -> Claim:
    """What proves that its origin signed this record, without the header."""
    return Claim(record.header.kind, record.id, record.header.supersedes, record.signature)


def evidence_of(record: Record, other: Claim) -> Evidence:
    """The proof that the origin of `record` signed another one, `other`, with its number."""
    header = record.header
    claims = sorted((claim_of(record), other), key=lambda claim: claim.id)
    return Evidence(header.origin, header.incarnation, header.sequence, tuple(claims))


# -------------------------------------------------------------------------------------------------- the rules, in order


def check_sizes(header_bytes: bytes, signature: bytes) -> None:
    """Rule 1."""
    if not 1 <= len(header_bytes) <= HEADER_LIMIT_BYTES:
        raise RecordError(f"A header has 1 to {HEADER_LIMIT_BYTES} bytes, this one {len(header_bytes)}.")
    if len(signature) != SIGNATURE_BYTES:
        raise RecordError(f"A signature has {SIGNATURE_BYTES} bytes, this one {len(signature)}.")


def check_header(header: Header) -> None:
    """Rules 3 to 6; RecordError names the first that is broken."""
    _check_version(header)
    _check_number(header.incarnation, header.sequence)
    if (header.incarnation == NO_INCARNATION) != (header.kind is Kind.REVOKE):
        raise RecordError("A revocation has no incarnation, and every other record has one.")
    _check_kind(header)
    _check_body(header)


def check_payload(kind: Kind, payload: PayloadContent | None) -> None:
    """Rule 7, once the payload is decoded."""
    match payload:
        case KeyCard():
            _check_key_card(payload)
        case KeyGrant(wrapped_key) if len(wrapped_key) != WRAPPED_KEY_BYTES:
            raise RecordError(f"A wrapped epoch key has {WRAPPED_KEY_BYTES} bytes.")
        case KeyGrant(_, key_card) if len(key_card) != RECORD_ID_BYTES:
            raise RecordError(f"A key grant names its key card by {RECORD_ID_BYTES} bytes.")
        case Head():
            _check_head(payload)
        case SignedRoster():
            _check_roster(payload)
        case Revocation() | Succession():
            _check_last_good(payload.good)
        case Evidence():
            _check_evidence(payload)


def check_proof(evidence: Evidence) -> None:
    """Rule 9: whoever carries it, evidence is true if the accused signed both claims; RecordError if it did not."""
    for claim in evidence.claims:
        statement = Statement(claim.kind.label, evidence.incarnation, evidence.sequence, claim.supersedes, claim.id)
        try:
            verify_record(evidence.accused, statement, claim.signature)
        except BadSignature as error:
            raise RecordError(f"This evidence names a record that {evidence.accused.short} did not sign.") from error


def signed_record(header: Header, header_bytes: bytes, signature: bytes, payload: PayloadContent | None) -> Record:
    """Rule 8: the record, if who must sign these bytes has signed them; RecordError otherwise."""
    id_ = record_id(header_bytes)
    _check_signer(header, id_, signature, payload)
    if isinstance(payload, Revocation | Succession):
        _check_successor(header, payload)
    return Record(header, header_bytes, signature, id_)


def _check_signer(header: Header, id_: bytes, signature: bytes, payload: PayloadContent | None) -> None:
    signer = payload.recovery_key if isinstance(payload, Revocation) else header.origin
    try:
        verify_record(signer, statement_of(header, id_), signature)
    except BadSignature as error:
        whose = f"{header.origin.short}'s" if signer == header.origin else "that of its recovery key"
        raise RecordError(f"The signature of a {header.kind.label} is not {whose}.") from error


def _check_successor(header: Header, payload: Revocation | Succession) -> None:
    if payload.successor == header.origin:
        raise RecordError("An identity cannot take the place of itself.")
    if payload.successor is None:
        if payload.consent:
            raise RecordError("A revocation holds the consent of a successor that it does not name.")
        return
    try:
        check_consent(payload.successor, header.origin, payload.consent)
    except BadSignature as error:
        raise RecordError(f"{payload.successor.short} has not signed that it takes the place of another.") from error


def _check_version(header: Header) -> None:
    if header.version != PROTOCOL_VERSION:
        raise RecordError(f"A record of version {header.version} is newer than this node; update it.")
    if header.kind not in RULES:
        raise RecordError(f"A record of kind {header.kind.label} is not accepted by version {PROTOCOL_VERSION}.")
    if header.coalition:
        raise RecordError("A record names a coalition, and this version knows none.")


def _check_number(incarnation: bytes, sequence: int) -> None:
    if len(incarnation) != INCARNATION_BYTES:
        raise RecordError(f"An incarnation has {INCARNATION_BYTES} bytes, this one {len(incarnation)}.")
    if not 1 <= sequence <= MAX_SEQUENCE:
        raise RecordError(f"A sequence is from 1 to 2^63 - 1, this one is {sequence}.")


def _check_kind(header: Header) -> None:
    rule = RULES[header.kind]
    fields: tuple[tuple[str, Need, bool], ...] = (
        ("body", rule.body, header.body_bytes > 0),
        ("key epoch", rule.epoch, header.epoch > 0),
        ("task", rule.task_id, bool(header.task_id)),
        ("recipient", rule.recipient, header.recipient is not None),
        ("superseded record", rule.supersedes, bool(header.supersedes)),
    )
    for name, need, is_there in fields:
        if (need is Need.MUST and not is_there) or (need is Need.NOT and is_there):
            raise RecordError(f"A {header.kind.label} {need.value} have a {name}.")
    if header.task_id and len(header.task_id) != TASK_ID_BYTES:
        raise RecordError(f"A task id has {TASK_ID_BYTES} bytes, this one {len(header.task_id)}.")
    if header.supersedes and len(header.supersedes) != RECORD_ID_BYTES:
        raise RecordError(f"A record id has {RECORD_ID_BYTES} bytes, the superseded one {len(header.supersedes)}.")
    limit = PAYLOAD_LIMITS.get(header.kind, PAYLOAD_LIMIT_BYTES)
    if len(header.payload) > limit:
        raise RecordError(f"The payload of a {header.kind.label} has at most {limit} bytes, not {len(header.payload)}.")
    if rule.payload is Payload.NONE and header.payload:
        raise RecordError(f"A {header.kind.label} must not have a payload.")


def _check_body(header: Header) -> None:
    if header.body_bytes == 0:
        if header.chunk_bytes or header.chunk_hashes or header.key_commitment:
            raise RecordError(f"A {header.kind.label} describes chunks of a body that it does not have.")
        return
    if not SEAL_OVERHEAD_BYTES <= header.body_bytes <= BODY_LIMIT_BYTES:
        raise RecordError(f"A sealed body of {header.body_bytes} bytes is too small or above {BODY_LIMIT_BYTES}.")
    if not CHUNK_MIN_BYTES <= header.chunk_bytes <= CHUNK_MAX_BYTES:
        raise RecordError(f"Chunks of {header.chunk_bytes} bytes are not from {CHUNK_MIN_BYTES} to {CHUNK_MAX_BYTES}.")
    if len(header.chunk_hashes) != -(-header.body_bytes // header.chunk_bytes):
        raise RecordError(f"{len(header.chunk_hashes)} chunk hashes do not fit a body of {header.body_bytes} bytes.")
    if any(len(chunk_hash) != HASH_BYTES for chunk_hash in header.chunk_hashes):
        raise RecordError(f"A chunk hash has {HASH_BYTES} bytes.")
    if len(header.key_commitment) != HASH_BYTES:
        raise RecordError(f"A key commitment has {HASH_BYTES} bytes, this one {len(header.key_commitment)}.")


def _check_key_card(card: KeyCard) -> None:
    try:
        parse_encryption_public(card.encryption_public)
    except Malformed as error:
        raise RecordError(f"The encryption key of a key card cannot be used: {error}") from error
    if card.recovery_hash and len(card.recovery_hash) != RECOVERY_HASH_BYTES:
        raise RecordError(f"The hash of a recovery key has {RECOVERY_HASH_BYTES} bytes.")


def _check_last_good(good: LastGood) -> None:
    if len(good) > MAX_GOOD:
        raise RecordError(f"An identity ends with the last numbers of at most {MAX_GOOD} incarnations.")
    incarnations = [incarnation for incarnation, _ in good]
    if any(len(one) != INCARNATION_BYTES or one == NO_INCARNATION for one in incarnations):
        raise RecordError(f"An incarnation has {INCARNATION_BYTES} bytes, and they are not all zero.")
    if any(a >= b for a, b in itertools.pairwise(incarnations)):
        raise RecordError("The incarnations of an identity that ends come in ascending order, each once.")
    if not all(1 <= sequence <= MAX_SEQUENCE for _, sequence in good):
        raise RecordError("A last sequence is from 1 to 2^63 - 1.")


def _check_evidence(evidence: Evidence) -> None:
    _check_number(evidence.incarnation, evidence.sequence)
    if evidence.incarnation == NO_INCARNATION:
        raise RecordError("Evidence is of numbers that the accused gives; those of revocations are drawn.")
    if len(evidence.claims) != 2:
        raise RecordError(f"Evidence is of 2 records, this one of {len(evidence.claims)}.")
    for claim in evidence.claims:
        if len(claim.id) != RECORD_ID_BYTES or len(claim.supersedes) not in (0, RECORD_ID_BYTES):
            raise RecordError(f"Evidence names records by {RECORD_ID_BYTES} bytes.")
        if len(claim.signature) != SIGNATURE_BYTES:
            raise RecordError(f"A signature in evidence has {SIGNATURE_BYTES} bytes, not {len(claim.signature)}.")
    first, second = evidence.claims
    if first.id >= second.id:
        raise RecordError("Evidence is of two different records, in ascending order of their ids.")


def _check_head(head: Head) -> None:
    if head.highest_sequence > MAX_SEQUENCE or head.ledger_position > MAX_LEDGER_POSITION:
        raise RecordError("A head names a sequence or a ledger position that cannot be.")
    if len(head.records_digest) != HASH_BYTES or len(head.ledger_head) != HASH_BYTES:
        raise RecordError(f"The digests of a head have {HASH_BYTES} bytes each.")
    if len(head.datasets) > MAX_HEAD_DATASETS:
        raise RecordError(f"A head tells of at most {MAX_HEAD_DATASETS} datasets, this one of {len(head.datasets)}.")
    if len(head.accepted) > MAX_ACCEPTED or any(len(one) != RECORD_ID_BYTES for one in head.accepted):
        raise RecordError(f"A head accepts at most {MAX_ACCEPTED} others, by ids of {RECORD_ID_BYTES} bytes.")
    tags = [total.tag for total in head.datasets]
    if any(len(tag) != DATASET_TAG_BYTES for tag in tags) or any(a >= b for a, b in itertools.pairwise(tags)):
        raise RecordError(f"The datasets of a head have tags of {DATASET_TAG_BYTES} bytes, in ascending order.")
    for total in head.datasets:
        if not (0 < total.cap_epsilon <= MAX_CAP_EPSILON and 0 < total.delta <= MAX_DELTA):
            raise RecordError("A head tells of a privacy budget that cannot be.")
        if not 1 <= len(total.charged) <= MAX_CHARGES:
            raise RecordError(f"A dataset was charged in 1 to {MAX_CHARGES} numbers, this one in {len(total.charged)}.")


def _check_roster(signed: SignedRoster) -> None:
    try:
        check_carried(signed)
    except RosterError as error:
        raise RecordError(f"The roster in a record is not one to pass on: {error}") from error
