"""Heads: from sums alone to a classifier that fits, says how sure it is, and is chosen by left-out summaries."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.denoise import Spectrum
from fusion.encoders import encoder_for
from fusion.errors import ModelError
from fusion.fuse import Fused, fuse
from fusion.heads import HEADS, SEEN_DEVIATIONS, Cleaned, Layer, forward, network
from fusion.model import check_head
from fusion.scoring import softmax
from fusion.selection import (
    MAX_GROUPS,
    Candidate,
    difference_variance,
    select,
    squared_error,
)
from fusion.statistics import Statistics
from fusion.synthetic import Gaussians
from tests.partners import STAY, WARD, exact, noisy, statistics, stay_rows, ward_rows

SEED = bytes(range(32))
BIAS = 0.4


def gaussian_rows(count: int, rng: np.random.Generator, priors: tuple[float, ...] = (0.3, 0.7)) -> tuple:
    """Rows of classes with means apart along one axis and one covariance, within the unit ball; and the axis."""
    label = rng.choice(len(priors), count, p=priors)
    means = np.array([[-0.15, 0.1, 0.0, 0.0], [0.15, 0.0, 0.1, 0.0], [0.0, -0.2, 0.1, 0.1]])[: len(priors)]
    factor = 0.12 * np.array([[1, 0.5, 0, 0], [0, 0.8, 0, 0], [0, 0.3, 1, 0.4], [0, 0, 0, 0.6]])
    x = means[label] + rng.normal(size=(count, 4)) @ factor
    return np.column_stack([x, np.full(count, BIAS)]), label, means, factor.T @ factor


def bayes_logits(x: np.ndarray, means: np.ndarray, covariance: np.ndarray, priors: tuple[float, ...]) -> np.ndarray:
    whitened = np.linalg.solve(covariance, means.T)
    return x[:, :-1] @ whitened - np.einsum("cd,dc->c", means, whitened) / 2 + np.log(priors)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("priors", [(0.3, 0.7), (0.2, 0.3, 0.5)], ids=["two", "three"])
def test_without_noise_every_head_recovers_the_posterior_of_a_gaussian_problem(head: object, priors: tuple) -> None:
    """Up to one factor on all log odds: the rows of this problem have no tails, which no head takes for granted."""
    rng = np.random.default_rng(1)
    x, label, means, covariance = gaussian_rows(20_000, rng, priors)
    layers = head.fit(Cleaned.of(statistics(x, label, len(priors), 0.0, rng)), 1.0, SEED)  # type: ignore[attr-defined]
    ours, truth = forward(layers, x), bayes_logits(x, means, covariance, priors)
    odds, true_odds = (np.diff(logits, axis=1).ravel() for logits in (ours, truth))
    if head.linear:  # type: ignore[attr-defined]
        assert np.corrcoef(odds, true_odds)[0, 1] > 0.97
        assert 0.2 < np.polyfit(true_odds, odds, 1)[0] <= 1.05
    assert (ours.argmax(1) == truth.argmax(1)).mean() > 0.97


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_with_noise_every_head_stays_close_and_is_not_too_sure_of_itself(head: object) -> None:
    rng = np.random.default_rng(2)
    x, label, means, covariance = gaussian_rows(2_000, rng)
    best = (bayes_logits(x, means, covariance, (0.3, 0.7)).argmax(1) == label).mean()
    right, loss = [], []
    for _ in range(5):
        noised = statistics(x, label, 2, 10.0, rng)
        probability = softmax(forward(head.fit(Cleaned.of(noised), 1.0, SEED), x))  # type: ignore[attr-defined]
        right.append((probability.argmax(1) == label).mean())
        loss.append(-np.log(probability[np.arange(len(x)), label]).mean())
    assert np.mean(right) > best - 0.05
    assert np.mean(loss) < 0.45  # base rates alone: 0.61


def test_regression_recovers_a_line() -> None:
    rows = stay_rows(3_000, 3)
    x = encoder_for(STAY).encode(rows)
    cases = [("ridge", exact(STAY, rows, "a"), 0.90), ("ridge", noisy(STAY, rows, 3.0, "a"), 0.85)]
    for head, contribution, least in (*cases, *(("bayes", one, least) for _, one, least in cases)):
        layers = HEADS[head].fit(Cleaned.of(fuse(STAY, [contribution]).statistics), 1.0, SEED)
        error = forward(layers, x)[:, 0] - rows.label
        assert 1.0 - (error**2).sum() / ((rows.label - np.mean(rows.label)) ** 2).sum() > least


def test_a_class_without_rows_gets_a_small_probability_and_no_direction_of_its_own() -> None:
    rng = np.random.default_rng(4)
    x, label, _means, _covariance = gaussian_rows(2_000, rng)
    noised = statistics(x, label, 3, 5.0, rng)
    assert noised.seen(SEEN_DEVIATIONS).tolist() == [True, True, False]
    for head in HEADS.values():
        probability = softmax(forward(head.fit(Cleaned.of(noised), 1.0, SEED), x))
        assert np.isfinite(probability).all()
        assert probability[:, 2].mean() < 0.1


def test_the_mean_of_all_rows_is_pulled_toward_zero_by_noise_and_not_without() -> None:
    rng = np.random.default_rng(5)
    x, label, _means, _covariance = gaussian_rows(1_000, rng)
    clean, noised = (Cleaned.of(statistics(x, label, 2, sigma, rng)) for sigma in (0.0, 30.0))
    np.testing.assert_allclose(clean.mean, x.mean(axis=0), atol=1e-9)
    errors = [np.linalg.norm(one - x.mean(axis=0)) for one in (noised.mean, noised.statistics.row_sum / noised.rows)]
    assert errors[0] < errors[1]


def test_the_same_seed_gives_the_same_bits_and_torch_is_left_as_it_was() -> None:
    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    rng = np.random.default_rng(6)
    x, label, _means, _covariance = gaussian_rows(500, rng)
    cleaned = Cleaned.of(statistics(x, label, 2, 5.0, rng))
    for head in ("synthetic", "mlp"):
        first, second, other = (HEADS[head].fit(cleaned, 1.0, seed)[0].weight for seed in (SEED, SEED, SEED[::-1]))
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()
    assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())


def test_a_network_bends_where_classes_differ_in_covariance_alone() -> None:
    """Two classes with one mean: a linear rule is worth a coin toss."""
    rng = np.random.default_rng(8)
    scales = np.array([[0.05, 0.25], [0.25, 0.05]])
    gaussians = Gaussians(np.zeros((2, 2)), np.array([np.diag(one) for one in scales]), np.array([0.5, 0.5]))
    label = rng.integers(0, 2, 4_000)
    x = rng.normal(size=(4_000, 2)) * scales[label]
    logits = forward(network(gaussians, SEED), x)
    best = (np.abs(x[:, 1]) < np.abs(x[:, 0])).astype(int)
    assert (logits.argmax(1) == label).mean() > (best == label).mean() - 0.02


def test_a_network_that_was_asked_for_is_fitted_without_an_estimate_of_its_quality() -> None:
    selection = select(coalition(), "mlp", SEED)
    assert selection.candidate == Candidate("mlp", 1.0)
    assert selection.quality is None


def test_layers_run_with_a_relu_between_them() -> None:
    layers = (Layer(np.array([[1.0, -1.0]]), np.array([0.0, 0.5])), Layer(np.array([[1.0], [10.0]]), np.array([1.0])))
    np.testing.assert_allclose(forward(layers, np.array([[2.0], [-2.0]])), [[3.0], [26.0]])


def test_a_head_that_the_task_cannot_have_is_refused_with_those_it_can() -> None:
    with pytest.raises(ModelError, match="choose one of: bayes, lda, ridge, synthetic, mlp"):
        check_head(WARD, "forest")
    with pytest.raises(ModelError, match='no head "lda" for this task; choose one of: bayes, ridge'):
        check_head(STAY, "lda")


# --- choosing ---------------------------------------------------------------------------------------------------


def with_head(monkeypatch: pytest.MonkeyPatch, fit: object) -> None:
    """One more tunable head, so that the choice has a planted winner or loser."""
    planted = dataclasses.replace(HEADS["ridge"], name="planted", fit=fit, multipliers=(0.5, 2.0), regression=False)
    monkeypatch.setitem(HEADS, "planted", planted)


def coalition(epsilon: float = 5.0) -> Fused:
    return fuse(WARD, [noisy(WARD, ward_rows(800, seed), epsilon, f"partner {seed}") for seed in range(4)])


def useless(cleaned: Cleaned, multiplier: float, seed: bytes) -> tuple[Layer]:
    """Logits from directions that have nothing to do with the data."""
    directions = np.random.default_rng(0).normal(size=(cleaned.statistics.dimension, cleaned.statistics.classes))
    return (Layer(directions, np.zeros(cleaned.statistics.classes)),)


def test_a_planted_bad_head_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with_head(monkeypatch, useless)
    assert select(coalition(), None, SEED).candidate.head != "planted"


def test_a_planted_good_challenger_beats_a_bad_default(monkeypatch: pytest.MonkeyPatch) -> None:
    good = HEADS["lda"].fit
    with_head(monkeypatch, good)
    for name in ("bayes", "lda", "ridge"):
        monkeypatch.setitem(HEADS, name, dataclasses.replace(HEADS[name], fit=useless))
    chosen = select(coalition(), None, SEED)
    assert chosen.candidate.head == "planted"
    assert chosen.reason.startswith("head and lambda clearly better")


def test_a_planted_good_lambda_beats_a_bad_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(cleaned: Cleaned, multiplier: float, seed: bytes) -> tuple[Layer, ...]:
        return HEADS["lda"].fit(cleaned, 0.3, seed) if multiplier == 0.3 else useless(cleaned, multiplier, seed)

    ridge = dataclasses.replace(HEADS["ridge"], fit=spoiled)
    monkeypatch.setitem(HEADS, "ridge", ridge)
    assert select(coalition(), "ridge", SEED).candidate == Candidate("ridge", 0.3)


def test_with_little_data_and_much_noise_the_default_stays() -> None:
    chosen = [
        select(fuse(WARD, [noisy(WARD, ward_rows(40, s), 0.3, f"{draw} {s}") for s in range(4)]), None, SEED).candidate
        for draw in range(20)
    ]
    assert chosen.count(Candidate("bayes", 1.0)) >= 12


def test_without_noise_the_default_is_used_however_the_rows_are_split() -> None:
    selection = select(fuse(WARD, [exact(WARD, ward_rows(300, s), f"{s}") for s in range(3)]), None, SEED)
    assert selection.candidate == Candidate("bayes", 1.0)
    assert selection.quality is not None
    assert selection.quality.relative_error_std == 0.0


def test_one_summary_gives_the_default_and_no_estimate() -> None:
    selection = select(fuse(WARD, [noisy(WARD, ward_rows(300, 1), 2.0, "only")]), None, SEED)
    assert selection.quality is None
    assert "no summary can be left out" in selection.reason


def test_a_summary_that_alone_holds_a_class_is_not_scored() -> None:
    parts = [noisy(WARD, ward_rows(600, c, classes=[c]), 5.0, f"class {c}") for c in range(3)]
    assert select(fuse(WARD, parts), None, SEED).quality is None
    both = [*parts, *(noisy(WARD, ward_rows(600, 5 + c, classes=[0, 1]), 5.0, f"mixed {c}") for c in range(2))]
    quality = select(fuse(WARD, both), None, SEED).quality
    assert quality is not None
    assert quality.groups == 4  # all but the one with class 2


def test_many_summaries_are_left_out_in_a_bounded_number_of_groups() -> None:
    parts = [noisy(WARD, ward_rows(150, s), 5.0, f"{s}") for s in range(25)]
    quality = select(fuse(WARD, parts), "ridge", SEED).quality
    assert quality is not None
    assert quality.groups == MAX_GROUPS


def test_the_quality_estimate_agrees_with_what_the_model_does_on_left_out_partners() -> None:
    """Against the truth: fit without a partner, count errors on its raw rows. Scores are not quite Gaussian here."""

    rows = [ward_rows(1_500, seed) for seed in range(4)]
    parts = [noisy(WARD, one, 3.0, f"partner {seed}") for seed, one in enumerate(rows)]
    quality = select(fuse(WARD, parts), "lda", SEED).quality
    right = []
    for left_out, batch in enumerate(rows):
        rest = fuse(WARD, [one for i, one in enumerate(parts) if i != left_out]).statistics
        logits = forward(HEADS["lda"].fit(Cleaned.of(rest), 1.0, SEED), encoder_for(WARD).encode(batch))
        right.append((logits.argmax(1) == batch.label).mean())
    assert quality is not None
    assert quality.accuracy is not None
    assert quality.accuracy_std is not None
    assert quality.accuracy == pytest.approx(np.mean(right), abs=0.05 + 3 * quality.accuracy_std)
    assert quality.relative_error < 0.8


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_the_squared_error_is_that_of_the_rows_and_its_variance_that_of_the_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, label, _means, _covariance = gaussian_rows(50, rng)
    a, b = rng.normal(size=(2, 5, 2))
    clean = statistics(x, label, 2, 0.0, rng)
    assert squared_error(a, clean) == pytest.approx(((x @ a - np.eye(2)[label]) ** 2).sum(), rel=1e-9)
    draws = []
    for _ in range(600):
        drawn = with_rows_from_bias(statistics(x, label, 2, 3.0, rng))
        draws.append(squared_error(a, drawn) - 0.5 * squared_error(b, drawn))
    expected = difference_variance(a, b, 0.5, drawn)
    assert np.var(draws) == pytest.approx(expected, rel=0.35)


def with_rows_from_bias(noised: Statistics) -> Statistics:
    """As `Sums.statistics` makes them: the number of rows is read from the noisy bias row."""
    return dataclasses.replace(noised, target_square=float(noised.counts.sum()))


def test_the_groups_do_not_depend_on_the_order_of_summaries() -> None:
    parts = [noisy(WARD, ward_rows(100, s), 3.0, f"{s}") for s in range(12)]
    assert select(fuse(WARD, parts), None, SEED) == select(fuse(WARD, parts[::-1]), None, SEED)


def test_a_cleaned_matrix_is_positive_semidefinite() -> None:
    spectrum: Spectrum = Cleaned.of(coalition(0.5).statistics).within
    assert np.linalg.eigvalsh(spectrum.matrix).min() > -1e-9
