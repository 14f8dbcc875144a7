"""The last steps of `fusion.encoders.text` as ONNX nodes: from sentence vectors to x.

The model file holds no sentence model: its one input is what that makes of the texts, float32 [N, 384] of length 1 as
the published model gives it, zeros where the text is missing; the task in its manifest names the weights by hash
(docs/adr/0007). Centering and lens are in the graph, as the public constants that they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from fusion.encoders.text import MIN_LENGTH, Lens
from fusion.task import TEXT_WIDTH, TextEncoder

if TYPE_CHECKING:
    from fusion.onnx_graph import Builder

INPUT = "sentence"


def features(builder: Builder, settings: TextEncoder) -> tuple[list[onnx.ValueInfoProto], str]:
    """The input, and x [N, d] as `TextRows.encode` makes it."""
    lens = Lens.of(settings)
    wide = builder.node("Cast", INPUT, to=TensorProto.DOUBLE)
    missing = builder.node("Equal", _length(builder, wide), builder.constant(0.0))
    z = builder.node("Sub", wide, builder.constant(lens.mean[None, :]))
    for axes, factors in lens.steps:
        places = builder.node("MatMul", z, builder.constant(axes.T))
        change = builder.node("MatMul", builder.node("Mul", places, builder.constant(factors)), builder.constant(axes))
        z = builder.node("Add", z, change)
    length = _length(builder, z)
    is_empty = builder.node("Or", missing, builder.node("Not", builder.node("Greater", length, _least(builder))))
    zero, scale = builder.constant(0.0), builder.constant(math.sqrt(1.0 - settings.bias * settings.bias))
    unit = builder.node("Mul", builder.node("Div", z, builder.node("Max", length, _least(builder))), scale)
    said = builder.node("Where", is_empty, zero, unit)
    absent = builder.node("Mul", builder.node("Cast", missing, to=TensorProto.DOUBLE), scale)
    bias = builder.node("Add", builder.node("Mul", absent, zero), builder.constant(settings.bias))
    x = builder.node("Concat", said, absent, bias, axis=1)
    return [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", TEXT_WIDTH])], x


def _length(builder: Builder, rows: str) -> str:
    """[N, 1]"""
    return builder.node("Sqrt", builder.node("ReduceSumSquare", rows, axes=[1], keepdims=1))


def _least(builder: Builder) -> str:
    return builder.constant(MIN_LENGTH)
