"""Private synthetic rows: the fused sums, read as a population, sampled, and written in the task's own columns.

Rows are drawn column by column. A row first gets a class by the estimated shares (regression: none, and the target
comes last), then each column is drawn given the class and the columns before it. What is known of them is linear, and
it is used as such:

    E[block j | class c, row v before j] = mu_cj + B_j (v - mu_c)     B_j = S_j,before (S_before + lambda)^-1

with class means mu and the pooled within-class scatter S of the denoised moments. For a category the block is a point
of the simplex of its values, so this is a probability for each value and for "missing", and drawing the value by these
probabilities gives back mu and S: the conditional linear family of B. Qaqish, "A family of multivariate binary
distributions for simulating correlated binary variables", Biometrika 90 (2003), here with more than two values and
numbers among them. Where a linear probability leaves [0, 1] it is projected onto the simplex, and an offset per class,
fitted on a pilot sample, restores the shares. A plain number is drawn from the beta distribution over its bounds with
that mean and the unexplained variance. A number in bins has as outcomes its points and the ways between neighbors,
which take as much from either end and so leave the mean alone; E[w_i w_i+1] says how many rows are on each way.

The encoder divides a row by its length r. Moments of x are taken back to those of the row by one factor, 1 / E[1/r],
which the pilot sample gives.

All of it is post-processing of noisy sums: it costs no budget. Rows look like people and are nobody's. What the sums
do not hold is not in the rows either: dependence beyond pairs, differences of spread between classes, shapes of numbers
within their bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from threadpoolctl import threadpool_limits

from fusion.dataset import Batch
from fusion.encoders.tabular import Block, NumberBlock, TabularRows
from fusion.errors import ModelError
from fusion.fuse import Contribution, fuse
from fusion.model import seed_of
from fusion.population import Population, population_of

if TYPE_CHECKING:
    from fusion.task import Task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_ROWS = 100_000_000
CHUNK_ROWS = 16_384
PILOT_ROWS = 8_192  # more settle offsets and the length of rows better, and cost a moment before the first row
PILOT_ROUNDS = 3
OFFSET_STEPS = 8
PRIOR_VARIANCE = 0.15  # of a number scaled to [-1, 1]: a bell over its bounds; believed where noise hides the truth
PRIOR_DEVIATION = 0.1  # of that belief
MAX_EAGERNESS = 2.0  # then all rows of an even spread lie on the ways
EDGE = 1e-3  # means of numbers stay this far inside their bounds, and spreads this far inside the possible


@dataclass
class Column:
    """How one column is drawn, given those before it."""

    block: Block
    slopes: Floats  # (coordinates before, width)
    offsets: Floats  # (K, outcomes): added to linear probabilities before they are projected
    targets: Floats  # (K, outcomes): the shares to come out
    variance: float  # of a plain number, given the columns before it
    between: Floats  # (k - 1,): share of all rows that lie between two points of a number in bins
    eagerness: Floats  # (k - 1,): how much of what the scarcer of two points can give goes to the way between them


@dataclass
class Sampler:
    """Draws rows; see the module. `length` is the factor from moments of x to those of rows."""

    task: Task
    encoder: TabularRows
    population: Population
    rng: np.random.Generator
    length: float = 0.0
    columns: list[Column] = field(default_factory=list)
    target_slopes: Floats = field(default_factory=lambda: np.zeros(0))
    target_variance: float = 0.0

    @property
    def means(self) -> Floats:
        """(K, D) of rows before the division by their length."""
        return self.population.means * self.length

    def draw(self, rows: int) -> Batch:
        """That many rows, as a reader would give them."""
        labels = self.rng.choice(len(self.population.shares), rows, p=self.population.shares)
        batch, v = self._features(labels, calibrate=False)
        return Batch(batch.numbers, batch.categories, self._target(v) if self.population.target else labels, rows)

    def prepare(self) -> None:
        """Fit the offsets and the length on pilot samples with as many rows of each class."""
        seen = np.flatnonzero(self.population.shares > 0.0)
        labels = seen[np.arange(PILOT_ROWS) % len(seen)]
        weights = self.population.shares[labels]
        self.length = max(self.encoder.clip_norm, float(np.sqrt(sum(_typical_square(b) for b in self.encoder.blocks))))
        for _ in range(PILOT_ROUNDS):
            self._condition()
            _, v = self._features(labels, calibrate=True)
            lengths = np.maximum(np.linalg.norm(v, axis=1), self.encoder.clip_norm)
            self.length = 1.0 / float(np.average(1.0 / lengths, weights=weights))

    def _condition(self) -> None:
        """Each column's regression on those before it, all from one Cholesky factor of S + lambda."""
        population = self.population
        ridged = population.scatter + population.ridge * np.eye(len(population.scatter))
        factor = np.linalg.cholesky(ridged)
        self.columns = []
        for block in self.encoder.blocks:
            start, own = block.offset, slice(block.offset, block.offset + block.width)
            slopes = solve_triangular(factor[:start, :start], factor[own, :start].T, lower=True, trans="T")
            explained = float(factor[start, :start] @ factor[start, :start]) / ridged[start, start]
            variance = self._variance(population.variances[start], population.variance_noise, self.length)
            targets = project(_linear_shares(block, self.means[:, own]))
            between = self._between(block, targets)
            offsets, eagerness = np.zeros_like(targets), np.zeros_like(between)
            self.columns.append(
                Column(block, slopes, offsets, targets, variance * (1.0 - explained), between, eagerness)
            )
        if population.target:
            covariances = population.target.covariances
            self.target_slopes = cho_solve((factor, True), covariances) / self.length
            whole = self._variance(population.target.variance, population.target.variance_noise, 1.0)
            self.target_variance = max(whole - float(self.target_slopes @ covariances) * self.length, EDGE * whole)

    @staticmethod
    def _variance(estimate: float, noise: float, length: float) -> float:
        """Estimate and prior belief, each weighted by its precision."""
        trust = PRIOR_DEVIATION**2 / (PRIOR_DEVIATION**2 + (noise * length**2) ** 2)
        return max(trust * estimate * length**2 + (1.0 - trust) * PRIOR_VARIANCE, 0.0)

    def _between(self, block: Block, targets: Floats) -> Floats:
        """(k - 1,): s_i = 6 E[w_i w_i+1], for rows that lie evenly between points i and i + 1 of a number in bins."""
        if not _in_bins(block):
            return np.zeros(0)
        own, k = slice(block.offset, block.offset + block.width - 1), len(block.points)
        present = 1.0 - float(self.population.shares @ targets[:, -1])
        walked = block.points @ (self.population.products[own, own] * self.length**2) @ block.points.T
        single = block.points @ (self.population.shares @ self.means[:, own])
        pairs = ((k - 1) / k) ** 2 * walked + (k - 1) / k**2 * np.add.outer(single, single) + present / k**2
        return np.asarray(np.maximum(6.0 * np.diag(pairs, 1), 0.0))

    def _features(self, labels: Ints, *, calibrate: bool) -> tuple[Batch, Floats]:
        """Rows of these classes, as cells and as vectors v (n, D)."""
        centers = self.means
        v = np.zeros((len(labels), centers.shape[1]))
        numbers: dict[str, Floats] = {}
        categories: dict[str, Ints] = {}
        for column in self.columns:
            block = column.block
            start, own = block.offset, slice(block.offset, block.offset + block.width)
            mean = centers[labels, own] + (v[:, :start] - centers[labels, :start]) @ column.slopes
            linear = _linear_shares(block, mean)
            if calibrate:
                column.offsets = _fit_offsets(linear, labels, column.targets)
                column.eagerness = self._fit_eagerness(column, project(linear + column.offsets[labels]), labels)
            shares = project(linear + column.offsets[labels])
            if isinstance(block, NumberBlock):
                numbers[block.name] = self._numbers(column, mean, shares)
            else:
                outcome = _choose(shares, self.rng)
                categories[block.name] = np.where(outcome == len(block.points), -1, outcome)
            v[:, own] = block.coordinates(Batch(numbers, categories, None, len(labels)))
        return Batch(numbers, categories, None, len(labels)), v

    def _fit_eagerness(self, column: Column, shares: Floats, labels: Ints) -> Floats:
        """So that, on average, `column.between` of the rows lie between two points."""
        if not _in_bins(column.block):
            return np.zeros(0)
        scarcer = np.minimum(shares[:, :-2], shares[:, 1:-1])
        mean = np.average(scarcer, axis=0, weights=self.population.shares[labels])
        return np.asarray(np.minimum(column.between / np.maximum(mean, EDGE), MAX_EAGERNESS))

    def _numbers(self, column: Column, mean: Floats, shares: Floats) -> Floats:
        """Numbers within the bounds of the block, NaN where missing."""
        block = column.block
        assert isinstance(block, NumberBlock)  # noqa: S101 - told to the type checker; the caller asked
        if _in_bins(block):
            points = len(block.points)
            outcome = _choose(_with_ways(shares, column.eagerness), self.rng)
            on_the_way = outcome > points
            place = np.where(on_the_way, outcome - points - 1 + self.rng.random(len(outcome)), outcome)
            place, missing = place / (points - 1), outcome == points
        else:
            present = np.clip(1.0 - mean[:, -1], 0.1, 1.0)
            inside = mean[:, 0] / present
            # The variance of the cell counts 0 for a missing one; this is that of the numbers alone.
            variance = column.variance / present - (1.0 - present) * inside**2
            place, missing = (1.0 + _bounded(inside, variance, self.rng)) / 2.0, _choose(shares, self.rng) == 1
        values = block.lower + np.clip(place, 0.0, 1.0) * (block.upper - block.lower)
        return np.where(missing, np.nan, values)

    def _target(self, v: Floats) -> Floats:
        """(n,): targets in [-1, 1], given the rows."""
        target = self.population.target
        assert target is not None  # noqa: S101 - only regression asks
        mean = target.mean + (v - self.means[0]) @ self.target_slopes
        return _bounded(mean, np.full(len(v), self.target_variance), self.rng)


def synthesize(
    task: Task, contributions: Iterable[Contribution], rows: int, seed: int | None = None
) -> Iterator[Batch]:
    """`rows` synthetic rows of `task` in batches, from these summaries; the same ones and seed give the same rows.

    Without a seed one is derived from the record ids. ModelError for a task whose features cannot be turned back into
    columns, or whose summaries hold no moments; NothingToFuse when no summary is usable.
    """
    sampler = sampler_of(task, contributions, seed)
    return _in_chunks(sampler, check_rows(rows))


def check_rows(rows: int) -> int:
    """`rows`, if so many can be asked for; ModelError otherwise."""
    if not 1 <= rows <= MAX_ROWS:
        raise ModelError(f"the number of rows is from 1 to {MAX_ROWS:,}; choose again")
    return rows


def sampler_of(task: Task, contributions: Iterable[Contribution], seed: int | None = None) -> Sampler:
    """What draws the rows, ready to."""
    from fusion.encoders import encoder_for

    encoder = encoder_for(task)
    if not isinstance(encoder, TabularRows):
        raise ModelError(
            f"rows cannot be made for this task: its encoder ({task.encoder.kind}) turns them into features from which "
            "no cell can be read back; only a plain tabular one can"
        )
    with threadpool_limits(limits=1):
        fused = fuse(task, contributions)
        chosen = int.from_bytes(seed_of(fused)) if seed is None else seed
        sampler = Sampler(task, encoder, population_of(fused), np.random.default_rng(chosen))
        sampler.prepare()
    return sampler


def _in_chunks(sampler: Sampler, rows: int) -> Iterator[Batch]:
    for start in range(0, rows, CHUNK_ROWS):
        with threadpool_limits(limits=1):
            yield sampler.draw(min(CHUNK_ROWS, rows - start))


# --- drawing ----------------------------------------------------------------------------------------------------


def project(shares: Floats) -> Floats:
    """Rows (n, k) moved to the nearest points of the probability simplex (J. Duchi and others, "Efficient projections
    onto the l1-ball for learning in high dimensions", 2008)."""
    descending = -np.sort(-shares, axis=1)
    excess = (np.cumsum(descending, axis=1) - 1.0) / np.arange(1, shares.shape[1] + 1)
    kept = np.maximum((descending > excess).sum(axis=1), 1)
    projected = np.maximum(shares - excess[np.arange(len(shares)), kept - 1][:, None], 0.0)
    return np.asarray(projected / projected.sum(axis=1, keepdims=True))


def _linear_shares(block: Block, mean: Floats) -> Floats:
    """(n, k + 1): the shares of a block's points and of "missing" that have this mean (n, width); for a plain number
    (n, 2), present and missing. They sum to 1 and may leave [0, 1]."""
    missing = mean[:, -1:]
    if isinstance(block, NumberBlock) and not _in_bins(block):
        return np.hstack([1.0 - missing, missing])
    k = len(block.points)
    return np.hstack([(mean[:, :-1] @ block.points.T) * ((k - 1) / k) + (1.0 - missing) / k, missing])


def _fit_offsets(linear: Floats, labels: Ints, targets: Floats) -> Floats:
    """(K, outcomes): what to add within each class so that projected shares are, on average, the targets."""
    offsets = np.zeros_like(targets)
    member = (
        np.equal.outer(np.arange(len(targets)), labels)
        / np.maximum(np.bincount(labels, minlength=len(targets)), 1)[:, None]
    )
    there = np.isin(np.arange(len(targets)), labels)[:, None]
    for _ in range(OFFSET_STEPS):
        offsets += np.where(there, targets - member @ project(linear + offsets[labels]), 0.0)
    return offsets


def _with_ways(shares: Floats, eagerness: Floats) -> Floats:
    """(n, 2k): points, missing, and the k - 1 ways between neighboring points, which take as much from both ends."""
    points = shares[:, :-1]
    ways = np.minimum(points[:, :-1], points[:, 1:]) * eagerness
    none = np.zeros((len(shares), 1))
    asked = (np.hstack([none, ways]) + np.hstack([ways, none])) / 2.0
    granted = np.minimum(1.0, points / np.maximum(asked, np.finfo(float).tiny))
    ways = ways * np.minimum(granted[:, :-1], granted[:, 1:])
    taken = (np.hstack([none, ways]) + np.hstack([ways, none])) / 2.0
    return np.hstack([np.maximum(points - taken, 0.0), shares[:, -1:], ways])


def _choose(shares: Floats, rng: np.random.Generator) -> Ints:
    """(n,): one outcome per row of probabilities."""
    reached = np.cumsum(shares, axis=1) > rng.random(len(shares))[:, None] * shares.sum(axis=1, keepdims=True)
    return np.asarray(reached.argmax(axis=1))


def _bounded(mean: Floats, variance: Floats, rng: np.random.Generator) -> Floats:
    """Beta distributions stretched over [-1, 1], with these means and, as far as the bounds allow, variances."""
    mean = np.clip(mean, -1.0 + EDGE, 1.0 - EDGE)
    most = 1.0 - mean**2
    concentration = most / np.clip(variance, EDGE * most, (1.0 - EDGE) * most) - 1.0
    low, high = concentration * (1.0 - mean) / 2.0, concentration * (1.0 + mean) / 2.0
    return np.asarray(2.0 * rng.beta(high, low) - 1.0)


def _in_bins(block: Block) -> bool:
    return isinstance(block, NumberBlock) and len(block.points) > 2


def _typical_square(block: Block) -> float:
    """A first guess of a block's squared length: a corner, or a number spread evenly over its bounds."""
    return 1.0 if _in_bins(block) or not isinstance(block, NumberBlock) else 1.0 / 3.0
