"""Summaries of many partners -> one sum: check each, add as integers.

Each summary must first look like what an honest release could be, given the noise that its claim implies; one that does
not is quarantined with a reason in words and left out. The checks depend on that one summary alone, so every node
quarantines the same ones; its kind knows them (`fusion.plausibility` for moments).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fusion.errors import NothingToFuse
from fusion.plausibility import too_many_rows
from fusion.statistics import Statistics
from fusion.summaries import kind_of
from fusion.sums import Contribution, RunningSums, Sums, total
from fusion.task import MAX_ROWS, Task

if TYPE_CHECKING:
    from fusion.robust import Screened

__all__ = ["Contribution", "Fused", "Fuser", "Sums", "fuse", "problem", "total"]


@dataclass(frozen=True)
class Fused:
    """What fusing gave: the summaries used (by record id), those quarantined with the reason, and the sums.

    `screened` is what the robust option did, where it was asked for.
    """

    task: Task
    sums: Sums
    used: tuple[Contribution, ...]
    quarantined: tuple[tuple[Contribution, str], ...]
    screened: Screened | None = None

    @cached_property
    def statistics(self) -> Statistics:
        """The moments in the sums, for the kinds of summary that have them."""
        return kind_of(self.task).statistics(self.task, self.sums)


class Fuser:
    """Summaries of one task that come and go: each is checked once, and joins or leaves in one exact addition.

    What it gives is what `fuse` gives for the summaries that are in it at that moment, to the last bit.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._task_id = task.id  # hashed once
        self._running = RunningSums()
        self._used: dict[bytes, Contribution] = {}
        self._quarantined: dict[bytes, tuple[Contribution, str]] = {}

    def add(self, contribution: Contribution) -> str | None:
        """Take in a summary; why it is quarantined, or None. A record that is in already changes nothing."""
        record_id = contribution.record_id
        if record_id in self._used:
            return None
        if record_id in self._quarantined:
            return self._quarantined[record_id][1]
        reason = self._take_in(contribution)
        if reason is None:
            self._used[record_id] = contribution
        else:
            self._quarantined[record_id] = (contribution, reason)
        return reason

    def withdraw(self, record_id: bytes) -> None:
        """As if this summary had never been added; an id that is not in changes nothing."""
        self._quarantined.pop(record_id, None)
        gone = self._used.pop(record_id, None)
        if gone is not None:
            self._running.take_out(Sums.of(gone.summary))

    def fused(self) -> Fused:
        """The sum of the plausible summaries, in the order of their ids; NothingToFuse when there is none."""
        quarantined = tuple(self._quarantined[record_id] for record_id in sorted(self._quarantined))
        if not self._used and not quarantined:
            raise NothingToFuse("there is no summary of this task here yet; publish one, or wait for a peer's")
        if not self._used:
            count, reason = len(quarantined), quarantined[0][1]
            raise NothingToFuse(f"none of the {count} summaries of this task is plausible: {reason}")
        used = tuple(self._used[record_id] for record_id in sorted(self._used))
        return Fused(self._task, self._running.now(), used, quarantined)

    def _take_in(self, contribution: Contribution) -> str | None:
        if contribution.summary.task_id != self._task_id:
            return "it belongs to another task"
        sums = Sums.of(contribution.summary)
        reason = problem(self._task, sums)
        if reason is None:
            self._running.add(sums)
        return reason


def problem(task: Task, sums: Sums) -> str | None:
    """Why a summary of `task` with these sums is quarantined, in words; None where an honest release looks like it."""
    kind = kind_of(task)
    reason = kind.problem(task, sums)
    if reason is None and task.max_rows < MAX_ROWS:
        reason = too_many_rows(task, kind.profile(task, sums))
    return reason


def fuse(task: Task, contributions: Iterable[Contribution], liars: int = 0) -> Fused:
    """The exact sum of all plausible summaries of `task`; the same record given twice counts once. With `liars`, the
    sum of those that `fusion.robust` keeps to withstand so many, weighted as it says.

    The caller passes at most one live summary per origin and part of its data. NothingToFuse when none is usable,
    ModelError where `liars` cannot be withstood.
    """
    fuser = Fuser(task)
    for one in contributions:
        fuser.add(one)
    fused = fuser.fused()
    if not liars:
        return fused
    from fusion.robust import screen

    screened = screen(task, fused.used, liars)
    return Fused(task, total(screened.kept), screened.kept, fused.quarantined, screened)
