"""Data files and folders -> Arrow record batches, streamed: larger than memory is normal. One file per family.

| what | how it is known | module |
| --- | --- | --- |
| CSV and other delimited text | .csv, .tsv, .data, .txt | `tables` |
| JSON lines | .jsonl, .ndjson | `jsonl` |
| Parquet | .parquet | `tables` |
| Arrow IPC, file or stream | .arrow, .feather, .ipc | `tables` |
| NumPy archive | .npz | `npz` |
| IDX (MNIST and its kin) | ...ubyte, ...ubyte.gz | `idx` |
| pictures in folders named by class | a folder | `folder` |

Every source gives record batches with the wanted columns under the names of the task; what their cells mean is decided
in one place, `fusion.dataset`. Sizes in headers are claims: nothing is allocated by them, only read against them.
DataError names the file and the row, line or array, and never quotes a cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from fusion.errors import DataError
from fusion.sources import folder, idx, jsonl, npz, tables
from fusion.sources.wanted import Wanted

__all__ = ["Wanted", "open_sources"]

KNOWN = (
    *tables.CSV_SUFFIXES,
    *jsonl.SUFFIXES,
    *tables.PARQUET_SUFFIXES,
    *tables.ARROW_SUFFIXES,
    *npz.SUFFIXES,
    *idx.SUFFIXES,
)


def open_sources(paths: Sequence[Path], wanted: Wanted) -> Iterator[tuple[Path, Iterator[pa.RecordBatch]]]:
    """Each file or folder with its record batches, of at most about `wanted.rows_at_once` rows where we may choose.

    IDX files of labels are read beside their pictures, not as sources of their own.
    """
    if not paths:
        raise DataError("no data file is named; name at least one")
    pairs = idx.pairs(paths, wanted)
    for path in paths:
        if path in pairs:
            yield path, _whole(path, idx.read(path, pairs[path], wanted))
        elif not idx.named_like_one(path):
            yield path, _whole(path, _read(path, wanted))


def _whole(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, each once every offset in it was seen to lie within its buffers and every text to be UTF-8. Arrow
    takes a file's word for both, and would read beyond the file's end."""
    for batch in batches:
        try:
            batch.validate(full=True)
            len(batch.columns)
        except (pa.ArrowInvalid, KeyError):  # KeyError: a type that pyarrow has no class for
            raise DataError(f"{path} holds cells that are not of the type that it says; write it again") from None
        yield batch


def _read(path: Path, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    suffix = path.suffix.lower()
    if path.is_dir():
        return folder.read(path, wanted)
    if not path.is_file():
        raise DataError(f"{path} is not there or is not a file; check the path")
    if suffix in tables.CSV_SUFFIXES:
        return tables.read_csv(path, wanted)
    if suffix in tables.PARQUET_SUFFIXES:
        return tables.read_parquet(path, wanted)
    if suffix in tables.ARROW_SUFFIXES:
        return tables.read_arrow(path, wanted)
    if suffix in jsonl.SUFFIXES:
        return jsonl.read(path, wanted)
    if suffix in npz.SUFFIXES:
        return npz.read(path, wanted)
    raise DataError(f"{path} has an unknown kind of name; data files end in one of {', '.join(KNOWN)}")
