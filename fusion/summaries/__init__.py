"""The summary kinds: one file each behind one small protocol; adding one is a file and a registry line.

A kind turns encoded rows into blocks of exact integers in units of 2^-32, and says how much one record can
move them. What noise that takes is decided in one place for all kinds, `fusion.release`. On the other side it says what
the sum of many such summaries means, and fits a model to it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fusion.errors import TaskError
from fusion.task import Task

if TYPE_CHECKING:
    from fusion.dataset import Batch
    from fusion.fitting import Fitted
    from fusion.fuse import Fused
    from fusion.statistics import Statistics
    from fusion.sums import Sums

UNIT = 2**32  # every block counts in units of 2^-32
Blocks = dict[str, NDArray[np.int64]]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class BlockLayout:
    """One block of a summary: its entries, and the factor by which its noise is smaller than sigma.

    A block whose entries count w times in the norm of the sensitivity is sent without that factor and with
    noise sigma / w instead: the same mechanism, in integers.
    """

    name: str
    entries: int
    noise_divisor: float


@dataclass(frozen=True)
class Measured:
    """Exact sums of private rows, before noise: must never leave the process."""

    blocks: Blocks
    rows: int


class SummaryKind(Protocol):
    """What every kind of summary offers."""

    name: str

    def layout(self, task: Task) -> tuple[BlockLayout, ...]:
        """The blocks, whose shapes depend on the task alone."""

    def sensitivity(self, task: Task) -> float:
        """L2 norm, over blocks times their noise divisors, of what one record adds (in units of 1)."""

    def measure(self, task: Task, batches: Iterable[Batch], progress: Progress | None = None) -> Measured:
        """Sum the rows exactly; `progress` hears how many rows are done."""

    def problem(self, task: Task, sums: Sums) -> str | None:
        """Why no honest release looks like this one summary, in words; None where one could."""

    def statistics(self, task: Task, sums: Sums) -> Statistics:
        """The moments of all rows; ModelError for a kind that does not hold them."""

    def fit(self, fused: Fused, head: str | None, seed: bytes) -> Fitted:
        """The model of the fused sums, with `head` or the best one; ModelError for a head that it cannot have."""


def kind_of(task: Task) -> SummaryKind:
    """The summary kind that the task names."""
    if task.summary not in _KINDS:
        raise TaskError(f'summary kind "{task.summary}" is not known to this version; update the node')
    module, kind = _KINDS[task.summary]
    loaded: SummaryKind = getattr(importlib.import_module(f"fusion.summaries.{module}"), kind)
    return loaded


# Name of the kind -> its module here, and the object in it; loaded when a task of that kind is at hand.
_KINDS = {
    "moments": ("moments", "MOMENTS"),
    "class-moments": ("class_moments", "CLASS_MOMENTS"),
    "histograms": ("histograms", "HISTOGRAMS"),
    "mean-embedding": ("mean_embedding", "MEAN_EMBEDDING"),
}
