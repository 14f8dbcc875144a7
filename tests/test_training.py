"""Private training of small heads: what one record can move, in whole numbers, and what others add, to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_accounting import ComposedDpEvent, GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from privacy_checks import CLASSES, PERSON, make_task

from fusion import training
from fusion.shapes import fresh_weights
from fusion.summaries.mean_embedding import CLASS_SUMS
from fusion.summaries.model import GRADIENTS
from fusion.summaries.moments import quantize
from fusion.summary import plan
from fusion.task import Task
from fusion.training import Recipe, Rows, Weights, exact_product, gradient_sum, row_gradients, softmax, train

UNIT = 2**32
CLASS_COUNT, FEATURES = 3, 5
OFFSETS = np.log(np.array([0.5, 0.3, 0.2]))
SHAPES = {"linear": ((FEATURES, CLASS_COUNT),), "hidden": ((FEATURES, 6), (7, CLASS_COUNT))}
ODD = [math.nan, math.inf, -math.inf, 1e308, 1e-320, -0.0, 0.0, 1.0, -1.0, 0.4]
hostile = st.one_of(st.sampled_from(ODD), st.floats(-1, 1))
rows_of_features = arrays(np.float64, st.tuples(st.integers(0, 7), st.just(FEATURES)), elements=hostile)
scales = st.sampled_from([0.0, 1e-3, 1.0, 30.0, 127.0])


def weights_of(name: str, seed: int, scale: float) -> Weights:
    rng = np.random.default_rng(seed)
    return tuple(scale * rng.uniform(-1, 1, shape) for shape in SHAPES[name])


def as_rows(features: np.ndarray, seed: int, k: int = 1) -> Rows:
    """Labels outside the classes among them."""
    label = np.random.default_rng(seed).integers(-2, CLASS_COUNT + 2, len(features))
    ones = np.ones(len(features), dtype=np.int64)
    return Rows(quantize(features, ones).astype(np.int32), label, k * ones)


def joined(*parts: Rows) -> Rows:
    return Rows(*(np.concatenate([getattr(one, name) for one in parts]) for name in ("features", "label", "sharing")))


def squared(values: np.ndarray) -> int:
    return sum(int(value) ** 2 for value in values)


# --- sensitivity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@given(features=rows_of_features, seed=st.integers(0, 99), scale=scales, clip=st.sampled_from([1e-3, 0.1, 1.0, 50.0]))
def test_no_row_adds_more_than_the_clip_in_whole_numbers(
    name: str, features: np.ndarray, seed: int, scale: float, clip: float
) -> None:
    weights = weights_of(name, seed, scale)
    for one in features:
        assert squared(gradient_sum(weights, as_rows(one[None, :], seed), clip, OFFSETS)) <= UNIT**2


@pytest.mark.parametrize("name", SHAPES)
@given(features=rows_of_features, seed=st.integers(0, 99), scale=scales)
def test_all_rows_of_a_person_together_add_no_more_than_one_row(
    name: str, features: np.ndarray, seed: int, scale: float
) -> None:
    rows = as_rows(features, seed, k=max(1, len(features)))
    assert squared(gradient_sum(weights_of(name, seed, scale), rows, 0.7, OFFSETS)) <= UNIT**2


def test_the_bound_has_no_slack_to_speak_of() -> None:
    row = np.zeros((1, FEATURES))
    row[0, 0] = 1.0
    added = gradient_sum((np.zeros((FEATURES, CLASS_COUNT)),), as_rows(row, 1), 1e-3, OFFSETS)
    assert squared(added) > 0.999 * UNIT**2


@pytest.mark.parametrize("name", SHAPES)
@given(
    before=rows_of_features, one=arrays(np.float64, (1, FEATURES), elements=hostile), after=rows_of_features,
    seed=st.integers(0, 99), scale=scales,
)  # fmt: skip
def test_one_record_more_moves_a_step_by_exactly_what_it_adds_alone(
    name: str, before: np.ndarray, one: np.ndarray, after: np.ndarray, seed: int, scale: float
) -> None:
    weights = weights_of(name, seed, scale)
    parts = [as_rows(features, seed + at) for at, features in enumerate((before, one, after))]
    together, without, alone = (
        gradient_sum(weights, joined(*chosen), 1.0, OFFSETS)
        for chosen in (parts, [parts[0], parts[2]], [parts[1]])
    )  # fmt: skip
    assert (together == without + alone).all()


@pytest.mark.parametrize("name", SHAPES)
def test_thousands_of_rows_in_any_order_and_any_blocks_add_up_to_the_same_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    rows = as_rows(rng.uniform(-0.45, 0.45, (9_001, FEATURES)), 3)
    weights = weights_of(name, 1, 3.0)
    wanted = gradient_sum(weights, rows, 1.0, OFFSETS)
    order = rng.permutation(len(rows))
    shuffled = Rows(rows.features[order], rows.label[order], rows.sharing[order])
    assert (gradient_sum(weights, shuffled, 1.0, OFFSETS) == wanted).all()
    monkeypatch.setattr(training, "BLOCK_ROWS", 37)
    assert (gradient_sum(weights, shuffled, 1.0, OFFSETS) == wanted).all()


@given(
    whole=arrays(np.int64, (3, 4), elements=st.integers(-(2**15), 2**15)),
    weight=arrays(np.float64, (4, 2), elements=st.floats(-127, 127)),
)
def test_products_are_exact(whole: np.ndarray, weight: np.ndarray) -> None:
    product = exact_product(whole.astype(np.float64), 16, weight)
    scaled = product * 2.0**40  # whole: the weights are rounded to at most 2^-40
    for i, row in enumerate(whole.tolist()):
        rounded = [[round(entry * 2**k) for entry in weight[:, 0]] for k in range(41)]
        assert any(
            scaled[i, 0] == sum(a * b for a, b in zip(row, column, strict=True)) * 2 ** (40 - k)
            for k, column in enumerate(rounded)
        )


# --- second routes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("clip", [0.3, 1.0, 20.0])
def test_the_gradients_are_those_of_torch(name: str, clip: float) -> None:
    rng = np.random.default_rng(0)
    features = rng.uniform(-0.4, 0.4, (20, FEATURES))
    label = rng.integers(0, CLASS_COUNT, 20)
    rows = Rows(quantize(features, np.ones(20, dtype=np.int64)).astype(np.int32), label, np.ones(20, dtype=np.int64))
    weights = weights_of(name, 5, 2.0)
    total = np.zeros(sum(one.size for one in weights))
    for x, y in zip(features, label, strict=True):
        tensors = [torch.tensor(one, requires_grad=True) for one in weights]
        hidden = torch.tensor(x)
        for one in tensors[:-1]:
            hidden = torch.cat([torch.relu(hidden @ one), torch.ones(1, dtype=torch.float64)])
        loss = torch.nn.functional.cross_entropy(hidden @ tensors[-1] + torch.tensor(OFFSETS), torch.tensor(y))
        gradient = torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, tensors)]).numpy()
        total += gradient * min(1.0, clip / np.linalg.norm(gradient))
    ours = gradient_sum(weights, rows, clip, OFFSETS) * (clip / UNIT)
    assert ours == pytest.approx(total, abs=20 * clip * 2e-4)


@given(arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.floats(-1e4, 1e4)))
def test_softmax_is_softmax(logits: np.ndarray) -> None:
    wanted = torch.softmax(torch.from_numpy(logits), 1).numpy()
    assert softmax(logits) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_rows_of_no_class_add_nothing() -> None:
    rows = as_rows(np.full((1, FEATURES), 0.3), 0)
    nameless = Rows(rows.features, np.array([-1]), rows.sharing)
    for name in SHAPES:
        assert not gradient_sum(weights_of(name, 1, 1.0), nameless, 1.0, OFFSETS).any()


# --- noise and cost -------------------------------------------------------------------------------------------

TASKS: dict[str, Task] = {
    unit: make_task(CLASSES, text, "model") for unit, text in (("rows", '"record"'), ("persons", PERSON))
}


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
def test_a_whole_run_and_its_class_sums_together_cost_what_the_claim_says(epsilon: float) -> None:
    """Every noisy number of the release, composed by dp-accounting's privacy loss distributions."""
    task = TASKS["rows"]
    planned = plan(task, epsilon)
    assert task.model is not None
    sums, step = (planned.sigmas[name] / UNIT for name in (CLASS_SUMS, GRADIENTS))
    events = [GaussianDpEvent(sums), *[GaussianDpEvent(step)] * task.model.steps]
    spent = PLDAccountant(value_discretization_interval=1e-3).compose(ComposedDpEvent(events))
    assert 0.99 * epsilon < spent.get_epsilon(task.privacy.delta) <= 1.002 * epsilon
    mu = math.sqrt(1 / sums**2 + task.model.steps / step**2)
    assert mu == pytest.approx(planned.mu, rel=1e-6)


def test_the_noise_of_every_step_is_drawn_with_its_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    real = training.discrete_gaussian

    def spying(values: np.ndarray, sigma: int) -> np.ndarray:
        made = real(values, sigma)
        seen.append((made - values) / sigma)
        return made

    monkeypatch.setattr(training, "discrete_gaussian", spying)
    rows = as_rows(np.full((50, FEATURES), 0.3), 0)
    train(rows, fresh_weights(0, SHAPES["hidden"]), Recipe(60, 1.0, 1.0, 50.0, OFFSETS), 5 * UNIT)
    assert len(seen) == 60
    assert np.std(np.concatenate(seen)) == pytest.approx(1.0, abs=0.06)
    assert len({tuple(one) for one in seen}) == 60


@settings(max_examples=5)
@given(st.integers(0, 5))
def test_training_learns_what_there_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 2_000)
    x = np.zeros((2_000, FEATURES))
    x[:, :3] = 0.6 * np.eye(3)[label] + rng.normal(0, 0.15, (2_000, 3))
    x[:, -1] = 0.4
    ones = np.ones(2_000, dtype=np.int64)
    rows = Rows(quantize(x, ones).astype(np.int32), label, ones)
    for shapes, rate in ((SHAPES["linear"], 5.0), (SHAPES["hidden"], 2.0)):
        told: list[int] = []
        weights = train(rows, fresh_weights(seed, shapes), Recipe(40, 1.0, rate, 2_000.0, np.zeros(3)),
                        10 * UNIT, told.append)  # fmt: skip
        assert told == list(range(1, 41))
        (_, *_), logits = training._forward(weights, rows.features.astype(np.float64))
        assert (logits.argmax(1) == label).mean() > 0.9


def test_row_gradients_hold_whole_numbers() -> None:
    rows = as_rows(np.random.default_rng(0).uniform(-0.4, 0.4, (9, FEATURES)), 0)
    factors = row_gradients(weights_of("hidden", 1, 1.0), rows.features.astype(np.float64), rows.label, rows.sharing,
                            1.0, OFFSETS)  # fmt: skip
    assert all((np.rint(one) == one).all() for pair in factors for one in pair)
