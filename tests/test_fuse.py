"""Fusing: exact sums in any order, and a summary that no honest partner could have published is left out."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from second_routes import assemble

from fusion import plausibility
from fusion.dataset import Batch
from fusion.errors import NothingToFuse
from fusion.fuse import Contribution, Fuser, Sums, fuse, total
from fusion.plausibility import problem_of
from fusion.statistics import Statistics, statistics_of
from fusion.summaries import Blocks, kind_of
from fusion.summaries.moments import CROSS, DIAGONAL, SQUARES, UPPER
from fusion.summary import Summary
from fusion.task import MAX_ROWS, Task
from tests.partners import STAY, WARD, exact, noisy, stay_rows, ward_rows

PARTNERS = [noisy(WARD, ward_rows(60, seed), 1.0 + seed, f"partner {seed}") for seed in range(5)]


def problem(task: Task, summary: Summary) -> str | None:
    """Why no honest release looks like this summary."""
    return kind_of(task).problem(task, Sums.of(summary))


def same(a: Statistics, b: Statistics) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Statistics))


def edited(summary: Summary, change: Callable[[Blocks], None]) -> Summary:
    """The summary with its sums changed, in its own noise and steps."""
    sums = {name: values.copy() for name, values in summary.sums().items()}
    change(sums)
    blocks = {name: np.rint(values / summary.steps[name]).astype(np.int64) for name, values in sums.items()}
    return dataclasses.replace(summary, blocks=blocks)


@given(st.permutations(range(5)), st.integers(1, 5))
def test_the_order_of_summaries_changes_no_bit(order: list[int], count: int) -> None:
    chosen = [PARTNERS[i] for i in order[:count]]
    fused, sorted_first = fuse(WARD, chosen), fuse(WARD, sorted(chosen, key=lambda one: one.origin))
    assert same(fused.statistics, sorted_first.statistics)
    assert fused.used == sorted_first.used


def test_a_record_that_arrives_twice_counts_once() -> None:
    assert same(fuse(WARD, PARTNERS + PARTNERS[:2]).statistics, fuse(WARD, PARTNERS).statistics)


def test_taking_a_summary_out_again_is_exact() -> None:
    rest = total(PARTNERS).minus(Sums.of(PARTNERS[2].summary))
    assert same(statistics_of(WARD, rest), statistics_of(WARD, total(PARTNERS[:2] + PARTNERS[3:])))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=12))
@settings(max_examples=40)
def test_summaries_that_come_and_go_leave_what_a_fresh_fusion_gives(moves: list[tuple[bool, int]]) -> None:
    """Whatever joined, left, joined again or was never there: sums, order and quarantine are the same."""
    liar = dataclasses.replace(PARTNERS[4], summary=edited(PARTNERS[4].summary, scaled))
    pool = [*PARTNERS[:4], liar]
    fuser, inside = Fuser(WARD), set()
    for joins, place in moves:
        if joins:
            fuser.add(pool[place])
            inside.add(place)
        else:
            fuser.withdraw(pool[place].record_id)
            inside.discard(place)
    if not inside - {4}:
        with pytest.raises(NothingToFuse):
            fuser.fused()
        return
    ours, fresh = fuser.fused(), fuse(WARD, [pool[place] for place in inside])
    assert same(ours.statistics, fresh.statistics)
    assert (ours.used, ours.quarantined) == (fresh.used, fresh.quarantined)


def scaled(sums: Blocks) -> None:
    for values in sums.values():
        values *= 50


def test_a_fusion_is_not_moved_by_what_joins_later() -> None:
    fuser = Fuser(WARD)
    fuser.add(PARTNERS[0])
    before = fuser.fused()
    fuser.add(PARTNERS[1])
    assert same(before.statistics, fuse(WARD, PARTNERS[:1]).statistics)


def test_a_record_counts_once_and_an_unknown_one_leaves_nothing_behind() -> None:
    fuser = Fuser(WARD)
    for one in (PARTNERS[0], PARTNERS[0], PARTNERS[1]):
        assert fuser.add(one) is None
    fuser.withdraw(PARTNERS[2].record_id)
    assert same(fuser.fused().statistics, fuse(WARD, PARTNERS[:2]).statistics)


def test_the_sums_are_the_integers_of_the_summaries() -> None:
    ours = statistics_of(WARD, total(PARTNERS))
    plain = {name: sum(one.summary.sums()[name] for one in PARTNERS) for name in (DIAGONAL, UPPER, CROSS)}
    moments = assemble(WARD, plain)
    np.testing.assert_array_equal(ours.gram, moments.gram / 2**32)
    np.testing.assert_array_equal(ours.cross, moments.cross / 2**32)


@given(st.lists(st.integers(0, 6), min_size=120, max_size=120), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_without_noise_any_split_of_the_rows_gives_the_pooled_statistics(owners: list[int], seed: int) -> None:
    rows = ward_rows(120, seed)
    pooled = fuse(WARD, [exact(WARD, rows, "pooled")])
    parts = [exact(WARD, rows_where(rows, np.array(owners) == owner), f"owner {owner}") for owner in set(owners)]
    split = fuse(WARD, parts)
    assert same(split.statistics, pooled.statistics)
    assert split.quarantined == pooled.quarantined == ()


def rows_where(rows: Batch, mask: np.ndarray) -> Batch:
    numbers = {name: values[mask] for name, values in rows.numbers.items()}
    categories = {name: values[mask] for name, values in rows.categories.items()}
    return Batch(numbers, categories, np.asarray(rows.label)[mask], int(mask.sum()))


def test_the_noise_of_the_sum_adds_in_squares() -> None:
    fused = fuse(WARD, PARTNERS).statistics
    parts = [statistics_of(WARD, Sums.of(one.summary)) for one in PARTNERS]
    assert fused.gram_sigma == pytest.approx(np.sqrt(sum(one.gram_sigma**2 for one in parts)))
    assert fused.cross_sigma == pytest.approx(np.sqrt(sum(one.cross_sigma**2 for one in parts)))
    assert fuse(WARD, [exact(WARD, ward_rows(9, 0), "exact")]).statistics.noiseless


def test_sums_beyond_64_bits_stay_exact() -> None:
    largest = dataclasses.replace(
        PARTNERS[0].summary,
        blocks={name: np.full_like(values, 2**62 - 1) for name, values in PARTNERS[0].summary.blocks.items()},
        steps=dict.fromkeys(PARTNERS[0].summary.blocks, 1),
    )
    many = total([Contribution(bytes([i] * 32), bytes(32), largest) for i in range(9)])
    assert statistics_of(WARD, many).diagonal[0] == float(9 * (2**62 - 1)) / 2**32


def test_counts_and_rows_are_read_from_the_bias() -> None:
    rows = ward_rows(500, 3)
    found = fuse(WARD, [exact(WARD, rows, "one")]).statistics
    np.testing.assert_allclose(found.counts, np.bincount(np.asarray(rows.label)), rtol=1e-12)
    assert found.rows == pytest.approx(500)
    assert found.seen(2.0).all()
    stay = fuse(STAY, [exact(STAY, stay_rows(300, 1), "one")]).statistics
    assert stay.rows == pytest.approx(300)
    assert stay.row_sum == pytest.approx(stay.gram[:, -1] / stay.bias)


def test_nothing_to_fuse_is_said_in_words() -> None:
    with pytest.raises(NothingToFuse, match="no summary of this task"):
        fuse(WARD, [])
    with pytest.raises(NothingToFuse, match="another task"):
        fuse(STAY, PARTNERS[:1])


# --- plausibility -----------------------------------------------------------------------------------------------


def scale_all(factor: int) -> Callable[[Blocks], None]:
    def change(sums: Blocks) -> None:
        for values in sums.values():
            values *= factor

    return change


def scale_one(block: str, factor: int) -> Callable[[Blocks], None]:
    def change(sums: Blocks) -> None:
        sums[block] *= factor

    return change


def too_many_rows(sums: Blocks) -> None:
    for name in (DIAGONAL, UPPER, CROSS):
        sums[name] = (sums[name] // 2**4) * (MAX_ROWS // 16)


def one_large_entry(sums: Blocks) -> None:
    sums[UPPER][3] += 2000 * 2**32


ABSURD = {
    "negated": scale_all(-1),
    "second moments times ten": scale_one(DIAGONAL, 10),
    "class sums times ten": scale_one(CROSS, 10),
    "class sums negated": scale_one(CROSS, -1),
    "more rows than a release may have": too_many_rows,
    "one entry far too large": one_large_entry,
    "no second moments": scale_one(DIAGONAL, 0),
}


@pytest.mark.parametrize("change", ABSURD.values(), ids=ABSURD.keys())
def test_a_summary_that_no_rows_could_give_is_quarantined(change: Callable[[Blocks], None]) -> None:
    liar = dataclasses.replace(PARTNERS[0], summary=edited(noisy(WARD, ward_rows(900, 8), 2.0, "liar").summary, change))
    fused = fuse(WARD, [*PARTNERS[1:], liar])
    assert [one for one, _reason in fused.quarantined] == [liar]
    assert fused.quarantined[0][1]
    assert same(fused.statistics, fuse(WARD, PARTNERS[1:]).statistics)


@pytest.mark.parametrize(("block", "factor"), [(DIAGONAL, -3), (UPPER, 100), (CROSS, 10), (SQUARES, 10), (SQUARES, -3)])
def test_a_summary_of_numbers_with_one_block_scaled_is_quarantined(block: str, factor: int) -> None:
    honest = noisy(STAY, stay_rows(900, 8), 2.0, "honest")
    assert problem(STAY, honest.summary) is None
    assert problem(STAY, edited(honest.summary, scale_one(block, factor))) is not None


@pytest.mark.parametrize(("task", "rows"), [(WARD, ward_rows), (STAY, stay_rows)], ids=["classes", "numbers"])
@pytest.mark.parametrize("epsilon", [0.1, 5.0])
def test_an_honest_summary_passes_whatever_its_noise(task: Task, rows: Callable[..., Batch], epsilon: float) -> None:
    for count in (1, 40, 3_000):
        measured = rows(count, count)
        for _ in range(15):
            assert problem(task, noisy(task, measured, epsilon, "honest").summary) is None


def test_even_at_four_of_the_six_deviations_thousands_of_honest_draws_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails at t = 4 with probability p fails at t = 6 with less than p e^-10: far below 1e-4."""
    monkeypatch.setattr(plausibility, "DEVIATIONS", 4.0)
    rng = np.random.default_rng(4)
    clean = statistics_of(WARD, Sums.of(exact(WARD, ward_rows(80, 4), "honest").summary))
    sigma = 6.0
    for _ in range(4_000):
        drawn = dataclasses.replace(
            clean,
            diagonal=clean.diagonal + rng.normal(0, sigma, clean.diagonal.shape),
            upper=clean.upper + rng.normal(0, sigma / np.sqrt(2), clean.upper.shape),
            cross=clean.cross + rng.normal(0, sigma, clean.cross.shape),
            gram_sigma=sigma,
            cross_sigma=sigma,
        )
        assert problem_of(drawn) is None
