"""A folder of pictures: a subfolder per class, named like a label cell of the task, with the pictures in it.

Pictures are read in the order of the names of subfolders, then of files, compared as texts. Without labels, to predict,
pictures may also lie in the folder itself. Hidden files and what systems put beside pictures are passed over; any other
file that is no picture is an error, so that nothing is left out unseen. The names of one subfolder are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from fusion.errors import DataError
from fusion.sources.pictures import MAX_FILE_BYTES, SUFFIXES, decode
from fusion.sources.wanted import Wanted
from fusion.task import ImageColumn

_PASSED_OVER = ("thumbs.db", "desktop.ini")


def read(path: Path, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """Pixels, null where a picture cannot be decoded, and the names of subfolders as labels."""
    image = wanted.only_image(path)
    try:
        entries = _visible(path)
        if wanted.label is not None:
            for entry in entries:
                if not entry.is_dir():
                    raise DataError(f"{entry} is not in a subfolder named like its class; move it into one")
        elif not any(entry.is_dir() for entry in entries):
            yield from _batches(entries, None, image, wanted)
            return
        for entry in entries:
            if entry.is_dir():
                yield from _batches(_visible(entry), entry.name, image, wanted)
            else:
                yield from _batches([entry], None, image, wanted)
    except OSError:
        raise DataError(f"{path} cannot be read; check its permissions") from None


def _visible(folder: Path) -> list[Path]:
    entries = [one for one in folder.iterdir() if not one.name.startswith(".")]
    return sorted((one for one in entries if one.name.lower() not in _PASSED_OVER), key=lambda one: one.name)


def _batches(files: list[Path], label: str | None, image: ImageColumn, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(files), wanted.rows_at_once):
        pixels = [_pixels(file, image) for file in files[start : start + wanted.rows_at_once]]
        columns = {image.name: pa.array(pixels, pa.binary(image.pixels))}
        if wanted.label is not None:
            columns[wanted.label] = pa.array([label] * len(pixels), pa.string())
        yield pa.record_batch(columns)


def _pixels(file: Path, image: ImageColumn) -> bytes | None:
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        raise DataError(f"{file} is not a picture that is read here ({', '.join(SUFFIXES)}); convert or remove it")
    with file.open("rb") as opened:
        return decode(opened.read(MAX_FILE_BYTES + 1), image, file)
