"""Private training of a small dense head: full gradients, clipped row by row, summed in exact whole numbers.

This is DP-SGD (Abadi et al., "Deep learning with differential privacy", 2016) with every row in every step. At the
noise that one release needs, sampling buys nothing: a step on a share q of the rows needs noise q times as large to
cost the same, and its signal is q times as small. Without sampling every step is a plain Gaussian release, so a whole
run costs mu^2 = steps / z^2 exactly, where z is noise over sensitivity, in the same account as any other summary
(docs/adr/0009).

One step, for weights that are public by then:

    forward    logits of every row, cross-entropy, errors backward        all products of whole numbers below 2^53
    clip       a row's gradient is, layer by layer, the product of the layer's input and its error: its norm is known
               without forming it, and the error is scaled so that the norm is at most clip_norm
    sum        over rows, by matrix products of whole numbers: exact, whatever the order or the batches
    noise      discrete Gaussian of `fusion.noise`
    update     divided by a noisy number of rows, with momentum; everything from here on is post-processing

Inputs a and scaled errors b are whole numbers in units of 2^-16, truncated toward zero. The gradient of one row
consists of the products a_i b_j, in units of clip_norm 2^-32. Its squared length is sum over layers of ||a||^2
||b||^2; a row for which this exceeds 2^64 after all (it is tested on the whole numbers) adds nothing. So the
sensitivity of a step is 1, in units of clip_norm, and does not rest on floating point. Where the unit is a person, b
is divided by the number k of the person's rows and tested against 2^64 / k^2: by the triangle inequality all k rows
together stay within 1.

Forward and backward products are of whole numbers too, with every partial sum below 2^53, and everything else works
element by element with +, *, / and sqrt, which are exactly rounded. So what a row adds is the same to the last bit
whatever rows are around it: the difference between neighboring datasets is exactly what the one record adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.noise import discrete_gaussian
from fusion.shapes import MAX_WEIGHT, Weights, split

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FIXED_POINT = 2.0**16
UNIT = 2.0**32  # of a product of two such numbers
ERROR_POINT = 2.0**24  # finer: errors travel backward in these units
EXACT_BITS = 52  # partial sums stay below 2^52 and rounding of the weights cannot lift them over 2^53
BLOCK_ROWS = 1_024  # up to 2^20 rows of products of at most 2^32 keep float64 sums exact; few stay in the cache
MOMENTUM = 0.9
LEAST_EXPONENT = -40.0  # of softmax: e^-40 is nothing beside 1


@dataclass(frozen=True)
class Rows:
    """Encoded private rows: features in units of 2^-16 with g = sum of squares at most 2^32, labels, and k of each."""

    features: NDArray[np.int32]  # (n, d); the last coordinate is the bias
    label: Ints  # (n,) class index; outside the classes: the row adds nothing
    sharing: Ints  # (n,) how many rows the person of the row has; 1 where the unit is the row

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Recipe:
    """What steers a run. Public, or derived from noisy numbers alone."""

    steps: int
    clip_norm: float
    learning_rate: float
    rows: float  # what sums of gradients are divided by
    offsets: Floats  # (C,) added to the logits while training


def train(
    rows: Rows, start: Weights, recipe: Recipe, sigma: int, progress: Callable[[int], None] | None = None
) -> Weights:
    """The mean of the weights over the second half of a run from `start`; `progress` hears steps done.

    `sigma` is the noise of every entry of every step, in units of clip_norm 2^-32; 0 trains without privacy.
    """
    weights = start
    velocity = tuple(np.zeros_like(one) for one in start)
    tail = tuple(np.zeros_like(one) for one in start)
    first_kept = recipe.steps // 2
    shapes = tuple((one.shape[0], one.shape[1]) for one in start)
    for step in range(recipe.steps):
        gradient = noised(gradient_sum(weights, rows, recipe.clip_norm, recipe.offsets), sigma)
        scale = recipe.clip_norm / UNIT / recipe.rows
        velocity = tuple(
            MOMENTUM * old + new * scale for old, new in zip(velocity, split(gradient, shapes), strict=True)
        )
        weights = tuple(
            np.clip(old - recipe.learning_rate * slope, -MAX_WEIGHT, MAX_WEIGHT)
            for old, slope in zip(weights, velocity, strict=True)
        )
        if step >= first_kept:
            tail = tuple(before + one for before, one in zip(tail, weights, strict=True))
        if progress is not None:
            progress(step + 1)
    return tuple(one / (recipe.steps - first_kept) for one in tail)


def noised(gradient: Ints, sigma: int) -> Ints:
    """The mechanism of one step."""
    return discrete_gaussian(gradient, sigma) if sigma else gradient


def gradient_sum(weights: Weights, rows: Rows, clip_norm: float, offsets: Floats) -> Ints:
    """(p,) exact sum of the clipped gradients of all rows, in units of clip_norm 2^-32, layer after layer."""
    totals = [np.zeros(one.shape, dtype=np.int64) for one in weights]
    for start in range(0, len(rows), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        x = rows.features[part].astype(np.float64)
        factors = row_gradients(weights, x, rows.label[part], rows.sharing[part], clip_norm, offsets)
        for total, (a, b) in zip(totals, factors, strict=True):
            total += np.rint(a.T @ b).astype(np.int64)
    return np.concatenate([total.reshape(-1) for total in totals])


def row_gradients(
    weights: Weights, x: Floats, label: Ints, sharing: Ints, clip_norm: float, offsets: Floats
) -> list[tuple[Floats, Floats]]:
    """Per layer (a, b), whole numbers: row i adds the outer product of a[i] and b[i]."""
    inputs, logits = _forward(weights, x)
    classes = len(offsets)
    known = (label >= 0) & (label < classes)
    error = softmax(logits + offsets) - np.equal.outer(label, np.arange(classes))
    errors = [np.where(known[:, None], error, 0.0)]
    for layer in range(len(weights) - 1, 0, -1):
        back = exact_product(np.rint(errors[0] * ERROR_POINT), 26, weights[layer][:-1].T) / ERROR_POINT
        errors.insert(0, np.where(inputs[layer][:, :-1] > 0.0, back, 0.0))
    return _clipped(inputs, errors, sharing, clip_norm)


def _forward(weights: Weights, x: Floats) -> tuple[list[Floats], Floats]:
    """The input of each layer in units of 2^-16 (a hidden layer's ends with a constant 1), and the logits."""
    inputs, bits = [x], 16
    for weight in weights[:-1]:
        hidden = exact_product(inputs[-1], bits, weight) / FIXED_POINT
        whole = np.trunc(np.maximum(hidden, 0.0) * FIXED_POINT)
        inputs.append(np.concatenate([whole, np.full((len(x), 1), FIXED_POINT)], axis=1))
        norm = math.sqrt(1.0 + float((weight * weight).sum()))  # of a hidden row at most, the row being at most 1
        bits = 17 + math.ceil(math.log2(norm))
    return inputs, exact_product(inputs[-1], bits, weights[-1]) / FIXED_POINT


def exact_product(whole: Floats, bits: int, weight: Floats) -> Floats:
    """whole @ weight, exactly, for rows of whole numbers of length at most 2^bits; weight is rounded as that needs.

    By Cauchy-Schwarz no partial sum exceeds 2^EXACT_BITS, so that any order of summation gives the same bits.
    """
    longest = math.sqrt(float((weight * weight).sum(axis=0).max(initial=0.0)))
    exponent = min(40, EXACT_BITS - bits - math.ceil(math.log2(max(longest, 2.0**-40))))
    product: Floats = np.ldexp(whole @ np.rint(np.ldexp(weight, exponent)), -exponent)
    return product


def _clipped(
    inputs: Sequence[Floats], errors: Sequence[Floats], sharing: Ints, clip_norm: float
) -> list[tuple[Floats, Floats]]:
    """The errors scaled so that each row's gradient is at most clip_norm / k, in whole numbers that keep to it."""
    k = sharing.astype(np.float64)
    # A row of features is of whole numbers whose squares add up to at most 2^32: exact in any order.
    input_squares = [np.einsum("ij,ij->i", inputs[0], inputs[0]), *(squares(one) for one in inputs[1:])]
    norm = np.sqrt(_sum(a * squares(b) for a, b in zip(input_squares, errors, strict=True))) / FIXED_POINT
    # A hair below the bound, so that rounding in the norm does not push a clipped gradient over it.
    scale = (FIXED_POINT * (1 - 1e-9)) / (np.maximum(norm, clip_norm) * k)
    whole = [np.trunc(one * scale[:, None]) for one in errors]
    length = _sum(a * squares(b) for a, b in zip(input_squares, whole, strict=True)) * (k * k)
    fits = length <= UNIT * UNIT * (1 - 1e-12)  # the three roundings above are of 2^-53 each
    return [(a, np.where(fits[:, None], b, 0.0)) for a, b in zip(inputs, whole, strict=True)]


def squares(values: Floats) -> Floats:
    """(n,) squared length of each row, added up column by column: the same bits whatever the number of rows."""
    return _sum(column * column for column in values.T)


def softmax(logits: Floats) -> Floats:
    """Probabilities of each row, by sums and products alone, which are exactly rounded on every machine."""
    powers = exponential(np.maximum(logits - logits.max(axis=1, keepdims=True), LEAST_EXPONENT))
    return np.asarray(powers / _sum(iter(powers.T))[:, None])


def exponential(x: Floats) -> Floats:
    """e^x for -40 <= x <= 0 to a relative 1e-12: Taylor's polynomial at x / 1024, squared ten times."""
    r = x / 1024.0
    value = 1.0 + r * (1.0 + r * (1.0 / 2 + r * (1.0 / 6 + r * (1.0 / 24 + r * (1.0 / 120)))))
    for _ in range(10):
        value = value * value
    return np.asarray(value)


def _sum(terms: Iterator[Floats]) -> Floats:
    """In the order given."""
    total = next(terms)
    for one in terms:
        total = total + one
    return total
