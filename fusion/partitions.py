"""Public partitions of the rows of a table: every row falls into exactly one cell of each.

One partition for each column by itself and, where the task asks for pairs, one for each pair of columns. A number
has evenly spaced cells between its bounds, a category one cell a value, and either one more for missing. In a pair
a category of many values has them merged in the order of the task, so that no side has more than `bins` cells and
one.

Nothing here looks at data. Numbers are taken as float32, the type in which models receive them, so that a row lies in
the same cell of the summary and of any model file.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.task import CategoryColumn, NumberColumn, Task, tabular_columns

if TYPE_CHECKING:
    from fusion.dataset import Batch

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ColumnCells:
    """The cells of one column; the last one is for missing."""

    column: NumberColumn | CategoryColumn
    bins: int  # of a number

    @property
    def size(self) -> int:
        known = len(self.column.values) if isinstance(self.column, CategoryColumn) else self.bins
        return known + 1

    def of(self, batch: Batch) -> Ints:
        """(n,) indices of cells."""
        if isinstance(self.column, CategoryColumn):
            index = batch.categories[self.column.name]
            return np.where((index < 0) | (index >= len(self.column.values)), self.size - 1, index)
        with np.errstate(over="ignore"):
            raw = batch.numbers[self.column.name].astype(np.float32).astype(np.float64)
        missing = np.isnan(raw)
        value = np.clip(np.where(missing, self.column.lower, raw), self.column.lower, self.column.upper)
        place = np.floor((value - self.column.lower) * self.scale).astype(np.int64)
        return np.where(missing, self.size - 1, np.minimum(place, self.bins - 1))

    @property
    def scale(self) -> float:
        """Cells per unit of a number."""
        assert isinstance(self.column, NumberColumn)  # noqa: S101 - categories have no scale
        return self.bins / (self.column.upper - self.column.lower)

    def merged(self) -> tuple[int, ...]:
        """The coarser cell of each cell, in a pair; again the last one is for missing."""
        known = self.size - 1
        groups = min(known, self.bins)
        return (*(index * groups // known for index in range(known)), groups)


@dataclass(frozen=True)
class Partition:
    """One column, or two; its cells are the leaves from `offset` on."""

    columns: tuple[int, ...]  # positions among the task's columns
    sides: tuple[int, ...]  # cells of each
    offset: int

    @property
    def size(self) -> int:
        return int(np.prod(self.sides))


@dataclass(frozen=True)
class Partitions:
    """All partitions of a task."""

    cells: tuple[ColumnCells, ...]  # of each column
    parts: tuple[Partition, ...]

    @property
    def leaves(self) -> int:
        """Cells of all partitions together."""
        last = self.parts[-1]
        return last.offset + last.size

    def of(self, batch: Batch) -> Ints:
        """(n, T): for each row its leaf in every partition, counted from 0 to `leaves` - 1."""
        fine = [cells.of(batch) for cells in self.cells]
        coarse = [np.array(cells.merged())[one] for cells, one in zip(self.cells, fine, strict=True)]
        found = np.empty((len(batch), len(self.parts)), dtype=np.int64)
        for place, part in enumerate(self.parts):
            if len(part.columns) == 1:
                found[:, place] = fine[part.columns[0]] + part.offset
            else:
                first, second = (coarse[column] for column in part.columns)
                found[:, place] = first * part.sides[1] + second + part.offset
        return found


def partitions_of(task: Task) -> Partitions:
    """The partitions of a task of kind `histograms`."""
    settings = task.histograms
    assert settings is not None  # noqa: S101 - the checks of a task of this kind fill it in
    return _partitions(tabular_columns(task), settings.bins, settings.pairs)


@functools.lru_cache(maxsize=8)
def _partitions(columns: Sequence[NumberColumn | CategoryColumn], bins: int, pairs: bool) -> Partitions:
    cells = tuple(ColumnCells(column, bins) for column in columns)
    chosen: list[tuple[int, ...]] = [(place,) for place in range(len(columns))]
    if pairs:
        chosen += itertools.combinations(range(len(columns)), 2)
    parts: list[Partition] = []
    offset = 0
    for places in chosen:
        sides = tuple(cells[one].size if len(places) == 1 else cells[one].merged()[-1] + 1 for one in places)
        parts.append(Partition(places, sides, offset))
        offset += parts[-1].size
    return Partitions(cells, tuple(parts))
