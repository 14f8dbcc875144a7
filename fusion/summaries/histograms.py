"""Histograms of a table: how many rows of each class lie in each cell of T public partitions.

For every partition (`fusion.partitions`: single columns, and pairs of columns)

    N_t = (cells x classes) counts                                             (classification)
    N_t = (cells x 2) sums of (1 - t) / 2 and (1 + t) / 2, t in [-1, 1]          (regression)

in units of 2^-32 like every sum. In the regression the two columns add up to the count, and differ by the sum of t.

Sensitivity (adding or removing one record): sqrt(T). Let s = 2^32 be what a record weighs. In each partition it
falls into one cell, and adds there numbers w that are not negative and add up to at most s: all of it to one class,
or h and s - h with h = floor(s (1 + t) / 2). Hence ||w|| <= s in each of T partitions, and

    ||all that it adds||^2  <=  T 2^64.

Unit = person, k kept rows: each of them weighs floor(2^32 / k). In one partition everything a person adds is not
negative and adds up to at most 2^32, whatever cells and classes its rows lie in, so its norm there is at most 2^32
again: sqrt(T).

Everything is a whole number from the start: there is nothing to truncate, and float64 sums of up to 4,096 rows are
exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from fusion.errors import DataError, ModelError
from fusion.partitions import partitions_of
from fusion.summaries import UNIT, BlockLayout, Measured, Progress
from fusion.summaries.mean_embedding import columns
from fusion.summaries.moments import Floats, RowCount, parts_of, rows_sharing
from fusion.task import Task

if TYPE_CHECKING:
    from fusion.dataset import Batch
    from fusion.fitting import Fitted
    from fusion.fuse import Fused
    from fusion.profiles import Profile
    from fusion.statistics import Statistics
    from fusion.sums import Sums

CELLS = "cells"


class HistogramsKind:
    """The summary kind `histograms`; see the module for what is counted and why its sensitivity is sqrt(T)."""

    name = "histograms"

    def layout(self, task: Task) -> tuple[BlockLayout, ...]:
        """All tables one after the other, cell by cell."""
        return (BlockLayout(CELLS, partitions_of(task).leaves * columns(task), 1.0),)

    def sensitivity(self, task: Task) -> float:
        """sqrt(T)."""
        return math.sqrt(len(partitions_of(task).parts))

    def measure(self, task: Task, batches: Iterable[Batch], progress: Progress | None = None) -> Measured:
        """Exact counts of all rows; DataError above MAX_ROWS rows, before anything could overflow."""
        partitions = partitions_of(task)
        tables = np.zeros((partitions.leaves, columns(task)), dtype=np.int64)
        rows = RowCount(progress)
        for batch in rows.counted(batches):
            weights = row_weights(task, batch)
            for part in parts_of(len(batch)):
                leaf = partitions.of(batch.slice(part))
                for column, weight in enumerate(weights[part].T):
                    repeated = np.repeat(weight, leaf.shape[1])
                    added = np.bincount(leaf.reshape(-1), repeated, minlength=len(tables))
                    tables[:, column] += added.astype(np.int64)
        return Measured({CELLS: tables.reshape(-1)}, rows.done)

    def problem(self, task: Task, sums: Sums) -> str | None:
        """See `fusion.cell_counts`."""
        from fusion.cell_counts import problem_of_tables, tables_of

        return problem_of_tables(tables_of(task, sums))

    def statistics(self, task: Task, sums: Sums) -> Statistics:
        """ModelError: cells are not moments of features."""
        raise ModelError("summaries of kind histograms hold no moments, which this needs; use moments")

    def profile(self, task: Task, sums: Sums) -> Profile:
        """See `fusion.profiles`."""
        from fusion.cell_counts import tables_of
        from fusion.profiles import profile_of_tables

        return profile_of_tables(tables_of(task, sums))

    def heads(self, task: Task) -> tuple[str, ...]:
        """One alone."""
        from fusion.additive import HEAD

        return (HEAD,)

    def fit(self, fused: Fused, head: str | None, seed: bytes) -> Fitted:
        """See `fusion.additive`; what a release needs does not load it."""
        from fusion.additive import fit_histograms

        return fit_histograms(fused)


HISTOGRAMS = HistogramsKind()


def row_weights(task: Task, batch: Batch) -> Floats:
    """(n, columns) whole numbers, not negative, that add up to at most 2^32 / k in each row; no known label: zeros."""
    if batch.label is None:
        raise DataError("a summary needs the label of every row; name the label column")
    whole = np.floor_divide(UNIT, rows_sharing(task, batch)).astype(np.float64)
    if task.label.classes:
        return np.asarray(np.equal.outer(batch.label, np.arange(len(task.label.classes))) * whole[:, None])
    known = np.isfinite(batch.label)
    t = np.clip(np.where(known, batch.label, 0.0), -1.0, 1.0)
    high = np.floor(whole * ((1.0 + t) / 2.0))
    return np.asarray(np.column_stack([whole - high, high]) * known[:, None])
