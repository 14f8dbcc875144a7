"""Record batches of any source -> validated batches of rows, streamed: larger than memory is normal.

`fusion.sources` reads the files: CSV, JSON lines, Parquet, Arrow, NumPy archives, IDX and folders of pictures, several
following one another. Only the columns that the task names are read. Cells are read alike from every format:

* missing: an empty or null cell, NaN, or an entry of `csv.missing`;
* a number that cannot be read as a finite number is missing, and counted as unreadable;
* a number outside the bounds is clipped, and counted; a category outside the list is missing, and counted;
* a text is trimmed; one of over MAX_TEXT_CHARS characters is cut there, and counted as clipped;
* a row whose label is missing or outside the classes is dropped, and counted; a label number is clipped
  likewise;
* a row whose picture is missing or cannot be decoded is dropped, and counted (a picture of another size is an error);
* with a part (`fusion.parts`), the rows of other parts are left out before all else, and counted;
* where the task protects persons, a row without an id is dropped, and so are rows of a person beyond the bound;
  both are counted (see fusion.persons). Predicting and scoring need no ids and drop no such row.

The counts are private: they are shown to the steward and never leave the node. Errors name the file and the
row or column, and never quote a cell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusion.errors import DataError
from fusion.parts import Part
from fusion.persons import PersonPass, person_pass
from fusion.sources import Wanted, open_sources
from fusion.sources.pictures import Pixels, pixels_of
from fusion.summaries import Progress
from fusion.task import (
    CategoryColumn,
    ImageColumn,
    NumberColumn,
    Task,
    TextColumn,
    label_spellings,
    spellings,
)

__all__ = ["Batch", "RowReport", "batch_rows", "inspect", "person_pass", "read_batches", "release_batches", "spellings"]

BATCH_ROWS = 16_384
BACKBONE_ROWS = 512  # a row takes milliseconds there: people should see the count move
BATCH_PICTURE_BYTES = 2**26  # fewer rows where pictures are large
MAX_TEXT_CHARS = 10_000  # of one text; sentence encoders read less than that

_READABLE_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Some rows of the task. `label` is a class index, or t in [-1, 1]; None if labels were not read."""

    numbers: dict[str, Floats]  # NaN where missing
    categories: dict[str, Ints]  # index in the column's values; -1 where missing or unknown
    label: Ints | Floats | None
    rows: int
    person_rows: Ints | None = None  # how many rows are kept of the person of each row; None if not asked for
    images: dict[str, Pixels] = field(default_factory=dict)  # (n, height, width, channels)
    texts: dict[str, NDArray[np.object_]] = field(default_factory=dict)  # (n,) of str, empty where missing

    def __len__(self) -> int:
        return self.rows

    def slice(self, part: slice) -> Batch:
        """The rows `part` of this batch."""
        start, stop, _step = part.indices(self.rows)
        return Batch(
            {name: values[part] for name, values in self.numbers.items()},
            {name: values[part] for name, values in self.categories.items()},
            None if self.label is None else self.label[part],
            max(0, stop - start),
            None if self.person_rows is None else self.person_rows[part],
            {name: values[part] for name, values in self.images.items()},
            {name: values[part] for name, values in self.texts.items()},
        )


@dataclass
class RowReport:
    """What became of rows and cells; private to the node. Cells are counted in the rows that are used."""

    rows_read: int = 0
    rows_used: int = 0
    rows_outside_part: int = 0
    labels_outside: int = 0
    pictures_unusable: int = 0  # rows whose picture is missing or cannot be decoded
    persons: int = 0  # 0 where the unit is the row
    persons_missing: int = 0  # rows without an id
    rows_beyond: int = 0  # rows of a person over the bound of the task
    clipped: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


def inspect(
    paths: Sequence[Path],
    task: Task,
    need_label: bool = True,
    progress: Progress | None = None,
    persons: PersonPass | None = None,
    part: Part | None = None,
) -> RowReport:
    """Read all once, so that a broken file is found before budget is charged; DataError says where.

    It is also the first pass over the persons of a task that protects persons, for `read_batches` to follow.
    """
    report = RowReport()
    counted = (persons or person_pass(task)) if need_label else None
    for _batch in _batches(paths, task, need_label, report, counted, part):
        if progress is not None:
            progress(report.rows_read)
    report.persons = counted.persons if counted else 0
    return report


def read_batches(
    paths: Sequence[Path],
    task: Task,
    need_label: bool = True,
    persons: PersonPass | None = None,
    part: Part | None = None,
) -> Iterator[Batch]:
    """The rows of all files in order, at most BATCH_ROWS at a time; without `need_label` none is dropped for its
    label. With `part`, the rows of that part alone.

    With `persons`, counted by `inspect` on the same files and part, they are the rows that a release takes.
    """
    return _batches(paths, task, need_label, RowReport(), persons.second() if persons else None, part)


def release_batches(paths: Sequence[Path], task: Task) -> Iterator[Batch]:
    """The rows that a release takes: `read_batches`, after a pass over the persons where the task has any."""
    persons = person_pass(task)
    if persons:
        inspect(paths, task, persons=persons)
    return read_batches(paths, task, persons=persons)


def _batches(
    paths: Sequence[Path],
    task: Task,
    need_label: bool,
    report: RowReport,
    persons: PersonPass | None,
    part: Part | None,
) -> Iterator[Batch]:
    reader = _RowReader(task, need_label, report, persons, part)
    size = batch_rows(task)
    for path, record_batches in open_sources([Path(path) for path in paths], Wanted(task, tuple(reader.columns), size)):
        rows_before = report.rows_read
        for record_batch in record_batches:
            for start in range(0, record_batch.num_rows, size):
                batch = reader.read(record_batch.slice(start, size), path)
                if len(batch):
                    yield batch
        if report.rows_read == rows_before:
            raise DataError(f"{path} holds no rows; name a file with data")


def batch_rows(task: Task) -> int:
    """The most rows of one batch: BATCH_ROWS (fewer for a backbone), no more pictures than BATCH_PICTURE_BYTES hold."""
    pixels = sum(column.pixels for column in task.columns if isinstance(column, ImageColumn))
    most = BACKBONE_ROWS if task.encoder.kind in ("onnx", "text") else BATCH_ROWS
    return min(most, max(1, BATCH_PICTURE_BYTES // max(1, pixels)))


# --- record batches -> batches ------------------------------------------------------------------------------


class _RowReader:
    """Turns record batches into batches of one task, and keeps the counts."""

    def __init__(
        self, task: Task, need_label: bool, report: RowReport, persons: PersonPass | None, part: Part | None
    ) -> None:
        self.columns = [column.name for column in task.columns]
        if need_label:
            self.columns.append(task.label.column)
        if persons is not None and task.privacy.person is not None:
            self.columns.append(task.privacy.person.column)
        if part is not None and part.column not in self.columns:
            self.columns.append(part.column)
        self._persons = persons
        self._part = part
        self._task = task
        self._need_label = need_label
        self._report = report
        self._missing = pa.array(["", *task.csv.missing], type=pa.string())
        self._tables = {c.name: spellings(c) for c in task.columns if isinstance(c, CategoryColumn)}
        self._label_table = label_spellings(task.label)

    def read(self, rows: pa.RecordBatch, path: Path) -> Batch:
        self._report.rows_read += rows.num_rows
        if self._part is not None:
            texts, _absent = self._texts(_plain(rows.column(self._part.column), self._part.column, path))
            in_part = self._part.keeps(texts)
            self._report.rows_outside_part += int(rows.num_rows - in_part.sum())
            rows = rows.filter(pa.array(in_part))
        label: Ints | Floats | None = None
        if self._need_label:
            label, keep = self._label(_plain(rows.column(self._task.label.column), self._task.label.column, path))
            self._report.labels_outside += int(rows.num_rows - keep.sum())
            rows, label = rows.filter(pa.array(keep)), label[keep]
        images: dict[str, Pixels] = {}
        for column in self._task.columns:
            if isinstance(column, ImageColumn):
                images[column.name], keep = pixels_of(rows.column(column.name), column, path)
                self._report.pictures_unusable += int((~keep).sum())
                rows, label, images = _kept(keep, rows, label, images)
        person_rows: Ints | None = None
        if self._persons is not None and self._task.privacy.person is not None:
            ids = _plain(rows.column(self._task.privacy.person.column), self._task.privacy.person.column, path)
            keep, person_rows = self._person(ids, self._persons, path)
            rows, label, images = _kept(keep, rows, label, images)
        self._report.rows_used += rows.num_rows
        return self._cells(rows, path, label, person_rows, images)

    def _cells(
        self,
        rows: pa.RecordBatch,
        path: Path,
        label: Ints | Floats | None,
        person_rows: Ints | None,
        images: dict[str, Pixels],
    ) -> Batch:
        """The batch of the rows that are used."""
        numbers: dict[str, Floats] = {}
        categories: dict[str, Ints] = {}
        texts: dict[str, NDArray[np.object_]] = {}
        for column in self._task.columns:
            if isinstance(column, ImageColumn):
                continue
            cells = _plain(rows.column(column.name), column.name, path)
            if isinstance(column, NumberColumn):
                numbers[column.name] = self._number(cells, column.name, column.lower, column.upper)
            elif isinstance(column, CategoryColumn):
                categories[column.name] = self._category(cells, column.name)
            elif isinstance(column, TextColumn):
                texts[column.name] = self._text(cells, column.name)
        return Batch(numbers, categories, label, rows.num_rows, person_rows, images, texts)

    def _person(self, cells: pa.Array, persons: PersonPass, path: Path) -> tuple[NDArray[np.bool_], Ints]:
        """Which of the rows are kept, and for these how many of the person's are."""
        if pa.types.is_floating(cells.type):  # whole numbers become floats where a cell is missing
            values = _floats(cells)
            whole = np.isfinite(values) & (np.trunc(values) == values) & (np.abs(values) < 2.0**53)
            if not (whole | np.isnan(values)).all():
                raise DataError(f"{path} has ids of persons that are no whole numbers; write them as texts")
            cells = pa.array(np.where(whole, values, 0.0).astype(np.int64), mask=~whole)
        texts, absent = self._texts(cells)
        self._report.persons_missing += int(absent.sum())
        kept, person_rows = persons.take(texts.drop_null())
        self._report.rows_beyond += int((~kept).sum())
        keep = ~absent
        keep[keep] = kept
        return keep, person_rows[kept]

    def _label(self, cells: pa.Array) -> tuple[Ints | Floats, NDArray[np.bool_]]:
        """Labels of all rows, and which rows have one that the task knows."""
        label = self._task.label
        if label.lower is None or label.upper is None:
            texts, _absent = self._texts(cells)
            index = _lookup(texts, self._label_table)
            return index, index >= 0
        values, _missing, _unreadable = self._numbers(cells)
        known = ~np.isnan(values)
        clipped: Floats = np.clip(values, label.lower, label.upper)
        self._report.clipped[label.column] += int((clipped[known] != values[known]).sum())
        middle, half = (label.lower + label.upper) / 2, (label.upper - label.lower) / 2
        return np.clip((clipped - middle) / half, -1.0, 1.0), known

    def _number(self, cells: pa.Array, name: str, lower: float, upper: float) -> Floats:
        values, absent, unreadable = self._numbers(cells)
        clipped: Floats = np.clip(values, lower, upper)  # NaN stays NaN
        self._report.missing[name] += absent
        self._report.unreadable[name] += unreadable
        self._report.clipped[name] += int(((values < lower) | (values > upper)).sum())
        return clipped

    def _category(self, cells: pa.Array, name: str) -> Ints:
        texts, absent = self._texts(cells)
        index = _lookup(texts, self._tables[name])
        self._report.missing[name] += int(absent.sum())
        self._report.unknown[name] += int(((index < 0) & ~absent).sum())
        return index

    def _text(self, cells: pa.Array, name: str) -> NDArray[np.object_]:
        texts, absent = self._texts(cells)
        self._report.missing[name] += int(absent.sum())
        self._report.clipped[name] += int(pc.sum(pc.greater(pc.utf8_length(texts), MAX_TEXT_CHARS)).as_py() or 0)
        short = pc.utf8_slice_codeunits(pc.fill_null(texts, ""), 0, MAX_TEXT_CHARS)
        return np.array([*short.to_pylist(), None], dtype=object)[:-1]  # None: NumPy must not guess a type of text

    def _numbers(self, cells: pa.Array) -> tuple[Floats, int, int]:
        """Finite values or NaN, and how many cells were missing and how many unreadable."""
        if pa.types.is_string(cells.type):
            texts, _where = self._texts(cells)
            readable = pc.match_substring_regex(texts, _READABLE_NUMBER)
            values = _floats(pc.if_else(readable, texts, pa.scalar(None, pa.string())).cast(pa.float64()))
            absent = texts.null_count
        else:
            values = _floats(cells.cast(pa.float64(), safe=False))
            absent = int(np.isnan(values).sum())
        values[np.isinf(values)] = np.nan
        return values, absent, int(np.isnan(values).sum()) - absent

    def _texts(self, cells: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
        """Cells as trimmed texts, null where missing; and where that is."""
        texts = pc.utf8_trim_whitespace(cells.cast(pa.string()))
        texts = pc.if_else(pc.is_in(texts, value_set=self._missing), pa.scalar(None, pa.string()), texts)
        return texts, texts.is_null().to_numpy(zero_copy_only=False)


def _kept(
    keep: NDArray[np.bool_], rows: pa.RecordBatch, label: Ints | Floats | None, images: dict[str, Pixels]
) -> tuple[pa.RecordBatch, Ints | Floats | None, dict[str, Pixels]]:
    """The rows where `keep`, everywhere."""
    if keep.all():
        return rows, label, images
    kept_images = {name: pixels[keep] for name, pixels in images.items()}
    return rows.filter(pa.array(keep)), None if label is None else label[keep], kept_images


def _plain(cells: pa.Array, name: str, path: Path) -> pa.Array:
    """The cells as string, float, integer or boolean; DataError for a type that is none of these."""
    kind = cells.type
    if pa.types.is_dictionary(kind):
        return _plain(cells.dictionary_decode(), name, path)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return cells.cast(pa.string())
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return cells.cast(pa.float64())
    if pa.types.is_null(kind):
        return cells.cast(pa.string())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(cells), pa.scalar(None, kind), cells)
    if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return cells
    raise DataError(f'{path} column "{name}" has type {kind}; write it as numbers, texts or booleans')


def _floats(cells: pa.Array) -> Floats:
    """float64 with NaN for null, writable."""
    return np.array(pc.fill_null(cells, float("nan")).to_numpy(zero_copy_only=False), dtype=np.float64)


def _lookup(texts: pa.Array, table: dict[str, int]) -> Ints:
    """Index of each text in the table, or -1."""
    found = pc.index_in(texts, value_set=pa.array(list(table), type=pa.string()), skip_nulls=True)
    position = pc.fill_null(found, len(table)).to_numpy(zero_copy_only=False)
    indices: Ints = np.array([*table.values(), -1], dtype=np.int64)
    chosen: Ints = np.take(indices, position)
    return chosen
