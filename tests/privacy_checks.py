"""What must hold of a release, as functions that raise AssertionError where it does not.

The real suite runs them on the real code; `test_mutations.py` runs the same functions on code with a deliberate bug in
it, and each bug must be caught. A check that no bug can fail would be decoration.
"""

from __future__ import annotations

import csv
import itertools
import math
import random
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from scipy import stats

from fusion import release as release_module
from fusion import training
from fusion.accounting import DISCRETE_SLACK, delta_of, noise_scale
from fusion.audit import audit
from fusion.dataset import Batch, release_batches
from fusion.errors import BudgetError, DataError
from fusion.ledger import Ledger
from fusion.parts import Part
from fusion.shapes import settings_of, trained_shapes
from fusion.summaries import UNIT, Blocks, kind_of, model, moments
from fusion.summaries import residual_moments as residual
from fusion.summaries.class_moments import CLASS_CROSS, CLASS_DIAGONAL, CLASS_UPPER
from fusion.summaries.histograms import CELLS
from fusion.summaries.mean_embedding import CLASS_SUMS
from fusion.summaries.moments import CROSS, DIAGONAL, SQUARES, UPPER
from fusion.summary import plan
from fusion.task import SUMMARY_KINDS, Task, dimension

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


def make_task(label: str, unit: str, summary: str = "moments", options: str = "") -> Task:
    """A small task: classification or regression, rows or persons, of one kind of summary."""
    privacy = f"[privacy]\nmax_epsilon = 10\ndelta = 1e-5\nunit = {unit}\n"
    head = f'name = "small"\nsummary = "{summary}"\n'
    return Task.from_toml(head + label + privacy + COLUMNS + options, "task.toml")


PERSON = f'{{ column = "who", max_rows = {MAX_ROWS_OF_A_PERSON} }}'
LABELS = {"classification": CLASSES, "regression": NUMBERS}
UNITS = {"rows": '"record"', "persons": PERSON}

# What the search proves of each kind of summary and each kind of label, written down once more: groups of blocks, each
# group with the square of the largest norm that one record or person can add to it (in units of 1), and the square
# of the factor with which each of its blocks counts in that norm. A kind without an entry fails every test.
Groups = tuple[tuple[float, dict[str, float]], ...]
PROVED: dict[str, dict[str, Groups]] = {
    "moments": {
        "classification": ((1, {DIAGONAL: 1, UPPER: 2}), (1, {CROSS: 1})),
        "regression": ((1, {DIAGONAL: 1, UPPER: 2}), (1, {CROSS: 1}), (1, {SQUARES: 1})),
    },
    "class-moments": {
        "classification": ((1, {CLASS_DIAGONAL: 1, CLASS_UPPER: 2}), (1, {CLASS_CROSS: 1})),
    },
    "histograms": {  # three columns and their three pairs: six partitions
        "classification": ((6, {CELLS: 1}),),
        "regression": ((6, {CELLS: 1}),),
    },
    "mean-embedding": {
        "classification": ((1, {CLASS_SUMS: 1}),),
        "regression": ((1, {CLASS_SUMS: 1}),),
    },
    "residual-moments": {
        "classification": (
            (1, {residual.DIAGONAL: 1, residual.UPPER: 2}),
            (25 / 64, {residual.CROSS: 25 / 64}),
            (1 / 64, {residual.LENGTHS: 1 / 64}),
        ),
    },
}
OPTIONS = {"histograms": "[histograms]\nbins = 3\npairs = true\n"}  # a kind's own table in the task
PROVED_ELSEWHERE = ("model",)  # its gradients depend on earlier noise: test_model_kind.py, test_training.py


def _tasks() -> dict[str, Task]:
    """Every kind of summary of sums that is known, with every kind of label that it has, for rows and persons.

    Kind `model` trains as well; what one record can move in a step of that is searched in test_training.py.
    """
    tasks = {}
    for summary in (one for one in SUMMARY_KINDS if one not in PROVED_ELSEWHERE):
        for label, unit in itertools.product(PROVED[summary], UNITS):
            prefix = "" if summary == "moments" else f"{summary}: "
            tasks[f"{prefix}{label}, {unit}"] = make_task(LABELS[label], UNITS[unit], summary, OPTIONS.get(summary, ""))
    return tasks


TASKS = _tasks()
ROW_TASKS = {name: task for name, task in TASKS.items() if task.privacy.person is None}
PERSON_TASKS = {name: task for name, task in TASKS.items() if task.privacy.person is not None}


def groups_of(task: Task) -> Groups:
    return PROVED[task.summary][task.kind]


def proved_delta_squared(task: Task) -> int:
    """Delta^2 in units of 2^-64."""
    return int(sum(Fraction(bound) for bound, _ in groups_of(task)) * UNIT**2)


def weights_of(task: Task) -> dict[str, float]:
    """The square of each block's factor in the norm."""
    return {name: weight for _, blocks in groups_of(task) for name, weight in blocks.items()}


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
    return all_blocks(task, kind_of(task).measure(task, batches))


def all_blocks(task: Task, measured: release_module.Measured) -> Blocks:
    """What is summed first, and what is summed second where this much was published of the first: any numbers do, and
    they are taken at their word, as if they had no noise."""
    published = {}
    if task.summary == "residual-moments":
        sums = np.random.default_rng(5).normal(0.0, 200.0, (dimension(task), len(task.label.classes)))
        sums[-1] = 1_000 * task.encoder.bias
        published = {residual.CROSS: np.rint(sums * UNIT).astype(np.int64).reshape(-1)}
    return measured.with_second(published, {block.name: 0 for block in kind_of(task).layout(task)})


def sums_of_file(task: Task, lines: Sequence[Line]) -> Blocks:
    """Through the reader, as a release does it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("plain", "binned", "color", "y", "who"), *lines])
        try:
            return all_blocks(task, kind_of(task).measure(task, release_batches([path], task)))
        except DataError:  # a file of no rows
            return sums_of(task, [])


def squared_norm(task: Task, after: Blocks, before: Blocks) -> int:
    """The squared norm of the difference, such as || svec(G), M, T ||^2, in Python integers."""
    difference = {name: (values - before[name]).tolist() for name, values in after.items()}
    weights = weights_of(task)
    squares = {name: sum(entry**2 for entry in values) for name, values in difference.items()}
    return math.ceil(sum(Fraction(weights[name]) * square for name, square in squares.items()))


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
    moved = squared_norm(task, sums_of(task, [*others, row]), sums_of(task, others))
    assert moved <= proved_delta_squared(task), f"a row moves the sums by {math.sqrt(moved) / UNIT:.4f}"


def check_person_moves_sums_by_at_most_delta(task: Task, others: Sequence[Line], theirs: Sequence[Line]) -> None:
    """All rows of one person, wherever they stand in the file, against the file without them."""
    mixed = [line for pair in itertools.zip_longest(theirs, others) for line in pair if line is not None]
    moved = squared_norm(task, sums_of_file(task, mixed), sums_of_file(task, others))
    assert moved <= proved_delta_squared(task), f"a person moves the sums by {math.sqrt(moved) / UNIT:.4f}"


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
            norms.append(squared_norm(task, sums_of(task, [row]), sums_of(task, [])))
        for k in (1, 2, MAX_ROWS_OF_A_PERSON) if task.privacy.person is not None else ():
            norms.append(squared_norm(task, sums_of(task, [row] * k, [k] * k), sums_of(task, [])))
            assert norms[-1] <= proved_delta_squared(task), f"{k} rows of a person exceed Delta"
    assert max(norms) > 0.999 * proved_delta_squared(task), "the bound has slack: noise would be wasted"


def check_shares_add_up_to_at_most_one(k: int) -> None:
    """k rows of one person, each with the label's share: the squares stay below 2^32 and waste less than a unit."""
    (share,) = moments.whole_shares(np.array([k]))
    assert k * int(share) ** 2 <= UNIT < k * (int(share) + 1) ** 2, f"{k} shares of {share} are not the largest below 1"


PEOPLE: list[Line] = [("3", "0.5", "red", label, who) for label in ("a", "1") for who in ("p", "q", "q", "r")]
PROLIFIC: list[Line] = [("-5", "0", "red", label, "x") for label in ("a", "2") for _ in range(2 * MAX_ROWS_OF_A_PERSON)]


def check_prolific_person(task: Task) -> None:
    """Somebody with twice the rows that are kept."""
    check_person_moves_sums_by_at_most_delta(task, PEOPLE, PROLIFIC)
    check_others_stay_bit_identical(task, PEOPLE, PROLIFIC)


def check_stated_sensitivity_is_proved(task: Task) -> None:
    """What the noise is calibrated for, and how it is spread over the blocks, is what the search bounds."""
    kind = kind_of(task)
    proved = math.sqrt(proved_delta_squared(task)) / UNIT
    assert kind.sensitivity(task) == proved, f"Delta is stated as {kind.sensitivity(task):.4f}, proved is {proved:.4f}"
    for block in kind.layout(task):
        assert math.isclose(block.noise_divisor**2, weights_of(task)[block.name]), (
            f"block {block.name} has another weight"
        )


# --- training -------------------------------------------------------------------------------------------------

TRAINED = {unit: make_task(CLASSES, text, "model", "[model]\nhidden = [5]\n") for unit, text in UNITS.items()}


def gradient_of(task: Task, rows: Sequence[Row], sizes: Sequence[int] | None = None) -> list[int]:
    """The exact sum of one step, for weights far from where training starts."""
    _sums, encoded = model.encoded(task, [batch_of(task, rows, sizes)] if rows else [])
    rng = np.random.default_rng(1)
    weights = tuple(rng.uniform(-20, 20, shape) for shape in trained_shapes(task))
    added: list[int] = training.gradient_sum(weights, encoded, 1e-3, np.zeros(3)).tolist()
    return added


def check_a_step_moves_by_at_most_the_clip(task: Task) -> None:
    """Rows at all corners of the domain, alone and as many of one person as can be kept."""
    most = MAX_ROWS_OF_A_PERSON if task.privacy.person is not None else 1
    norms = [sum(entry**2 for entry in gradient_of(task, [row] * k, [k] * k)) for row in CORNERS for k in (1, most)]
    assert max(norms) <= UNIT**2, f"a step moves by {math.sqrt(max(norms)) / UNIT:.4f} clip norms"
    assert max(norms) > 0.99 * UNIT**2, "the bound has slack: noise would be wasted"


def check_a_run_costs_what_it_claims(task: Task, epsilon: float) -> None:
    """mu^2 of the class sums and of every step, each of sensitivity 1, against the definition of (epsilon, delta)."""
    planned = plan(task, epsilon)
    steps = settings_of(task).steps
    mu = UNIT * math.sqrt(1 / planned.sigmas[CLASS_SUMS] ** 2 + steps / planned.sigmas[model.GRADIENTS] ** 2)
    allowed = task.privacy.delta * (1 + 1e-10) - DISCRETE_SLACK
    assert 0.999 * task.privacy.delta < delta_of(mu, epsilon) <= allowed, f"delta {delta_of(mu, epsilon):.4g}"
    assert math.isclose(planned.mu, mu, rel_tol=1e-6), "the ledger is charged for another mu"


# --- noise ----------------------------------------------------------------------------------------------------

AUDIT_EPSILON = 8.0  # the larger, the fewer runs tell as much
AUDIT_RUNS = 5_000  # of epsilon 8, so many lose a tenth of mu to chance
AUDIT_CONFIDENCE = 0.999  # both bounds must be wrong together for a false alarm: about one in a million


def check_audit_confirms_claim(task: Task) -> None:
    """Released numbers tell neighbors apart as well as epsilon says: not better, and not much worse."""
    measured = audit(task, AUDIT_EPSILON, AUDIT_RUNS, confidence=AUDIT_CONFIDENCE)
    assert measured.verdict == "holds", measured.describe()


ROWS: list[Line] = [
    (str(number % 40), str(number / 200), ("red", "green", "blue")[number % 3], "ab1"[number % 3], f"p{number % 50}")
    for number in range(200)
]
RARE = 1e-7  # a check of chance fails by chance this seldom


def check_noise_gives_claimed_privacy(task: Task, epsilon: float) -> None:
    """The deviations of the plan, against the proved bounds and the definition of (epsilon, delta); and none wasted.

    mu^2 = max over changes within the bounds of the sum over entries of (change / sigma)^2.
    """
    planned = plan(task, epsilon)
    # the norm of a group lies in whichever of its blocks has the least noise for it, or in between
    worst = [
        bound * max(1 / (weight * planned.sigmas[name] ** 2) for name, weight in blocks.items())
        for bound, blocks in groups_of(task)
    ]
    mu = UNIT * math.sqrt(math.fsum(worst))
    # relative slack for the error function's own last digits, a thousandth of the slack that is checked for
    allowed = task.privacy.delta * (1 + 1e-10) - DISCRETE_SLACK
    assert delta_of(mu, epsilon) <= allowed, f"delta {delta_of(mu, epsilon):.4g} at epsilon {epsilon}"
    assert delta_of(mu, epsilon) > 0.999 * task.privacy.delta, "more noise than the claim needs"
    assert math.isclose(planned.mu, mu, rel_tol=1e-6), "the ledger is charged for another mu"


def check_drawn_noise_has_stated_deviation(task: Task) -> None:
    """The variance of what is added, over all entries of 40 summaries, against the plan of the claim."""
    measured = release_module.Measured(sums_of_file(task, ROWS), 0)
    planned = plan(task, 1.0)
    squares, entries = 0.0, 0
    for _ in range(40):
        drawn = release_module.noisy_summary(task, measured, 1.0)
        for name, sums in drawn.sums().items():
            rounding = (drawn.steps[name] / planned.sigmas[name]) ** 2 / 12
            noise = (sums - measured.blocks[name]) / planned.sigmas[name]
            squares += float((noise**2).sum()) / (1 + rounding)
            entries += len(noise)
    low, high = stats.chi2.ppf([RARE, 1 - RARE], entries)
    assert low < squares < high, f"the noise has {math.sqrt(squares / entries):.3f} of the stated deviation"


def check_noise_is_fresh(task: Task) -> None:
    """Two summaries of the same rows, in one process and whatever its seeds, share no noise."""
    measured = release_module.Measured(sums_of_file(task, ROWS), 0)
    drawn = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        blocks = release_module.noisy_summary(task, measured, 1.0).blocks
        drawn.append(np.concatenate(list(blocks.values())))
    assert (drawn[0] != drawn[1]).mean() > 0.5, "two releases carry the same noise: their difference is exact"


# --- budget ---------------------------------------------------------------------------------------------------


def _small_release(folder: Path) -> Ledger:
    """A release of a few rows; raises what it raises, leaves the ledger."""
    task = TASKS["classification, rows"]
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("plain", "binned", "color", "y", "who"), *ROWS])
    ledger = Ledger(folder / "ledger.db")
    release_module.release(task, [path], epsilon=1.0, ledger=ledger, dataset="default")
    return ledger


def check_budget_is_spent_before_rows_are_summed(folder: Path) -> None:
    seen: list[list[str]] = []
    sum_rows = release_module.measure

    def spying(*arguments: object) -> object:
        seen.append([entry.state for one in Ledger(folder / "ledger.db").statement() for entry in one.entries])
        return sum_rows(*arguments)  # type: ignore[arg-type]  # passed on as they came

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release_module, "measure", spying)
        _small_release(folder)
    assert seen == [["RESERVED"]], "rows were summed before their cost was on disk"


def check_error_leaves_budget_spent(folder: Path) -> None:
    def failing(*_: object) -> None:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release_module, "noised_block", failing)
        with pytest.raises(MemoryError):
            _small_release(folder)
    spent = [entry for one in Ledger(folder / "ledger.db").statement() for entry in one.entries]
    assert [entry.state for entry in spent] == ["RESERVED"], "an error after the sums gave the budget back"


def check_all_releases_together_stay_under_cap(folder: Path) -> None:
    """What the ledger lets through at two deltas, composed by dp-accounting's privacy loss distributions."""
    ledger = Ledger(folder / "cap.db")
    cap_epsilon, cap_delta = 2.0, 1e-6
    composed = None
    for number in itertools.count():
        epsilon, delta = ((0.6, 1e-5), (0.4, 1e-6))[number % 2]
        try:
            ledger.reserve("default", bytes(32), epsilon, delta if number else cap_delta, cap_epsilon,
                           default_cap_epsilon=cap_epsilon)  # fmt: skip
        except BudgetError:
            break
        loss = from_gaussian_mechanism(noise_scale(1.0, epsilon, delta if number else cap_delta),
                                       value_discretization_interval=1e-3)  # fmt: skip
        composed = loss if composed is None else composed.compose(loss)
        assert composed.get_epsilon_for_delta(cap_delta) <= cap_epsilon * 1.002, "the releases exceed the cap together"
    assert composed is not None
    assert composed.get_epsilon_for_delta(cap_delta) > 0.8 * cap_epsilon, "budget was refused that was there"


def check_overlapping_parts_add_up(folder: Path) -> None:
    """Parts of one rule cost the dearest of them; whatever may share a record with them pays on top."""
    ledger = Ledger(folder / "ledger.db")

    def is_allowed(part: str | None, epsilon: float) -> bool:
        chosen = Part.parse(part) if part else None
        try:
            ledger.reserve("d", bytes(32), epsilon, 1e-6, None, default_cap_epsilon=1.0, part=chosen)
        except BudgetError:
            return False
        return True

    assert is_allowed("site=Leeds", 0.6)
    assert is_allowed("site=York", 0.6)
    assert not is_allowed("hash(age)=1/2", 0.9)
    assert not is_allowed(None, 0.9)
    assert is_allowed(None, 0.5)
    assert not is_allowed("site=Hull", 1.0)
