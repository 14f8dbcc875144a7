"""NumPy archives (.npz): one array per column, named like it, all with the same number of rows.

Numbers, booleans and texts are arrays of one dimension; pictures are uint8 of n x h x w, or n x h x w x c. The members
of the zip file are read side by side, some rows at a time, whatever its directory and the headers say of their sizes.
Nothing in the file is ever unpickled: an array of Python objects is refused.
"""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusion.errors import DataError
from fusion.sources.wanted import Wanted, check_columns, check_shape, raw_images, read_exactly
from fusion.task import ImageColumn

SUFFIXES = (".npz",)
MAX_HEADER_BYTES = 10_000  # as NumPy itself reads
MAX_CELL_BYTES = 2**18  # of one text
BATCH_BYTES = 2**26  # of one array in one record batch

# What NumPy was seen to raise on damaged headers, which it parses as Python literals (the last two: nested deeply).
_BAD_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)


@dataclass(frozen=True)
class _Member:
    """One array, open at its first row."""

    name: str
    file: IO[bytes]
    rows: int
    dtype: np.dtype[Any]
    image: ImageColumn | None

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * (self.image.pixels if self.image else 1)

    def next_rows(self, rows: int) -> pa.Array:
        data = read_exactly(self.file, rows * self.row_bytes)
        if self.image is not None:
            return raw_images(data, self.image)
        values = np.frombuffer(data, dtype=self.dtype)
        if self.dtype.kind == "S":
            return pa.array(values.tolist(), pa.binary()).cast(pa.string())  # ArrowInvalid unless UTF-8
        if self.dtype.kind == "U":
            _check_letters(np.frombuffer(data, dtype=np.dtype("u4").newbyteorder(self.dtype.byteorder)))
            return pa.array(values.tolist(), pa.string())
        return pa.array(values.astype(self.dtype.newbyteorder("=")))


def read(path: Path, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """The wanted arrays, row by row."""
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            yield from _batches(_members(archive, stack, path, wanted), path, wanted.rows_at_once)
    except EOFError:
        raise DataError(f"{path} ends before the rows that its headers promise; write it again") from None
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError, OverflowError):
        raise DataError(f"{path} is not a NumPy archive that can be read; write it again with numpy.savez") from None
    except (UnicodeError, pa.ArrowException):
        raise DataError(f"{path} has texts that are not whole characters; write them again as Unicode") from None


def _members(archive: zipfile.ZipFile, stack: ExitStack, path: Path, wanted: Wanted) -> list[_Member]:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    check_columns(path, names, wanted.columns)
    members = []
    for name in wanted.columns:
        inside = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
        members.append(_member(stack.enter_context(archive.open(inside)), name, path, wanted.images.get(name)))
    if len({member.rows for member in members}) > 1:
        raise DataError(f"{path} has arrays of different lengths; every column needs one entry a row")
    return members


def _member(file: IO[bytes], name: str, path: Path, image: ImageColumn | None) -> _Member:
    shape, fortran_order, dtype = _header(file, name, path)
    if image is not None:
        if dtype != np.uint8 or len(shape) not in (3, 4):
            raise DataError(f'{path} array "{name}" is not uint8 of n x h x w or n x h x w x c, as pictures are')
        check_shape(path, shape[1:], image)
        if fortran_order:
            raise DataError(f'{path} array "{name}" is not in row order; save numpy.ascontiguousarray of it')
    elif len(shape) != 1:
        raise DataError(f'{path} array "{name}" has {len(shape)} dimensions where a column has one; split it')
    elif dtype.kind not in "biufUS" or (dtype.kind == "f" and dtype.itemsize > 8):
        raise DataError(f'{path} array "{name}" holds neither numbers, booleans nor texts; save it as one of these')
    elif not 0 < dtype.itemsize <= MAX_CELL_BYTES:
        raise DataError(f'{path} array "{name}" has texts of no or over {MAX_CELL_BYTES} bytes; shorten them')
    return _Member(name, file, shape[0], dtype, image)


def _check_letters(numbers: NDArray[np.uint32]) -> None:
    """UnicodeError for a number of no letter: Python does not look before it makes a text of it."""
    if ((numbers > 0x10FFFF) | ((numbers >= 0xD800) & (numbers < 0xE000))).any():
        raise UnicodeError


def _header(file: IO[bytes], name: str, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type; at most MAX_HEADER_BYTES are read for them."""
    readers: Any = {(1, 0): (2, np.lib.format.read_array_header_1_0), (2, 0): (4, np.lib.format.read_array_header_2_0)}
    try:
        length_bytes, parse = readers[np.lib.format.read_magic(file)]
        prefix = read_exactly(file, length_bytes)
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError
        shape, fortran_order, dtype = parse(io.BytesIO(prefix + read_exactly(file, length)))
    except (KeyError, EOFError, *_BAD_HEADER):
        raise DataError(f'{path} array "{name}" has no header that is known here; save it again with NumPy') from None
    if dtype.hasobject:
        raise DataError(
            f'{path} array "{name}" holds Python objects, which are never loaded; save it as texts or numbers'
        )
    return shape, fortran_order, dtype


def _batches(members: list[_Member], path: Path, rows_at_once: int) -> Iterator[pa.RecordBatch]:
    size = max(1, min(rows_at_once, BATCH_BYTES // max(member.row_bytes for member in members)))
    rows = members[0].rows
    for start in range(0, rows, size):
        count = min(size, rows - start)
        yield pa.record_batch({member.name: member.next_rows(count) for member in members})
    if any(member.file.read(1) for member in members):  # reads to the end, where the checksum is compared
        raise DataError(f"{path} has more data than its headers say; write it again")
