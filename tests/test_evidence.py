"""Empirical Bayes regression: what noisy sums say about weights, with much signal and with none."""

import numpy as np
import pytest

from fusion.evidence import Centred, centred, posterior
from fusion.heads import HEADS, Cleaned, forward, tempered
from fusion.heads import Layer as HeadLayer
from tests.partners import statistics, symmetric_noise

D = 60


def problem(rng: np.random.Generator, sigma: float, size: float) -> tuple[Centred, np.ndarray, np.ndarray]:
    """Sums of a regression with weights of the given size on a spectrum from strong to weak; weights; clean Gram."""
    rows = 20_000.0
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0]
    gram = (basis * np.geomspace(rows / 200, rows / 10, D)) @ basis.T
    weights = rng.normal(0.0, size, (D, 1))
    cross = gram @ weights + rng.normal(0.0, sigma, (D, 1))
    noisy = gram + symmetric_noise(D, sigma, rng)
    return Centred(rows, noisy, cross, sigma, np.array([[sigma**2]]), np.array([0.25])), weights, gram


def error(gram: np.ndarray, difference: np.ndarray) -> float:
    return float((difference * (gram @ difference)).sum())


def test_without_noise_the_weights_are_those_of_least_squares() -> None:
    sums, weights, _gram = problem(np.random.default_rng(1), 0.0, 0.1)
    found = posterior(sums)
    np.testing.assert_allclose(found.weights, weights, rtol=0.05, atol=1e-3)
    assert found.explained[0, 0] == pytest.approx(error(sums.gram, weights), rel=0.05)


@pytest.mark.parametrize("size", [0.003, 0.03, 0.3])
def test_no_single_ridge_is_much_better_than_the_estimate_at_any_size_of_signal(size: float) -> None:
    """Squared error on the true sums, relative to that of the best multiple of the edge in hindsight."""
    rng = np.random.default_rng(2)
    ours, ridges = 0.0, np.zeros(12)
    for _ in range(10):
        sums, weights, true = problem(rng, 40.0, size)
        values, vectors = np.linalg.eigh(sums.gram)
        ours += error(true, posterior(sums).weights - weights)
        for place, ridge in enumerate(np.geomspace(1.0, 1e5, 12)):
            fitted = vectors @ ((vectors.T @ sums.cross) / (np.maximum(values, 0.0) + ridge)[:, None])
            ridges[place] += error(true, fitted - weights)
    nothing = 10 * 1e-3 * 0.25 * 20_000  # a thousandth of the variance of the label, over the ten draws
    assert ours < 1.15 * ridges.min() + nothing


def test_of_sums_that_are_noise_alone_next_to_nothing_is_believed() -> None:
    sums, _weights, gram = problem(np.random.default_rng(3), 40.0, 0.0)
    plain = np.linalg.solve(gram, sums.cross)
    assert error(gram, posterior(sums).weights) < 0.1 * error(gram, plain)


def test_the_sums_about_the_means_are_those_of_centered_rows() -> None:
    rng = np.random.default_rng(4)
    x = np.column_stack([rng.normal(0.1, 0.2, (300, 5)), np.full(300, 0.4)])
    label = rng.integers(0, 3, 300)
    sums = centred(Cleaned.of(statistics(x, label, 3, 0.0, rng)))
    deviations = x[:, :-1] - x[:, :-1].mean(axis=0)
    np.testing.assert_allclose(sums.gram, deviations.T @ deviations, atol=1e-8)
    np.testing.assert_allclose(sums.cross, deviations.T @ np.eye(3)[label], atol=1e-8)


def test_centering_spreads_the_noise_of_cross_moments_as_stated() -> None:
    rng = np.random.default_rng(5)
    x = np.column_stack([rng.normal(0.0, 0.2, (4_000, 40)), np.full(4_000, 0.4)])
    label = rng.choice(3, 4_000, p=(0.6, 0.3, 0.1))
    clean = centred(Cleaned.of(statistics(x, label, 3, 0.0, rng)))
    noisy = [centred(Cleaned.of(statistics(x, label, 3, 3.0, rng))) for _ in range(60)]
    gaps = np.concatenate([one.cross - clean.cross for one in noisy])
    np.testing.assert_allclose(gaps.T @ gaps / len(gaps), noisy[0].cross_noise, atol=1.0)


def test_tempering_changes_no_decision_and_hardly_touches_weak_signals() -> None:
    rng = np.random.default_rng(6)
    layer, x = HeadLayer(rng.normal(size=(5, 3)), rng.normal(size=3)), rng.normal(size=(50, 5))
    priors = np.full(3, 1 / 3)
    weak, strong = (tempered(layer, scale * np.eye(3), priors) for scale in (0.01, 50.0))
    for one in (weak, strong):
        assert (forward((one,), x).argmax(1) == forward((layer,), x).argmax(1)).all()
    np.testing.assert_allclose(weak.weight, layer.weight, rtol=0.01)
    np.testing.assert_allclose(strong.weight, layer.weight * 6 / 56, rtol=1e-9)


def test_the_head_is_the_same_bits_for_the_same_sums() -> None:
    rng = np.random.default_rng(7)
    x = np.column_stack([rng.normal(0.0, 0.2, (500, 8)), np.full(500, 0.4)])
    noised = statistics(x, rng.integers(0, 4, 500), 4, 5.0, rng)
    first, second = (HEADS["bayes"].fit(Cleaned.of(noised), 1.0, bytes(32))[0] for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)
