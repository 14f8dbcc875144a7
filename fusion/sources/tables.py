"""Tables: CSV and other delimited text, Parquet and Arrow IPC, read by pyarrow in record batches."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fusion.errors import DataError
from fusion.sources.wanted import Wanted, check_columns, refuse_images
from fusion.task import CsvFormat

CSV_BLOCK_BYTES = 2**20  # memory per block read; also the longest row of a CSV file
CSV_SUFFIXES = (".csv", ".tsv", ".data", ".txt")
PARQUET_SUFFIXES = (".parquet",)
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")

_BROKEN_ROW = re.compile(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)")

# What damaged Parquet and Arrow files were seen to raise (UnicodeError: a name that is not UTF-8).
_UNREADABLE = (pa.ArrowException, OSError, UnicodeError)


def read_csv(path: Path, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """Delimited text as `csv` of the task describes it; all cells are texts."""
    refuse_images(path, wanted)
    layout, columns = wanted.task.csv, wanted.columns
    names = _csv_header(path, layout) if layout.header else list(layout.names)
    check_columns(path, names, columns)
    try:
        reader = pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(
                use_threads=False,  # only then are rows numbered
                block_size=CSV_BLOCK_BYTES,
                column_names=_distinct(names, columns),
                skip_rows=1 if layout.header else 0,
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=layout.delimiter,
                quote_char='"' if layout.quote else False,
                newlines_in_values=layout.quote,
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(columns), column_types=dict.fromkeys(columns, pa.string())
            ),
        )
        yield from reader
    except pa.ArrowException as error:
        raise DataError(_csv_message(path, str(error))) from None
    except OSError:
        raise DataError(f"{path} cannot be read; check its permissions") from None


def _csv_header(path: Path, layout: CsvFormat) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline(CSV_BLOCK_BYTES)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a UTF-8 text; save it as UTF-8") from None
    except OSError:
        raise DataError(f"{path} cannot be read; check its permissions") from None
    if not line.strip():
        what = "has no header line" if line else "is empty"
        raise DataError(f"{path} {what}; the task expects a line of column names and rows below it (csv.header)")
    quoting: Any = csv.QUOTE_MINIMAL if layout.quote else csv.QUOTE_NONE
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=layout.delimiter, quoting=quoting))]
    except csv.Error:
        raise DataError(f"{path} has a header line that cannot be read; check its quotation marks") from None


def _distinct(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Names for pyarrow: columns that are not read get names of their own, as they may repeat or be empty."""
    return [name if name in set(columns) else f"column {index}" for index, name in enumerate(names)]


def _csv_message(path: Path, detail: str) -> str:
    """`detail` may quote the row, so its beginning is looked at first. A handler of invalid rows would not do: pyarrow
    prints a traceback where it cannot decode the row for it."""
    if row := _BROKEN_ROW.match(detail):
        return f"{path} row {row[1]} has {row[3]} fields where {row[2]} are expected; fix or remove that row"
    if "UTF8" in detail:
        return f"{path} is not a UTF-8 text; save it as UTF-8"
    if "straddling" in detail:
        return f"{path} has a row of over {CSV_BLOCK_BYTES} bytes; look for an unclosed quotation mark"
    if "Empty CSV" in detail:
        return f"{path} holds no rows; name a file with data"
    return f"{path} cannot be read as CSV; check its delimiter and quotation marks"


def read_parquet(path: Path, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """A Parquet file, some row groups' pages at a time."""
    try:
        # Reading ahead would keep every row group in memory until the end of the file.
        with pa.parquet.ParquetFile(path, pre_buffer=False) as file:
            check_columns(path, file.schema_arrow.names, wanted.columns)
            size = wanted.rows_at_once
            yield from file.iter_batches(batch_size=size, columns=list(wanted.columns), use_threads=False)
    except _UNREADABLE:
        raise DataError(f"{path} is not a Parquet file that can be read; write it again") from None


def read_arrow(path: Path, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """An Arrow IPC file or stream, in the batches that it was written in."""
    try:
        with pa.memory_map(str(path)) as source:
            try:
                file = pa.ipc.open_file(source)
                batches: Iterator[pa.RecordBatch] = (file.get_batch(i) for i in range(file.num_record_batches))
            except pa.ArrowInvalid:  # the streaming form of the same format
                source.seek(0)
                file = pa.ipc.open_stream(source)
                batches = iter(file)
            check_columns(path, file.schema.names, wanted.columns)
            for batch in batches:
                yield batch.select(list(wanted.columns))
    except _UNREADABLE:
        raise DataError(f"{path} is not an Arrow file that can be read; write it again") from None
