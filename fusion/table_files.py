"""Rows of a task -> a CSV or Parquet file that a reader of the same task takes as it stands.

A category is its value, a missing cell is empty (null), a class is the first of its label values. A CSV file has the
task's layout: its delimiter, its header line or, without one, a cell for each of its columns, those that the task does
not use being empty. Numbers come from batches and are finite.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.dataset import Batch
from fusion.task import CategoryColumn, NumberColumn, Task

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]

SUFFIXES = (".csv", ".parquet")


def write_rows(file: IO[bytes], suffix: str, task: Task, batches: Iterable[Batch]) -> int:
    """Write labelled rows in the form of `suffix`, one of SUFFIXES, one batch in memory at a time; returns how many."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    names = _columns(task) if suffix == ".parquet" or task.csv.header else list(task.csv.names)
    schema = pa.schema([(name, _type(task, name)) for name in names])
    if suffix == ".parquet":
        writer = pyarrow.parquet.ParquetWriter(file, schema)
    else:
        layout = pyarrow.csv.WriteOptions(
            include_header=task.csv.header,
            delimiter=task.csv.delimiter,
            quoting_style="needed" if _needs_quotes(task) else "none",  # pyarrow takes "needed" to mean every text
        )
        writer = pyarrow.csv.CSVWriter(file, schema, write_options=layout)
    rows = 0
    with writer:
        for batch in batches:
            writer.write_table(_table(task, batch, schema))
            rows += len(batch)
    return rows


def _needs_quotes(task: Task) -> bool:
    texts = {*_columns(task), *(one.values[0] for one in task.label.classes)}
    texts |= {value for column in task.columns if isinstance(column, CategoryColumn) for value in column.values}
    return any({'"', "\n", "\r", task.csv.delimiter} & set(text) for text in texts)


def _columns(task: Task) -> list[str]:
    return [*(column.name for column in task.columns), task.label.column]


def _type(task: Task, name: str) -> pa.DataType:
    import pyarrow as pa

    categories = {column.name for column in task.columns if isinstance(column, CategoryColumn)}
    is_number = name in _columns(task) and name not in categories
    if name == task.label.column:
        is_number = not task.label.classes
    return pa.float64() if is_number else pa.string()


def _table(task: Task, batch: Batch, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    cells: dict[str, pa.Array] = {}
    for column in task.columns:
        if isinstance(column, CategoryColumn):
            texts = np.array([*column.values, None], dtype=object)
            cells[column.name] = pa.array(texts[batch.categories[column.name]], pa.string())
        elif isinstance(column, NumberColumn):
            values = _rounded(batch.numbers[column.name], column.lower, column.upper)
            cells[column.name] = pa.array(values, pa.float64(), from_pandas=True)
    cells[task.label.column] = _labels(task, batch)
    empty = pa.nulls(len(batch))
    return pa.table([cells[name] if name in cells else empty.cast(pa.string()) for name in schema.names], schema=schema)


def _labels(task: Task, batch: Batch) -> pa.Array:
    """The class as its first label value, or the number in its own units."""
    import pyarrow as pa

    from fusion.artifact import label_scale

    if task.label.classes:
        values = np.array([one.values[0] for one in task.label.classes], dtype=object)
        return pa.array(values[batch.label], pa.string())
    middle, half = label_scale(task)
    return pa.array(_rounded(middle + half * np.asarray(batch.label), middle - half, middle + half), pa.float64())


def _rounded(values: Floats, lower: float, upper: float) -> Floats:
    """To a thousandth of the width of the bounds or a little finer, as data look."""
    digits = 3 - int(np.floor(np.log10(upper - lower)))
    return np.asarray(np.clip(np.round(values, digits), lower, upper))
