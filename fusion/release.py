"""Private rows -> one Summary: check, charge, measure, noise, encode. The order is the privacy guarantee.

`release` is the only way from data to bytes that may leave the node. Before the ledger is charged it reads
the files for their structure alone; after it, whatever goes wrong, the budget stays spent. Noise is drawn
once: the bytes are kept in the ledger, and only they are ever sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.encoders import encoder_for
from fusion.errors import DataError
from fusion.noise import discrete_gaussian
from fusion.summaries import Measured, Progress, kind_of
from fusion.summary import ADJACENCY, Claim, Plan, Summary, claim_of, limits_of, plan, step_for, step_of
from fusion.task import MAX_ROWS, Task

if TYPE_CHECKING:
    from fusion.dataset import Batch, RowReport
    from fusion.ledger import Ledger
    from fusion.parts import Part

__all__ = [
    "Claim",
    "Plan",
    "Release",
    "Summary",
    "exact_summary",
    "measure",
    "noised_block",
    "noisy_summary",
    "plan",
    "release",
]


@dataclass(frozen=True)
class Release:
    """A finished release: its bytes are in the ledger as READY, and nothing else may ever be sent for it."""

    release_id: str
    payload: bytes
    report: RowReport
    claim: Claim


def release(
    task: Task,
    paths: Sequence[Path],
    *,
    epsilon: float,
    ledger: Ledger,
    dataset: str,
    cap_epsilon: float | None = None,
    progress: Progress | None = None,
    part: Part | None = None,
) -> Release:
    """One private summary of the files (of the rows of one part): inspect, spend, measure, noise, encode, keep.

    BudgetError and DataError from the first three lines leave the budget as it was. `progress` hears rows
    done over both passes through the files, so it ends at twice the rows read.
    """
    from fusion.dataset import inspect, person_pass, read_batches

    planned = plan(task, epsilon)
    encoder_for(task)  # a backbone that is missing or broken must be found before the budget is charged
    if part is not None:
        part.check(task)
    persons = person_pass(task)
    report = inspect(paths, task, progress=progress, persons=persons, part=part)
    _check_rows(task, report, part)
    reserved = ledger.reserve(
        dataset,
        task.id,
        epsilon,
        planned.delta,
        cap_epsilon,
        note=task.name,
        default_cap_epsilon=task.privacy.max_epsilon,
        unit=planned.unit,
        part=part,
    )
    batches = read_batches(paths, task, persons=persons, part=part)
    measured = measure(task, batches, _continued(progress, report.rows_read))
    summary = _noised(planned, measured, reserved.position)
    payload = summary.to_bytes()
    ledger.ready(reserved.release_id, payload)
    return Release(reserved.release_id, payload, report, summary.claim)


def measure(task: Task, batches: Iterable[Batch], progress: Progress | None = None) -> Measured:
    """The exact sums of the task's summary kind. They are private: only `_noised` makes them fit to leave."""
    return kind_of(task).measure(task, batches, progress)


def exact_summary(task: Task, batches: Iterable[Batch]) -> Summary:
    """The sums without noise, for tests and for comparisons on one machine; `to_bytes` refuses it."""
    measured, layout = measure(task, batches), kind_of(task).layout(task)
    blocks = measured.with_second(measured.blocks, {block.name: 0 for block in layout})
    claim = Claim(math.inf, 0.0, "none", kind_of(task).sensitivity(task), ADJACENCY, task.privacy.unit, 0)
    steps, sigmas = dict.fromkeys(blocks, 1), dict.fromkeys(blocks, 0)
    return Summary(task.id, task.summary, claim, blocks, steps, sigmas, limits_of(layout))


def noisy_summary(task: Task, measured: Measured, epsilon: float) -> Summary:
    """A fresh draw of noise on sums already measured, for repeated trials in process; `to_bytes` refuses it.

    No ledger is charged: neither it nor a model made from it may reach anyone who must not see the data.
    """
    return _noised(plan(task, epsilon), measured, ledger_position=0)


def _noised(planned: Plan, measured: Measured, ledger_position: int) -> Summary:
    sigmas = {block.name: planned.sigmas[block.name] for block in planned.sent}
    steps = {block.name: step_for(block, sigmas[block.name]) for block in planned.sent}
    blocks = {name: noised_block(values, sigmas[name]) for name, values in measured.blocks.items()}
    if measured.then is not None:
        published = {name: values * steps[name] for name, values in blocks.items()}
        second = measured.then(published, planned.sigmas)
        made_of_noisy = {block.name for block in planned.sent if block.is_derived}
        blocks |= {
            name: _in_steps(values, steps[name]) if name in made_of_noisy else noised_block(values, sigmas[name])
            for name, values in second.items()
        }
    blocks = {block.name: blocks[block.name] for block in planned.sent}
    claim = claim_of(planned, ledger_position)
    return Summary(planned.task_id, planned.kind, claim, blocks, steps, sigmas, limits_of(planned.layout))


def noised_block(values: NDArray[np.int64], sigma: int) -> NDArray[np.int64]:
    """The mechanism itself: fresh noise on every entry, then rounding to whole steps of `step_of(sigma)`."""
    return _in_steps(discrete_gaussian(values, sigma), step_of(sigma))


def _in_steps(values: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """Each value in whole steps, to the nearest; `step` is a power of two."""
    return (values + step // 2) >> (step.bit_length() - 1)


def _check_rows(task: Task, report: RowReport, part: Part | None) -> None:
    # A part without rows is released like any other: one row more or less must not decide whether it is.
    if report.rows_used == 0 and part is None:
        column = f", or the column of persons {persons.column}" if (persons := task.privacy.person) else ""
        raise DataError(f"no row has a label that the task knows; check the label column and its classes{column}")
    if report.rows_used > MAX_ROWS:
        raise DataError(f"a release takes at most {MAX_ROWS} rows; split the data")
    counted = report.persons if task.privacy.person is not None else report.rows_used
    if counted > task.max_rows:
        raise DataError(f"this task allows a release {task.max_rows:,} rows, and here are {counted:,}; publish parts")
    if task.model is not None:
        from fusion.summaries.model import check_memory

        check_memory(task, report.rows_used)


def _continued(progress: Progress | None, rows_before: int) -> Progress | None:
    """The second pass over the rows, told as a continuation of the first."""
    if progress is None:
        return None
    report = progress
    return lambda rows: report(rows_before + rows)
