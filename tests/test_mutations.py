"""Deliberate bugs, each of which the suite's own checks must catch: a suite that passes with one of them is broken.

Each mutant changes the real code in place, by replacing a function or one line of one, and runs the checks that the
rest of the suite runs (`privacy_checks`). All checks named beside it must fail; the same checks pass on the code as it
is, which is tested here too. `make test` prints the list.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import privacy_checks as checks
import pytest
from mutants import rewrite
from privacy_checks import TASKS, TRAINED

from fusion import accountants, accounting, ledger, summary, training
from fusion import release as release_module
from fusion.accountants import Costs, add, largest
from fusion.accounts import Account
from fusion.encoders.lift import LiftedRows
from fusion.encoders.tabular import NumberBlock, TabularRows
from fusion.partitions import ColumnCells
from fusion.parts import Part
from fusion.persons import PersonPass
from fusion.summaries import UNIT, BlockLayout, histograms, mean_embedding, moments, residual_moments
from fusion.summaries.class_moments import ClassMomentsKind
from fusion.summaries.histograms import HistogramsKind
from fusion.summaries.model import ModelKind
from fusion.summaries.moments import MomentsKind, Products

Check = Callable[[Path], None]
Patch = pytest.MonkeyPatch

ROWS, NUMBERS = TASKS["classification, rows"], TASKS["regression, rows"]
PERSONS = TASKS["classification, persons"]
RESIDUALS = TASKS["residual-moments: classification, rows"]
EMBEDDED_NUMBERS = TASKS["mean-embedding: regression, rows"]
CLASS_ROWS = TASKS["class-moments: classification, rows"]
CELL_ROWS, CELL_PERSONS = TASKS["histograms: classification, rows"], TASKS["histograms: classification, persons"]
LIFTED = checks.make_task(checks.CLASSES, '"record"', options="[encoder.lift]\nfeatures = 8\n")
STRANGERS: list[checks.Line] = [("3", "0.5", "red", "a", "p"), ("-9", "0", "blue", "c", "q")]

CHECKS: dict[str, Check] = {
    "exact search: rows": lambda _: checks.check_every_corner(ROWS),
    "exact search: regression": lambda _: checks.check_every_corner(NUMBERS),
    "exact search: rows of a person": lambda _: checks.check_every_corner(PERSONS),
    "shares of a person": lambda _: [checks.check_shares_add_up_to_at_most_one(k) for k in range(1, 9)] and None,
    "exact search: a person over the bound": lambda _: checks.check_prolific_person(PERSONS),
    "exact search: what others add": lambda _: checks.check_others_stay_bit_identical(
        ROWS, [("3", "0.5", "red", "a", "p"), ("-9", "0", "blue", "c", "q")], [("40", "1", "red", "a", "x")]
    ),
    "exact search: residuals": lambda _: checks.check_every_corner(RESIDUALS),
    "exact search: what others add to residuals": lambda _: checks.check_others_stay_bit_identical(
        RESIDUALS, [("3", "0.5", "red", "a", "p"), ("-9", "0", "blue", "c", "q")], [("40", "1", "red", "a", "x")]
    ),
    "exact search: mean embedding of numbers": lambda _: checks.check_every_corner(EMBEDDED_NUMBERS),
    "exact search: class moments": lambda _: checks.check_every_corner(CLASS_ROWS),
    "exact search: histograms of persons": lambda _: checks.check_every_corner(CELL_PERSONS),
    "exact search: what others add to histograms": lambda _: checks.check_others_stay_bit_identical(
        CELL_ROWS, STRANGERS, [("40", "1", "red", "a", "x")]
    ),
    "exact search: what others add to lifted rows": lambda _: checks.check_others_stay_bit_identical(
        LIFTED, STRANGERS, [("40", "1", "red", "a", "x")]
    ),
    "stated sensitivity: class moments": lambda _: checks.check_stated_sensitivity_is_proved(CLASS_ROWS),
    "stated sensitivity: histograms": lambda _: checks.check_stated_sensitivity_is_proved(CELL_ROWS),
    "claimed privacy: histograms": lambda _: checks.check_noise_gives_claimed_privacy(CELL_ROWS, 1.0),
    "stated sensitivity": lambda _: checks.check_stated_sensitivity_is_proved(ROWS),
    "claimed privacy": lambda _: [checks.check_noise_gives_claimed_privacy(ROWS, e) for e in (0.5, 1.0, 3.0)] and None,
    "exact search: a training step": lambda _: checks.check_a_step_moves_by_at_most_the_clip(TRAINED["rows"]),
    "exact search: a person's step": lambda _: checks.check_a_step_moves_by_at_most_the_clip(TRAINED["persons"]),
    "claimed privacy of training": lambda _: (
        [checks.check_a_run_costs_what_it_claims(TRAINED["rows"], e) for e in (0.5, 3.0)] and None
    ),
    "deviation of the noise": lambda _: checks.check_drawn_noise_has_stated_deviation(ROWS),
    "fresh noise": lambda _: checks.check_noise_is_fresh(ROWS),
    "audit": lambda _: checks.check_audit_confirms_claim(ROWS),
    "audit of persons": lambda _: checks.check_audit_confirms_claim(PERSONS),
    "spent before computed": checks.check_budget_is_spent_before_rows_are_summed,
    "spent after an error": checks.check_error_leaves_budget_spent,
    "all releases under the cap": checks.check_all_releases_together_stay_under_cap,
    "overlapping parts add up": checks.check_overlapping_parts_add_up,
}

MUTANTS: dict[str, tuple[Callable[[Patch], None], tuple[str, ...]]] = {}


def mutant(name: str, *caught_by: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Registers a bug and the checks that must catch it."""

    def register(inject: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS[name] = (inject, caught_by)
        return inject

    return register


@pytest.mark.parametrize("name", [name for name in CHECKS if not name.startswith("audit")])  # those: test_audit.py
def test_the_code_as_it_is_passes_the_check(name: str, tmp_path: Path) -> None:
    CHECKS[name](tmp_path)


# --- sensitivity ----------------------------------------------------------------------------------------------


@mutant("rows are not clipped", "exact search: rows")
def _(patch: Patch) -> None:
    rewrite(patch, TabularRows, "encode", ("radius = np.maximum(np.sqrt(squares), self.clip_norm)",
                                       "radius = np.full(len(batch), self.clip_norm)"))  # fmt: skip
    rewrite(patch, moments, "quantize", ("q[~within] = 0.0", "pass"))


@mutant("fixed point rounds away from zero", "exact search: rows")
def _(patch: Patch) -> None:
    rewrite(patch, moments, "quantize", ("np.trunc(q, out=q)", "np.ceil(q, out=q)"),
            ("q[~within] = 0.0", "pass"))  # fmt: skip


@mutant("labels are not clipped", "exact search: regression")
def _(patch: Patch) -> None:
    rewrite(patch, moments, "quantize_targets", ("np.clip(batch.label, -1.0, 1.0)", "np.clip(batch.label, -9.0, 9.0)"),
            ("np.clip(scaled, -most, most)", "scaled"))  # fmt: skip


@mutant("a row counts for every class", "exact search: rows")
def _(patch: Patch) -> None:
    rewrite(patch, moments, "quantize_targets", ("chosen * most", "np.ones_like(chosen) * most"))


@mutant("residuals are not drawn in", "exact search: residuals")
def _(patch: Patch) -> None:
    rewrite(patch, residual_moments, "residuals", ("radius = np.maximum(np.sqrt(squares), RADIUS * FIXED_POINT)",
                                                   "radius = np.full(len(squares), RADIUS * FIXED_POINT)"),
            ("quantize(difference / radius[:, None], rows.shares)",
             "np.trunc(FIXED_POINT * difference / radius[:, None])"))  # fmt: skip


@mutant("lengths of residuals are not bounded", "exact search: residuals")
def _(patch: Patch) -> None:
    rewrite(patch, residual_moments, "residual_sums", ("np.minimum(squares, UNIT)", "squares"))


@mutant("residuals are taken about exact class means", "exact search: what others add to residuals")
def _(patch: Patch) -> None:
    rewrite(patch, residual_moments.ResidualMomentsKind, "measure", ("noised[CROSS]", "cross.reshape(-1)"))


@mutant("bounds are taken from the data", "exact search: what others add")
def _(patch: Patch) -> None:
    rewrite(patch, NumberBlock, "coordinates", ("raw = batch.numbers[self.name]",
        "raw = batch.numbers[self.name]; raw = raw * self.upper / max(1.0, np.nanmax(np.abs(raw)))"))  # fmt: skip


@mutant("sums are kept in single precision", "exact search: what others add")
def _(patch: Patch) -> None:
    rewrite(patch, Products, "_close", ("self._open_gram.astype(", "self._open_gram.astype(np.float32).astype("))


@mutant("the cross block is left out of Delta", "stated sensitivity", "claimed privacy", "audit")
def _(patch: Patch) -> None:
    patch.setattr(MomentsKind, "sensitivity", lambda self, task: 1.0)


@mutant("the count row of the cross block is left out of Delta", "stated sensitivity", "claimed privacy")
def _(patch: Patch) -> None:
    share = math.sqrt(2.0 - ROWS.encoder.bias**2)
    patch.setattr(MomentsKind, "sensitivity", lambda self, task: share)


@mutant("the upper triangle gets half the noise, not 1/sqrt(2)", "stated sensitivity", "claimed privacy")
def _(patch: Patch) -> None:
    original = MomentsKind.layout

    def layout(self: MomentsKind, task: Any) -> tuple[BlockLayout, ...]:
        return tuple(
            BlockLayout(one.name, one.entries, 2.0) if one.name == moments.UPPER else one
            for one in original(self, task)
        )

    patch.setattr(MomentsKind, "layout", layout)


@mutant("a number counts whole at both ends", "exact search: mean embedding of numbers")
def _(patch: Patch) -> None:
    rewrite(patch, mean_embedding, "class_weights", ("[most - high, high]", "[most, high]"))


@mutant("a row counts in the second moments of every class", "exact search: class moments")
def _(patch: Patch) -> None:
    rewrite(patch, ClassMomentsKind, "measure", ("q[w[:, c] > 0.0]", "q"))


@mutant("class moments are noised for one block too few", "stated sensitivity: class moments")
def _(patch: Patch) -> None:
    patch.setattr(ClassMomentsKind, "sensitivity", lambda self, task: 1.0)


@mutant("a partition is left out of Delta", "stated sensitivity: histograms", "claimed privacy: histograms")
def _(patch: Patch) -> None:
    rewrite(
        patch, HistogramsKind, "sensitivity", ("len(partitions_of(task).parts)", "len(partitions_of(task).parts) - 1")
    )


@mutant("every row of a person is counted whole", "exact search: histograms of persons")
def _(patch: Patch) -> None:
    rewrite(patch, histograms, "row_weights", ("np.floor_divide(UNIT, rows_sharing(task, batch))",
                                               "np.full(len(batch), UNIT)"))  # fmt: skip


@mutant("cells are cut where the data lie", "exact search: what others add to histograms")
def _(patch: Patch) -> None:
    rewrite(patch, ColumnCells, "of", ("missing = np.isnan(raw)",
                                       "missing = np.isnan(raw); raw = raw * 40 / np.nanmax(np.abs(raw))"))  # fmt: skip


@mutant("a lift is centered on the rows at hand", "exact search: what others add to lifted rows")
def _(patch: Patch) -> None:
    rewrite(patch, LiftedRows, "encode", ("(whole @ self.weights)", "((whole - whole.mean(axis=0)) @ self.weights)"))


# --- persons --------------------------------------------------------------------------------------------------


@mutant("the bound on a person's rows is ignored", "exact search: a person over the bound", "audit of persons")
def _(patch: Patch) -> None:
    rewrite(patch, PersonPass, "take", ("return ordinal < kept_of_person,", "return ordinal >= 0,"))


@mutant("every row of a person counts whole", "exact search: rows of a person", "audit of persons")
def _(patch: Patch) -> None:
    rewrite(patch, moments, "rows_sharing", ("return batch.person_rows", "return np.ones(len(batch), dtype=np.int64)"))


@mutant("only the features of a person are scaled, not the label", "exact search: rows of a person")
def _(patch: Patch) -> None:
    rewrite(patch, moments, "quantize_targets", ("chosen * most[:, None]", "chosen * float(FIXED_POINT)"))


@mutant("shares are rounded up", "shares of a person")
def _(patch: Patch) -> None:
    rewrite(patch, moments, "whole_shares", ("math.isqrt(UNIT // int(one))", "math.isqrt(UNIT // int(one)) + 1"))


@mutant("a person's rows are counted among everybody's", "exact search: a person over the bound")
def _(patch: Patch) -> None:
    rewrite(patch, PersonPass, "take", ("ordinal = seen[person] + _earlier(person)", "ordinal = np.arange(len(ids))"))


@mutant("gradients are not clipped", "exact search: a training step", "exact search: a person's step")
def _(patch: Patch) -> None:
    rewrite(patch, training, "_clipped", ("np.maximum(norm, clip_norm)", "np.full_like(norm, clip_norm)"),
            ("np.where(fits[:, None], b, 0.0)", "b"))  # fmt: skip


@mutant("every row of a person is clipped by itself", "exact search: a person's step")
def _(patch: Patch) -> None:
    rewrite(patch, training, "_clipped", ("np.maximum(norm, clip_norm) * k)", "np.maximum(norm, clip_norm))"),
            (" * (k * k)", ""))  # fmt: skip


@mutant("only one layer of a gradient is clipped", "exact search: a training step")
def _(patch: Patch) -> None:
    rewrite(patch, training, "_clipped", ("norm = np.sqrt(_sum(a * squares(b) for a, b in zip(input_squares, errors, "
            "strict=True)))", "norm = np.sqrt(input_squares[0] * squares(errors[0]))"),
            ("np.where(fits[:, None], b, 0.0)", "b"))  # fmt: skip


@mutant("training is noised for one step only", "claimed privacy of training")
def _(patch: Patch) -> None:
    rewrite(patch, ModelKind, "sensitivity", ("settings_of(task).steps * ", ""))


# --- noise ----------------------------------------------------------------------------------------------------


@mutant("half the noise", "deviation of the noise", "audit")
def _(patch: Patch) -> None:
    original = release_module.discrete_gaussian
    patch.setattr(release_module, "discrete_gaussian", lambda values, sigma: original(values, sigma // 2))


@mutant("the variance is used as deviation", "deviation of the noise")
def _(patch: Patch) -> None:
    original = release_module.discrete_gaussian
    patch.setattr(release_module, "discrete_gaussian", lambda values, sigma: original(values, sigma * sigma // UNIT))


@mutant("the deviation is used as variance", "deviation of the noise", "audit")
def _(patch: Patch) -> None:
    original = release_module.discrete_gaussian
    patch.setattr(release_module, "discrete_gaussian", lambda values, sigma: original(values, math.isqrt(sigma)))


@mutant("noise is reused across two releases", "fresh noise")
def _(patch: Patch) -> None:
    original = release_module.discrete_gaussian
    drawn = functools.cache(lambda count, sigma: original(np.zeros(count, dtype=np.int64), sigma))
    patch.setattr(release_module, "discrete_gaussian", lambda values, sigma: values + drawn(len(values), sigma))


@mutant("noise comes from a seeded generator", "fresh noise")
def _(patch: Patch) -> None:
    patch.setattr(
        release_module,
        "discrete_gaussian",
        lambda values, sigma: values + np.rint(np.random.normal(0, sigma, len(values))).astype(np.int64),
    )


@mutant("the noise is left off", "deviation of the noise", "fresh noise")
def _(patch: Patch) -> None:
    patch.setattr(release_module, "discrete_gaussian", lambda values, sigma: values)


# --- accounting -----------------------------------------------------------------------------------------------


@mutant("the classical formula sqrt(2 ln(1.25/delta)) / epsilon", "claimed privacy")
def _(patch: Patch) -> None:
    classical = lambda sensitivity, epsilon, delta: sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon  # noqa: E731
    patch.setattr(summary, "noise_scale", classical)


@mutant("the slack for whole numbers is not taken off delta", "claimed privacy")
def _(patch: Patch) -> None:
    rewrite(patch, accounting, "noise_scale", ("delta - DISCRETE_SLACK", "delta"))
    patch.setattr(summary, "noise_scale", accounting.noise_scale)


@mutant("delta is dropped in composition", "all releases under the cap")
def _(patch: Patch) -> None:
    patch.setattr(accountants, "mu_of", lambda epsilon, delta: accounting.mu_of(epsilon, 1e-5))


@mutant("epsilons are composed as squares", "all releases under the cap")
def _(patch: Patch) -> None:
    squares = lambda self, mechanism: (math.ceil(mechanism.epsilon**2 * accountants.COST_UNITS),)  # noqa: E731
    patch.setattr(accountants.GaussianAccountant, "cost", squares)


@mutant("a release is charged a quarter of its cost", "all releases under the cap")
def _(patch: Patch) -> None:
    whole = "account.accountant.cost(mechanism)"
    rewrite(patch, ledger.Ledger, "_reserve", (whole, f"tuple(one // 4 for one in {whole})"))


@mutant("parts of different rules are taken for disjoint", "overlapping parts add up")
def _(patch: Patch) -> None:
    def dearest(account: Account, part: Part | None = None) -> Costs:
        chosen = [
            cost
            for rule, values in account.parts.items()
            for value, cost in values.items()
            if part is None or (rule, value) == (part.rule, part.value)
        ]
        return add(account.whole, largest(chosen, account.accountant.entries))

    patch.setattr(Account, "spent", dearest)


@mutant("a part does not pay for releases of the whole dataset", "overlapping parts add up")
def _(patch: Patch) -> None:
    rewrite(patch, Account, "spent", ("total = self.whole", "total = self.whole if part is None else self.nothing"))


# --- order ----------------------------------------------------------------------------------------------------

_COMPUTE = (
    "    batches = read_batches(paths, task, persons=persons, part=part)\n"
    "    measured = measure(task, batches, _continued(progress, report.rows_read))\n"
)


_NOISED = "summary = _noised(planned, measured, reserved.position)"


@mutant("the budget is spent after the sums are computed", "spent before computed")
def _(patch: Patch) -> None:
    rewrite(patch, release_module, "release", (_COMPUTE, ""),
            ("    reserved = ledger.reserve(\n", _COMPUTE + "    reserved = ledger.reserve(\n"))  # fmt: skip


@mutant("an error refunds the budget", "spent after an error")
def _(patch: Patch) -> None:
    rewrite(
        patch,
        release_module,
        "release",
        (
            "    reserved = ledger.reserve(\n",
            "    before = ledger._path.read_bytes()\n    reserved = ledger.reserve(\n",
        ),
        (
            f"    {_NOISED}\n",
            f"    try:\n        {_NOISED}\n"
            "    except BaseException:\n        ledger._path.write_bytes(before)\n        raise\n",
        ),
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(
    name: str, tmp_path: Path, monkeypatch: Patch, record_property: Callable[[str, object], None]
) -> None:
    inject, caught_by = MUTANTS[name]
    inject(monkeypatch)
    for number, check in enumerate(caught_by):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(AssertionError):
            CHECKS[check](folder)
    record_property("mutant", (name, caught_by))
