"""The last step of `fusion.encoders.backbone` as ONNX nodes: from the backbone's output to x.

The model file holds no backbone: its one input is what the backbone makes of the rows, float32 [N, features], and its
card names the backbone by hash (docs/adr/0007).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from fusion.task import OnnxEncoder

if TYPE_CHECKING:
    from fusion.onnx_graph import Builder

INPUT = "features"


def features(builder: Builder, settings: OnnxEncoder) -> tuple[list[onnx.ValueInfoProto], str]:
    """The input, and x [N, d] as `unit_rows` makes it."""
    wide = builder.node("Cast", INPUT, to=TensorProto.DOUBLE)
    squares = builder.node("ReduceSumSquare", wide, axes=[1], keepdims=1)
    length = builder.node("Sqrt", squares)
    is_zero = builder.node("Equal", squares, builder.constant(0.0))
    divisor = builder.node("Where", is_zero, builder.constant(1.0), length)
    scale = builder.node("Div", builder.constant(math.sqrt(1.0 - settings.bias * settings.bias)), divisor)
    zeros = builder.node("Mul", divisor, builder.constant(0.0))
    bias = builder.node("Add", zeros, builder.constant(settings.bias))
    x = builder.node("Concat", builder.node("Mul", wide, scale), bias, axis=1)
    return [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", settings.features])], x
