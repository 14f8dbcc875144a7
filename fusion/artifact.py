"""The model as data: a manifest (what it is made from, and how), its tensors, and the digest of both.

The digest covers what the summaries alone decide. It leaves out who fused them and when: nodes that hold the same
summaries get the same digest (on one platform and release of this software).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fusion.encoders import Encoder, encoder_for
from fusion.errors import ModelError, TaskError
from fusion.heads import RELU, SQUARE, Layer, Layers
from fusion.profiles import ENDS
from fusion.summaries.moments import outputs
from fusion.sums import Contribution
from fusion.task import Task, dimension

FORMAT = 1
MAX_LAYERS = 8
MAX_WIDTH = 8_192  # of a layer
MAX_SUMMARIES = 100_000
MAX_TEXT_CHARS = 1_000
MAX_NUMBER = 1e18

_DIGEST_PERSON = b"tidings-model-v1"

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Model:
    """A fused model. `tensors` holds `layer0.weight` (in, out), `layer0.bias` (out,), … in float32 (`layer_names`).

    The same float32 tensors are in every file format, which is why they share the digest. `quarantined` names the
    summaries left out as implausible while fusing; a model read from a file has none, its card says what was left out.
    """

    manifest: dict[str, Any]
    tensors: Tensors
    quarantined: tuple[tuple[Contribution, str], ...] = ()

    @cached_property
    def task(self) -> Task:
        return Task.from_canonical(canonical_json(self.manifest["task"]))

    @cached_property
    def encoder(self) -> Encoder:
        return encoder_for(self.task)

    @cached_property
    def layers(self) -> Layers:
        """The tensors as float64 layers, the precision that both file formats compute in."""
        return tuple(
            Layer(
                self.tensors[f"{name}.weight"].astype(np.float64),
                self.tensors[f"{name}.bias"].astype(np.float64),
                SQUARE if name.endswith(SQUARE) else RELU,
            )
            for name in layer_names(self.tensors)
        )

    @property
    def digest(self) -> bytes:
        """32 bytes: BLAKE2b over the canonical manifest and, by name, each tensor's name, type, shape and bytes."""
        hasher = hashlib.blake2b(digest_size=32, person=_DIGEST_PERSON)
        for part in self._digest_parts():
            hasher.update(len(part).to_bytes(8, "big"))
            hasher.update(part)
        return hasher.digest()

    def _digest_parts(self) -> list[bytes]:
        parts = [canonical_json(self.manifest)]
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            little_endian = np.ascontiguousarray(tensor, dtype="<f4").tobytes()
            parts += [name.encode(), b"float32", canonical_json(list(tensor.shape)), little_endian]
        return parts


def label_scale(task: Task) -> tuple[float, float]:
    """(middle, half width) of a number label: what -1 and 1 stand for is middle -+ half width."""
    lower, upper = task.label.lower, task.label.upper
    if lower is None or upper is None:
        raise ModelError("the task predicts classes, which have no scale")
    return (lower + upper) / 2, (upper - lower) / 2


def to_tensors(layers: Layers) -> Tensors:
    """The layers rounded to float32, under their names in the file."""
    tensors: Tensors = {}
    for i, layer in enumerate(layers):
        name = f"layer{i}.{SQUARE}" if layer.activation == SQUARE else f"layer{i}"
        tensors[f"{name}.weight"] = layer.weight.astype(np.float32)
        tensors[f"{name}.bias"] = layer.bias.astype(np.float32)
    return tensors


def layer_names(tensors: Tensors) -> list[str]:
    """What the names of each layer's two tensors begin with, from the first layer to the last.

    `layer0`, `layer1`, … ; or `layer0.square` where the outputs of a layer are squared, not passed through a ReLU.
    """
    plain = [f"layer{i}" for i in range(len(tensors) // 2)]
    return [f"{name}.{SQUARE}" if f"{name}.{SQUARE}.weight" in tensors else name for name in plain]


def canonical_json(content: Any) -> bytes:
    """The one form in which JSON is hashed and signed: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


# --- checks of what a file claims to be -------------------------------------------------------------------------


def checked_model(manifest: object, tensors: Tensors) -> Model:
    """A model from untrusted parts; ModelError unless the manifest and the tensors are what this software writes."""
    manifest = checked_fields(manifest, "the manifest", MANIFEST_FIELDS)
    if manifest["format"] != FORMAT:
        raise ModelError("this model file has a format that this version does not know; update the software")
    try:
        task = Task.from_canonical(canonical_json(manifest["task"]))
    except TaskError as error:
        raise ModelError(f"the task in this model file is not valid: {error}") from None
    if manifest["task_id"] != task.id.hex():
        raise ModelError("the task in this model file is not the one that its manifest names; ask for it again")
    if not 1 <= len(manifest["summaries"]) <= MAX_SUMMARIES:
        _damaged("its list of summaries is empty or too long")
    for summary in manifest["summaries"]:
        _check_key(checked_fields(summary, "a summary of the manifest", SUMMARY_FIELDS), "record", "origin")
    is_robust = "robust" in manifest["method"]
    fields = METHOD_FIELDS | {"robust": dict} if is_robust else METHOD_FIELDS
    method = checked_fields(manifest["method"], "the method", fields)
    if is_robust:
        _check_robust(checked_fields(method["robust"], "the robust option", ROBUST_FIELDS), task)
    if not {*method["unseen_classes"]} <= {*task.class_names}:
        _damaged("it names classes that its task does not have")
    if manifest["quality"] is not None:
        checked_fields(manifest["quality"], "the quality", QUALITY_FIELDS)
    _check_tensors(tensors, task)
    return Model(manifest, tensors)


Number = (int, float)
Optional = (int, float, type(None))
MANIFEST_FIELDS = {
    "format": int,
    "software": str,
    "task": dict,
    "task_id": str,
    "summaries": list,
    "method": dict,
    "quality": (dict, type(None)),
}
SUMMARY_FIELDS = {"record": str, "origin": str, "epsilon": Optional, "delta": Number, "mechanism": str}
METHOD_FIELDS = {
    "summary": str,
    "denoiser": str,
    "head": str,
    "multiplier": Number,
    "lambda": Optional,
    "choice": str,
    "asked": (str, type(None)),
    "seed": str,
    "unseen_classes": list,
}
ROBUST_FIELDS = {"liars": int, "most_rows": Number, "left_out": list, "weights": list, "unjudged": list}
LEFT_OUT_FIELDS = {"record": str, "origin": str, "reason": str}
WEIGHT_FIELDS = {"record": str, "weight": Number}
QUALITY_FIELDS = {
    "relative_error": Number,
    "relative_error_std": Number,
    "accuracy": Optional,
    "accuracy_std": Optional,
    "balanced_accuracy": Optional,
    "balanced_accuracy_std": Optional,
    "groups": int,
    "meaning": str,
}


def checked_fields(content: object, where: str, types: dict[str, Any]) -> dict[str, Any]:
    """`content` as a table with exactly these fields, of these types; numbers finite, texts printable and short."""
    if not isinstance(content, dict) or set(content) != set(types):
        _damaged(f"{where} does not have the fields of this format")
    for key, value in content.items():
        if not isinstance(value, types[key]) or isinstance(value, bool):
            _damaged(f"{where} has a wrong type in {key}")
        if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
            _damaged(f"{where} has a number out of range in {key}")
        if isinstance(value, str) and (len(value) > MAX_TEXT_CHARS or not value.isprintable()):
            _damaged(f"{where} has a text that cannot be shown in {key}")
        if (
            isinstance(value, list)
            and key in ("unseen_classes", "unjudged")
            and not all(isinstance(one, str) for one in value)
        ):
            _damaged(f"{where} has a wrong type in {key}")
    return content


def _check_robust(robust: dict[str, Any], task: Task) -> None:
    if not 1 <= robust["liars"] <= MAX_SUMMARIES:
        _damaged("it withstands a number of liars that cannot be")
    for name in ("left_out", "weights"):
        if len(robust[name]) > MAX_SUMMARIES:
            _damaged("a list of the robust option is too long")
    for one in robust["left_out"]:
        _check_key(checked_fields(one, "a summary left out", LEFT_OUT_FIELDS), "record", "origin")
    for one in robust["weights"]:
        _check_key(checked_fields(one, "a weight", WEIGHT_FIELDS), "record")
        if not 0.0 < one["weight"] < 1.0:
            _damaged("it has a weight that cannot be")
    if not {*robust["unjudged"]} <= {*task.class_names, *ENDS}:
        _damaged("it names classes that its task does not have")


def _check_key(summary: dict[str, Any], *names: str) -> None:
    for name in names:
        if len(summary[name]) != 64 or set(summary[name]) - set("0123456789abcdef"):
            _damaged(f"a summary has a malformed {name}")


def _check_tensors(tensors: Tensors, task: Task) -> None:
    """A chain of layers from the encoder's dimension to one output per class (or one), all values finite."""
    if not 1 <= len(tensors) // 2 <= MAX_LAYERS:
        _damaged("its tensors are not a chain of layers")
    names = layer_names(tensors)
    if set(tensors) != {f"{name}.{part}" for name in names for part in ("weight", "bias")}:
        _damaged("its tensors are not a chain of layers")
    if names[-1].endswith(SQUARE):
        _damaged("its last layer has an activation")
    width = dimension(task)
    for name in names:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        if weight.dtype != np.float32 or bias.dtype != np.float32:
            _damaged("its tensors are not float32")
        if weight.ndim != 2 or weight.shape[0] != width or bias.shape != weight.shape[1:]:
            _damaged("the shapes of its tensors do not fit each other or the task")
        if weight.shape[1] > MAX_WIDTH or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            _damaged("its tensors hold values that are not finite")
        width = weight.shape[1]
    if width != outputs(task):
        _damaged("it does not have one output per class of its task")


def _damaged(what: str) -> NoReturn:
    raise ModelError(f"this model file is damaged or was not written by this software: {what}; ask for it again")
