"""The encoder: public geometry, one row at a time, never longer than one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.dataset import Batch
from fusion.encoders import encoder_for
from fusion.encoders.tabular import simplex
from fusion.summaries.moments import UNIT, quantize
from fusion.task import Task, dimension

TASK = Task.from_toml(
    """
name = "t"
kind = "classification"
[label]
column = "y"
classes = [ { name = "a", values = ["a"] }, { name = "b", values = ["b"] } ]
[privacy]
max_epsilon = 1
[[columns]]
name = "plain"
type = "number"
lower = -10
upper = 30
[[columns]]
name = "binned"
type = "number"
lower = 0
upper = 1
bins = 4
[[columns]]
name = "flag"
type = "category"
values = ["no", "yes"]
[[columns]]
name = "color"
type = "category"
values = ["red", "green", "blue"]
[encoder]
kind = "tabular"
bias = 0.4
""",
    "task.toml",
)
ENCODER = encoder_for(TASK)


def rows(plain: list[float], binned: list[float], flag: list[int], color: list[int]) -> Batch:
    return Batch(
        {"plain": np.array(plain), "binned": np.array(binned)},
        {"flag": np.array(flag), "color": np.array(color)},
        np.zeros(len(plain), dtype=np.int64),
        len(plain),
    )


any_float = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([1e308, -1e308, -0.0, 5e-324])
any_index = st.integers(-3, 5)
any_row = st.tuples(any_float, any_float, any_index, any_index)
any_rows = st.lists(any_row, min_size=1, max_size=40)


def batch_of(values: list[tuple[float, float, int, int]]) -> Batch:
    plain, binned, flag, color = (list(column) for column in zip(*values, strict=True))
    return rows(plain, binned, flag, color)


@pytest.mark.parametrize("corners", [2, 3, 4, 10, 64])
def test_the_corners_are_a_regular_simplex_around_the_origin(corners: int) -> None:
    points = simplex(corners)
    assert points.shape == (corners, corners - 1)
    products = points @ points.T
    expected = np.full((corners, corners), -1.0 / (corners - 1))
    np.fill_diagonal(expected, 1.0)
    np.testing.assert_allclose(products, expected, atol=1e-12)
    np.testing.assert_allclose(points.sum(axis=0), 0.0, atol=1e-12)


def test_two_corners_are_minus_one_and_plus_one() -> None:
    assert simplex(2).tolist() == [[-1.0], [1.0]]


def test_the_dimension_is_what_the_task_says() -> None:
    assert ENCODER.dimension == dimension(TASK) == 2 + 4 + 2 + 3 + 1


def test_a_plain_number_runs_from_minus_one_to_plus_one() -> None:
    block = ENCODER.blocks[0]
    places = block.coordinates(rows([-10.0, 0.0, 10.0, 30.0], [0.0] * 4, [0] * 4, [0] * 4))
    np.testing.assert_allclose(places[:, 0], [-1.0, -0.5, 0.0, 1.0])
    assert places[:, 1].tolist() == [0.0] * 4


def test_a_binned_number_walks_from_corner_to_corner() -> None:
    block = ENCODER.blocks[1]
    places = block.coordinates(rows([0.0] * 4, [0.0, 1 / 3, 0.5, 1.0], [0] * 4, [0] * 4))[:, :3]
    corners = simplex(4)
    np.testing.assert_allclose(places, [corners[0], corners[1], (corners[1] + corners[2]) / 2, corners[3]], atol=1e-12)


def test_missing_and_unknown_cells_set_the_indicator_alone() -> None:
    batch = rows([math.nan], [math.nan], [-1], [7])
    for block in ENCODER.blocks:
        assert block.coordinates(batch).tolist() == [[0.0] * (block.width - 1) + [1.0]]


def test_a_row_of_missing_cells_still_has_the_bias() -> None:
    x = ENCODER.encode(rows([math.nan], [math.nan], [-1], [-1]))
    assert x[0, -1] == 0.4
    assert np.linalg.norm(x[0]) == pytest.approx(1.0)


def test_values_beyond_the_bounds_count_as_the_bounds() -> None:
    inside = ENCODER.encode(rows([-10.0, 30.0], [0.0, 1.0], [0, 1], [0, 1]))
    outside = ENCODER.encode(rows([-math.inf, 1e308], [-1e308, math.inf], [0, 1], [0, 1]))
    np.testing.assert_array_equal(inside, outside)


@given(any_rows)
def test_no_row_is_longer_than_one_even_in_whole_numbers(values: list[tuple[float, float, int, int]]) -> None:
    x = ENCODER.encode(batch_of(values))
    assert np.isfinite(x).all()
    assert (np.linalg.norm(x, axis=1) <= 1 + 1e-12).all()
    whole = np.trunc(x * 2**16).astype(np.int64)
    assert all(sum(int(entry) ** 2 for entry in row) <= UNIT for row in whole)
    np.testing.assert_array_equal(quantize(x, np.ones(len(x), dtype=np.int64)), whole)


@given(any_rows, st.data())
def test_a_row_is_encoded_the_same_whatever_surrounds_it(
    values: list[tuple[float, float, int, int]], data: st.DataObject
) -> None:
    together = ENCODER.encode(batch_of(values))
    index = data.draw(st.integers(0, len(values) - 1))
    alone = ENCODER.encode(batch_of([values[index]]))
    assert alone[0].tobytes() == together[index].tobytes()
