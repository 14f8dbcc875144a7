"""Rows -> feature vectors by a frozen public backbone: any ONNX file, named by its hash.

    v = backbone(row)        x = [sqrt(1 - beta^2) v / ||v|| ; beta]

The row is one picture, enlarged and scaled by the task's public constants, or the task's numbers, scaled by their
bounds to [-1, 1] with 0 for a missing one. The backbone is never trained or changed here: what it learned, it learned
from public data, before. A public centering or projection belongs inside its graph (docs/encoders.md says how), where
the hash covers it. A zero output, or one that is not finite, leaves the bias alone: no row can stop a release.

Rows go through one at a time, always from the same place in memory: matrix products may round differently with the
size of a batch, and a row's x must not depend on the rows around it. ONNX Runtime uses the CPU, one thread, and fixed
kernels for fixed shapes; other processors and other versions of it may round differently, which moves x by about 1e-6
and no claim of privacy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusion import backbones
from fusion.errors import BackboneError
from fusion.task import NumberColumn, OnnxEncoder, Task

if TYPE_CHECKING:
    from fusion.dataset import Batch

Floats = NDArray[np.float64]

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
_PROBE_SEED = 7


@dataclass(frozen=True)
class Backbone:
    """An open backbone: float32 in of one fixed shape, `features` float32 out."""

    session: Any  # onnxruntime.InferenceSession
    input_name: str
    output_name: str
    buffer: NDArray[np.float32]

    def run(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """(features,) for one row in the shape of the buffer."""
        np.copyto(self.buffer, row)
        (values,) = self.session.run([self.output_name], {self.input_name: self.buffer})
        return np.asarray(values, dtype=np.float32).reshape(-1)


def open_backbone(data: bytes, settings: OnnxEncoder, shape: tuple[int, ...]) -> Backbone:
    """The backbone in `data`, whose hash was checked; BackboneError unless it is plain, and answers public probes with
    finite numbers, twice the same."""
    from fusion import onnx_runtime
    from fusion.encoders.backbone_checks import checked_graph

    fixed, output, name = checked_graph(data, settings, shape)
    onnxruntime = onnx_runtime.load()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(fixed, options, providers=["CPUExecutionProvider"])
        backbone = Backbone(session, name, output, _aligned(shape))
        for probe in _probes(shape):
            first, again = backbone.run(probe), backbone.run(probe)
            if first.shape != (settings.features,) or not np.isfinite(first).all() or not np.array_equal(first, again):
                raise BackboneError(
                    "this backbone cannot be taken: of a plain input it makes numbers that are not finite, "
                    "or not the same twice"
                )
    except BackboneError:
        raise
    except Exception as error:  # noqa: BLE001 - the runtime's own errors share no base
        raise BackboneError(
            f"this backbone cannot be taken: ONNX Runtime does not run it ({type(error).__name__})"
        ) from None
    return backbone


def _probes(shape: tuple[int, ...]) -> list[NDArray[np.float32]]:
    """Public inputs: all 0, all 1, and noise from a fixed seed."""
    noise = np.random.default_rng(_PROBE_SEED).uniform(-1.0, 1.0, shape)
    return [one.astype(np.float32) for one in (np.zeros(shape), np.ones(shape), noise)]


def _aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array that begins at a multiple of 64 bytes: kernels may treat the first few values otherwise."""
    size = 4 * int(np.prod(shape))
    raw = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


@dataclass(frozen=True)
class BackboneRows:
    """The encoder of a task: how its columns enter the backbone, and what becomes of the output."""

    settings: OnnxEncoder
    columns: tuple[Any, ...]  # one ImageColumn, or NumberColumns
    backbone: Backbone

    @classmethod
    def of(cls, task: Task) -> BackboneRows:
        """The encoder of `task`; BackboneError if its backbone is not on this machine, or must not be run."""
        settings = task.encoder
        assert isinstance(settings, OnnxEncoder)  # noqa: S101 - the registry calls it for this kind alone
        data = backbones.load(settings)
        return cls(settings, task.columns, open_backbone(data, settings, settings.input_shape(task.columns)))

    @property
    def dimension(self) -> int:
        """d: the backbone's features and the bias."""
        return 1 + self.settings.features

    @property
    def bias(self) -> float:
        """beta."""
        return self.settings.bias

    def encode(self, batch: Batch) -> Floats:
        """(n, d): one x per row, finite and of norm at most 1 (up to rounding)."""
        return unit_rows(self.outputs(batch), self.bias)

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """(n, features): what the backbone makes of each row; zeros where that is not finite."""
        rows = self._inputs(batch)
        made = np.zeros((len(batch), self.settings.features), dtype=np.float32)
        for i in range(len(batch)):
            values = self.backbone.run(rows(i))
            if np.isfinite(values).all():
                made[i] = values
        return made

    def _inputs(self, batch: Batch) -> Callable[[int], NDArray[np.float32]]:
        """A function from the number of a row to its input."""
        picture = self.settings.picture
        if picture is None:
            numbers = scaled_numbers(batch, self.columns)
            return lambda i: numbers[i : i + 1]
        pixels = batch.images[self.columns[0].name]
        rows, columns = (
            enlarging(*sides) for sides in zip(pixels.shape[1:3], (picture.height, picture.width), strict=True)
        )
        mean, std = np.asarray(picture.mean), np.asarray(picture.std)

        def one(i: int) -> NDArray[np.float32]:
            large = enlarge(pixels[i], rows, columns)
            # A grey picture spreads over the channels here.
            scaled: NDArray[np.float32] = ((large / 255.0 - mean) / std).astype(np.float32)
            return scaled[None] if picture.layout == "NHWC" else scaled.transpose(2, 0, 1)[None]

        return one


def unit_rows(values: NDArray[np.float32], bias: float) -> Floats:
    """x of each row of outputs: its direction, beside the bias; element by element, see the module."""
    wide = values.astype(np.float64)
    squares = np.zeros(len(wide))
    for column in wide.T:
        squares += column * column
    length = np.sqrt(squares)
    scale = np.sqrt(1.0 - bias * bias) / np.where(length > 0.0, length, 1.0)
    return np.concatenate([wide * scale[:, None], np.full((len(wide), 1), bias)], axis=1)


def scaled_numbers(batch: Batch, columns: tuple[NumberColumn, ...]) -> NDArray[np.float32]:
    """(n, columns): each number from its bounds to [-1, 1], what lies outside clipped, 0 where missing."""
    scaled = np.zeros((len(batch), len(columns)), dtype=np.float32)
    for j, column in enumerate(columns):
        value = np.clip(batch.numbers[column.name], column.lower, column.upper)
        place = (value - column.lower) * (2.0 / (column.upper - column.lower)) - 1.0
        scaled[:, j] = np.where(np.isnan(place), 0.0, place)
    return scaled


Enlarging = tuple[NDArray[np.int64], NDArray[np.int64], Floats]


def enlarging(side: int, to: int) -> Enlarging:
    """For each of `to` pixels: the two old ones around its center, and the share of the second (half-pixel centers, as
    ONNX Resize and torch with align_corners=False; edges repeat)."""
    place = np.clip((np.arange(to) + 0.5) * (side / to) - 0.5, 0.0, side - 1.0)
    first = np.floor(place).astype(np.int64)
    return first, np.minimum(first + 1, side - 1), place - first


def enlarge(pixels: NDArray[np.uint8], rows: Enlarging, columns: Enlarging) -> Floats:
    """(height, width, channels) by bilinear interpolation, element by element."""
    top, bottom, down = rows
    left, right, across = columns
    tall = pixels[top] * (1.0 - down)[:, None, None] + pixels[bottom] * down[:, None, None]
    wide: Floats = tall[:, left] * (1.0 - across)[:, None] + tall[:, right] * across[:, None]
    return wide
