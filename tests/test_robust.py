"""The robust option: honest partners stay however they differ, who stands out is left out, nobody counts too much.

Most summaries here are exact sums, so that nothing is left to chance. Where there is noise, an honest partner fails one
comparison with probability below 1.6e-8 (`fusion.robust`: exp(-18)) and a test makes at most 300 of them: it fails by
chance with probability below 5e-6. Liars are then at least 1.4 times over their limits, of which the six deviations of
noise are less than half: noise that brought one below would have to be beyond six deviations too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import attacks
from benchmarks.partitions import PARTITIONS
from fusion.artifact import METHOD_FIELDS, checked_model
from fusion.contributions import contributions
from fusion.dataset import Batch
from fusion.errors import DataError, ModelError
from fusion.fuse import Contribution, Sums, fuse
from fusion.ledger import Ledger
from fusion.model import Model, build_model, card, describe, rebuild, records_of
from fusion.release import Measured, measure, release
from fusion.robust import screen
from fusion.sums import FULL_WEIGHT
from fusion.task import Task
from node import fusing
from node.__main__ import run
from node.ask import ask, select
from node.errors import CannotFuse, WireError
from node.frames import Query
from node.home import Home
from node.records import Kind
from node.shared import share
from node.tasks import add, find
from node.wire import query_from_pb, query_to_pb
from tests.couriers import carry, gossip, meet
from tests.partners import CLASSES_TOML, STAY, WARD, contribution, exact, noisy, stay_rows, ward_rows
from tests.test_kinds import TASKS, rows_of

LIARS = 2
ROWS = 800
HONEST = [exact(WARD, ward_rows(ROWS, seed), f"partner {seed}") for seed in range(7)]
FLIPPED = [exact(WARD, attacks.flipped(WARD, ward_rows(ROWS, seed)), f"liar {seed}") for seed in range(LIARS)]


def times(task: Task, rows: Batch, factor: int, epsilon: float, name: str) -> Contribution:
    """A claim of `factor` times these rows."""
    return contribution(name, attacks.published(task, attacks.multiplied(measure(task, [rows]), factor), epsilon))


def left_out(task: Task, held: Sequence[Contribution], liars: int = LIARS) -> set[bytes]:
    return {one.origin for one, _ in screen(task, held, liars).left_out}


def origins(held: Sequence[Contribution]) -> set[bytes]:
    return {one.origin for one in held}


def same_tensors(a: Model, b: Model) -> bool:
    return all(np.array_equal(a.tensors[name], b.tensors[name]) for name in a.tensors | b.tensors)


# --- honest partners stay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_honest_partners_of_every_kind_stay_and_liars_about_labels_go(name: str) -> None:
    task = TASKS[name]
    for made in (exact, lambda task, rows, name: noisy(task, rows, 5.0, name)):
        honest = [made(task, rows_of(task, ROWS, seed), f"partner {seed}") for seed in range(7)]
        lies = [made(task, attacks.flipped(task, rows_of(task, ROWS, 9 + seed)), f"liar {seed}") for seed in range(2)]
        assert left_out(task, honest) == set()
        assert left_out(task, honest + lies) == origins(lies)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_partners_who_see_other_classes_are_no_liars(partition: str) -> None:
    rows = ward_rows(9_000, 3)
    parts = PARTITIONS[partition](np.asarray(rows.label), 12)
    held = [exact(WARD, rows_at(rows, part), f"partner {n}") for n, part in enumerate(parts)]
    noised = [noisy(WARD, rows_at(rows, part), 3.0, f"partner {n}") for n, part in enumerate(parts)]
    for liars in (1, 2, 3):
        if len(held) > 2 * liars:
            assert left_out(WARD, held, liars) == left_out(WARD, noised, liars) == set()


def rows_at(rows: Batch, places: np.ndarray) -> Batch:
    numbers = {name: values[places] for name, values in rows.numbers.items()}
    categories = {name: values[places] for name, values in rows.categories.items()}
    return Batch(numbers, categories, np.asarray(rows.label)[places], len(places))


def test_partners_who_measure_differently_are_no_liars_where_all_differ() -> None:
    """Every ward's patients are of another age: each is as far from the others as the next."""
    held = []
    for seed in range(7):
        rows = ward_rows(2_000, seed)
        older = np.clip(rows.numbers["age"] + 8.0 * (seed - 3), 0, 100)
        held.append(exact(WARD, dataclasses.replace(rows, numbers=rows.numbers | {"age": older}), f"ward {seed}"))
    assert left_out(WARD, held, 3) == set()


def test_a_partner_of_few_rows_or_none_is_no_liar() -> None:
    few = [noisy(WARD, ward_rows(count, count), 1.0, f"few {count}") for count in (0, 1, 5)]
    honest = [noisy(WARD, ward_rows(ROWS, seed), 1.0, f"partner {seed}") for seed in range(6)]
    assert left_out(WARD, honest + few, 3) == set()


# --- liars ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if name != "noise only"])
def test_every_known_lie_of_as_many_rows_is_left_out_and_the_model_is_that_of_the_others(name: str) -> None:
    honest = [noisy(WARD, ward_rows(3_000, seed), 5.0, f"partner {seed}") for seed in range(7)]
    lies = [
        contribution(f"liar {seed}", attacks.ATTACKS[name](WARD, ward_rows(3_000, 9 + seed), 5.0)) for seed in range(2)
    ]
    robust = build_model(WARD, honest + lies, "lda", LIARS)
    assert {bytes.fromhex(one["origin"]) for one in robust.manifest["method"]["robust"]["left_out"]} == origins(lies)
    assert gap(robust, build_model(WARD, honest, "lda")) < 0.05 * gap(robust, None)
    assert gap(build_model(WARD, honest + lies, "lda"), build_model(WARD, honest, "lda")) > 0.1 * gap(robust, None)


def weights_of(model: Model) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = model.manifest["method"]["robust"]["weights"]
    return found


def gap(a: Model, b: Model | None) -> float:
    """The length of the difference of two models' weights, or of the first's."""
    ours = a.tensors["layer0.weight"].astype(np.float64)
    return float(np.linalg.norm(ours - (0.0 if b is None else b.tensors["layer0.weight"].astype(np.float64))))


def test_nothing_but_noise_stays_and_does_nothing() -> None:
    silent = contribution("silent", attacks.noise_only(WARD, ward_rows(10, 1), 5.0))
    honest = [noisy(WARD, ward_rows(3_000, seed), 5.0, f"partner {seed}") for seed in range(4)]
    assert left_out(WARD, [*honest, silent], 1) == set()


def test_a_coalition_with_one_lie_is_left_out_up_to_just_below_half() -> None:
    lie = attacks.flipped(WARD, ward_rows(ROWS, 40))
    lies = [exact(WARD, lie, f"liar {seed}") for seed in range(6)]
    assert left_out(WARD, HONEST + lies, 6) == origins(lies)


def test_large_liars_do_not_outweigh_small_honest_partners() -> None:
    """Nor stretch the limits by which they are judged."""
    honest = [exact(WARD, ward_rows(rows, rows), f"{rows} rows") for rows in (200, 250, 300, 900)]
    lie = attacks.flipped(WARD, ward_rows(5_000, 41))
    lies = [exact(WARD, lie, f"large {seed}") for seed in range(3)]
    assert left_out(WARD, honest + lies, 3) == origins(lies)


def test_a_mirrored_number_is_left_out() -> None:
    honest = [noisy(STAY, stay_rows(ROWS, seed), 5.0, f"partner {seed}") for seed in range(5)]
    liar = noisy(STAY, attacks.flipped(STAY, stay_rows(ROWS, 8)), 5.0, "liar")
    assert left_out(STAY, [*honest, liar], 2) == {liar.origin}


def test_second_moments_of_another_population_are_left_out_though_class_sums_are_true() -> None:
    forged = contribution("forger", attacks.forged_moments(WARD, ward_rows(3_000, 8), 5.0))
    honest = [noisy(WARD, ward_rows(3_000, seed), 5.0, f"partner {seed}") for seed in range(4)]
    ((_, reason),) = screen(WARD, [*honest, forged], 1).left_out
    assert reason.startswith("its second moments lie ")


def test_the_reason_names_the_class_and_how_far_it_lies() -> None:
    reasons = [reason for _, reason in screen(WARD, HONEST + FLIPPED, LIARS).left_out]
    for reason in reasons:
        assert reason.startswith('its rows of "')
        assert reason.endswith("noise, chance and differences between partners explain")


def test_several_parts_of_one_partner_are_judged_and_left_out_together() -> None:
    halves = [exact(WARD, attacks.flipped(WARD, ward_rows(ROWS, seed)), f"half {seed}") for seed in (30, 31)]
    halves = [dataclasses.replace(one, origin=halves[0].origin) for one in halves]
    found = screen(WARD, HONEST + halves, 1)
    assert {one.record_id for one, _ in found.left_out} == {one.record_id for one in halves}


def test_a_class_that_too_few_hold_is_named_and_not_judged() -> None:
    """The sole holders of a class can say of it what they like."""
    most = [exact(WARD, ward_rows(ROWS, seed, classes=(0, 1)), f"partner {seed}") for seed in range(6)]
    lone = exact(WARD, ward_rows(ROWS, 8, classes=(2,)), "lone")
    found = screen(WARD, [*most, lone], 1)
    assert found.left_out == ()
    assert found.unjudged == (2,)


# --- nobody counts for more than others -------------------------------------------------------------------------


def test_a_claim_of_many_rows_counts_for_no_more_than_another_partner_has() -> None:
    braggart = times(WARD, ward_rows(ROWS, 20), 1_000, 5.0, "braggart")
    honest = [noisy(WARD, ward_rows(ROWS + 100 * seed, seed), 5.0, f"partner {seed}") for seed in range(5)]
    without, robust = fuse(WARD, [*honest, braggart]), fuse(WARD, [*honest, braggart], 1)
    assert robust.screened is not None
    assert robust.screened.left_out == ()
    # A count of three classes at epsilon 5 has a deviation of 2.6 sqrt(3) rows: ten of them are far beyond chance.
    assert robust.screened.most_rows == pytest.approx(ROWS + 400, abs=45)
    assert without.statistics.rows > 700 * ROWS
    assert robust.statistics.rows == pytest.approx(sum(ROWS + 100 * n for n in range(5)) + ROWS + 400, abs=200)


def test_all_parts_of_a_partner_together_count_for_no_more() -> None:
    parts = [exact(WARD, ward_rows(ROWS, seed), f"part {seed}") for seed in range(20, 25)]
    parts = [dataclasses.replace(one, origin=parts[0].origin) for one in parts]
    found = fuse(WARD, HONEST[:4] + parts, 1)
    assert found.statistics.rows == pytest.approx(5 * ROWS, rel=1e-4)


def test_who_is_left_out_no_longer_limits_the_others() -> None:
    """With all liars found, the largest partner counts in full."""
    large = exact(WARD, ward_rows(4 * ROWS, 30), "large")
    found = screen(WARD, [*HONEST, large, *FLIPPED], LIARS)
    assert origins([one for one, _ in found.left_out]) == origins(FLIPPED)
    assert all(one.weight == FULL_WEIGHT for one in found.kept)
    lighter = screen(WARD, [*HONEST, large], LIARS)
    assert [one.weight < FULL_WEIGHT for one in lighter.kept if one.origin == large.origin] == [True]


@given(st.integers(1, FULL_WEIGHT), st.integers(-(2**62), 2**62), st.integers(0, 2**90))
def test_weighting_is_exact_arithmetic_in_whole_numbers(weight: int, value: int, variance: int) -> None:
    whole, fraction = np.array([value >> 32]), np.array([value & (2**32 - 1)])
    made = Sums({"x": whole}, {"x": fraction}, {"x": variance}).weighted(weight)
    got = (int(made.whole["x"][0]) << 32) + int(made.fraction["x"][0])
    assert 0 <= value * weight - got * FULL_WEIGHT < 2 * FULL_WEIGHT
    assert 0 <= made.variances["x"] * FULL_WEIGHT**2 - variance * weight**2 < FULL_WEIGHT**2


# --- the same everywhere ----------------------------------------------------------------------------------------


@given(st.permutations(range(9)))
@settings(max_examples=10)
def test_the_order_of_summaries_changes_no_bit(order: list[int]) -> None:
    held = [*HONEST, *FLIPPED]
    assert build_model(WARD, [held[i] for i in order], "lda", LIARS).digest == REFERENCE.digest


REFERENCE = build_model(WARD, [*HONEST, *FLIPPED], "lda", LIARS)


def test_without_the_option_nothing_is_different() -> None:
    """Not a field of the manifest, not a bit of the sums."""
    plain = build_model(WARD, HONEST, "lda")
    assert set(plain.manifest["method"]) == set(METHOD_FIELDS)
    fused = fuse(WARD, HONEST)
    assert fused.screened is None
    assert fused.used == tuple(sorted(HONEST, key=lambda one: one.record_id))


def test_where_nobody_stands_out_and_all_are_alike_the_model_is_that_without_the_option() -> None:
    robust = build_model(WARD, HONEST, "lda", 1)
    assert weights_of(robust) == []
    assert same_tensors(robust, build_model(WARD, HONEST, "lda"))


def test_a_robust_model_is_rebuilt_from_the_summaries_that_it_names_left_out_ones_included() -> None:
    held = [*HONEST, *FLIPPED]
    assert records_of(REFERENCE) == {one.record_id for one in held}
    again = checked_model(json.loads(json.dumps(REFERENCE.manifest)), REFERENCE.tensors)
    assert rebuild(WARD, held, again).digest == REFERENCE.digest
    assert rebuild(WARD, HONEST, again).digest != REFERENCE.digest


@pytest.mark.parametrize(
    "change",
    [
        {"liars": 0},
        {"liars": "2"},
        {"weights": [{"record": "00" * 32, "weight": 2.0}]},
        {"weights": [{"record": "zz", "weight": 0.5}]},
        {"left_out": [{"record": "00" * 32, "origin": "00" * 32, "reason": "a\nb"}]},
        {"unjudged": ["no such class"]},
        {"unjudged": [1]},
        {"more": 1},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_a_manifest_that_says_what_the_option_cannot_do_is_refused(change: dict[str, Any]) -> None:
    manifest = json.loads(json.dumps(REFERENCE.manifest))
    manifest["method"]["robust"] |= change
    with pytest.raises(ModelError, match="damaged"):
        checked_model(manifest, REFERENCE.tensors)


def test_the_card_says_what_the_option_did() -> None:
    large = exact(WARD, ward_rows(4 * ROWS, 30), "large")
    lone = [exact(WARD, ward_rows(ROWS, seed, classes=(0, 1)), f"two {seed}") for seed in range(6)]
    text = " ".join(describe(card(build_model(WARD, [*lone, large], "lda", 1), [], "node", "now")).split())
    assert "withstands 1 lying partner: no summaries stand out, and no partner counts for more than" in text
    assert "(1 made lighter); too few partners hold icu to judge them there" in text
    both = " ".join(describe(card(REFERENCE, [], "node", "now")).split())
    assert "withstands 2 lying partners: 2 summaries stand out" in both


def test_contributions_are_those_of_the_partners_who_stay() -> None:
    found = contributions(WARD, [*HONEST, *FLIPPED], liars=LIARS)
    assert {one.origin for one in found.partners} == origins(HONEST)
    assert origins([one for one, _ in found.quarantined]) == origins(FLIPPED)
    plain = contributions(WARD, HONEST)
    assert [one.adds for one in found.partners] == [one.adds for one in plain.partners]


# --- refusals ---------------------------------------------------------------------------------------------------


def test_too_few_partners_are_told_how_many_it_takes() -> None:
    with pytest.raises(ModelError, match="to withstand 2 liars takes summaries of 5 partners, and there are 4"):
        build_model(WARD, HONEST[:4], liars=2)


def test_more_liars_than_asked_for_stop_the_fusion() -> None:
    with pytest.raises(ModelError, match="more than 1 partners contradict the others"):
        build_model(WARD, [*HONEST, *FLIPPED], liars=1)


def test_trained_weights_cannot_be_compared_and_that_is_said() -> None:
    task = dataclasses.replace(TASKS["moments, classes"], summary="model", model=object())  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="hold trained weights, in which a lie does not show"):
        screen(task, HONEST, 1)


# --- the rows that a task allows --------------------------------------------------------------------------------

CAPPED = Task.from_toml("max_rows = 500\n" + CLASSES_TOML, "capped.toml")


def test_a_release_of_more_rows_than_the_task_allows_is_quarantined() -> None:
    honest = [noisy(CAPPED, ward_rows(500, seed), 1.0, f"partner {seed}") for seed in range(10)]
    large = noisy(CAPPED, ward_rows(2_000, 20), 1.0, "large")
    fused = fuse(CAPPED, [*honest, large])
    assert [(one.origin, reason) for one, reason in fused.quarantined] == [
        (large.origin, "it counts more rows than the 500 that its task allows a release")
    ]
    exactly = fuse(CAPPED, [exact(CAPPED, ward_rows(500, 1), "full"), exact(CAPPED, ward_rows(501, 1), "one more")])
    assert [len(exactly.used), len(exactly.quarantined)] == [1, 1]


def test_an_honest_release_of_too_many_rows_is_refused_before_it_costs_anything(
    make_home: Callable[..., Home], task_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    task = Task.from_toml("max_rows = 199\n" + task_file.read_text(encoding="utf-8"), "task.toml")
    ledger = Ledger(tmp_path / "ledger.db")
    with pytest.raises(DataError, match="this task allows a release 199 rows, and here are 200; publish parts"):
        release(task, [rows_file], epsilon=1.0, ledger=ledger, dataset="default")
    assert ledger.statement() == []


def test_a_task_without_a_cap_has_the_canonical_form_that_it_always_had() -> None:
    assert b"max_rows" not in WARD.canonical()
    assert Task.from_canonical(CAPPED.canonical()) == CAPPED
    assert CAPPED.id != WARD.id


# --- through nodes ----------------------------------------------------------------------------------------------


def says(home: Home, summary_of: attacks.Attack, seed: int, rows: int = 3_000) -> None:
    """Puts a summary into the store as `publish` would, of rows that are made up here."""
    task = find(home, "triage")
    rng = np.random.default_rng(seed)
    age, arrival = rng.uniform(0, 100, rows), rng.integers(0, 2, rows)
    batch = Batch({"age": age}, {"arrival": arrival}, (age + 30 * arrival > 70).astype(np.int64), rows)
    payload = summary_of(task, batch, 2.0).to_bytes()
    home.author.sealed(Kind.SUMMARY, task.id, payload, home.epochs.live())


@pytest.fixture
def members(make_home: Callable[..., Home], task_file: Path) -> list[Home]:
    """Three who are honest, and mallory."""
    homes = [make_home(name) for name in ("alpha", "beta", "gamma", "mallory")]
    meet(*homes)
    for seed, home in enumerate(homes):
        add(home, str(task_file))
        says(home, attacks.label_flip if home is homes[-1] else attacks.honest, seed)
    gossip(*homes)
    return homes


def asked(capsys: pytest.CaptureFixture[str], home: Home, *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run(["--home", str(home.path), *words], debug=False) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_a_query_leaves_the_liar_out_says_why_and_every_node_agrees(
    members: list[Home], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha, beta, _, mallory = members
    model = tmp_path / "model.safetensors"
    card = json.loads(asked(capsys, alpha, "query", "triage", "--robust", "1", "-o", str(model), "--json"))
    ((reason, origin),) = [(one["reason"], one["origin"]) for one in card["left_out"]]
    assert origin == mallory.me.text
    assert "times as far from those of the others" in reason
    shown = asked(capsys, alpha, "query", "triage", "--robust", "1", "-o", str(model))
    assert "mallory: its rows of" in " ".join(shown.split())
    for home in (alpha, beta, mallory):
        assert "Confirmed" in asked(capsys, home, "verify", str(model))
    other = tmp_path / "other.onnx"
    again = json.loads(asked(capsys, beta, "query", "triage", "--robust", "1", "-o", str(other), "--json"))
    assert again["manifest"] == card["manifest"]
    assert again["attestation"]["digest"] == card["attestation"]["digest"]


def test_status_and_records_say_which_summaries_are_quarantined_and_why(
    members: list[Home], capsys: pytest.CaptureFixture[str]
) -> None:
    alpha, *_, mallory = members
    says(mallory, lambda task, rows, epsilon: attacks.published(task, negated(measure(task, [rows])), epsilon), 9)
    gossip(*members)
    why = "quarantined: it counts fewer than no rows in a class"
    state = json.loads(asked(capsys, alpha, "status", "--json"))
    assert state["tasks"][0]["stuck"] == [{"origin": "mallory", "reason": why}]
    assert state["tasks"][0]["summaries"] == 4
    listed = json.loads(asked(capsys, alpha, "records", "triage", "--json"))
    assert [one["origin"] for one in listed if one["reason"] == why] == ["mallory"]


def negated(measured: Measured) -> Measured:
    return attacks.multiplied(measured, -1)


def test_contributions_and_shares_take_the_option_too(members: list[Home], capsys: pytest.CaptureFixture[str]) -> None:
    alpha, beta, _, _ = members
    found = json.loads(asked(capsys, alpha, "contributions", "triage", "--robust", "1", "--json"))
    assert {one["origin"] for one in found["partners"]} == {"alpha", "beta", "gamma"}
    assert [one["origin"] for one in found["left_out"]] == ["mallory"]
    asked(capsys, alpha, "share", "triage", "--robust", "1")
    gossip(alpha, beta)
    (shared,) = (held.record.id for held in beta.store.held() if held.record.header.kind is Kind.MODEL)
    assert "Confirmed" in asked(capsys, beta, "verify", shared.hex()[:16])


def test_what_cannot_be_withstood_is_refused_in_a_sentence(
    members: list[Home], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tmp_path / "model.onnx")
    said = asked(capsys, members[0], "query", "triage", "--robust", "2", "-o", model, code=1)
    assert "To withstand 2 liars takes summaries of 5 partners, and there are 4" in said
    assert not Path(model).exists()


def test_a_shared_model_does_not_stand_in_for_one_that_withstands_liars(
    make_home: Callable[..., Home], task_file: Path, tmp_path: Path
) -> None:
    alpha, device = make_home("alpha"), make_home("device")
    meet(alpha, device)
    for home in (alpha, device):
        add(home, str(task_file))
    says(alpha, attacks.honest, 1)
    share(alpha, select(alpha, "triage", None, None, None, "safetensors"))
    carry(alpha, device, lambda record: record.header.kind is not Kind.SUMMARY)
    told = {"node": None, "only": None, "without": None, "head": None, "on_progress": lambda _: None}
    assert ask(device, "triage", tmp_path / "m.onnx", **told)
    with pytest.raises(CannotFuse):
        ask(device, "triage", tmp_path / "m.onnx", robust=1, **told)
    query = select(device, "triage", None, None, None, "onnx")
    assert fusing._answer(device, query)[0] is fusing.Told.SHARED
    with pytest.raises(CannotFuse):
        fusing._answer(device, dataclasses.replace(query, robust=1))


def test_a_query_carries_how_many_liars_it_must_withstand() -> None:
    query = Query(bytes(32), "", (), (), "onnx", robust=3)
    assert query_from_pb(query_to_pb(query)) == query
    with pytest.raises(WireError, match="at most 1023"):
        query_from_pb(query_to_pb(dataclasses.replace(query, robust=1_024)))
