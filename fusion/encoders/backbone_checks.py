"""What an ONNX file must look like before ONNX Runtime sees it as a backbone.

A backbone comes from outside, and unlike our own model files it cannot be checked by writing it again. Its hash says
that everybody has the same file, not that the file is harmless. So it must be a plain feed-forward network:

* everything inline: no external data, no sparse or split tensors, no functions, nothing of training;
* operators of the ONNX standard alone, from the list below: no other domain, no control flow (If, Loop, Scan), no
  random numbers, no strings, no optional or sequence values; hence nothing that reads a file or runs code of its own;
* one float32 input of the shape that the task states, and the named output with as many numbers as the task states;
* every shape known before anything runs (ONNX shape inference, strict), so that memory is bounded by MAX_LIVE_BYTES.

Time is not bounded: whoever adds a file decides that it is worth running.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NoReturn

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper

from fusion.errors import BackboneError
from fusion.outside import TooMuch, check_protobuf
from fusion.task import OnnxEncoder

MAX_NODES = 20_000
MAX_FIELDS = 400_000  # of all messages in the file together: 20 for a node
MAX_DEPTH = 12
MAX_LIVE_BYTES = 2**30  # of all values between the nodes together, for one row
LARGEST_NUMBER_BYTES = 8
STANDARD_DOMAINS = ("", "ai.onnx")

ELEMENTWISE = (
    "Abs Add And Cast CastLike Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid "
    "HardSwish Identity LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mul Neg Not Or PRelu Pow Reciprocal Relu "
    "Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Tanh ThresholdedRelu Where Xor"
)
LAYERS = (
    "AveragePool BatchNormalization Conv ConvTranspose Einsum Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
    "GroupNormalization InstanceNormalization LRN LayerNormalization LogSoftmax LpNormalization LpPool MatMul MaxPool "
    "MeanVarianceNormalization Softmax"
)
QUANTIZED = "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear"
REDUCTIONS = (
    "ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare"
)
SHAPES = (
    "Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND Pad Range Reshape "
    "Resize Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze"
)
OPERATORS = frozenset(" ".join((ELEMENTWISE, LAYERS, QUANTIZED, REDUCTIONS, SHAPES)).split())

_PLAIN_ATTRIBUTES = (
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.TENSOR,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
)
_NUMBER_TYPES = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)


def checked_graph(data: bytes, settings: OnnxEncoder, shape: tuple[int, ...]) -> tuple[bytes, str, str]:
    """The model with its input fixed to `shape` (one row), the names of its output and input; else BackboneError."""
    try:
        check_protobuf(data, onnx.ModelProto.DESCRIPTOR, fields=MAX_FIELDS, depth=MAX_DEPTH)
        model = onnx.ModelProto.FromString(data)
    except TooMuch:
        _refuse("it has far more parts than a network of that many nodes")
    except (DecodeError, ValueError):
        _refuse("it is not an ONNX file")
    if not all(isinstance(name, str) for name in _names(model)):
        _refuse("it is not an ONNX file")  # protobuf gives bytes for a text that is not UTF-8
    _check_model(model)
    for tensor in model.graph.initializer:
        _check_tensor(tensor)
    for node in model.graph.node:
        _check_node(node)
    name = _fix_input(model.graph, shape)
    return *_check_shapes(model, settings), name


def _names(model: onnx.ModelProto) -> Iterator[object]:
    """Every text of the graph that is looked at below."""
    graph = model.graph
    yield from (one.name for one in graph.input)
    yield from (one.name for one in graph.output)
    yield from (one.name for one in graph.initializer)
    for node in graph.node:
        yield from (node.op_type, node.domain, *node.input, *node.output, *(one.name for one in node.attribute))


def _check_model(model: onnx.ModelProto) -> None:
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        _refuse("it holds functions, training steps, sparse tensors or annotations; export a plain graph for inference")
    foreign = [one.domain for one in model.opset_import if one.domain not in STANDARD_DOMAINS]
    if foreign:
        _refuse("it uses operators from outside the ONNX standard; export it with standard operators")
    if not 1 <= len(graph.node) <= MAX_NODES:
        _refuse(f"it has {len(graph.node)} nodes; 1 to {MAX_NODES} are taken")


def _check_node(node: onnx.NodeProto) -> None:
    if node.domain not in STANDARD_DOMAINS or node.op_type not in OPERATORS:
        _refuse(f"it uses the operator {_shown(node.op_type)}, which a plain feed-forward network does not need")
    for attribute in node.attribute:
        if attribute.type not in _PLAIN_ATTRIBUTES or attribute.ref_attr_name:
            _refuse(f"an operator {_shown(node.op_type)} holds a graph or another value that is not a plain number")
        if attribute.type == AttributeProto.TENSOR:
            _check_tensor(attribute.t)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data or tensor.HasField("segment"):
        _refuse("its weights lie in another file; export it as one file")
    if tensor.data_type not in _NUMBER_TYPES:
        _refuse("it holds a tensor that is neither of common numbers nor of truth values")
    if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > MAX_LIVE_BYTES:
        _refuse("it holds a tensor of an impossible size")


def _fix_input(graph: onnx.GraphProto, shape: tuple[int, ...]) -> str:
    """The one input that is no weight, its free dimensions fixed to `shape`."""
    weights = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    if len(inputs) != 1:
        _refuse(f"it takes {len(inputs)} inputs; a backbone takes one")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        _refuse("its input is not float32; put a Cast in front of it")
    stated = [one.dim_value if one.HasField("dim_value") else None for one in kind.shape.dim]
    if len(stated) != len(shape) or any(a not in (None, b) for a, b in zip(stated, shape, strict=True)):
        _refuse(f"its input has the shape {_dims(stated)}, where the task says {_dims(shape)}")
    inputs[0].CopyFrom(helper.make_tensor_value_info(inputs[0].name, TensorProto.FLOAT, shape))
    return str(inputs[0].name)


def _check_shapes(model: onnx.ModelProto, settings: OnnxEncoder) -> tuple[bytes, str]:
    """The bytes to run and the output's name, with every value's shape known and all of them within the limit."""
    graph = model.graph
    outputs = [one.name for one in graph.output]
    output = settings.output if settings.output or len(outputs) != 1 else outputs[0]
    if output not in outputs:
        _refuse(f"it has {len(outputs)} outputs; the task must name one of them as encoder.output")
    # What the file claims of its values is not believed.
    del graph.value_info[:], graph.output[:]
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    shapes = _inferred(model)
    values = [one for node in graph.node for one in node.output if one]
    if not shapes.keys() >= set(values):
        _refuse("the size of a value in it depends on the data; export it for a fixed input size")
    if LARGEST_NUMBER_BYTES * sum(math.prod(shapes[value]) for value in values) > MAX_LIVE_BYTES:
        _refuse(f"it needs over {MAX_LIVE_BYTES // 2**20} MB of memory for one row; make its input smaller")
    if output not in values or math.prod(shapes[output]) != settings.features:
        _refuse(f"its output is {math.prod(shapes.get(output, ()))} numbers, where the task says {settings.features}")
    graph.output[0].CopyFrom(helper.make_tensor_value_info(output, TensorProto.FLOAT, shapes[output]))
    data = model.SerializeToString()
    try:
        onnx.checker.check_model(data)
    except (onnx.checker.ValidationError, ValueError):
        _refuse("its graph breaks the rules of ONNX; export it anew")
    return data, output


def _inferred(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The dimensions of every value whose shape is known."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        _refuse("its graph breaks the rules of ONNX, or its shapes cannot be known beforehand; export it anew")
    shapes = {}
    for info in (*graph.value_info, *graph.output):
        kind = info.type.tensor_type
        is_known = info.type.HasField("tensor_type") and kind.HasField("shape")
        if is_known and all(one.HasField("dim_value") and one.dim_value >= 0 for one in kind.shape.dim):
            shapes[info.name] = tuple(one.dim_value for one in kind.shape.dim)
    return shapes


def _dims(shape: Any) -> str:
    return " x ".join("any" if one is None else str(one) for one in shape) or "nothing"


def _shown(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 100 else "of an odd name"


def _refuse(what: str) -> NoReturn:
    raise BackboneError(f"this backbone cannot be taken: {what}")
