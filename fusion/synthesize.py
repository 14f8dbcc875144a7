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
that mean and the unexplained variance. A number in bins picks a way between two neighboring points and a place on it,
by a beta distribution that keeps the shares w of the points; E[w_i w_i+1] says whether rows lie along way i or at its
ends.

The encoder divides a row by its length r. Moments of x are taken back to those of the row by one factor, 1 / E[1/r],
which the pilot sample gives.

All of it is post-processing of noisy sums: it costs no budget. Rows look like people and are nobody's. What the sums
do not hold is not in the rows either: dependence beyond pairs, differences of spread between classes, shapes of numbers
within their bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

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
from fusion.task import TabularEncoder, Task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_ROWS = 100_000_000
CHUNK_ROWS = 16_384
MAX_ENTRIES = 2**23  # of a table of encoded rows: 64 MB; tasks of over 512 dimensions get smaller chunks and pilots
PILOT_ROWS = 8_192  # more settle offsets and the length of rows better, and cost a moment before the first row
PILOT_ROUNDS = 3
OFFSET_STEPS = 8
PRIOR_VARIANCE = 0.15  # of a number scaled to [-1, 1]: a bell over its bounds; believed where noise hides the truth
PRIOR_DEVIATION = 0.1  # of that belief
CONCENTRATION_RATIOS = (0.05, 0.95)  # c / (c + 1): from all but only the ends of a way to all but one place on it
EDGE = 1e-3  # means of numbers stay this far inside their bounds, and spreads this far inside the possible


@dataclass
class Column:
    """How one column is drawn, given those before it."""

    block: Block
    slopes: Floats  # (coordinates before, width)
    offsets: Floats  # (K, outcomes): added to linear probabilities before they are projected
    targets: Floats  # (K, outcomes): the shares to come out
    variance: float  # of a plain number, given the columns before it
    between: Floats  # (k - 1,): E[w_i w_i+1] of all rows, for a number in bins
    concentration: Floats  # (k - 1,): of the places on each way; near 0 all are at its ends


@dataclass
class Sampler:
    """Draws rows as the fused summaries know them, see the module. `length` takes moments of x to those of rows."""

    task: Task
    encoder: TabularRows
    population: Population
    rng: np.random.Generator
    summaries: int  # how many
    length: float = 0.0
    columns: list[Column] = field(default_factory=list)
    target_slopes: Floats = field(default_factory=lambda: np.zeros(0))
    target_variance: float = 0.0

    @property
    def means(self) -> Floats:
        """(K, D) of rows before the division by their length."""
        return self.population.means * self.length

    def batches(self, rows: int) -> Iterator[Batch]:
        """The next `rows` rows, a chunk at a time; ModelError for a number that nobody means."""
        if not 1 <= rows <= MAX_ROWS:
            raise ModelError(f"the number of rows is from 1 to {MAX_ROWS:,}; choose again")
        chunk = self._at_once(CHUNK_ROWS)
        return (self.draw(min(chunk, rows - start)) for start in range(0, rows, chunk))

    def draw(self, rows: int) -> Batch:
        """That many rows, as a reader would give them."""
        labels = self.rng.choice(len(self.population.shares), rows, p=self.population.shares)
        batch, v = self._features(labels, calibrate=False)
        return Batch(batch.numbers, batch.categories, self._target(v) if self.population.target else labels, rows)

    def prepare(self) -> None:
        """Fit the offsets and the length on pilot samples with as many rows of each class."""
        seen = np.flatnonzero(self.population.shares > 0.0)
        labels = seen[np.arange(self._at_once(PILOT_ROWS)) % len(seen)]
        weights = self.population.shares[labels]
        self.length = max(self.encoder.clip_norm, float(np.sqrt(sum(_typical_square(b) for b in self.encoder.blocks))))
        for _ in range(PILOT_ROUNDS):
            self._condition()
            _, v = self._features(labels, calibrate=True)
            lengths = np.maximum(np.linalg.norm(v, axis=1), self.encoder.clip_norm)
            self.length = 1.0 / float(np.average(1.0 / lengths, weights=weights))

    def _at_once(self, rows: int) -> int:
        return min(rows, max(1, MAX_ENTRIES // self.encoder.dimension))

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
            offsets, concentration = np.zeros_like(targets), np.ones_like(between)
            self.columns.append(
                Column(block, slopes, offsets, targets, variance * (1.0 - explained), between, concentration)
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
        """(k - 1,): E[w_i w_i+1] for the shares w of its points that a number in bins has, from second moments."""
        if not _in_bins(block):
            return np.zeros(0)
        own, k = slice(block.offset, block.offset + block.width - 1), len(block.points)
        present = 1.0 - float(self.population.shares @ targets[:, -1])
        walked = block.points @ (self.population.products[own, own] * self.length**2) @ block.points.T
        single = block.points @ (self.population.shares @ self.means[:, own])
        pairs = ((k - 1) / k) ** 2 * walked + (k - 1) / k**2 * np.add.outer(single, single) + present / k**2
        return np.asarray(np.maximum(np.diag(pairs, 1), 0.0))

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
                column.concentration = self._fit_concentration(column, project(linear + column.offsets[labels]), labels)
            shares = project(linear + column.offsets[labels])
            if isinstance(block, NumberBlock):
                numbers[block.name] = self._numbers(column, mean, shares)
            else:
                outcome = _choose(shares, self.rng)
                categories[block.name] = np.where(outcome == len(block.points), -1, outcome)
            v[:, own] = block.coordinates(Batch(numbers, categories, None, len(labels)))
        return Batch(numbers, categories, None, len(labels)), v

    def _fit_concentration(self, column: Column, shares: Floats, labels: Ints) -> Floats:
        """So that E[w_i w_i+1] = E[u (1 - u)] = E[m (1 - m)] c / (c + 1) comes out, for places u of mean m on way i."""
        if not _in_bins(column.block):
            return np.ones(0)
        chosen, mean = _ways(shares[:, :-1])
        most = np.average(chosen * mean * (1.0 - mean), axis=0, weights=self.population.shares[labels])
        ratio = np.clip(column.between / np.maximum(most, 1e-12), *CONCENTRATION_RATIOS)
        return np.asarray(ratio / (1.0 - ratio))

    def _numbers(self, column: Column, mean: Floats, shares: Floats) -> Floats:
        """Numbers within the bounds of the block, NaN where missing."""
        block = column.block
        assert isinstance(block, NumberBlock)  # noqa: S101 - told to the type checker; the caller asked
        if _in_bins(block):
            ways = len(block.points) - 1
            chosen, means = _ways(shares[:, :-1])
            outcome = _choose(np.hstack([chosen, shares[:, -1:]]), self.rng)
            way, missing = np.minimum(outcome, ways - 1), outcome == ways
            place = np.clip(means[np.arange(len(way)), way], EDGE, 1.0 - EDGE)
            strength = column.concentration[way]
            place = (way + self.rng.beta(strength * place, strength * (1.0 - place))) / ways
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


def sampler_of(task: Task, contributions: Iterable[Contribution], seed: int | None = None) -> Sampler:
    """What draws rows of `task`, as these summaries know them; the same ones and seed give the same rows.

    Without a seed one is derived from the record ids. ModelError for a task whose features cannot be turned back into
    columns, or whose summaries hold no moments; NothingToFuse when no summary is usable.
    """
    if not isinstance(task.encoder, TabularEncoder) or task.encoder.lift is not None:
        raise ModelError(
            f"rows cannot be made for this task: its {_encoder_name(task)} encoder turns them into features from "
            "which no cell can be read back; only a plain tabular one can be decoded"
        )
    with threadpool_limits(limits=1):
        fused = fuse(task, contributions)
        rng = np.random.default_rng(int.from_bytes(seed_of(fused)) if seed is None else seed)
        sampler = Sampler(task, TabularRows.of(task), population_of(fused), rng, len(fused.used))
        sampler.prepare()
    return sampler


def _encoder_name(task: Task) -> str:
    """As people call it."""
    return f"{task.encoder.kind}{' (lifted)' if getattr(task.encoder, 'lift', None) else ''}"


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


def _ways(points: Floats) -> tuple[Floats, Floats]:
    """(n, k - 1) each: how likely the way between points i and i + 1 is, and the mean place on it, from 0 to 1, that
    together give these shares (n, k) of the points. A point gives to its two ways as its two neighbors have."""
    before, after = np.zeros_like(points), np.zeros_like(points)
    before[:, 1:], after[:, :-1] = points[:, :-1], points[:, 1:]
    both = before + after
    to_next = np.where(both > 0.0, after / np.where(both > 0.0, both, 1.0), 0.5)
    to_next[:, 0], to_next[:, -1] = 1.0, 0.0
    from_low, from_high = (points * to_next)[:, :-1], (points * (1.0 - to_next))[:, 1:]
    chosen = from_low + from_high
    return chosen, from_high / np.where(chosen > 0.0, chosen, 1.0)


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
