"""`tidings demo`: four hospitals, four node processes, one private model, on this machine.

The hospitals are the four of the UCI heart-disease data. They form a chain by address, and the last one has no address
at all; no moment has all four online. Everything a person would type runs as the real command in a process of its own;
this module only tells the story, waits, and counts.

    cleveland -- hungarian -- switzerland -- va (dials out only)
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node import show
from node.demo_report import Report, write_report
from node.errors import UsageError
from node.records import Kind
from node.rehearsal import Coalition, RehearsalFailed, Site, free_ports, knows_a_task, wait_until
from node.tasks import read_file

if TYPE_CHECKING:
    from fusion.fuse import Contribution
    from fusion.task import Task

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
TASK = "heart-disease"
EPSILON = 1.0
TRAIN_BYTES = 169
"""A row trains if the first byte of its hash is below this: 169 of 256 is 66 %. The rule knows nothing of the row but
where it stands in the file."""


def run_demo(out: Path, draws: int, data: Path | None, *, as_json: bool) -> None:
    """Run the whole story and leave model files, a plot and a JSON with all figures in `out`."""
    source = data or Path(__file__).resolve().parent.parent / "examples" / "heart"
    if not (source / "task.toml").exists():
        raise UsageError(f"The heart example is not in {source}; say where it is with --data.")
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def tell(text: str) -> None:
        show.note(f"[{time.monotonic() - started:5.1f} s] {text}")

    with tempfile.TemporaryDirectory(prefix="tidings-demo-") as scratch:
        splits = split_rows(source, Path(scratch) / "data")
        tell("split each hospital's rows by a public rule: " + ", ".join(str(split) for split in splits.values()))
        with _coalition(Path(scratch), source / "task.toml") as coalition:
            spread(coalition, splits, tell)
            models = ask_for_models(coalition, out, tell)
            bytes_moved = coalition.bytes_moved
        tell("all four nodes are stopped; scoring on the pooled test rows of the four hospitals")
        report = _score(source, splits, models, draws, bytes_moved, tell)
    report = report.finished(time.monotonic() - started)
    write_report(report, out, as_json=as_json)


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Split:
    """One hospital's rows, cut in two by a public rule."""

    hospital: str
    train: Path
    test: Path
    train_rows: int
    test_rows: int

    def __str__(self) -> str:
        return f"{self.hospital} {self.train_rows} + {self.test_rows}"


def is_training_row(hospital: str, index: int) -> bool:
    """The public rule: SHA-256 of `tidings-heart/<hospital>/<row index>`, first byte."""
    digest = hashlib.sha256(f"tidings-heart/{hospital}/{index}".encode()).digest()
    return digest[0] < TRAIN_BYTES


def split_rows(source: Path, target: Path) -> dict[str, Split]:
    """Write `<hospital>-train.csv` and `<hospital>-test.csv` for each hospital."""
    target.mkdir(parents=True)
    splits = {}
    for hospital in HOSPITALS:
        rows = (source / f"{hospital}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        train = [row for index, row in enumerate(rows) if is_training_row(hospital, index)]
        test = [row for index, row in enumerate(rows) if not is_training_row(hospital, index)]
        split = Split(
            hospital, target / f"{hospital}-train.csv", target / f"{hospital}-test.csv", len(train), len(test)
        )
        split.train.write_text("".join(train), encoding="utf-8")
        split.test.write_text("".join(test), encoding="utf-8")
        splits[hospital] = split
    return splits


# --------------------------------------------------------------------------------------------------------------- nodes


@contextmanager
def _coalition(scratch: Path, task_file: Path) -> Iterator[Coalition]:
    """Four initialized homes that trust each other's keys; whatever runs is stopped at the end."""
    ports = free_ports(len(HOSPITALS) - 1)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    coalition = Coalition()
    for name, address in zip(HOSPITALS, [*addresses, None], strict=True):
        coalition.sites[name] = Site(name, scratch / name, address)
    (scratch / "task.toml").write_bytes(task_file.read_bytes())
    with coalition:
        yield coalition


# --------------------------------------------------------------------------------------------------------------- story


def spread(coalition: Coalition, splits: dict[str, Split], tell: Callable[[str], None]) -> None:
    """Everything up to the moment when the last hospital can read all four summaries."""
    cleveland, hungarian, switzerland, va = (coalition[name] for name in HOSPITALS)
    _introduce(coalition)
    tell("four homes, four identities; each adds the other three by public key, addresses along a chain only")

    def publish(site: Site) -> None:
        made = json.loads(
            site.tidings("publish", TASK, str(splits[site.name].train), "--epsilon", str(EPSILON), "--json")
        )
        tell(f"{site.name} published one summary: {show.size(made['bytes'])}, epsilon {made['epsilon']:g}")

    for site in (hungarian, switzerland, va):
        site.start()
    tell("hungarian, switzerland and va are up; cleveland is not")
    hungarian.tidings("task", "add", str(hungarian.path.parent / "task.toml"))
    for site in (switzerland, va):
        wait_until(f"{site.name} hears of the task", functools.partial(knows_a_task, site))
        site.tidings("task", "add", TASK)
    tell("hungarian proposed the task; the proposal reached the other two, who accepted it")
    for site in (hungarian, switzerland, va):
        publish(site)
    wait_until("hungarian reads three summaries", lambda: hungarian.readable_summaries() == 3)
    va.stop()
    tell("va is stopped before cleveland starts")
    cleveland.start()
    cleveland.tidings("task", "add", str(cleveland.path.parent / "task.toml"))
    publish(cleveland)
    wait_until(
        "switzerland holds what cleveland has for va",
        lambda: switzerland.holds(Kind.SUMMARY, cleveland) and switzerland.holds(Kind.KEY_GRANT, cleveland, va),
    )
    cleveland.stop()
    tell("cleveland is stopped; its summary and its key grant for va stay with the others")
    va.start()
    wait_until("va reads four summaries", lambda: va.readable_summaries() == 4)
    tell("va is back and reads all four summaries, cleveland's too, which it never met")


def _introduce(coalition: Coalition) -> None:
    keys = {}
    for site in coalition.sites.values():
        listen = ("--listen", site.address) if site.address else ()
        keys[site.name] = site.tidings("init", "--name", site.name, *listen).strip()
    for index, name in enumerate(HOSPITALS):
        for other_index, other in enumerate(HOSPITALS):
            if other == name:
                continue
            address = coalition[other].address if abs(index - other_index) == 1 else None
            at = ("--address", address) if address else ()
            coalition[name].tidings("peer", "add", keys[other], "--name", other, *at)


def ask_for_models(coalition: Coalition, out: Path, tell: Callable[[str], None]) -> dict[str, Path]:
    """The model from va in both formats, and proof that others make the same one."""
    va, hungarian = coalition["va"], coalition["hungarian"]
    models = {ending: out / f"heart.{ending}" for ending in ("onnx", "safetensors")}
    for path in models.values():
        va.tidings("query", TASK, "-o", str(path))
    tell("va fused the four summaries; hungarian and switzerland are asked for theirs")
    there = out.resolve() / "heart-from-hungarian.onnx"
    hungarian.tidings("query", TASK, "-o", str(there))
    over_tls = out.resolve() / "heart-from-switzerland.onnx"
    va.tidings("query", TASK, "--node", "switzerland", "-o", str(over_tls))
    digests = {
        path.name: json.loads(hungarian.tidings("verify", str(path), "--json"))["digest"]
        for path in (*models.values(), there, over_tls)
    }
    if len(set(digests.values())) != 1:
        raise RehearsalFailed(f"The nodes made different models of the same summaries: {digests}.")
    for path in (there, over_tls):
        path.unlink()
    tell(f"three nodes, two formats, one model: digest {next(iter(digests.values()))[:16]}…, verified by hungarian")
    return models


# --------------------------------------------------------------------------------------------------------------- score


def _score(
    source: Path,
    splits: dict[str, Split],
    models: dict[str, Path],
    draws: int,
    bytes_moved: int,
    tell: Callable[[str], None],
) -> Report:
    from fusion.model import evaluate, read_model

    task = read_file(source / "task.toml")
    tests = [split.test for split in splits.values()]
    trains = {name: split.train for name, split in splits.items()}
    alone = {name: accuracy(task, [_exact(task, name, [train])], tests) for name, train in trains.items()}
    pooled = accuracy(task, [_exact(task, "everybody", list(trains.values()))], tests)
    data = models["onnx"].read_bytes()
    scores = evaluate(data, tests)
    return Report(
        epsilon=EPSILON,
        delta=task.privacy.delta,
        test_rows=scores["n"],
        alone=alone,
        fused=scores["accuracy"],
        fused_auc=scores["auc"],
        pooled=pooled,
        draws=tuple(_draws(task, trains, tests, draws, tell)),
        bytes_moved=bytes_moved,
        models={ending: str(path) for ending, path in models.items()},
        digest=read_model(data)[0].digest.hex(),
    )


def _draws(
    task: Task, trains: dict[str, Path], tests: Sequence[Path], count: int, tell: Callable[[str], None]
) -> Iterator[float]:
    """The accuracy of the fused model for `count` further draws of the noise, in this process: nothing is published."""
    from fusion.dataset import read_batches
    from fusion.fuse import Contribution
    from fusion.release import measure, noisy_summary

    measured = {name: measure(task, read_batches([train], task)) for name, train in trains.items()}
    for draw in range(count):
        contributions = [
            Contribution(*_ids(f"{name}, draw {draw}"), noisy_summary(task, sums, EPSILON))
            for name, sums in measured.items()
        ]
        yield accuracy(task, contributions, tests)
        if (draw + 1) % 5 == 0 or draw + 1 == count:
            tell(f"{draw + 1} of {count} further draws of the noise are scored")


def _exact(task: Task, name: str, paths: Sequence[Path]) -> Contribution:
    """Sums without noise, for the lines of the table that have no privacy; they never leave this process."""
    from fusion.dataset import read_batches
    from fusion.fuse import Contribution
    from fusion.release import exact_summary

    return Contribution(*_ids(name), exact_summary(task, read_batches(paths, task)))


def accuracy(task: Task, contributions: Sequence[Contribution], tests: Sequence[Path]) -> float:
    from fusion.model import build_model, card, evaluate, write_safetensors

    model = build_model(task, contributions)
    unsigned = card(model, [], "demo", "now")
    return float(evaluate(write_safetensors(model, unsigned), tests)["accuracy"])


def _ids(name: str) -> tuple[bytes, bytes]:
    """A record id and an origin for a summary that is in no record."""
    digest = hashlib.sha256(name.encode()).digest()
    return digest, digest
