"""Mutators that know a format: they change what a message says and keep what a reader checks first.

A fuzzer that flips bytes breaks a signature, a checksum or a compressed stream long before a deeper check is reached.
Each mutator here takes one valid input apart, changes a part, and puts it together as whoever holds the keys would.
Where that fails (the input is no such thing), the caller falls back on bytes.

    Mutator = (data, change, rng) -> bytes; `change` alters plain bytes (libFuzzer's, or the fallback's)
"""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Change = Callable[[bytes], bytes]
Mutator = Callable[[bytes, Change, random.Random], bytes]

NUMBERS = (0, 1, 2, 7, 8, 31, 32, 63, 64, 255, 256, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63)
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-6, 1e-5, 1e300, 5e-324, float("inf"), float("nan"))
TEXTS = ("", "a", "0", "..", "a\x00b", "\x1b[2J", "é", "\ud800", "x" * 300, "-1", "nan", "1e999")


# ---------------------------------------------------------------------------------------------------------- protobuf


def changed_message(message: Any, change: Change, rng: random.Random) -> None:
    """Change one field somewhere in `message`, in place: set, clear, repeat, drop, or swap entries of a list."""
    present = [(one, field) for one, field in _places(message)]
    owner, field = rng.choice(present)
    _change_field(owner, field, change, rng)


def protobuf(new: Callable[[], Message]) -> Mutator:
    """For the bytes of one kind of message."""

    def mutate(data: bytes, change: Change, rng: random.Random) -> bytes:
        message = new()
        message.ParseFromString(data)
        for _ in range(rng.randint(1, 3)):
            changed_message(message, change, rng)
        return message.SerializeToString()

    return mutate


def _places(message: Any, depth: int = 0) -> list[tuple[Any, FieldDescriptor]]:
    """(message, field) for every field of the message and of those in it; of long lists, the first few entries."""
    found = [(message, field) for field in message.DESCRIPTOR.fields]
    if depth < 6:
        for field, value in message.ListFields():
            if field.message_type is not None:
                for one in list(value)[:4] if _is_list(field) else [value]:
                    found += _places(one, depth + 1)
    return found


def _is_list(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _change_field(owner: Any, field: FieldDescriptor, change: Change, rng: random.Random) -> None:
    if _is_list(field):
        _change_list(getattr(owner, field.name), field, change, rng)
    elif rng.random() < 0.15:
        owner.ClearField(field.name)
    elif field.message_type is not None:
        getattr(owner, field.name).SetInParent()
    else:
        setattr(owner, field.name, _scalar(field, getattr(owner, field.name), change, rng))


def _change_list(values: Any, field: FieldDescriptor, change: Change, rng: random.Random) -> None:
    choice = rng.random()
    if len(values) and choice < 0.25:
        del values[rng.randrange(len(values))]
    elif len(values) and choice < 0.5:
        values.append(copy.copy(rng.choice(values)))
    elif field.message_type is not None:
        values.add()
    elif len(values) and choice < 0.85:
        at = rng.randrange(len(values))
        values[at] = _scalar(field, values[at], change, rng)
    else:
        values.append(_scalar(field, None, change, rng))


def _scalar(field: FieldDescriptor, old: Any, change: Change, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        is_bytes = field.type == FieldDescriptor.TYPE_BYTES
        raw = old if isinstance(old, bytes) else (old or "").encode("utf-8", "surrogatepass")
        raw = change(raw) if rng.random() < 0.7 else bytes(rng.choice((0, 8, 16, 31, 32, 33, 64)))
        return raw if is_bytes else raw.decode("utf-8", "replace")
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice(REALS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice(list(field.enum_type.values_by_number)) if field.enum_type.is_closed else rng.randrange(16)
    bits, signed = {
        FieldDescriptor.CPPTYPE_INT32: (32, True),
        FieldDescriptor.CPPTYPE_UINT32: (32, False),
        FieldDescriptor.CPPTYPE_INT64: (64, True),
        FieldDescriptor.CPPTYPE_UINT64: (64, False),
    }[kind]
    value = rng.choice(NUMBERS) if rng.random() < 0.6 else int(old or 0) + rng.randint(-2, 2)
    value %= 2**bits
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


# --------------------------------------------------------------------------------------------------------------- JSON


def changed_json(content: Any, rng: random.Random) -> Any:
    """`content` with one value somewhere in it replaced, dropped, repeated or moved."""
    content = copy.deepcopy(content)
    holders = [one for one in _holders(content) if one]
    if not holders:
        return _value(content, rng)
    holder = rng.choice(holders)
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    choice = rng.random()
    if choice < 0.15:
        del holder[key]
    elif choice < 0.3 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif choice < 0.3:
        holder[rng.choice((*holder, "extra"))] = holder[key]
    elif choice < 0.4:
        other = rng.choice(holders)
        holder[key] = copy.deepcopy(other[rng.choice(list(other)) if isinstance(other, dict) else 0])
    else:
        holder[key] = _value(holder[key], rng)
    return content


def _holders(content: Any) -> list[Any]:
    if not isinstance(content, dict | list):
        return []
    inner = content.values() if isinstance(content, dict) else content
    return [content, *(holder for one in inner for holder in _holders(one))]


def _value(old: Any, rng: random.Random) -> Any:
    choice = rng.random()
    if isinstance(old, str) and old and choice < 0.5:
        at = rng.randrange(len(old))
        return old[:at] + rng.choice((*TEXTS, old[at] * 2)) + old[at + 1 :]
    if isinstance(old, int | float) and not isinstance(old, bool) and choice < 0.5:
        return rng.choice((old + 1, old - 1, -old, old * 2, old / 2, float(old)))
    return rng.choice((*NUMBERS, *REALS, *TEXTS, True, None, [], {}, [[]], 10**400))


def compact(content: Any) -> bytes:
    """Canonical JSON as tasks and summaries have it."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def canonical_json(data: bytes, change: Change, rng: random.Random) -> bytes:
    """For canonical JSON: a change of content that is canonical again."""
    content = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        content = changed_json(content, rng)
    return compact(content)


# --------------------------------------------------------------------------------------------------------- containers


def zipped(data: bytes, change: Change, rng: random.Random) -> bytes:
    """For a zip archive: one member changed, dropped, or stored under another name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()[:8] if info.file_size < 2**16]
    at = rng.randrange(len(members))
    name, content = members[at]
    choice = rng.random()
    if choice < 0.7:
        members[at] = (name, change(content))
    elif choice < 0.8:
        members[at] = (name + rng.choice(("x", ".npy", "/")), content)
    elif choice < 0.9:
        members.append(members[at])
    else:
        del members[at]
    out, packing = io.BytesIO(), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(out, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for one, inside in members:
            archive.writestr(zipfile.ZipInfo(one), inside, packing)
    return out.getvalue()


def png(data: bytes, change: Change, rng: random.Random) -> bytes:
    """For a PNG: one chunk changed (pixels before compression), its checksum made right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    content = zlib.compress(change(zlib.decompress(content)), 1) if kind == b"IDAT" else change(content)
    chunks[index] = (kind, content)
    if rng.random() < 0.1:
        chunks.insert(index, rng.choice(chunks))
    packed = (
        struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))
        for name, inside in chunks
    )
    return data[:8] + b"".join(packed)


def pem(change_der: Callable[[bytes, Change, random.Random], bytes]) -> Mutator:
    """For a PEM certificate: `change_der` on what is in it."""

    def mutate(data: bytes, change: Change, rng: random.Random) -> bytes:
        lines = [line for line in data.splitlines() if not line.startswith(b"-----")]
        der = change_der(base64.b64decode(b"".join(lines)), change, rng)
        text = base64.b64encode(der)
        body = b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        return b"-----BEGIN CERTIFICATE-----\n" + body + b"\n-----END CERTIFICATE-----\n"

    return mutate


def der(tag: int, content: bytes) -> bytes:
    """One DER value."""
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def plain_change(rng: random.Random) -> Change:
    """What takes the place of libFuzzer's own mutations where there is no libFuzzer."""

    def change(data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at, choice = rng.randint(0, len(out)), rng.random()
            if choice < 0.5 and at < len(out):
                out[at] = rng.choice((0, 1, 127, 128, 255, out[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))
            elif choice < 0.7:
                del out[at : at + rng.randint(1, 8)]
            else:
                out[at:at] = bytes(
                    rng.choice((0, 255, 0x22, 0x5B, rng.randrange(256))) for _ in range(rng.randint(1, 8))
                )
        return bytes(out)

    return change
