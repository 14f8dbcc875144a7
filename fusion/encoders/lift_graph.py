"""The lift as ONNX nodes: `fusion.encoders.lift`, step by step, from the encoded row on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fusion.encoders.lift import ROW_UNITS, TURN_UNITS, LiftedRows

if TYPE_CHECKING:
    from fusion.onnx_graph import Builder


def lifted(builder: Builder, encoder: LiftedRows, u: str) -> str:
    """x [N, d] as `LiftedRows.encode` makes it, from u [N, d'] with its bias of 0 as last coordinate."""
    whole = builder.node("Round", builder.node("Mul", u, builder.constant(float(ROW_UNITS))))
    # the row's own bias of 0 comes last and meets a row of zeros
    weights = np.vstack([encoder.weights, np.zeros((1, encoder.weights.shape[1]))])
    units = builder.node("MatMul", whole, builder.constant(weights))
    turns = builder.node("Mul", units, builder.constant(1.0 / (ROW_UNITS * TURN_UNITS)))
    quarter = builder.node("Add", turns, builder.constant(0.25))
    both = builder.node("Concat", _sine(builder, quarter), _sine(builder, turns), axis=1)
    features = builder.node("Mul", both, builder.constant(encoder.feature_scale))
    first = builder.node("Slice", u, *(builder.constant([n], np.int64) for n in (0, 1, 1)))
    bias = builder.node("Add", builder.node("Mul", first, builder.constant(0.0)), builder.constant(encoder.bias))
    return builder.node("Concat", features, bias, axis=1)


def _sine(builder: Builder, turns: str) -> str:
    whole = builder.node("Floor", builder.node("Add", turns, builder.constant(0.5)))
    rest = builder.node("Sub", turns, whole)
    return builder.node("Sin", builder.node("Mul", rest, builder.constant(2.0 * np.pi)))
