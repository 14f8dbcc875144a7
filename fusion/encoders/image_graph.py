"""The encoding of pictures as ONNX nodes: `fusion.encoders.image`, step by step.

The one input is the picture, uint8 [N, height, width, channels]. Convolutions run in float32 and all else in float64;
everything that is exact there is exact here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from fusion.encoders.image import (
    AREA_UNITS,
    COARSE,
    DIRECTIONS,
    FINE,
    FREQUENCIES,
    HALF,
    LUMA,
    MAPS,
    SIDE,
    SMALLEST_NORM,
    WHITE,
    ImageRows,
    Window,
    area_sampling,
)

if TYPE_CHECKING:
    from fusion.onnx_graph import Builder


def features(builder: Builder, encoder: ImageRows) -> tuple[list[onnx.ValueInfoProto], str]:
    """The input, and x [N, d] as `ImageRows.encode` makes it."""
    column = encoder.column
    shape: list[str | int | None] = ["N", column.height, column.width, column.channels]
    image = helper.make_tensor_value_info(column.name, TensorProto.UINT8, shape)
    frequencies = _scattering(builder, encoder, _small_grey(builder, encoder))  # [N, 81, 49]
    parts = []
    for frequency, places, directions in encoder.projections:
        maps = builder.node("Gather", frequencies, builder.constant(frequency, np.int64), axis=2)
        centered = builder.node("Sub", maps, builder.constant(encoder.constants.mean[frequency]))
        product = builder.node("MatMul", centered, builder.constant(directions.T))
        parts.append(builder.node("Mul", product, builder.constant(encoder.constants.scale[places])))
    order = np.argsort(np.concatenate([places for _frequency, places, _directions in encoder.projections]))
    z = builder.node("Gather", builder.node("Concat", *parts, axis=1), builder.constant(order, np.int64), axis=1)
    norm = builder.node("Sqrt", builder.node("ReduceSumSquare", z, axes=[1], keepdims=1))
    unit = builder.node("Div", z, builder.node("Max", norm, builder.constant(SMALLEST_NORM)))
    scaled = builder.node("Mul", unit, builder.constant(encoder.feature_scale))
    zeros = builder.node("Mul", norm, builder.constant(0.0))
    bias = builder.node("Add", zeros, builder.constant(encoder.bias))
    return [image], builder.node("Concat", scaled, bias, axis=1)


def _small_grey(builder: Builder, encoder: ImageRows) -> str:
    """[N, 28, 28] whole numbers 0 ... 255."""
    column = encoder.column
    wide = builder.node("Cast", column.name, to=TensorProto.DOUBLE)
    if column.channels == 3:
        luma = builder.node("MatMul", wide, builder.constant(np.array(LUMA)[:, None]))
        rounded = builder.node("Add", luma, builder.constant(128.0))
        wide = builder.node("Floor", builder.node("Mul", rounded, builder.constant(1.0 / 256.0)))
    picture = _reshaped(builder, wide, -1, column.height, column.width)
    if (column.height, column.width) == (SIDE, SIDE):
        return picture
    rows = builder.node("MatMul", builder.constant(area_sampling(column.height)), picture)
    sums = builder.node("MatMul", rows, builder.constant(area_sampling(column.width).T))
    return _rounded(builder, sums, AREA_UNITS**-2.0)


def _scattering(builder: Builder, encoder: ImageRows, picture: str) -> str:
    """[N, 81, 49]: the maps, rooted, at all frequencies."""
    by = encoder.constants
    channel = _reshaped(builder, picture, -1, 1, SIDE, SIDE)
    halving, half = builder.constant(by.low_halving), builder.constant(by.low_half)
    moduli = _moduli(builder, channel, by.fine, FINE, 2.0**-8)
    first = _rounded(builder, builder.node("MatMul", moduli, halving), 2.0**-16)  # [N, 8, 196]
    second = _moduli(builder, _reshaped(builder, first, -1, 1, HALF, HALF), by.fine, FINE, 2.0**-12)  # [8 N, 8, 196]
    pixels = builder.node("Mul", _reshaped(builder, picture, -1, 1, SIDE * SIDE), builder.constant(WHITE / 255.0))
    maps = [
        builder.node("MatMul", pixels, builder.constant(by.low_pixels)),
        builder.node("MatMul", first, half),
        builder.node("MatMul", _moduli(builder, channel, by.coarse, COARSE, 2.0**-12), half),
        _reshaped(builder, builder.node("MatMul", second, half), -1, DIRECTIONS**2, FREQUENCIES),
    ]
    joined = builder.node("Concat", *maps, axis=1)
    roots = builder.node("Round", builder.node("Sqrt", joined))
    return _reshaped(builder, builder.node("MatMul", roots, builder.constant(by.cosines)), -1, MAPS, FREQUENCIES)


def _moduli(builder: Builder, maps: str, taps: NDArray[np.float32], window: Window, unit: float) -> str:
    """[N, 8, positions] from [N, 1, side, side]."""
    kernels = taps.T.reshape(2 * DIRECTIONS, 1, window.size, window.size)
    narrow = builder.node("Cast", maps, to=TensorProto.FLOAT)
    waves = builder.node(
        "Conv",
        narrow,
        builder.constant(kernels, np.float32),
        kernel_shape=[window.size] * 2,
        pads=[window.border] * 4,
        strides=[window.stride] * 2,
    )
    wide = builder.node("Cast", waves, to=TensorProto.DOUBLE)
    squares = builder.node("Mul", wide, wide)
    split = _reshaped(builder, squares, 0, 2, DIRECTIONS, -1)
    return _rounded(
        builder,
        builder.node("Sqrt", builder.node("ReduceSum", split, builder.constant([1], np.int64), keepdims=0)),
        unit,
    )


def _rounded(builder: Builder, values: str, unit: float) -> str:
    return builder.node("Round", builder.node("Mul", values, builder.constant(unit)))


def _reshaped(builder: Builder, values: str, *shape: int) -> str:
    return builder.node("Reshape", values, builder.constant(shape, np.int64))
