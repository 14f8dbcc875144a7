from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_KEY_CARD: _ClassVar[Kind]
    KIND_KEY_GRANT: _ClassVar[Kind]
    KIND_TASK: _ClassVar[Kind]
    KIND_SUMMARY: _ClassVar[Kind]
    KIND_MODEL: _ClassVar[Kind]
    KIND_WITHDRAWAL: _ClassVar[Kind]
    KIND_HEAD: _ClassVar[Kind]
    KIND_EVIDENCE: _ClassVar[Kind]
    KIND_ROSTER: _ClassVar[Kind]
    KIND_REVOKE: _ClassVar[Kind]
    KIND_SUCCESSION: _ClassVar[Kind]
KIND_UNSPECIFIED: Kind
KIND_KEY_CARD: Kind
KIND_KEY_GRANT: Kind
KIND_TASK: Kind
KIND_SUMMARY: Kind
KIND_MODEL: Kind
KIND_WITHDRAWAL: Kind
KIND_HEAD: Kind
KIND_EVIDENCE: Kind
KIND_ROSTER: Kind
KIND_REVOKE: Kind
KIND_SUCCESSION: Kind

class SignedRecord(_message.Message):
    __slots__ = ("header", "signature", "body")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    signature: bytes
    body: bytes
    def __init__(self, header: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("version", "kind", "coalition", "origin", "incarnation", "sequence", "created_unix_ms", "epoch", "body_bytes", "chunk_bytes", "chunk_hashes", "key_commitment", "task_id", "recipient", "supersedes", "payload")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    COALITION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_HASHES_FIELD_NUMBER: _ClassVar[int]
    KEY_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    version: int
    kind: Kind
    coalition: bytes
    origin: bytes
    incarnation: bytes
    sequence: int
    created_unix_ms: int
    epoch: int
    body_bytes: int
    chunk_bytes: int
    chunk_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    key_commitment: bytes
    task_id: bytes
    recipient: bytes
    supersedes: bytes
    payload: bytes
    def __init__(self, version: _Optional[int] = ..., kind: _Optional[_Union[Kind, str]] = ..., coalition: _Optional[bytes] = ..., origin: _Optional[bytes] = ..., incarnation: _Optional[bytes] = ..., sequence: _Optional[int] = ..., created_unix_ms: _Optional[int] = ..., epoch: _Optional[int] = ..., body_bytes: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., chunk_hashes: _Optional[_Iterable[bytes]] = ..., key_commitment: _Optional[bytes] = ..., task_id: _Optional[bytes] = ..., recipient: _Optional[bytes] = ..., supersedes: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...

class KeyCard(_message.Message):
    __slots__ = ("encryption_public", "recovery_hash")
    ENCRYPTION_PUBLIC_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_HASH_FIELD_NUMBER: _ClassVar[int]
    encryption_public: bytes
    recovery_hash: bytes
    def __init__(self, encryption_public: _Optional[bytes] = ..., recovery_hash: _Optional[bytes] = ...) -> None: ...

class LastGood(_message.Message):
    __slots__ = ("incarnation", "sequence")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    incarnation: bytes
    sequence: int
    def __init__(self, incarnation: _Optional[bytes] = ..., sequence: _Optional[int] = ...) -> None: ...

class Succession(_message.Message):
    __slots__ = ("successor", "consent", "good")
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    GOOD_FIELD_NUMBER: _ClassVar[int]
    successor: bytes
    consent: bytes
    good: _containers.RepeatedCompositeFieldContainer[LastGood]
    def __init__(self, successor: _Optional[bytes] = ..., consent: _Optional[bytes] = ..., good: _Optional[_Iterable[_Union[LastGood, _Mapping]]] = ...) -> None: ...

class Revocation(_message.Message):
    __slots__ = ("recovery_key", "good", "successor", "consent")
    RECOVERY_KEY_FIELD_NUMBER: _ClassVar[int]
    GOOD_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    recovery_key: bytes
    good: _containers.RepeatedCompositeFieldContainer[LastGood]
    successor: bytes
    consent: bytes
    def __init__(self, recovery_key: _Optional[bytes] = ..., good: _Optional[_Iterable[_Union[LastGood, _Mapping]]] = ..., successor: _Optional[bytes] = ..., consent: _Optional[bytes] = ...) -> None: ...

class KeyGrant(_message.Message):
    __slots__ = ("wrapped_key", "key_card")
    WRAPPED_KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_CARD_FIELD_NUMBER: _ClassVar[int]
    wrapped_key: bytes
    key_card: bytes
    def __init__(self, wrapped_key: _Optional[bytes] = ..., key_card: _Optional[bytes] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("accused", "incarnation", "sequence", "claims")
    ACCUSED_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    accused: bytes
    incarnation: bytes
    sequence: int
    claims: _containers.RepeatedCompositeFieldContainer[Claim]
    def __init__(self, accused: _Optional[bytes] = ..., incarnation: _Optional[bytes] = ..., sequence: _Optional[int] = ..., claims: _Optional[_Iterable[_Union[Claim, _Mapping]]] = ...) -> None: ...

class Claim(_message.Message):
    __slots__ = ("kind", "id", "supersedes", "signature")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    id: bytes
    supersedes: bytes
    signature: bytes
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., id: _Optional[bytes] = ..., supersedes: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("highest_sequence", "records_digest", "ledger_position", "ledger_head", "datasets", "accepted")
    HIGHEST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LEDGER_POSITION_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    highest_sequence: int
    records_digest: bytes
    ledger_position: int
    ledger_head: bytes
    datasets: _containers.RepeatedCompositeFieldContainer[DatasetTotal]
    accepted: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, highest_sequence: _Optional[int] = ..., records_digest: _Optional[bytes] = ..., ledger_position: _Optional[int] = ..., ledger_head: _Optional[bytes] = ..., datasets: _Optional[_Iterable[_Union[DatasetTotal, _Mapping]]] = ..., accepted: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DatasetTotal(_message.Message):
    __slots__ = ("tag", "cap_epsilon", "delta", "charged")
    TAG_FIELD_NUMBER: _ClassVar[int]
    CAP_EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    CHARGED_FIELD_NUMBER: _ClassVar[int]
    tag: bytes
    cap_epsilon: float
    delta: float
    charged: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tag: _Optional[bytes] = ..., cap_epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., charged: _Optional[_Iterable[int]] = ...) -> None: ...

class SignedRoster(_message.Message):
    __slots__ = ("document", "signatures")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    signatures: _containers.RepeatedCompositeFieldContainer[RosterSignature]
    def __init__(self, document: _Optional[bytes] = ..., signatures: _Optional[_Iterable[_Union[RosterSignature, _Mapping]]] = ...) -> None: ...

class RosterSignature(_message.Message):
    __slots__ = ("administrator", "signature")
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    administrator: bytes
    signature: bytes
    def __init__(self, administrator: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("format", "version", "coalition", "previous", "name", "administrators", "threshold", "members")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COALITION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATORS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    format: int
    version: int
    coalition: bytes
    previous: bytes
    name: str
    administrators: _containers.RepeatedScalarFieldContainer[bytes]
    threshold: int
    members: _containers.RepeatedCompositeFieldContainer[RosterMember]
    def __init__(self, format: _Optional[int] = ..., version: _Optional[int] = ..., coalition: _Optional[bytes] = ..., previous: _Optional[bytes] = ..., name: _Optional[str] = ..., administrators: _Optional[_Iterable[bytes]] = ..., threshold: _Optional[int] = ..., members: _Optional[_Iterable[_Union[RosterMember, _Mapping]]] = ...) -> None: ...

class RosterMember(_message.Message):
    __slots__ = ("key", "name", "addresses", "query_only")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    QUERY_ONLY_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    query_only: bool
    def __init__(self, key: _Optional[bytes] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., query_only: _Optional[bool] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("hello", "digest", "origins", "vector", "ids", "announce", "want", "records", "want_chunks", "chunk", "missing", "spans", "bye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCE_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    WANT_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    digest: Digest
    origins: Origins
    vector: Vector
    ids: Ids
    announce: Announce
    want: Want
    records: Records
    want_chunks: WantChunks
    chunk: Chunk
    missing: Missing
    spans: Spans
    bye: Bye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., digest: _Optional[_Union[Digest, _Mapping]] = ..., origins: _Optional[_Union[Origins, _Mapping]] = ..., vector: _Optional[_Union[Vector, _Mapping]] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., announce: _Optional[_Union[Announce, _Mapping]] = ..., want: _Optional[_Union[Want, _Mapping]] = ..., records: _Optional[_Union[Records, _Mapping]] = ..., want_chunks: _Optional[_Union[WantChunks, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., missing: _Optional[_Union[Missing, _Mapping]] = ..., spans: _Optional[_Union[Spans, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "store_id", "clock_unix_ms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    CLOCK_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    version: int
    store_id: bytes
    clock_unix_ms: int
    def __init__(self, version: _Optional[int] = ..., store_id: _Optional[bytes] = ..., clock_unix_ms: _Optional[int] = ...) -> None: ...

class Digest(_message.Message):
    __slots__ = ("root", "common")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    COMMON_FIELD_NUMBER: _ClassVar[int]
    root: bytes
    common: bytes
    def __init__(self, root: _Optional[bytes] = ..., common: _Optional[bytes] = ...) -> None: ...

class Origins(_message.Message):
    __slots__ = ("origins", "prefixes", "common")
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    COMMON_FIELD_NUMBER: _ClassVar[int]
    origins: _containers.RepeatedCompositeFieldContainer[OriginDigest]
    prefixes: _containers.RepeatedScalarFieldContainer[str]
    common: bytes
    def __init__(self, origins: _Optional[_Iterable[_Union[OriginDigest, _Mapping]]] = ..., prefixes: _Optional[_Iterable[str]] = ..., common: _Optional[bytes] = ...) -> None: ...

class Spans(_message.Message):
    __slots__ = ("spans",)
    SPANS_FIELD_NUMBER: _ClassVar[int]
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("prefix", "digests")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, prefix: _Optional[str] = ..., digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class OriginDigest(_message.Message):
    __slots__ = ("origin", "digest")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    origin: bytes
    digest: bytes
    def __init__(self, origin: _Optional[bytes] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("origins", "reply")
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    origins: _containers.RepeatedCompositeFieldContainer[OriginVector]
    reply: bool
    def __init__(self, origins: _Optional[_Iterable[_Union[OriginVector, _Mapping]]] = ..., reply: _Optional[bool] = ...) -> None: ...

class OriginVector(_message.Message):
    __slots__ = ("origin", "digest", "incarnations")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    origin: bytes
    digest: bytes
    incarnations: _containers.RepeatedCompositeFieldContainer[IncarnationRanges]
    def __init__(self, origin: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., incarnations: _Optional[_Iterable[_Union[IncarnationRanges, _Mapping]]] = ...) -> None: ...

class IncarnationRanges(_message.Message):
    __slots__ = ("incarnation", "bounds")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    incarnation: bytes
    bounds: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, incarnation: _Optional[bytes] = ..., bounds: _Optional[_Iterable[int]] = ...) -> None: ...

class Ids(_message.Message):
    __slots__ = ("origin", "ids", "reply")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    origin: bytes
    ids: _containers.RepeatedScalarFieldContainer[bytes]
    reply: bool
    def __init__(self, origin: _Optional[bytes] = ..., ids: _Optional[_Iterable[bytes]] = ..., reply: _Optional[bool] = ...) -> None: ...

class Announce(_message.Message):
    __slots__ = ("adverts",)
    ADVERTS_FIELD_NUMBER: _ClassVar[int]
    adverts: _containers.RepeatedCompositeFieldContainer[Advert]
    def __init__(self, adverts: _Optional[_Iterable[_Union[Advert, _Mapping]]] = ...) -> None: ...

class Advert(_message.Message):
    __slots__ = ("id", "kind", "origin", "body_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    kind: Kind
    origin: bytes
    body_bytes: int
    def __init__(self, id: _Optional[bytes] = ..., kind: _Optional[_Union[Kind, str]] = ..., origin: _Optional[bytes] = ..., body_bytes: _Optional[int] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Records(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[SignedRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[SignedRecord, _Mapping]]] = ...) -> None: ...

class WantChunks(_message.Message):
    __slots__ = ("id", "indexes", "together")
    ID_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    indexes: _containers.RepeatedScalarFieldContainer[int]
    together: int
    def __init__(self, id: _Optional[bytes] = ..., indexes: _Optional[_Iterable[int]] = ..., together: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("id", "index", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    index: int
    data: bytes
    def __init__(self, id: _Optional[bytes] = ..., index: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Missing(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    def __init__(self, id: _Optional[bytes] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("task_id", "head", "only_origins", "without_origins", "format", "robust")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    ONLY_ORIGINS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_ORIGINS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ROBUST_FIELD_NUMBER: _ClassVar[int]
    task_id: bytes
    head: str
    only_origins: _containers.RepeatedScalarFieldContainer[bytes]
    without_origins: _containers.RepeatedScalarFieldContainer[bytes]
    format: str
    robust: int
    def __init__(self, task_id: _Optional[bytes] = ..., head: _Optional[str] = ..., only_origins: _Optional[_Iterable[bytes]] = ..., without_origins: _Optional[_Iterable[bytes]] = ..., format: _Optional[str] = ..., robust: _Optional[int] = ...) -> None: ...

class QueryReply(_message.Message):
    __slots__ = ("progress", "chunk")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    progress: QueryProgress
    chunk: bytes
    def __init__(self, progress: _Optional[_Union[QueryProgress, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class QueryProgress(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...
