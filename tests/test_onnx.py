"""The exported graph: raw columns in, the very predictions of the encoder and layers out."""

import io
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.artifact import Model, to_tensors
from fusion.dataset import Batch
from fusion.heads import Layer, forward
from fusion.model import build_model, card, write_onnx
from fusion.onnx_graph import onnx_model, output_names, tensor_prefix
from fusion.scoring import onnx_inputs, softmax
from fusion.task import CategoryColumn, Task, spellings
from tests.partners import CLASSES_TOML, STAY, WARD, noisy, stay_rows, ward_rows

WARD_MODEL = build_model(WARD, [noisy(WARD, ward_rows(400, s), 5.0, f"{s}") for s in range(3)])
STAY_MODEL = build_model(STAY, [noisy(STAY, stay_rows(400, s), 5.0, f"{s}") for s in range(3)])


def session(model: Model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(write_onnx(model, card(model, [], "node", "now")))


WARD_SESSION, STAY_SESSION = session(WARD_MODEL), session(STAY_MODEL)


def run(one: onnxruntime.InferenceSession, cells: dict[str, list[Any]], task: Task) -> list[Any]:
    inputs = {}
    for column in task.columns:
        kind = object if isinstance(column, CategoryColumn) else np.float32
        inputs[column.name] = np.array(cells[column.name], dtype=kind).reshape(-1, 1)
    return one.run(None, inputs)


def batch_of(cells: dict[str, list[Any]], task: Task) -> Batch:
    """What the dataset reader makes of these cells: infinite numbers and unknown texts are missing."""
    numbers, categories = {}, {}
    for column in task.columns:
        if isinstance(column, CategoryColumn):
            table = spellings(column)
            categories[column.name] = np.array([table.get(text, -1) for text in cells[column.name]])
        else:
            values = np.array(cells[column.name], dtype=np.float32).astype(np.float64)
            numbers[column.name] = np.where(np.isinf(values), np.nan, values)
    return Batch(numbers, categories, None, len(next(iter(cells.values()))))


numbers = st.floats(-200, 200, width=32) | st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 0.0, 50.0, 100.0, 1e30])
texts = st.sampled_from(["walk", "ambulance", "7", "7.0", "", "?", "WALK", " walk", "07", "unknown"]) | st.text(
    max_size=5
)
ward_cells = st.lists(st.tuples(numbers, numbers, texts), min_size=1, max_size=8)


@given(ward_cells)
@settings(max_examples=200)
def test_class_probabilities_agree_with_the_layers_on_any_cells(rows: list[tuple[float, float, str]]) -> None:
    cells = dict(zip(("age", "label", "arrival"), map(list, zip(*rows, strict=True)), strict=True))
    labels, probabilities = run(WARD_SESSION, cells, WARD)
    expected = softmax(forward(WARD_MODEL.layers, WARD_MODEL.encoder.encode(batch_of(cells, WARD))))
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert labels.tolist() == [WARD.class_names[i] for i in expected.argmax(1)]


@given(st.lists(st.tuples(numbers, st.sampled_from(["a", "b", "", "c"])), min_size=1, max_size=8))
@settings(max_examples=100)
def test_predicted_numbers_agree_with_the_layers_and_stay_within_bounds(rows: list[tuple[float, str]]) -> None:
    cells = dict(zip(("age", "value"), map(list, zip(*rows, strict=True)), strict=True))
    (values,) = run(STAY_SESSION, cells, STAY)
    scaled = forward(STAY_MODEL.layers, STAY_MODEL.encoder.encode(batch_of(cells, STAY)))
    np.testing.assert_allclose(values, 20.0 + 20.0 * np.clip(scaled, -1, 1), rtol=1e-5, atol=1e-5)
    assert ((values >= 0.0) & (values <= 40.0)).all()


def test_a_spelling_with_a_decimal_point_is_the_same_category() -> None:
    cells = {"age": [40.0, 40.0, 40.0], "label": [3.0, 3.0, 3.0], "arrival": ["7", "7.0", "seven"]}
    _labels, probabilities = run(WARD_SESSION, cells, WARD)
    np.testing.assert_array_equal(probabilities[0], probabilities[1])
    assert (probabilities[0] != probabilities[2]).any()


def test_inputs_and_outputs_are_named_after_the_task_and_never_collide() -> None:
    """Both tasks have a column with the name that an output would have had."""
    assert [one.name for one in WARD_SESSION.get_inputs()] == ["age", "label", "arrival"]
    assert [one.name for one in WARD_SESSION.get_outputs()] == ["label_", "probabilities"] == list(output_names(WARD))
    assert [one.name for one in STAY_SESSION.get_outputs()] == ["value_"]
    assert WARD_SESSION.get_inputs()[0].type == "tensor(float)"
    assert WARD_SESSION.get_inputs()[2].type == "tensor(string)"
    odd = Task.from_toml(CLASSES_TOML.replace('"age"', '"tidings/x"'), "odd.toml")
    assert tensor_prefix(odd) == "tidings_"


def test_the_graph_passes_the_checker_and_holds_everything_inline() -> None:
    proto = onnx.load(io.BytesIO(write_onnx(WARD_MODEL, card(WARD_MODEL, [], "node", "now"))))
    onnx.checker.check_model(proto, full_check=True)
    assert {(one.domain, one.version) for one in proto.opset_import} == {("", 17), ("ai.onnx.ml", 3)}
    assert proto.ir_version == 8
    assert all(one.data_location == onnx.TensorProto.DEFAULT for one in proto.graph.initializer)


def test_several_layers_run_with_a_relu_between_them() -> None:
    rng = np.random.default_rng(3)
    d = WARD_MODEL.encoder.dimension
    layers = (Layer(rng.normal(size=(d, 5)), rng.normal(size=5)), Layer(rng.normal(size=(5, 3)), rng.normal(size=3)))
    deep = Model(WARD_MODEL.manifest, to_tensors(layers))
    batch = ward_rows(50, 9)
    one = onnxruntime.InferenceSession(onnx_model(deep, {}).SerializeToString())
    (probabilities,) = one.run(["probabilities"], onnx_inputs(batch, WARD))
    rounded = softmax(forward(deep.layers, deep.encoder.encode(batch)))
    np.testing.assert_allclose(probabilities, rounded, atol=1e-5)


def test_one_row_and_many_rows_give_the_same_prediction() -> None:
    inputs = onnx_inputs(ward_rows(20, 2), WARD)
    (together,) = WARD_SESSION.run(["probabilities"], inputs)
    alone = [WARD_SESSION.run(["probabilities"], {k: v[i : i + 1] for k, v in inputs.items()})[0] for i in range(20)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-7)


@pytest.mark.parametrize("rows", [0, 1])
def test_an_empty_batch_is_no_special_case(rows: int) -> None:
    inputs = {name: values[:rows] for name, values in onnx_inputs(ward_rows(3, 2), WARD).items()}
    assert WARD_SESSION.run(["probabilities"], inputs)[0].shape == (rows, 3)
