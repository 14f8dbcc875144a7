"""Noisy histograms -> an additive model: one weight for every cell of every column, which add up to the logits.

**Cells.** In the table of one column let N[k, c] be the rows of class c in cell k, m[k] = sum_c N[k, c], and E[k,
c] = m[k] p_c what is expected where the column says nothing (p_c: the share of class c). The deviations D = N - E
are noise of known variance (privacy and sampling, v = sigma^2 + E) on top of true ones, which are taken to be
normal with standard deviation tau E. tau^2 = sum (D^2 - v) / sum E^2, at least 0, is what the table itself says
(empirical Bayes), and

    D~ = tau^2 E^2 / (tau^2 E^2 + v) D,        F[k, c] = log((E + D~) / E).

So a cell that cannot be told from noise says nothing (F = 0).

**Weights.** Columns repeat each other, and adding their F up as naive Bayes does counts the same evidence many
times. A linear discriminant analysis of the F as features (each class against the first) weighs them. The means of
the features in each class are in the columns' own tables; their second moments are in the tables of pairs, which is
what pairs are for:

    logits = T slope (A^T (F - mean) - diag(A^T M) / 2) + T log pi,        A = S^-1 M

with M the class means of the features about their mean, S their covariance within classes and T that of
`fusion.heads`. Where no pairs are counted, columns are taken to be uncorrelated within classes. Then evidence is
counted more than once, and the slope makes up for the most of it: 1 / (1 + REPEATED (q - 1)), with q = (sum e)^2 /
sum e^2 the number of columns that matter, e being what each of them separates by itself.

**Regression.** The same, with F[k] the mean of t in the cell about that of all rows, shrunk likewise, M the
covariance of features and t, and S the covariance of features.

This is semi-naive Bayes with the weights of linear discriminant analysis; T. Hastie, R. Tibshirani, "Generalized
additive models", 1990, are its family. Counting some of the pairs was tried and was worse than none (a strong
correlation that is known beside one that is not turns weights around). Giving every pair a feature of its own, for
what it says beyond its columns, was tried and made the models worse: what overlapping pairs say of one column would
need the tables of three columns to be weighed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusion.cell_counts import Tables, tables_of
from fusion.encoders.leaves import LeafRows
from fusion.fitting import Fitted
from fusion.heads import SEEN_DEVIATIONS, Layer, tempered
from fusion.partitions import Partition
from fusion.task import Task

if TYPE_CHECKING:
    from fusion.fuse import Fused

Floats = NDArray[np.float64]

HEAD = "additive"
LEAST_SHARE = 0.02  # of what is expected in a cell is always left there: bounds what one cell can say
LEAST_EIGENVALUE = 0.1  # of the correlations of features: bounds what their differences can say
REPEATED = 0.3  # how much two columns repeat each other, where no table holds both
TARGET_VARIANCE = 0.25  # of t in [-1, 1] about the mean of its cell, for the sampling error alone


@dataclass(frozen=True)
class Column:
    """What one column says in each of its cells.

    `values` (cells, K) are features, K = C - 1 or 1; `rows` (cells,) the rows there. `means` (K, C) are the means of
    the features in each class; for a regression (K, 1) of all rows, and `covariance` (K,) that with the target.
    """

    values: Floats
    rows: Floats
    means: Floats
    covariance: Floats


def fit_histograms(fused: Fused) -> Fitted:
    """The model of the sums."""
    task, tables = fused.task, tables_of(fused.task, fused.sums)
    layer, columns = _discriminants(task, tables) if task.label.classes else _regression(task, tables)
    telling = sum(bool(one.values.any()) for one in columns)
    method: dict[str, Any] = {
        "denoiser": "no" if tables.sigma == 0.0 else "empirical-Bayes",
        "head": HEAD,
        "multiplier": 1.0,
        "lambda": None,
        "choice": f"{telling} of {len(columns)} columns say more than noise, nothing to choose",
        "unseen_classes": [
            name for name, rows in zip(task.class_names, tables.rows, strict=False) if not rows > _least_rows(tables)
        ],
    }
    return Fitted((layer,), method, None)


def _discriminants(task: Task, tables: Tables) -> tuple[Layer, list[Column]]:
    priors = np.maximum(tables.rows, 0.0) + max(tables.rows_sigma, 1.0)
    priors = priors / priors.sum()
    columns = [_class_column(tables, part, priors) for part in _singles(tables)]
    means = np.vstack([one.means for one in columns])
    center = means @ priors
    away = means - center[:, None]
    within = _second_moments(tables, columns) - (means * priors) @ means.T
    mixing = np.linalg.solve(_solvable(within), away)
    mixing = mixing * _slope(tables, (priors * away * mixing).sum(axis=1))
    offsets = np.log(priors) - np.sum(mixing * away, axis=0) / 2.0 - mixing.T @ center
    return tempered(_on_leaves(task, columns, mixing, offsets), mixing.T @ away, priors), columns


def _regression(task: Task, tables: Tables) -> tuple[Layer, list[Column]]:
    low, high = tables.rows
    target = float(np.clip((high - low) / max(float(low + high), 1.0), -1.0, 1.0))
    columns = [_number_column(tables, part, target) for part in _singles(tables)]
    means = np.concatenate([one.means[:, 0] for one in columns])
    covariance = np.concatenate([one.covariance for one in columns])
    weights = np.linalg.solve(_solvable(_second_moments(tables, columns) - np.outer(means, means)), covariance)
    weights = weights * _slope(tables, covariance * weights)
    return _on_leaves(task, columns, weights[:, None], np.array([target - float(means @ weights)])), columns


def _singles(tables: Tables) -> list[Partition]:
    """The partitions of one column each, in the order of the columns."""
    return [part for part in tables.partitions.parts if len(part.columns) == 1]


def _least_rows(tables: Tables) -> float:
    return max(SEEN_DEVIATIONS * tables.rows_sigma, 0.5)


# --- cells ------------------------------------------------------------------------------------------------------


def _class_column(tables: Tables, part: Partition, shares: Floats) -> Column:
    """Log-odds of every class against the first, in each cell against all rows."""
    counts = tables.of(part)
    rows = np.maximum(counts.sum(axis=1), 0.0)
    expected = rows[:, None] * shares
    smoothed = expected + _believed(counts - expected, expected, tables.sigma**2, expected)
    smoothed = np.maximum(smoothed, LEAST_SHARE * expected)
    said = np.log(np.divide(smoothed, expected, out=np.ones_like(smoothed), where=expected > 0.0))
    values = said[:, 1:] - said[:, :1]
    means = values.T @ (smoothed / np.maximum(smoothed.sum(axis=0), 1e-9))
    return Column(values, rows, means, np.zeros(0))


def _number_column(tables: Tables, part: Partition, target: float) -> Column:
    """The mean target in each cell about that of all rows."""
    low, high = tables.of(part).T
    rows = np.maximum(low + high, 0.0)
    noise = tables.sigma**2 * ((1.0 - target) ** 2 + (1.0 + target) ** 2)
    kept = _believed((1.0 - target) * high - (1.0 + target) * low, rows, noise, TARGET_VARIANCE * rows)
    values = np.clip(np.divide(kept, rows, out=np.zeros_like(kept), where=rows > 0.0), -2.0, 2.0)[:, None]
    share = rows / max(float(rows.sum()), 1e-9)
    covariance = values.T @ kept / max(float(rows.sum()), 1e-9)
    return Column(values, rows, (values.T @ share)[:, None], covariance)


def _believed(deviations: Floats, expected: Floats, noise: float, sampling: Floats) -> Floats:
    """D~ of the module; `noise` and `sampling` are variances."""
    variance = noise + sampling
    scale = float((expected**2).sum())
    tau_squared = max(0.0, float((deviations**2 - variance).sum())) / scale if scale > 0.0 else 0.0
    signal = tau_squared * expected**2
    return np.asarray(deviations * np.divide(signal, signal + variance, out=np.zeros_like(signal), where=signal > 0.0))


# --- weights ----------------------------------------------------------------------------------------------------


def _second_moments(tables: Tables, columns: list[Column]) -> Floats:
    """(U, U): mean products of all features; where no table holds them, as if independent within classes."""
    width = columns[0].values.shape[1]
    means = np.vstack([one.means for one in columns])
    shares = np.maximum(tables.rows, 0.0) if means.shape[1] > 1 else np.ones(1)
    moments = (means * (shares / max(float(shares.sum()), 1e-9))) @ means.T
    for (a, b), block in _products(tables, columns):
        of_a, of_b = slice(a * width, (a + 1) * width), slice(b * width, (b + 1) * width)
        moments[of_a, of_b] = block
        moments[of_b, of_a] = block.T
    return np.asarray(moments)


def _products(tables: Tables, columns: list[Column]) -> Iterator[tuple[tuple[int, int], Floats]]:
    """((a, b), (K, K) mean product of the features of columns a and b), for all that a table holds."""
    for part in tables.partitions.parts:
        if len(part.columns) == 1:
            one = columns[part.columns[0]]
            first = second = one.values
            rows = one.rows
        else:
            first, second = (_in_pair(tables, columns[column], column, part) for column in part.columns)
            rows = np.maximum(tables.of(part).sum(axis=1), 0.0)
        yield (part.columns[0], part.columns[-1]), (first.T * (rows / max(float(rows.sum()), 1e-9))) @ second


def _in_pair(tables: Tables, one: Column, column: int, part: Partition) -> Floats:
    """(cells of a pair, K): what a column says in each of them; merged cells say their mean."""
    merged = np.array(tables.partitions.cells[column].merged())
    onto = np.equal.outer(np.arange(merged[-1] + 1), merged) * (one.rows + 1e-9)
    coarse = (onto @ one.values) / onto.sum(axis=1, keepdims=True)
    first, second = np.divmod(np.arange(part.size), part.sides[1])
    return np.asarray(coarse[first if column == part.columns[0] else second])


def _solvable(covariance: Floats) -> Floats:
    """With all correlations shrunk alike until no eigenvalue of theirs is below LEAST_EIGENVALUE.

    Noise can make correlations that no rows have: cutting off what is negative would leave directions in which features
    seem to agree perfectly.
    """
    spread = np.sqrt(np.maximum(covariance.diagonal(), 1e-9))
    correlations = covariance / np.outer(spread, spread)
    np.fill_diagonal(correlations, 1.0)
    least = float(np.linalg.eigvalsh(correlations)[0])
    if least < LEAST_EIGENVALUE:
        correlations *= (1.0 - LEAST_EIGENVALUE) / (1.0 - least)
        np.fill_diagonal(correlations, 1.0)
    return np.asarray(correlations * np.outer(spread, spread))


def _slope(tables: Tables, separated: Floats) -> float:
    """See the module; `separated` (U,) is e by feature."""
    count = len(tables.partitions.cells)
    by_column = np.abs(separated.reshape(count, -1).sum(axis=1))
    if len(tables.partitions.parts) > count or not by_column.any():
        return 1.0
    mattering = float(by_column.sum() ** 2 / (by_column**2).sum())
    return 1.0 / (1.0 + REPEATED * (mattering - 1.0))


def _on_leaves(task: Task, columns: list[Column], mixing: Floats, offsets: Floats) -> Layer:
    """The weights of features as weights of leaves; those of pairs, which come last, are 0."""
    encoder, width = LeafRows.of(task), columns[0].values.shape[1]
    weights = np.zeros((encoder.dimension, mixing.shape[1]))
    blocks = [one.values @ mixing[a * width : (a + 1) * width] for a, one in enumerate(columns)]
    single = np.vstack(blocks) / encoder.leaf_scale
    weights[: len(single)] = single
    return Layer(weights, offsets)
