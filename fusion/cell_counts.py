"""Histograms as tables: counts per cell and class with the deviation of their noise, and whether they can be honest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion import plausibility
from fusion.partitions import Partition, Partitions, partitions_of
from fusion.summaries.histograms import CELLS
from fusion.summaries.mean_embedding import columns
from fusion.sums import Sums
from fusion.task import MAX_ROWS, Task

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """Counts (leaves, K) of all partitions with noise of deviation `sigma` in every one, in units of 1."""

    partitions: Partitions
    counts: Floats
    sigma: float

    def of(self, part: Partition) -> Floats:
        """(cells, K)."""
        return self.counts[part.offset : part.offset + part.size]

    @property
    def sizes(self) -> Floats:
        """(T,): cells of each partition."""
        return np.array([part.size for part in self.partitions.parts], dtype=np.float64)

    @property
    def totals(self) -> Floats:
        """(T, K): the rows of each class, by each partition; its noise has variance sigma^2 times the cells."""
        return np.array([self.of(part).sum(axis=0) for part in self.partitions.parts])

    @property
    def rows(self) -> Floats:
        """(K,): the rows of each class by all partitions, those of few cells counting most, for the noise in them."""
        weights = 1.0 / self.sizes
        return np.asarray(weights @ self.totals / weights.sum())

    @property
    def rows_sigma(self) -> float:
        return self.sigma / math.sqrt(float((1.0 / self.sizes).sum()))


def tables_of(task: Task, sums: Sums) -> Tables:
    """The tables as float64 in units of 1, each entry rounded once."""
    return Tables(partitions_of(task), sums.values(CELLS).reshape(-1, columns(task)), sums.sigma(CELLS))


def problem_of_tables(tables: Tables) -> str | None:
    """Why no honest release looks like these tables of one summary; None where one could.

    An entry of N has noise beyond sqrt(36 + 2 ln N) deviations with probability below exp(-18) / N, so an honest
    summary fails with a probability below 1e-7.
    """
    deviations = math.sqrt(plausibility.DEVIATIONS**2 + 2.0 * math.log(tables.counts.size))
    noise = deviations * tables.sigma
    totals, sizes = tables.totals, tables.sizes
    slack = plausibility.ROUNDING * (1.0 + float(np.abs(totals).sum()))
    if (tables.counts < -noise - slack).any():
        return "it counts fewer than no rows in a cell"
    fewest = int(sizes.argmin())
    if totals[fewest].sum() > MAX_ROWS + noise * math.sqrt(sizes[fewest] * totals.shape[1]):
        return f"it counts more rows than the {MAX_ROWS} that a release may have"
    allowed = noise * np.sqrt(sizes + sizes[fewest])[:, None]
    if (np.abs(totals - totals[fewest]) > allowed + slack).any():
        return "its partitions count different numbers of rows"
    return None
