"""The model as one ONNX graph: raw named columns in, class probabilities (or a number) out.

Inputs are the columns of the task, as its encoder takes them (`fusion.encoders.tabular_graph` and its neighbors); for
the encoders `onnx` and `text` the output of the backbone, which is no part of this graph.
Outputs are `label` (string [N]) and `probabilities` (float32 [N, C], classes in the order of the task), or `value`
(float32 [N, 1]); where a column of the task has that name, the output carries an underscore at its end.

The graph repeats the encoder step by step and then the layers. It computes in float64 like `fusion.scoring`, so
both file formats agree to the last digit that float32 shows. Opset 17 with ai.onnx.ml 3, IR version 8: ONNX Runtime
1.17 and later, on any platform. No custom operators, no external data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusion.artifact import Model, label_scale, layer_names
from fusion.encoders.tabular import TabularRows
from fusion.heads import SQUARE
from fusion.task import OnnxEncoder, Task, TextEncoder

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
PRODUCER = "tidings"


def output_names(task: Task) -> tuple[str, ...]:
    """("label", "probabilities") or ("value",), made distinct from the task's columns."""
    names = ("label", "probabilities") if task.label.classes else ("value",)
    return tuple(_distinct(name, [column.name for column in task.columns]) for name in names)


def tensor_prefix(task: Task) -> str:
    """What names inside the graph begin with, so that no column of the task collides with them."""
    prefix = PRODUCER
    while any(column.name.startswith(prefix) for column in task.columns):
        prefix += "_"
    return prefix


def onnx_model(model: Model, metadata: dict[str, str]) -> onnx.ModelProto:
    """The graph of `model`, a pure function of its manifest and tensors, with `metadata` attached."""
    builder = Builder(tensor_prefix(model.task))
    inputs, x = _ENCODERS[model.task.encoder.kind](builder, model)
    names = layer_names(model.tensors)
    for name in names:
        x = _layer(builder, model, name, x, last=name == names[-1])
    outputs = _class_outputs(builder, model.task, x) if model.task.label.classes else _value(builder, model.task, x)
    graph = helper.make_graph(builder.nodes, PRODUCER, inputs, outputs, initializer=builder.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=PRODUCER)
    helper.set_model_props(proto, metadata)
    return proto


class Builder:
    """Collects nodes and constants under unique names; encoders add theirs through it."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = prefix

    def constant(self, value: Any, dtype: Any = np.float64, name: str = "") -> str:
        full = f"{self._prefix}/{name or f'constant{len(self.constants)}'}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), full))
        return full

    def texts(self, values: Sequence[str]) -> str:
        full = f"{self._prefix}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype=object), full))
        return full

    def node(self, operator: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        name = output or f"{self._prefix}/{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], domain=domain, **attributes))
        return name


Inputs = list[onnx.ValueInfoProto]


def _tabular(builder: Builder, model: Model) -> tuple[Inputs, str]:
    from fusion.encoders.tabular_graph import features

    encoder = model.encoder
    if isinstance(encoder, TabularRows):
        return features(builder, encoder, model.task)
    from fusion.encoders.leaves import LeafRows
    from fusion.encoders.lift import LiftedRows
    from fusion.encoders.lift_graph import lifted

    if isinstance(encoder, LeafRows):
        from fusion.encoders.leaves_graph import leaves

        return leaves(builder, encoder)
    assert isinstance(encoder, LiftedRows)  # noqa: S101 - the third that columns of a table have
    inputs, row = features(builder, encoder.rows, model.task)
    return inputs, lifted(builder, encoder, row)


def _onnx(builder: Builder, model: Model) -> tuple[Inputs, str]:
    from fusion.encoders.backbone_graph import features

    settings = model.task.encoder
    assert isinstance(settings, OnnxEncoder)  # noqa: S101 - the registry calls it for this kind alone
    return features(builder, settings)


def _text(builder: Builder, model: Model) -> tuple[Inputs, str]:
    from fusion.encoders.text_graph import features

    settings = model.task.encoder
    assert isinstance(settings, TextEncoder)  # noqa: S101 - likewise
    return features(builder, settings)


def _image(builder: Builder, model: Model) -> tuple[Inputs, str]:
    from fusion.encoders.image import ImageRows
    from fusion.encoders.image_graph import features

    return features(builder, ImageRows.of(model.task))


# Per kind of encoder: the inputs of the graph, and the name of x [N, d] in it.
_ENCODERS: dict[str, Callable[[Builder, Model], tuple[Inputs, str]]] = {
    "tabular": _tabular,
    "onnx": _onnx,
    "image": _image,
    "text": _text,
}


def _layer(builder: Builder, model: Model, name: str, x: str, last: bool) -> str:
    weight = builder.constant(model.tensors[f"{name}.weight"], np.float32, f"{name}.weight")
    bias = builder.constant(model.tensors[f"{name}.bias"], np.float32, f"{name}.bias")
    product = builder.node("MatMul", x, builder.node("Cast", weight, to=TensorProto.DOUBLE))
    result = builder.node("Add", product, builder.node("Cast", bias, to=TensorProto.DOUBLE))
    if last:
        return result
    return builder.node("Mul", result, result) if name.endswith(SQUARE) else builder.node("Relu", result)


def _class_outputs(builder: Builder, task: Task, logits: str) -> list[onnx.ValueInfoProto]:
    label, probabilities = output_names(task)
    best = builder.node("ArgMax", logits, axis=1, keepdims=0)
    builder.node("Gather", builder.texts(task.class_names), best, axis=0, output=label)
    softmax = builder.node("Softmax", logits, axis=1)
    builder.node("Cast", softmax, to=TensorProto.FLOAT, output=probabilities)
    return [
        helper.make_tensor_value_info(label, TensorProto.STRING, ["N"]),
        helper.make_tensor_value_info(probabilities, TensorProto.FLOAT, ["N", len(task.class_names)]),
    ]


def _value(builder: Builder, task: Task, scaled: str) -> list[onnx.ValueInfoProto]:
    """From [-1, 1] to the bounds of the label."""
    middle, half = label_scale(task)
    inside = builder.node("Clip", scaled, builder.constant(-1.0), builder.constant(1.0))
    stretched = builder.node("Mul", inside, builder.constant(half))
    number = builder.node("Add", stretched, builder.constant(middle))
    (value,) = output_names(task)
    builder.node("Cast", number, to=TensorProto.FLOAT, output=value)
    return [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", 1])]


def _distinct(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name
