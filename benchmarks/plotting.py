"""What the pictures of the results have in common; matplotlib is an extra (`plot`), without it there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files; None where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


@dataclass(frozen=True)
class Series:
    """How one method looks in every picture."""

    label: str
    color: str
    marker: str

    def line(self, axis: Any, places: Sequence[Any], scores: Sequence[Sequence[float]]) -> None:
        """Means in percent with the standard deviation over draws as bars."""
        spread = [100 * stdev(one) if len(one) > 1 else 0.0 for one in scores]
        means = [100 * fmean(one) for one in scores]
        axis.errorbar(
            places, means, spread, color=self.color, marker=self.marker, label=self.label, capsize=3, linewidth=1.4
        )
