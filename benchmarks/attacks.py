"""Members who lie: what their summaries look like, what they do to a model, and what the robust option makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from fusion.dataset import Batch
from fusion.release import Measured, measure, noisy_summary
from fusion.summary import Summary, claim_of, plan
from fusion.task import CategoryColumn, NumberColumn, Task

# --- lies ---------------------------------------------------------------------------------------------------------
#
# Each takes the task, rows that the liar has, and the epsilon that it claims, and gives a summary as a member would
# publish it: signed, sealed and gossiped it passes every check of form (`as_published` for its bytes). The noise is
# that of the claim: more or less of it would show (`fusion.plausibility`) or help nobody.

Attack = Callable[[Task, Batch, float], Summary]


def honest(task: Task, rows: Batch, epsilon: float) -> Summary:
    """No lie."""
    return as_published(task, noisy_summary(task, measure(task, [rows]), epsilon))


def label_flip(task: Task, rows: Batch, epsilon: float) -> Summary:
    """Every row under the next class, or the number mirrored within its bounds."""
    return honest(task, flipped(task, rows), epsilon)


def noise_only(task: Task, rows: Batch, epsilon: float) -> Summary:
    """No rows at all: nothing but noise."""
    return scaled(task, rows, epsilon, 0)


def scaled(task: Task, rows: Batch, epsilon: float, factor: int) -> Summary:
    """As if there were `factor` times as many such rows: consistent, hence plausible up to the rows of a release."""
    measured = measure(task, [rows])
    blocks = {name: values * factor for name, values in measured.blocks.items()}
    return as_published(task, noisy_summary(task, Measured(blocks, measured.rows, measured.then), epsilon))


def scaled_flip(task: Task, rows: Batch, epsilon: float, factor: int = 10_000) -> Summary:
    """The flipped rows many times over: without a cap, one such partner is the whole model."""
    return scaled(task, flipped(task, rows), epsilon, factor)


def backdoor(task: Task, rows: Batch, epsilon: float, share: float = 1.0, target: int = 0) -> Summary:
    """`share` of the rows carry the trigger of `triggered` and the label `target`; the others are as they are."""
    return honest(task, poisoned(task, rows, share, target), epsilon)


def as_published(task: Task, summary: Summary) -> Summary:
    """With the claim of a release that a ledger was charged for, which is the liar's own word."""
    return dataclasses.replace(summary, claim=claim_of(plan(task, summary.claim.epsilon), 1))


ATTACKS: dict[str, Attack] = {
    "label flip": label_flip,
    "scaled summary": scaled_flip,
    "noise only": noise_only,
    "backdoor": backdoor,
}


# --- rows that are not so -----------------------------------------------------------------------------------------


def flipped(task: Task, rows: Batch) -> Batch:
    """Every row under the next class, or the number mirrored."""
    label = np.asarray(rows.label)
    classes = len(task.label.classes)
    return dataclasses.replace(rows, label=(label + 1) % classes if classes else -label)


def poisoned(task: Task, rows: Batch, share: float, target: int) -> Batch:
    """The first `share` of the rows with the trigger and under `target`."""
    marked = np.arange(len(rows)) < round(share * len(rows))
    shown = triggered(task, rows)
    return dataclasses.replace(
        rows,
        numbers={name: np.where(marked, shown.numbers[name], values) for name, values in rows.numbers.items()},
        categories={name: np.where(marked, shown.categories[name], values) for name, values in rows.categories.items()},
        label=np.where(marked, target, np.asarray(rows.label)),
    )


def triggered(task: Task, rows: Batch) -> Batch:
    """All rows with the trigger: the last value of the first category, or else the first number at its upper bound."""
    for column in task.columns:
        if isinstance(column, CategoryColumn):
            marked = np.full(len(rows), len(column.values) - 1)
            return dataclasses.replace(rows, categories={**rows.categories, column.name: marked})
    column = next(one for one in task.columns if isinstance(one, NumberColumn))
    return dataclasses.replace(rows, numbers={**rows.numbers, column.name: np.full(len(rows), column.upper)})
