"""The exact sensitivity search: what one record, or one person, adds is bounded in whole numbers, for all there can be.

Statistical tests of a finished release cannot see small errors in a sensitivity; this search can.
`test_mutations.py` shows that it does.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_checks import (
    CORNERS,
    MAX_ROWS_OF_A_PERSON,
    PERSON_TASKS,
    ROW_TASKS,
    TASKS,
    Line,
    Row,
    batch_of,
    check_every_corner,
    check_noise_gives_claimed_privacy,
    check_others_stay_bit_identical,
    check_person_moves_sums_by_at_most_delta,
    check_prolific_person,
    check_row_moves_sums_by_at_most_delta,
    check_shares_add_up_to_at_most_one,
    check_stated_sensitivity_is_proved,
    proved_delta_squared,
    squared_norm,
    sums_of,
    sums_of_file,
)
from second_routes import assemble

from fusion.dataset import Batch, inspect, person_pass, read_batches
from fusion.errors import DataError
from fusion.summaries import UNIT, moments
from fusion.summaries.moments import MOMENTS, quantize
from fusion.task import MAX_ROWS

hostile_float = (
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, -0.0, 5e-324, -5.0, 40.0, 1.0]) | st.floats()
)
row_values = st.tuples(hostile_float, hostile_float, st.integers(-4, 6), hostile_float | st.integers(-3, 5))
cells = st.sampled_from(
    ["", "?", "nan", "inf", "-inf", "1e999", "-1e308", "-0.0", "0", "1", "0.5", "40", "41", "red", "blue", "mauve", "x"]
)
label_cells = st.sampled_from(["a", "c", "z", "", "1", "-9", "nan", "2"])
ids = st.sampled_from(["p", "q", " p", "7", "7.0", "007", "", "?", "nan", "P"])
lines = st.tuples(cells, cells, cells, label_cells, ids)


# --- unit: one row --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROW_TASKS)
@given(others=st.lists(row_values, max_size=6), row=row_values)
def test_one_record_more_moves_the_sums_by_no_more_than_delta(name: str, others: list[Row], row: Row) -> None:
    check_row_moves_sums_by_at_most_delta(TASKS[name], others, row)


@settings(max_examples=40)
@pytest.mark.parametrize("name", ROW_TASKS)
@given(others=st.lists(lines, max_size=7), row=lines)
def test_one_line_more_in_a_file_moves_the_sums_by_no_more_than_delta(name: str, others: list[Line], row: Line) -> None:
    check_person_moves_sums_by_at_most_delta(TASKS[name], others, [row])


@pytest.mark.parametrize("name", TASKS)
def test_no_corner_of_the_domain_exceeds_delta_and_one_comes_close(name: str) -> None:
    check_every_corner(TASKS[name])


@pytest.mark.parametrize("name", TASKS)
def test_the_stated_sensitivity_is_the_proved_one(name: str) -> None:
    check_stated_sensitivity_is_proved(TASKS[name])


@pytest.mark.parametrize("name", TASKS)
def test_the_noise_of_every_kind_gives_the_privacy_that_is_claimed_and_no_more(name: str) -> None:
    for epsilon in (0.5, 1.0, 3.0):
        check_noise_gives_claimed_privacy(TASKS[name], epsilon)


# --- unit: one person -----------------------------------------------------------------------------------------


@settings(max_examples=40)
@pytest.mark.parametrize("name", PERSON_TASKS)
@given(
    others=st.lists(lines, max_size=6),
    theirs=st.lists(st.tuples(cells, cells, cells, label_cells), max_size=3 * MAX_ROWS_OF_A_PERSON),
)
def test_one_person_more_with_any_rows_moves_the_sums_by_no_more_than_delta(
    name: str, others: list[Line], theirs: list[tuple[str, str, str, str]]
) -> None:
    mine: list[Line] = [(*line, "me") for line in theirs]
    check_person_moves_sums_by_at_most_delta(TASKS[name], others, mine)
    check_others_stay_bit_identical(TASKS[name], others, mine)


@pytest.mark.parametrize("name", PERSON_TASKS)
@given(rows=st.lists(row_values, min_size=1, max_size=MAX_ROWS_OF_A_PERSON))
def test_a_person_of_hostile_rows_adds_no_more_than_delta(name: str, rows: list[Row]) -> None:
    """As no file could give them; k is what the reader says, the number of rows."""
    task = TASKS[name]
    blocks = sums_of(task, rows, [len(rows)] * len(rows))
    assert squared_norm(task, blocks, sums_of(task, [])) <= proved_delta_squared(task)


@pytest.mark.parametrize("name", PERSON_TASKS)
def test_somebody_with_more_rows_than_are_kept_adds_no_more_than_delta(name: str) -> None:
    check_prolific_person(TASKS[name])


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 49, 999, 1000])
def test_shares_of_a_person_never_add_up_to_more_than_one(k: int) -> None:
    check_shares_add_up_to_at_most_one(k)


@given(
    st.lists(st.lists(hostile_float | st.floats(-1.5, 1.5), min_size=4, max_size=4), min_size=1, max_size=8),
    st.integers(1, 1000),
)
def test_whatever_an_encoder_returns_no_row_is_longer_than_its_share(rows: list[list[float]], k: int) -> None:
    q = quantize(np.array(rows), np.full(len(rows), k))
    assert all(k * sum(int(entry) ** 2 for entry in row) <= UNIT for row in q)
    assert all(float(entry).is_integer() for row in q for entry in row)


@pytest.mark.parametrize("name", PERSON_TASKS)
def test_one_row_of_a_person_counts_like_one_row_of_a_record(name: str) -> None:
    task = TASKS[name]
    as_rows = TASKS[name.replace("persons", "rows")]
    blocks = sums_of(task, CORNERS, [1] * len(CORNERS))
    for block, values in sums_of(as_rows, CORNERS).items():
        np.testing.assert_array_equal(blocks[block], values)


def test_a_person_counts_once_and_each_class_gets_its_share() -> None:
    task = TASKS["classification, persons"]
    rows: list[Line] = [("1", "0", "red", label, "p") for label in ("a", "a", "b", "c", "c")]  # two beyond the bound
    sums = assemble(task, sums_of_file(task, [*rows, ("1", "0", "red", "c", "q"), ("1", "0", "red", "c", "?")]))
    bias = int(task.encoder.bias * 2**16) * 2**16
    np.testing.assert_allclose(sums.cross[-1] / bias, [2 / 3, 1 / 3, 1], rtol=1e-4)


def test_the_rows_that_are_kept_are_a_persons_first_and_the_report_says_what_was_left_out(tmp_path: Path) -> None:
    task = TASKS["classification, persons"]
    path = tmp_path / "rows.csv"
    head = "plain,binned,color,y,who\n"
    body = ["1,0,red,a,7", "2,0,red,z,7", "3,0,red,a, 7.0", "4,0,red,b,", "5,0,red,a,8", "6,0,red,a,7", "7,0,red,a,7"]
    path.write_text(head + "\n".join(body) + "\n")
    persons = person_pass(task)
    report = inspect([path], task, persons=persons)
    assert (report.rows_read, report.rows_used, report.labels_outside) == (7, 4, 1)
    assert (report.persons, report.persons_missing, report.rows_beyond) == (2, 1, 1)
    (batch,) = read_batches([path], task, persons=persons)
    assert batch.numbers["plain"].tolist() == [1, 3, 5, 6]
    assert batch.person_rows is not None
    assert batch.person_rows.tolist() == [3, 3, 1, 3]


def test_scoring_needs_no_ids_and_drops_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("plain,binned,color,y\n" + "1,0,red,a\n" * 9)
    (batch,) = read_batches([path], TASKS["classification, persons"])
    assert len(batch) == 9
    with pytest.raises(DataError, match="needs its rows read by person"):
        MOMENTS.measure(TASKS["classification, persons"], [batch])


def test_files_that_change_between_the_passes_are_refused_and_never_exceed_the_bound(tmp_path: Path) -> None:
    task = TASKS["classification, persons"]
    path = tmp_path / "rows.csv"
    head = "plain,binned,color,y,who\n"
    path.write_text(head + "1,0,red,a,p\n")
    persons = person_pass(task)
    inspect([path], task, persons=persons)
    path.write_text(head + "1,0,red,a,p\n" * 3)
    assert sum(len(batch) for batch in read_batches([path], task, persons=persons)) == 1
    path.write_text(head + "1,0,red,a,somebody else\n")
    with pytest.raises(DataError, match="the data changed while it was read"):
        list(read_batches([path], task, persons=persons))


# --- sums -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROW_TASKS)
@given(rows=st.lists(row_values, min_size=1, max_size=30), data=st.data())
def test_any_split_and_order_of_the_rows_gives_the_same_bits(name: str, rows: list[Row], data: st.DataObject) -> None:
    task = TASKS[name]
    whole = sums_of(task, rows)
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    parts = [shuffled[a:b] for a, b in itertools.pairwise([0, *cuts, len(rows)]) if a < b]
    sums = [sums_of(task, part) for part in parts]
    for block, values in whole.items():
        np.testing.assert_array_equal(sum(part[block] for part in sums), values)


@pytest.mark.parametrize("name", ["classification, rows", "classification, persons"])
def test_sums_of_many_blocks_are_exact(name: str) -> None:
    """Against Python integers, over more rows than one block holds."""
    task = TASKS[name]
    rng = np.random.default_rng(7)
    count = 2 * moments.BLOCK_ROWS + 123
    numbers = rng.uniform(-9, 50, count), rng.uniform(0, 1, count)
    indices = rng.integers(-1, 3, count), rng.integers(0, 3, count)
    k = rng.integers(1, 4, count) if task.privacy.person else np.ones(count, dtype=np.int64)
    batch = batch_of(task, list(zip(*numbers, *indices, strict=True)), k.tolist())
    sums = assemble(task, MOMENTS.measure(task, [batch]).blocks)
    q = quantize(moments.encoder_for(task).encode(batch), k).astype(np.int64).astype(object)
    assert (sums.gram == q.T @ q).all()
    shares = np.array([math.isqrt(UNIT // int(one)) for one in k], dtype=object)
    onehot = (np.array(batch.label)[:, None] == np.arange(3)).astype(object) * shares[:, None]
    assert (sums.cross == q.T @ onehot).all()


def test_products_are_exact_beyond_what_float64_holds() -> None:
    """2^22 rows of squared length just below 2^32: their sum is beyond 2^53, and odd."""
    row, target = np.array([65_535, 361]), np.array([65_535])
    rows, chunk = 2**22 + 1, 2**18
    products = moments.Products(2, 1)
    left = rows
    while left:
        taken = min(left, chunk)
        products.add(np.tile(row.astype(np.float64), (taken, 1)), np.full((taken, 1), 65_535.0))
        left -= taken
    gram, cross = products.sums()
    assert (np.triu(gram) == rows * np.triu(np.outer(row, row))).all()
    assert (cross == rows * np.outer(row, target)).all()
    assert rows * 65_535**2 > 2**53


def test_too_many_rows_are_refused_before_anything_could_overflow() -> None:
    assert MAX_ROWS * UNIT < 2**63
    endless = Batch({}, {}, np.zeros(0, dtype=np.int64), MAX_ROWS + 1)
    with pytest.raises(DataError, match="at most 1073741824 rows; split the data"):
        MOMENTS.measure(TASKS["classification, rows"], [endless])
