"""What each partner's summaries add to the model: leave one out, from the noisy sums alone.

For a partner k and other partners g that are kept out of the fit, two models are fitted: one of all summaries but g's,
and one of all but g's and k's. Both are scored on the sums of g by the squared error E_g(W) of `fusion.selection`, and

    adds_k = sum_g (E_g(W without g and k) - E_g(W without g)) / sum_g E_g(base rates)

is the share of the variation of strangers' labels that the model explains thanks to k (for numbers: what k adds to
R^2). E_g is linear in the sums of g, which neither model has seen: the estimate is unbiased over the noise in g, with a
deviation that is known and given. That deviation is the effect of privacy noise in what is scored on, and nothing else:
it does not say how other partners would differ from these. This is the leave-one-out value of the literature on data
valuation (R. Cook, "Detection of influential observation in linear regression", 1977; A. Ghorbani, J. Zou, "Data
Shapley", ICML 2019), with partners for rows. Two partners with the same rows each add little: either one could leave.

`alone` is what a model of k's summaries only explains on all the others: with two partners, this is all there is.

The head is the default with its default lambda, so that all models compared differ in their data alone. What nobody
else holds cannot be scored by others: a class that only one partner has is named instead. Post-processing: it costs
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fusion.fuse import Contribution, Fused, fuse
from fusion.heads import SEEN_DEVIATIONS, Cleaned
from fusion.model import seed_of
from fusion.selection import (
    MAX_GROUPS,
    SURE_DEVIATIONS,
    Candidate,
    base_rates,
    default_candidate,
    difference_variance,
    fit_on_rest,
    squared_error,
)
from fusion.statistics import Statistics
from fusion.summaries import kind_of
from fusion.sums import Sums, total
from fusion.task import Task

Floats = NDArray[np.float64]
Progress = Callable[[int], None]

FIT_WORK = 100.0 * 512.0**3  # cubed dimensions spent on fits; beyond, each partner is scored on fewer others


@dataclass(frozen=True)
class Estimate:
    """A share of the variation explained (at most 1), and the deviation that privacy noise gives it."""

    value: float
    std: float


@dataclass(frozen=True)
class PartnerContribution:
    """What one partner brings. `alone` needs one other partner, `adds` two; None where there are fewer."""

    origin: bytes
    records: tuple[bytes, ...]
    epsilons: tuple[float, ...]  # in the order of the records; inf for exact sums
    rows: float
    rows_std: float
    only_classes: tuple[str, ...]  # that no other partner clearly has
    alone: Estimate | None
    adds: Estimate | None


@dataclass(frozen=True)
class Contributions:
    """All partners, in the order of their keys; `together` is what models of all the others explain of each."""

    partners: tuple[PartnerContribution, ...]
    together: Estimate | None
    quarantined: tuple[tuple[Contribution, str], ...]


def contributions(
    task: Task, summaries: Iterable[Contribution], progress: Progress | None = None, liars: int = 0
) -> Contributions:
    """Every partner's contribution to the model of `task`; `progress` hears how many models are fitted. With `liars`,
    of the partners that `fusion.robust` keeps, as they then count; the others are listed with the quarantined.

    NothingToFuse where no summary is usable, ModelError for a kind of summary that holds no moments.
    """
    with threadpool_limits(limits=1):
        fused = fuse(task, summaries, liars)
        study = _Study(fused, progress or (lambda _: None))
        alone = [study.alone(k) for k in range(len(study.partners))]
        adds, together = study.added()
    parts = zip(study.partners, alone, adds, strict=True)
    listed = [_describe(study, k, members, *scores) for k, (members, *scores) in enumerate(parts)]
    left_out = () if fused.screened is None else fused.screened.left_out
    return Contributions(tuple(listed), together, (*fused.quarantined, *left_out))


class _Study:
    """The sums of each partner, and models with some of them left out."""

    def __init__(self, fused: Fused, progress: Progress) -> None:
        by_origin: dict[bytes, list[Contribution]] = {}
        for one in fused.used:
            by_origin.setdefault(one.origin, []).append(one)
        self.task = fused.task
        self.all = fused.sums
        self.partners = [by_origin[origin] for origin in sorted(by_origin)]
        self.sums = [total(members) for members in self.partners]
        self.seed = seed_of(fused)
        self.candidate: Candidate = default_candidate(None)
        # Base rates of everybody: the same yardstick for all partners.
        self.base = base_rates(Cleaned.of(fused.statistics))
        self._progress = progress
        self._fits = 0

    def statistics(self, sums: Sums) -> Statistics:
        return kind_of(self.task).statistics(self.task, sums)

    def weights(self, sums: Sums) -> Floats:
        """(d, C): the default head on the statistics of `sums`, on the scale of the label."""
        fitted = fit_on_rest(self.candidate, Cleaned.of(self.statistics(sums)), self.seed)
        self._fits += 1
        self._progress(self._fits)
        return fitted.weights

    def alone(self, k: int) -> Estimate | None:
        """What a model of partner k only explains on all the others."""
        if len(self.partners) < 2:
            return None
        others = self.statistics(self.all.minus(self.sums[k]))
        return self._explained([(self.weights(self.sums[k]), others)])

    def added(self) -> tuple[list[Estimate | None], Estimate | None]:
        """What each partner adds, and what models without a group explain of the groups."""
        count = len(self.partners)
        if count < 2:
            return [None] * count, None
        groups = [[*range(start, count, MAX_GROUPS)] for start in range(min(MAX_GROUPS, count))]
        groups = groups[: max(2, int(FIT_WORK / self.base.shape[0] ** 3 / count))]
        scored = [(members, self._sum(members)) for members in groups]
        models = [(self.weights(self.all.minus(sums)), self.statistics(sums)) for _, sums in scored]
        together = self._explained(models)
        return [self._added_by(k, scored, models) for k in range(count)], together

    def _added_by(
        self, k: int, scored: Sequence[tuple[list[int], Sums]], models: Sequence[tuple[Floats, Statistics]]
    ) -> Estimate | None:
        """adds_k of the module's docstring."""
        gain = variance = base = 0.0
        for g, (members, sums) in enumerate(scored):
            if k not in members:
                if len(members) + 1 == len(self.partners):
                    continue  # nobody is left to fit a model without k
                rest = self.all.minus(sums).minus(self.sums[k])
                (with_k, group), without_k = models[g], self.weights(rest)
            elif len(members) == 1:
                continue  # nobody to score on
            else:
                group = self.statistics(sums.minus(self.sums[k]))
                with_k, without_k = self.weights(self.all.minus(sums).plus(self.sums[k])), models[g][0]
            gain += squared_error(without_k, group) - squared_error(with_k, group)
            variance += difference_variance(without_k, with_k, 1.0, group)
            base += squared_error(self.base, group)
        return Estimate(gain / base, float(np.sqrt(variance)) / base) if base > 0.0 else None

    def _explained(self, scored: Sequence[tuple[Floats, Statistics]]) -> Estimate | None:
        """1 - the squared error as a share of that of base rates; None where noise leaves no base to compare with."""
        error = sum(squared_error(weights, group) for weights, group in scored)
        base = sum(squared_error(self.base, group) for _, group in scored)
        if base <= 0.0:
            return None
        ratio = error / base
        variance = sum(difference_variance(weights, self.base, ratio, group) for weights, group in scored)
        return Estimate(1.0 - ratio, float(np.sqrt(variance)) / base)

    def _sum(self, members: Sequence[int]) -> Sums:
        sums = self.sums[members[0]]
        for k in members[1:]:
            sums = sums.plus(self.sums[k])
        return sums


def _describe(
    study: _Study, k: int, members: Sequence[Contribution], alone: Estimate | None, adds: Estimate | None
) -> PartnerContribution:
    own = study.statistics(study.sums[k])
    only: tuple[str, ...] = ()
    if own.classes and len(study.partners) > 1:
        rest = study.statistics(study.all.minus(study.sums[k]))
        seen = own.seen(SURE_DEVIATIONS) & ~rest.seen(SEEN_DEVIATIONS)
        only = tuple(name for name, one in zip(study.task.class_names, seen, strict=True) if one)
    rows_std = np.sqrt(own.classes) * own.count_sigma if own.classes else own.gram_sigma / own.bias**2
    return PartnerContribution(
        origin=members[0].origin,
        records=tuple(one.record_id for one in members),
        epsilons=tuple(one.summary.claim.epsilon for one in members),
        rows=own.rows,
        rows_std=float(rows_std),
        only_classes=only,
        alone=alone,
        adds=adds,
    )
