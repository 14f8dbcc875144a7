"""What must hold of a release, as functions that raise AssertionError where it does not.

The real suite runs them on the real code; `test_mutations.py` runs the same functions on code with a deliberate bug in
it, and each bug must be caught. A check that no bug can fail would be decoration.
"""

from __future__ import annotations

import csv
import itertools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fusion.audit import audit
from fusion.dataset import Batch, release_batches
from fusion.errors import DataError
from fusion.summaries import UNIT, Blocks, kind_of
from fusion.summaries.moments import CROSS, DIAGONAL, SQUARES, UPPER
from fusion.task import Task

COLUMNS = """
[csv]
missing = ["?"]
[[columns]]
name = "plain"
type = "number"
lower = -5
upper = 40
[[columns]]
name = "binned"
type = "number"
lower = 0
upper = 1
bins = 3
[[columns]]
name = "color"
type = "category"
values = ["red", "green", "blue"]
[encoder]
kind = "tabular"
"""
CLASSES = (
    'kind = "classification"\n[label]\ncolumn = "y"\nclasses = [ { name = "a", values = ["a"] }, '
    '{ name = "b", values = ["b"] }, { name = "c", values = ["c"] } ]\n'
)
NUMBERS = 'kind = "regression"\n[label]\ncolumn = "y"\nlower = -2\nupper = 2\n'
MAX_ROWS_OF_A_PERSON = 3


def make_task(label: str, unit: str) -> Task:
    """A small task: classification or regression, rows or persons."""
    privacy = f"[privacy]\nmax_epsilon = 3\ndelta = 1e-5\nunit = {unit}\n"
    return Task.from_toml('name = "small"\n' + label + privacy + COLUMNS, "task.toml")


PERSON = f'{{ column = "who", max_rows = {MAX_ROWS_OF_A_PERSON} }}'
TASKS = {
    "classification, rows": make_task(CLASSES, '"record"'),
    "regression, rows": make_task(NUMBERS, '"record"'),
    "classification, persons": make_task(CLASSES, PERSON),
    "regression, persons": make_task(NUMBERS, PERSON),
}
ROW_TASKS = {name: task for name, task in TASKS.items() if task.privacy.person is None}
PERSON_TASKS = {name: task for name, task in TASKS.items() if task.privacy.person is not None}

# The proved bounds, written down once more: Delta^2 in units of 2^-64, for a cross weight b of 1.
PROVED_DELTA_SQUARED = {"classification": 2 * UNIT**2, "regression": 3 * UNIT**2}
WEIGHTS = {DIAGONAL: 1, UPPER: 2, CROSS: 1, SQUARES: 1}

Row = tuple[float, float, int, float]  # cells of the three columns, and the label
Line = tuple[str, str, str, str, str]  # the same as texts, and whose row it is


def batch_of(task: Task, rows: Sequence[Row], sizes: Sequence[int] | None = None) -> Batch:
    """Rows as no file could give them: cells and labels that were never clipped or looked up.

    `sizes`: how many rows are kept of the person of each row.
    """
    plain, binned, color, label = (list(column) for column in zip(*rows, strict=True))
    classes = [int(value) if math.isfinite(value) and abs(value) < 100 else -1 for value in label]
    return Batch(
        {"plain": np.array(plain), "binned": np.array(binned)},
        {"color": np.array(color)},
        np.array(classes) if task.label.classes else np.array(label, dtype=np.float64),
        len(rows),
        None if sizes is None else np.array(sizes, dtype=np.int64),
    )


def sums_of(task: Task, rows: Sequence[Row], sizes: Sequence[int] | None = None) -> Blocks:
    batches = [batch_of(task, rows, sizes)] if rows else []
    return kind_of(task).measure(task, batches).blocks


def sums_of_file(task: Task, lines: Sequence[Line]) -> Blocks:
    """Through the reader, as a release does it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("plain", "binned", "color", "y", "who"), *lines])
        try:
            return kind_of(task).measure(task, release_batches([path], task)).blocks
        except DataError:  # a file of no rows
            return sums_of(task, [])


def squared_norm(after: Blocks, before: Blocks) -> int:
    """|| svec(G), M, T ||^2 of the difference, in Python integers."""
    difference = {name: (values - before[name]).tolist() for name, values in after.items()}
    return sum(WEIGHTS[name] * sum(entry**2 for entry in values) for name, values in difference.items())


# --- sensitivity ----------------------------------------------------------------------------------------------

CORNERS: list[Row] = [
    (plain, binned, color, label)
    for plain in (-5.0, 17.5, 40.0, math.nan, math.inf, 1e308)
    for binned in (0.0, 0.25, 0.5, 1.0, -1e308)
    for color in (-1, 0, 1, 2, 9)
    for label in (-1, 0, 2, 7, math.nan)
]
LONGEST: Row = (-5.0, 0.0, 0, 1.0)  # of norm 1, with the largest label there is


def check_row_moves_sums_by_at_most_delta(task: Task, others: Sequence[Row], row: Row) -> None:
    moved = squared_norm(sums_of(task, [*others, row]), sums_of(task, others))
    assert moved <= PROVED_DELTA_SQUARED[task.kind], f"a row moves the sums by {math.sqrt(moved) / UNIT:.4f}"


def check_person_moves_sums_by_at_most_delta(task: Task, others: Sequence[Line], theirs: Sequence[Line]) -> None:
    """All rows of one person, wherever they stand in the file, against the file without them."""
    mixed = [line for pair in itertools.zip_longest(theirs, others) for line in pair if line is not None]
    moved = squared_norm(sums_of_file(task, mixed), sums_of_file(task, others))
    assert moved <= PROVED_DELTA_SQUARED[task.kind], f"a person moves the sums by {math.sqrt(moved) / UNIT:.4f}"


def check_others_stay_bit_identical(task: Task, others: Sequence[Line], theirs: Sequence[Line]) -> None:
    """A person adds the same whether the others are there or not: nothing couples people."""
    together = sums_of_file(task, [*theirs, *others])
    apart = (sums_of_file(task, theirs), sums_of_file(task, others))
    for name, values in together.items():
        assert (values == apart[0][name] + apart[1][name]).all(), "the rows of one person change what others add"


def check_every_corner(task: Task) -> None:
    """Rows at all corners of the domain; for persons, as many of one person as can be kept."""
    norms = []
    for row in CORNERS:
        if task.privacy.person is None:
            check_row_moves_sums_by_at_most_delta(task, [], row)
            norms.append(squared_norm(sums_of(task, [row]), sums_of(task, [])))
        for k in (1, 2, MAX_ROWS_OF_A_PERSON) if task.privacy.person is not None else ():
            norms.append(squared_norm(sums_of(task, [row] * k, [k] * k), sums_of(task, [])))
            assert norms[-1] <= PROVED_DELTA_SQUARED[task.kind], f"{k} rows of a person exceed Delta"
    assert max(norms) > 0.999 * PROVED_DELTA_SQUARED[task.kind], "the bound has slack: noise would be wasted"


PEOPLE: list[Line] = [("3", "0.5", "red", label, who) for label in ("a", "1") for who in ("p", "q", "q", "r")]
PROLIFIC: list[Line] = [("-5", "0", "red", label, "x") for label in ("a", "2") for _ in range(2 * MAX_ROWS_OF_A_PERSON)]


def check_prolific_person(task: Task) -> None:
    """Somebody with twice the rows that are kept."""
    check_person_moves_sums_by_at_most_delta(task, PEOPLE, PROLIFIC)
    check_others_stay_bit_identical(task, PEOPLE, PROLIFIC)


def check_stated_sensitivity_is_proved(task: Task) -> None:
    """What the noise is calibrated for, and how it is spread over the blocks, is what the search bounds."""
    kind = kind_of(task)
    proved = math.sqrt(PROVED_DELTA_SQUARED[task.kind]) / UNIT
    assert kind.sensitivity(task) == proved, f"Delta is stated as {kind.sensitivity(task):.4f}, proved is {proved:.4f}"
    for block in kind.layout(task):
        assert math.isclose(block.noise_divisor**2, WEIGHTS[block.name]), f"block {block.name} has another weight"


# --- noise ----------------------------------------------------------------------------------------------------

AUDIT_RUNS = 12_000  # by chance, the audit below fails less than once in 10,000 runs of the suite
AUDIT_CONFIDENCE = 0.9999


def check_audit_confirms_claim(task: Task, epsilon: float = 3.0) -> None:
    """Released numbers tell neighbors apart as well as epsilon says: not better, and not much worse."""
    measured = audit(task, epsilon, AUDIT_RUNS, confidence=AUDIT_CONFIDENCE)
    assert measured.verdict == "holds", measured.describe()
