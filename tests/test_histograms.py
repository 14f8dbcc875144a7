"""Histograms: every row in exactly one cell of each public partition, and the additive model of the cells."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.additive import _believed
from fusion.cell_counts import tables_of
from fusion.dataset import Batch
from fusion.errors import ModelError, TaskError
from fusion.fuse import Sums, fuse
from fusion.heads import forward
from fusion.model import build_model
from fusion.partitions import partitions_of
from fusion.summaries import UNIT, kind_of
from fusion.task import Task
from tests.partners import CLASSES_TOML, NUMBER_TOML, STAY, WARD, exact, noisy, stay_rows, ward_rows

HEAD = 'summary = "histograms"\n'
TASK = Task.from_toml(HEAD + CLASSES_TOML, "ward.toml")
PAIRS = Task.from_toml(HEAD + CLASSES_TOML + "[histograms]\nbins = 3\npairs = true\n", "ward.toml")
STAYS = Task.from_toml(HEAD + NUMBER_TOML, "stay.toml")


def test_the_partitions_are_the_columns_and_all_their_pairs_one_after_the_other() -> None:
    assert [part.columns for part in partitions_of(TASK).parts] == [(0,), (1,), (2,)]
    parts = partitions_of(PAIRS).parts
    assert [part.columns for part in parts] == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    assert [part.size for part in parts] == [4, 4, 4, 16, 16, 16]
    assert [part.offset for part in parts] == list(itertools.accumulate([0, 4, 4, 4, 16, 16]))


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_every_row_falls_into_one_cell_of_each_partition(rows: int, seed: int) -> None:
    found = partitions_of(PAIRS)
    leaves = found.of(ward_rows(rows, seed))
    for place, part in enumerate(found.parts):
        assert ((leaves[:, place] >= part.offset) & (leaves[:, place] < part.offset + part.size)).all()


def test_cells_are_evenly_spaced_closed_at_the_top_and_missing_has_its_own() -> None:
    ages = np.array([0.0, 33.0, 34.0, 100.0, 1e308, -np.inf, np.nan])
    batch = Batch({"age": ages, "label": np.zeros(7)}, {"arrival": np.full(7, -1)}, None, 7)
    leaves = partitions_of(PAIRS).of(batch)
    assert leaves[:, 0].tolist() == [0, 0, 1, 2, 2, 0, 3]
    assert (leaves[:, 2] == 8 + 3).all()


def test_in_a_pair_a_long_list_of_categories_is_merged_to_as_many_groups_as_a_number_has_bins() -> None:
    wide = CLASSES_TOML.replace('"walk", "ambulance", "7"', ", ".join(f'"{value}"' for value in range(40)))
    task = Task.from_toml(HEAD + wide + "[histograms]\nbins = 4\npairs = true\n", "ward.toml")
    cells = partitions_of(task).cells[2]
    assert (cells.size, max(cells.merged())) == (41, 4)
    groups = np.bincount(cells.merged())
    assert groups.tolist() == [10, 10, 10, 10, 1]


def test_counts_are_those_of_a_plain_count() -> None:
    rows = ward_rows(5_000, 4)
    tables = tables_of(PAIRS, Sums.of(exact(PAIRS, rows, "one").summary))
    leaves = partitions_of(PAIRS).of(rows)
    expected = np.zeros_like(tables.counts)
    for row, label in zip(leaves, np.asarray(rows.label), strict=True):
        expected[row, label] += 1
    np.testing.assert_array_equal(tables.counts, expected)
    np.testing.assert_array_equal(tables.rows, np.bincount(np.asarray(rows.label)))


def test_for_a_number_the_two_columns_hold_count_and_sum() -> None:
    rows = stay_rows(2_000, 4)
    tables = tables_of(STAYS, Sums.of(exact(STAYS, rows, "one").summary))
    low, high = tables.totals[0]
    assert low + high == 2_000
    assert high - low == pytest.approx(np.asarray(rows.label).sum(), abs=1e-5)


def test_a_deviation_lost_in_noise_is_not_believed_and_a_clear_one_is() -> None:
    rng = np.random.default_rng(1)
    expected = np.full((50, 2), 100.0)
    noise = rng.normal(0.0, 30.0, (50, 2))
    assert np.abs(_believed(noise, expected, 30.0**2, expected)).max() < 30.0
    clear = rng.normal(0.0, 500.0, (50, 2))
    np.testing.assert_allclose(_believed(clear, expected, 30.0**2, expected), clear, rtol=0.02)
    assert (_believed(noise * 0.0, expected, 900.0, expected) == 0.0).all()


def crossed(count: int, seed: int) -> Batch:
    """Only those of middling age stay: no line sees it, bins do."""
    rng = np.random.default_rng(seed)
    age = rng.uniform(0, 100, count)
    label = np.where(np.abs(age - 50) < 20, 1, 0)
    return Batch({"age": age, "label": rng.uniform(0, 12, count)}, {"arrival": rng.integers(0, 3, count)}, label, count)


@pytest.mark.parametrize("epsilon", [1.0, 5.0])
def test_what_lies_in_the_middle_is_seen(epsilon: float) -> None:
    plain = CLASSES_TOML.replace("bins = 3\n", "")
    test = crossed(3_000, 9)
    accuracy = {}
    for kind in ("histograms", "moments"):
        task = Task.from_toml(f'summary = "{kind}"\n{plain}', "ward.toml")
        model = build_model(task, [noisy(task, crossed(3_000, seed), epsilon, f"{seed}") for seed in range(3)])
        accuracy[kind] = (forward(model.layers, model.encoder.encode(test)).argmax(axis=1) == test.label).mean()
    assert accuracy["histograms"] > 0.85
    assert accuracy["moments"] < 0.7


def repeated(count: int, seed: int) -> Batch:
    """The same evidence in both numbers."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, count)
    age = np.clip(rng.normal(40 + 20 * label, 15), 0, 100)
    return Batch({"age": age, "label": age * 0.12}, {"arrival": rng.integers(0, 3, count)}, label, count)


def test_pairs_keep_evidence_that_two_columns_share_from_counting_twice() -> None:
    """Probabilities are as good as the share of those who are right among the sure."""
    test = repeated(8_000, 9)
    surplus = {}
    for name, task in (("columns", TASK), ("pairs", PAIRS)):
        model = build_model(task, [exact(task, repeated(20_000, 1), "one")])
        logits = forward(model.layers, model.encoder.encode(test))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        sure = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
        surplus[name] = abs(float(sure.mean() - (logits.argmax(axis=1) == test.label).mean()))
    assert surplus["pairs"] < 0.05
    assert surplus["pairs"] < surplus["columns"] + 0.01


def test_there_are_no_moments_and_it_says_so() -> None:
    held = [noisy(TASK, ward_rows(300, 1), 5.0, "one")]
    with pytest.raises(ModelError, match="histograms hold no moments"):
        fuse(TASK, held).statistics  # noqa: B018 - a property that raises


def test_persons_weigh_one_together() -> None:
    rows = ward_rows(3, 1)
    task = Task.from_toml(
        HEAD + CLASSES_TOML.replace("delta = 1e-5", 'delta = 1e-5\nunit = { column = "who", max_rows = 3 }'),
        "ward.toml",
    )
    shared = Batch(rows.numbers, rows.categories, rows.label, 3, np.array([3, 3, 3]))
    (cells,) = kind_of(task).measure(task, [shared]).blocks.values()
    assert cells.sum() == 3 * 3 * (UNIT // 3)


@pytest.mark.parametrize(
    ("task", "lines", "problem"),
    [
        (CLASSES_TOML, "bins = 1", "between 2 and 64"),
        (CLASSES_TOML, "pairs = 3", "must be true or false"),
        (CLASSES_TOML, "trees = 3", "not a field known here"),
        (CLASSES_TOML, "bins = 64\npairs = true", "over the 4095 allowed; lower the bins"),
    ],
)
def test_options_without_sense_are_refused(task: str, lines: str, problem: str) -> None:
    with pytest.raises(TaskError, match=problem):
        Task.from_toml(f"{HEAD}{task}[histograms]\n{lines}\n", "t")


def test_the_kind_takes_tables_without_a_lift() -> None:
    with pytest.raises(TaskError, match='choose the encoder "tabular" without a lift'):
        Task.from_toml(HEAD + CLASSES_TOML + "[encoder.lift]\n", "t")


def test_the_options_are_part_of_the_task_of_that_kind_alone() -> None:
    assert b'"histograms":{"bins":8,"pairs":false}' in TASK.canonical()
    for task in (TASK, PAIRS, STAYS):
        assert Task.from_canonical(task.canonical()) == task
    assert b"histograms" not in WARD.canonical() + STAY.canonical()
