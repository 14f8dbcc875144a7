"""Every kind of summary through the commands that people use: preview, publish, audit, query, verify, predict."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusion.task import SUMMARY_KINDS
from node.__main__ import run
from node.home import Home
from tests.partners import CLASSES_TOML, WARD, ward_rows

KINDS = [kind for kind in SUMMARY_KINDS if kind not in ("moments", "model")]  # those: test_main_job, test_model_kind


def write_rows(path: Path, seed: int) -> Path:
    rows = ward_rows(400, seed)
    (arrivals,) = (column.values for column in WARD.columns if column.name == "arrival")  # type: ignore[union-attr]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "label", "arrival", "outcome"])
        for age, score, arrival, label in zip(
            rows.numbers["age"], rows.numbers["label"], rows.categories["arrival"], np.asarray(rows.label), strict=True
        ):
            known = "" if arrival < 0 else arrivals[arrival]
            writer.writerow(["" if np.isnan(age) else f"{age:.3f}", f"{score:.3f}", known, str(label)])
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_goes_the_whole_way_of_the_commands(
    kind: str, make_home: Callable[..., Home], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home("alpha")
    task, data, model = tmp_path / "ward.toml", write_rows(tmp_path / "rows.csv", 1), tmp_path / "ward.onnx"
    task.write_text(f'summary = "{kind}"\n{CLASSES_TOML}', encoding="utf-8")

    def said(*words: str) -> str:
        assert run(["--home", str(home.path), *words], debug=False) == 0
        return capsys.readouterr().out

    said("task", "add", str(task))
    preview = said("publish", "ward", str(data), "--epsilon", "3", "--dry-run")
    assert "Nothing was released" in preview
    assert not (home.path / "ledger.db").exists() or "left" in preview
    said("publish", "ward", str(data), "--epsilon", "3")
    assert json.loads(said("status", "--json"))["tasks"][0]["summaries"] == 1
    assert "The claim holds" in said("audit", "ward", "--epsilon", "8", "--runs", "4000")
    card = said("query", "ward", "--output", str(model))
    assert kind in card
    assert "Confirmed" in said("verify", str(model))
    predicted = said("predict", str(model), str(data))
    assert len(predicted.splitlines()) == 401
    assert json.loads(said("evaluate", str(model), str(data), "--json"))["accuracy"] > 0.5
