"""JSON lines: one object a line, each field a column.

Numbers are kept as the texts that stand in the file, so that a cell means the same here as in a CSV file. A field that
is null or absent is a missing cell; the first line must have every column, so that a misspelt name is found at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import pyarrow as pa

from fusion.errors import DataError
from fusion.sources.wanted import Wanted, check_columns, refuse_images

SUFFIXES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 2**20
BATCH_BYTES = 2**24  # of lines gathered into one record batch

Cells = dict[str, list[str | None]]


def read(path: Path, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """The wanted fields of every line, as texts."""
    refuse_images(path, wanted)
    try:
        with path.open("rb") as file:
            yield from _batches(file, path, wanted)
    except OSError:
        raise DataError(f"{path} cannot be read; check its permissions") from None


def _batches(file: IO[bytes], path: Path, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    cells: Cells = {name: [] for name in wanted.columns}
    rows = gathered = number = 0
    is_first = True
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{path} line {number} is longer than {MAX_LINE_BYTES} bytes; write one object a line")
        if not line.strip():
            continue
        content = _object(line, path, number)
        if is_first:
            check_columns(path, list(content), wanted.columns)
            is_first = False
        for name, column in cells.items():
            column.append(_cell(content.get(name), name, path, number))
        rows, gathered = rows + 1, gathered + len(line)
        if rows >= wanted.rows_at_once or gathered >= BATCH_BYTES:
            yield _record_batch(cells)
            cells, rows, gathered = {name: [] for name in wanted.columns}, 0, 0
    if rows:
        yield _record_batch(cells)


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} line {number} is not a UTF-8 text; save the file as UTF-8") from None
    try:
        content = json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path} line {number} is no JSON object with distinct names; fix or remove that line")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError
    return content


def _cell(value: object, name: str, path: Path, number: int) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return None
    if not isinstance(value, str):
        _refuse(path, number, name, "holds a list or an object; write a text or a number")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, written as an escape
        _refuse(path, number, name, "is not a text of whole characters; write it again")
    return value


def _refuse(path: Path, number: int, name: str, why: str) -> NoReturn:
    raise DataError(f'{path} line {number}: "{name}" {why}')


def _record_batch(cells: Cells) -> pa.RecordBatch:
    return pa.record_batch({name: pa.array(column, pa.string()) for name, column in cells.items()})
