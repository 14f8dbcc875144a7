"""IDX files of bytes, as MNIST and its kin are published: pictures in one file, labels in another, gzipped or not.

    0 0 8 k | k sizes, 4 bytes each, big-endian | the bytes

k is 3 (n x h x w) or 4 (n x h x w x c) for pictures and 1 for labels. The file of labels is the one that is named as
well, or else the one beside the pictures whose name has "labels" for "images" and "idx1" for "idx3".
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa

from fusion.errors import DataError
from fusion.sources.wanted import Wanted, check_shape, raw_images, read_exactly

SUFFIXES = ("-ubyte", "-ubyte.gz")
_NAME = re.compile(r".*ubyte(\.gz)?", re.IGNORECASE)
_UNSIGNED_BYTE = 8

Labels = Path | None


def named_like_one(path: Path) -> bool:
    """Whether the name is that of an IDX file."""
    return _NAME.fullmatch(path.name) is not None and not path.is_dir()


def pairs(paths: Sequence[Path], wanted: Wanted) -> dict[Path, Labels]:
    """The file of labels of every IDX file of pictures among `paths`; None where labels are not wanted."""
    sizes = {path: _sizes(path) for path in paths if named_like_one(path)}
    pictures = [path for path, shape in sizes.items() if len(shape) > 1]
    labels = [path for path, shape in sizes.items() if len(shape) == 1]
    if labels and not pictures:
        raise DataError(f"{labels[0]} holds labels; name the file of their pictures")
    if wanted.label is None:
        return dict.fromkeys(pictures)
    if labels and len(labels) != len(pictures):
        raise DataError(f"{len(labels)} files of labels are named for {len(pictures)} of pictures; name one for each")
    return dict(zip(pictures, labels or map(_beside, pictures), strict=True))


def _beside(pictures: Path) -> Path:
    name = pictures.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    labels = pictures.with_name(name)
    if name == pictures.name or not labels.is_file():
        raise DataError(f"{pictures} has no file of labels beside it; name that file as well")
    return labels


def read(pictures: Path, labels: Labels, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """Pictures, with their labels as whole numbers where there is a file of labels."""
    image = wanted.only_image(pictures)
    with ExitStack() as stack:
        pixels, shape = _open(pictures, stack)
        check_shape(pictures, shape[1:], image)
        classes = None
        if labels is not None:
            classes, counted = _open(labels, stack)
            if counted != shape[:1]:
                raise DataError(f"{labels} does not hold one label for each picture of {pictures}; name the right file")
        for start in range(0, shape[0], wanted.rows_at_once):
            count = min(wanted.rows_at_once, shape[0] - start)
            columns = {image.name: raw_images(_next(pixels, count * image.pixels, pictures), image)}
            if classes is not None and labels is not None:
                values = np.frombuffer(_next(classes, count, labels), dtype=np.uint8)
                columns[wanted.task.label.column] = pa.array(values)
            yield pa.record_batch(columns)
        _refuse_more(pixels, pictures)
        if classes is not None and labels is not None:
            _refuse_more(classes, labels)


def _sizes(path: Path) -> tuple[int, ...]:
    with ExitStack() as stack:
        return _open(path, stack)[1]


def _open(path: Path, stack: ExitStack) -> tuple[IO[bytes], tuple[int, ...]]:
    """The file behind its header, and the sizes in it."""
    if not path.is_file():
        raise DataError(f"{path} is not there or is not a file; check the path")
    try:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
    except OSError:
        raise DataError(f"{path} cannot be read; check its permissions") from None
    if path.suffix.lower() == ".gz":
        file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file, mode="rb")))
    zero, kind, dimensions = int.from_bytes((head := _next(file, 4, path))[:2]), head[2], head[3]
    if zero != 0 or kind != _UNSIGNED_BYTE or dimensions not in (1, 3, 4):
        raise DataError(f"{path} is not an IDX file of pictures or labels in bytes; check the file")
    sizes = np.frombuffer(_next(file, 4 * dimensions, path), dtype=">u4")
    return file, tuple(int(size) for size in sizes)


def _next(file: IO[bytes], size: int, path: Path) -> bytes:
    try:
        return read_exactly(file, size)
    except EOFError:
        raise DataError(f"{path} ends before the entries that its header promises; fetch it again") from None
    except (OSError, zlib.error):
        raise DataError(f"{path} is damaged and cannot be read; fetch it again") from None


def _refuse_more(file: IO[bytes], path: Path) -> None:
    try:
        more = file.read(1)
    except (EOFError, OSError, zlib.error):
        raise DataError(f"{path} is damaged and cannot be read; fetch it again") from None
    if more:
        raise DataError(f"{path} has more data than its header says; fetch it again")
