"""The exact sensitivity search: what one record adds is bounded, in whole numbers, for every record there can be.

Statistical tests of a finished release cannot see small errors in a sensitivity; this search can. The deliberate
bugs at the end show that it does.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dataset import Batch, read_batches
from fusion.encode import Encoder
from fusion.errors import DataError
from fusion.summaries import UNIT, Blocks, moments
from fusion.summaries.moments import CROSS, DIAGONAL, MAX_ROWS, MOMENTS, SQUARES, UPPER, assemble, quantize
from fusion.task import Task

COLUMNS = """
[privacy]
max_epsilon = 1
[csv]
missing = ["?"]
[[columns]]
name = "plain"
type = "number"
lower = -5
upper = 40
[[columns]]
name = "binned"
type = "number"
lower = 0
upper = 1
bins = 3
[[columns]]
name = "color"
type = "category"
values = ["red", "green", "blue"]
[encoder]
kind = "tabular"
"""
CLASSES = Task.from_toml(
    'name = "c"\nkind = "classification"\n[label]\ncolumn = "y"\nclasses = [ { name = "a", values = ["a"] }, '
    '{ name = "b", values = ["b"] }, { name = "c", values = ["c"] } ]\n' + COLUMNS,
    "task.toml",
)
REGRESSION = Task.from_toml(
    'name = "r"\nkind = "regression"\n[label]\ncolumn = "y"\nlower = -2\nupper = 2\n' + COLUMNS, "task.toml"
)
TASKS = {"classification": CLASSES, "regression": REGRESSION}

# Delta^2 in units of 2^-64 is a whole number because the weight b of the cross block is 1.
assert moments.CROSS_WEIGHT == 1.0
DELTA_SQUARED = {"classification": 2 * UNIT**2, "regression": 3 * UNIT**2}

Row = tuple[float, float, int, float]  # cells of the three columns, and the label

hostile_float = (
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, -0.0, 5e-324, -5.0, 40.0, 1.0]) | st.floats()
)
row_values = st.tuples(hostile_float, hostile_float, st.integers(-4, 6), hostile_float | st.integers(-3, 5))


def batch_of(task: Task, rows: list[Row]) -> Batch:
    """Rows as no file could give them: cells and labels that were never clipped or looked up."""
    plain, binned, color, label = (list(column) for column in zip(*rows, strict=True))
    classes = [int(value) if math.isfinite(value) and abs(value) < 100 else -1 for value in label]
    return Batch(
        {"plain": np.array(plain), "binned": np.array(binned)},
        {"color": np.array(color)},
        np.array(classes) if task.label.classes else np.array(label, dtype=np.float64),
        len(rows),
    )


def squared_norm(blocks: Blocks) -> int:
    """|| svec(G), M, T ||^2 in Python integers."""
    weights = {DIAGONAL: 1, UPPER: 2, CROSS: 1, SQUARES: 1}
    return sum(weights[name] * sum(int(entry) ** 2 for entry in values) for name, values in blocks.items())


def minus(after: Blocks, before: Blocks) -> Blocks:
    return {name: values - before[name] for name, values in after.items()}


def contribution(task: Task, others: list[Row], row: Row) -> int:
    with_row = MOMENTS.measure(task, [batch_of(task, [*others, row])]).blocks
    without = MOMENTS.measure(task, [batch_of(task, others)] if others else []).blocks
    return squared_norm(minus(with_row, without))


@pytest.mark.parametrize("kind", TASKS)
@given(others=st.lists(row_values, max_size=6), row=row_values)
def test_one_record_more_moves_the_sums_by_no_more_than_delta(kind: str, others: list[Row], row: Row) -> None:
    assert contribution(TASKS[kind], others, row) <= DELTA_SQUARED[kind]


CORNERS = [
    (plain, binned, color, label)
    for plain in (-5.0, 17.5, 40.0, math.nan, math.inf, 1e308)
    for binned in (0.0, 0.25, 0.5, 1.0, -1e308)
    for color in (-1, 0, 1, 2, 9)
    for label in (-1, 0, 2, 7, math.nan)
]


@pytest.mark.parametrize("kind", TASKS)
def test_no_corner_of_the_domain_exceeds_delta_and_one_comes_close(kind: str) -> None:
    norms = [contribution(TASKS[kind], [], row) for row in CORNERS]
    assert max(norms) <= DELTA_SQUARED[kind]
    assert max(norms) > 0.999 * DELTA_SQUARED[kind], "the bound has slack: noise would be wasted"


@pytest.mark.parametrize("kind", TASKS)
def test_the_stated_sensitivity_is_the_proved_one(kind: str) -> None:
    assert MOMENTS.sensitivity(TASKS[kind]) == math.sqrt(DELTA_SQUARED[kind]) / UNIT
    weights = {block.name: block.noise_divisor**2 for block in MOMENTS.layout(TASKS[kind])}
    assert weights == pytest.approx({DIAGONAL: 1, UPPER: 2, CROSS: 1, **({SQUARES: 1} if kind == "regression" else {})})


Line = tuple[str, str, str, str]
cells = st.sampled_from(
    ["", "?", "nan", "inf", "-inf", "1e999", "-1e308", "-0.0", "0", "1", "0.5", "40", "41", "red", "blue", "mauve", "x"]
)

label_cells = st.sampled_from(["a", "c", "z", "", "1", "-9", "nan", "2"])


@settings(max_examples=60)
@pytest.mark.parametrize("kind", TASKS)
@given(lines=st.lists(st.tuples(cells, cells, cells, label_cells), min_size=1, max_size=8))
def test_one_line_more_in_a_file_moves_the_sums_by_no_more_than_delta(
    kind: str, lines: list[Line], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")

    def sums(some: list[Line]) -> Blocks:
        path = folder / "d.csv"
        path.write_text("plain,binned,color,y\n" + "".join(",".join(line) + "\n" for line in some))
        try:
            return MOMENTS.measure(TASKS[kind], read_batches([path], TASKS[kind])).blocks
        except DataError:  # a file of no rows
            return MOMENTS.measure(TASKS[kind], []).blocks

    assert squared_norm(minus(sums(lines), sums(lines[:-1]))) <= DELTA_SQUARED[kind]


@given(st.lists(st.lists(hostile_float | st.floats(-1.5, 1.5), min_size=4, max_size=4), min_size=1, max_size=8))
def test_whatever_an_encoder_returns_no_row_is_longer_than_one(rows: list[list[float]]) -> None:
    q = quantize(np.array(rows))
    assert all(sum(int(entry) ** 2 for entry in row) <= UNIT for row in q)
    assert all(float(entry).is_integer() for row in q for entry in row)


@pytest.mark.parametrize("kind", TASKS)
@given(rows=st.lists(row_values, min_size=1, max_size=30), data=st.data())
def test_any_split_and_order_of_the_rows_gives_the_same_bits(kind: str, rows: list[Row], data: st.DataObject) -> None:
    task = TASKS[kind]
    whole = MOMENTS.measure(task, [batch_of(task, rows)]).blocks
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    parts = [shuffled[a:b] for a, b in itertools.pairwise([0, *cuts, len(rows)]) if a < b]
    sums = [MOMENTS.measure(task, [batch_of(task, part)]).blocks for part in parts]
    for name, values in whole.items():
        np.testing.assert_array_equal(sum(part[name] for part in sums), values)


def test_sums_of_many_blocks_are_exact() -> None:
    """Against Python integers, over more rows than one block holds."""
    rng = np.random.default_rng(7)
    count = 2 * moments.BLOCK_ROWS + 123
    numbers = rng.uniform(-9, 50, count), rng.uniform(0, 1, count)
    indices = rng.integers(-1, 3, count), rng.integers(0, 3, count)
    rows = list(zip(*numbers, *indices, strict=True))
    batch = batch_of(CLASSES, rows)
    sums = assemble(CLASSES, MOMENTS.measure(CLASSES, [batch]).blocks)
    q = quantize(moments.encoder_for(CLASSES).encode(batch)).astype(np.int64).astype(object)
    assert (sums.gram == q.T @ q).all()
    onehot = (np.array(batch.label)[:, None] == np.arange(3)).astype(object) * 2**16
    assert (sums.cross == q.T @ onehot).all()


def test_too_many_rows_are_refused_before_anything_could_overflow() -> None:
    assert MAX_ROWS * UNIT < 2**63
    endless = Batch({}, {}, np.zeros(0, dtype=np.int64), MAX_ROWS + 1)
    with pytest.raises(DataError, match="at most 1073741824 rows; split the data"):
        MOMENTS.measure(CLASSES, [endless])


# --- deliberate bugs: the search above must find each of them ------------------------------------------------


def longest(kind: str) -> int:
    return max(contribution(TASKS[kind], [], row) for row in CORNERS)


def no_clipping(encoder: Encoder, batch: Batch) -> np.ndarray:
    x = np.empty((len(batch), encoder.dimension))
    for block in encoder.blocks:
        x[:, block.offset : block.offset + block.width] = block.coordinates(batch)
    x[:, :-1] *= encoder.feature_scale / encoder.clip_norm  # and never pulled onto the ball
    x[:, -1] = encoder.bias
    return x


def unchecked(rounding: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: rounding(x * moments.FIXED_POINT)


def test_the_search_finds_rounding_that_lengthens_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    away_from_zero = unchecked(lambda scaled: np.sign(scaled) * np.ceil(np.abs(scaled)))
    monkeypatch.setattr(moments, "quantize", away_from_zero)
    assert longest("classification") > DELTA_SQUARED["classification"]


def test_the_search_finds_rows_that_are_not_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "encode", no_clipping)
    assert longest("classification") <= DELTA_SQUARED["classification"], "the check in quantize is a second line"
    monkeypatch.setattr(moments, "quantize", unchecked(np.trunc))
    assert longest("classification") > DELTA_SQUARED["classification"]


def test_the_search_finds_labels_that_are_not_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    original = moments.quantize_targets
    monkeypatch.setattr(moments, "quantize_targets", lambda task, batch: original(task, batch) * 1.001)
    assert longest("regression") > DELTA_SQUARED["regression"]


@pytest.mark.parametrize("kind", TASKS)
def test_the_search_finds_a_sensitivity_that_forgets_the_cross_block(kind: str) -> None:
    assert longest(kind) > UNIT**2


def test_the_search_finds_a_category_that_fills_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    original = moments.quantize_targets
    monkeypatch.setattr(moments, "quantize_targets", lambda task, batch: original(task, batch) + 2**16)
    assert longest("classification") > DELTA_SQUARED["classification"]
