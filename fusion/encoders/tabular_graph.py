"""The encoding of numbers and categories as ONNX nodes: `fusion.encoders.tabular`, step by step.

Inputs are one per column of the task: numbers are float32 [N, 1] with NaN for missing; categories are strings
[N, 1], and any text that is not one of the column's spellings, the empty one included, counts as missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from fusion.encoders.tabular import Block, NumberBlock, TabularRows
from fusion.task import CategoryColumn, NumberColumn, Task, spellings, tabular_columns

if TYPE_CHECKING:
    from fusion.onnx_graph import Builder


def features(builder: Builder, encoder: TabularRows, task: Task) -> tuple[list[onnx.ValueInfoProto], str]:
    """The inputs, and x [N, d] as `TabularRows.encode` makes it."""
    columns = tabular_columns(task)
    parts = [_block(builder, block, column) for block, column in zip(encoder.blocks, columns, strict=True)]
    row = builder.node("Concat", *parts, axis=1)
    squares = builder.node("ReduceSumSquare", row, axes=[1], keepdims=1)
    radius = builder.node("Max", builder.node("Sqrt", squares), builder.constant(encoder.clip_norm))
    scale = builder.node("Div", builder.constant(encoder.feature_scale), radius)
    zeros = builder.node("Mul", radius, builder.constant(0.0))
    bias = builder.node("Add", zeros, builder.constant(encoder.bias))
    x = builder.node("Concat", builder.node("Mul", row, scale), bias, axis=1)
    return [column_input(column) for column in columns], x


def column_input(column: NumberColumn | CategoryColumn) -> onnx.ValueInfoProto:
    """The input of one column, [N, 1]."""
    kind = TensorProto.FLOAT if isinstance(column, NumberColumn) else TensorProto.STRING
    return helper.make_tensor_value_info(column.name, kind, ["N", 1])


def _block(builder: Builder, block: Block, column: NumberColumn | CategoryColumn) -> str:
    if isinstance(block, NumberBlock):
        return _number(builder, block)
    assert isinstance(column, CategoryColumn)  # noqa: S101 - the encoder has one block per column, of its kind
    return _category(builder, block, spellings(column))


def _number(builder: Builder, block: NumberBlock) -> str:
    """Weights max(0, 1 - |place - corner|) of the simplex corners, and the missing indicator."""
    corners = len(block.points)
    wide = builder.node("Cast", block.name, to=TensorProto.DOUBLE)
    missing = builder.node("Or", builder.node("IsNaN", wide), builder.node("IsInf", wide))
    lower, upper = builder.constant(block.lower), builder.constant(block.upper)
    value = builder.node("Clip", builder.node("Where", missing, lower, wide), lower, upper)
    steps = builder.constant((corners - 1) / (block.upper - block.lower))
    place = builder.node("Mul", builder.node("Sub", value, lower), steps)
    distance = builder.node("Abs", builder.node("Sub", place, builder.constant(np.arange(corners)[None, :])))
    weights = builder.node("Relu", builder.node("Sub", builder.constant(1.0), distance))
    walked = builder.node("MatMul", weights, builder.constant(block.points))
    present = builder.node("Where", missing, builder.constant(0.0), walked)
    return builder.node("Concat", present, builder.node("Cast", missing, to=TensorProto.DOUBLE), axis=1)


def _category(builder: Builder, block: Block, table: dict[str, int]) -> str:
    """The row of the value: its corner and 0; the last row, for anything unknown: zeros and 1."""
    corners = len(block.points)
    rows = np.zeros((corners + 1, corners))
    rows[:-1, :-1] = block.points
    rows[-1, -1] = 1.0
    flat = builder.node("Reshape", block.name, builder.constant([-1], np.int64))
    index = builder.node(
        "LabelEncoder",
        flat,
        domain="ai.onnx.ml",
        keys_strings=list(table),
        values_int64s=list(table.values()),
        default_int64=corners,
    )
    return builder.node("Gather", builder.constant(rows), index, axis=0)
