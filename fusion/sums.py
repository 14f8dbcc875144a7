"""Adding summaries: exact integer sums with the variance of their noise, the same bits in any order.

Adding happens in whole units of 2^-32, so a summary joins in one addition, and taking one out again is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.summaries import UNIT, Blocks
from fusion.summary import Summary

Floats = NDArray[np.float64]

WEIGHT_BITS = 20
FULL_WEIGHT = 1 << WEIGHT_BITS


@dataclass(frozen=True)
class Contribution:
    """One summary, the record that carried it and the key of the partner it comes from (32 bytes each).

    `weight`, in units of 2^-20, is what it counts for: FULL_WEIGHT unless `fusion.robust` says less.
    """

    record_id: bytes
    origin: bytes
    summary: Summary
    weight: int = FULL_WEIGHT

    @property
    def sums(self) -> Sums:
        """The integers of the summary, weighted."""
        sums = Sums.of(self.summary)
        return sums if self.weight == FULL_WEIGHT else sums.weighted(self.weight)


@dataclass(frozen=True)
class Sums:
    """Integer sums of summaries, split at the point: `whole` + `fraction` / 2^32. Neither part can overflow int64.

    `variances` holds 12 times the variance of each block's noise as Python integers, exact like the sums.
    """

    whole: Blocks
    fraction: Blocks
    variances: dict[str, int]

    @classmethod
    def of(cls, summary: Summary) -> Sums:
        values = summary.sums()
        # rounding to whole steps of s adds (s^2 - 1) / 12 to the variance
        variances = {name: 12 * summary.sigmas[name] ** 2 + summary.steps[name] ** 2 - 1 for name in values}
        whole = {name: block >> 32 for name, block in values.items()}
        fraction = {name: block & (UNIT - 1) for name, block in values.items()}
        return cls(whole, fraction, variances)

    def plus(self, other: Sums) -> Sums:
        return self._combined(other, 1)

    def minus(self, other: Sums) -> Sums:
        """What is left without `other`, which must be one of the summands."""
        return self._combined(other, -1)

    def weighted(self, weight: int) -> Sums:
        """These sums times `weight` / 2^20 with their noise, in whole units again, each rounded down; variances up."""
        low = FULL_WEIGHT - 1
        moved = {name: block * weight for name, block in self.whole.items()}  # below 2^51
        fraction = {
            name: ((moved[name] & low) << (32 - WEIGHT_BITS)) + (block * weight >> WEIGHT_BITS)
            for name, block in self.fraction.items()
        }
        variances = {name: -(-value * weight * weight >> 2 * WEIGHT_BITS) for name, value in self.variances.items()}
        return Sums({name: block >> WEIGHT_BITS for name, block in moved.items()}, fraction, variances)

    def _combined(self, other: Sums, sign: int) -> Sums:
        return Sums(
            {name: block + sign * other.whole[name] for name, block in self.whole.items()},
            {name: block + sign * other.fraction[name] for name, block in self.fraction.items()},
            {name: value + sign * other.variances[name] for name, value in self.variances.items()},
        )

    def values(self, block: str) -> Floats:
        """One block as float64 in units of 1, each entry rounded once."""
        values: Floats = np.multiply(self.fraction[block], 1.0 / UNIT, dtype=np.float64)
        values += self.whole[block]
        return values

    def sigma(self, block: str) -> float:
        """The standard deviation of the noise in every entry of a block, in units of 1."""
        return float(np.sqrt(self.variances[block] / 12)) / UNIT


class RunningSums:
    """A sum that summaries join and leave in place, each in one exact addition."""

    def __init__(self) -> None:
        self._sums: Sums | None = None

    def add(self, sums: Sums) -> None:
        """Take over or add `sums`, whose arrays then belong to this object."""
        if self._sums is None:
            self._sums = sums
        else:
            self._move(sums, 1)

    def take_out(self, sums: Sums) -> None:
        """Subtract `sums`, which must be one of the summands."""
        self._move(sums, -1)

    def now(self) -> Sums:
        """The sum so far, in arrays of its own; there must be a summand."""
        assert self._sums is not None  # noqa: S101 - callers know how many they added
        return Sums(
            {name: block.copy() for name, block in self._sums.whole.items()},
            {name: block.copy() for name, block in self._sums.fraction.items()},
            dict(self._sums.variances),
        )

    def _move(self, other: Sums, sign: int) -> None:
        assert self._sums is not None  # noqa: S101
        add = np.add if sign > 0 else np.subtract
        for ours, theirs in ((self._sums.whole, other.whole), (self._sums.fraction, other.fraction)):
            for name, block in ours.items():
                add(block, theirs[name], out=block)
        for name, variance in other.variances.items():
            self._sums.variances[name] += sign * variance


def total(contributions: Iterable[Contribution]) -> Sums:
    """The sum of one or more summaries."""
    running = RunningSums()
    for one in contributions:
        running.add(one.sums)
    return running.now()
