"""The audit: it sees what is there, it sees faults, and it says when it could not have seen one."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from privacy_checks import TASKS, check_audit_confirms_claim
from scipy.stats import norm

from fusion import audit as audit_module
from fusion.accounting import epsilon_of
from fusion.audit import audit, enough_runs, neighbors
from fusion.errors import BudgetError, DataError
from fusion.summaries import UNIT
from fusion.summary import plan
from fusion.task import CsvFormat, Task
from node.__main__ import run
from node.home import Home
from node.tasks import add


@pytest.mark.parametrize("name", TASKS)
def test_the_measured_privacy_is_just_below_the_claim(name: str) -> None:
    check_audit_confirms_claim(TASKS[name])


@pytest.mark.soak
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_the_heart_task_measures_between_seven_tenths_and_all_of_its_claim(heart_example: Path, epsilon: float) -> None:
    task = Task.from_toml((heart_example / "task.toml").read_text(encoding="utf-8"), "task.toml")
    measured = audit(task, epsilon)
    print(measured.describe())
    assert measured.verdict == "holds", measured.describe()


@pytest.mark.parametrize("name", TASKS)
def test_the_canary_moves_the_sums_as_far_as_anything_can(name: str) -> None:
    without, with_canary = neighbors(TASKS[name])
    weights = {block.name: block.noise_divisor for block in plan(TASKS[name], 1.0).layout}
    moved = sum(float(((weights[n] * (with_canary[n] - v) / UNIT) ** 2).sum()) for n, v in without.items())
    least = 0.99 if TASKS[name].summary == "residual-moments" else 0.999  # its residual lacks the bias: not of length 1
    assert least < moved / plan(TASKS[name], 1.0).sensitivity ** 2 <= 1.0 + 1e-12  # sqrt(6) squared is not quite 6


def test_the_canary_of_the_heart_task_moves_few_sums_and_those_fully(heart_example: Path) -> None:
    task = Task.from_toml((heart_example / "task.toml").read_text(encoding="utf-8"), "task.toml")
    measured = audit(task, runs=100)
    assert measured.entries == 8 * 9 // 2 + 8
    assert 0.999 < measured.canary_share <= 1.0


def test_an_audit_of_many_hours_is_run_only_where_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MAX_UNASKED_S", 1.0)
    with pytest.raises(BudgetError, match=r"a canary of this task moves \d+ sums, and [0-9,]+ releases .* give --runs"):
        audit(TASKS["classification, rows"], 1.0)
    assert audit(TASKS["classification, rows"], 1.0, 100).runs == 100


def test_a_task_whose_files_have_no_quotes_is_audited_too() -> None:
    task = dataclasses.replace(TASKS["classification, rows"], csv=CsvFormat(quote=False))
    assert audit(task, 1.0, 100).canary_share > 0.999


def test_too_few_runs_are_called_no_evidence_and_not_a_pass() -> None:
    measured = audit(TASKS["classification, rows"], 0.5, 200)
    assert measured.verdict == "no power"
    assert f"about {enough_runs(measured.mu):,} have power" in measured.describe()


def test_progress_runs_over_the_releases_of_both_files() -> None:
    told: list[int] = []
    audit(TASKS["classification, rows"], 3.0, 200, progress=told.append)
    assert told[-1] == 400
    assert told == sorted(told)


def test_the_bound_is_below_the_truth_as_often_as_stated() -> None:
    """Over 400 audits of a Gaussian of known mu; at 80 % confidence it may lie above in one of five."""
    rng = np.random.default_rng(5)
    mu, runs, above = 0.5, 1_000, 0
    for _ in range(400):
        false_positives = rng.binomial(runs, norm.sf(mu / 2))
        false_negatives = rng.binomial(runs, norm.cdf(-mu / 2))
        above += audit_module._mu_bound(false_positives, false_negatives, runs, 0.8) > mu
    assert above <= 0.2 * 400


def test_rates_of_none_and_all_give_bounds_and_no_error() -> None:
    assert 0 < audit_module._mu_bound(0, 0, 100, 0.95) < 10
    assert audit_module._mu_bound(100, 100, 100, 0.95) == -np.inf


def test_the_result_reads_the_same_as_json_and_as_text() -> None:
    measured = audit(TASKS["classification, persons"], 3.0, 400)
    content = json.loads(json.dumps(measured.to_json()))
    assert content["unit"] == "person:who"
    assert "one person more" in measured.describe()
    assert "without_canary" not in content
    assert content["measured_epsilon"] == epsilon_of(measured.measured_mu, 1e-5)


def test_the_picture_is_drawn_where_matplotlib_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured = audit(TASKS["classification, rows"], 3.0, 400)
    assert audit_module.draw(measured, tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 1_000


@pytest.mark.parametrize(
    ("measured_mu", "verdict"), [(1.0, "broken"), (0.7, "holds"), (0.3, "no power"), (0, "no power")]
)
def test_the_verdict_compares_with_the_claim(measured_mu: float, verdict: str) -> None:
    made = audit(TASKS["classification, rows"], 3.0, 200)
    changed = dataclasses.replace(made, measured_mu=measured_mu, measured_epsilon=epsilon_of(measured_mu, 1e-5))
    assert changed.verdict == verdict


@pytest.mark.parametrize("runs", [0, 99, 10**7])
def test_runs_without_sense_are_refused(runs: int) -> None:
    with pytest.raises(BudgetError, match="an audit takes between 100 and 1000000 runs"):
        audit(TASKS["classification, rows"], 1.0, runs)


def test_an_epsilon_over_the_maximum_is_refused() -> None:
    with pytest.raises(BudgetError, match="the maximum of this task"):
        audit(TASKS["classification, rows"], 10.5)


def test_files_without_header_other_delimiters_and_odd_missing_marks_are_audited_too() -> None:
    text = (
        'name = "odd"\nkind = "regression"\n[label]\ncolumn = "y"\nlower = 0\nupper = 1e6\n'
        '[privacy]\nmax_epsilon = 1\nunit = { column = "who", max_rows = 1 }\n'
        '[csv]\nheader = false\ndelimiter = "\\t"\nmissing = ["0.0", "-"]\nnames = ["y", "unused", "a", "who", "b"]\n'
        '[[columns]]\nname = "a"\ntype = "number"\nlower = 0\nupper = 1\n'
        '[[columns]]\nname = "b"\ntype = "category"\nvalues = ["x;\\"y\\"", "1"]\n[encoder]\nkind = "tabular"\n'
    )
    assert audit(Task.from_toml(text, "t"), runs=100).canary_share > 0.999
    with pytest.raises(DataError, match=r"a cell that csv.missing drops"):
        audit(Task.from_toml(text.replace('"0.0"', '"1000000.0"'), "t"), runs=100)


def test_the_command_prints_claim_and_measurement_and_fails_without_power(
    make_home: Callable[..., Home], task_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home("alpha")
    add(home, str(task_file))
    words = ["--home", str(home.path), "audit", "triage"]
    assert run([*words, "--epsilon", "2", "--runs", "20000"], debug=False) == 0
    assert "The claim holds" in capsys.readouterr().out
    assert run([*words, "--epsilon", "0.1", "--runs", "100", "--json"], debug=False) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "no power"
    assert not (home.path / "ledger.db").exists()
