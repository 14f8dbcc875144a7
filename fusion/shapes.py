"""The shapes and first weights of the small head that summary kind `model` trains: public, fixed by the task.

A layer's weights are one matrix (inputs, outputs). A row's last feature is the public bias, so the first layer needs no
bias of its own; a hidden layer hands on a constant 1 beside its units, so the last row of the next matrix is its bias.

Without first weights in the task a linear head starts at zero. A hidden layer starts uniform (K. He et al., "Delving
deep into rectifiers", 2015, scaled for inputs of length 1 to hidden rows of length 1), drawn from SHAKE-256 of the
task's seed: the same everywhere, whatever the version of a library. What follows it starts at zero.
"""

from __future__ import annotations

import base64
import hashlib
import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.errors import ModelError, TaskError
from fusion.task import ModelSettings, Task, dimension

if TYPE_CHECKING:
    from fusion.artifact import Model

Floats = NDArray[np.float64]
Weights = tuple[Floats, ...]
Shapes = tuple[tuple[int, int], ...]

MAX_WEIGHT = 127.0  # weights are kept within: no head of use needs more, and whole numbers stay small
_SEED_PERSON = b"tidings-first-weights-1"


def settings_of(task: Task) -> ModelSettings:
    """The task's settings; TaskError for a task of another summary kind."""
    if task.model is None:
        raise TaskError('this task trains no model; its summary kind is not "model"')
    return task.model


def head_shapes(task: Task) -> Shapes:
    """Of the head that is sent, and of the fused one."""
    return _shapes(task, settings_of(task).hidden)


def trained_shapes(task: Task) -> Shapes:
    """Of what is trained on private rows: the head itself, or its larger teacher."""
    settings = settings_of(task)
    return _shapes(task, settings.hidden if settings.teacher_hidden is None else settings.teacher_hidden)


def _shapes(task: Task, hidden: tuple[int, ...]) -> Shapes:
    widths = (dimension(task), *hidden, len(task.label.classes))
    return tuple((inputs + (layer > 0), outputs) for layer, (inputs, outputs) in enumerate(pairwise(widths)))


def initial_weights(task: Task) -> Weights:
    """Where training starts; TaskError for weights in the task that do not fit it."""
    settings, shapes = settings_of(task), trained_shapes(task)
    if not settings.initial:
        return fresh_weights(settings.seed, shapes)
    if settings.teacher_hidden is not None:
        raise TaskError("are those of the head itself; leave teacher_hidden out")
    try:
        values = np.frombuffer(base64.b64decode(settings.initial, validate=True), dtype="<f4").astype(np.float64)
    except ValueError:
        raise TaskError("are not float32 values in base64; name a model file by initial_file instead") from None
    if len(values) != sum(rows * columns for rows, columns in shapes):
        raise TaskError("are not as many as this head has; they must come from a model of the same shape")
    if not (np.abs(values) <= MAX_WEIGHT).all():
        raise TaskError(f"must be finite and at most {MAX_WEIGHT:g} in magnitude")
    return split(values, shapes)


def fresh_weights(seed: int, shapes: Shapes) -> Weights:
    """A hidden layer drawn from `seed`, then zeros."""
    return (*(_drawn(seed, shape) for shape in shapes[:-1]), np.zeros(shapes[-1]))


def split(flat: NDArray[np.floating] | NDArray[np.int64], shapes: Shapes) -> Weights:
    """A flat vector as matrices of these shapes, in float64."""
    pieces, start = [], 0
    for rows, columns in shapes:
        pieces.append(flat[start : start + rows * columns].reshape(rows, columns).astype(np.float64))
        start += rows * columns
    return tuple(pieces)


def inline_weights(model: Model) -> str:
    """The weights of a fused model as `ModelSettings.initial`: biases folded into the rows that stand for them."""
    bias, parts = model.encoder.bias, []
    for position, layer in enumerate(model.layers):
        if position == 0:
            weight = layer.weight.copy()
            weight[-1] += layer.bias / bias
        else:
            weight = np.vstack([layer.weight, layer.bias])
        parts.append(weight.astype("<f4").reshape(-1))
    flat = np.concatenate(parts)
    if not (np.abs(flat) <= MAX_WEIGHT).all():
        raise ModelError(f"this model has weights over {MAX_WEIGHT:g}; it cannot seed another task")
    return base64.b64encode(flat.tobytes()).decode("ascii")


def _drawn(seed: int, shape: tuple[int, int]) -> Floats:
    """Uniform within +-sqrt(6 / units): units of a row of length 1 then have variance 2 / units before the ReLU."""
    digest = hashlib.shake_256(_SEED_PERSON + seed.to_bytes(8, "big")).digest(4 * shape[0] * shape[1])
    unit = np.frombuffer(digest, dtype=">u4").astype(np.float64) / 2**31 - 1.0
    return np.asarray(math.sqrt(6.0 / shape[1]) * unit.reshape(shape))
