"""Parts: rules on the row alone, disjoint by construction, and what they cost together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from second_routes import cost_of

from fusion.accountants import COST_UNITS
from fusion.dataset import inspect, read_batches
from fusion.errors import BudgetError, DataError
from fusion.ledger import Ledger
from fusion.parts import Part, canonical_cell, share_of
from fusion.release import measure, release
from fusion.task import PersonUnit, Task

DELTA = 1e-5
TASK_ID = bytes(32)
cells = st.one_of(
    st.none(), st.text(max_size=5), st.integers(-20, 20).map(str), st.sampled_from(["7", "7.0", " 7", "7.00"])
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


@pytest.fixture
def task(task_file: Path) -> Task:
    return Task.from_toml(task_file.read_text(), "triage.toml")


def spend(ledger: Ledger, epsilon: float, part: str | None = None, cap: float = 3.0) -> None:
    chosen = Part.parse(part) if part else None
    ledger.reserve("default", TASK_ID, epsilon, DELTA, None, default_cap_epsilon=cap, part=chosen)


def spent(ledger: Ledger) -> float:
    return ledger.statement()[0].spent_epsilon


# --- the rule -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("site=Leeds", Part("site", "Leeds")),
        (" site = Leeds General ", Part("site", "Leeds General")),
        ("ward=7.0", Part("ward", "7")),
        ("ward=-7.00", Part("ward", "-7")),
        ("note=a=b", Part("note", "a=b")),
        ("hash(patient_nbr)=3/10", Part("patient_nbr", "3", 10)),
        ("hash(a (b))= 10 / 10", Part("a (b)", "10", 10)),
    ],
)
def test_a_part_is_read_as_it_is_written(text: str, part: Part) -> None:
    assert Part.parse(text) == part
    assert Part.parse(part.text) == part


@pytest.mark.parametrize(
    "text", ["", "3", "1-1000", "every 1000", "=3", "site=", "row=7", "Row_Number=7", "hash(row)=1/2", "line=3", "#=3"]
)
def test_a_rule_that_needs_other_rows_is_refused_with_an_explanation(text: str) -> None:
    with pytest.raises(BudgetError, match="one row more would move the others to other parts"):
        Part.parse(text)


@pytest.mark.parametrize("text", ["hash(a)=0/3", "hash(a)=4/3", "hash(a)=1/1", "hash(a)=1/1000001"])
def test_a_share_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="with K from 1 to N"):
        Part.parse(text)


@pytest.mark.parametrize("text", ["a\nb=c", "a=\x1b[31m", f"a={'b' * 201}"])
def test_an_unprintable_or_endless_part_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="printable characters"):
        Part.parse(text)


@given(st.lists(cells, min_size=1, max_size=40), st.integers(2, 7))
def test_every_row_with_a_cell_is_in_exactly_one_share(texts: list[str | None], shares: int) -> None:
    column = pa.array([None if text is None else text.strip() for text in texts], pa.string())
    masks = [Part("id", str(share), shares).keeps(column) for share in range(1, shares + 1)]
    assert np.array_equal(np.sum(masks, axis=0), [int(text is not None) for text in texts])


@given(st.lists(cells, min_size=1, max_size=20), cells, st.integers(0, 20))
def test_a_row_more_moves_no_other_row(texts: list[str | None], more: str | None, where: int) -> None:
    where = min(where, len(texts))
    longer = [*texts[:where], more, *texts[where:]]
    for part in (Part("id", "7"), Part("id", "2", 3)):
        before = part.keeps(pa.array(texts, pa.string()))
        after = part.keeps(pa.array(longer, pa.string()))
        assert np.array_equal(np.delete(after, where), before)


@given(st.lists(cells, min_size=1, max_size=20), cells, cells)
def test_different_values_of_one_column_share_no_row(
    texts: list[str | None], one: str | None, other: str | None
) -> None:
    a, b = canonical_cell(one or ""), canonical_cell(other or "")
    column = pa.array(texts, pa.string())
    both = Part("id", a).keeps(column) & Part("id", b).keeps(column)
    assert a == b or not both.any()


def test_shares_are_of_fair_size_and_stay_what_they_were() -> None:
    counts = np.bincount([share_of(str(number), 10) for number in range(100_000)])[1:]
    assert counts.min() > 9_600
    assert counts.max() < 10_400
    assert [share_of(cell, 10) for cell in ("", "1", "2", "Leeds")] == GOLDEN_SHARES


GOLDEN_SHARES = [1, 10, 3, 8]  # may never change, or new parts would overlap with earlier ones


def test_a_task_that_protects_persons_is_parted_by_person_alone(task: Task) -> None:
    persons = replace(task, privacy=replace(task.privacy, person=PersonUnit("patient", max_rows=4)))
    Part.parse("hash(patient)=1/3").check(persons)
    Part.parse("patient=17").check(persons)
    with pytest.raises(BudgetError, match="one person's rows could lie in several parts"):
        Part.parse("hash(visit)=1/3").check(persons)
    Part.parse("hash(visit)=1/3").check(task)


# --- reading --------------------------------------------------------------------------------------------------


def test_only_rows_of_the_part_are_read_and_parts_add_up_to_the_whole(task: Task, rows_file: Path) -> None:
    whole = measure(task, read_batches([rows_file], task))
    for rule in (["arrival=walk", "arrival=ambulance"], [f"hash(age)={share}/3" for share in (1, 2, 3)]):
        parts = [Part.parse(text) for text in rule]
        pieces = [measure(task, read_batches([rows_file], task, part=part)) for part in parts]
        for name, block in whole.blocks.items():
            assert np.array_equal(sum(piece.blocks[name] for piece in pieces), block)
        reports = [inspect([rows_file], task, part=part) for part in parts]
        assert sum(report.rows_used for report in reports) == 200
        assert all(report.rows_used + report.rows_outside_part == 200 for report in reports)


def test_a_part_may_go_by_a_column_that_the_task_does_not_use(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("age,arrival,outcome,site\n30,walk,0,Leeds\n80,walk,1,York\n50,walk,1,\n")
    assert inspect([path], task, part=Part.parse("site=Leeds")).rows_used == 1
    with pytest.raises(DataError, match='no column "ward", which the task names or the part goes by'):
        inspect([path], task, part=Part.parse("ward=1"))


def test_spellings_of_one_number_are_one_part_in_every_file_format(task: Task, tmp_path: Path) -> None:
    columns = {"age": [30.0, 80.0], "arrival": ["walk", "walk"], "outcome": ["0", "1"]}
    for name, ward in {"float": [7.0, 8.0], "whole": [7, 8], "text": ["7.0", "8"]}.items():
        path = tmp_path / f"{name}.parquet"
        pa.parquet.write_table(pa.table({**columns, "ward": ward}), path)
        assert inspect([path], task, part=Part.parse("ward=7")).rows_used == 1


def test_a_part_without_rows_is_released_like_any_other(task: Task, rows_file: Path, ledger: Ledger) -> None:
    made = release(
        task, [rows_file], epsilon=1.0, ledger=ledger, dataset="default", part=Part.parse("arrival=helicopter")
    )
    assert made.report.rows_used == 0
    assert len(made.payload) > 100


# --- what parts cost ------------------------------------------------------------------------------------------


def test_disjoint_parts_cost_the_largest_of_them(ledger: Ledger) -> None:
    for share in (1, 2, 3, 4):
        spend(ledger, 0.5 * share, f"hash(id)={share}/4")
    assert spent(ledger) == pytest.approx(2.0, rel=1e-6)
    left = {one.part: one.left_epsilon for one in ledger.statement()[0].parts}
    assert left["hash(id)=1/4"] > left["hash(id)=4/4"]


def test_releases_of_one_part_add_up(ledger: Ledger) -> None:
    spend(ledger, 2.0, "site=Leeds")
    with pytest.raises(BudgetError, match="is left for the part site=Leeds"):
        spend(ledger, 2.5, "site=Leeds")
    spend(ledger, 2.5, "site=York")
    assert spent(ledger) == pytest.approx(2.5, rel=1e-6)


def test_a_release_about_the_whole_dataset_adds_to_every_part(ledger: Ledger) -> None:
    spend(ledger, 2.0, "site=Leeds")
    spend(ledger, 2.0)
    assert spent(ledger) > 2.8
    for part in ("site=Leeds", "site=York", None):
        with pytest.raises(BudgetError, match="over the budget"):
            spend(ledger, 2.5, part)
    spend(ledger, 2.0, "site=York")


def test_parts_by_different_rules_may_share_rows_and_add_up(ledger: Ledger) -> None:
    spend(ledger, 2.0, "site=Leeds")
    with pytest.raises(BudgetError, match="over the budget"):
        spend(ledger, 2.5, "hash(id)=1/4")
    with pytest.raises(BudgetError, match="over the budget"):
        spend(ledger, 2.5, "ward=7")
    spend(ledger, 2.0, "hash(id)=1/4")
    with pytest.raises(BudgetError, match="over the budget"):
        spend(ledger, 1.0, "hash(id)=1/5")


@settings(max_examples=40)
@given(data=st.data())
def test_no_record_is_ever_charged_over_the_cap(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every record is in one part of each rule; add up, for all of them, the releases that read it."""
    ledger = Ledger(tmp_path_factory.mktemp("home") / "ledger.db")
    parts = [None, "a=1", "a=2", "a=3", "b=1", "b=2", "hash(a)=1/2", "hash(a)=2/2"]
    granted: list[tuple[str | None, float]] = []
    for _ in range(data.draw(st.integers(1, 10))):
        part, epsilon = data.draw(st.sampled_from(parts)), data.draw(st.floats(0.1, 2.5))
        try:
            spend(ledger, epsilon, part, cap=3.0)
            granted.append((part, epsilon))
        except BudgetError:
            pass
    worst = max(
        sum(cost_of(epsilon, DELTA) for part, epsilon in granted if part in (None, a, b, h))
        for a in ("a=1", "a=2", "a=3")
        for b in ("b=1", "b=2")
        for h in ("hash(a)=1/2", "hash(a)=2/2")
    )
    assert worst <= cost_of(3.0, DELTA)
    if granted:
        from fusion.accounting import epsilon_of

        assert spent(ledger) == pytest.approx(epsilon_of((worst / COST_UNITS) ** 0.5, DELTA), rel=1e-9)
