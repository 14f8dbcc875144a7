"""Summaries of many partners -> one sum: check each, add as integers.

Each summary must first look like what an honest release could be, given the noise that its claim implies; one that does
not is quarantined with a reason in words and left out. The checks depend on that one summary alone, so every node
quarantines the same ones; its kind knows them (`fusion.plausibility` for moments).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fusion.errors import NothingToFuse
from fusion.statistics import Statistics
from fusion.summaries import kind_of
from fusion.sums import Contribution, Sums, total
from fusion.task import Task

__all__ = ["Contribution", "Fused", "Sums", "fuse", "total"]


@dataclass(frozen=True)
class Fused:
    """What fusing gave: the summaries used (by record id), those quarantined with the reason, and the sums."""

    task: Task
    sums: Sums
    used: tuple[Contribution, ...]
    quarantined: tuple[tuple[Contribution, str], ...]

    @cached_property
    def statistics(self) -> Statistics:
        """The moments in the sums, for the kinds of summary that have them."""
        return kind_of(self.task).statistics(self.task, self.sums)


def fuse(task: Task, contributions: Iterable[Contribution]) -> Fused:
    """The exact sum of all plausible summaries of `task`; the same record given twice counts once.

    The caller passes at most one live summary per origin and part of its data. NothingToFuse when none is usable.
    """
    ordered = sorted({one.record_id: one for one in contributions}.values(), key=lambda one: one.record_id)
    if not ordered:
        raise NothingToFuse("there is no summary of this task here yet; publish one, or wait for a peer's")
    task_id, kind = task.id, kind_of(task)  # hashed once
    used: list[Contribution] = []
    quarantined: list[tuple[Contribution, str]] = []
    for one in ordered:
        foreign = one.summary.task_id != task_id
        reason = "it belongs to another task" if foreign else kind.problem(task, Sums.of(one.summary))
        if reason is None:
            used.append(one)
        else:
            quarantined.append((one, reason))
    if not used:
        raise NothingToFuse(f"none of the {len(ordered)} summaries of this task is plausible: {quarantined[0][1]}")
    return Fused(task, total(used), tuple(used), tuple(quarantined))
