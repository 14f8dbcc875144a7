"""The lift: a Gaussian kernel in public random features, the same bits in any batch."""

import math

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.encoders import encoder_for
from fusion.encoders.lift import LiftedRows, directions, sine_of_turns
from fusion.errors import TaskError
from fusion.heads import forward
from fusion.model import build_model
from fusion.onnx_graph import onnx_model
from fusion.scoring import onnx_inputs, softmax
from fusion.summaries.moments import UNIT, quantize
from fusion.task import Lift, Task, dimension
from tests.partners import CLASSES_TOML, noisy, ward_rows


def lifted(lines: str) -> Task:
    return Task.from_toml(CLASSES_TOML + "[encoder.lift]\n" + lines, "ward.toml")


TASK = lifted("features = 512\ngamma = 2.0\nseed = 3\n")
ENCODER = encoder_for(TASK)
assert isinstance(ENCODER, LiftedRows)


def test_products_come_close_to_the_gaussian_kernel() -> None:
    batch = ward_rows(200, 1)
    x, u = ENCODER.encode(batch), ENCODER.rows.encode(batch)
    distances = ((u[:, None, :] - u[None, :, :]) ** 2).sum(axis=2)
    found = (x @ x.T - ENCODER.bias**2) / (1 - ENCODER.bias**2)
    assert np.abs(found - np.exp(-2.0 * distances)).mean() < 1.5 / math.sqrt(256)


def test_every_row_has_norm_one_even_in_whole_numbers_and_ends_in_the_bias() -> None:
    x = ENCODER.encode(ward_rows(3_000, 2))
    assert x.shape[1] == ENCODER.dimension == dimension(TASK) == 513
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, atol=1e-12)
    assert (x[:, -1] == TASK.encoder.bias).all()
    q = quantize(x, np.ones(len(x), dtype=np.int64))
    assert ((q * q).sum(axis=1) <= UNIT).all()
    np.testing.assert_array_equal(q, np.trunc(x * 2**16))


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=30)
def test_a_row_is_lifted_the_same_whatever_surrounds_it(count: int, seed: int, data: st.DataObject) -> None:
    batch = ward_rows(count, seed)
    at = data.draw(st.integers(0, count - 1))
    together, alone = ENCODER.encode(batch), ENCODER.encode(batch.slice(slice(at, at + 1)))
    assert alone[0].tobytes() == together[at].tobytes()


def test_a_block_of_rows_is_cut_anywhere_without_a_bit_of_difference() -> None:
    batch = ward_rows(2_500, 5)
    whole = ENCODER.encode(batch)
    parts = [ENCODER.encode(batch.slice(slice(a, b))) for a, b in ((0, 7), (7, 1_400), (1_400, 2_500))]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_the_products_are_exact_whole_numbers_at_the_limits() -> None:
    """The longest row and the longest direction that the checks of a task allow stay below 2^53."""
    longest = directions(Lift(2, 1_000.0, 1), 4_095)
    row = np.rint(np.full(4_095, 1 / math.sqrt(4_095)) * 2**24)
    bound = float(np.abs(longest).max(axis=1) @ row)
    assert bound < 2**53
    assert 2**24 * 6 * math.sqrt(2_000) / (2 * math.pi) * 2**14 * math.sqrt(4_095) < 2**53


def test_directions_are_gaussian_public_and_never_change() -> None:
    drawn = directions(Lift(200, 2.0, 7), 50) / 2**14 * 2 * math.pi
    assert abs(drawn.std() - 2.0) < 0.1
    assert abs(drawn.mean()) < 0.1
    assert directions(Lift(4, 1.0, 1), 3).tolist() == GOLDEN
    assert (directions(Lift(4, 1.0, 2), 3) != directions(Lift(4, 1.0, 1), 3)).all()


GOLDEN = [[-7402.0, 4730.0], [1963.0, 2191.0], [155.0, 1235.0]]


@given(st.integers(-(2**50), 2**50))
def test_the_sine_is_that_of_the_library(units: int) -> None:
    turns = units / 2**38
    (value,) = sine_of_turns(np.array([turns]))
    assert abs(value - math.sin(2 * math.pi * (turns % 1.0))) < 3e-15


def test_the_exported_graph_agrees_with_missing_and_unknown_cells() -> None:
    task = lifted("features = 64\n")
    model = build_model(task, [noisy(task, ward_rows(2_000, s), 8.0, f"{s}") for s in range(2)])
    session = onnxruntime.InferenceSession(onnx_model(model, {}).SerializeToString())
    batch = ward_rows(500, 9)
    inputs = onnx_inputs(batch, task)
    inputs["arrival"][:20] = "nobody knows"
    inputs["age"][:10] = np.nan
    batch.categories["arrival"][:20] = -1
    batch.numbers["age"][:10] = np.nan
    (probabilities,) = session.run(["probabilities"], inputs)
    rounded = {name: values.astype(np.float32).astype(np.float64) for name, values in batch.numbers.items()}
    batch.numbers.update(rounded)
    expected = softmax(forward(model.layers, model.encoder.encode(batch)))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_defaults_are_written_out_and_come_back() -> None:
    task = lifted("")
    assert task.encoder.content()["lift"] == {"features": 256, "gamma": 1.0, "seed": 1}
    assert Task.from_canonical(task.canonical()) == task
    plain = Task.from_toml(CLASSES_TOML, "ward.toml")
    assert "lift" not in plain.encoder.content()


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("features = 7", "must be even"),
        ("features = 5000", "between 2 and 4095"),
        ("gamma = 0", "over 0"),
        ("gamma = 1e4", "at most 1000"),
        ("seed = -1", "between 0 and 4294967295"),
        ("directions = 4", "not a field known here"),
    ],
)
def test_a_lift_without_sense_is_refused(lines: str, problem: str) -> None:
    with pytest.raises(TaskError, match=problem):
        lifted(lines + "\n")


def test_a_lift_of_too_many_columns_is_refused() -> None:
    wide = ", ".join(f'"{value}"' for value in range(3_000))
    column = f'[[columns]]\nname = "code"\ntype = "category"\nvalues = [{wide}]\n[encoder]\n'
    text = CLASSES_TOML.replace("[encoder]\n", column) + "[encoder.lift]\nfeatures = 2048\n"
    with pytest.raises(TaskError, match="are too many for columns of 3008 coordinates"):
        Task.from_toml(text, "ward.toml")
