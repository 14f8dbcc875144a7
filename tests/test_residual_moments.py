"""Residual moments: centers come from published numbers alone, residuals are bounded, and the fit uses both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusion import release as release_module
from fusion.class_means import ClassSums
from fusion.dataset import Batch
from fusion.denoise import denoise
from fusion.errors import DataError, ModelError, TaskError
from fusion.fuse import fuse
from fusion.heads import forward
from fusion.model import build_model
from fusion.release import exact_summary, measure, noisy_summary
from fusion.residual_fit import Residuals, discriminant, residuals_of
from fusion.scoring import softmax
from fusion.summaries import UNIT, residual_moments
from fusion.summaries.residual_moments import (
    CROSS,
    DIAGONAL,
    FIXED_POINT,
    LENGTHS,
    RADIUS,
    UPPER,
    KeptRows,
    centers,
    residual_sums,
    residuals,
)
from fusion.summary import plan
from fusion.sums import Sums
from fusion.task import Task, dimension
from tests.partners import CLASSES_TOML, NUMBER_TOML, contribution, exact, noisy, symmetric_noise, ward_rows

TASK = Task.from_toml(f'summary = "residual-moments"\n{CLASSES_TOML}', "ward.toml")
MOMENTS = Task.from_toml(CLASSES_TOML, "ward.toml")
CLASSES = 3
FEATURES = dimension(TASK) - 1


def kept(count: int, seed: int, length: float = 1.0) -> KeptRows:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (count, FEATURES))
    x *= length / np.linalg.norm(x, axis=1, keepdims=True)
    label = rng.integers(-1, CLASSES + 1, count)
    return KeptRows(np.trunc(FIXED_POINT * x).astype(np.int32), label, np.ones(count, dtype=np.int64))


def some_centers(seed: int) -> NDArray[np.float64]:
    """Whatever they are: rows of length up to 1, and 0 for rows without a class."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (CLASSES, FEATURES))
    values *= rng.random((CLASSES, 1)) / np.linalg.norm(values, axis=1, keepdims=True)
    return np.vstack([np.rint(FIXED_POINT * values), np.zeros((1, FEATURES))])


# --- centers ----------------------------------------------------------------------------------------------------


def cross_of(means: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.int64]:
    sums = np.vstack([means * counts, TASK.encoder.bias * counts[None, :]])
    return np.rint(UNIT * sums).astype(np.int64).reshape(-1)


def test_without_noise_the_centers_are_the_class_means() -> None:
    means = np.random.default_rng(1).normal(0, 0.2, (FEATURES, CLASSES))
    found = centers(TASK, cross_of(means, np.array([10.0, 200.0, 3_000.0])), 0)
    np.testing.assert_allclose(found[:-1].T / FIXED_POINT, means, atol=1e-4)
    assert (found[-1] == 0).all()


def test_sums_that_noise_alone_could_give_leave_no_center() -> None:
    sigma = 50 * UNIT
    noise = np.random.default_rng(2).normal(0, sigma / 2, (FEATURES + 1, CLASSES))
    assert (centers(TASK, np.rint(noise).astype(np.int64).reshape(-1), sigma) == 0).all()


@given(seed=st.integers(0, 2**32 - 1), sigma=st.sampled_from([0, 1, UNIT, 2**40]), large=st.integers(0, 62))
@settings(max_examples=60)
def test_centers_are_finite_and_never_longer_than_one(seed: int, sigma: int, large: int) -> None:
    entries = np.random.default_rng(seed).integers(-(2**large), 2**large + 1, (FEATURES + 1) * CLASSES)
    found = centers(TASK, entries, sigma)
    assert np.isfinite(found).all()
    assert (np.linalg.norm(found, axis=1) <= FIXED_POINT + np.sqrt(FEATURES)).all()


def test_the_second_sums_see_the_rows_and_what_was_published_of_the_first_and_nothing_else() -> None:
    rows = ward_rows(400, 1)
    first, second = (measure(TASK, [rows]) for _ in range(2))
    assert first.then is not None
    assert second.then is not None
    published = {CROSS: first.blocks[CROSS] + 3 * UNIT}
    second.blocks[CROSS][:] = 0  # the exact sums must not matter any more
    sigmas = plan(TASK, 1.0).sigmas
    for name, values in first.then(published, sigmas).items():
        assert (values == second.then(published, sigmas)[name]).all()


def test_a_release_centers_on_the_sums_that_it_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = residual_moments.centers

    def spying(task: Task, cross: NDArray[np.int64], sigma: int) -> NDArray[np.float64]:
        seen.append((cross.copy(), sigma))
        return real(task, cross, sigma)

    monkeypatch.setattr(residual_moments, "centers", spying)
    summary = noisy_summary(TASK, measure(TASK, [ward_rows(200, 1)]), 1.0)
    ((cross, sigma),) = seen
    assert (cross == summary.sums()[CROSS]).all()
    assert sigma == summary.sigmas[CROSS]


# --- residuals --------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), length=st.floats(0, 1))
@settings(max_examples=60)
def test_no_residual_is_longer_than_one_in_whole_numbers(seed: int, length: float) -> None:
    rows, center = kept(50, seed, length), some_centers(seed)
    r, squares = residuals(rows, center)
    assert (r == np.rint(r)).all()
    for row, square in zip(r, squares, strict=True):
        own = sum(int(entry) ** 2 for entry in row)
        assert own <= UNIT
        if square > (RADIUS * FIXED_POINT) ** 2:
            assert own > 0.999 * UNIT, "a residual beyond the radius counts in full"


def test_sums_are_those_of_the_rows_one_by_one() -> None:
    rows, center = kept(30, 4), some_centers(5)
    together = residual_sums([rows], center)
    apart = [
        residual_sums([KeptRows(rows.features[i : i + 1], rows.label[i : i + 1], rows.shares[i : i + 1])], center)
        for i in range(30)
    ]
    for name, values in together.items():
        assert (values == sum(one[name] for one in apart)).all()
    lengths = 0
    for x, label in zip(rows.features.tolist(), rows.label.tolist(), strict=True):
        a = center[label if 0 <= label < CLASSES else CLASSES]
        lengths += min(UNIT, sum((q - int(c)) ** 2 for q, c in zip(x, a, strict=True)))
    assert together[LENGTHS][0] == lengths


# --- the fit ----------------------------------------------------------------------------------------------------


def made(
    rng: np.random.Generator, sigma: float, counts: tuple[int, ...], apart: float = 0.08
) -> tuple[Residuals, NDArray[np.float64]]:
    """Sums of Gaussian classes in 30 dimensions, with noise; and the true means."""
    d, scatter = 30, np.linspace(0.01, 1.0, 30) / 40
    means = rng.normal(0, apart, (d, len(counts)))
    n = np.array(counts, dtype=np.float64)
    residual = np.diag(scatter * n.sum())
    radius = float(np.trace(residual)) / n.sum()
    moments = residual / radius + symmetric_noise(d, sigma, rng)
    sums = np.vstack([means * n, 0.2 * n[None, :]]) + rng.normal(0, sigma, (d + 1, len(counts)))
    return Residuals(ClassSums(sums, sigma, 0.2), moments, sigma, radius * n.sum(), sigma), means


def test_without_noise_the_discriminant_is_fishers() -> None:
    sums, means = made(np.random.default_rng(1), 0.0, (4_000, 4_000, 4_000))
    layer = discriminant(sums, 0.0)
    fisher = means / (np.linspace(0.01, 1.0, 30)[:, None] / 40)
    ours = layer.weight[:-1] - layer.weight[:-1].mean(axis=1, keepdims=True)
    wanted = fisher - fisher.mean(axis=1, keepdims=True)
    ratio = (ours * wanted).sum() / (wanted**2).sum()
    np.testing.assert_allclose(ours, ratio * wanted, rtol=1e-6, atol=1e-6 * np.abs(ours).max())


def test_the_scatter_has_the_scale_that_the_lengths_say() -> None:
    sums, _means = made(np.random.default_rng(1), 0.0, (500, 500))
    assert np.trace(sums.within.matrix) == pytest.approx(sums.lengths)
    noisy_sums, _ = made(np.random.default_rng(2), 5.0, (4_000, 4_000))
    assert np.trace(noisy_sums.within.matrix) == pytest.approx(
        noisy_sums.scale * denoise(noisy_sums.moments, 5.0).values.sum()
    )


def test_a_class_of_few_rows_is_neither_forgotten_nor_everywhere() -> None:
    """The offset takes back what noise adds to the length of a mean: the more, the fewer rows."""
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(20):
        sums, means = made(rng, 8.0, (6_000, 6_000, 400), apart=0.04)
        layer = discriminant(sums, 0.05 * sums.edge)
        x = means[:, 2] + rng.normal(0, 1, (400, 30)) * np.sqrt(np.linspace(0.01, 1.0, 30) / 40)
        logits = np.column_stack([x, np.full(400, 0.2)]) @ layer.weight + layer.bias
        shares.append(float((logits.argmax(axis=1) == 2).mean()))
    assert 0.3 < np.mean(shares) < 0.9


def test_probabilities_are_not_surer_than_they_are_right() -> None:
    test = ward_rows(3_000, 9)
    label = np.asarray(test.label)
    for epsilon in (0.5, 3.0):
        losses = []
        for draw in range(5):
            held = [noisy(TASK, ward_rows(700, seed), epsilon, f"{draw} {seed}") for seed in range(4)]
            model = build_model(TASK, held)
            probabilities = softmax(forward(model.layers, model.encoder.encode(test)))
            losses.append(-np.log(np.maximum(probabilities[np.arange(len(label)), label], 1e-9)).mean())
        assert np.mean(losses) < np.log(CLASSES), "worse than no model at all"


def test_partners_with_one_class_each_do_as_well_as_with_moments() -> None:
    test = ward_rows(3_000, 9)
    right = {}
    for task in (TASK, MOMENTS):
        hits = []
        for draw in range(6):
            held = [noisy(task, ward_rows(2_000, c, classes=(c,)), 1.0, f"{draw} {c}") for c in range(CLASSES)]
            model = build_model(task, held)
            outputs = forward(model.layers, model.encoder.encode(test))
            hits.append(float((outputs.argmax(axis=1) == test.label).mean()))
        right[task.summary] = np.mean(hits)
    assert right["residual-moments"] > right["moments"] - 0.03


def test_the_same_summaries_give_the_same_model_and_leaving_one_out_unlearns_it() -> None:
    held = [noisy(TASK, ward_rows(500, seed), 3.0, f"{seed}") for seed in range(4)]
    sums = fuse(TASK, held).sums.minus(Sums.of(held[0].summary))
    without = fuse(TASK, held[1:]).sums
    assert all((sums.values(name) == without.values(name)).all() for name in (CROSS, DIAGONAL, UPPER, LENGTHS))
    assert residuals_of(TASK, sums).lengths == residuals_of(TASK, without).lengths


# --- refusals ---------------------------------------------------------------------------------------------------


def test_it_is_for_classes() -> None:
    with pytest.raises(TaskError, match="for classification"):
        Task.from_toml(f'summary = "residual-moments"\n{NUMBER_TOML}', "stay.toml")


def test_it_holds_no_moments_and_says_so() -> None:
    with pytest.raises(ModelError, match="use moments"):
        _ = fuse(TASK, [exact(TASK, ward_rows(50, 1), "a")]).statistics


def test_rows_that_would_not_fit_in_memory_are_refused_before_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual_moments, "MAX_KEPT_BYTES", 1_000)
    with pytest.raises(DataError, match="do not fit in memory"):
        measure(TASK, [ward_rows(100, 1)])


def test_a_part_without_rows_is_released_like_any_other() -> None:
    empty = ward_rows(1, 1).slice(slice(0, 0))
    assert isinstance(empty, Batch)
    summary = noisy_summary(TASK, measure(TASK, [empty]), 1.0)
    assert fuse(TASK, [contribution("empty", summary)]).used
    assert set(exact_summary(TASK, [empty]).blocks) == {CROSS, DIAGONAL, UPPER, LENGTHS}


def test_every_block_gets_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    real = release_module.discrete_gaussian

    def spying(values: NDArray[np.int64], sigma: int) -> NDArray[np.int64]:
        drawn.append((len(values), sigma))
        return real(values, sigma)

    monkeypatch.setattr(release_module, "discrete_gaussian", spying)
    planned = plan(TASK, 1.0)
    noisy_summary(TASK, measure(TASK, [ward_rows(100, 1)]), 1.0)
    assert sorted(drawn) == sorted((block.entries, planned.sigmas[block.name]) for block in planned.layout)
