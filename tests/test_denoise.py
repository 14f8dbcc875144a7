"""Denoising: nearer to the truth than clipping, and nothing at all where there is no noise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.denoise import denoise, semicircle_variance, spectral_edge, squared_spectrum
from tests.partners import symmetric_noise

SPECTRA = {
    "a few strong directions": lambda d: np.concatenate([[600.0, 200.0, 100.0], np.full(d - 3, 2.0)]),
    "a slow decay": lambda d: 400.0 / np.arange(1, d + 1),
    "flat": lambda d: np.full(d, 30.0),
    "half empty": lambda d: np.repeat([80.0, 0.0], [d // 2, d - d // 2]),
}


def psd_with(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    vectors = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return (vectors * values) @ vectors.T


def clipped(noisy: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(noisy)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
@pytest.mark.parametrize("dimension", [30, 100])
def test_denoising_beats_clipping_eigenvalues_at_zero(spectrum: object, dimension: int) -> None:
    rng = np.random.default_rng(5)
    ours, theirs = [], []
    for _ in range(5):
        gram = psd_with(spectrum(dimension), rng)  # type: ignore[operator]
        noisy = gram + symmetric_noise(dimension, 10.0, rng)
        ours.append(np.linalg.norm(denoise(noisy, 10.0).matrix - gram))
        theirs.append(np.linalg.norm(clipped(noisy) - gram))
    assert np.mean(ours) < 0.9 * np.mean(theirs)


def test_the_estimates_are_close_to_those_of_an_oracle_that_knows_the_truth() -> None:
    rng = np.random.default_rng(6)
    gram = psd_with(SPECTRA["a slow decay"](150), rng)
    noisy = gram + symmetric_noise(150, 4.0, rng)
    vectors = np.linalg.eigh(noisy)[1]
    oracle = (vectors * np.einsum("ji,jk,ki->i", vectors, gram, vectors)) @ vectors.T
    error, least = np.linalg.norm(denoise(noisy, 4.0).matrix - gram), np.linalg.norm(oracle - gram)
    assert least <= error < 1.1 * least


def test_without_noise_the_matrix_comes_back() -> None:
    gram = psd_with(np.array([5.0, 3.0, 1.0, 0.0]), np.random.default_rng(7))
    np.testing.assert_allclose(denoise(gram, 0.0).matrix, gram, atol=1e-12)


def test_the_edge_is_where_the_eigenvalues_of_noise_end() -> None:
    noise = symmetric_noise(400, 3.0, np.random.default_rng(8))
    assert np.abs(np.linalg.eigvalsh(noise)).max() == pytest.approx(spectral_edge(400, 3.0), rel=0.05)


@given(st.integers(1, 12), st.just(0.0) | st.floats(0.1, 50.0), st.integers(0, 2**32 - 1))
def test_eigenvalues_are_never_negative_and_rise(dimension: int, sigma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spectrum = denoise(symmetric_noise(dimension, 20.0, rng), sigma)
    assert (spectrum.values >= 0.0).all()
    assert (np.diff(spectrum.values) >= 0.0).all()


def test_solving_inverts_the_shifted_matrix() -> None:
    rng = np.random.default_rng(9)
    spectrum = denoise(psd_with(np.array([9.0, 4.0, 1.0]), rng), 0.5)
    right = rng.normal(size=(3, 2))
    solution = spectrum.solve(right, ridge=2.0)
    np.testing.assert_allclose((spectrum.matrix + 2.0 * np.eye(3)) @ solution, right, atol=1e-12)


def test_the_squares_of_a_matrix_are_estimated_through_its_noise() -> None:
    """q_i^T G^2 q_i along noisy eigenvectors, against the truth, for a spectrum with a bulk and a tail."""
    rng = np.random.default_rng(11)
    d, sigma = 200, 5.0
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    truth = (basis * np.concatenate([np.full(150, 30.0), np.linspace(100.0, 1_000.0, 50)])) @ basis.T
    noisy = truth + symmetric_noise(d, sigma, rng)
    spectrum = denoise(noisy, sigma)
    across = squared_spectrum(spectrum, sigma) - spectrum.values**2
    products = spectrum.vectors.T @ truth @ spectrum.vectors
    true_across = (products**2).sum(axis=1) - products.diagonal() ** 2
    variance = semicircle_variance(d, sigma)
    assert (across >= 0.0).all()
    assert (across <= variance).all()
    assert across[:140].mean() < 0.5 * variance  # inside the bulk noise only turns directions that are alike
    assert across[-40:].mean() == pytest.approx(true_across[-40:].mean(), rel=0.15)
    np.testing.assert_array_equal(squared_spectrum(denoise(truth, 0.0), 0.0), denoise(truth, 0.0).values ** 2)
