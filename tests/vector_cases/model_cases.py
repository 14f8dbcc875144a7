"""Model files in both forms, and backbones: what a file may claim of itself, its tensors, its card and its graph."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from fusion.artifact import MAX_TEXT_CHARS
from fusion.model_files import MAX_CARD_BYTES, MAX_MODEL_BYTES
from fusion.task import dimension
from tests.door_mutators import compact
from tests.doors import identity, model_file, task_of
from tests.vector_cases import Cases

TASK = task_of()
D = dimension(TASK)
TENSORS = {
    "layer0.weight": np.linspace(-1, 1, D * 2, dtype=np.float32).reshape(D, 2),
    "layer0.bias": np.array([0.5, -0.5], dtype=np.float32),
}
SUMMARY = {"record": "ab" * 32, "origin": "cd" * 32, "epsilon": 1.0, "delta": 1e-5, "mechanism": "discrete-gaussian-1"}
METHOD = {
    "summary": "moments",
    "denoiser": "none",
    "head": "ridge",
    "multiplier": 1.0,
    "lambda": 0.1,
    "choice": "default",
    "asked": None,
    "seed": "0",
    "unseen_classes": [],
}
MANIFEST = {
    "format": 1,
    "software": "tidings 0.1.0",
    "task": json.loads(TASK.canonical()),
    "task_id": TASK.id.hex(),
    "summaries": [SUMMARY],
    "method": METHOD,
    "quality": None,
}
CARD: dict[str, Any] = {
    "manifest": MANIFEST,
    "left_out": [{"record": "ef" * 32, "origin": "tidings1qqqq", "reason": "not selected by the query"}],
    "attestation": {
        "node": identity().public_key.text,
        "created": "2026-01-01T00:00:00+00:00",
        "digest": "",
        "signature": "",
    },
}
QUALITY = {
    "relative_error": 0.5,
    "relative_error_std": 0.1,
    "accuracy": 0.8,
    "accuracy_std": 0.01,
    "balanced_accuracy": 0.8,
    "balanced_accuracy_std": 0.01,
    "groups": 3,
    "meaning": "an estimate",
}


def _with(manifest: dict[str, Any] | None = None, tensors: Any = None, **card: Any) -> bytes:
    return model_file(CARD | {"manifest": MANIFEST | (manifest or {})} | card, TENSORS if tensors is None else tensors)


def _changed(**tensors: Any) -> dict[str, Any]:
    return TENSORS | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


DAMAGED = "is damaged or was not written by this software"


def _manifests() -> Cases:
    other = task_of("mean-embedding")
    fields = "does not have the fields of this format"
    return {
        "a-format-from-the-future": (_with({"format": 2}), "has a format that this version does not know"),
        "a-field-too-many": (_with({"more": 1}), f"the manifest {fields}"),
        "a-number-for-a-text": (_with({"software": 5}), "has a wrong type in software"),
        "a-text-that-garbles-a-terminal": (_with({"software": "\x1b[2J"}), "a text that cannot be shown in software"),
        "a-text-of-a-book": (_with({"software": "x" * (MAX_TEXT_CHARS + 1)}), "a text that cannot be shown"),
        "another-task-than-it-says": (_with({"task_id": other.id.hex()}), "is not the one that its manifest names"),
        "a-task-that-is-none": (_with({"task": {"version": 1}}), "the task in this model file is not valid"),
        "no-summaries": (_with({"summaries": []}), "its list of summaries is empty or too long"),
        "a-summary-without-an-origin": (
            _with({"summaries": [{key: value for key, value in SUMMARY.items() if key != "origin"}]}),
            f"a summary of the manifest {fields}",
        ),
        "a-summary-of-a-short-record": (_with({"summaries": [SUMMARY | {"record": "ab"}]}), "a malformed record"),
        "a-summary-of-an-odd-origin": (_with({"summaries": [SUMMARY | {"origin": "XY" * 32}]}), "a malformed origin"),
        "an-endless-epsilon": (_with({"summaries": [SUMMARY | {"epsilon": 1e19}]}), "number out of range in epsilon"),
        "an-epsilon-that-is-true": (_with({"summaries": [SUMMARY | {"epsilon": True}]}), "has a wrong type in epsilon"),
        "a-class-that-the-task-has-not": (
            _with({"method": METHOD | {"unseen_classes": ["x"]}}),
            "classes that its task",
        ),
        "a-class-that-is-a-number": (
            _with({"method": METHOD | {"unseen_classes": [5]}}),
            "a wrong type in unseen_classes",
        ),
        "a-quality-without-a-meaning": (
            _with({"quality": {key: value for key, value in QUALITY.items() if key != "meaning"}}),
            f"the quality {fields}",
        ),
    }


ROBUST: dict[str, Any] = {
    "liars": 1,
    "most_rows": 100.0,
    "left_out": [{"record": "ab" * 32, "origin": "cd" * 32, "reason": "far from the others"}],
    "weights": [{"record": "ab" * 32, "weight": 0.5}],
    "unjudged": ["home"],
}


def _robust() -> Cases:
    def of(**changes: Any) -> bytes:
        return _with({"method": METHOD | {"robust": ROBUST | changes}})

    left_out, weight = ROBUST["left_out"][0], ROBUST["weights"][0]
    return {
        "good-robust": (of(), ""),
        "robust-that-is-a-number": (_with({"method": METHOD | {"robust": 1}}), "has a wrong type in robust"),
        "robust-with-more": (of(more=1), "the robust option does not have the fields"),
        "no-liars": (of(liars=0), "withstands a number of liars that cannot be"),
        "liars-beyond-all-summaries": (of(liars=100_001), "withstands a number of liars that cannot be"),
        "more-left-out-than-there-can-be": (of(left_out=[None] * 100_001), "a list of the robust option is too long"),
        "left-out-of-a-short-record": (of(left_out=[left_out | {"record": "ab"}]), "a malformed record"),
        "a-weight-of-one": (of(weights=[weight | {"weight": 1.0}]), "it has a weight that cannot be"),
        "a-weight-of-a-short-record": (of(weights=[weight | {"record": "ab"}]), "a malformed record"),
        "unjudged-classes-that-the-task-has-not": (of(unjudged=["x"]), "names classes that its task does not have"),
        "unjudged-classes-that-are-numbers": (of(unjudged=[5]), "has a wrong type in unjudged"),
    }


def _cards() -> Cases:
    left_out = CARD["left_out"][0]
    attested = CARD["attestation"]
    return {
        "a-card-with-more": (_with(more=1), "the card does not have the fields"),
        "left-out-without-a-reason": (
            _with(left_out=[{"record": "x", "origin": "y"}]),
            "the list of what was left out",
        ),
        "left-out-more-than-there-can-be": (
            _with(left_out=[left_out] * 100_001),
            "lists more left-out summaries than there can be",
        ),
        "left-out-for-a-reason-on-two-lines": (
            _with(left_out=[left_out | {"reason": "a\nb"}]),
            "a text that cannot be shown in reason",
        ),
        "another-digest": (
            _safetensors(CARD | {"attestation": attested | {"digest": "00" * 32}}),
            "is not what its card attests",
        ),
        "signed-by-nobody": (
            _resigned(_with(), "00" * 64),
            "is not signed by the node that it names",
        ),
        "a-signature-of-odd-letters": (_resigned(_with(), "xy"), "is not signed by the node that it names"),
        "attested-by-no-key": (
            _with(attestation=attested | {"node": "tidings1node"}),
            "is not signed by the node that it names",
        ),
    }


def _safetensors(card: Any, tensors: Any = None) -> bytes:
    text = card if isinstance(card, str) else compact(card).decode()
    return bytes(save(dict(TENSORS if tensors is None else tensors), metadata={"tidings.card": text}))


def _resigned(data: bytes, signature: str) -> bytes:
    from tests.doors import safetensors_parts

    card, tensors = safetensors_parts(data)
    return _safetensors(card | {"attestation": card["attestation"] | {"signature": signature}}, tensors)


def _tensors() -> Cases:
    weight, bias = TENSORS["layer0.weight"], TENSORS["layer0.bias"]
    chain = "its tensors are not a chain of layers"
    eight = {f"layer{n}.{part}": np.ones((D, D) if part == "weight" else D, np.float32) for n in range(9) for part in
             ("weight", "bias")}  # fmt: skip
    return {
        "no-tensors": (_with(tensors={}), chain),
        "a-layer-too-many": (_with(tensors=eight), "that can be read"),
        "a-tensor-of-another-name": (_with(tensors=_changed(extra=bias)), chain),
        "a-layer-without-a-bias": (_with(tensors={"layer0.weight": weight}), chain),
        "an-activation-at-the-end": (
            _with(tensors={"layer0.square.weight": weight, "layer0.square.bias": bias}),
            "its last layer has an activation",
        ),
        "double-precision": (_with(tensors=_changed(layer0__weight=weight.astype("f8"))), "are not float32"),
        "rows-that-the-encoder-has-not": (_with(tensors=_changed(layer0__weight=weight[:-1])), "do not fit each other"),
        "a-weight-of-one-dimension": (_with(tensors=_changed(layer0__weight=weight[:, 0])), "do not fit each other"),
        "a-bias-too-long": (_with(tensors=_changed(layer0__bias=np.zeros(3, np.float32))), "do not fit each other"),
        "weights-that-are-not-finite": (_with(tensors=_changed(layer0__weight=weight * np.inf)), "not finite"),
        "an-output-too-many": (
            _with(tensors={"layer0.weight": np.zeros((D, 3), np.float32), "layer0.bias": np.zeros(3, np.float32)}),
            "one output per class",
        ),
    }


def _containers() -> Cases:
    unread, other = "is not a model file that can be read", "more or other than its card describes"
    good = _with()
    header = b'{"__metadata__":{"tidings.card":"{}"}}'
    text = compact(CARD).decode()
    pickled = b"\x80\x04\x95" + bytes(40)

    def container(head: bytes, rest: bytes = b"") -> bytes:
        return len(head).to_bytes(8, "little") + head + rest

    return {
        "nothing": (b"", "has no model card"),
        "a-pickle": (pickled, unread),
        "too-large": (bytes(MAX_MODEL_BYTES + 1), "is refused"),
        "a-header-of-exabytes": (b"\xff" * 8 + b"{", unread),
        "a-header-that-is-no-json": (container(b"{x"), unread),
        "a-header-nested-deeply": (container(b"{" + b'"a":[' + b"[" * 100_000), unread),
        "a-header-of-many-tensors": (container(b'{"__metadata__":{},' + b'"a":{},' * 300_000 + b'"b":{}}'), unread),
        "no-card": (container(b'{"__metadata__":{}}'), unread),
        "a-card-that-is-a-number": (container(b'{"__metadata__":{"tidings.card":5}}'), unread),
        "a-card-that-is-empty": (container(header), "the manifest does not have the fields"),
        "a-card-that-is-no-json": (_safetensors("{"), "is not JSON"),
        "a-card-that-is-a-list": (_safetensors("[]"), "is not in its canonical form"),
        "a-card-with-spaces": (_safetensors(text.replace(":", ": ", 1)), "is not in its canonical form"),
        "a-card-with-nan": (_safetensors(text.replace("0.1", "NaN", 1)), "is not JSON"),
        "a-card-of-millions-of-values": (_safetensors("[" + "[]," * 2_000_000 + "[]]"), unread),
        "a-card-of-33-megabytes": (_safetensors('"' + "x" * (MAX_CARD_BYTES + 1) + '"'), "is too long"),
        "a-byte-behind-the-tensors": (good + b"\0", unread),
        "cut-off": (good[:-1], unread),
        "a-header-with-a-space-more": (_with_a_space(good), other),
    }


def _with_a_space(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    return (size + 8).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 8 + data[8 + size :]


def _graphs() -> Cases:
    good = model_file(CARD, TENSORS, is_onnx=True)
    unread, other = "is not a model file that can be read", "more or other than its card describes"

    def changed(change: Any) -> bytes:
        model = onnx.ModelProto.FromString(good)
        change(model)
        return bytes(model.SerializeToString(deterministic=True))

    def layer(model: Any) -> Any:
        return next(one for one in model.graph.initializer if "layer" in one.name)

    def outside(model: Any) -> None:
        layer(model).external_data.add(key="location", value="/etc/passwd")
        layer(model).data_location = TensorProto.EXTERNAL

    return {
        "good-onnx": (good, ""),
        "onnx-without-a-card": (changed(lambda m: m.ClearField("metadata_props")), "has no model card"),
        "onnx-with-two-cards": (changed(lambda m: m.metadata_props.append(m.metadata_props[0])), "has no model card"),
        "onnx-with-a-custom-operator": (changed(lambda m: m.graph.node.add(op_type="Shell", domain="x")), other),
        "onnx-with-another-graph": (changed(lambda m: m.graph.node.pop()), other),
        "onnx-with-weights-in-another-file": (changed(outside), unread),
        "onnx-with-a-field-of-its-own": (good + b"\x92\x3f\x01x", other),
        "onnx-with-a-tensor-of-an-impossible-size": (
            changed(lambda m: layer(m).dims.append(2**40)),
            "whose shape does not fit its bytes",
        ),
        "onnx-with-a-tensor-of-negative-size": (
            changed(lambda m: layer(m).dims.extend((-1, -1))),
            "whose shape does not fit its bytes",
        ),
        "onnx-with-empty-messages-without-end": (_messages(100_001), unread),
        "onnx-with-a-tensor-of-many-parts": (_messages(1, b"\x42\x05layer" + b"\x6a\x00" * 1_000), unread),
        "onnx-with-layers-without-end": (_messages(17, b"\x08\x00\x42\x05layer"), unread),
        "onnx-with-a-name-that-is-not-utf-8": (
            _messages(1, b"\x08\x00\x42\x06layer\xff"),
            "something else where a text",
        ),
        "onnx-cut-off": (good[:-1], unread),
        "onnx-with-a-number-without-end": (b"\xff" * 40, unread),
        "onnx-with-a-group": (b"\x0b" + bytes(40), unread),
    }


def _messages(count: int, content: bytes = b"") -> bytes:
    """A model with a card and as many initializers."""
    model = onnx.ModelProto()
    model.metadata_props.add(key="tidings.card", value="{}")
    part = b"\x2a" + _varint(len(content)) + content
    return bytes(model.SerializeToString()) + b"\x3a" + _varint(len(part) * count) + part * count


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def _models() -> Cases:
    good: Cases = {
        "good": (_with(), ""),
        "good-with-quality": (_with({"quality": QUALITY}), ""),
        "good-with-many-summaries": (
            _with({"summaries": [SUMMARY | {"record": f"{n:064x}"} for n in range(20)]}),
            "",
        ),
        "good-regression": (_regression(), ""),
    }
    return good | _manifests() | _robust() | _cards() | _tensors() | _containers() | _graphs()


def _regression() -> bytes:
    task = task_of(regression=True)
    manifest = {"task": json.loads(task.canonical()), "task_id": task.id.hex()}
    tensors = {"layer0.weight": np.ones((D, 1), np.float32), "layer0.bias": np.zeros(1, np.float32)}
    return _with(manifest, tensors)


# ------------------------------------------------------------------------------------------------------------ backbones

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


def _network(nodes: Any = None, weights: Any = None, shape: Any = ("N", 2), elem: int = TensorProto.FLOAT) -> Any:
    nodes = [helper.make_node("MatMul", ["in", "w"], ["out"])] if nodes is None else nodes
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {"w": WEIGHTS}).items()]
    entry = helper.make_tensor_value_info("in", elem, shape)
    leaving = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "backbone", [entry], [leaving], initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _then(*nodes: Any) -> Any:
    return _network([helper.make_node("MatMul", ["in", "w"], ["seen"]), *nodes])


def _edited(change: Any, model: Any = None) -> bytes:
    model = _network() if model is None else model
    change(model)
    return bytes(model.SerializeToString(deterministic=True))


def _backbones() -> Cases:
    def tensor(**fields: Any) -> Any:
        def change(model: Any) -> None:
            for name, value in fields.items():
                one = getattr(model.graph.initializer[0], name)
                if isinstance(value, list):
                    del one[:]
                    one.extend(value)
                else:
                    setattr(model.graph.initializer[0], name, value)

        return change

    def outside(model: Any) -> None:
        model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")

    branch = helper.make_graph([], "g", [], [])
    many = [helper.make_node("Relu", ["in"], [f"v{n}"]) for n in range(20_001)]
    sizes = np.array([2**20, 2**20], dtype=np.int64)
    parts = "functions, training steps, sparse tensors or annotations"
    rules = "breaks the rules of ONNX"
    good = _edited(lambda _: None)
    return {
        "good": (good, ""),
        "good-with-a-layer-more": (_edited(lambda _: None, _then(helper.make_node("Tanh", ["seen"], ["out"]))), ""),
        "garbage": (b"\xff" * 20, "not an ONNX file"),
        "nothing": (b"", "has 0 nodes"),
        "cut-off": (good[:-1], "not an ONNX file"),
        "a-name-that-is-not-utf-8": (good.replace(b"MatMul", b"MatMu\xff"), "not an ONNX file"),
        "fields-without-end": (_messages(400_001), "far more parts than a network"),
        "messages-nested-deeply": (_nested(14), "far more parts than a network"),
        "a-function": (_edited(lambda m: m.functions.add(name="f")), parts),
        "training": (_edited(lambda m: m.training_info.add()), parts),
        "a-sparse-tensor": (_edited(lambda m: m.graph.sparse_initializer.add()), parts),
        "another-domain": (_edited(lambda m: m.opset_import.add(domain="com.example", version=1)), "outside the ONNX"),
        "nodes-too-many": (_edited(lambda _: None, _network(many)), "has 20001 nodes"),
        "an-operator-that-reads-files": (_edited(lambda _: None, _then(helper.make_node("Loop", ["seen"], ["out"]))),
                                         "uses the operator Loop"),
        "an-operator-of-an-odd-name": (good.replace(b"MatMul", b"Mat\x1bul"), "uses the operator of an odd name"),
        "a-graph-for-an-attribute": (
            _edited(lambda _: None, _then(helper.make_node("Relu", ["seen"], ["out"], body=branch))),
            "holds a graph or another value",
        ),
        "weights-in-another-file": (_edited(outside), "its weights lie in another file"),
        "a-tensor-of-texts": (_edited(tensor(data_type=TensorProto.STRING)), "neither of common numbers"),
        "a-tensor-of-an-impossible-size": (_edited(tensor(dims=[2**40, 2**40])), "of an impossible size"),
        "a-tensor-of-negative-size": (_edited(tensor(dims=[-1, 3])), "of an impossible size"),
        "a-tensor-of-other-bytes": (_edited(tensor(raw_data=bytes(20))), rules),
        "two-inputs": (_edited(lambda m: m.graph.input.add(name="more")), "takes 2 inputs"),
        "no-input": (_edited(lambda m: m.graph.ClearField("input")), "takes 0 inputs"),
        "an-input-of-whole-numbers": (_edited(lambda _: None, _network(elem=TensorProto.INT64)), "is not float32"),
        "an-input-of-another-width": (_edited(lambda _: None, _network(shape=(1, 3))), "where the task says 1 x 2"),
        "two-outputs": (_edited(lambda m: m.graph.output.add(name="in")), "the task must name one of them"),
        "an-output-of-another-width": (
            _edited(lambda _: None, _network(weights={"w": np.ones((2, 4), np.float32)})),
            "where the task says 3",
        ),
        "a-value-of-a-terabyte": (
            _edited(
                lambda _: None,
                _network(
                    [helper.make_node("Expand", ["in", "sizes"], ["big"]), helper.make_node("Relu", ["big"], ["out"])],
                    {"sizes": sizes},
                    (1, 1),
                ),
            ),
            "where the task says 1 x 2",
        ),
        "a-value-of-terabytes": (
            _edited(
                lambda _: None,
                _then(
                    helper.make_node("Constant", [], ["sizes"], value=_constant(2**20, 2**20, 1, 3)),
                    helper.make_node("Expand", ["seen", "sizes"], ["big"]),
                    helper.make_node("ReduceMean", ["big"], ["out"], axes=[0, 1, 2]),
                ),
            ),
            "of memory for one row",
        ),
        "a-size-that-the-data-decide": (
            _edited(
                lambda _: None,
                _then(
                    helper.make_node("Cast", ["seen"], ["sizes"], to=TensorProto.INT64),
                    helper.make_node("ConstantOfShape", ["sizes"], ["out"]),
                ),
            ),
            "its shapes cannot be known beforehand",
        ),
        "a-length-that-the-data-decide": (
            _edited(
                lambda _: None,
                _network(
                    [
                        helper.make_node("ReduceSum", ["in"], ["limit"], keepdims=0),
                        helper.make_node("Range", ["zero", "limit", "one"], ["out"]),
                    ],
                    {"zero": np.array(0.0, np.float32), "one": np.array(1.0, np.float32)},
                ),
            ),
            "depends on the data",
        ),
        "types-that-do-not-fit": (
            _edited(lambda _: None, _then(helper.make_node("MatMul", ["seen", "w"], ["out"]))),
            rules,
        ),
        "a-value-twice": (
            _edited(
                lambda _: None,
                _then(helper.make_node("Relu", ["in"], ["seen"]), helper.make_node("Relu", ["seen"], ["out"])),
            ),
            rules,
        ),
    }  # fmt: skip


def _constant(*numbers: int) -> Any:
    return numpy_helper.from_array(np.array(numbers))


def _nested(levels: int) -> bytes:
    """Graphs within attributes of nodes within graphs."""
    inside = b""
    for _ in range(levels // 3 + 1):
        attribute = b"\x32" + _varint(len(inside)) + inside
        node = b"\x2a" + _varint(len(attribute)) + attribute
        inside = b"\x0a" + _varint(len(node)) + node
    return b"\x3a" + _varint(len(inside)) + inside


CASES: dict[str, Cases] = {"model-file": _models(), "backbone": _backbones()}
