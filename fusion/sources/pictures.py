"""Pictures: encoded bytes (PNG, JPEG, PGM, PPM) or raw ones -> uint8 pixels of the size that the task says.

A picture of another size is refused, never scaled: how to scale is the owner's choice, and programs differ in it.
Colour becomes grey by ITU-R 601 luma where the task has one channel, grey is repeated where it has three, transparency
is dropped, and a rotation that a camera noted is not applied. Size is read and checked before anything is decoded, so a
small file cannot unpack to a large one. A picture that is null or cannot be decoded is absent: its row is dropped and
counted. Decoding needs Pillow, the optional extra [image]; raw bytes do not.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusion.errors import DataError
from fusion.sources.wanted import check_shape
from fusion.task import ImageColumn

MAX_FILE_BYTES = 2**24  # of one encoded picture
FORMATS = ("PNG", "JPEG", "PPM")  # PPM reads PGM too
SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm")

_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")  # over 8 bits a pixel

Pixels = NDArray[np.uint8]


def decode(data: bytes, image: ImageColumn, where: Path) -> bytes | None:
    """The pixels of one encoded picture, row by row; None if it cannot be decoded, DataError for a wrong size."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError(
            "reading PNG, JPEG and PGM pictures needs Pillow, which is not installed; run: pip install 'tidings[image]'"
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{where} has over {MAX_FILE_BYTES} bytes; save the picture smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large picture, which is refused here in any case
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        check_shape(where, (picture.height, picture.width, image.channels), image)
        if picture.mode in _DEEP_MODES:
            raise DataError(f"{where} has over 8 bits a pixel; save it with 8")
        return picture.convert("L" if image.channels == 1 else "RGB").tobytes()
    except Image.DecompressionBombError:
        raise DataError(f"{where} is a picture far larger than the task expects; scale it") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error, zlib.error):
        return None


def pixels_of(cells: pa.Array, image: ImageColumn, path: Path) -> tuple[Pixels, NDArray[np.bool_]]:
    """(n, h, w, c) pixels, and (n,) where there is a picture, from cells of any type that can hold one.

    Binary of fixed size and lists of whole numbers are raw pixels; other binary is an encoded picture where it begins
    like one, else raw pixels. A struct with the field `bytes` is taken for that field.
    """
    kind = cells.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return pixels_of(pc.struct_field(cells, "bytes"), image, path)
    present: NDArray[np.bool_] = cells.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_binary(kind):
        _check_size(kind.byte_width, image, path)
        start = cells.offset * image.pixels
        flat = np.frombuffer(cells.buffers()[1], np.uint8)[start : start + len(cells) * image.pixels]
        pixels = flat.copy()
    elif _is_list(kind):
        pixels = np.zeros(len(cells) * image.pixels, np.uint8)
        pixels.reshape(len(cells), image.pixels)[present] = _listed(cells.drop_null(), image, path)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        encoded = [None if cell is None else _bytes_of(cell, image, path) for cell in cells.to_pylist()]
        present = np.array([one is not None for one in encoded], dtype=np.bool_)
        pixels = np.frombuffer(b"".join(one or bytes(image.pixels) for one in encoded), np.uint8)
    elif pa.types.is_null(kind):
        pixels = np.zeros(len(cells) * image.pixels, np.uint8)
    else:
        raise DataError(f'{path} column "{image.name}" has type {kind}; write its pictures as binary or lists of bytes')
    return pixels.reshape(len(cells), image.height, image.width, image.channels), present


def _bytes_of(cell: bytes, image: ImageColumn, path: Path) -> bytes | None:
    is_png = cell.startswith(b"\x89PNG\r\n\x1a\n")
    is_jpeg = cell.startswith(b"\xff\xd8\xff") and cell.rstrip(b"\0").endswith(b"\xff\xd9")
    if is_png or is_jpeg or (len(cell) != image.pixels and cell[:2] in (b"P5", b"P6", b"\xff\xd8")):
        return decode(cell, image, path)
    _check_size(len(cell), image, path)
    return cell


def _listed(cells: pa.Array, image: ImageColumn, path: Path) -> Pixels:
    """Pixels of cells that are all lists, nested like (h, w, c) or flat."""
    per_row = 1
    while _is_list(cells.type):
        lengths = pc.unique(pc.list_value_length(cells)).to_pylist() or [0]
        if len(lengths) > 1 or lengths[0] is None:
            raise DataError(f'{path} column "{image.name}" has pictures of different sizes; scale them to one')
        per_row *= lengths[0]
        cells = cells.flatten()
    if len(cells):
        _check_size(per_row, image, path)
    try:
        values = cells.cast(pa.uint8()) if pa.types.is_integer(cells.type) and not cells.null_count else None
    except pa.ArrowInvalid:
        values = None
    if values is None:
        raise DataError(f'{path} column "{image.name}" has pixels that are no whole numbers from 0 to 255')
    return np.asarray(values.to_numpy(zero_copy_only=False), np.uint8).reshape(-1, image.pixels)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _check_size(found: int, image: ImageColumn, path: Path) -> None:
    if found != image.pixels:
        raise DataError(
            f'{path} column "{image.name}" has a picture of {found} bytes where {image.height} x {image.width} x '
            f"{image.channels} = {image.pixels} are expected; scale it, or correct the task"
        )
