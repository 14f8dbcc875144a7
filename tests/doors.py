"""The doors: every function through which bytes from outside come in, with its limit, its errors, and what must hold.

One entry of `DOORS` is all that a decoder needs: golden files are made and checked (`make_vectors`, `test_vectors`),
docs/decoders.md must have its row, and it is fuzzed (`fuzz_door`, `test_fuzz`). To add one: the entry, its cases in
`vector_cases`, run `python -m tests.make_vectors DOOR`, add the row.

Keys here are made from fixed seeds, so that mutators can sign and seal what they changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.door_mutators import Change, Mutator, canonical_json, changed_json, compact, der, pem, png, protobuf, zipped
from tests.vector_files import VECTORS
from tests.vector_files import read as read_vector

Read = Callable[[bytes], Any]
MIB = 2**20


@dataclass(frozen=True)
class Door:
    """One decoder.

    `opens` names the function of the product; `open` gives it as bytes -> what comes out, with a folder for scratch
    files. `errors` are the only ones that may come, by name. An input has at most `max_bytes` when fuzzed; `memory_mb`
    is the most that one input may take beyond what the process has. `gives` turns what came out into bytes: the golden
    digest is theirs; with `is_stable` they are an input again, and give themselves. `modules` are those whose every
    refusal a golden file must show.
    """

    name: str
    opens: str
    open: Callable[[Path], Read]
    errors: tuple[str, ...]
    max_bytes: int = 4_096
    memory_mb: int = 64
    gives: Callable[[Any], bytes] = lambda result: repr(result).encode("utf-8", "surrogatepass")
    is_stable: bool = False
    mutate: Mutator | None = None
    modules: tuple[str, ...] = ()
    seconds: int = 5  # for one input
    short_runs: int = 2_000  # in `make test`
    instrument: tuple[str, ...] = field(default=("crypto", "fusion", "node"))


def digest(result: bytes) -> str:
    """What a golden file says of an accepted input."""
    return hashlib.blake2b(result, digest_size=32, person=b"tidings-vector").hexdigest()


# --------------------------------------------------------------------------------------------------------------- keys


@cache
def identity(seed: int = 7) -> Any:
    """Whoever signs in golden files."""
    from crypto.keys import Identity

    return Identity.from_seed(bytes([seed]) * 32)


@cache
def encryption_key() -> Any:
    """Whom golden files are sealed for."""
    from crypto.keys import EncryptionKey

    return EncryptionKey.from_bytes(bytes(range(96)))


# ------------------------------------------------------------------------------------------------- frames and records


def _frame(_: Path) -> Read:
    from node.wire import decode

    return decode


def _frame_bytes(frame: Any) -> bytes:
    from node.wire import encode

    return b"" if frame is None else encode(frame)


def _pb(name: str) -> Callable[[], Any]:
    def new() -> Any:
        from node.pb import tidings_pb2

        return getattr(tidings_pb2, name)()

    return new


def _record(_: Path) -> Read:
    """A SignedRecord as it stands in a frame, which was parsed with the frame."""
    from google.protobuf.message import DecodeError

    from node.errors import RecordError
    from node.pb import tidings_pb2 as pb
    from node.wire import read_record

    def read(data: bytes) -> Any:
        try:
            message = pb.SignedRecord.FromString(data)
        except DecodeError:
            raise RecordError("(frame) These bytes are not a record.") from None
        return read_record(message.header, message.signature)

    return read


def signed_record(header: bytes, signature: bytes) -> bytes:
    """A record as door `record` takes it."""
    from node.pb import tidings_pb2 as pb

    return pb.SignedRecord(header=header, signature=signature).SerializeToString()


RECOVERY = 9
"""The seed of the recovery key of the fixed identity."""


def signed_header(header: bytes) -> bytes:
    """The same with a signature by the fixed identity, or its recovery key, over what the header says of itself; with
    zeros where it cannot be read."""
    from crypto.signing import record_id, sign_record
    from node.errors import RecordError
    from node.records import Kind, statement_of
    from node.wire import read_header

    try:
        read = read_header(header)
        signer = identity(RECOVERY) if read.kind is Kind.REVOKE else identity()
        return signed_record(header, sign_record(signer, statement_of(read, record_id(header))))
    except RecordError:
        return signed_record(header, bytes(64))


def _changed_record(data: bytes, change: Change, rng: random.Random) -> bytes:
    from node.pb import tidings_pb2 as pb

    header = protobuf(_pb("Header"))(pb.SignedRecord.FromString(data).header, change, rng)
    return signed_header(header)


def _payload(kind: str) -> Callable[[Path], Read]:
    def open_payload(_: Path) -> Read:
        from node.records import Header, Kind
        from node.wire import read_payload

        def read(data: bytes) -> Any:
            return read_payload(Header(Kind[kind], identity().public_key, bytes(8), 1, 0, payload=data))

        return read

    return open_payload


def _payload_bytes(payload: Any) -> bytes:
    from node.wire import write_payload

    return write_payload(payload)


def _changed_evidence(data: bytes, change: Change, rng: random.Random) -> bytes:
    """Evidence with something changed, signed again by whom it accuses, as far as that is the fixed identity."""
    from crypto.signing import Statement, sign_record
    from node.pb import tidings_pb2 as pb
    from node.records import Kind

    message = pb.Evidence.FromString(protobuf(_pb("Evidence"))(data, change, rng))
    if rng.random() < 0.5:
        message.accused = identity().public_key.raw
    for claim in message.claims:
        with contextlib.suppress(ValueError):  # an unknown kind, a short id: then it stays as it is
            label = Kind(claim.kind).label
            statement = Statement(label, message.incarnation, message.sequence, claim.supersedes, claim.id)
            claim.signature = sign_record(identity(), statement)
    return message.SerializeToString()


def signed_roster(document: bytes, *seeds: int) -> bytes:
    """The payload of a ROSTER: a document, signed by the fixed identities of these seeds, or by the usual one."""
    from crypto.signing import ROSTER_LABEL, sign
    from node.pb import tidings_pb2 as pb

    signers = sorted((identity(seed) for seed in seeds or (7,)), key=lambda one: one.public_key)
    signatures = [
        pb.RosterSignature(administrator=one.public_key.raw, signature=sign(one, ROSTER_LABEL, document))
        for one in signers
    ]
    return pb.SignedRoster(document=document, signatures=signatures).SerializeToString()


def _changed_roster(data: bytes, change: Change, rng: random.Random) -> bytes:
    """A roster that says something else, signed again; sometimes only its signatures are changed."""
    from node.pb import tidings_pb2 as pb

    if rng.random() < 0.2:
        return protobuf(_pb("SignedRoster"))(data, change, rng)
    document = protobuf(_pb("Roster"))(pb.SignedRoster.FromString(data).document, change, rng)
    return signed_roster(document)


def _roster_file(_: Path) -> Read:
    from node.roster_wire import read_versions

    return lambda data: read_versions(data, "the file")


def roster_file(*payloads: bytes) -> bytes:
    """These versions as a file."""
    from node.roster_wire import FILE_START

    return FILE_START + b"".join(map(framed, payloads))


def _roster_file_bytes(versions: Any) -> bytes:
    from node.roster_wire import write_signed

    return roster_file(*map(write_signed, versions))


def _changed_roster_file(data: bytes, change: Change, rng: random.Random) -> bytes:
    from node.roster_wire import FILE_START

    content = data.removeprefix(FILE_START)
    size = int.from_bytes(content[:4], "big")
    return roster_file(_changed_roster(content[4 : 4 + size], change, rng), content[8 + size :])


def _query(_: Path) -> Read:
    from node.wire import query_from_bytes

    return query_from_bytes


def _query_bytes(query: Any) -> bytes:
    from node.wire import query_to_pb

    return query_to_pb(query).SerializeToString()


def _reply(_: Path) -> Read:
    from google.protobuf.message import DecodeError

    from node.errors import WireError
    from node.pb import tidings_pb2 as pb
    from node.wire import reply_from_pb

    def read(data: bytes) -> Any:
        try:
            message = pb.QueryReply.FromString(data)
        except DecodeError:
            raise WireError("(gRPC) These bytes are not a reply.") from None
        return reply_from_pb(message)

    return read


# ----------------------------------------------------------------------------------------------------- seals, bundles

CORE = b"tidings/v1/core of a vector"


@cache
def content_key() -> bytes:
    from crypto import sealing

    return sealing.content_key(bytes(32), CORE)


def _sealed_body(_: Path) -> Read:
    """The 32 bytes of the commitment, then the sealed body."""
    from crypto import sealing

    return lambda data: sealing.open_sealed(data[32:], content_key(), CORE, data[:32])


def sealed_body(plaintext: bytes) -> bytes:
    """Commitment and sealed body, as door `sealed-body` takes them."""
    return sealed_under(plaintext, content_key(), CORE)


def sealed_under(plaintext: bytes, key: bytes, core: bytes) -> bytes:
    """The same for another key or core; under a nonce of zeros, so that the bytes are always the same."""
    from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt

    from crypto import sealing

    nonce = bytes(sealing.NONCE_BYTES)
    core_hash = hashlib.blake2b(core, digest_size=32, person=sealing.CORE_PERSON).digest()
    return sealing.key_commitment(key) + nonce + encrypt(plaintext, core_hash, nonce, key)


def _changed_sealed(data: bytes, change: Change, rng: random.Random) -> bytes:
    return sealed_body(change(b"")) if rng.random() < 0.5 else data[:32] + change(data[32:])


def _wrapped_key(_: Path) -> Read:
    from crypto import sealing

    return lambda data: sealing.unwrap_epoch_key(data, encryption_key(), context=b"vector")


def _bundle(scratch: Path) -> Read:
    from node.bundle_file import BundleReader
    from node.errors import RecordError, WireError
    from node.frames import Records
    from node.wire import read_record

    def read(data: bytes) -> Any:
        reader = BundleReader(io.BytesIO(data), Path("the bundle"), identity().public_key, [encryption_key()])
        found: list[object] = [reader.is_sealed, reader.start]
        for frame in reader.frames():
            if isinstance(frame, Records):
                for signed in frame.records:
                    try:
                        found.append(read_record(signed.header_bytes, signed.signature).id)
                    except RecordError as error:
                        found.append(str(error))
            else:
                found.append(str(frame) if isinstance(frame, WireError) else (frame.id, frame.index, frame.data))
        return [*found, reader.ending.value, reader.is_signed]

    return read


def bundle_of(content: bytes, is_sealed: bool = False, to: bytes = bytes(32), is_cut: bool = False) -> bytes:
    """A bundle of these frames (each with its length, or whatever stands for them), signed by the fixed identity."""
    from crypto.signing import BUNDLE_LABEL, sign
    from node.bundle_file import DIGEST_PERSON, MAGIC

    preamble = MAGIC + bytes([1, is_sealed])
    to = bytes(identity().public_key.raw) if is_sealed else to
    start = identity().public_key.raw + to + (1_700_000_000_000).to_bytes(8, "big") + (1).to_bytes(8, "big")
    inside = start + content + (b"" if is_cut else bytes(4))
    hashed = hashlib.blake2b(preamble + inside, digest_size=32, person=DIGEST_PERSON).digest()
    inside += b"" if is_cut else sign(identity(), BUNDLE_LABEL, hashed)
    return preamble + (_sealed_content(inside) if is_sealed else inside)


@cache
def _stream_key() -> tuple[bytes, bytes]:
    from crypto import sealing

    key = bytes(range(32))
    return key, sealing.wrap_stream_key(key, encryption_key().public, context=identity().public_key.raw)


def _sealed_content(inside: bytes) -> bytes:
    from crypto.streams import BLOCK_BYTES, StreamSealer

    key, wrapped = _stream_key()
    sealer = StreamSealer(key)
    starts = range(0, len(inside), BLOCK_BYTES)
    blocks = [sealer.seal(inside[at : at + BLOCK_BYTES], is_last=at + BLOCK_BYTES >= len(inside)) for at in starts]
    return wrapped + sealer.header + b"".join(blocks)


def framed(frame: bytes) -> bytes:
    """A frame of a bundle: its length, then its bytes."""
    return len(frame).to_bytes(4, "big") + frame


def _changed_bundle(data: bytes, change: Change, rng: random.Random) -> bytes:
    content = data[16 + 80 : -68]
    frames, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        frames.append(content[at + 4 : at + 4 + size])
        at += 4 + size
    index = rng.randrange(len(frames))
    choice = rng.random()
    if choice < 0.4:
        frames[index] = protobuf(_pb("Frame"))(frames[index], change, rng)
    elif choice < 0.7:
        frames[index] = change(frames[index])
    elif choice < 0.85:
        frames.insert(index, rng.choice(frames))
    else:
        del frames[index]
    whole = b"".join(framed(one) for one in frames)
    if rng.random() < 0.2:
        whole = change(whole)
    return bundle_of(whole, rng.random() < 0.1, is_cut=rng.random() < 0.1)


# ----------------------------------------------------------------------------------------- tasks, summaries and models

TABULAR = """
name = "ward"
kind = "classification"
summary = "%s"
[label]
column = "outcome"
classes = [ { name = "home", values = ["0"] }, { name = "ward", values = ["1"] } ]
[privacy]
max_epsilon = 10.0
delta = 1e-5
[[columns]]
name = "age"
type = "number"
lower = 0
upper = 100
[[columns]]
name = "arrival"
type = "category"
values = ["walk", "ambulance"]
[encoder]
kind = "tabular"
"""
REGRESSION = TABULAR.replace('"classification"', '"regression"').replace(
    'classes = [ { name = "home", values = ["0"] }, { name = "ward", values = ["1"] } ]', "lower = 0\nupper = 40"
)
SUMMARY_KINDS = ("moments", "mean-embedding", "class-moments", "histograms", "residual-moments", "model")


@cache
def task_of(kind: str = "moments", *, regression: bool = False) -> Any:
    """The small task that golden files are of."""
    from fusion.task import Task

    return Task.from_toml((REGRESSION if regression else TABULAR) % kind, "ward.toml")


def _task(_: Path) -> Read:
    from fusion.task import Task

    return Task.from_canonical


def _task_file(scratch: Path) -> Read:
    """A file with a model beside it that it may name."""
    from node.tasks import read_file

    path = scratch / "task.toml"
    (scratch / "model.safetensors").write_bytes(read_vector(VECTORS / "model-file" / "good.json").data)

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        return read_file(path)

    return read


def _summary(_: Path) -> Read:
    from fusion.summary import Decoder

    tasks = [task_of(kind) for kind in SUMMARY_KINDS] + [task_of(regression=True)]
    decoders = {task.id.hex().encode(): Decoder(task) for task in tasks}

    def read(data: bytes) -> Any:
        named = next((decoder for task_id, decoder in decoders.items() if task_id in data[:2_048]), None)
        return (named or decoders[tasks[0].id.hex().encode()]).read(data)

    return read


SUMMARY_START = len(b"tidings-summary-1\n")


def summary_of(header: Any, planes: bytes) -> bytes:
    """A summary with this header (bytes, or JSON) and these planes."""
    import zstandard

    raw = header if isinstance(header, bytes) else compact(header)
    frame = zstandard.ZstdCompressor(level=1).compress(planes)
    return b"tidings-summary-1\n" + len(raw).to_bytes(4, "big") + raw + frame


def summary_parts(data: bytes) -> tuple[Any, bytes]:
    """Header and planes of a summary."""
    import json

    import zstandard

    size = int.from_bytes(data[SUMMARY_START : SUMMARY_START + 4], "big")
    at = SUMMARY_START + 4 + size
    planes = zstandard.ZstdDecompressor().decompress(data[at:], max_output_size=2**20)
    return json.loads(data[at - size : at]), planes


def _changed_summary(data: bytes, change: Change, rng: random.Random) -> bytes:
    header, planes = summary_parts(data)
    choice = rng.random()
    if choice < 0.5:
        return summary_of(changed_json(header, rng), planes)
    changed = change(planes)
    if choice < 0.9:
        changed = changed[: len(planes)].ljust(len(planes), b"\0")
    return summary_of(header, changed)


def _model_file(_: Path) -> Read:
    """The file, then who signed its card, then the card as people see it."""
    from fusion.card import describe
    from fusion.model_files import read_model
    from node.query import check_attestation

    def read(data: bytes) -> Any:
        model, card = read_model(data)
        return model, card, check_attestation(card), describe(card)

    return read


def _model_bytes(read: Any) -> bytes:
    model, card, signed_by, _ = read
    return bytes(model.digest) + signed_by.raw + compact(card)


def model_file(card: Any, tensors: Any, *, is_onnx: bool = False) -> bytes:
    """A model file of these parts with the digest that they have, signed, whatever else is wrong with them."""
    from crypto.signing import MODEL_CARD_LABEL, sign
    from fusion.artifact import Model
    from fusion.card import card_message
    from fusion.model_files import write_onnx, write_safetensors

    model = Model(card["manifest"], tensors)
    card = card | {"attestation": card["attestation"] | {"digest": model.digest.hex()}}
    signature = sign(identity(), MODEL_CARD_LABEL, card_message(card))
    card = card | {"attestation": card["attestation"] | {"signature": signature.hex()}}
    return (write_onnx if is_onnx else write_safetensors)(model, card)


def safetensors_parts(data: bytes) -> tuple[Any, Any]:
    """Card and tensors of a safetensors file."""
    import json

    from safetensors.numpy import load

    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["tidings.card"]), load(data)


def _changed_model(data: bytes, change: Change, rng: random.Random) -> bytes:
    if data[8:9] != b"{":
        return _changed_onnx(data, change, rng)
    card, tensors = safetensors_parts(data)
    if rng.random() < 0.75:
        card = changed_json(card, rng)
    else:
        name = rng.choice(list(tensors))
        tensor = tensors.pop(name)
        choice = rng.random()
        if choice < 0.3:
            tensors[rng.choice((name + "x", "layer9.weight", "layer0.square.weight"))] = tensor
        elif choice < 0.6:
            tensors[name] = rng.choice((tensor.astype("f8"), tensor[:-1], tensor.reshape(-1), tensor + float("inf")))
        elif choice < 0.9:
            import numpy as np

            raw = change(tensor.tobytes())[: tensor.nbytes].ljust(tensor.nbytes, b"\0")
            tensors[name] = np.frombuffer(raw, tensor.dtype).reshape(tensor.shape)
    return model_file(card, tensors)


def _changed_onnx(data: bytes, change: Change, rng: random.Random) -> bytes:
    import onnx

    return protobuf(onnx.ModelProto)(data, change, rng)


def _backbone(_: Path) -> Read:
    from fusion.encoders.backbone_checks import checked_graph

    settings, shape = backbone_settings()
    return lambda data: checked_graph(data, settings, shape)


@cache
def backbone_settings() -> tuple[Any, tuple[int, ...]]:
    """What the task of golden backbones says: two numbers in, three out."""
    from fusion.task import OnnxEncoder

    return OnnxEncoder("onnx", 0.4, "0" * 64, 1, 3), (1, 2)


# ---------------------------------------------------------------------------------------------- keys, files of a home


def _key_text(_: Path) -> Read:
    from crypto.keys import PublicKey

    return lambda data: PublicKey.parse(data.decode("utf-8", "replace"))


def _recovery_key(_: Path) -> Read:
    from crypto.recovery import RecoveryKey

    return lambda data: RecoveryKey.parse(data.decode("utf-8", "replace"))


def _changed_key_text(data: bytes, change: Change, rng: random.Random) -> bytes:
    from crypto import keys

    raw = change(keys.PublicKey.parse(data.decode()).raw)[:32].ljust(32, b"\0")
    return keys.TEXT_FORM.write(raw).encode()


def _keystore(scratch: Path) -> Read:
    from crypto import keystore

    path = scratch / "keystore.json"
    path.touch(mode=0o600)

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        return keystore.read(path)

    return read


def _keystore_bytes(result: Any) -> bytes:
    from crypto.keystore import Keystore

    return result.to_bytes() if isinstance(result, Keystore) else compact(result.fields())


def _changed_keystore(data: bytes, change: Change, rng: random.Random) -> bytes:
    import json

    fields = changed_json(json.loads(data), rng)
    if rng.random() < 0.7:
        fields["checksum"] = keystore_checksum(fields)
    return json.dumps(fields).encode()


def keystore_checksum(fields: Any) -> str:
    """What a keystore of these fields would say, so that what is behind the checksum is read."""
    if fields["version"] == 1:
        raw = bytes.fromhex(fields["identity_seed"]) + b"".join(map(bytes.fromhex, fields["encryption_keys"]))
        return hashlib.blake2b(raw, digest_size=32, person=b"tidings-store-v1").hexdigest()
    from crypto.keys import PublicKey

    ids = [bytes.fromhex(one) for one in fields["encryption_key_ids"]]
    kept = fields["protection"]
    parts = (
        b"tidings/v1/keystore\0",
        PublicKey.parse(fields["public_key"]).raw,
        len(ids).to_bytes(4, "big"),
        *ids,
        kept["operations"].to_bytes(4, "big"),
        kept["memory_bytes"].to_bytes(8, "big"),
        *(bytes.fromhex(one) for one in (kept["salt"], fields["nonce"], fields["sealed"])),
    )
    return hashlib.blake2b(b"".join(parts), digest_size=32, person=b"tidings-store-v2").hexdigest()


def _handed_keys(_: Path) -> Read:
    from crypto.keystore import Keystore

    return Keystore.from_bytes


def _settings(scratch: Path) -> Read:
    from node.home import read_settings

    path = scratch / "node.json"

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        return read_settings(path)

    return read


def _passphrase(scratch: Path) -> Read:
    from node.passphrase import source

    path = scratch / "passphrase"
    path.touch(mode=0o600)
    ask = source(path)

    def read(data: bytes) -> str:
        path.write_bytes(data)
        return ask(path)

    return read


def _address(_: Path) -> Read:
    from node.peers import check_address

    return lambda data: check_address(data.decode("utf-8", "replace"))


def _certificate(_: Path) -> Read:
    from crypto.tls import peer_identity

    return peer_identity


def _changed_certificate(data: bytes, change: Change, rng: random.Random) -> bytes:
    def inside(whole: bytes, change: Change, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return change(whole)
        tbs = change(_second_value(whole)) if rng.random() < 0.5 else _changed_tree(_second_value(whole), change, rng)
        return certificate_of(tbs)

    return pem(inside)(data, change, rng)


def certificate_of(tbs: bytes) -> bytes:
    """A certificate in DER that the fixed identity signed, of whatever these bytes are."""
    ed25519 = der(0x30, bytes.fromhex("06032b6570"))
    return der(0x30, tbs + ed25519 + der(0x03, b"\0" + identity().sign_raw(tbs)))


def _values(data: bytes) -> list[tuple[int, bytes]]:
    """The DER values one after the other in `data`; ValueError if it is no row of them."""
    found, at = [], 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size >= 128:
            count = size - 128
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + size > len(data):
            raise ValueError
        found.append((tag, data[at : at + size]))
        at += size
    return found


def _second_value(whole: bytes) -> bytes:
    tag, content = _values(_values(whole)[0][1])[0]
    return der(tag, content)


def _changed_tree(data: bytes, change: Change, rng: random.Random) -> bytes:
    """DER with one value in it changed, its lengths made right."""
    values = _values(data)
    index = rng.randrange(len(values))
    tag, content = values[index]
    try:
        deeper = bool(tag & 0x20 or tag == 0x04) and rng.random() < 0.85
        content = _changed_tree(content, change, rng) if deeper else change(content)
    except (ValueError, IndexError):
        content = change(content)
    if rng.random() < 0.1:
        values.insert(index, values[index])
    values[index] = (tag if rng.random() < 0.9 else rng.choice((0x02, 0x04, 0x0C, 0x30, 0x82, 0xA0)), content)
    return b"".join(der(*one) for one in values)


# -------------------------------------------------------------------------------------------------------- data files


@cache
def data_task() -> Any:
    """Rows of a number and a category, with a class."""
    return task_of()


@cache
def picture_task() -> Any:
    """Grey pictures of 3 x 2, with a class."""
    from fusion.task import CsvFormat, ImageColumn, Privacy, TabularEncoder, Task

    return Task(
        "t", "classification", "moments", task_of().label, Privacy(1.0), CsvFormat(), (ImageColumn("picture", 3, 2),),
        TabularEncoder(),
    )  # fmt: skip


def _rows(suffix: str, task: Callable[[], Any] = data_task, *, need_label: bool = True) -> Callable[[Path], Read]:
    def open_rows(scratch: Path) -> Read:
        from fusion.dataset import read_batches

        path, of = scratch / f"rows{suffix}", task()

        def read(data: bytes) -> Any:
            path.write_bytes(data)
            return list(read_batches([path], of, need_label))

        return read

    return open_rows


def _idx(scratch: Path) -> Read:
    plain, zipped_ = _rows("-idx3-ubyte", picture_task, need_label=False)(scratch), None
    zipped_ = _rows("-idx3-ubyte.gz", picture_task, need_label=False)(scratch)
    return lambda data: (zipped_ if data[:2] == b"\x1f\x8b" else plain)(data)


def _idx_labels(scratch: Path) -> Read:
    """The file of labels beside two pictures."""
    from fusion.dataset import read_batches

    pictures, labels = scratch / "of-idx3-ubyte", scratch / "of-idx1-ubyte"
    pictures.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 2]) + bytes(range(12)))
    of = picture_task()

    def read(data: bytes) -> Any:
        labels.write_bytes(data)
        return list(read_batches([pictures, labels], of))

    return read


def _changed_idx(data: bytes, change: Change, rng: random.Random) -> bytes:
    import gzip

    if data[:2] == b"\x1f\x8b":
        return gzip.compress(change(gzip.decompress(data)), 1, mtime=0)
    return gzip.compress(change(data), 1, mtime=0) if rng.random() < 0.2 else change(data)


def _batches_bytes(batches: Any) -> bytes:
    """Rows, and every array with its name."""
    parts: list[bytes] = []
    for batch in batches:
        arrays = {**batch.numbers, **batch.categories, **batch.images, "label": batch.label}
        parts += [str(len(batch)).encode()]
        parts += [name.encode() + array.tobytes() for name, array in sorted(arrays.items()) if array is not None]
        parts += [name.encode() + repr(list(texts)).encode() for name, texts in sorted(batch.texts.items())]
    return b"\0".join(parts)


def _picture(_: Path) -> Read:
    from fusion.sources.pictures import decode

    image = picture_task().columns[0]
    return lambda data: decode(data, image, Path("the picture"))


# ----------------------------------------------------------------------------------------------------------- registry

_DATA = ("fusion.sources.wanted",)

ALL = (
    Door(
        "frame", "node.wire.decode", _frame, ("WireError",), gives=_frame_bytes, is_stable=True,
        mutate=protobuf(_pb("Frame")), modules=("node.wire",), max_bytes=16_384,
    ),
    Door(
        "record", "node.wire.read_record", _record, ("RecordError",), gives=lambda record: record.id,
        mutate=_changed_record, modules=("node.wire", "node.records"), max_bytes=8_192,
    ),
    Door(
        "key-card", "node.wire.read_payload", _payload("KEY_CARD"), ("RecordError",), gives=_payload_bytes,
        is_stable=True, mutate=protobuf(_pb("KeyCard")), modules=("node.wire", "node.records"),
    ),
    Door(
        "key-grant", "node.wire.read_payload", _payload("KEY_GRANT"), ("RecordError",), gives=_payload_bytes,
        is_stable=True, mutate=protobuf(_pb("KeyGrant")), modules=("node.wire", "node.records"),
    ),
    Door(
        "head", "node.wire.read_payload", _payload("HEAD"), ("RecordError",), gives=_payload_bytes,
        is_stable=True, mutate=protobuf(_pb("Head")), modules=("node.wire", "node.records"), max_bytes=16_384,
    ),
    Door(
        "evidence", "node.wire.read_payload", _payload("EVIDENCE"), ("RecordError",), gives=_payload_bytes,
        is_stable=True, mutate=_changed_evidence, modules=("node.wire", "node.records"),
    ),
    Door(
        "roster", "node.wire.read_payload", _payload("ROSTER"), ("RecordError",), gives=_payload_bytes,
        is_stable=True, mutate=_changed_roster, max_bytes=8_192,
        modules=("node.wire", "node.records", "node.roster", "node.roster_wire"),
    ),
    Door(
        "roster-file", "node.roster_wire.read_versions", _roster_file, ("RosterError",), gives=_roster_file_bytes,
        is_stable=True, mutate=_changed_roster_file, modules=("node.roster_wire",), max_bytes=16_384,
    ),
    Door(
        "succession", "node.wire.read_payload", _payload("SUCCESSION"), ("RecordError",), gives=_payload_bytes,
        is_stable=True, mutate=protobuf(_pb("Succession")), modules=("node.wire", "node.records"),
    ),
    Door(
        "revoke", "node.wire.read_payload", _payload("REVOKE"), ("RecordError",), gives=_payload_bytes,
        is_stable=True, mutate=protobuf(_pb("Revocation")), modules=("node.wire", "node.records"),
    ),
    Door(
        "query", "node.wire.query_from_bytes", _query, ("WireError",), gives=_query_bytes, is_stable=True,
        mutate=protobuf(_pb("QueryRequest")), modules=("node.wire",),
    ),
    Door(
        "reply", "node.wire.reply_from_pb", _reply, ("WireError",), mutate=protobuf(_pb("QueryReply")),
        modules=("node.wire",),
    ),
    Door(
        "sealed-body", "crypto.sealing.open_sealed", _sealed_body, ("BadSeal",), gives=bytes, mutate=_changed_sealed,
        modules=("crypto.sealing",),
    ),
    Door(
        "wrapped-key", "crypto.sealing.unwrap_epoch_key", _wrapped_key, ("Malformed", "NotForUs"), gives=bytes,
        modules=("crypto.sealing",),
    ),
    Door(
        "bundle", "node.bundle_file.BundleReader", _bundle, ("BundleError",), mutate=_changed_bundle,
        modules=("node.bundle_file",), max_bytes=16_384,
    ),
    Door(
        "task", "fusion.task.Task.from_canonical", _task, ("TaskError",), gives=lambda task: task.canonical(),
        is_stable=True, mutate=canonical_json, max_bytes=16_384,
        modules=("fusion.task_checks", "fusion.task_tables", "fusion.task_kinds", "fusion.task_encoders"),
    ),
    Door(
        "task-file", "node.tasks.read_file", _task_file, ("TaskError", "UsageError"),
        gives=lambda task: task.canonical(), modules=("fusion.task_checks", "fusion.task_tables"),
        memory_mb=256,  # it may name a model file of 64 MB beside it
    ),
    Door(
        "summary", "fusion.summary.Summary.from_bytes", _summary, ("SummaryError",),
        gives=lambda summary: summary.to_bytes(), mutate=_changed_summary, modules=("fusion.summary",),
    ),
    Door(
        "model-file", "fusion.model_files.read_model", _model_file, ("ModelError", "QueryRefused"), gives=_model_bytes,
        mutate=_changed_model, modules=("fusion.model_files", "fusion.artifact", "fusion.card"), max_bytes=65_536,
        memory_mb=256,
    ),
    Door(
        "backbone", "fusion.encoders.backbone_checks.checked_graph", _backbone, ("BackboneError",),
        mutate=_changed_onnx, modules=("fusion.encoders.backbone_checks",), max_bytes=8_192, memory_mb=256,
    ),
    Door(
        "key-text", "crypto.keys.PublicKey.parse", _key_text, ("Malformed",), gives=lambda key: key.text.encode(),
        is_stable=True, mutate=_changed_key_text, max_bytes=256,
    ),
    Door(
        "recovery-key", "crypto.recovery.RecoveryKey.parse", _recovery_key, ("Malformed",),
        gives=lambda key: key.text.encode(), is_stable=True, modules=("crypto.text_form",), max_bytes=256,
    ),
    Door(
        "keystore", "crypto.keystore.read", _keystore, ("KeystoreError",), gives=_keystore_bytes,
        mutate=_changed_keystore, modules=("crypto.keystore",),
    ),
    Door(
        "handed-keys", "crypto.keystore.Keystore.from_bytes", _handed_keys, ("Malformed",), gives=_keystore_bytes,
        is_stable=True, max_bytes=416, modules=("crypto.keystore",),
    ),
    Door(
        "node-settings", "node.home.read_settings", _settings, ("HomeError",), mutate=canonical_json,
        gives=lambda settings: compact([settings.name, settings.listen, settings.quotas]),
    ),
    Door(
        "passphrase-file", "node.passphrase.source", _passphrase, ("KeystoreError",),
        gives=lambda text: text.encode(), max_bytes=8_192,
    ),
    Door(
        "address", "node.peers.check_address", _address, ("UsageError",), gives=lambda text: text.encode(),
        is_stable=True, max_bytes=512,
    ),
    Door(
        "certificate", "crypto.tls.peer_identity", _certificate, ("Malformed", "BadSignature"),
        gives=lambda key: key.raw, mutate=_changed_certificate, modules=("crypto.tls",),
    ),
    Door("csv", "fusion.sources.tables.read_csv", _rows(".csv"), ("DataError",), gives=_batches_bytes, modules=_DATA),
    Door(
        "json-lines", "fusion.sources.jsonl.read", _rows(".jsonl"), ("DataError",), gives=_batches_bytes,
        modules=(*_DATA, "fusion.sources.jsonl"),
    ),
    Door(
        "parquet", "fusion.sources.tables.read_parquet", _rows(".parquet"), ("DataError",), gives=_batches_bytes,
        modules=_DATA, memory_mb=512,
    ),
    Door(
        "arrow", "fusion.sources.tables.read_arrow", _rows(".arrow"), ("DataError",), gives=_batches_bytes,
        modules=_DATA, memory_mb=512,
    ),
    Door(
        "npz", "fusion.sources.npz.read", _rows(".npz"), ("DataError",), gives=_batches_bytes, mutate=zipped,
        modules=(*_DATA, "fusion.sources.npz"), memory_mb=256,
    ),
    Door(
        "idx", "fusion.sources.idx.read", _idx, ("DataError",), gives=_batches_bytes, mutate=_changed_idx,
        modules=(*_DATA, "fusion.sources.idx"),
    ),
    Door(
        "idx-labels", "fusion.sources.idx.pairs", _idx_labels, ("DataError",), gives=_batches_bytes,
        modules=(*_DATA, "fusion.sources.idx"),
    ),
    Door(
        "picture-arrays", "fusion.sources.npz.read", _rows(".npz", picture_task), ("DataError",), gives=_batches_bytes,
        mutate=zipped, modules=(*_DATA, "fusion.sources.npz", "fusion.sources.pictures"), memory_mb=256,
    ),
    Door(
        "picture-table", "fusion.sources.pictures.pixels_of", _rows(".parquet", picture_task), ("DataError",),
        gives=_batches_bytes, modules=(*_DATA, "fusion.sources.pictures"), memory_mb=512,
    ),
    Door(
        "picture", "fusion.sources.pictures.decode", _picture, ("DataError",),
        gives=lambda pixels: pixels or b"cannot be decoded", mutate=png, modules=("fusion.sources.pictures",),
    ),
)  # fmt: skip

DOORS = {door.name: door for door in ALL}


def opened_by(door: Door) -> Any:
    """The function of the product that the door names."""
    found, *inside = _longest_module(door.opens.split("."))
    for name in inside:
        found = getattr(found, name)
    return found


def _longest_module(names: list[str]) -> list[Any]:
    for end in range(len(names), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            return [importlib.import_module(".".join(names[:end])), *names[end:]]
    raise ModuleNotFoundError(".".join(names))


def declared(door: Door, error: Exception) -> bool:
    """Whether the door may raise this."""
    return type(error).__name__ in door.errors


def outcome(door: Door, read: Read, data: bytes) -> tuple[str, str]:
    """(error, its sentence), or ("accepted", digest of what came out). Other errors pass."""
    try:
        result = read(data)
    except Exception as error:
        if not declared(door, error):
            raise
        return type(error).__name__, str(error)
    given = door.gives(result)
    if door.is_stable and given:
        again = door.gives(read(given))
        assert again == given, f"{door.name}: what was accepted comes back as something else"
    return "accepted", digest(given)
