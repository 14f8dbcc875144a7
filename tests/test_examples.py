"""The worked examples: their tasks are valid, their rules read one row, and the command does what its README says."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from examples.datasets import DATASETS, HERE, TEST, _diagnosis, _stay, share_of
from examples.pooled import logistic, pooled_raw, ridge
from examples.run import EPSILONS, main
from examples.trial import Trial
from node.tasks import read_file

STAY_CODES = ("discharge_disposition_id", "admission_type_id", "admission_source_id", "medical_specialty")


@pytest.mark.parametrize("name", EPSILONS)
def test_every_example_has_a_valid_task_that_allows_its_epsilon_and_a_readme_with_its_command(name: str) -> None:
    task = read_file(HERE / name / "task.toml")
    assert EPSILONS[name] <= task.privacy.max_epsilon
    assert f"python -m examples.run {name}" in (HERE / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in EPSILONS if name != "heart"])
def test_missing_data_are_one_sentence_that_says_where_to_get_them(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert DATASETS[name].where in said
    assert "Traceback" not in said


def test_the_heart_example_prints_its_table_and_leaves_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heart", "--no-nodes", "--draws", "3", "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert len(figures["fused"]) == 3
    assert len(figures["alone"]) == 4
    assert figures["pooled"]["accuracy"] > 0.8
    assert min(one["auc"] for one in figures["fused"]) > 0.75
    printed = capsys.readouterr().out
    for text in ("fused, epsilon 1 each", "pooled raw columns, no privacy", "one partner alone, mean of 4"):
        assert text in printed


def test_each_stay_is_prepared_from_its_own_row(tmp_path: Path) -> None:
    """Ten people, two stays each: nobody is at two hospitals, and no test row is anybody's training row."""
    names = ["encounter_id", "patient_nbr", "age", "diag_1", "diag_2", "diag_3", "readmitted", *STAY_CODES]
    stays = [(person, visit) for person in range(100, 160) for visit in range(2)]
    lines = [f"{person}{visit},{person},[60-70),428,250.01,?,NO,{1 + visit},1,7,Cardiology" for person, visit in stays]
    archive = tmp_path / "dataset_diabetes.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("dataset_diabetes/diabetic_data.csv", "\n".join([",".join(names), *lines]) + "\n")
    partners = DATASETS["diabetes130"].split(tmp_path, tmp_path / "out")
    seen: dict[str, str] = {}
    for name, paths in {**partners.train, TEST: partners.test}.items():
        for line in paths[0].read_text(encoding="utf-8").splitlines()[1:]:
            assert seen.setdefault(line.split(",")[1], name) == name
    assert len(seen) == 60
    assert 1 < len(partners.train) <= 10


@pytest.mark.parametrize(
    ("code", "group"),
    [
        ("428", "circulatory"),
        ("785.4", "circulatory"),
        ("250.83", "diabetes"),
        ("486", "respiratory"),
        ("V57", "other"),
        ("E909", "other"),
        ("?", ""),
        ("996", "injury"),
        ("599", "genitourinary"),
        ("38", "other"),
    ],
)
def test_diagnoses_fall_into_the_groups_of_the_paper(code: str, group: str) -> None:
    assert _diagnosis(code) == group


def test_a_code_outside_the_groups_is_missing_and_not_a_group_of_its_own() -> None:
    row = {"age": "[0-10)", "diag_1": "?", "diag_2": "?", "diag_3": "?", **dict.fromkeys(STAY_CODES, "?")}
    prepared = _stay(row)
    assert [prepared[name] for name in ("discharged_to", "admitted_as", "admitted_from", "specialty")] == [""] * 4
    assert prepared["age_years"] == "5"


def test_shares_are_fair_and_fixed_for_ever() -> None:
    counts = np.bincount([share_of(f"x/{i}", 5) for i in range(5_000)], minlength=5)
    assert counts.min() > 900
    assert share_of("taiwan/test/1", 5) == 2


def test_the_textbook_peers_solve_what_they_say() -> None:
    rng = np.random.default_rng(1)
    x = np.column_stack([rng.normal(size=(400, 4)), np.ones(400)])
    label = (x @ [1.0, -2.0, 0.0, 0.5, 0.3] + rng.logistic(size=400) > 0).astype(int)
    weights = logistic(x, label)
    gradient = x.T @ (1 / (1 + np.exp(-x @ weights)) - label) + weights
    np.testing.assert_allclose(gradient, 0.0, atol=0.05)
    targets = rng.normal(size=(400, 2))
    found = ridge(x, targets)
    np.testing.assert_allclose(x.T @ (x @ found - targets) + found, 0.0, atol=1e-8)


def test_the_peer_on_raw_columns_of_the_heart_data_is_as_good_as_published_ones(tmp_path: Path) -> None:
    partners = DATASETS["heart"].split(None, tmp_path)
    trial = Trial(read_file(HERE / "heart" / "task.toml"), partners.train, partners.test)
    scores = pooled_raw(trial, ())
    assert scores["n"] == 305
    assert scores["auc"] > 0.87
