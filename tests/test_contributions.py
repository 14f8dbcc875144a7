"""Contributions: what leaving a partner out costs the others, estimated from noisy sums, with the noise it has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion.contributions import Contributions, PartnerContribution, contributions
from fusion.dataset import Batch
from fusion.encoders import encoder_for
from fusion.errors import ModelError, NothingToFuse
from fusion.fuse import Contribution, fuse, total
from fusion.heads import Cleaned
from fusion.selection import base_rates, default_candidate, fit_on_rest
from fusion.statistics import statistics_of
from fusion.task import Task
from node import contributions as study
from node import publish as publishing
from node.__main__ import run
from node.errors import UsageError
from node.home import Home
from node.tasks import add, find
from tests.partners import STAY, WARD, contribution, exact, noisy, stay_rows, ward_rows

BATCHES = [ward_rows(count, seed) for seed, count in enumerate((400, 300, 250, 200))]
EXACT = [exact(WARD, rows, f"partner {n}") for n, rows in enumerate(BATCHES)]


def of(found: Contributions, one: Contribution) -> PartnerContribution:
    return next(partner for partner in found.partners if partner.origin == one.origin)


def raw_error(task: Task, weights: np.ndarray, rows: Batch) -> float:
    """The squared error of W on rows, by the rows themselves."""
    truth = np.eye(3)[np.asarray(rows.label)] if task.label.classes else np.asarray(rows.label)[:, None]
    return float(((encoder_for(task).encode(rows) @ weights - truth) ** 2).sum())


@pytest.mark.parametrize(("task", "batches"), [(WARD, BATCHES), (STAY, [stay_rows(200 + n, n) for n in range(4)])])
def test_without_noise_it_is_what_the_rows_of_the_others_say(task: Task, batches: list[Batch]) -> None:
    summaries = [exact(task, rows, f"partner {n}") for n, rows in enumerate(batches)]
    found = contributions(task, summaries)

    def weights(*members: int) -> np.ndarray:
        rest = Cleaned.of(statistics_of(task, total([summaries[n] for n in members])))
        return fit_on_rest(default_candidate(None), rest, bytes(32)).weights

    everybody = base_rates(Cleaned.of(fuse(task, summaries).statistics))
    for k in range(4):
        others = [n for n in range(4) if n != k]
        gain = sum(
            raw_error(task, weights(*(n for n in others if n != g)), batches[g])
            - raw_error(task, weights(*(n for n in range(4) if n != g)), batches[g])
            for g in others
        )
        base = sum(raw_error(task, everybody, batches[g]) for g in others)
        alone = 1 - sum(raw_error(task, weights(k), batches[g]) for g in others) / base
        one = of(found, summaries[k])
        assert one.adds is not None
        assert one.alone is not None
        assert one.adds.value == pytest.approx(gain / base, abs=2e-4)  # fixed point of 2^-16 a coordinate
        assert one.alone.value == pytest.approx(alone, abs=2e-4)
        assert one.adds.std == one.alone.std == 0.0


def test_the_noise_of_an_estimate_is_as_large_as_it_says() -> None:
    """Partner 3 is scored on, in many draws of its noise, by models of partners without noise."""
    rows = ward_rows(300, 9)
    values, stds = [], []
    for _ in range(60):
        found = contributions(WARD, [*EXACT[:2], noisy(WARD, rows, 1.0, "third")])
        alone = of(found, EXACT[0]).alone
        assert alone is not None
        values.append(alone.value)
        stds.append(alone.std)
    # The yardstick, the base rates of all, shares the noise: it is much smaller than that of the error.
    assert np.std(values) == pytest.approx(np.mean(stds), rel=0.3)


def test_who_brings_much_adds_more() -> None:
    crowd = [exact(WARD, ward_rows(20, 20 + n), f"small {n}") for n in range(3)]
    large = exact(WARD, ward_rows(400, 30), "large")
    found = contributions(WARD, [*crowd, large])
    added = {one.origin: one.adds.value for one in found.partners if one.adds is not None}
    assert added[large.origin] > max(added[one.origin] for one in crowd)


def test_who_brings_wrong_labels_takes_away() -> None:
    mixed = ward_rows(400, 11)
    mixed = dataclasses.replace(mixed, label=np.random.default_rng(4).permutation(np.asarray(mixed.label)))
    wrong = exact(WARD, mixed, "labels at random")
    added = of(contributions(WARD, [*EXACT, wrong]), wrong).adds
    assert added is not None
    assert added.value < -0.01


def test_two_partners_with_the_same_rows_add_little_either() -> None:
    twins = [exact(WARD, BATCHES[0], "one twin"), exact(WARD, BATCHES[0], "other twin")]
    found = contributions(WARD, [*twins, *EXACT[1:]])
    for twin in twins:
        adds = of(found, twin).adds
        assert adds is not None
        assert abs(adds.value) < 0.01


def test_rows_are_counted_with_their_noise_and_a_class_of_one_partner_is_named() -> None:
    named = 0
    for _ in range(6):
        summaries = [noisy(WARD, ward_rows(500, n, classes=(0, 1)), 3.0, f"p{n}") for n in range(3)]
        icu = noisy(WARD, ward_rows(600, 7), 3.0, "icu")
        found = contributions(WARD, [*summaries, icu])
        named += of(found, icu).only_classes == ("icu",)
        assert all(of(found, one).only_classes == () for one in summaries)
    # In one of 44 draws noise makes the others look as if they had the class (two deviations): in four of six, 4e-6.
    assert named >= 3
    own = of(found, icu)
    assert own.rows == pytest.approx(600, abs=5 * own.rows_std)
    assert own.epsilons == (3.0,)


def test_parts_of_one_partner_are_one_contribution() -> None:
    first, second = noisy(WARD, BATCHES[0], 1.0, "part 1"), noisy(WARD, BATCHES[1], 2.0, "part 2")
    second = dataclasses.replace(second, origin=first.origin)
    found = contributions(WARD, [first, second, *EXACT[2:]])
    both = of(found, first)
    assert len(found.partners) == 3
    assert set(both.records) == {first.record_id, second.record_id}
    assert set(both.epsilons) == {1.0, 2.0}


def test_the_order_of_summaries_changes_nothing() -> None:
    summaries = [noisy(WARD, rows, 1.0, f"p{n}") for n, rows in enumerate(BATCHES)]
    assert contributions(WARD, summaries) == contributions(WARD, summaries[::-1])


def test_with_few_partners_it_says_what_can_be_said() -> None:
    with pytest.raises(NothingToFuse):
        contributions(WARD, [])
    one = contributions(WARD, EXACT[:1])
    assert (one.together, one.partners[0].alone, one.partners[0].adds) == (None, None, None)
    two = contributions(WARD, EXACT[:2])
    assert two.together is not None
    for partner in two.partners:
        assert partner.adds is None
        assert partner.alone is not None
        assert partner.alone.value > 0.2


def test_summaries_of_class_moments_are_compared_like_moments() -> None:
    classes = dataclasses.replace(WARD, summary="class-moments")
    ours = contributions(classes, [exact(classes, rows, f"partner {n}") for n, rows in enumerate(BATCHES)])
    for one in contributions(WARD, EXACT).partners:
        same = next(other for other in ours.partners if other.origin == one.origin)
        assert one.adds is not None
        assert same.adds is not None
        assert same.adds.value == pytest.approx(one.adds.value, abs=1e-6)


def test_a_kind_without_second_moments_is_refused_in_a_sentence() -> None:
    means = dataclasses.replace(WARD, summary="mean-embedding")
    with pytest.raises(ModelError, match="hold no second moments"):
        contributions(means, [exact(means, rows, f"p{n}") for n, rows in enumerate(BATCHES)])


def test_many_partners_are_scored_in_groups_and_each_without_its_own_group() -> None:
    crowd = [exact(WARD, ward_rows(60, n), f"p{n}") for n in range(23)]
    seen: list[int] = []
    found = contributions(WARD, crowd, seen.append)
    assert all(one.adds is not None for one in found.partners)
    assert seen == list(range(1, 23 + 10 + 23 * 10 + 1))  # alone, without a group, without a group and a partner


def test_an_implausible_summary_is_left_out_and_named() -> None:
    absurd = EXACT[0].summary
    blocks = {name: values * 1000 if name == "gram_diagonal" else values for name, values in absurd.blocks.items()}
    wrong = contribution("absurd", dataclasses.replace(absurd, blocks=blocks))
    found = contributions(WARD, [*EXACT[1:], wrong])
    assert [one.origin for one, _ in found.quarantined] == [wrong.origin]
    assert wrong.origin not in {one.origin for one in found.partners}


# --- for people -------------------------------------------------------------------------------------------------


@pytest.fixture
def home(make_home: Callable[..., Home], task_file: Path, rows_file: Path) -> Home:
    home = make_home("alpha")
    add(home, str(task_file))
    for share in range(1, 4):
        publishing.publish(
            home,
            find(home, "triage"),
            [rows_file],
            epsilon=1.0,
            dataset=f"year {share}",
            cap_epsilon=None,
        )
    return home


def told(capsys: pytest.CaptureFixture[str], home: Home, *words: str) -> str:
    capsys.readouterr()
    assert run(["--home", str(home.path), "contributions", "triage", *words], debug=False) == 0
    return capsys.readouterr().out


def test_one_partner_is_told_that_there_is_nobody_to_compare_with(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = told(capsys, home)
    assert "alpha" in printed
    assert "there is nobody to score a model on" in printed
    found = json.loads(told(capsys, home, "--json"))
    assert found["partners"][0]["epsilons"] == [1.0, 1.0, 1.0]
    assert len(found["partners"][0]["records"]) == 3
    plot = str(tmp_path / "p.png")
    assert run(["--home", str(home.path), "contributions", "triage", "--plot", plot], debug=False) == 2
    assert "nothing to draw" in capsys.readouterr().err


def estimate(value: float, std: float) -> dict[str, float]:
    return {"value": value, "std": std}


def partner(name: str, adds: dict[str, float] | None, alone: dict[str, float] | None, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"origin": name, "epsilons": [1.0], "rows": 120.4, "rows_std": 19.2, "only_classes": []}
    return base | {"adds": adds, "alone": alone} | more


FOUND: dict[str, Any] = {
    "task": "triage",
    "together": estimate(0.4, 0.02),
    "left_out": [{"origin": "mallory", "reason": "it counts fewer than no rows in a class"}],
    "partners": [
        partner("alpha", estimate(0.05, 0.01), estimate(0.3, 0.02), only_classes=["ward"]),
        partner("beta", estimate(0.0, 0.01), estimate(-7.0, 0.2), epsilons=[0.5, 2.0]),
        partner("gamma", estimate(-0.05, 0.01), None),
    ],
}


def test_the_table_and_its_remarks_read_well() -> None:
    assert study.rows_of(FOUND) == [
        ["alpha", "120 ± 19", "1", "5.0 ± 1.0", "30.0 ± 2.0", "the only one with ward"],
        ["beta", "120 ± 19", "0.5 to 2", "0.0 ± 1.0", "below -100", ""],
        ["gamma", "120 ± 19", "1", "-5.0 ± 1.0", "-", ""],
    ]
    lines = study.remarks(FOUND)
    assert lines[0] == "not used: mallory: it counts fewer than no rows in a class"
    assert lines[-1] == "A model of all partners explains 40.0 ± 2.0 of a partner that took no part."
    assert max(map(len, lines)) <= 100
    two = FOUND | {"partners": FOUND["partners"][:2]}
    assert any("A third makes the rest" in line for line in study.remarks(two))


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_picture_is_drawn_where_matplotlib_is_there(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    study.plot(FOUND, tmp_path / f"plot.{ending}")
    assert (tmp_path / f"plot.{ending}").stat().st_size > 5_000


def test_a_picture_of_another_form_is_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match=r"FILE\.png"):
        study.check_plot(tmp_path / "plot.docx")
