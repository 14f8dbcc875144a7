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

from node import heads
from node.budget import left_epsilon
from node.errors import NodeError, UsageError
from node.home import Home
from node.records import HeldState, Kind, Record
from node.show import size
from node.tasks import MIN_ID_PREFIX

if TYPE_CHECKING:
    from fusion.dataset import RowReport
    from fusion.ledger import Entry, Ledger
    from fusion.parts import Part
    from fusion.release import Release
    from fusion.summary import Plan
    from fusion.task import Task


@dataclass(frozen=True)
class Published:
    """A summary that is in the store, ready to spread."""

    record: Record
    release: Release
    advice: str | None = None  # from public figures alone

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        header = self.record.header
        return {
            "record": self.record.id.hex(),
            "replaces": header.supersedes.hex() or None,
            "bytes": len(self.record.header_bytes) + header.body_bytes,
            "epsilon": self.release.claim.epsilon,
            "delta": self.release.claim.delta,
            "advice": self.advice,
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
        return "\n".join([*lines, *_advice_lines(self.advice), *row_lines(self.release.report)])


@dataclass(frozen=True)
class Preview:
    """What a publish would do: what would leave, what it would cost."""

    plan: Plan
    dataset: str
    part: str | None
    left_epsilon: float
    refusal: str | None
    """Why it would be refused, in words; None if it would be allowed."""
    report: RowReport
    advice: str | None = None  # from public figures alone

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
            "part": self.part,
            "left_epsilon": self.left_epsilon,
            "allowed": self.refusal is None,
            "refusal": self.refusal,
            "advice": self.advice,
            "rows": rows_json(self.report),
        }

    def describe(self) -> str:
        """For people."""
        plan = self.plan
        whose = f"dataset {self.dataset}" + (f", part {self.part}" if self.part else "")
        verdict = "It would be allowed." if self.refusal is None else f"It would be refused: {self.refusal}."
        lines = [
            "Nothing was released. A publish would send one summary, sealed for this node's members:",
            f"  {plan.entries:,} noisy numbers ({_what_numbers(plan)} of {plan.dimension} features), about "
            f"{size(plan.estimated_bytes)}; no row leaves",
            f"  noise of standard deviation {plan.sigma:.2f} on each{_of_sums(plan)}, where one "
            f"{plan.unit.partition(':')[0]} can change a number by at most 1",
            f"  cost: epsilon {plan.epsilon:g}, delta {plan.delta:g} of {whose}, which has epsilon "
            f"{self.left_epsilon:.3f} left. {verdict}",
        ]
        return "\n".join([*lines, *_advice_lines(self.advice), *row_lines(self.report)])


def _what_numbers(plan: Plan) -> str:
    return "sums over all rows" if all(block.sent for block in plan.layout) else "class sums and trained weights"


def _of_sums(plan: Plan) -> str:
    """For a kind that trains, what the noise of the sums is to that of the gradients."""
    hidden = [block for block in plan.layout if not block.sent]
    if not hidden:
        return ""
    return f" class sum ({plan.sigma / hidden[0].noise_divisor:.2f} clip norms on each sum of gradients)"


def _advice_lines(advice: str | None) -> list[str]:
    return [] if advice is None else [f"WARNING  {advice}"]


def _advice(task: Task, epsilon: float) -> str | None:
    """What public figures say against the task's summary kind."""
    if task.model is None:
        return None
    from fusion.summaries.model import advice

    return advice(task, epsilon)


def publish(
    home: Home,
    task: Task,
    paths: Sequence[Path],
    *,
    epsilon: float,
    dataset: str,
    cap_epsilon: float | None,
    progress: Callable[[int], None] | None = None,
    part: Part | None = None,
) -> Published:
    """Release one private summary of the files (of the rows of one part) and put it into the store.

    A summary of the same task, dataset and part that this node published before is replaced: two of them would count
    the same rows twice. BudgetError, DataError and UsageError leave the budget as it was.
    """
    from fusion.release import release

    home.epochs.refuse_if_ended()
    ledger = home.ledger()
    heads.refuse_if_behind(home, ledger)
    finish_interrupted(home, ledger)
    _refuse_overlap(home, ledger, task.id, dataset, part)
    advice = [_advice(task, epsilon), *(_double(one) for one in strays(home, ledger, task.id))]
    made = release(
        task,
        paths,
        epsilon=epsilon,
        ledger=ledger,
        dataset=dataset,
        cap_epsilon=cap_epsilon,
        progress=progress,
        part=part,
    )
    record = _send(home, ledger, made.release_id, task.id, made.payload)
    return Published(record, made, "; ".join(filter(None, advice)) or None)


def preview(
    home: Home,
    task: Task,
    paths: Sequence[Path],
    epsilon: float,
    dataset: str,
    cap_epsilon: float | None,
    progress: Callable[[int], None] | None = None,
    part: Part | None = None,
) -> Preview:
    """What `publish` would do; reads the files for their structure and counts, and changes nothing."""
    from fusion.dataset import inspect
    from fusion.summary import plan

    planned = plan(task, epsilon)
    if part is not None:
        part.check(task)
    report = inspect(paths, task, progress=progress, part=part)
    left = left_epsilon(home, dataset, part)
    left = (cap_epsilon or task.privacy.max_epsilon) if left is None else left
    text = part.text if part else None
    refusal = _refusal(home, task.id, dataset, part)
    if refusal is None and epsilon > left:
        refusal = "the budget does not allow it"
    return Preview(planned, dataset, text, left, refusal, report, _advice(task, epsilon))


def _refusal(home: Home, task_id: bytes, dataset: str, part: Part | None) -> str | None:
    """Why a publish would be refused whatever it costs, in words; makes no ledger."""
    try:
        home.epochs.refuse_if_ended()
        if heads.is_behind(home):
            return heads.BEHIND
        if home.has_ledger:
            _refuse_overlap(home, home.ledger(), task_id, dataset, part)
    except NodeError as error:
        return str(error).rstrip(".")
    return None


def strays(home: Home, ledger: Ledger, task_id: bytes | None = None) -> list[Record]:
    """The live summaries of this node that its ledger does not know: of the copy that the home was restored after. None
    is replaced by what is published next."""
    known = {entry.record_id for account in ledger.statement() for entry in account.entries}
    selves = home.store.standing().selves
    return [
        held.record
        for held in home.store.held(kind=Kind.SUMMARY, task_id=task_id)
        if held.record.header.origin in selves
        and held.record.id not in known
        and held.state is not HeldState.BURIED
        and not home.store.unusable(held.record)
    ]


def _double(stray: Record) -> str:
    shown = stray.id.hex()[:12]
    return (
        f"record {shown} of this task was published by a copy of this home whose ledger is lost, and models count its "
        f"rows too: `tidings withdraw {shown}` if they are the same"
    )


def withdraw(home: Home, prefix: str) -> Record:
    """Take back a summary or a shared model of ours, named by the beginning of its id; returns it. UsageError if
    it is neither."""
    if len(prefix) < MIN_ID_PREFIX or not all(digit in string.hexdigits for digit in prefix):
        raise UsageError(f"Name the record by the first {MIN_ID_PREFIX} or more digits of its id: `tidings records`.")
    home.epochs.refuse_if_ended()
    selves = home.store.standing().selves
    mine = [
        held.record
        for held in home.store.find(prefix)
        if held.record.header.origin in selves and held.record.header.kind in (Kind.SUMMARY, Kind.MODEL)
    ]
    if len(mine) != 1:
        raise UsageError(
            f"{prefix} is not the id of one summary or shared model of this node; `tidings records` lists them."
        )
    home.author.withdrawal(mine[0])
    return mine[0]


def rows_json(report: RowReport) -> dict[str, Any]:
    """The counts of a RowReport for programs; like the lines, for this machine alone."""
    counted = {field.name: getattr(report, field.name) for field in fields(report)}
    return {name: value if isinstance(value, int) else dict(value) for name, value in counted.items()}


def row_lines(report: RowReport) -> list[str]:
    """What was odd about the rows: for the steward's eyes, on this machine alone."""
    lines = [f"Rows (shown here only, never sent): {report.rows_used:,} of {report.rows_read:,} used."]
    if report.rows_outside_part:
        lines.append(f"  {report.rows_outside_part:,} rows are not in the part")
    if report.rows_used == 0:
        lines.append("  no row at all: the summary holds noise alone, and nobody can tell")
    if report.persons:
        lines.append(f"  {report.persons:,} persons")
    if report.persons_missing:
        lines.append(f"  {report.persons_missing:,} rows dropped: they do not say whose they are")
    if report.rows_beyond:
        lines.append(f"  {report.rows_beyond:,} rows dropped: their person has more rows than the task takes")
    if report.labels_outside:
        lines.append(f"  {report.labels_outside:,} rows dropped: their label is none of the task's classes")
    if report.pictures_unusable:
        lines.append(f"  {report.pictures_unusable:,} rows dropped: their picture is missing or cannot be decoded")
    oddities = (
        ("out of bounds or too long, clipped", report.clipped),
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
    return [_send(home, ledger, ready.release_id, ready.task_id, ready.payload) for ready in ledger.unpublished()]


def _send(home: Home, ledger: Ledger, release_id: str, task_id: bytes, payload: bytes) -> Record:
    """Tell peers what was spent, then put the summary into the store, then note it; each step once, whatever stops."""
    with home.author.lock:
        sent_before = home.store.record_of_note(release_id)
        if sent_before is None:
            heads.tell(home, ledger)
            record = home.author.sealed(
                Kind.SUMMARY,
                task_id,
                payload,
                home.epochs.live(),
                supersedes=_previous(home, ledger, release_id) or b"",
                note=release_id,
            )
        else:
            held = home.store.get(sent_before)
            assert held is not None  # noqa: S101 - the note and its record are written in one transaction
            record = held.record
        ledger.published(release_id, record.id)
    return record


def _previous(home: Home, ledger: Ledger, release_id: str) -> bytes | None:
    """The live summary that a new one of the same task, dataset and part takes the place of."""
    entries = [entry for account in ledger.statement() for entry in account.entries]
    new = next(entry for entry in entries if entry.release_id == release_id)
    same = [entry for entry in entries if _subject(entry) == _subject(new)]
    return next((entry.record_id for entry in reversed(same) if _is_live(home, entry)), None)


def _subject(entry: Entry) -> tuple[bytes, str, str | None]:
    return entry.task_id, entry.dataset, entry.part


def _is_live(home: Home, entry: Entry) -> bool:
    held = home.store.get(entry.record_id) if entry.record_id else None
    return held is not None and held.state is HeldState.COMPLETE and not home.store.unusable(held.record)


def _refuse_overlap(home: Home, ledger: Ledger, task_id: bytes, dataset: str, part: Part | None) -> None:
    """UsageError if a live summary of the task may count some of the same rows: models would count them twice."""
    from fusion.parts import Part

    for entry in (entry for account in ledger.statement(dataset) for entry in account.entries):
        other = Part.parse(entry.part) if entry.part else None
        is_disjoint = part is not None and other is not None and part.rule == other.rule
        if entry.task_id == task_id and part != other and not is_disjoint and _is_live(home, entry):
            shown = entry.record_id.hex()[:12] if entry.record_id else ""
            what = f"the part {other.text}" if other else "the whole dataset"
            raise UsageError(
                f"Record {shown} of this task is about {what}, and models would count its rows twice; "
                f"take it back first with `tidings withdraw {shown}`."
            )
