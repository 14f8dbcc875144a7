"""Summary kind `model`: one charge, bytes that peers check, and one head from many, the same in any order."""

from __future__ import annotations

import base64
import dataclasses
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from crashing import Killer
from privacy_checks import CLASSES, PEOPLE, PERSON, PROLIFIC, Line, make_task
from second_routes import cost_of

from fusion import release as release_module
from fusion import training
from fusion.audit import audit
from fusion.card import card, describe
from fusion.dataset import Batch, release_batches
from fusion.distillation import partners_of, vote
from fusion.errors import BudgetError, DataError, ModelError, SummaryError, TaskError
from fusion.fuse import Contribution, fuse
from fusion.heads import forward
from fusion.ledger import Ledger
from fusion.model import Model, build_model, evaluate, read_model, rebuild, write_onnx, write_safetensors
from fusion.release import measure, noisy_summary, release
from fusion.shapes import head_shapes, initial_weights, inline_weights, trained_shapes
from fusion.summaries import UNIT
from fusion.summaries import model as model_kind
from fusion.summaries.mean_embedding import CLASS_SUMS
from fusion.summaries.model import WEIGHT_STEP, advice, encoded
from fusion.summaries.moments import CROSS
from fusion.summary import Summary, plan
from fusion.task import MAX_TASK_BYTES, Task
from node.home import Home
from node.tasks import add, read_file
from tests.partners import CLASSES_TOML, STAY, WARD, contribution, exact, noisy, ward_rows

MODEL_TOML = CLASSES_TOML.replace("[label]", 'summary = "model"\n[label]', 1)
LINEAR = Task.from_toml(MODEL_TOML, "ward.toml")
HIDDEN = Task.from_toml(MODEL_TOML + "[model]\nhidden = [6]\nlearning_rate = 2\n", "ward.toml")
TEACHER = Task.from_toml(MODEL_TOML + "[model]\nteacher_hidden = [8]\nlearning_rate = 2\nsteps = 20\n", "ward.toml")
TASKS = {"linear": LINEAR, "hidden": HIDDEN, "teacher": TEACHER}
TEST_ROWS = ward_rows(3_000, 99)
SKEWED = ((0, 1), (2,), (1, 2), (0,))  # the classes that each partner has


def skewed(task: Task, epsilon: float = 3.0) -> list[Contribution]:
    return [noisy(task, ward_rows(1_500, i, own), epsilon, f"site {i}") for i, own in enumerate(SKEWED)]


def accuracy(model: Model, rows: Batch = TEST_ROWS) -> float:
    logits = forward(model.layers, model.encoder.encode(rows))
    return float((logits.argmax(axis=1) == rows.label).mean())


# --- what is measured and sent --------------------------------------------------------------------------------


def test_the_class_sums_are_those_of_moments() -> None:
    rows = ward_rows(500, 1)
    ours, theirs = measure(LINEAR, [rows]), measure(WARD, [rows])
    assert (ours.blocks[CLASS_SUMS] == theirs.blocks[CROSS]).all()


def test_persons_share_one_rows_worth_of_the_class_sums_and_of_every_step(tmp_path: Path) -> None:
    """In whole numbers, through the reader; and what others add stays the same to the last bit."""
    task = make_task(CLASSES, PERSON, "model")
    weights, offsets = (np.full((trained_shapes(task)[0]), 0.5),), np.zeros(3)

    def added(lines: list[Line]) -> list[int]:
        path = tmp_path / "rows.csv"
        path.write_text("plain,binned,color,y,who\n" + "".join(",".join(line) + "\n" for line in lines))
        sums, rows = encoded(task, release_batches([path], task))
        return [*sums.reshape(-1).tolist(), *training.gradient_sum(weights, rows, 0.5, offsets).tolist()]

    together, others, alone = added([*PEOPLE, *PROLIFIC]), added(PEOPLE), added(PROLIFIC)
    assert [a - b for a, b in zip(together, others, strict=True)] == alone
    half = len(alone) // 2
    for part in (alone[:half], alone[half:]):
        assert 0 < sum(value**2 for value in part) <= UNIT**2


def test_the_layout_counts_every_noisy_number_and_sends_only_sums_and_weights() -> None:
    planned = plan(HIDDEN, 1.0)
    assert [block.name for block in planned.sent] == [CLASS_SUMS, "weights0", "weights1"]
    hidden = next(block for block in planned.layout if not block.sent)
    assert HIDDEN.model is not None
    assert hidden.entries == HIDDEN.model.steps * sum(rows * columns for rows, columns in head_shapes(HIDDEN))
    assert planned.entries == sum(block.entries for block in planned.sent)


@pytest.mark.parametrize("name", TASKS)
def test_a_summary_survives_its_bytes(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    summary = noisy_summary(task, measure(task, [ward_rows(300, 2)]), 2.0)
    summary = dataclasses.replace(summary, claim=dataclasses.replace(summary.claim, ledger_position=3))
    data = summary.to_bytes()
    back = Summary.from_bytes(data, task)
    assert back.claim == summary.claim
    assert back.sigmas == summary.sigmas
    assert list(back.blocks) == list(summary.blocks)
    assert all((back.blocks[block] == summary.blocks[block]).all() for block in summary.blocks)
    assert back.to_bytes() == data
    assert abs(len(data) - plan(task, 2.0).estimated_bytes) < 700


def parts_of(data: bytes) -> tuple[dict[str, list[list[int]]], bytes]:
    start = len(b"tidings-summary-1\n")
    (length,) = struct.unpack_from(">I", data, start)
    header = json.loads(data[start + 4 : start + 4 + length])
    return header, zstandard.ZstdDecompressor().decompress(data[start + 4 + length :])


def forged(header: dict[str, list[list[int]]], content: bytes) -> bytes:
    raw = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return b"tidings-summary-1\n" + struct.pack(">I", len(raw)) + raw + zstandard.ZstdCompressor().compress(content)


def test_forged_summaries_are_refused_with_the_reason() -> None:
    made = noisy_summary(LINEAR, measure(LINEAR, [ward_rows(200, 1)]), 1.0)
    data = dataclasses.replace(made, claim=dataclasses.replace(made.claim, ledger_position=1)).to_bytes()
    header, content = parts_of(data)
    assert Summary.from_bytes(forged(header, content), LINEAR)

    def refused(reason: str, changed: dict[str, list[list[int]]], body: bytes = content) -> None:
        with pytest.raises(SummaryError, match=reason):
            Summary.from_bytes(forged(changed, body), LINEAR)

    sums, (_sigma, step) = header["blocks"]
    refused("noise", header | {"blocks": [sums, [1, step]]})
    refused("noise", header | {"blocks": [sums, [0, step // 2]]})
    refused("noise", header | {"blocks": [[0, sums[1]], [0, step]]})
    refused("blocks", header | {"blocks": [sums]})
    refused("blocks", header | {"blocks": [sums, [0, step], [0, step]]})
    refused("claim", header | {"claim": header["claim"] | {"sensitivity": 1.0}})  # type: ignore[operator]
    refused("epsilon", header | {"claim": header["claim"] | {"epsilon": 11.0}})  # type: ignore[operator]
    refused("damaged", header, content[:-1])
    planes = 2  # of 127 * 2^8 steps, zigzagged
    entries = LINEAR.model and sum(rows * columns for rows, columns in head_shapes(LINEAR))
    refused("no release can reach", header, content[: -planes * (entries or 0)] + b"\xff" * (planes * (entries or 0)))
    with pytest.raises(SummaryError, match="another task"):
        Summary.from_bytes(data, WARD)


def test_reading_summaries_of_this_kind_loads_neither_torch_nor_tables(tmp_path: Path) -> None:
    made = noisy_summary(LINEAR, measure(LINEAR, [ward_rows(50, 1)]), 1.0)
    path = tmp_path / "summary"
    path.write_bytes(dataclasses.replace(made, claim=dataclasses.replace(made.claim, ledger_position=1)).to_bytes())
    (tmp_path / "task").write_bytes(LINEAR.canonical())
    script = (
        "import sys; from pathlib import Path; from fusion.task import Task; from fusion.summary import Summary; "
        f"folder = Path({str(tmp_path)!r}); task = Task.from_canonical((folder / 'task').read_bytes()); "
        "Summary.from_bytes((folder / 'summary').read_bytes(), task); "
        "print(sorted({'torch', 'opacus', 'pyarrow', 'scipy', 'onnx', 'opendp'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- spending -------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    batch = ward_rows(400, 5)
    lines = ["age,label,arrival,outcome"]
    for age, score, arrival, label in zip(
        batch.numbers["age"], batch.numbers["label"], batch.categories["arrival"], batch.label, strict=True
    ):
        lines.append(f"{'' if np.isnan(age) else age},{score},{['walk', 'ambulance', ''][arrival]},{label}")
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_one_charge_covers_class_sums_and_training_and_comes_before_both(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    seen: list[tuple[str, int]] = []

    def spying(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def spy(*arguments: object, **named: object) -> object:
            seen.append((name, sum(ledger.totals().datasets[0].charged)))
            return real(*arguments, **named)

        return spy

    monkeypatch.setattr(release_module, "measure", spying("measure", release_module.measure))
    monkeypatch.setattr(model_kind, "train", spying("train", model_kind.train))
    told: list[int] = []
    made = release(LINEAR, [rows], epsilon=1.0, ledger=ledger, dataset="default", progress=told.append)
    assert seen == [("measure", cost_of(1.0, 1e-5)), ("train", cost_of(1.0, 1e-5))]
    assert [one.payload for one in ledger.unpublished()] == [made.payload]
    (account,) = ledger.statement()
    assert [entry.epsilon for entry in account.entries] == [1.0]
    assert LINEAR.model is not None
    assert told[-1] == 400 * (2 + LINEAR.model.steps)  # both passes through the file, and one for each step


def test_training_draws_on_the_same_account_as_any_other_summary(rows: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for task in (WARD, LINEAR):
        release(task, [rows], epsilon=1.0, ledger=ledger, dataset="default", cap_epsilon=1.6)
    assert ledger.statement()[0].accountant == "gaussian"
    with pytest.raises(BudgetError, match="over the budget"):
        release(HIDDEN, [rows], epsilon=1.0, ledger=ledger, dataset="default")


def test_a_run_that_breaks_in_the_middle_stays_charged_and_leaves_nothing(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, calls = Ledger(tmp_path / "ledger.db"), []

    def failing(values: np.ndarray, sigma: int) -> np.ndarray:
        calls.append(sigma)
        if len(calls) == 7:
            raise MemoryError
        return values

    monkeypatch.setattr(training, "discrete_gaussian", failing)
    with pytest.raises(MemoryError):
        release(LINEAR, [rows], epsilon=1.0, ledger=ledger, dataset="default")
    assert [entry.state for entry in ledger.statement()[0].entries] == ["RESERVED"]
    assert ledger.unpublished() == []


def test_more_rows_than_memory_should_hold_are_refused_before_anything_is_spent(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    monkeypatch.setattr(model_kind, "MAX_KEPT_BYTES", 1_000)
    with pytest.raises(DataError, match="publish them in parts"):
        release(LINEAR, [rows], epsilon=1.0, ledger=ledger, dataset="default")
    assert ledger.statement() == []


def test_an_audit_says_that_it_cannot_attack_training() -> None:
    with pytest.raises(BudgetError, match="trains on them"):
        audit(LINEAR)


# --- fusing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [None, "averaged"])
@pytest.mark.parametrize("name", TASKS)
def test_the_same_summaries_give_the_same_bytes_in_any_order(name: str, head: str | None) -> None:
    made = skewed(TASKS[name])
    model = build_model(TASKS[name], made, head)
    again = build_model(TASKS[name], [*made[::-1], made[0]], head)
    assert model.digest == again.digest
    assert rebuild(TASKS[name], made[2:] + made[:2], model).digest == model.digest
    assert build_model(TASKS[name], made[1:], head).digest != model.digest


def test_partners_with_few_classes_each_make_a_head_that_knows_them_all() -> None:
    """On average over draws of the noise: one draw in thousands is three deviations worse."""
    draws = [skewed(LINEAR) for _ in range(4)]
    together = [accuracy(build_model(LINEAR, made)) for made in draws]
    alone = [accuracy(build_model(LINEAR, [one])) for one in draws[0]]
    assert min(together) > max(alone) + 0.05
    assert np.mean(together) > 0.75


def test_without_noise_partners_that_are_alike_lose_nothing_by_averaging() -> None:
    parts = [exact(LINEAR, ward_rows(1_000, i), f"site {i}") for i in range(3)]
    pooled = exact(LINEAR, joined([ward_rows(1_000, i) for i in range(3)]), "pooled")
    assert accuracy(build_model(LINEAR, parts, "averaged")) == pytest.approx(
        accuracy(build_model(LINEAR, [pooled], "averaged")), abs=0.01
    )


def joined(batches: list[Batch]) -> Batch:
    def both(name: str) -> dict[str, np.ndarray]:
        return {key: np.concatenate([getattr(one, name)[key] for one in batches]) for key in getattr(batches[0], name)}

    label = np.concatenate([np.asarray(one.label) for one in batches])
    return Batch(both("numbers"), both("categories"), label, len(label))


def test_the_order_of_rows_does_not_change_an_exact_summary() -> None:
    a, b = ward_rows(300, 1), ward_rows(200, 2)
    one, other = (exact(HIDDEN, joined(list(pair)), "x").summary.blocks for pair in ((a, b), (b, a)))
    assert all((one[name] == other[name]).all() for name in one)


def test_the_vote_listens_to_who_has_such_rows() -> None:
    """One partner never saw class 2 and answers about its rows with confidence; the vote asks the one that did."""
    made = [noisy(LINEAR, ward_rows(2_000, i, own), 8.0, f"site {i}") for i, own in enumerate(((0, 1), (2,)))]
    partners = partners_of(fuse(LINEAR, made))
    rows_of_two = ward_rows(500, 7, (2,))
    x = build_model(LINEAR, made).encoder.encode(rows_of_two)
    assert vote(LINEAR, partners, x)[:, 2].mean() > 0.6
    assert vote(LINEAR, partners[:1], x)[:, 2].mean() + vote(LINEAR, partners[1:], x)[:, 2].mean() < 1.7


def test_a_class_that_nobody_has_is_named_and_gets_little() -> None:
    models = [
        build_model(LINEAR, [noisy(LINEAR, ward_rows(1_500, i, (0, 1)), 3.0, f"site {i}") for i in range(2)])
        for _ in range(7)
    ]
    naming = [model for model in models if model.manifest["method"]["unseen_classes"] == ["icu"]]
    assert len(naming) > 3, "noise alone passes for rows one time in 44: two deviations"
    logits = forward(naming[0].layers, naming[0].encoder.encode(TEST_ROWS))
    assert (logits.argmax(axis=1) == 2).mean() < 0.05


def test_noise_alone_still_fuses() -> None:
    empty = ward_rows(1, 0).slice(slice(0, 0))
    model = build_model(LINEAR, [noisy(LINEAR, empty, 0.01, "nobody")])
    assert all(np.isfinite(one).all() for one in model.tensors.values())


def test_sums_that_no_rows_can_have_are_quarantined() -> None:
    honest = noisy(LINEAR, ward_rows(1_000, 1), 1.0, "honest")
    bad = noisy(LINEAR, ward_rows(1_000, 2), 1.0, "bad").summary
    turned = dataclasses.replace(bad, blocks=bad.blocks | {CLASS_SUMS: -bad.blocks[CLASS_SUMS]})
    model = build_model(LINEAR, [honest, contribution("bad", turned)])
    assert [reason for _one, reason in model.quarantined] == ["it counts fewer than no rows in a class"]


def test_a_head_of_another_kind_is_refused_by_name_and_statistics_too() -> None:
    made = skewed(LINEAR)
    with pytest.raises(ModelError, match="choose one of: distilled, averaged"):
        build_model(LINEAR, made, "lda")
    with pytest.raises(ModelError, match='use a task of kind "moments"'):
        _ = fuse(LINEAR, made).statistics


@pytest.mark.parametrize("name", TASKS)
def test_files_and_card_say_what_was_done(name: str, tmp_path: Path, rows: Path) -> None:
    model = build_model(TASKS[name], skewed(TASKS[name]))
    content = card(model, [], "node", "2026-01-01")
    page = " ".join(describe(content).split())
    assert "distilled head (coverage-weighted vote" in page
    assert "no estimate:" in page
    scores = []
    for data in (write_onnx(model, content), write_safetensors(model, content)):
        assert read_model(data)[0].digest == model.digest
        scores.append(evaluate(data, [rows]))
    assert scores[0]["accuracy"] == scores[1]["accuracy"] > 0.7
    assert scores[0]["log_loss"] == pytest.approx(scores[1]["log_loss"], abs=1e-5)


# --- tasks, first weights, advice -----------------------------------------------------------------------------


def with_model(text: str) -> str:
    return MODEL_TOML + f"[model]\n{text}\n"


def test_a_task_keeps_its_settings_in_its_canonical_form_and_others_have_none() -> None:
    for task in TASKS.values():
        assert Task.from_canonical(task.canonical()) == task
    assert b'"model":' not in WARD.canonical()
    assert len({task.id for task in (*TASKS.values(), WARD)}) == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hidden = [0]", "model.hidden must hold a whole number between 1 and 1024"),
        ("hidden = [8, 8]", "model.hidden must be a list of at most one number"),
        ("hidden = 8", "model.hidden must be a list of at most one number"),
        ("steps = 0", "model.steps must be a whole number between 1 and 1000"),
        ("clip_norm = 0", "model.clip_norm must be between"),
        ("learning_rate = nan", "model.learning_rate must be finite"),
        ("mean_share = 1", "model.mean_share must be between"),
        ("expected_rows = 0.5", "model.expected_rows must be a whole number"),
        ("sampling = 1", "model.sampling is not a field known here"),
        ("hidden = [1024]\nsteps = 1000", "model.steps times weights are"),
        ('initial = "AAAA"', 'the field "initial_model" is missing'),
        (f'initial = "AAAA"\ninitial_model = "{"0" * 64}"', "model.initial are not"),
        ('initial = "!"', "model.initial must be weights as base64"),
        ('initial_file = "nowhere.onnx"', "model.initial_file"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task.toml line \d+: ") as caught:
        Task.from_toml(with_model(text), "task.toml", tmp_path)
    assert reason in str(caught.value)


def test_the_table_belongs_to_this_kind_alone_and_the_kind_to_classes() -> None:
    with pytest.raises(TaskError, match="model is not a field known here"):
        Task.from_toml(CLASSES_TOML + "[model]\nsteps = 3\n", "task.toml")
    with pytest.raises(TaskError, match='"model" learns classes'):
        Task.from_canonical(STAY.canonical().replace(b'"moments"', b'"model"'))


def test_a_fused_model_seeds_the_next_task(tmp_path: Path) -> None:
    """What one round found is where the next one starts: with one small step, it is still as good."""
    earlier = build_model(HIDDEN, skewed(HIDDEN))
    (tmp_path / "earlier.safetensors").write_bytes(write_safetensors(earlier, card(earlier, [], "node", "2026-01-01")))
    text = 'hidden = [6]\nsteps = 1\nlearning_rate = 0.001\ninitial_file = "earlier.safetensors"'
    (tmp_path / "next.toml").write_text(with_model(text))
    task = read_file(tmp_path / "next.toml")
    assert task.model is not None
    assert task.model.initial_model == earlier.digest.hex()
    assert Task.from_canonical(task.canonical()) == task
    seeded = accuracy(build_model(task, [noisy(task, ward_rows(1_500, 3), 3.0, "a")], "averaged"))
    assert seeded > max(accuracy(earlier) - 0.1, 0.5)  # from zero, one such step knows next to nothing
    back = np.concatenate([one.reshape(-1) for one in initial_weights(task)])
    assert back == pytest.approx(np.frombuffer(base64.b64decode(inline_weights(earlier)), dtype="<f4"))
    with pytest.raises(TaskError, match="not as many as this head has"):
        Task.from_toml(with_model('initial_file = "earlier.safetensors"'), "t.toml", tmp_path)
    other = with_model(text).replace("upper = 100", "upper = 101")
    with pytest.raises(TaskError, match="another encoder"):
        Task.from_toml(other, "t.toml", tmp_path)
    assert len(task.canonical()) < MAX_TASK_BYTES


def test_first_weights_are_the_same_everywhere() -> None:
    first, last = initial_weights(HIDDEN)
    assert first[0, :2] == pytest.approx([0.0, 0.0], abs=1.0)
    assert not last.any()
    assert np.std(first) == pytest.approx(np.sqrt(2 / 6), rel=0.2)


def test_advice_follows_from_public_figures_alone() -> None:
    assert "wrong choice" in (advice(with_rows(200), 1.0) or "")
    assert advice(with_rows(50_000), 1.0) is None
    assert "wrong choice" in (advice(with_rows(1_000), 0.05) or "")


def with_rows(expected: int) -> Task:
    return Task.from_toml(with_model(f"expected_rows = {expected}"), "ward.toml")


def test_weights_stand_in_steps_far_below_what_a_prediction_sees() -> None:
    assert WEIGHT_STEP / UNIT <= 1 / 256


# --- the command line, and kills ------------------------------------------------------------------------------


@pytest.fixture
def model_task_file(tmp_path: Path) -> Path:
    path = tmp_path / "ward.toml"
    path.write_text(with_model("hidden = [4]\nlearning_rate = 2.0\nsteps = 10\nexpected_rows = 400"))
    return path


def tidings(home: Path, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "node", "--home", str(home), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_from_rows_to_predictions_on_the_command_line(model_task_file: Path, rows: Path, tmp_path: Path) -> None:
    home = tmp_path / "alpha"
    tidings(home, "init", "--name", "alpha")
    tidings(home, "task", "add", str(model_task_file))
    assert "one hidden layer of 4" in tidings(home, "task", "show", "ward")
    preview = tidings(home, "publish", "ward", str(rows), "--epsilon", "3", "--dry-run")
    assert "class sums and trained weights" in preview
    assert 'WARNING  kind "model" is likely the wrong choice' in preview
    published = json.loads(tidings(home, "publish", "ward", str(rows), "--epsilon", "3", "--json"))
    assert published["epsilon"] == 3.0
    assert "wrong choice" in published["advice"]
    files = {head: str(tmp_path / f"{head}.onnx") for head in ("distilled", "averaged")}
    for head, file in files.items():
        made = json.loads(tidings(home, "query", "ward", "-o", file, "--head", head, "--json"))
        assert made["manifest"]["method"]["head"] == head
    assert json.loads(tidings(home, "verify", files["distilled"], "--json"))["confirmed"] is True
    tidings(home, "predict", files["distilled"], str(rows), "-o", str(tmp_path / "out.csv"))
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 401
    complaint = tidings(home, "query", "ward", "-o", str(tmp_path / "x.onnx"), "--head", "lda", code=2)
    assert "choose one of: distilled, averaged" in complaint


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as running:
        yield running


@pytest.mark.parametrize(
    ("step", "state"),
    [
        (("fusion.training:noised", 1, "before"), "RESERVED"),
        (("fusion.training:noised", 5, "after"), "RESERVED"),
        (("fusion.summaries.model:train", 1, "after"), "RESERVED"),
        (("fusion.ledger:Ledger.ready", 1, "after"), "READY"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0].partition(':')[2]} {value[1]} {value[2]}",
)
def test_a_kill_while_training_burns_the_budget_and_keeps_nothing_but_ready_bytes(
    killer: Killer,
    make_home: Callable[..., Home],
    model_task_file: Path,
    rows: Path,
    step: tuple[str, int, str],
    state: str,
) -> None:
    home = make_home("alpha")
    add(home, str(model_task_file))
    home.store.close()
    words = ["--home", str(home.path), "publish", "ward", str(rows), "--epsilon", "0.5"]
    assert killer.run(step, words).killed
    (entry,) = Home.open(home.path).ledger().statement()[0].entries
    assert entry.state == state
    waiting = Home.open(home.path).ledger().unpublished()
    assert [len(one.payload) > 0 for one in waiting] == ([True] if state == "READY" else [])
    assert killer.run(None, words).exit_code == 0
    states = [entry.state for entry in Home.open(home.path).ledger().statement()[0].entries]
    assert states == ["PUBLISHED" if state == "READY" else "RESERVED", "PUBLISHED"]
