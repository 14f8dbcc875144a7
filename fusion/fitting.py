"""Fused sums -> fitted layers: what a kind of summary gives to the model, whatever it sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion.heads import HEADS, Cleaned, Layers
from fusion.selection import Quality, Selection, select
from fusion.task import Task

if TYPE_CHECKING:
    from fusion.fuse import Fused

SIGNIFICANT_DIGITS = 6  # of numbers in the manifest


@dataclass(frozen=True)
class Fitted:
    """A model without its papers: layers on the task's features, how they were made, and how good they may be.

    `method` holds the entries denoiser, head, multiplier, lambda, choice and unseen_classes of the manifest.
    """

    layers: Layers
    method: dict[str, Any]
    quality: Quality | None


def fit_moments(fused: Fused, head: str | None, seed: bytes) -> Fitted:
    """Denoise the second moments, choose head and lambda on left-out summaries, fit on all."""
    selection = select(fused, head, seed)
    cleaned = Cleaned.of(fused.statistics)
    candidate = selection.candidate
    layers = HEADS[candidate.head].fit(cleaned, candidate.multiplier, seed)
    return Fitted(layers, _method(cleaned, fused.task, selection), selection.quality)


def _method(cleaned: Cleaned, task: Task, selection: Selection) -> dict[str, Any]:
    candidate = selection.candidate
    return {
        "denoiser": "no" if cleaned.statistics.noiseless else "rotation-invariant",
        "head": candidate.head,
        "multiplier": candidate.multiplier,
        "lambda": rounded(cleaned.ridge(candidate.multiplier)) if HEADS[candidate.head].has_lambda else None,
        "choice": selection.reason,
        "unseen_classes": [name for name, seen in zip(task.class_names, cleaned.seen, strict=False) if not seen],
    }


def rounded(value: float) -> float:
    """As numbers stand in the manifest."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
