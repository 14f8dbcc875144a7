"""Bounds on what a parser builds from bytes from outside, checked before it runs.

A parser takes time and memory by what it finds, not by the size of what it reads: 32 MB of `[[],[],…` are over a
gigabyte of lists, and 64 MB of empty protobuf messages are several. Here the parts are counted first, in one pass and
without keeping anything, so that what a parser may take follows from limits that honest content stays far below.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_VARINT_BYTES: Final = 10
_DELIMITED: Final = 2  # the wire type of texts, bytes, messages and packed lists
_FIXED: Final = {1: 8, 5: 4}  # bytes of the wire types of fixed size


class TooMuch(ValueError):
    """More parts, or deeper in each other, than such content has."""


def parse_json(text: str, *, values: int, depth: int) -> Any:
    """What a JSON text says; TooMuch for more values or levels, ValueError for what is no JSON.

    Values are counted by the commas and opening brackets of the text, those in its strings included.
    """
    if text.count(",") + text.count("[") + text.count("{") > values:
        raise TooMuch(f"over {values} values")
    level = 0
    for token in _TOKEN.finditer(text):
        letter = text[token.start()]
        level += (letter in "[{") - (letter in "]}")
        if level > depth:
            raise TooMuch(f"over {depth} levels")
    return json.loads(text)


def check_protobuf(data: bytes, descriptor: Any, *, fields: int, depth: int) -> None:
    """TooMuch if a protobuf message of this kind holds more fields, counted one by one in all messages in it, or
    messages nested deeper; ValueError for bytes that are none."""
    inside: dict[str, dict[int, Any]] = {}
    open_messages = [(_scan(data, 0, len(data)), descriptor)]
    while open_messages:
        parts, kind = open_messages[-1]
        known = inside.get(kind.full_name)
        if known is None:
            known = {number: one.message_type for number, one in kind.fields_by_number.items() if one.message_type}
            inside[kind.full_name] = known
        for number, wire_type, at, after in parts:
            fields -= 1
            if fields < 0:
                raise TooMuch("too many fields")
            if wire_type == _DELIMITED and at < after and number in known:
                open_messages.append((_scan(data, at, after), known[number]))
                break
        else:
            open_messages.pop()
        if len(open_messages) > depth:
            raise TooMuch(f"over {depth} levels")


def protobuf_parts(data: bytes, *, fields: int) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the texts, bytes and messages of one message, in order, none of them parsed; TooMuch for
    more fields than this, ValueError for bytes that are none."""
    for count, (number, wire_type, at, after) in enumerate(_scan(data, 0, len(data)), start=1):
        if count > fields:
            raise TooMuch("too many fields")
        if wire_type == _DELIMITED:
            yield number, data[at:after]


def _scan(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, begin and end of its content) of each field of one message."""
    while at < end:
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == _DELIMITED:
            size, at = _varint(data, at)
            after = at + size
        elif wire_type == 0:
            _, after = _varint(data, at)
        else:
            after = at + _FIXED.get(wire_type, len(data))  # groups are of no use to anybody here
        if after > end:
            raise ValueError("cut off")
        yield tag >> 3, wire_type, at, after
        at = after


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends; ValueError if it does not."""
    number = 0
    for place in range(_VARINT_BYTES):
        if at + place >= len(data):
            break
        octet = data[at + place]
        number |= (octet & 0x7F) << (7 * place)
        if octet < 0x80:
            return number, at + place + 1
    raise ValueError("a number without an end")
