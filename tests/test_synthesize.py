"""Synthetic rows: they carry the shares, means and pairwise dependence of the sums, and stay within the task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.artifact import label_scale
from fusion.dataset import Batch, inspect, read_batches
from fusion.encoders import encoder_for
from fusion.errors import ModelError, NothingToFuse
from fusion.fuse import Contribution, fuse
from fusion.heads import forward
from fusion.model import build_model
from fusion.scoring import class_scores, softmax
from fusion.synthesize import CHUNK_ROWS, _ways, project, sampler_of
from fusion.table_files import write_rows
from fusion.task import CategoryColumn, Task
from node import publish as publishing
from node.__main__ import run
from node.home import Home
from node.tasks import add, find
from tests.partners import CLASSES_TOML, STAY, WARD, exact, noisy, stay_rows, ward_rows

ROWS = 20_000
WARD_ROWS, STAY_ROWS = ward_rows(30_000, 5), stay_rows(30_000, 6)
WARD_EXACT, STAY_EXACT = exact(WARD, WARD_ROWS, "ward"), exact(STAY, STAY_ROWS, "stay")


def sample(task: Task, *contributions: Contribution, rows: int = ROWS, seed: int | None = None) -> Batch:
    return together(list(sampler_of(task, contributions, seed).batches(rows)))


def together(batches: list[Batch]) -> Batch:
    return Batch(
        {name: np.concatenate([one.numbers[name] for one in batches]) for name in batches[0].numbers},
        {name: np.concatenate([one.categories[name] for one in batches]) for name in batches[0].categories},
        np.concatenate([np.asarray(one.label) for one in batches]),
        sum(len(one) for one in batches),
    )


SYNTHETIC = sample(WARD, WARD_EXACT)


def of_class(rows: Batch, label: int) -> np.ndarray:
    return np.asarray(rows.label) == label


@pytest.mark.parametrize("label", range(3))
def test_shares_means_and_missing_cells_of_each_class_are_those_of_the_rows(label: int) -> None:
    real, made = of_class(WARD_ROWS, label), of_class(SYNTHETIC, label)
    assert made.mean() == pytest.approx(real.mean(), abs=0.015)
    for k in (-1, 0, 1, 2):
        share = (WARD_ROWS.categories["arrival"][real] == k).mean()
        assert (SYNTHETIC.categories["arrival"][made] == k).mean() == pytest.approx(share, abs=0.025)
    for name, tolerance in (("age", 3.0), ("label", 0.3)):
        ours, theirs = SYNTHETIC.numbers[name][made], WARD_ROWS.numbers[name][real]
        assert np.isnan(ours).mean() == pytest.approx(np.isnan(theirs).mean(), abs=0.02)
        assert np.nanmean(ours) == pytest.approx(np.nanmean(theirs), abs=tolerance)
        assert np.nanstd(ours) == pytest.approx(np.nanstd(theirs), rel=0.35)


def test_second_moments_of_the_encoded_rows_are_those_of_the_sums() -> None:
    encoder = encoder_for(WARD)
    x = encoder.encode(SYNTHETIC)
    theirs = fuse(WARD, [WARD_EXACT]).statistics.gram / WARD_ROWS.rows
    np.testing.assert_allclose(x.T @ x / len(x), theirs, atol=0.02)


def test_a_dependence_between_columns_within_a_class_survives() -> None:
    rng = np.random.default_rng(3)
    arrival = rng.integers(0, 3, 20_000)
    age = np.clip(np.where(arrival == 1, 75, 30) + rng.normal(0, 8, 20_000), 0, 100)
    rows = Batch(
        {"age": age, "label": rng.uniform(0, 9, 20_000)}, {"arrival": arrival}, rng.integers(0, 3, 20_000), 20_000
    )
    made = sample(WARD, exact(WARD, rows, "tied"))
    by_ambulance = made.categories["arrival"] == 1
    gap = np.nanmean(made.numbers["age"][by_ambulance]) - np.nanmean(made.numbers["age"][~by_ambulance])
    assert gap == pytest.approx(45, abs=6)


def test_regression_targets_go_with_their_rows() -> None:
    made = sample(STAY, STAY_EXACT)
    real_age, real_target = STAY_ROWS.numbers["age"], np.asarray(STAY_ROWS.label)
    age, target = made.numbers["age"], np.asarray(made.label)
    assert np.abs(target).max() <= 1.0
    assert target.mean() == pytest.approx(real_target.mean(), abs=0.02)
    assert target.std() == pytest.approx(real_target.std(), rel=0.1)
    assert np.corrcoef(age, target)[0, 1] == pytest.approx(np.corrcoef(real_age, real_target)[0, 1], abs=0.05)
    gap = target[made.categories["value"] == 1].mean() - target[made.categories["value"] == 0].mean()
    assert gap == pytest.approx(0.4, abs=0.05)


def test_a_model_of_synthetic_rows_does_nearly_as_well_as_one_of_the_rows() -> None:
    test, encoder = ward_rows(4_000, 99), encoder_for(WARD)

    def score(rows: Batch) -> float:
        layers = build_model(WARD, [exact(WARD, rows, "train")]).layers
        return float(class_scores(softmax(forward(layers, encoder.encode(test))), np.asarray(test.label))["auc"])

    assert score(SYNTHETIC) > score(WARD_ROWS) - 0.01


def test_noise_of_many_partners_does_not_hide_who_stays() -> None:
    partners = [noisy(WARD, ward_rows(500, seed), 1.0, f"p{seed}") for seed in range(6)]
    made = sample(WARD, *partners)
    ages = [np.nanmean(made.numbers["age"][of_class(made, label)]) for label in range(3)]
    assert ages[2] - ages[0] > 15


@given(epsilon=st.sampled_from([0.05, 0.5, 5.0]), count=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=8)
def test_whatever_the_noise_every_row_is_one_that_the_task_could_read(epsilon: float, count: int, seed: int) -> None:
    for task, rows in ((WARD, ward_rows(count, seed)), (STAY, stay_rows(count, seed))):
        made = sample(task, noisy(task, rows, epsilon, "few"), rows=50)
        assert len(made) == 50
        for column in task.columns:
            if isinstance(column, CategoryColumn):
                assert set(made.categories[column.name]) <= set(range(-1, len(column.values)))
            else:
                values = made.numbers[column.name]
                assert np.all(np.isnan(values) | ((values >= column.lower) & (values <= column.upper)))
        label = np.asarray(made.label)
        assert set(label) <= {0, 1, 2} if task.label.classes else np.all(np.abs(label) <= 1.0)


def test_a_class_without_rows_is_not_made_up() -> None:
    made = sample(WARD, exact(WARD, ward_rows(3_000, 1, classes=(0, 2)), "two"))
    assert set(np.asarray(made.label)) == {0, 2}


def test_the_same_summaries_and_seed_give_the_same_rows_and_another_seed_others() -> None:
    def ages(seed: int | None, *contributions: Contribution) -> list[float]:
        return list(sample(WARD, *contributions, rows=30, seed=seed).numbers["label"])

    again = exact(WARD, WARD_ROWS, "another record")
    assert ages(None, WARD_EXACT) == ages(None, WARD_EXACT)
    assert ages(7, WARD_EXACT) == ages(7, again)
    assert ages(7, WARD_EXACT) != ages(8, WARD_EXACT)
    assert ages(None, WARD_EXACT) != ages(None, again)  # the seed follows the record ids


def test_rows_come_in_chunks_and_not_too_many_are_promised() -> None:
    sizes = [len(batch) for batch in sampler_of(STAY, [STAY_EXACT]).batches(2 * CHUNK_ROWS + 5)]
    assert sizes == [CHUNK_ROWS, CHUNK_ROWS, 5]
    for wrong in (0, -1, 10**12):
        with pytest.raises(ModelError, match="number of rows is from 1 to"):
            sampler_of(STAY, [STAY_EXACT]).batches(wrong)
    with pytest.raises(NothingToFuse):
        sampler_of(STAY, [])


def test_summaries_of_class_moments_give_rows_too() -> None:
    task = dataclasses.replace(WARD, summary="class-moments")
    made = sample(task, exact(task, ward_rows(3_000, 4), "classes"), rows=3_000)
    ages = [np.nanmean(made.numbers["age"][of_class(made, label)]) for label in range(3)]
    assert ages == pytest.approx([25, 50, 75], abs=3)


def test_a_task_that_cannot_be_decoded_is_refused_in_a_sentence() -> None:
    lifted = Task.from_toml(CLASSES_TOML + "[encoder.lift]\nfeatures = 32\n", "ward.toml")
    with pytest.raises(ModelError, match=r"its tabular \(lifted\) encoder turns them into features from which no cell"):
        sampler_of(lifted, [exact(lifted, ward_rows(50, 1), "lifted")])
    means = dataclasses.replace(WARD, summary="mean-embedding")
    with pytest.raises(ModelError, match="hold no second moments"):
        sampler_of(means, [exact(means, ward_rows(50, 1), "means")])


# --- the parts --------------------------------------------------------------------------------------------------

tables = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(st.floats(-3, 3), min_size=k, max_size=k), min_size=1, max_size=8).map(np.array)
)


@given(tables)
def test_projection_gives_probabilities_and_leaves_them_alone(shares: np.ndarray) -> None:
    projected = project(shares)
    assert (projected >= 0).all()
    np.testing.assert_allclose(projected.sum(axis=1), 1.0)
    np.testing.assert_allclose(project(projected), projected, atol=1e-12)


@given(tables)
def test_ways_between_points_give_back_the_shares_of_the_points(shares: np.ndarray) -> None:
    points = project(shares)
    chosen, mean = _ways(points)
    assert ((mean >= 0) & (mean <= 1)).all()
    np.testing.assert_allclose(chosen.sum(axis=1), 1.0)
    low, high = chosen * (1 - mean), chosen * mean
    back = np.pad(low, ((0, 0), (0, 1))) + np.pad(high, ((0, 0), (1, 0)))
    np.testing.assert_allclose(back, points, atol=1e-12)


# --- files ------------------------------------------------------------------------------------------------------

HEADERLESS = Task.from_toml(
    """
name = "bare"
kind = "classification"
[label]
column = "y"
classes = [ { name = "no", values = ["<=50K", "<=50K."] }, { name = "yes", values = [">50K"] } ]
[privacy]
max_epsilon = 3.0
[csv]
header = false
delimiter = ";"
missing = ["?"]
names = ["unused", "age", "job, if any", "y", "id"]
[[columns]]
name = "job, if any"
type = "category"
values = ["a;b", "c \\"d\\"", "e"]
[[columns]]
name = "age"
type = "number"
lower = 0.001
upper = 0.37
[encoder]
kind = "tabular"
""",
    "bare.toml",
)


@pytest.mark.parametrize("task", [WARD, STAY, HEADERLESS], ids=lambda task: task.name)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_reader_of_the_task_takes_the_file_as_it_stands(task: Task, suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    if task is HEADERLESS:
        age, job = rng.uniform(0, 0.4, 500), rng.integers(-1, 3, 500)
        rows = Batch({"age": np.where(age > 0.38, np.nan, age)}, {"job, if any": job}, rng.integers(0, 2, 500), 500)
    else:
        rows = ward_rows(500, 2) if task is WARD else stay_rows(500, 2)
    made = sample(task, exact(task, rows, "some"), rows=2_000)
    path = tmp_path / f"rows{suffix}"
    with path.open("wb") as file:
        assert write_rows(file, suffix, task, [made.slice(slice(0, 1_500)), made.slice(slice(1_500, 2_000))]) == 2_000
    report = inspect([path], task)
    assert (report.rows_used, report.labels_outside) == (2_000, 0)
    assert [+report.clipped, +report.unknown, +report.unreadable] == [{}, {}, {}]
    back = together(list(read_batches([path], task)))
    for name, values in made.categories.items():
        np.testing.assert_array_equal(back.categories[name], values)
    for column in task.columns:
        if column.name in made.numbers:
            width = column.upper - column.lower  # type: ignore[union-attr]
            np.testing.assert_allclose(back.numbers[column.name], made.numbers[column.name], atol=1e-3 * width)
    if task.label.classes:
        np.testing.assert_array_equal(back.label, made.label)
    else:
        np.testing.assert_allclose(back.label, made.label, atol=2e-3 * label_scale(task)[1])


@pytest.fixture
def home(make_home: Callable[..., Home], task_file: Path, rows_file: Path) -> Home:
    home = make_home("alpha")
    add(home, str(task_file))
    publishing.publish(home, find(home, "triage"), [rows_file], epsilon=2.0, dataset="default", cap_epsilon=None)
    return home


def test_the_command_writes_a_file_and_spends_nothing(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spent = home.ledger().head()
    words = ["--home", str(home.path), "synthesize", "triage", "--rows", "1000", "-o"]
    for name in ("a.csv", "b.csv", "c.parquet"):
        assert run([*words, str(tmp_path / name)], debug=False) == 0
    assert "1,000 synthetic rows from 1 summary. They cost no budget" in capsys.readouterr().out
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert inspect([tmp_path / "c.parquet"], find(home, "triage")).rows_used == 1_000
    assert home.ledger().head() == spent


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--rows", "0", "-o", "a.csv"], 1, "number of rows is from 1"),
        (["--rows", "5", "-o", "a.xlsx"], 2, "FILE.csv or FILE.parquet"),
        (["--rows", "5", "-o", "a.csv", "--seed", "-1"], 2, "A seed is a whole number"),
        (["--rows", "5", "-o", "a.csv", "--without", "alpha"], 1, "not selected by the query"),
    ],
)
def test_what_cannot_be_made_is_told_and_nothing_is_written(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, sentence: str
) -> None:
    placed = [str(tmp_path / word) if word.startswith("a.") else word for word in words]
    capsys.readouterr()
    assert run(["--home", str(home.path), "synthesize", "triage", *placed], debug=False) == code
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*")) + list(tmp_path.glob(".a.*"))


def test_the_encoded_pilot_says_how_long_rows_are() -> None:
    sampler = sampler_of(WARD, [WARD_EXACT])
    encoder = sampler.encoder
    x = encoder.encode(WARD_ROWS)[:, :-1]
    assert np.allclose(np.linalg.norm(x, axis=1).max(), encoder.feature_scale)
    inside = np.linalg.norm(x, axis=1) < encoder.feature_scale - 1e-9
    blocks = [block.coordinates(WARD_ROWS) for block in encoder.blocks]
    lengths = np.maximum(np.linalg.norm(np.hstack(blocks), axis=1), encoder.clip_norm)
    assert inside.any()
    assert sampler.length == pytest.approx(1.0 / np.mean(1.0 / lengths), rel=0.02)
