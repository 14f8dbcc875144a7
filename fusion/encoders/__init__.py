"""Encoders: rows -> feature vectors x with ||x|| <= 1, by public constants alone; one file per kind.

Every encoder keeps three promises that the rest of `fusion` builds on:

* ||x|| <= 1 for any row whatsoever (`fusion.summaries.moments.quantize` checks it once more, in integers);
* the last coordinate of x is the public bias beta, so that sums of x hold the number of rows;
* x is the same to the last bit whatever rows are around it, in whatever batch: only then do sums of any split of the
  data agree, and only then can one record more not move the others.

No encoder reads data to set a constant, and none ever will: no fitted means, scales or vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fusion.errors import TaskError
from fusion.task import Task

if TYPE_CHECKING:
    from fusion.dataset import Batch

Floats = NDArray[np.float64]


class Encoder(Protocol):
    """What every encoder offers."""

    @property
    def dimension(self) -> int:
        """d: the coordinates of x, bias included; what `fusion.task.dimension` says of the task."""

    @property
    def bias(self) -> float:
        """beta, the last coordinate of every x."""

    def encode(self, batch: Batch) -> Floats:
        """(n, d): one x per row."""


def encoder_for(task: Task) -> Encoder:
    """The encoder that the task fixes; what it needs (constants, a backbone) is loaded here, once per call."""
    if task.encoder.kind not in _ENCODERS:
        raise TaskError(f'encoder kind "{task.encoder.kind}" is not known to this version; update the node')
    return _ENCODERS[task.encoder.kind](task)


def _tabular(task: Task) -> Encoder:
    from fusion.encoders.leaves import LeafRows
    from fusion.encoders.lift import LiftedRows
    from fusion.encoders.tabular import TabularRows

    if task.histograms is not None:
        return LeafRows.of(task)
    lift = getattr(task.encoder, "lift", None)
    return TabularRows.of(task) if lift is None else LiftedRows.of(task, lift)


def _text(task: Task) -> Encoder:
    from fusion.encoders.text import TextRows

    return TextRows.of(task)


def _onnx(task: Task) -> Encoder:
    from fusion.encoders.backbone import BackboneRows

    return BackboneRows.of(task)


def _image(task: Task) -> Encoder:
    from fusion.encoders.image import ImageRows

    return ImageRows.of(task)


_ENCODERS: dict[str, Callable[[Task], Encoder]] = {"tabular": _tabular, "image": _image, "text": _text, "onnx": _onnx}
