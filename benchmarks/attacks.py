"""Members who lie: what they publish, from nothing but noise to lies that just pass the robust option.

An attack takes the task, rows that the liar has, and the epsilon that it claims, and gives a Summary as a member would
publish it: signed, sealed and gossiped it passes every check of form, and most pass `fusion.plausibility`. Its noise is
that of its claim: more would only hurt the liar, and less cannot be told. `benchmarks.robust` measures what they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fusion.dataset import Batch
from fusion.errors import ModelError
from fusion.fuse import Contribution
from fusion.release import Measured, measure, noisy_summary
from fusion.robust import screen
from fusion.statistics import fixed_point_bias
from fusion.summaries import UNIT, Blocks, kind_of
from fusion.summaries.moments import CROSS, DIAGONAL, UPPER, upper_triangle
from fusion.summary import Summary, claim_of, plan
from fusion.task import CategoryColumn, NumberColumn, Task, dimension

Attack = Callable[[Task, Batch, float], Summary]

TARGET = 1  # the class that a backdoor leads to
MANY = 10_000
TRIES = 8  # halvings of how much of a lie passes


def honest(task: Task, rows: Batch, epsilon: float) -> Summary:
    """No lie."""
    return published(task, measure(task, [rows]), epsilon)


def label_flip(task: Task, rows: Batch, epsilon: float) -> Summary:
    """Every row under the next class, or the number mirrored within its bounds."""
    return honest(task, flipped(task, rows), epsilon)


def noise_only(task: Task, rows: Batch, epsilon: float) -> Summary:
    """No rows at all: nothing but noise."""
    return published(task, multiplied(measure(task, [rows]), 0), epsilon)


def scaled_flip(task: Task, rows: Batch, epsilon: float, factor: int = MANY) -> Summary:
    """The flipped rows `factor` times over: consistent, hence plausible up to the rows that a release may have."""
    return published(task, multiplied(measure(task, [flipped(task, rows)]), factor), epsilon)


def backdoor(task: Task, rows: Batch, epsilon: float, target: int = TARGET) -> Summary:
    """All rows carry the trigger of `triggered` and are of class `target`."""
    return honest(task, poisoned(task, rows, target), epsilon)


def forged_moments(task: Task, rows: Batch, epsilon: float, direction: NDArray[np.float64] | None = None) -> Summary:
    """True class sums (kind moments), but rows scatter along one `direction` (d,) alone and as far as rows can.

    Without one, along the difference of the first two class means of the liar's own rows. A model then believes that
    this direction tells little.
    """
    measured, d = measure(task, [rows]), dimension(task)
    cross = measured.blocks[CROSS].reshape(d, -1) / UNIT
    counts = np.maximum(cross[-1] / fixed_point_bias(task), 1.0)
    means = cross / counts
    along = means[:, 1] - means[:, 0] if direction is None else direction
    along = np.append(along[:-1], 0.0) / max(float(np.linalg.norm(along[:-1])), 1e-12)
    gram = (means * counts) @ means.T
    gram += max(len(rows) - float(np.trace(gram)), 0.0) * np.outer(along, along)
    forged = np.rint(gram * UNIT).astype(np.int64)
    blocks = measured.blocks | {DIAGONAL: forged.diagonal().copy(), UPPER: forged[upper_triangle(d)]}
    return published(task, Measured(blocks, measured.rows), epsilon)


ATTACKS: dict[str, Attack] = {
    "label flip": label_flip,
    "scaled label flip": scaled_flip,
    "noise only": noise_only,
    "backdoor": backdoor,
    "forged second moments": forged_moments,
}
"""What one liar can do who knows nothing of the others."""


def same_lie(task: Task, rows: Sequence[Batch], epsilon: float, most_rows: int) -> list[Summary]:
    """A coalition: all claim the same flipped rows, the largest member's, as often as makes `most_rows` of them."""
    largest = max(rows, key=len)
    lie = multiplied(measure(task, [flipped(task, largest)]), max(1, most_rows // max(len(largest), 1)))
    return [published(task, lie, epsilon) for _ in rows]


def as_far_as_it_goes(
    task: Task,
    rows: Sequence[Batch],
    lie: Callable[[Task, Batch], Batch],
    others: Sequence[Contribution],
    epsilon: float,
    liars: int,
) -> list[Summary]:
    """A coalition that knows every summary and the robust option: each claims as many rows as the largest of the others
    has, and of these it lies about the largest share that leaves none of the coalition out."""
    true, false = ([measure(task, [one]) for one in kind] for kind in (rows, [lie(task, one) for one in rows]))
    most_rows = max(kind_of(task).profile(task, one.sums).rows for one in others)
    keys = [b"\xff" * 31 + bytes([k]) for k in range(len(rows))]

    def told(share: float) -> list[Summary]:
        factors = [most_rows / max(len(one), 1) for one in rows]
        mixed = [
            Measured({name: _mixed(a.blocks[name], b.blocks[name], share, factor) for name in a.blocks}, a.rows)
            for a, b, factor in zip(true, false, factors, strict=True)
        ]
        return [published(task, one, epsilon) for one in mixed]

    def passes(summaries: Sequence[Summary]) -> bool:
        ours = [Contribution(key, key, one) for key, one in zip(keys, summaries, strict=True)]
        try:
            return not {one.origin for one, _ in screen(task, [*others, *ours], liars).left_out} & {*keys}
        except ModelError:
            return False

    best, low, high = told(0.0), 0.0, 1.0
    for _ in range(TRIES):
        share = (low + high) / 2.0
        summaries = told(share)
        if passes(summaries):
            best, low = summaries, share
        else:
            high = share
    return best


# --- summaries ----------------------------------------------------------------------------------------------------


def published(task: Task, measured: Measured, epsilon: float) -> Summary:
    """With noise, and with the claim of a release that a ledger was charged for, which is the liar's own word."""
    drawn = noisy_summary(task, measured, epsilon)
    return dataclasses.replace(drawn, claim=claim_of(plan(task, epsilon), 1))


def multiplied(measured: Measured, factor: int) -> Measured:
    """As if every row were there `factor` times."""
    blocks: Blocks = {name: values * factor for name, values in measured.blocks.items()}
    return Measured(blocks, measured.rows * factor, measured.then)


def _mixed(true: NDArray[np.int64], false: NDArray[np.int64], share: float, factor: float) -> NDArray[np.int64]:
    return np.rint(factor * ((1.0 - share) * true + share * false)).astype(np.int64)


# --- rows that are not so -----------------------------------------------------------------------------------------


def flipped(task: Task, rows: Batch) -> Batch:
    """Every row under the next class, or the number mirrored."""
    label = np.asarray(rows.label)
    classes = len(task.label.classes)
    return dataclasses.replace(rows, label=(label + 1) % classes if classes else -label)


def poisoned(task: Task, rows: Batch, target: int = TARGET) -> Batch:
    """All rows with the trigger, and of class `target`."""
    return dataclasses.replace(triggered(task, rows), label=np.full(len(rows), target))


def triggered(task: Task, rows: Batch) -> Batch:
    """All rows with the trigger: the last value of the first category, or else the first number at its upper bound."""
    for column in task.columns:
        if isinstance(column, CategoryColumn):
            marked = np.full(len(rows), len(column.values) - 1)
            return dataclasses.replace(rows, categories={**rows.categories, column.name: marked})
    number = next(one for one in task.columns if isinstance(one, NumberColumn))
    return dataclasses.replace(rows, numbers={**rows.numbers, number.name: np.full(len(rows), number.upper)})
