"""Measure the privacy of this node's own mechanism, instead of believing it.

Two files of made-up rows are written, from the public bounds of the task alone: neighbors, one with a canary (a row,
or a person with more rows than are kept) that moves the sums as far as any can. Both go through the code that a
release runs: reading, encoding, fixed point, exact sums; then, again and again, noise and rounding. Someone who
knows both files, and everything but the noise, guesses from each result which file it came from. How often this
strongest guesser errs bounds the privacy from below (J. Dong, A. Roth, W. Su, "Gaussian differential privacy",
2022; M. Nasr et al., "Tight auditing of differentially private machine learning", 2023):

    mu  >=  Phi^-1(1 - FPR) - Phi^-1(FNR)          for the rates at any fixed threshold.

The best guess is the projection on the difference of the two sums, each entry weighted by its noise
(Neyman-Pearson). The threshold is picked on one half of the runs; the rates come from the other half, each replaced
by its one-sided Clopper-Pearson bound. So the measured mu, and the epsilon that it means at the task's delta, is a
lower bound that holds with the stated confidence. Above the claim, the noise is weaker than claimed. Far below it,
the audit could not have seen a fault, and says so.

What is audited: sums, sensitivity, calibration, the noise of every entry that the canary touches, rounding. What is
not: entries that the canary leaves alone (their noise is independent of both files and is not drawn here, to save
time), whether the noise of different releases is independent, the ledger, and whether another canary would do more.
The exact search of the test suite answers the last question; no real data is read and no budget is spent.
"""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.accounting import epsilon_of
from fusion.errors import BudgetError, DataError
from fusion.release import measure, noised_block
from fusion.summaries import Blocks, Progress
from fusion.summary import Plan, plan, step_of
from fusion.task import ImageColumn, NumberColumn, Task, TextColumn, tabular_columns

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Cells = dict[str, str | bytes]

CONFIDENCE = 0.95
POWER = 0.7  # a measurement below this share of the claim shows nothing
LOSS = 0.12  # share of mu that the default number of runs may lose to confidence bounds; halving it costs 4 x the time
MIN_RUNS, MAX_RUNS = 4_000, 1_000_000
ORDINARY_ROWS = 200
ENTRY_S = 17e-6  # to draw the noise of one entry
MAX_UNASKED_S = 4 * 3_600.0  # longer audits are run only where the number of runs is given
DRAWN_AT_ONCE = 2**16  # entries of noise between two reports of progress
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)  # quantiles of all scores; few, so that the choice follows no chance


@dataclass(frozen=True)
class Audit:
    """What an audit measured, beside what is claimed."""

    task: str
    unit: str
    epsilon: float  # claimed
    delta: float
    mu: float  # claimed
    canary_share: float  # how much of the proved sensitivity the canary uses
    runs: int  # of each file
    entries: int  # of the release that the canary touches
    confidence: float
    threshold: float
    false_positive_rate: float
    false_negative_rate: float
    measured_mu: float  # lower bound
    measured_epsilon: float  # lower bound, at delta
    without_canary: Floats  # one score per run, in deviations of the noise
    with_canary: Floats

    @property
    def verdict(self) -> str:
        """`holds`, `broken` (measured above the claim) or `no power` (measured far below it)."""
        if self.measured_mu > self.mu:
            return "broken"
        return "no power" if self.measured_epsilon < POWER * self.epsilon else "holds"

    def to_json(self) -> dict[str, Any]:
        """For programs; without the single scores."""
        hidden = {"without_canary", "with_canary"}
        return {"verdict": self.verdict, **{key: value for key, value in vars(self).items() if key not in hidden}}

    def describe(self) -> str:
        """For people: the figures and the verdict in words."""
        words = {
            "holds": "The claim holds: the best guess stays below it, and comes close enough to have seen a fault.",
            "broken": "THE CLAIM IS BROKEN: results tell the files apart better than epsilon allows. Publish nothing "
            "with this installation, and report it.",
            "no power": f"This audit shows nothing: below {POWER:.0%} of the claim it could have missed a fault. "
            f"Use more runs (about {enough_runs(self.mu):,} have power), or a larger --epsilon.",
        }
        return "\n".join(
            [
                f"Audit of {self.task}: {self.runs:,} releases each of two made-up files, with and without one "
                f"{'row' if self.unit == 'record' else 'person'} more",
                f"  claimed    epsilon {self.epsilon:g} at delta {self.delta:g}  (mu {self.mu:.4f})",
                f"  measured   epsilon at least {self.measured_epsilon:.3f}, {100 * self.confidence:g} % sure  (mu "
                f"{self.measured_mu:.4f}; {self.measured_epsilon / self.epsilon:.0%} of the claim)",
                f"  the guess  wrong in {self.false_positive_rate:.2%} of the releases without and "
                f"{self.false_negative_rate:.2%} with it; a coin is wrong in 50 %",
                f"  the canary moves {self.entries:,} sums, by {self.canary_share:.2%} of the proved sensitivity",
                words[self.verdict],
            ]
        )


def audit(
    task: Task,
    epsilon: float | None = None,
    runs: int | None = None,
    *,
    confidence: float = CONFIDENCE,
    progress: Progress | None = None,
) -> Audit:
    """Releases of two neighboring synthetic files, `runs` of each, told apart as well as possible.

    `epsilon` is the task's maximum unless given, `runs` enough for power. `progress` hears the releases done. Costs
    about 17 microseconds for each entry that the canary touches, in each release.
    """
    planned = plan(task, task.privacy.max_epsilon if epsilon is None else epsilon)
    if any(not block.sent for block in planned.layout):
        raise BudgetError(
            f'an audit adds up rows, and a release of kind "{planned.kind}" trains on them; audit a task of kind '
            '"moments" of the same columns, the noise is the same'
        )
    unasked = runs is None
    runs = enough_runs(planned.mu) if runs is None else runs
    if not 100 <= runs <= MAX_RUNS:
        raise BudgetError(f"an audit takes between 100 and {MAX_RUNS} runs; choose again")
    without, with_canary = neighbors(task)
    guess = _Guess.between(planned, without, with_canary)
    entries = sum(len(values) for values in guess.without.values())
    if unasked and 2 * runs * entries * ENTRY_S > MAX_UNASKED_S:
        hours = 2 * runs * entries * ENTRY_S / 3_600
        raise BudgetError(
            f"a canary of this task moves {entries:,} sums, and {runs:,} releases of each file would take about "
            f"{hours:,.0f} hours; give --runs to run it all the same, or a larger epsilon"
        )
    negatives = guess.scores(planned, guess.without, runs, progress)
    positives = guess.scores(planned, guess.with_canary, runs, _after(progress, runs))
    threshold = _threshold(negatives[::2], positives[::2], confidence)
    false_positives, false_negatives = _errors(negatives[1::2], positives[1::2], threshold)
    measured_mu = max(0.0, _mu_bound(false_positives, false_negatives, runs // 2, confidence))
    return Audit(
        task=task.name,
        unit=planned.unit,
        epsilon=planned.epsilon,
        delta=planned.delta,
        mu=planned.mu,
        canary_share=guess.distance / planned.mu,
        runs=runs,
        entries=entries,
        confidence=confidence,
        threshold=threshold,
        false_positive_rate=false_positives / (runs // 2),
        false_negative_rate=false_negatives / (runs // 2),
        measured_mu=measured_mu,
        measured_epsilon=epsilon_of(measured_mu, planned.delta),
        without_canary=negatives,
        with_canary=positives,
    )


def enough_runs(mu: float) -> int:
    """Runs of each file after which confidence costs about LOSS of mu: near 1/2 a bound of a rate over n runs lies
    0.98 / sqrt(n) away, two such bounds move the difference of quantiles by 4.9 / sqrt(n), and half the runs count."""
    wanted = 2 * math.ceil((4.9 / (LOSS * mu)) ** 2)
    return min(max(wanted, MIN_RUNS), MAX_RUNS)


# --- the two files --------------------------------------------------------------------------------------------


def neighbors(task: Task) -> tuple[Blocks, Blocks]:
    """Exact sums of the synthetic file without and with the canary, through reader, encoder and sums of a release."""
    from fusion.dataset import release_batches

    ordinary = [_ordinary(task, number) for number in range(ORDINARY_ROWS)]
    person = task.privacy.person
    repeated = 1 if person is None else person.max_rows + 1
    with tempfile.TemporaryDirectory() as folder:
        sums = []
        for name, rows in (("without", ordinary), ("with", [*ordinary, *[_canary(task)] * repeated])):
            path = _write(task, Path(folder), name, rows)
            sums.append(measure(task, release_batches([path], task)))
    # what is summed second depends on what was published first: both files are told apart given the same of it
    sigmas = plan(task, task.privacy.max_epsilon).sigmas
    without, with_canary = (one.with_second(sums[0].blocks, sigmas) for one in sums)
    return without, with_canary


def _canary(task: Task) -> Cells:
    """A row of the largest norm with few coordinates: categories and half of all columns on their first corner, the
    other numbers in the middle of their bounds, where they add nothing; no text; a picture of loud noise."""
    columns = tabular_columns(task)
    must_reach = math.ceil(len(columns) / 2)  # the squared clip norm
    plain = [column for column in columns if isinstance(column, NumberColumn) and column.bins in (None, 2)]
    in_the_middle = {column.name for column in plain[max(0, must_reach - (len(columns) - len(plain))) :]}
    cells = _texts_and_pictures(task, None)
    for column in columns:
        if not isinstance(column, NumberColumn):
            cells[column.name] = column.values[0]
        elif column.name in in_the_middle:
            cells[column.name] = repr(column.lower / 2 + column.upper / 2)
        else:
            cells[column.name] = repr(column.lower)
    return _labeled(task, cells, 0, "canary")


def _ordinary(task: Task, number: int) -> Cells:
    """Rows spread over bounds and categories."""
    cells = _texts_and_pictures(task, number)
    for place, column in enumerate(tabular_columns(task)):
        if isinstance(column, NumberColumn):
            share = ((number + 1) * (place + 1) * 0.6180339887) % 1.0
            cells[column.name] = repr(column.lower * (1 - share) + column.upper * share)
        else:
            cells[column.name] = column.values[(number * (place + 1)) % len(column.values)]
    return _labeled(task, cells, number, f"person {number}")


def _texts_and_pictures(task: Task, number: int | None) -> Cells:
    """Sentences and stripes for the ordinary row of that number; no text and loud noise for the canary (None)."""
    cells: Cells = {}
    for column in task.columns:
        if isinstance(column, TextColumn):
            cells[column.name] = "" if number is None else f"row {number} of {ORDINARY_ROWS} has something to say"
        elif isinstance(column, ImageColumn):
            noise = np.random.default_rng(0).integers(0, 2, column.pixels) * 255
            pixels = noise if number is None else np.arange(column.pixels) * (number + 1) % 256
            cells[column.name] = pixels.astype(np.uint8).tobytes()
    return cells


def _labeled(task: Task, cells: Cells, number: int, person: str) -> Cells:
    label = task.label
    if label.lower is not None and label.upper is not None:
        text = repr(label.lower if number % 2 else label.upper)
    else:
        text = label.classes[number % len(label.classes)].values[0]
    ids = {} if task.privacy.person is None else {task.privacy.person.column: person}
    return cells | {label.column: text} | ids


def _write(task: Task, folder: Path, name: str, rows: list[Cells]) -> Path:
    """A CSV file of tables; a Parquet file of texts and pictures, and where the task's CSV files have no quotes."""
    if len(tabular_columns(task)) < len(task.columns) or not task.csv.quote:
        return _write_parquet(folder / f"{name}.parquet", rows)
    names = list(task.csv.names) if task.csv.names else list(rows[0])
    path = folder / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", delimiter=task.csv.delimiter)
        if task.csv.header:
            writer.writeheader()
        writer.writerows(rows)
    return path


def _write_parquet(path: Path, rows: list[Cells]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), path)
    return path


# --- guessing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Guess:
    """The entries of both files in which they differ, and how far apart they are in deviations of the noise."""

    without: Blocks
    with_canary: Blocks
    distance: float  # the mu of these two files

    @classmethod
    def between(cls, planned: Plan, without: Blocks, with_canary: Blocks) -> _Guess:
        touched = {name: np.flatnonzero(values != with_canary[name]) for name, values in without.items()}
        squares = [
            float((((with_canary[name] - values) / planned.sigmas[name]) ** 2).sum())
            for name, values in without.items()
        ]
        if not any(squares):
            raise DataError("the canary of this task has a cell that csv.missing drops; it cannot be audited")
        return cls(
            {name: values[touched[name]] for name, values in without.items()},
            {name: values[touched[name]] for name, values in with_canary.items()},
            math.sqrt(math.fsum(squares)),
        )

    def scores(self, planned: Plan, entries: Blocks, runs: int, progress: Progress | None) -> Floats:
        """One score per release of `entries`: its projection on the difference; unit variance, mean 0 without."""
        drawn = np.zeros(runs)
        for part in _parts(runs, sum(len(values) for values in entries.values())):
            for name, values in entries.items():
                sigma = planned.sigmas[name]
                change = (self.with_canary[name] - self.without[name]) / sigma
                repeated = np.tile(values, part.stop - part.start)
                noised = noised_block(repeated, sigma).reshape(-1, len(values)) * step_of(sigma)
                drawn[part] += ((noised - self.without[name]) / sigma) @ (change / self.distance)
            if progress is not None:
                progress(part.stop)
        return drawn


def _parts(runs: int, entries: int) -> Iterator[slice]:
    size = max(1, DRAWN_AT_ONCE // entries)
    for start in range(0, runs, size):
        yield slice(start, min(start + size, runs))


def _after(progress: Progress | None, done: int) -> Progress | None:
    if progress is None:
        return None
    report = progress
    return lambda more: report(done + more)


def _errors(without: Floats, with_canary: Floats, threshold: float) -> tuple[int, int]:
    """False positives and false negatives of guessing "with" above the threshold."""
    return int((without > threshold).sum()), int((with_canary <= threshold).sum())


def _threshold(without: Floats, with_canary: Floats, confidence: float) -> float:
    """The threshold with the best bound on these runs; the runs that count are others."""
    candidates = np.quantile(np.concatenate([without, with_canary]), THRESHOLDS)
    runs = min(len(without), len(with_canary))
    bounds = [_mu_bound(*_errors(without, with_canary, one), runs, confidence) for one in candidates]
    return float(candidates[int(np.argmax(bounds))])


def _mu_bound(false_positives: int, false_negatives: int, runs: int, confidence: float) -> float:
    """Phi^-1(1 - FPR) - Phi^-1(FNR) with both rates at their upper bounds, which hold together at `confidence`."""
    from scipy.stats import beta, norm

    def upper(errors: int) -> float:
        if errors >= runs:
            return 1.0
        return float(beta.ppf(1 - (1 - confidence) / 2, errors + 1, runs - errors))

    return float(norm.ppf(1 - upper(false_positives)) - norm.ppf(upper(false_negatives)))


# --- picture --------------------------------------------------------------------------------------------------


def draw(measured: Audit, path: Path) -> bool:
    """The scores of both files as histograms; False where there is no matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    edges = np.linspace(-4.5, 4.5 + measured.mu, 80).tolist()
    axes.hist(measured.without_canary, edges, density=True, color="#9aa5b1", alpha=0.8, label="without the canary")
    axes.hist(measured.with_canary, edges, density=True, color="#0b7a75", alpha=0.5, label="with it")
    axes.axvline(measured.threshold, color="#3d5a80", linewidth=1, label="threshold of the guess")
    axes.set_xlabel("score of a release, in deviations of the noise")
    axes.set_yticks([])
    axes.legend(frameon=False)
    axes.set_title(
        f"{measured.task}: claimed epsilon {measured.epsilon:g}, measured at least {measured.measured_epsilon:.3f} "
        f"({measured.verdict})",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True
