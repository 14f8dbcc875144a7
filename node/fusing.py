"""Fusing in a process of its own: what the hidden command `answer` does for a running node that was asked for a model.

Keys and query come over standard input, which nobody else can read and which is empty afterwards; the answer goes to
standard output, so that no model is ever on the disk. The process cannot change the store: SQLite refuses every write.
Given a model file, it writes the same model in another format, which takes no fit.
"""

from __future__ import annotations

import enum
import os
import sys
from typing import TYPE_CHECKING, Final

from node.errors import CannotFuse, NodeError, QueryRefused
from node.frames import Query
from node.wire import query_from_bytes

if TYPE_CHECKING:
    from node.home import Home

MAX_QUERY_BYTES: Final = 256 * 1024
"""A query with the most origins is 140 kB."""


class Told(enum.Enum):
    """What an answer begins with: what the rest is."""

    FUSED = b"F"
    SHARED = b"S"
    REFUSED = b"R"


def answer_on_stdout(home: Home) -> None:
    """Answer the query on standard input from what is held in `home`."""
    output = _own_stdout()
    home.store.refuse_writes()
    query = query_from_bytes(sys.stdin.buffer.read(MAX_QUERY_BYTES))
    try:
        told, content = _answer(home, query)
    except QueryRefused as error:
        told, content = Told.REFUSED, str(error).encode()
    _write(output, told.value + content)


def rewrite_on_stdout(file_format: str) -> None:
    """The model file on standard input in another format; `fusion.errors.ModelError` if it is none."""
    from fusion.model import MAX_MODEL_BYTES, read_model, write_onnx, write_safetensors

    output = _own_stdout()
    model, card = read_model(sys.stdin.buffer.read(MAX_MODEL_BYTES + 1))
    _write(output, write_onnx(model, card) if file_format == "onnx" else write_safetensors(model, card))


def _answer(home: Home, query: Query) -> tuple[Told, bytes]:
    """The model fused here or, for a query that leaves the choice to this node, one that a member shared."""
    from fusion.task import Task
    from node.query import answer
    from node.shared import newest

    try:
        return Told.FUSED, answer(home, query)
    except CannotFuse:
        if query.only or query.without or query.head or query.robust:
            raise
        accepted = next(one for one in home.store.tasks() if one.task_id == query.task_id)
        found = newest(home, Task.from_canonical(accepted.canonical))
        if found is None:
            raise
        return Told.SHARED, found.file(query.format)


def told(data: bytes) -> tuple[Told, bytes]:
    """What `answer_on_stdout` wrote; NodeError if it is not that."""
    try:
        return Told(data[:1]), data[1:]
    except ValueError as error:
        raise NodeError("The process that fuses said nothing.") from error


def _own_stdout() -> int:
    """Standard output for the answer alone: whatever else a library prints goes to standard error."""
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def _write(output: int, data: bytes) -> None:
    with os.fdopen(output, "wb") as file:
        file.write(data)
