"""Adding summaries: exact integer sums with the variance of their noise, the same bits in any order.

Adding happens in whole units of 2^-32, so a summary joins in one addition, and taking one out again is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.summaries import UNIT, Blocks
from fusion.summary import Summary

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contribution:
    """One summary, the record that carried it and the key of the partner it comes from (32 bytes each)."""

    record_id: bytes
    origin: bytes
    summary: Summary


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

    def _combined(self, other: Sums, sign: int) -> Sums:
        return Sums(
            {name: block + sign * other.whole[name] for name, block in self.whole.items()},
            {name: block + sign * other.fraction[name] for name, block in self.fraction.items()},
            {name: value + sign * other.variances[name] for name, value in self.variances.items()},
        )

    def values(self, block: str) -> Floats:
        """One block as float64 in units of 1, each entry rounded once."""
        return np.asarray(self.whole[block] + self.fraction[block] / UNIT)

    def sigma(self, block: str) -> float:
        """The standard deviation of the noise in every entry of a block, in units of 1."""
        return float(np.sqrt(self.variances[block] / 12)) / UNIT


def total(contributions: Sequence[Contribution]) -> Sums:
    """The sum of one or more summaries."""
    sums = Sums.of(contributions[0].summary)
    for one in contributions[1:]:
        sums = sums.plus(Sums.of(one.summary))
    return sums
