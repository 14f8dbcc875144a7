"""Model files: ONNX and safetensors, written and read back.

Both hold the same manifest, tensors and card, and either gives back the same digest. Writing is deterministic, and
reading is its mirror: a file is accepted only if writing what was read gives the very same bytes. So nothing can hide
in a file: no changed graph, no custom operator, no external data, no bytes between the tensors. Only then may ONNX
Runtime see it. Everything else is refused with ModelError; nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from fusion.artifact import MAX_LAYERS, Model, Tensors, canonical_json, checked_model
from fusion.card import check_card
from fusion.errors import ModelError
from fusion.outside import check_protobuf, parse_json, protobuf_parts

MAX_MODEL_BYTES = 64 * 2**20
MAX_CARD_BYTES = 32 * 2**20
MAX_CARD_VALUES = 2_000_000  # a summary takes five, and there are at most 100,000; so does one that was left out
MAX_CARD_DEPTH = 16
MAX_TENSORS = 2 * MAX_LAYERS
MAX_TENSOR_FIELDS = 16  # sizes, type, name, bytes
MAX_MODEL_FIELDS = 100
MAX_GRAPH_PARTS = 100_000  # nodes, constants, inputs: about six for a column, of which there are at most 4,096
CARD_KEY = "tidings.card"

_LENGTH = struct.Struct("<Q")  # of the header of a safetensors file
_GRAPH, _METADATA_PROPS, _INITIALIZER = 7, 14, 5  # numbers of fields in onnx.proto


def write_safetensors(model: Model, card: dict[str, Any]) -> bytes:
    """The tensors, with the card in the metadata."""
    from safetensors.numpy import save

    return save(dict(model.tensors), metadata={CARD_KEY: canonical_json(card).decode()})


def write_onnx(model: Model, card: dict[str, Any]) -> bytes:
    """The graph from raw columns to predictions, with the card in the metadata."""
    from fusion.onnx_graph import onnx_model

    proto = onnx_model(model, {CARD_KEY: canonical_json(card).decode()})
    return bytes(proto.SerializeToString(deterministic=True))


def is_onnx(data: bytes) -> bool:
    """Whether to read `data` as ONNX: a safetensors file has its JSON header after eight bytes of length."""
    return data[_LENGTH.size : _LENGTH.size + 1] != b"{"


def read_model(data: bytes) -> tuple[Model, dict[str, Any]]:
    """The model and its card, from either format; ModelError for everything that was not written as above.

    The signature of the card is for the caller to check: keys are not known here.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise ModelError(f"a model file of over {MAX_MODEL_BYTES // 2**20} MB is refused; ask for it again")
    tensors, text = _read_onnx(data) if is_onnx(data) else _read_safetensors(data)
    content = _parse_card(text)
    model = checked_model(content.get("manifest"), tensors)
    card = check_card(content, model)
    rewritten = write_onnx(model, card) if is_onnx(data) else write_safetensors(model, card)
    if rewritten != data:
        raise ModelError("this model file holds more or other than its card describes; ask for it again")
    return model, card


def _read_safetensors(data: bytes) -> tuple[Tensors, str]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        header = data[_LENGTH.size : _LENGTH.size + _LENGTH.unpack_from(data)[0]]
        content = parse_json(header.decode("utf-8"), values=MAX_CARD_VALUES, depth=MAX_CARD_DEPTH)
        text = content["__metadata__"][CARD_KEY]
        if len(content) > 1 + MAX_TENSORS:
            raise ValueError
        tensors = load(data)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        raise ModelError("this is not a model file that can be read; ask for it again") from None
    return tensors, _text(text)


def _read_onnx(data: bytes) -> tuple[Tensors, str]:
    """The layers among the initializers, and the card. The rest of the graph is never parsed: `read_model` compares it,
    as bytes, with the one that belongs to these."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        parts = list(protobuf_parts(data, fields=MAX_MODEL_FIELDS))
        entries = [onnx.StringStringEntryProto.FromString(one) for number, one in parts if number == _METADATA_PROPS]
        texts = [_text(one.value) for one in entries if one.key == CARD_KEY]
        if len(texts) != 1:
            raise ModelError("this ONNX file has no model card of this software; it was made by something else")
        tensors = dict(_layers(b"".join(one for number, one in parts if number == _GRAPH)))
    except (DecodeError, ValueError):
        raise ModelError("this is not a model file that can be read; ask for it again") from None
    return tensors, texts[0]


def _layers(graph: bytes) -> Iterator[tuple[str, Any]]:
    """The tensors of the layers in the bytes of a graph, by name."""
    import onnx

    found = 0
    for number, content in protobuf_parts(graph, fields=MAX_GRAPH_PARTS):
        if number != _INITIALIZER or b"layer" not in content:
            continue
        found += 1
        if found > MAX_TENSORS:
            raise ValueError
        check_protobuf(content, onnx.TensorProto.DESCRIPTOR, fields=MAX_TENSOR_FIELDS, depth=1)
        initializer = onnx.TensorProto.FromString(content)
        name = _text(initializer.name).rpartition("/")[2]
        if name.startswith("layer"):
            yield name, _float_tensor(initializer)


def _text(value: object) -> str:
    """Protobuf gives bytes for a text that is not UTF-8, and JSON gives anything."""
    if not isinstance(value, str):
        raise ModelError("this model file holds something else where a text belongs; ask for it again")
    return value


def _float_tensor(initializer: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A float32 tensor stored inline; any other kind of storage is not what `write_onnx` writes."""
    values = np.frombuffer(initializer.raw_data[: len(initializer.raw_data) // 4 * 4], dtype="<f4")
    shape = tuple(initializer.dims)
    if min(shape, default=1) < 0 or np.prod(shape, dtype=object) != values.size:
        raise ModelError("this model file holds a tensor whose shape does not fit its bytes; ask for it again")
    return values.reshape(shape).astype(np.float32)


def _parse_card(text: str) -> dict[str, Any]:
    if len(text) > MAX_CARD_BYTES:
        raise ModelError("the card of this model file is too long; ask for it again")
    try:
        content = parse_json(text, values=MAX_CARD_VALUES, depth=MAX_CARD_DEPTH)
        canonical = canonical_json(content).decode()
    except (ValueError, RecursionError):
        raise ModelError("the card of this model file is not JSON; ask for it again") from None
    if not isinstance(content, dict) or canonical != text:
        raise ModelError("the card of this model file is not in its canonical form; ask for it again")
    return content
