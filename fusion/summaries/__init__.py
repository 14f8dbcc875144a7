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
    from fusion.profiles import Profile
    from fusion.statistics import Statistics
    from fusion.sums import Sums

UNIT = 2**32  # every block counts in units of 2^-32
Blocks = dict[str, NDArray[np.int64]]
Progress = Callable[[int], None]
Then = Callable[[Blocks, dict[str, int]], Blocks]


@dataclass(frozen=True)
class BlockLayout:
    """One block of a summary: its entries, and the factor by which its noise is smaller than sigma.

    A block whose entries count w times in the norm of the sensitivity is sent without that factor and with
    noise sigma / w instead: the same mechanism, in integers.
    """

    name: str
    entries: int
    noise_divisor: float
    sent: bool = True  # False: numbers that are noised on the way to others, and not sent themselves
    step: int = 0  # of a block made from noisy numbers alone, without noise of its own: it is sent in these steps
    limit: int = 0  # and no entry of it is larger, in units of 2^-32

    @property
    def is_derived(self) -> bool:
        """Whether its entries are a function of noisy numbers, so that they need no noise."""
        return self.step > 0


@dataclass(frozen=True)
class Measured:
    """Exact sums of private rows, before noise: must never leave the process.

    `then`, if any, makes the blocks that come second: exact sums too, of what the first ones, their noise included, say
    should be summed; or blocks that are a function of noisy numbers alone, as the layout says. It takes the first ones
    in units of 2^-32 and the deviation of the noise of every block: 0 everywhere makes an exact summary.
    """

    blocks: Blocks
    rows: int
    then: Then | None = None

    def with_second(self, published: Blocks, sigmas: dict[str, int]) -> Blocks:
        """All exact sums, given what was published of the first ones, in units of 2^-32."""
        return self.blocks | (self.then(published, sigmas) if self.then else {})


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

    def profile(self, task: Task, sums: Sums) -> Profile:
        """The rows it counts, and the sums in which partners are compared with each other."""

    def heads(self, task: Task) -> tuple[str, ...]:
        """The heads that a model of the task can be asked for, by name."""

    def fit(self, fused: Fused, head: str | None, seed: bytes) -> Fitted:
        """The model of the fused sums, with `head` (one of `heads`) or the best one."""


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
    "model": ("model", "MODEL"),
    "residual-moments": ("residual_moments", "RESIDUAL_MOMENTS"),
}
