"""The cells of a row as ONNX nodes: `fusion.encoders.leaves`, step by step, with the very same arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from fusion.encoders.leaves import LeafRows
from fusion.encoders.tabular_graph import column_input
from fusion.partitions import ColumnCells, Partition
from fusion.task import CategoryColumn, spellings

if TYPE_CHECKING:
    from fusion.onnx_graph import Builder


def leaves(builder: Builder, encoder: LeafRows) -> tuple[list[onnx.ValueInfoProto], str]:
    """The inputs, and x [N, d] as `LeafRows.encode` makes it."""
    partitions = encoder.partitions
    fine = [_cell(builder, cells) for cells in partitions.cells]
    coarse: dict[int, str] = {}
    for column in sorted({column for part in partitions.parts if len(part.columns) > 1 for column in part.columns}):
        merged = builder.constant(partitions.cells[column].merged(), np.int64)
        coarse[column] = builder.node("Gather", merged, fine[column], axis=0)
    blocks = [_block(builder, part, fine, coarse) for part in partitions.parts]
    row = builder.node("Mul", builder.node("Concat", *blocks, axis=1), builder.constant(encoder.leaf_scale))
    first = builder.node("Cast", fine[0], to=TensorProto.DOUBLE)
    bias = builder.node("Add", builder.node("Mul", first, builder.constant(0.0)), builder.constant(encoder.bias))
    return [column_input(cells.column) for cells in partitions.cells], builder.node("Concat", row, bias, axis=1)


def _block(builder: Builder, part: Partition, fine: list[str], coarse: dict[int, str]) -> str:
    """[N, size]: 1 at the cell of the row."""
    index = fine[part.columns[0]]
    if len(part.columns) > 1:
        first, second = (coarse[column] for column in part.columns)
        index = builder.node("Add", builder.node("Mul", first, builder.constant(part.sides[1], np.int64)), second)
    hit = builder.node("Equal", index, builder.constant(np.arange(part.size)[None, :], np.int64))
    return builder.node("Cast", hit, to=TensorProto.DOUBLE)


def _cell(builder: Builder, cells: ColumnCells) -> str:
    """[N, 1] int64."""
    column = cells.column
    if isinstance(column, CategoryColumn):
        table = spellings(column)
        return builder.node(
            "LabelEncoder",
            column.name,
            domain="ai.onnx.ml",
            keys_strings=list(table),
            values_int64s=list(table.values()),
            default_int64=cells.size - 1,
        )
    wide = builder.node("Cast", column.name, to=TensorProto.DOUBLE)
    missing = builder.node("Or", builder.node("IsNaN", wide), builder.node("IsInf", wide))
    lower, upper = builder.constant(column.lower), builder.constant(column.upper)
    value = builder.node("Clip", builder.node("Where", missing, lower, wide), lower, upper)
    place = builder.node("Mul", builder.node("Sub", value, lower), builder.constant(cells.scale))
    known = builder.node("Min", builder.node("Floor", place), builder.constant(float(cells.bins - 1)))
    index = builder.node("Where", missing, builder.constant(float(cells.size - 1)), known)
    return builder.node("Cast", index, to=TensorProto.INT64)
