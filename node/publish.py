"""Publishing: data -> one private summary -> a sealed, signed record in the store.

    publish:  release (charge, measure, noise: fusion) -> seal -> sign -> store

A crash between the release and the record loses nothing and costs nothing twice: the ledger keeps the noised bytes,
and `finish_interrupted` sends exactly those.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.errors import UsageError
from node.home import Home
from node.records import HeldState, Kind, Record
from node.show import size
from node.status import budget
from node.tasks import MIN_ID_PREFIX

if TYPE_CHECKING:
    from fusion.dataset import RowReport
    from fusion.ledger import Ledger
    from fusion.release import Release
    from fusion.summary import Plan
    from fusion.task import Task


@dataclass(frozen=True)
class Published:
    """A summary that is in the store, ready to spread."""

    record: Record
    release: Release

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        header = self.record.header
        return {
            "record": self.record.id.hex(),
            "replaces": header.supersedes.hex() or None,
            "bytes": len(self.record.header_bytes) + header.body_bytes,
            "epsilon": self.release.claim.epsilon,
            "delta": self.release.claim.delta,
            "rows": rows_json(self.release.report),
        }

    def describe(self) -> str:
        """For people."""
        content = self.to_json()
        lines = [
            f"Published record {content['record'][:12]}: {size(content['bytes'])}, epsilon "
            f"{content['epsilon']:g}, delta {content['delta']:g}. It spreads while this node is running.",
        ]
        if content["replaces"]:
            lines.append(f"It replaces record {content['replaces'][:12]}, which everyone drops.")
        return "\n".join([*lines, *row_lines(self.release.report)])


@dataclass(frozen=True)
class Preview:
    """What a publish would do: what would leave, what it would cost."""

    plan: Plan
    dataset: str
    left_epsilon: float
    allowed: bool
    report: RowReport

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "bytes": self.plan.estimated_bytes,
            "numbers": self.plan.entries,
            "dimension": self.plan.dimension,
            "sigma": self.plan.sigma,
            "epsilon": self.plan.epsilon,
            "delta": self.plan.delta,
            "dataset": self.dataset,
            "left_epsilon": self.left_epsilon,
            "allowed": self.allowed,
            "rows": rows_json(self.report),
        }

    def describe(self) -> str:
        """For people."""
        plan = self.plan
        verdict = "It would be allowed." if self.allowed else "It would be refused: the budget does not allow it."
        lines = [
            "Nothing was released. A publish would send one summary, sealed for this node's members:",
            f"  {plan.entries:,} noisy numbers (sums over all rows of {plan.dimension} features), about "
            f"{size(plan.estimated_bytes)}; no row leaves",
            f"  noise of standard deviation {plan.sigma:.2f} on each, where one {plan.unit.partition(':')[0]} can "
            "change a number by at most 1",
            f"  cost: epsilon {plan.epsilon:g}, delta {plan.delta:g} of dataset {self.dataset}, which has epsilon "
            f"{self.left_epsilon:.3f} left. {verdict}",
        ]
        return "\n".join([*lines, *row_lines(self.report)])


def publish(
    home: Home,
    task: Task,
    paths: Sequence[Path],
    *,
    epsilon: float,
    dataset: str,
    cap_epsilon: float | None,
    progress: Callable[[int], None] | None = None,
) -> Published:
    """Release one private summary of the files and put it into the store.

    A summary of the same task and dataset that this node published before is replaced: two of them would count the
    same rows twice. BudgetError and DataError leave budget and store as they were.
    """
    from fusion.release import release

    ledger = home.ledger()
    finish_interrupted(home, ledger)
    made = release(
        task,
        paths,
        epsilon=epsilon,
        ledger=ledger,
        dataset=dataset,
        cap_epsilon=cap_epsilon,
        progress=progress,
    )
    return Published(_send(home, ledger, made.release_id, task.id, dataset, made.payload), made)


def preview(
    home: Home,
    task: Task,
    paths: Sequence[Path],
    epsilon: float,
    dataset: str,
    cap_epsilon: float | None,
    progress: Callable[[int], None] | None = None,
) -> Preview:
    """What `publish` would do; reads the files for their structure and counts, and changes nothing."""
    from fusion.dataset import inspect
    from fusion.summary import plan

    planned = plan(task, epsilon)
    report = inspect(paths, task, progress=progress)
    accounts = budget(home, dataset)
    left = accounts[0]["left_epsilon"] if accounts else cap_epsilon or task.privacy.max_epsilon
    return Preview(planned, dataset, left, epsilon <= left, report)


def withdraw(home: Home, prefix: str) -> bytes:
    """Take back a summary of ours, named by the beginning of its id; returns the id. UsageError if it is none."""
    if len(prefix) < MIN_ID_PREFIX or not all(digit in string.hexdigits for digit in prefix):
        raise UsageError(f"Name the record by the first {MIN_ID_PREFIX} or more digits of its id: `tidings records`.")
    mine = [
        held.record
        for held in home.store.find(prefix)
        if held.record.header.origin == home.me and held.record.header.kind is Kind.SUMMARY
    ]
    if len(mine) != 1:
        raise UsageError(f"{prefix} is not the id of one summary of this node; `tidings records` lists them.")
    home.author.withdrawal(mine[0])
    return mine[0].id


def rows_json(report: RowReport) -> dict[str, Any]:
    """The counts of a RowReport for programs; like the lines, for this machine alone."""
    counted = {field.name: getattr(report, field.name) for field in fields(report)}
    return {name: value if isinstance(value, int) else dict(value) for name, value in counted.items()}


def row_lines(report: RowReport) -> list[str]:
    """What was odd about the rows: for the steward's eyes, on this machine alone."""
    lines = [f"Rows (shown here only, never sent): {report.rows_used:,} of {report.rows_read:,} used."]
    if report.persons:
        lines.append(f"  {report.persons:,} persons")
    if report.persons_missing:
        lines.append(f"  {report.persons_missing:,} rows dropped: they do not say whose they are")
    if report.rows_beyond:
        lines.append(f"  {report.rows_beyond:,} rows dropped: their person has more rows than the task takes")
    if report.labels_outside:
        lines.append(f"  {report.labels_outside:,} rows dropped: their label is none of the task's classes")
    oddities = (
        ("out of bounds, clipped", report.clipped),
        ("missing", report.missing),
        ("unknown category, taken as missing", report.unknown),
        ("unreadable number, taken as missing", report.unreadable),
    )
    for what, counts in oddities:
        named = ", ".join(f"{column} {count:,}" for column, count in counts.items() if count)
        if named:
            lines.append(f"  {what}: {named}")
    return lines


def finish_interrupted(home: Home, ledger: Ledger) -> list[Record]:
    """Send the releases whose bytes were ready when this node last stopped in the middle; costs no budget."""
    return [
        _send(home, ledger, ready.release_id, ready.task_id, ready.dataset, ready.payload)
        for ready in ledger.unpublished()
    ]


def _send(home: Home, ledger: Ledger, release_id: str, task_id: bytes, dataset: str, payload: bytes) -> Record:
    with home.author.lock:
        sent_before = home.store.record_of_note(release_id)
        if sent_before is None:
            record = home.author.sealed(
                Kind.SUMMARY,
                task_id,
                payload,
                home.epochs.live(),
                supersedes=_previous(home, ledger, task_id, dataset) or b"",
                note=release_id,
            )
        else:
            held = home.store.get(sent_before)
            assert held is not None  # noqa: S101 - the note and its record are written in one transaction
            record = held.record
        ledger.published(release_id, record.id)
    home.epochs.grant_missing()
    return record


def _previous(home: Home, ledger: Ledger, task_id: bytes, dataset: str) -> bytes | None:
    """The live summary that a new one of this task and dataset takes the place of."""
    for account in ledger.statement(dataset):
        for entry in reversed(account.entries):
            held = home.store.get(entry.record_id) if entry.record_id and entry.task_id == task_id else None
            if held is not None and held.state is HeldState.COMPLETE:
                return held.record.id
    return None
