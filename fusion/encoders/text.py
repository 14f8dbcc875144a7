"""Rows of one text -> feature vectors, by a frozen public sentence model and public constants.

    v = all-MiniLM-L6-v2(text), ||v|| = 1          (fusion.encoders.minilm)
    z = (v - mean), damped along public topics, with the lens "opinion" stretched along a public direction
    x = [sqrt(1 - beta^2) z / ||z|| ; 0 ; beta]

The mean of public sentences is taken out because all sentence vectors share it: it would spend the unit of norm that
privacy grants to a row and say nothing. Topics are the directions in which single words differ most; damping them
leaves more of the norm to what is said of a topic. The lens "opinion" doubles the direction in which public sentences
for and against something differ, for tasks about opinions: public knowledge of what to look for, which the noise of a
small release would hide. All constants lie in one file of 200 kB, made from public text by `benchmarks.text_constants`
and fixed by its hash in the task; none depends on anybody's data.

A missing text has the coordinate before the bias for itself: x = [0 ; sqrt(1 - beta^2) ; beta].

Sentences go through the model one at a time, and so do their vectors through the constants: the x of a row never
depends on the rows around it. The model takes about 10 ms for a sentence of 20 words.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.encoders.minilm import Minilm, Singles, one_thread
from fusion.errors import BackboneError
from fusion.task import TEXT_CONSTANTS_SHA256, TEXT_WIDTH, Task, TextEncoder

if TYPE_CHECKING:
    from fusion.dataset import Batch

Floats = NDArray[np.float64]

CONSTANTS_FILE = Path(__file__).parent / "text_constants.safetensors"
STRETCH = 2.0  # of the lens: a larger one trusts the public direction more and the data less
MIN_LENGTH = 1e-9  # of z: below it, nothing but rounding is left


@dataclass(frozen=True)
class Lens:
    """z -> z + sum_i (factor_i - 1) (axis_i . z) axis_i, step by step: the linear part of the encoding."""

    mean: Floats  # (384,)
    steps: tuple[tuple[Floats, Floats], ...]  # axes (k, 384) of length 1, and factors - 1 (k,)

    @classmethod
    def of(cls, settings: TextEncoder) -> Lens:
        """The constants of the task, from this installation; BackboneError if they are not the pinned ones."""
        from safetensors.numpy import load

        try:
            data = CONSTANTS_FILE.read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != TEXT_CONSTANTS_SHA256:
            raise BackboneError(f"{CONSTANTS_FILE} is not the file that this version needs; install the software again")
        tensors = {name: values.astype(np.float64) for name, values in load(data).items()}
        steps = [(tensors["topics"], tensors["damping"] - 1.0)]
        if settings.lens == "opinion":
            steps.append((tensors["opinion"][None, :], np.array([STRETCH - 1.0])))
        return cls(tensors["mean"], tuple(steps))

    def through(self, v: Singles) -> Floats:
        """(384,) z / ||z|| of one sentence vector; zeros where nothing is left of it."""
        z = v.astype(np.float64) - self.mean
        for axes, factors in self.steps:
            z = z + ((axes @ z) * factors) @ axes
        length = math.sqrt(float(np.sum(z * z)))
        made: Floats = z / length if length > MIN_LENGTH else np.zeros_like(z)
        return made


@dataclass(frozen=True)
class TextRows:
    """The encoder of a task: its column, its model and its constants."""

    column: str
    bias: float
    lens: Lens
    model: Minilm

    @classmethod
    def of(cls, task: Task) -> TextRows:
        """The encoder of `task`; BackboneError where the model is not installed."""
        settings = task.encoder
        assert isinstance(settings, TextEncoder)  # noqa: S101 - the registry calls it for this kind alone
        return cls(task.columns[0].name, settings.bias, Lens.of(settings), Minilm.load())

    @property
    def dimension(self) -> int:
        """d: the sentence vector, the coordinate of a missing text, the bias."""
        return TEXT_WIDTH + 2

    def encode(self, batch: Batch) -> Floats:
        """(n, d): one x per row, of norm at most 1 (up to rounding)."""
        scale = math.sqrt(1.0 - self.bias * self.bias)
        x = np.zeros((len(batch), self.dimension))
        x[:, -1] = self.bias
        with one_thread():
            for row, text in zip(x, batch.texts[self.column], strict=True):
                if text:
                    row[:TEXT_WIDTH] = self.lens.through(self.model.vector(text)) * scale
                else:
                    row[TEXT_WIDTH] = scale
        return x

    def vectors(self, batch: Batch) -> Singles:
        """(n, 384): the sentence vectors of the rows, zeros where the text is missing; what an .onnx model takes."""
        v = np.zeros((len(batch), TEXT_WIDTH), dtype=np.float32)
        with one_thread():
            for row, text in zip(v, batch.texts[self.column], strict=True):
                if text:
                    row[:] = self.model.vector(text)
        return v
