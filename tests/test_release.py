"""A release: charged before data is touched, noised once, and read back by peers who trust nothing."""

import dataclasses
import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_checks import check_noise_gives_claimed_privacy
from scipy import stats
from second_routes import assemble

from fusion import release as release_module
from fusion.dataset import read_batches, release_batches
from fusion.errors import BudgetError, DataError, SummaryError
from fusion.fuse import Contribution, fuse
from fusion.ledger import Ledger
from fusion.release import Release, exact_summary, measure, noisy_summary, release
from fusion.summaries import UNIT
from fusion.summaries.moments import CROSS, DIAGONAL, SQUARES, UPPER
from fusion.summary import MAX_SUMMARY_BYTES, Summary, plan, planes_of, step_of
from fusion.task import Task

RARE = 1e-6  # a test of chance fails by chance this seldom
TOML = """
name = "small"
kind = "classification"
[label]
column = "y"
classes = [ { name = "a", values = ["a"] }, { name = "b", values = ["b"] } ]
[privacy]
max_epsilon = 3
delta = 1e-5
[[columns]]
name = "size"
type = "number"
lower = 0
upper = 10
bins = 5
[[columns]]
name = "color"
type = "category"
values = ["red", "green", "blue"]
[encoder]
kind = "tabular"
"""
TASK = Task.from_toml(TOML, "task.toml")
OTHER_TASK = Task.from_toml(TOML.replace("upper = 10", "upper = 11"), "task.toml")
WIDE_TASK = Task.from_toml(TOML.replace("bins = 5", "bins = 64"), "task.toml")
REGRESSION = Task.from_toml(
    TOML.replace('"classification"', '"regression"').replace(
        'classes = [ { name = "a", values = ["a"] }, { name = "b", values = ["b"] } ]', "lower = 0\nupper = 1"
    ),
    "task.toml",
)
ROWS = "size,color,y\n" + "".join(f"{i % 11},{('red', 'green', 'blue')[i % 3]},{'ab'[i % 2]}\n" for i in range(200))
NUMBER_ROWS = ROWS.replace("a\n", "0.25\n").replace("b\n", "1\n")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def released(data: Path, ledger: Ledger, task: Task = TASK, epsilon: float = 1.0) -> Release:
    return release(task, [data], epsilon=epsilon, ledger=ledger, dataset="default", cap_epsilon=20.0)


def spent(ledger: Ledger) -> int:
    return sum(len(one.entries) for one in ledger.statement())


# --- the order: check, spend, measure, keep -------------------------------------------------------------------


def test_a_release_is_in_the_ledger_with_the_bytes_that_will_be_sent(data: Path, ledger: Ledger) -> None:
    made = released(data, ledger)
    (ready,) = ledger.unpublished()
    assert (ready.release_id, ready.payload, ready.task_id) == (made.release_id, made.payload, TASK.id)
    assert made.report.rows_used == 200
    assert made.claim.epsilon == 1.0
    assert made.claim.delta == 1e-5
    assert made.claim.ledger_position == ledger.statement()[0].entries[0].position


def test_the_budget_is_on_disk_before_the_first_row_is_summed(
    data: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def spying(*arguments: object) -> object:
        seen.append(Ledger(tmp_path / "ledger.db").statement()[0].entries[0].state)
        return measure(*arguments)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(release_module, "measure", spying)
    released(data, ledger)
    assert seen == ["RESERVED"]


def test_an_error_after_the_reservation_leaves_the_budget_spent(
    data: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(release_module, "measure", failing)
    with pytest.raises(MemoryError):
        released(data, ledger)
    (entry,) = ledger.statement()[0].entries
    assert entry.state == "RESERVED"
    assert ledger.unpublished() == []


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from fusion import release as module
from fusion.fuse import Contribution, fuse
from fusion.ledger import Ledger
from fusion.task import Task
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
module.discrete_gaussian = killed
folder = Path(sys.argv[1])
task = Task.from_toml((folder / "task.toml").read_text(), "task.toml")
module.release(task, [folder / "rows.csv"], epsilon=1.0, ledger=Ledger(folder / "ledger.db"), dataset="default")
"""


def test_a_process_killed_between_summing_and_noise_has_spent_its_budget(data: Path, ledger: Ledger) -> None:
    (data.parent / "task.toml").write_text(TOML)
    done = subprocess.run([sys.executable, "-c", KILLED, str(data.parent)], check=False)
    assert done.returncode == -signal.SIGKILL
    (statement,) = ledger.statement()
    assert [entry.state for entry in statement.entries] == ["RESERVED"]
    assert statement.spent_epsilon == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("content", "epsilon", "error", "sentence"),
    [
        (ROWS, 3.1, BudgetError, "epsilon must be over 0 and at most 3, the maximum of this task"),
        (ROWS, 0.0, BudgetError, "epsilon must be over 0"),
        (ROWS, -1.0, BudgetError, "epsilon must be over 0"),
        (ROWS, math.nan, BudgetError, "epsilon must be over 0"),
        (ROWS, math.inf, BudgetError, "epsilon must be over 0"),
        (ROWS, 1e-4, BudgetError, "epsilon below 0.001 leaves nothing but noise"),
        (ROWS + "1,red\n", 1.0, DataError, "row 202 has 2 fields where 3 are expected"),
        (ROWS.replace("color", "colour"), 1.0, DataError, 'no column "color"'),
        ("size,color,y\n1,red,other\n", 1.0, DataError, "no row has a label that the task knows"),
    ],
)
def test_what_is_refused_beforehand_costs_nothing(
    data: Path, ledger: Ledger, content: str, epsilon: float, error: type[Exception], sentence: str
) -> None:
    data.write_text(content)
    with pytest.raises(error, match=sentence):
        released(data, ledger, epsilon=epsilon)
    assert spent(ledger) == 0


def test_an_exhausted_budget_is_refused_before_data_is_summed(data: Path, ledger: Ledger) -> None:
    release(TASK, [data], epsilon=1.0, ledger=ledger, dataset="default", cap_epsilon=1.0)
    with pytest.raises(BudgetError, match="over the budget"):
        release(TASK, [data], epsilon=0.5, ledger=ledger, dataset="default")
    assert spent(ledger) == 1


def test_without_a_cap_the_task_maximum_is_the_lifetime_budget(data: Path, ledger: Ledger) -> None:
    release(TASK, [data], epsilon=1.0, ledger=ledger, dataset="default")
    assert ledger.statement()[0].cap_epsilon == 3.0


def test_progress_runs_over_both_passes(data: Path, ledger: Ledger) -> None:
    told: list[int] = []
    release(TASK, [data], epsilon=1.0, ledger=ledger, dataset="default", progress=told.append)
    assert told == [200, 400]


# --- the noise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("task", [TASK, REGRESSION], ids=["classification", "regression"])
def test_the_noise_of_the_plan_gives_the_privacy_that_is_claimed(task: Task, epsilon: float) -> None:
    check_noise_gives_claimed_privacy(task, epsilon)


def test_released_blocks_carry_gaussian_noise_of_the_stated_deviation(data: Path, ledger: Ledger) -> None:
    exact = exact_summary(WIDE_TASK, read_batches([data], WIDE_TASK)).sums()
    summary = Summary.from_bytes(released(data, ledger, WIDE_TASK).payload, WIDE_TASK)
    for name, sums in summary.sums().items():
        step = summary.steps[name] / summary.sigmas[name]
        # Sums that are alike exactly (zeros, say) lie on one lattice after rounding; no normal sample does. Spread
        # evenly over a step, they do not. Rounding adds a variance of step^2 / 12, and so does the spreading.
        spread = np.random.default_rng(1).uniform(-step / 2, step / 2, len(sums))
        noise = (sums - exact[name]) / summary.sigmas[name] + spread
        assert stats.kstest(noise / math.sqrt(1 + step**2 / 6), "norm").pvalue > RARE


def test_two_releases_of_the_same_rows_share_no_noise(data: Path, ledger: Ledger) -> None:
    """Independent noises differ by sqrt(2) of one deviation; a shared part would make that less. What is rounded to
    steps is spread over each step again: a test of a continuous law sees the steps else."""
    rng = np.random.default_rng(1)
    one, other = (Summary.from_bytes(released(data, ledger, WIDE_TASK).payload, WIDE_TASK) for _ in range(2))
    for name, sums in one.sums().items():
        difference = (sums - other.sums()[name]) / (math.sqrt(2) * one.sigmas[name])
        step = one.steps[name] / one.sigmas[name]
        spread = (rng.uniform(-step / 2, step / 2, (2, len(difference))) / math.sqrt(2)).sum(axis=0)
        assert stats.kstest((difference + spread) / math.sqrt(1 + step**2 / 6), "norm").pvalue > RARE


def test_in_process_draws_have_the_same_noise_and_cannot_leave(data: Path) -> None:
    measured = measure(TASK, read_batches([data], TASK))
    drawn = noisy_summary(TASK, measured, 1.0)
    assert drawn.sigmas == plan(TASK, 1.0).sigmas
    assert any((drawn.sums()[name] != measured.blocks[name]).any() for name in drawn.blocks)
    for summary in (drawn, exact_summary(TASK, read_batches([data], TASK))):
        with pytest.raises(SummaryError, match="no ledger was charged"):
            summary.to_bytes()


def test_rounding_to_steps_is_to_the_nearest(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "discrete_gaussian", lambda values, sigma: values)
    measured = measure(WIDE_TASK, read_batches([data], WIDE_TASK))
    summary = noisy_summary(WIDE_TASK, measured, 1.0)
    for name, sums in summary.sums().items():
        assert np.abs(sums - measured.blocks[name]).max() <= summary.steps[name] // 2


def test_an_exact_summary_counts_its_rows(data: Path) -> None:
    sums = assemble(TASK, exact_summary(TASK, read_batches([data], TASK)).sums())
    bias = int(TASK.encoder.bias * 2**16)
    assert sums.gram[-1, -1] == 200 * bias**2
    assert sums.cross[-1].tolist() == [100 * bias * 2**16] * 2
    assert (sums.gram == sums.gram.T).all()
    assert sums.target_square is None


def test_a_regression_release_reads_back(data: Path, ledger: Ledger) -> None:
    data.write_text(NUMBER_ROWS)
    summary = Summary.from_bytes(released(data, ledger, REGRESSION).payload, REGRESSION)
    sums = assemble(REGRESSION, summary.sums())
    assert sums.cross.shape == (summary.blocks[DIAGONAL].size, 1)
    assert sums.target_square is not None
    assert abs(sums.target_square / UNIT - (100 * 0.25 + 100)) < 8 * summary.sigmas[SQUARES] / UNIT


# --- the wire -------------------------------------------------------------------------------------------------


def same(one: Summary, other: Summary) -> bool:
    blocks = all((values == other.blocks[name]).all() for name, values in one.blocks.items())
    return blocks and dataclasses.replace(one, blocks={}) == dataclasses.replace(other, blocks={})


def test_a_summary_reads_back_as_it_was(data: Path, ledger: Ledger) -> None:
    payload = released(data, ledger).payload
    summary = Summary.from_bytes(payload, TASK)
    assert same(summary, Summary.from_bytes(summary.to_bytes(), TASK))
    assert set(summary.blocks) == {DIAGONAL, UPPER, CROSS}
    for name, step in summary.steps.items():
        assert step == step_of(summary.sigmas[name])
        assert step.bit_count() == 1
        assert summary.sigmas[name] / 4 < step <= summary.sigmas[name] / 2


def test_the_size_is_about_five_bits_an_entry_and_was_announced(data: Path, ledger: Ledger) -> None:
    planned = plan(WIDE_TASK, 1.0)
    payload = released(data, ledger, WIDE_TASK).payload
    assert planned.entries == 68 + 68 * 67 // 2 + 68 * 2
    assert len(payload) < 600 + planned.entries * 6 / 8
    assert 0.7 < len(payload) / planned.estimated_bytes < 1.1


@pytest.mark.parametrize("task", [TASK, REGRESSION, WIDE_TASK], ids=["classes", "numbers", "wide"])
def test_header_and_body_before_compression_are_as_long_for_one_row_as_for_the_most(task: Task) -> None:
    """No byte count outside the compressed frame depends on the data, and the frame is made of noised numbers."""
    planned = plan(task, 1.0)
    lengths = set()
    for largest in (0, 1, 2**40, 2**62):
        sums = {block.name: np.full(block.entries, largest, dtype=np.int64) for block in planned.layout}
        made = noisy_summary(task, release_module.Measured(sums, 1), 1.0)
        sent = dataclasses.replace(made, claim=dataclasses.replace(made.claim, ledger_position=7)).to_bytes()
        header, frame = opened(sent)
        lengths.add((len(json.dumps(header)), zstandard.get_frame_parameters(frame).content_size))
    assert len(lengths) == 1
    assert lengths.pop()[1] >= planned.entries


@given(
    st.lists(st.integers(-(2**62) // 2**33, 2**62 // 2**33), min_size=9, max_size=9)
    | st.lists(st.integers(-3, 3), min_size=9, max_size=9)
)
def test_every_value_a_release_can_have_survives_the_wire(values: list[int]) -> None:
    planned = plan(TASK, 1.0)
    summary = noisy_summary(TASK, release_module.Measured(zeros(), 0), 1.0)
    blocks = summary.blocks | {DIAGONAL: np.array(values, dtype=np.int64)}
    claim = dataclasses.replace(summary.claim, ledger_position=1)
    sent = dataclasses.replace(summary, blocks=blocks, claim=claim)
    assert planned.sigmas == sent.sigmas
    assert same(Summary.from_bytes(sent.to_bytes(), TASK), sent)


def zeros() -> dict[str, np.ndarray]:
    return {block.name: np.zeros(block.entries, dtype=np.int64) for block in plan(TASK, 1.0).layout}


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("release")
    (folder / "rows.csv").write_text(ROWS)
    return released(folder / "rows.csv", Ledger(folder / "ledger.db")).payload


def test_every_truncation_is_refused(payload: bytes) -> None:
    for length in range(len(payload)):
        with pytest.raises(SummaryError):
            Summary.from_bytes(payload[:length], TASK)


def test_every_bit_flip_is_refused_or_still_a_valid_summary(payload: bytes) -> None:
    layout = {block.name: block.entries for block in plan(TASK, 1.0).layout}
    for position in range(len(payload)):
        for bit in range(8):
            flipped = bytearray(payload)
            flipped[position] ^= 1 << bit
            try:
                summary = Summary.from_bytes(bytes(flipped), TASK)
            except SummaryError:
                continue
            assert {name: values.size for name, values in summary.blocks.items()} == layout
            assert summary.sigmas == pytest.approx(plan(TASK, summary.claim.epsilon).sigmas, rel=1e-8)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_summary_error(data: bytes) -> None:
    for candidate in (data, MAGIC + data):
        with pytest.raises(SummaryError):
            Summary.from_bytes(candidate, TASK)


MAGIC = b"tidings-summary-1\n"


def opened(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a payload."""
    start = len(MAGIC) + 4
    (length,) = struct.unpack(">I", payload[len(MAGIC) : start])
    return json.loads(payload[start : start + length]), payload[start + length :]


def rebuilt(payload: bytes, frame: bytes | None = None, **fields: object) -> bytes:
    """The payload with other fields or another body, well-formed again."""
    header, body = opened(payload)
    for name, value in fields.items():
        (header["claim"] if name in header["claim"] else header)[name] = value
    raw = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return MAGIC + struct.pack(">I", len(raw)) + raw + (body if frame is None else frame)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"epsilon": 2.0}, "the noise of the summary is not what its epsilon calls for"),
        ({"epsilon": 3.5}, "claims an epsilon that its task does not allow"),
        ({"epsilon": -1.0}, "claims an epsilon that its task does not allow"),
        ({"epsilon": math.nan}, "not canonical JSON"),
        ({"epsilon": math.inf}, "not canonical JSON"),
        ({"epsilon": 1}, "claim of the summary is incomplete"),
        ({"epsilon": True}, "claim of the summary is incomplete"),
        ({"delta": 1e-6}, "not that of its task and mechanism"),
        ({"sensitivity": 1.0}, "not that of its task and mechanism"),
        ({"mechanism": "none"}, "not that of its task and mechanism"),
        ({"adjacency": "replace-one"}, "not that of its task and mechanism"),
        ({"unit": "person"}, "not that of its task and mechanism"),
        ({"ledger_position": 0}, "ledger position that cannot be"),
        ({"ledger_position": 2**60}, "ledger position that cannot be"),
        ({"kind": "histograms"}, "belongs to another task"),
        ({"task": "00" * 32}, "belongs to another task"),
        ({"extra": 1}, "not in its canonical form"),
        ({"blocks": []}, "other blocks than its task"),
        ({"blocks": {}}, "other blocks than its task"),
        ({"blocks": [[1], [1, 2], [1, 2]]}, "header of the summary is malformed"),
        ({"blocks": [[1, 2, 3]] * 3}, "header of the summary is malformed"),
        ({"blocks": [[1.5, 2]] * 3}, "header of the summary is malformed"),
    ],
)
def test_a_header_that_does_not_fit_the_task_is_refused(
    payload: bytes, fields: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SummaryError, match=sentence):
        Summary.from_bytes(rebuilt(payload, **fields), TASK)


@pytest.mark.parametrize(
    ("index", "value", "sentence"),
    [
        (0, 0, "noise of the summary is not what"),
        (0, 2**31, "noise of the summary is not what"),
        (1, 1, "noise of the summary is not what"),
        (1, 0, "noise of the summary is not what"),
        (1, -(2**32), "noise of the summary is not what"),
    ],
)
def test_other_noise_steps_or_sizes_are_refused(payload: bytes, index: int, value: int, sentence: str) -> None:
    blocks = opened(payload)[0]["blocks"]
    blocks[0][index] = value
    with pytest.raises(SummaryError, match=sentence):
        Summary.from_bytes(rebuilt(payload, blocks=blocks), TASK)


def test_sums_that_no_release_can_reach_are_refused(payload: bytes) -> None:
    frame = zstandard.compress(b"\xff" * inflated_bytes(TASK))
    with pytest.raises(SummaryError, match="a sum that no release can reach"):
        Summary.from_bytes(rebuilt(payload, frame), TASK)


def inflated_bytes(task: Task) -> int:
    planned = plan(task, 1.0)
    return sum(block.entries * planes_of(step_of(planned.sigmas[block.name])) for block in planned.layout)


def test_a_body_that_inflates_to_something_else_is_refused_before_it_is_inflated(payload: bytes) -> None:
    size = inflated_bytes(TASK)
    bomb = zstandard.compress(b"\0" * 200_000_000)
    assert len(bomb) < 20_000
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * size)
    trailing = zstandard.compress(b"\0" * size) + b"more"
    two_frames = zstandard.compress(b"\0" * size) * 2
    Summary.from_bytes(rebuilt(payload, zstandard.compress(b"\0" * size)), TASK)
    for frame in (bomb, unsized, trailing, two_frames, b"", b"\0" * 64, zstandard.compress(b"")):
        with pytest.raises(SummaryError, match="body of the summary is damaged"):
            Summary.from_bytes(rebuilt(payload, frame), TASK)


def test_a_summary_of_another_task_or_too_large_is_refused(payload: bytes) -> None:
    with pytest.raises(SummaryError, match="belongs to another task"):
        Summary.from_bytes(payload, OTHER_TASK)
    with pytest.raises(SummaryError, match="not a summary of this version"):
        Summary.from_bytes(payload + bytes(MAX_SUMMARY_BYTES), TASK)
    with pytest.raises(SummaryError, match="cut off or too long"):
        Summary.from_bytes(payload[:18] + b"\xff" * 4 + payload[22:], TASK)


def test_a_plan_says_everything_before_data_is_touched() -> None:
    planned = plan(TASK, 1.0)
    assert (planned.dimension, planned.epsilon, planned.delta) == (9, 1.0, 1e-5)
    assert planned.sensitivity == math.sqrt(2)
    assert planned.sigma == pytest.approx(math.sqrt(2) * 3.7304, rel=1e-3)
    assert planned.entries == 9 + 36 + 18


def test_random_seeds_do_not_make_noise_repeat(data: Path) -> None:
    measured = measure(TASK, read_batches([data], TASK))

    def drawn() -> list[int]:
        random.seed(1)
        np.random.seed(1)
        os.environ["PYTHONHASHSEED"] = "1"
        return noisy_summary(TASK, measured, 1.0).blocks[UPPER].tolist()

    assert drawn() != drawn()


# --- persons --------------------------------------------------------------------------------------------------

PERSONS = Task.from_toml(
    TOML.replace("delta = 1e-5", 'delta = 1e-5\nunit = { column = "who", max_rows = 2 }'), "task.toml"
)


@pytest.fixture
def people(data: Path) -> Path:
    """Five rows each of 40 people."""
    head, *rows = ROWS.splitlines()
    data.write_text("\n".join([f"{head},who", *(f"{row},{number % 40}" for number, row in enumerate(rows))]) + "\n")
    return data


def test_a_release_of_persons_says_so_in_its_claim_and_in_the_ledger(people: Path, ledger: Ledger) -> None:
    made = released(people, ledger, PERSONS)
    assert made.claim.unit == "person:who"
    assert (made.report.persons, made.report.rows_used, made.report.rows_beyond) == (40, 80, 120)
    assert Summary.from_bytes(made.payload, PERSONS).claim == made.claim
    with pytest.raises(BudgetError, match="a release in another unit needs a dataset of its own"):
        released(people, ledger)
    by_row = plan(TASK, 1.0)
    assert plan(PERSONS, 1.0).sigmas == by_row.sigmas


@pytest.mark.parametrize("unit", ["record", "person:y", "person"])
def test_a_summary_that_claims_another_unit_than_its_task_is_refused(people: Path, ledger: Ledger, unit: str) -> None:
    payload = released(people, ledger, PERSONS).payload
    with pytest.raises(SummaryError, match="not that of its task and mechanism"):
        Summary.from_bytes(rebuilt(payload, unit=unit), PERSONS)


def test_a_release_of_persons_fuses_like_any_other(people: Path, ledger: Ledger) -> None:
    exact = exact_summary(PERSONS, release_batches([people], PERSONS))
    noisy = Summary.from_bytes(released(people, ledger, PERSONS).payload, PERSONS)
    for summary in (exact, noisy):
        fused = fuse(PERSONS, [Contribution(b"r" * 32, b"o" * 32, summary)])
        assert not fused.quarantined
    (one,) = fuse(PERSONS, [Contribution(b"r" * 32, b"o" * 32, exact)]).used
    assert fuse(PERSONS, [one]).statistics.counts.sum() == pytest.approx(40, rel=1e-3)


def test_no_usable_person_is_refused_before_budget_is_spent(people: Path, ledger: Ledger) -> None:
    people.write_text("size,color,y,who\n1,red,a,\n")
    with pytest.raises(DataError, match="or the column of persons who"):
        released(people, ledger, PERSONS)
    assert spent(ledger) == 0


def test_no_error_after_the_charge_speaks_of_the_data(
    people: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `release` itself can raise once budget is spent: that the files changed, and nothing of what is in them."""
    texts = set()
    reading = release_module.measure
    for rows in (1, 199):

        def changing(task: Task, batches: Any, progress: Any, rows: int = rows) -> Any:
            people.write_text("size,color,y,who\n" + "1,red,a,new\n" * rows)
            return reading(task, batches, progress)

        with monkeypatch.context() as patch:
            patch.setattr(release_module, "measure", changing)
            before = people.read_text()
            with pytest.raises(DataError) as caught:
                released(people, ledger, PERSONS)
            people.write_text(before)
        texts.add(str(caught.value))
    assert texts == {"the data changed while it was read; keep the files as they are during a release"}
    assert spent(ledger) == 2
