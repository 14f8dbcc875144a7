"""Joining and leaving are exact: one addition each, and what is left is what a fusion that never saw the rest gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dataset import Batch
from fusion.fuse import Sums, fuse, total
from fusion.model import build_model, read_model
from fusion.parts import share_of
from fusion.summaries import UNIT
from fusion.task import Task
from node import publish as publishing
from node.ask import select
from node.home import Home
from node.query import answer
from node.shared import FORMAT
from node.tasks import add, find
from tests.couriers import carry, meet
from tests.partners import STAY, WARD, exact, noisy, stay_rows, ward_rows

EMBEDDING = dataclasses.replace(WARD, summary="mean-embedding")
TASKS = {"moments": WARD, "moments, regression": STAY, "mean-embedding": EMBEDDING}


def rows_of(task: Task, count: int, seed: int) -> Batch:
    return stay_rows(count, seed) if task is STAY else ward_rows(count, seed)


PARTNERS = {
    name: [noisy(task, rows_of(task, 80, seed), 0.5 + seed, f"{name} {seed}") for seed in range(5)]
    for name, task in TASKS.items()
}


def equal(a: Sums, b: Sums) -> bool:
    """Whether two sums are the same numbers: split at the point, they may be written in two ways."""
    same = (
        np.array_equal(a.whole[name] + (a.fraction[name] >> 32), b.whole[name] + (b.fraction[name] >> 32))
        and np.array_equal(a.fraction[name] % UNIT, b.fraction[name] % UNIT)
        for name in a.whole
    )
    return all(same) and a.variances == b.variances


@pytest.mark.parametrize("name", TASKS)
@given(leaving=st.sets(st.integers(0, 4), max_size=4))
@settings(max_examples=15)
def test_taking_summaries_out_leaves_the_sums_of_the_others(name: str, leaving: set[int]) -> None:
    partners = PARTNERS[name]
    sums = total(partners)
    for n in leaving:
        sums = sums.minus(Sums.of(partners[n].summary))
    assert equal(sums, total([one for n, one in enumerate(partners) if n not in leaving]))


@pytest.mark.parametrize("name", TASKS)
def test_a_late_summary_joins_in_one_addition(name: str) -> None:
    *early, late = PARTNERS[name]
    assert equal(total(early).plus(Sums.of(late.summary)), fuse(TASKS[name], PARTNERS[name]).sums)


@pytest.mark.parametrize("name", TASKS)
def test_the_model_of_those_who_stay_is_the_one_that_never_saw_who_left(name: str) -> None:
    task, partners = TASKS[name], PARTNERS[name]
    never_saw = build_model(task, partners[:4]).digest
    assert build_model(task, partners).digest != never_saw
    assert build_model(task, partners[3::-1]).digest == never_saw


def part_of(rows: Batch, mask: np.ndarray) -> Batch:
    numbers = {name: values[mask] for name, values in rows.numbers.items()}
    categories = {name: values[mask] for name, values in rows.categories.items()}
    return Batch(numbers, categories, np.asarray(rows.label)[mask], int(mask.sum()))


@pytest.mark.parametrize("name", TASKS)
@given(shares=st.integers(2, 5), seed=st.integers(0, 1_000))
@settings(max_examples=10)
def test_disjoint_parts_of_a_dataset_add_up_to_the_whole_to_the_last_bit(name: str, shares: int, seed: int) -> None:
    task: Task = TASKS[name]
    rows = rows_of(task, 90, seed)
    share = np.array([share_of(str(number), shares) for number in range(90)])
    parts = [exact(task, part_of(rows, share == one), f"part {one}") for one in range(1, shares + 1)]
    assert equal(total(parts), total([exact(task, rows, "whole")]))


def test_a_node_that_hears_of_a_withdrawal_fuses_what_a_node_fuses_that_never_had_the_summary(
    make_home: Callable[..., Home], task_file: Path, rows_file: Path
) -> None:
    origin, saw, never = make_home("origin"), make_home("saw"), make_home("never")
    meet(origin, saw, never)
    for home in (origin, saw, never):
        add(home, str(task_file))
    task = find(origin, "triage")
    _stays, leaves = (
        publishing.publish(origin, task, [rows_file], epsilon=1.0, dataset=name, cap_epsilon=None).record
        for name in ("stays", "leaves")
    )

    def digest(home: Home) -> bytes:
        return read_model(answer(home, select(home, "triage", None, None, None, FORMAT)))[0].digest

    carry(origin, never, lambda record: record.id != leaves.id)
    carry(origin, saw)
    assert digest(saw) == digest(origin) != digest(never)
    publishing.withdraw(origin, leaves.id.hex())
    carry(origin, saw)
    assert digest(saw) == digest(origin) == digest(never)
