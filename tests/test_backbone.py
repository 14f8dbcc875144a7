"""Frozen backbones: what is refused before anything runs, that rows do not depend on each other, and the whole way
from a task file to predictions, for numbers and for pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fusion import backbones
from fusion.audit import audit
from fusion.dataset import Batch
from fusion.encoders import encoder_for
from fusion.encoders.backbone import BackboneRows, enlarge, enlarging, open_backbone, unit_rows
from fusion.encoders.backbone_checks import MAX_LIVE_BYTES
from fusion.errors import BackboneError, TaskError
from fusion.release import exact_summary
from fusion.task import OnnxEncoder, Task
from tests.partners import noisy

Floats = NDArray[np.float32]

NUMBERS_TOML = """
name = "sensors"
kind = "classification"
[label]
column = "state"
classes = [ { name = "calm", values = ["0"] }, { name = "busy", values = ["1"] } ]
[privacy]
max_epsilon = 10.0
delta = 1e-5
[[columns]]
name = "heat"
type = "number"
lower = 0
upper = 100
[[columns]]
name = "noise"
type = "number"
lower = -1
upper = 1
[encoder]
kind = "onnx"
sha256 = "%s"
bytes = %d
features = %d
"""

PICTURES_TOML = """
name = "shapes"
kind = "classification"
[label]
column = "shape"
classes = [ { name = "dark", values = ["0"] }, { name = "bright", values = ["1"] } ]
[privacy]
max_epsilon = 10.0
delta = 1e-5
[[columns]]
name = "picture"
type = "image"
height = 8
width = 6
[encoder]
kind = "onnx"
sha256 = "%s"
bytes = %d
features = %d
[encoder.picture]
layout = "%s"
height = 16
width = 12
channels = 3
mean = [0.4, 0.5, 0.6]
std = [0.2, 0.25, 0.3]
"""


# --- small backbones, made here -------------------------------------------------------------------------------------


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[Any]],
    shape: list[int | str],
) -> onnx.ModelProto:
    """A model from `in` to `out`."""
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    leaving = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    entry = helper.make_tensor_value_info("in", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "backbone", [entry], [leaving], initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layer(features: int = 16) -> onnx.ModelProto:
    """Two numbers -> tanh of random directions."""
    weights = np.random.default_rng(1).normal(size=(2, features)).astype(np.float32)
    shift = np.linspace(-1.0, 1.0, features, dtype=np.float32)
    nodes = [
        helper.make_node("Gemm", ["in", "weights", "shift"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["out"]),
    ]
    return model_of(nodes, {"weights": weights, "shift": shift}, ["N", 2])


def convolutions(layout: str = "NCHW") -> onnx.ModelProto:
    """Three channels of 16 x 12 pixels -> averages of eight filters over a grid of 2 x 2: 32 numbers."""
    filters = np.random.default_rng(2).normal(size=(8, 3, 3, 3)).astype(np.float32)
    turned = [helper.make_node("Transpose", ["in"], ["turned"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []
    nodes = [
        *turned,
        helper.make_node("Conv", ["turned" if turned else "in", "filters"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["seen"], ["kept"]),
        helper.make_node("AveragePool", ["kept"], ["grid"], kernel_shape=[8, 6], strides=[8, 6]),
        helper.make_node("Flatten", ["grid"], ["out"]),
    ]
    return model_of(nodes, {"filters": filters}, ["N", 3, 16, 12] if layout == "NCHW" else ["N", 16, 12, 3])


def settings_of(data: bytes, features: int, output: str = "") -> OnnxEncoder:
    return OnnxEncoder("onnx", 0.4, hashlib.sha256(data).hexdigest(), len(data), features, output)


def numbers_task(data: bytes, features: int = 16) -> Task:
    return Task.from_toml(NUMBERS_TOML % (hashlib.sha256(data).hexdigest(), len(data), features), "sensors.toml")


def pictures_task(data: bytes, layout: str = "NCHW") -> Task:
    return Task.from_toml(PICTURES_TOML % (hashlib.sha256(data).hexdigest(), len(data), 32, layout), "shapes.toml")


LAYER = layer().SerializeToString()
CONVOLUTIONS = convolutions().SerializeToString()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one directory in which backbones are looked for."""
    place = tmp_path / "public backbones"
    place.mkdir()
    monkeypatch.setattr(backbones, "_directories", [])
    monkeypatch.setenv(backbones.ENVIRONMENT, str(place))
    return place


def put(folder: Path, data: bytes) -> Path:
    path = folder / f"{hashlib.sha256(data).hexdigest()}.onnx"
    path.write_bytes(data)
    return path


@cache
def _sensor_rows() -> BackboneRows:
    """The encoder of the two numbers, without a file: hypothesis runs it many times."""
    task = numbers_task(LAYER)
    assert isinstance(task.encoder, OnnxEncoder)
    return BackboneRows(task.encoder, task.columns, open_backbone(LAYER, task.encoder, (1, 2)))


def sensors(heat: Any, noise: Any) -> Batch:
    columns = {"heat": np.asarray(heat, dtype=np.float64), "noise": np.asarray(noise, dtype=np.float64)}
    return Batch(columns, {}, None, len(columns["heat"]))


def pictures(count: int, seed: int = 3) -> Batch:
    """Dark and bright ones."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, count)
    pixels = np.clip(rng.normal(60 + 120 * label[:, None, None, None], 30, (count, 8, 6, 1)), 0, 255).astype(np.uint8)
    return Batch({}, {}, label, count, None, {"picture": pixels})


# --- the promises of every encoder ----------------------------------------------------------------------------------


def test_numbers_are_scaled_by_their_bounds_and_the_output_is_turned_into_a_direction(folder: Path) -> None:
    put(folder, LAYER)
    x = encoder_for(numbers_task(LAYER)).encode(sensors([75.0, 1e9, np.nan], [-0.5, 1.0, np.nan]))
    weights, shift = (numpy_helper.to_array(one).astype(np.float64) for one in layer().graph.initializer)
    for row, scaled in zip(x, ([0.5, -0.5], [1.0, 1.0], [0.0, 0.0]), strict=True):
        v = np.tanh(np.array(scaled) @ weights + shift)
        np.testing.assert_allclose(row[:-1], np.sqrt(1 - 0.16) * v / np.linalg.norm(v), atol=1e-6)
        assert row[-1] == 0.4


def test_pictures_are_enlarged_and_scaled_as_torch_does_it(folder: Path) -> None:
    import torch

    put(folder, CONVOLUTIONS)
    batch = pictures(5)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(batch.images["picture"].astype(np.float64)).permute(0, 3, 1, 2),
        size=(16, 12),
        mode="bilinear",
        align_corners=False,
    )
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    filters = torch.from_numpy(numpy_helper.to_array(convolutions().graph.initializer[0]).astype(np.float64))
    seen = torch.relu(torch.conv2d((large / 255 - mean) / std, filters, padding=1))
    v = torch.nn.functional.avg_pool2d(seen, (8, 6)).flatten(1).numpy()
    expected = np.sqrt(1 - 0.16) * v / np.linalg.norm(v, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder_for(pictures_task(CONVOLUTIONS)).encode(batch)[:, :-1], expected, atol=1e-5)


def test_channels_last_is_the_same_picture(folder: Path) -> None:
    last = convolutions("NHWC").SerializeToString()
    put(folder, CONVOLUTIONS)
    put(folder, last)
    one = encoder_for(pictures_task(CONVOLUTIONS)).encode(pictures(4))
    other = encoder_for(pictures_task(last, "NHWC")).encode(pictures(4))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_picture_of_its_own_size_is_not_changed() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(8, 6, 1)
    assert np.array_equal(enlarge(pixels, enlarging(8, 8), enlarging(6, 6)), pixels)


@given(st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 2), min_size=1, max_size=6))
def test_no_row_of_numbers_is_longer_than_one_or_lacks_the_bias(cells: list[tuple[float, float]]) -> None:
    x = _sensor_rows().encode(sensors([a for a, _ in cells], [b for _, b in cells]))
    assert np.isfinite(x).all()
    assert ((x * x).sum(axis=1) <= 1 + 1e-12).all()
    assert (x[:, -1] == 0.4).all()


@pytest.mark.parametrize("kind", ["numbers", "pictures"])
def test_a_row_is_encoded_to_the_same_bits_whatever_surrounds_it(kind: str, folder: Path) -> None:
    rng = np.random.default_rng(4)
    if kind == "numbers":
        put(folder, LAYER)
        encoder, batch = encoder_for(numbers_task(LAYER)), sensors(rng.uniform(0, 100, 300), rng.uniform(-1, 1, 300))
    else:
        put(folder, CONVOLUTIONS)
        encoder, batch = encoder_for(pictures_task(CONVOLUTIONS)), pictures(300)
    whole = encoder.encode(batch)
    for start, stop in ((0, 1), (1, 2), (7, 20), (255, 300)):
        assert np.array_equal(encoder.encode(batch.slice(slice(start, stop))), whole[start:stop])


def test_a_row_is_encoded_to_the_same_bits_wherever_it_lies_in_memory(folder: Path) -> None:
    put(folder, CONVOLUTIONS)
    encoder, batch = encoder_for(pictures_task(CONVOLUTIONS)), pictures(3)
    whole, pixels = encoder.encode(batch), batch.images["picture"]
    for offset in (1, 3, 7, 33):
        raw = np.zeros(pixels.nbytes + 64, dtype=np.uint8)
        moved = raw[offset : offset + pixels.nbytes].reshape(pixels.shape)
        moved[:] = pixels
        assert np.array_equal(encoder.encode(Batch({}, {}, None, 3, None, {"picture": moved})), whole)


def test_two_openings_of_a_backbone_give_the_same_bits(folder: Path) -> None:
    put(folder, CONVOLUTIONS)
    task, batch = pictures_task(CONVOLUTIONS), pictures(20)
    assert np.array_equal(encoder_for(task).encode(batch), encoder_for(task).encode(batch))


def test_the_sums_of_any_split_of_the_rows_are_the_same(folder: Path) -> None:
    put(folder, CONVOLUTIONS)
    task, batch = pictures_task(CONVOLUTIONS), pictures(600)
    whole = exact_summary(task, [batch]).blocks
    pieces = [exact_summary(task, [batch.slice(part)]).blocks for part in (slice(0, 1), slice(1, 311), slice(311, 600))]
    for name, values in whole.items():
        assert np.array_equal(sum(piece[name] for piece in pieces), values)


def test_an_output_that_is_not_finite_leaves_the_bias_alone(folder: Path) -> None:
    # log(heat) of the lower bound: finite for the probes, minus infinity for one cell
    nodes = [
        helper.make_node("Add", ["in", "one"], ["shifted"]),
        helper.make_node("Abs", ["shifted"], ["positive"]),
        helper.make_node("Log", ["positive"], ["out"]),
    ]
    data = model_of(nodes, {"one": np.float32([1.0])}, [1, 2]).SerializeToString()
    put(folder, data)
    x = encoder_for(numbers_task(data, 2)).encode(sensors([0.0, 50.0], [0.5, 0.5]))
    assert np.array_equal(x[0], [0.0, 0.0, 0.4])
    assert x[1, 1] > 0.5


# --- what is refused ------------------------------------------------------------------------------------------------


def _with(change: Callable[[onnx.ModelProto], None]) -> Callable[[], onnx.ModelProto]:
    def made() -> onnx.ModelProto:
        model = layer()
        change(model)
        return model

    return made


def _external(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def _external_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))


def _custom(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[1].domain = "com.microsoft"
    model.graph.node[1].op_type = "Gelu"


def _undeclared(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.microsoft"


def _branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node[1].CopyFrom(helper.make_node("If", ["sum"], ["out"], then_branch=inner, else_branch=inner))


def _hidden_graph(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("body", helper.make_graph([], "inner", [], [])))


def _random(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(helper.make_node("RandomNormalLike", ["sum"], ["out"]))


def _function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("f", "Tanh", ["a"], ["b"], [], [helper.make_opsetid("", 17)]))


def _huge(model: onnx.ModelProto) -> None:
    side = int(MAX_LIVE_BYTES**0.5)
    tiled = helper.make_node("Expand", ["sum", "to"], ["many"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([side, side, 16], dtype=np.int64), "to"))
    model.graph.node[1].CopyFrom(tiled)
    model.graph.node.append(helper.make_node("ReduceMean", ["many"], ["out"], axes=[0, 1], keepdims=0))


def _absurd_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 2**40]))


def _depends_on_data(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(helper.make_node("Cast", ["sum"], ["whole"], to=TensorProto.INT64))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["whole"], ["out"]))


def _not_a_number(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(helper.make_node("Log", ["sum"], ["out"]))


def _two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 2]))


def _other_width(model: onnx.ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("in", TensorProto.FLOAT, ["N", 3]))


def _whole_numbers(model: onnx.ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("in", TensorProto.INT64, ["N", 2]))


def _broken(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, None))


def _text(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(["a"], dtype=object), "text"))


REFUSED = {
    "weights in another file": (_external, "another file"),
    "a constant in another file": (_external_constant, "another file"),
    "a custom domain": (_custom, "outside the ONNX standard"),
    "a custom domain that it does not declare": (_undeclared, "the operator Tanh"),
    "a branch": (_branch, "the operator If"),
    "a graph hidden in an attribute": (_hidden_graph, "holds a graph"),
    "random numbers": (_random, "RandomNormalLike"),
    "a function": (_function, "functions"),
    "values of gigabytes": (_huge, "MB of memory"),
    "a weight of yottabytes": (_absurd_weight, "impossible size"),
    "a size that depends on the data": (_depends_on_data, "depends on the data|known beforehand"),
    "an output that is not a number": (_not_a_number, "not finite"),
    "two inputs": (_two_inputs, "2 inputs"),
    "an input of another width": (_other_width, "any x 3, where the task says 1 x 2"),
    "an input of whole numbers": (_whole_numbers, "not float32"),
    "an edge from nowhere": (_broken, "breaks the rules"),
    "two outputs and no choice": (_two_outputs, "2 outputs"),
    "texts": (_text, "common numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_backbone_is_refused_that_has(name: str) -> None:
    change, reason = REFUSED[name]
    data = _with(change)().SerializeToString()
    with pytest.raises(BackboneError, match=reason):
        open_backbone(data, settings_of(data, 16), (1, 2))


def test_the_small_backbones_of_these_tests_are_refused_for_nothing_else() -> None:
    assert open_backbone(LAYER, settings_of(LAYER, 16), (1, 2)).run(np.float32([[0.1, 0.2]])).shape == (16,)


def test_another_number_of_features_than_the_task_says_is_refused() -> None:
    with pytest.raises(BackboneError, match="16 numbers, where the task says 17"):
        open_backbone(LAYER, settings_of(LAYER, 17), (1, 2))


def test_one_of_two_outputs_is_taken_by_name() -> None:
    model = layer()
    _two_outputs(model)
    data = model.SerializeToString()
    row = np.float32([[0.25, -0.5]])
    inner = open_backbone(data, settings_of(data, 16, "sum"), (1, 2)).run(row)
    np.testing.assert_allclose(np.tanh(inner), open_backbone(data, settings_of(data, 16, "out"), (1, 2)).run(row), 1e-6)


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x08\xff\xff", LAYER[:100], LAYER[:-7]])
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    with pytest.raises(BackboneError, match="cannot be taken"):
        open_backbone(data, settings_of(data, 16), (1, 2))


@given(st.integers(0, len(LAYER) - 1), st.integers(1, 255))
def test_a_changed_byte_gives_a_backbone_or_a_refusal_and_nothing_else(place: int, change: int) -> None:
    data = bytes([*LAYER[:place], LAYER[place] ^ change, *LAYER[place + 1 :]])
    try:
        made = open_backbone(data, settings_of(data, 16), (1, 2))
    except BackboneError:
        return
    assert made.run(np.float32([[0.1, 0.2]])).shape == (16,)


# --- finding the file -----------------------------------------------------------------------------------------------


def test_a_backbone_that_is_not_here_is_asked_for_in_one_sentence(folder: Path) -> None:
    task = numbers_task(LAYER)
    with pytest.raises(BackboneError) as refused:
        encoder_for(task)
    for part in (str(len(LAYER)), hashlib.sha256(LAYER).hexdigest(), str(folder)):
        assert part in str(refused.value)


def test_a_file_of_the_right_name_and_other_bytes_is_refused(folder: Path) -> None:
    path = put(folder, LAYER)
    path.write_bytes(bytes([LAYER[0] ^ 1, *LAYER[1:]]))
    with pytest.raises(BackboneError, match="its SHA-256 is"):
        encoder_for(numbers_task(LAYER))


def test_of_a_file_that_is_too_long_no_more_is_read_than_the_task_says(folder: Path) -> None:
    path = put(folder, LAYER)
    os.truncate(path, 2**40)  # a sparse terabyte: reading it whole would fail
    with pytest.raises(BackboneError, match="it has more bytes"):
        encoder_for(numbers_task(LAYER))


def test_told_directories_come_before_those_of_the_environment(tmp_path: Path, folder: Path) -> None:
    backbones.use_directory(tmp_path / "not there")
    assert backbones.search_path() == (tmp_path / "not there", folder)
    path = put(folder, LAYER)
    assert backbones.find(settings_of(LAYER, 16)) == path


def test_a_backbone_is_kept_only_after_it_was_checked(tmp_path: Path, folder: Path) -> None:
    source, home = tmp_path / "b.onnx", tmp_path / "home"
    bad = _with(_branch)().SerializeToString()
    source.write_bytes(bad)
    with pytest.raises(BackboneError):
        backbones.install(source, settings_of(bad, 16), (1, 2), home)
    assert not home.exists()
    source.write_bytes(LAYER)
    kept = backbones.install(source, settings_of(LAYER, 16), (1, 2), home)
    assert kept.read_bytes() == LAYER
    assert kept.stat().st_mode & 0o077 == 0
    assert [path.name for path in home.iterdir()] == [kept.name]


# --- the task -------------------------------------------------------------------------------------------------------


def test_the_canonical_form_comes_back_the_same_and_knows_no_file(folder: Path) -> None:
    text = PICTURES_TOML % ("a" * 64, 1000, 32, "NHWC")
    task = Task.from_toml(text, "shapes.toml")
    named = Task.from_toml(text.replace('kind = "onnx"', 'kind = "onnx"\nfile = "b.onnx"'), "shapes.toml")
    assert Task.from_canonical(task.canonical()) == task == named
    assert b"b.onnx" not in named.canonical()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('sha256 = "', 'sha256 = "G', "64 digits"),
        ("bytes = 1000", "bytes = 0", "bytes must be a whole number"),
        ("bytes = 1000", "bytes = 1000000000000", "bytes must be a whole number"),
        ("features = 32", "features = 4096", "features must be a whole number"),
        ("height = 16", "height = 7", "must not be smaller"),
        ("channels = 3", "channels = 2", "those of the column, or 3"),
        ("mean = [0.4, 0.5, 0.6]", "mean = [0.4, 0.5]", "a list of 3 numbers"),
        ("std = [0.2, 0.25, 0.3]", "std = [0.2, 0.0, 0.3]", "at least 0.001"),
        ("std = [0.2, 0.25, 0.3]", "std = [0.2, nan, 0.3]", "finite"),
        ('layout = "NHWC"', 'layout = "HWC"', "one of: NCHW, NHWC"),
        ('layout = "NHWC"', 'layout = "NHWC"\nspeed = 3', "not a field known"),
        ("[encoder]\n", '[[columns]]\nname = "x"\ntype = "number"\nlower = 0\nupper = 1\n[encoder]\n', "one picture"),
        ('type = "image"\nheight = 8\nwidth = 6', 'type = "text"', "one picture or numbers alone"),
    ],
)
def test_a_task_is_refused_with(old: str, new: str, reason: str) -> None:
    text = PICTURES_TOML % ("a" * 64, 1000, 32, "NHWC")
    assert old in text
    with pytest.raises(TaskError, match=reason):
        Task.from_toml(text.replace(old, new), "shapes.toml")


def test_a_file_named_by_a_task_of_a_peer_is_an_unknown_field() -> None:
    canonical = Task.from_toml(PICTURES_TOML % ("a" * 64, 1000, 32, "NHWC"), "t").canonical()
    with pytest.raises(TaskError, match="file is not a field known here"):
        Task.from_canonical(canonical.replace(b'"features":32', b'"features":32,"file":"/etc/passwd"'))


# --- the whole way --------------------------------------------------------------------------------------------------


@pytest.fixture
def sensor_rows(tmp_path: Path) -> Path:
    """2,000 rows: busy where it is warm, but not hot, which no straight line finds."""
    rng = np.random.default_rng(5)
    heat, noise = rng.uniform(0, 100, 2000), rng.uniform(-1, 1, 2000)
    lines = [f"{a:.3f},{b:.3f},{int(30 < a < 70)}" for a, b in zip(heat, noise, strict=True)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["heat,noise,state", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tidings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: (exit code, output, remarks)."""
    from node.__main__ import run

    def command(*words: object) -> tuple[int, str, str]:
        code = run([str(word) for word in ("--home", tmp_path / "home", *words)], debug=False)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    assert command("init", "--name", "a")[0] == 0
    return command


def test_from_a_task_file_with_a_backbone_to_predictions(
    tidings: Callable[..., tuple[int, str, str]], tmp_path: Path, sensor_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(backbones.ENVIRONMENT)
    (tmp_path / "b.onnx").write_bytes(LAYER)
    text = NUMBERS_TOML % (hashlib.sha256(LAYER).hexdigest(), len(LAYER), 16)
    (tmp_path / "sensors.toml").write_text(text + 'file = "b.onnx"\n', encoding="utf-8")
    assert tidings("task", "add", tmp_path / "sensors.toml")[0] == 0
    assert hashlib.sha256(LAYER).hexdigest() in tidings("task", "show", "sensors")[1]
    assert tidings("publish", "sensors", sensor_rows, "--epsilon", 8)[0] == 0
    scores = {}
    for ending in ("onnx", "safetensors"):
        model = tmp_path / f"m.{ending}"
        code, card, _ = tidings("query", "sensors", "-o", model)
        assert code == 0
        assert hashlib.sha256(LAYER).hexdigest() in card
        code, shown, _ = tidings("evaluate", model, sensor_rows, "--json")
        scores[ending] = json.loads(shown)
        assert code == 0
    assert scores["onnx"]["accuracy"] > 0.8  # the larger class alone is 0.6
    assert scores["onnx"]["log_loss"] == pytest.approx(scores["safetensors"]["log_loss"], abs=1e-5)
    assert tidings("verify", tmp_path / "m.onnx")[0] == 0
    code, shown, _ = tidings("predict", tmp_path / "m.onnx", sensor_rows)
    assert code == 0
    assert len(shown.splitlines()) == 2001
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [one.name for one in graph.input] == ["features"]
    assert "Tanh" not in {node.op_type for node in graph.node}  # no foreign graph in a model file


def test_without_its_backbone_a_task_is_accepted_and_nothing_is_charged(
    tidings: Callable[..., tuple[int, str, str]], tmp_path: Path, sensor_rows: Path
) -> None:
    text = NUMBERS_TOML % (hashlib.sha256(LAYER).hexdigest(), len(LAYER), 16)
    (tmp_path / "sensors.toml").write_text(text, encoding="utf-8")
    code, _, said = tidings("task", "add", tmp_path / "sensors.toml")
    assert code == 0
    assert f"{hashlib.sha256(LAYER).hexdigest()}.onnx" in said
    code, _, said = tidings("publish", "sensors", sensor_rows, "--epsilon", 8)
    assert code == 1
    assert "put it at" in said
    assert tidings("budget", "--json")[1].strip() == "[]"
    (tmp_path / "b.onnx").write_bytes(LAYER)
    code, _, said = tidings("task", "add", "sensors", "--backbone", tmp_path / "b.onnx")
    assert code == 0
    assert "put it at" not in said
    assert tidings("publish", "sensors", sensor_rows, "--epsilon", 8)[0] == 0


def test_a_wrong_backbone_leaves_no_task_behind(tidings: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "b.onnx").write_bytes(CONVOLUTIONS)
    text = NUMBERS_TOML % (hashlib.sha256(LAYER).hexdigest(), len(LAYER), 16)
    (tmp_path / "sensors.toml").write_text(text + 'file = "b.onnx"\n', encoding="utf-8")
    code, _, said = tidings("task", "add", tmp_path / "sensors.toml")
    assert code == 1
    assert "is not the task's backbone" in said
    assert "sensors" not in tidings("task", "list")[1]
    assert not (tmp_path / "home" / "backbones").exists()


def test_pictures_go_the_whole_way_too(
    tidings: Callable[..., tuple[int, str, str]], tmp_path: Path, folder: Path
) -> None:
    put(folder, CONVOLUTIONS)
    text = PICTURES_TOML % (hashlib.sha256(CONVOLUTIONS).hexdigest(), len(CONVOLUTIONS), 32, "NCHW")
    (tmp_path / "shapes.toml").write_text(text, encoding="utf-8")
    for name, seed in (("train", 9), ("test", 10)):
        rows = pictures(1500, seed)
        np.savez(tmp_path / f"{name}.npz", picture=rows.images["picture"][..., 0], shape=np.asarray(rows.label))
    assert tidings("task", "add", tmp_path / "shapes.toml")[0] == 0
    assert tidings("publish", "shapes", tmp_path / "train.npz", "--epsilon", 5)[0] == 0
    assert tidings("query", "shapes", "-o", tmp_path / "m.onnx")[0] == 0
    code, shown, _ = tidings("evaluate", tmp_path / "m.onnx", tmp_path / "test.npz", "--json")
    assert code == 0
    assert json.loads(shown)["accuracy"] > 0.95


def test_pictures_are_learned_in_process_and_the_graph_agrees_with_the_layers(folder: Path) -> None:
    import onnxruntime

    from fusion.heads import forward
    from fusion.model import build_model, card, write_onnx
    from fusion.scoring import softmax

    put(folder, CONVOLUTIONS)
    task = pictures_task(CONVOLUTIONS)
    model = build_model(task, [noisy(task, pictures(1500, seed), 5.0, f"node {seed}") for seed in (6, 7)])
    test = pictures(300, 8)
    expected = softmax(forward(model.layers, model.encoder.encode(test)))
    assert (expected.argmax(axis=1) == test.label).mean() > 0.95
    seen = BackboneRows.of(task).outputs(test)
    session = onnxruntime.InferenceSession(write_onnx(model, card(model, [], "node", "now")))
    np.testing.assert_allclose(session.run(None, {"features": seen})[1], expected, atol=1e-6)
    # A backbone that saw nothing, or something that is not a number: both give zeros.
    nothing = forward(model.layers, unit_rows(np.zeros((1, 32), np.float32), 0.4))
    blank = session.run(None, {"features": np.zeros((1, 32), np.float32)})[1]
    np.testing.assert_allclose(blank, softmax(nothing), atol=1e-6)


def test_a_task_of_pictures_is_audited_with_made_up_pictures(folder: Path) -> None:
    put(folder, CONVOLUTIONS)
    measured = audit(pictures_task(CONVOLUTIONS), 10.0, 100)
    assert measured.entries == 33 * 34 // 2 + 33
    assert 0.999 < measured.canary_share <= 1.0
