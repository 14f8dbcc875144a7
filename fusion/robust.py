"""Fusing although some partners may lie: who stands out is left out, and nobody counts for more rows than others have.

`screen` takes F, how many liars to withstand, and does two things, per partner (all parts of its data together).

**Leave out who stands out.** What partner k sums should follow from its rows per class n_kc and from what is common to
all partners: its class sums M_kc from the class mean mu_c, and its scatter about these means from a scatter per class,

    M_kc = n_kc mu_c,        S_k = G_k - sum_c (M_kc mu_c^T + mu_c M_kc^T - n_kc mu_c mu_c^T) = sum_c n_kc Sigma_c,

whatever its shares of the classes are: partners who see other classes are no liars. mu_c and Sigma_c are fitted so that
the sum over partners of the *lengths* of what is left, ||y_k - n_k B|| b_k / n_k, is least: for a class mean this is
the geometric median (E. Weiszfeld, 1937; in federated learning K. Pillutla, S. Kakade, Z. Harchaoui, "Robust
aggregation for federated learning", 2022, there of model updates), for scatters the same with several unknowns. b_k is
n_k up to a cap, the median of partners or less, so that F liars weigh less than half. What is left of partner k,

    D = ||sum_j H_kj y_j||,

is linear in the sums once H is found, so its variance is known. It is held against what honest partners explain,

    sqrt(V) + 6 sqrt(L) + 2.5 n_k tau

V being the variance of the vector over all directions together and L along the worst one, from privacy noise (known)
and from chance among rows (a class of mean mu within reach r of the origin scatters at most v = r^2 - ||mu||^2; no
direction is taken to hold more than a quarter of it). A Gaussian vector is longer than the first two terms with
probability below 1e-7 (the bound of `fusion.plausibility`). tau allows for partners who are different: it is the
largest distance per row, beyond noise and chance, that partners reach who together weigh more than F of the heaviest,
so that one of them is honest. Class sums are compared in all directions, and once more in those in which classes
differ, which are few and where noise is small.

The partner that exceeds its limit by the largest factor is left out, with those who exceed theirs by half as much, and
everything is computed anew, until F are left out. More than F liars would hide each other: should one more stand out,
or more than the F' not yet found lie four times as far as the partner in the middle, there is no telling who lies, and
nothing is fused.

**Nobody counts for more rows than others have.** The rows of a partner count for at most the (F' + 1)-th largest number
of rows, F' being F less those left out: among the F' + 1 largest at least one is honest. A summary that counts too much
is multiplied by a weight w, in whole units of 2^-20, and its noise with it: post-processing, exact and in any order.

What stays possible, and cannot be seen from sums by anybody: lies within these limits; other shares of classes than are
true; whatever is said of a class that fewer than 2 F' + 1 partners hold, since liars could be the majority there (the
manifest names it); and more than F liars who tell the same lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.errors import ModelError
from fusion.plausibility import DEVIATIONS, ROUNDING
from fusion.profiles import ENDS, Profile
from fusion.summaries import kind_of
from fusion.sums import FULL_WEIGHT, Contribution, total
from fusion.task import Task, dimension

Floats = NDArray[np.float64]

HELD_DEVIATIONS = 4.0  # of a count's noise, above which a partner surely has rows of a class
LARGEST_SHARE = 0.25  # of a class's scatter that one direction may hold
FARTHEST_FACTOR = 2.5  # times the distance of somebody honest; lower leaves out partners who are merely different
MIDDLE_FACTOR = 4.0  # times the distance of the partner in the middle; raising it refuses less
FIT_STEPS = 50
LEAST_FREE = 0.5  # of a partner's vector that the others must explain; with less it is compared with itself
RANK_TOLERANCE = 1e-9
MIX_TOLERANCE = 0.02  # differences in the shares of classes below sqrt of this do not tell scatters of classes apart
AT_ONCE = 0.5  # partners who exceed their limits by this share of the worst factor are left out with the worst
MOST_SQUARES = 2**27  # numbers of second moments of all partners that are compared: 1 GB


@dataclass(frozen=True)
class Screened:
    """Who is fused, with the weight of each; who is not, and why; which classes nobody could judge."""

    liars: int
    kept: tuple[Contribution, ...]
    left_out: tuple[tuple[Contribution, str], ...]
    most_rows: float  # that a partner may count for
    unjudged: tuple[int, ...]


def screen(task: Task, contributions: Sequence[Contribution], liars: int) -> Screened:
    """The robust choice among plausible summaries, in the order of their record ids.

    ModelError where there are too few partners to withstand `liars`, or more of them stand out.
    """
    if task.model is not None:
        raise ModelError(
            'summaries of kind "model" hold trained weights, in which a lie does not show beside those of others; '
            "leave partners out by name, or use a task of sums"
        )
    by_origin: dict[bytes, list[Contribution]] = {}
    for one in sorted(contributions, key=lambda one: one.record_id):
        by_origin.setdefault(one.origin, []).append(one)
    origins = sorted(by_origin)
    if len(origins) < 2 * liars + 1:
        raise ModelError(
            f"to withstand {liars} liars takes summaries of {2 * liars + 1} partners, and there are {len(origins)}; "
            "ask with a smaller number, or without it"
        )
    if len(origins) * dimension(task) ** 2 > MOST_SQUARES and task.summary != "histograms":
        raise ModelError(
            f"second moments of {len(origins)} partners in {dimension(task)} dimensions are too many to compare here; "
            "select partners by name"
        )
    profiles = [kind_of(task).profile(task, total(by_origin[origin])) for origin in origins]
    reasons, unjudged = _outliers(task, profiles, liars)
    rows = np.array([one.rows for one in profiles])
    most_rows = _most_rows(rows, reasons, liars)
    kept, left_out = [], []
    for place, origin in enumerate(origins):
        for one in by_origin[origin]:
            if place in reasons:
                left_out.append((one, reasons[place]))
            else:
                kept.append(dataclasses.replace(one, weight=_weight(most_rows, rows[place])))
    kept.sort(key=lambda one: one.record_id)
    left_out.sort(key=lambda pair: pair[0].record_id)
    return Screened(liars, tuple(kept), tuple(left_out), most_rows, unjudged)


# --- rows -------------------------------------------------------------------------------------------------------


def _most_rows(rows: Floats, reasons: dict[int, str], liars: int) -> float:
    """The (F' + 1)-th largest number of rows among those who are kept, at least one."""
    kept = np.sort(np.delete(rows, list(reasons)))[::-1]
    return max(float(kept[liars - len(reasons)]), 1.0)


def _weight(most_rows: float, rows: float) -> int:
    """In units of 2^-20, at least one, so that a summary of 2^30 rows still counts as used."""
    return FULL_WEIGHT if rows <= most_rows else max(1, round(FULL_WEIGHT * (most_rows / rows)))


# --- who stands out ---------------------------------------------------------------------------------------------


def _outliers(task: Task, profiles: Sequence[Profile], liars: int) -> tuple[dict[int, str], tuple[int, ...]]:
    """Partner -> reason, at most `liars` of them, and the classes that too few hold to be judged."""
    names = [f'rows of "{name}"' for name in task.class_names or ENDS]
    reasons: dict[int, str] = {}
    while True:
        places = [place for place in range(len(profiles)) if place not in reasons]
        remaining = liars - len(reasons)
        (factors, doubtful), judged = excess([profiles[place] for place in places], remaining)
        by_partner = factors.max(axis=1)
        is_anyone_out = by_partner.max() > 1.0
        if (is_anyone_out and not remaining) or (not is_anyone_out and (doubtful.max(axis=1) > 1.0).sum() > remaining):
            raise ModelError(
                f"more than {liars} partners contradict the others, so there is no telling who lies; look at "
                "`tidings contributions`, leave partners out by name, or ask to withstand more"
            )
        if not is_anyone_out:
            return reasons, tuple(int(c) for c in np.flatnonzero(~judged))
        at_once = max(1.0, AT_ONCE * by_partner.max())
        worst = [int(one) for one in np.argsort(-by_partner, kind="stable")[:remaining] if by_partner[one] >= at_once]
        for one in worst:
            what = [*names, "second moments"][int(factors[one].argmax())]
            reasons[places[one]] = (
                f"its {what} lie {by_partner[one]:.1f} times as far from those of the others as noise, chance and "
                "differences between partners explain"
            )


def excess(profiles: Sequence[Profile], liars: int) -> tuple[Floats, NDArray[np.bool_]]:
    """(2, n, C + 1): D of each partner as a multiple of its limit and of what is doubtful, for each class and, last,
    for second moments; 0 where nothing can be compared. (C,): the classes that enough partners hold."""
    field, fewest = Field.of(profiles), max(2 * liars + 1, 3)
    judged = field.held.sum(axis=0) >= fewest
    fits = [_class_fit(field, c, liars) if judged[c] else None for c in range(len(judged))]
    means = [_mean(field, c) if fit is None else fit[0] @ field.sums[:, :, c] for c, fit in enumerate(fits)]
    basis = _between([mean for mean, known in zip(means, judged, strict=True) if known])
    factors = np.zeros((2, len(profiles), len(judged) + 1))
    for c, fit in enumerate(fits):
        if fit is not None:
            factors[:, :, c] = _class_excess(field, c, fit, means[c], basis, liars)
    if profiles[0].squares is not None:
        factors[:, :, -1] = _scatter_excess(field, np.array(means), fewest, liars)
    return factors, judged


@dataclass(frozen=True)
class Field:
    """The profiles of n partners as arrays: sums (n, p, C), counts (n, C), and the deviations of both, each (n,)."""

    profiles: tuple[Profile, ...]
    sums: Floats
    counts: Floats
    sigma: Floats
    count_sigma: Floats
    reach: float

    @classmethod
    def of(cls, profiles: Sequence[Profile]) -> Field:
        return cls(
            tuple(profiles),
            np.array([one.sums for one in profiles]),
            np.array([one.counts for one in profiles]),
            np.array([one.sigma for one in profiles]),
            np.array([one.count_sigma for one in profiles]),
            profiles[0].reach,
        )

    @property
    def held(self) -> NDArray[np.bool_]:
        """(n, C): who surely has rows of which class."""
        return self.counts > np.maximum(HELD_DEVIATIONS * self.count_sigma[:, None], 0.5)

    def scatter(self, mean: Floats) -> float:
        """v: no class of rows within `reach` with that mean scatters more, over all directions together."""
        return max(self.reach**2 - float(mean @ mean), 0.0)


def _class_fit(field: Field, c: int, liars: int) -> Floats:
    """(1, n): the geometric median of the means of class c is this times the class sums."""
    rows, sums = np.maximum(field.counts[:, c], 0.0), field.sums[:, :, c]
    variances = sums.shape[1] * field.sigma**2
    return _fit(rows[:, None], sums @ sums.T, variances, field.reach**2, field.held[:, c], liars)


def _mean(field: Field, c: int) -> Floats:
    """(p,): the mean of a class that nobody can judge, by everybody's word."""
    rows = float(field.counts[:, c].sum())
    noise = float(np.sqrt((field.count_sigma**2).sum()))
    return np.asarray(field.sums[:, :, c].sum(axis=0) / max(rows, HELD_DEVIATIONS * noise, 1.0))


def _class_excess(field: Field, c: int, fit: Floats, mean: Floats, basis: Floats | None, liars: int) -> Floats:
    """(2, n): the larger of both kinds of directions."""
    rows = np.maximum(field.counts[:, c], 0.0)
    left = np.eye(len(rows)) - field.counts[:, c, None] * fit
    chance = (rows + 2.0 * field.count_sigma) * field.scatter(mean)
    factors = np.zeros((2, len(rows)))
    for directions in (np.eye(len(mean)), basis):
        if directions is not None:
            count = (field.count_sigma * np.linalg.norm(mean @ directions)) ** 2  # along the mean
            total_variance = directions.shape[1] * field.sigma**2 + count + chance
            largest = field.sigma**2 + count + LARGEST_SHARE * chance
            distances = np.linalg.norm(left @ (field.sums[:, :, c] @ directions), axis=1)
            compared = _excess(distances, left, total_variance, largest, rows, field.held[:, c], liars)
            factors = np.maximum(factors, compared)
    return factors


def _scatter_excess(field: Field, means: Floats, fewest: int, liars: int) -> Floats:
    """(2, n): for the scatters about the class means (C, p); 0 for partners who are alone with most of their rows."""
    if field.profiles[0].centered:
        field, means = dataclasses.replace(field, reach=1.0), np.zeros_like(means)
    p, rows, scatters = means.shape[1], np.maximum(field.counts, 0.0), _scatters(field, means)
    sigma, lengths = np.array([one.squares_sigma for one in field.profiles]), (means**2).sum(axis=1)
    # Noise of G: sigma on the diagonal, sigma / sqrt(2) off it, that is sigma along every direction of symmetric
    # matrices. Noise e of M enters as e mu^T + mu e^T, that of a count as mu mu^T.
    of_sums = field.sigma**2 * lengths.sum()
    of_counts = field.count_sigma**2 * (lengths**2).sum()
    noise = p * (p + 1) / 2.0 * sigma**2 + 2.0 * (p + 1) * of_sums + of_counts
    most = (field.reach + float(np.sqrt(lengths.max()))) ** 2  # ||x - mu||^2
    fourth = most * np.array([field.scatter(mean) for mean in means])  # E ||x - mu||^4 at most
    chance = rows @ fourth + 2.0 * field.count_sigma * fourth.max()
    totals = rows.sum(axis=1)
    held = totals > np.maximum(HELD_DEVIATIONS * field.count_sigma * np.sqrt(rows.shape[1]), 0.5)
    if held.sum() < fewest:
        return np.zeros((2, len(rows)))
    left: Floats = np.eye(len(rows)) - rows @ _fit(rows, scatters @ scatters.T, noise, float(fourth.max()), held, liars)
    compared = held & (left.diagonal() > LEAST_FREE)
    if compared.sum() < fewest:
        return np.zeros((2, len(rows)))
    largest = sigma**2 + 4.0 * of_sums + of_counts + LARGEST_SHARE * chance
    distances = np.linalg.norm(left @ scatters, axis=1)
    factors = _excess(distances, left, noise + chance, largest, totals, compared, liars)
    factors[:, held & ~compared] = 0.0
    return factors


def _scatters(field: Field, means: Floats) -> Floats:
    """(n, p (p + 1) / 2): S_k of the module's docstring as vectors of the same length, one half of the matrix each."""
    p = means.shape[1]
    upper = np.triu_indices(p)
    scale = np.where(upper[0] == upper[1], 1.0, np.sqrt(2.0))
    found = np.empty((len(field.profiles), len(scale)))
    for k, profile in enumerate(field.profiles):
        assert profile.squares is not None  # noqa: S101 - all have them, or nobody asks
        cross = (profile.sums - means.T * profile.counts / 2.0) @ means
        found[k] = (profile.squares - cross - cross.T)[upper] * scale
    return found


# --- robust fits ------------------------------------------------------------------------------------------------


def _fit(
    design: Floats, products: Floats, noise: Floats, per_row: float, held: NDArray[np.bool_], liars: int
) -> Floats:
    """A (q, n) such that B = A y has the least sum over partners of ||y_k - design_k B|| b_k / n_k.

    By iteratively reweighted least squares over those who hold rows, from `products` (n, n) = y y^T; lengths count as
    at least what noise (variance `noise`, (n,)) and chance (`per_row` times rows) make of them, else a partner that
    happens to lie near the middle would be all that counts.
    """
    rows = design[held].sum(axis=1)
    counted = _counted(rows, liars)
    floor = rows * np.sqrt(noise[held] + counted * per_row) / counted
    design, products = design[held], products[np.ix_(held, held)]
    lengths = rows
    for _ in range(FIT_STEPS):
        weighted = design * (counted / rows / np.maximum(lengths, floor))[:, None]
        solution = np.linalg.pinv(weighted.T @ design, rcond=MIX_TOLERANCE, hermitian=True) @ weighted.T
        along = solution @ products
        squares = products.diagonal() + ((design @ (along @ solution.T) - 2.0 * along.T) * design).sum(axis=1)
        lengths = np.sqrt(np.maximum(squares, 0.0))
    fit = np.zeros((design.shape[1], len(held)))
    fit[:, held] = solution
    return fit


def _counted(rows: Floats, liars: int) -> Floats:
    """(n,): rows up to the median of partners, or less: to where `liars` of the largest weigh as much less than half as
    their share in the number of partners lets them, in the middle between that share and a half."""
    most = (liars / len(rows) + 0.5) / 2.0
    caps = np.sort(rows[rows <= np.median(rows)])
    shares = liars * caps / np.minimum(rows, caps[:, None]).sum(axis=1)  # rising; liars / n at the least cap
    return np.asarray(np.minimum(rows, caps[shares <= most][-1]))


def _between(means: Sequence[Floats]) -> Floats | None:
    """(p, q): an orthonormal basis of the directions in which class means differ; None where there are none."""
    if len(means) < 2:
        return None
    _, lengths, directions = np.linalg.svd(np.array(means) - np.mean(means, axis=0), full_matrices=False)
    return np.asarray(directions[lengths > RANK_TOLERANCE * max(lengths[0], 1.0)].T)


def _excess(
    distances: Floats,
    left: Floats,
    variances: Floats,
    largest: Floats,
    rows: Floats,
    held: NDArray[np.bool_],
    liars: int,
) -> Floats:
    """(2, n): D over both limits, from the variances of every partner's vector over all directions and along the
    worst."""
    shares = left**2
    typical = shares @ variances
    allowed = np.sqrt(typical) + DEVIATIONS * np.sqrt(shares @ largest) + ROUNDING * (1.0 + rows)
    apart = np.sqrt(np.maximum(distances[held] ** 2 - typical[held], 0.0)) / rows[held]
    farthest = FARTHEST_FACTOR * _farthest(apart, _counted(rows[held], liars), liars)
    middle = MIDDLE_FACTOR * float(np.sort(apart)[len(apart) // 2])
    return np.array([distances / (allowed + rows * tau) for tau in (farthest, middle)])


def _farthest(apart: Floats, counted: Floats, liars: int) -> float:
    """The largest distance that partners reach who weigh more than `liars` of the heaviest: one of them is honest."""
    order = np.argsort(-apart, kind="stable")
    place = int(np.searchsorted(np.cumsum(counted[order]), liars * counted.max(), side="right"))
    return float(apart[order][place])
