"""What a reader of files is asked for, and the two checks that all formats share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from fusion.errors import DataError
from fusion.task import ImageColumn, Task


@dataclass(frozen=True)
class Wanted:
    """The columns to read, by name: those of the task, and where asked for the label, the persons, the part."""

    task: Task
    columns: tuple[str, ...]
    rows_at_once: int

    @property
    def images(self) -> dict[str, ImageColumn]:
        """The columns of pictures, by name."""
        return {column.name: column for column in self.task.columns if isinstance(column, ImageColumn)}

    @property
    def label(self) -> str | None:
        """The label column, where it is wanted."""
        name = self.task.label.column
        return name if name in self.columns else None

    def only_image(self, path: Path) -> ImageColumn:
        """The one column of pictures, for formats that hold pictures and labels alone."""
        if len(self.images) != 1:
            count = len(self.images) or "no"
            raise DataError(f"{path} holds pictures, and this task has {count} columns of them; name another file")
        others = [name for name in self.columns if name not in self.images and name != self.label]
        if others:
            raise DataError(f'{path} holds pictures and labels alone, and the column "{others[0]}" is wanted as well')
        return next(iter(self.images.values()))


def check_columns(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    """DataError unless every wanted column is among `names` exactly once."""
    counts = Counter(names)
    for column in columns:
        if counts[column] == 0:
            raise DataError(f'{path} has no column "{column}", which the task names or the part goes by; add it')
        if counts[column] > 1:
            raise DataError(f'{path} has {counts[column]} columns named "{column}"; keep one')


def refuse_images(path: Path, wanted: Wanted) -> None:
    """DataError where the task has pictures, for formats of text."""
    for name in wanted.images:
        raise DataError(
            f'{path} cannot hold the pictures of column "{name}"; use a folder of pictures, .npz, .parquet or IDX files'
        )


def check_shape(path: Path, shape: tuple[int, ...], image: ImageColumn) -> None:
    """DataError unless pictures of `shape`, (h, w) or (h, w, c), are those of the task."""
    whole = (image.height, image.width, image.channels)
    if shape != whole and not (image.channels == 1 and shape == whole[:2]):
        found = " x ".join(str(side) for side in shape)
        raise DataError(
            f"{path} has pictures of {found} where the task expects {image.height} x {image.width} with "
            f"{image.channels} channel{'s' if image.channels > 1 else ''}; scale them, or correct the task"
        )


def raw_images(data: bytes, image: ImageColumn) -> pa.Array:
    """Bytes of whole pictures as an Arrow array, one fixed-size cell a picture; no copy."""
    rows = len(data) // image.pixels
    return pa.Array.from_buffers(pa.binary(image.pixels), rows, [None, pa.py_buffer(data)])


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """The next `size` bytes; EOFError where there are fewer."""
    pieces = []
    while size > 0:
        piece = file.read(size)
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
