"""Private training: exact sensitivity of a step, a sampler nobody can seed, charged first, and audited in one run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from opacus import GradSampleModule

from fusion import dpsgd
from fusion.accountants import ACCOUNTANTS
from fusion.dpsgd import SCALE, TrainingPlan, gradient_sum, noise_units, poisson_sample, quantized, train_private
from fusion.errors import BudgetError, DataError, ModelError
from fusion.ledger import Ledger

DELTA = 1e-5
TASK_ID = bytes(32)
ODD = [math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-320, -0.0, 0.0, 1.0, -3.5]
CROSS_ENTROPY = torch.nn.functional.cross_entropy


def small_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)
    )


def plan(**changes: float) -> TrainingPlan:
    values = {
        "clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 20, "learning_rate": 0.5,
        "batch_constant": 20.0,
    }  # fmt: skip
    return TrainingPlan(**(values | changes))  # type: ignore[arg-type]  # `steps` is an int in the values above


def train(ledger: Ledger, model: torch.nn.Module, chosen: TrainingPlan, x: torch.Tensor, y: torch.Tensor) -> None:
    named = {"dataset": "default", "task_id": TASK_ID, "delta": DELTA, "default_cap_epsilon": 8.0}
    train_private(model, x, y, CROSS_ENTROPY, chosen, ledger=ledger, **named)  # type: ignore[arg-type]  # see `named`


def data(rows: int = 200, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (rows, 3)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy((x @ np.array([1.0, -2.0, 0.5]) > 0).astype(np.int64))


def squared(values: np.ndarray) -> int:
    return sum(int(value) ** 2 for value in values)


@given(
    arrays(np.float64, st.integers(1, 40), elements=st.one_of(st.floats(), st.sampled_from(ODD))), st.floats(1e-6, 1e6)
)
def test_no_gradient_is_longer_than_its_bound_in_whole_numbers(gradient: np.ndarray, clip_norm: float) -> None:
    assert squared(quantized(gradient, clip_norm)) <= SCALE**2


@given(arrays(np.float64, 30, elements=st.floats(-10, 10)), st.floats(0.1, 10))
def test_a_gradient_keeps_its_direction_and_its_length_up_to_the_clip_norm(
    gradient: np.ndarray, clip_norm: float
) -> None:
    norm = float(np.linalg.norm(gradient))
    wanted = gradient * min(1.0, clip_norm / norm) if norm else gradient
    assert quantized(gradient, clip_norm) * clip_norm / SCALE == pytest.approx(wanted, abs=2e-6 * clip_norm)


@settings(max_examples=25)
@given(
    rows=arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32) | st.sampled_from([math.nan, math.inf])),
    where=st.integers(0, 4),
    labels=st.lists(st.integers(0, 1), min_size=5, max_size=5),
)  # fmt: skip
def test_adding_or_removing_one_record_moves_a_step_by_exactly_that_records_gradient(
    rows: np.ndarray, where: int, labels: list[int]
) -> None:
    model = small_model().eval()
    x, y = torch.from_numpy(rows), torch.tensor(labels)
    others = [at for at in range(5) if at != where]
    with_it = gradient_sum(model, x, y, CROSS_ENTROPY, 0.5)
    without = gradient_sum(model, x[others], y[others], CROSS_ENTROPY, 0.5)
    alone = gradient_sum(model, x[[where]], y[[where]], CROSS_ENTROPY, 0.5)
    assert np.array_equal(with_it - without, alone)
    assert squared(alone) <= SCALE**2


def test_an_empty_sample_sums_to_zero() -> None:
    x, y = data(0)
    assert not gradient_sum(small_model().eval(), x, y, CROSS_ENTROPY, 1.0).any()


def test_the_sampler_has_its_rate_and_no_seed_repeats_it() -> None:
    sizes = [len(poisson_sample(1_000, 0.1)) for _ in range(400)]
    assert np.mean(sizes) == pytest.approx(100, abs=4 * math.sqrt(90 / 400))
    assert np.var(sizes) == pytest.approx(90, rel=0.4)  # binomial: a batch of fixed size would have none
    samples = set()
    for _ in range(3):
        np.random.seed(0)
        torch.manual_seed(0)
        samples.add(tuple(poisson_sample(200, 0.5)))
    assert len(samples) == 3
    assert len(poisson_sample(50, 1.0)) == 50
    assert len(poisson_sample(0, 0.5)) == 0


def test_the_noise_is_never_below_its_multiplier() -> None:
    for multiplier in (0.1, 0.3, 1.0, 1.1, 7.77):
        assert noise_units(multiplier) >= multiplier * SCALE


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_training_learns_and_is_charged_what_it_says(tmp_path: Path) -> None:
    ledger, model = Ledger(tmp_path / "ledger.db"), small_model()
    x, y = data(1_000)
    chosen = plan(sampling_rate=0.1, steps=20, batch_constant=100.0, learning_rate=4.0)
    before = CROSS_ENTROPY(model.eval()(x), y).item()
    train(ledger, model, chosen, x, y)
    assert CROSS_ENTROPY(model(x), y).item() < 0.6 * before
    assert float((model(x).argmax(1) == y).float().mean()) > 0.85
    renyi = ACCOUNTANTS["renyi"]
    assert ledger.statement()[0].spent_epsilon == renyi.epsilon(renyi.cost(chosen.mechanism), DELTA)


def test_nothing_is_touched_when_the_budget_does_not_allow_it(tmp_path: Path) -> None:
    ledger, model = Ledger(tmp_path / "ledger.db"), small_model()
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(BudgetError, match="over the budget"):
        train(ledger, model, plan(noise_multiplier=0.2), *data())
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert ledger.statement() == []


def test_a_run_that_breaks_in_the_middle_stays_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    monkeypatch.setattr(dpsgd, "gradient_sum", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        train(ledger, small_model(), plan(), *data())
    assert ledger.statement()[0].spent_epsilon > 0


def test_every_step_is_taken_and_noised_even_without_any_row(tmp_path: Path) -> None:
    ledger, model = Ledger(tmp_path / "ledger.db"), small_model()
    before = [weight.clone() for weight in model.parameters()]
    train(ledger, model, plan(steps=2), *data(0))
    assert all(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling_rate": 0.0}, {"sampling_rate": math.nan}, {"noise_multiplier": 0.0}, {"steps": 0},
        {"clip_norm": 0.0}, {"clip_norm": math.inf}, {"batch_constant": -1.0}, {"learning_rate": math.nan},
        {"momentum": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, float], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    with pytest.raises(BudgetError, match="must be"):
        train(ledger, small_model(), plan(**changes), *data())
    assert ledger.statement() == []


def test_rows_without_targets_are_refused(tmp_path: Path) -> None:
    x, y = data()
    with pytest.raises(DataError, match="every row needs a target"):
        train(Ledger(tmp_path / "ledger.db"), small_model(), plan(), x, y[:-1])


# --- one-run audit --------------------------------------------------------------------------------------------


def lower_bound(correct: int, guesses: int, delta: float, canaries: int) -> float:
    """Steinke, Nasr & Jagielski 2023, theorem 3 with its simple form for delta: the largest epsilon refuted at 95 %."""
    from scipy.stats import binom

    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        rate = 1 / (1 + math.exp(-middle))
        p_value = binom.sf(correct - 1, guesses, rate) + 2 * canaries * delta
        low, high = (middle, high) if p_value < 0.05 else (low, middle)
    return low


class Sum(torch.nn.Module):
    """The gradient of its loss is the row itself: the most that any canary can do."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.weight


def audited(noise_multiplier: float, rate: float, steps: int, canaries: int, ledger: Ledger) -> tuple[float, float]:
    """(claimed, measured) epsilon: every canary has a coordinate of its own and takes part with probability 1/2."""
    rng = np.random.default_rng()
    included = rng.random(canaries) < 0.5
    rows = torch.eye(canaries)[torch.from_numpy(np.flatnonzero(included))]
    model, chosen = Sum(canaries), plan(
        noise_multiplier=noise_multiplier, sampling_rate=rate, steps=steps, learning_rate=1.0, batch_constant=1.0
    )  # fmt: skip
    train_private(
        model, rows, torch.zeros(len(rows)), lambda out, _: -out.sum(), chosen,
        ledger=ledger, dataset="audit", task_id=TASK_ID, delta=DELTA, default_cap_epsilon=100.0,
    )  # fmt: skip
    score = model.weight.detach().numpy() - rate * steps / 2
    sure = np.argsort(-np.abs(score))[: canaries // 10]
    correct = int(((score[sure] > 0) == included[sure]).sum())
    claimed = ledger.statement("audit")[0].entries[-1].epsilon
    return claimed, lower_bound(correct, len(sure), 1e-9, canaries)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 1.0, 1), (4.0, 1.0, 20), (1.0, 0.5, 4)])
def test_one_run_with_many_canaries_measures_less_than_is_claimed_and_not_nothing(
    noise: float, rate: float, steps: int, tmp_path: Path
) -> None:
    claimed, measured = audited(noise, rate, steps, 2_000, Ledger(tmp_path / "ledger.db"))
    print(
        f"one-run audit: noise {noise:g}, rate {rate:g}, {steps} steps: claimed {claimed:.2f}, measured {measured:.2f}"
    )
    assert 0.1 * claimed < measured <= claimed


@pytest.mark.soak
def test_the_audit_sees_noise_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpsgd, "noise_units", lambda multiplier: noise_units(multiplier / 6))
    claimed, measured = audited(2.5, 1.0, 1, 2_000, Ledger(tmp_path / "ledger.db"))
    assert measured > claimed


def test_a_model_whose_layers_tie_records_together_is_refused_before_anything_is_charged(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    ledger = Ledger(tmp_path / "ledger.db")
    plan = TrainingPlan(1.0, 1.0, 0.5, 2, 0.1, batch_constant=5.0)
    rows, targets = torch.zeros(10, 2), torch.zeros(10, dtype=torch.long)
    with pytest.raises(ModelError, match="BatchNorm cannot support training with differential privacy"):
        train_private(
            model, rows, targets, torch.nn.functional.cross_entropy, plan,
            ledger=ledger, dataset="d", task_id=bytes(32), delta=1e-6, default_cap_epsilon=3.0,
        )  # fmt: skip
    assert ledger.statement() == []


def test_gradients_of_single_records_are_those_that_opacus_computes_in_a_batch() -> None:
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    rows, targets = torch.randn(16, 3), torch.randint(0, 2, (16,))
    clip_norm = 0.7
    ours = gradient_sum(model, rows, targets, torch.nn.functional.cross_entropy, clip_norm) * (clip_norm / SCALE)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    torch.nn.functional.cross_entropy(wrapped(rows.clone().requires_grad_()), targets, reduction="sum").backward()
    each = torch.cat([weight.grad_sample.reshape(16, -1) for weight in wrapped.parameters()], dim=1)
    clipped = each * (clip_norm / each.norm(dim=1).clamp(min=clip_norm))[:, None]
    assert np.allclose(ours, clipped.sum(dim=0).numpy(), atol=1e-4)
