"""P1 and P4: what measuring rows and fusing summaries cost, beside the linear algebra they cannot do without.

CPU seconds of one core, medians of alternating runs, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

from fusion.dataset import BATCH_ROWS, Batch, read_batches
from fusion.encoders import encoder_for
from fusion.fuse import Contribution, Fused, Fuser, fuse, total
from fusion.heads import HEADS, Cleaned
from fusion.model import build_model
from fusion.release import Measured, measure, noisy_summary
from fusion.selection import DEFAULT_HEAD, DEFAULT_MULTIPLIER
from fusion.summary import Decoder, Summary, claim_of, plan
from fusion.task import Task

CATEGORIES = 8
SEED = bytes(32)
RELEASE_TARGET, FUSE_TARGET, ADD_TARGET = 1.5, 3.0, 1.2


@dataclass(frozen=True)
class Sizes:
    """How much is measured, how often."""

    dimensions: tuple[int, ...]
    rows: int
    memory_rows: tuple[int, int]
    fused_dimension: int
    summaries: int
    draws: int
    runs: int


FULL = Sizes((128, 512, 1024), 98_304, (20_000, 200_000), 512, 100, 10, 5)
QUICK = Sizes((128, 512), 16_384, (5_000, 20_000), 128, 20, 2, 3)


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(FULL)


def quick(_out: Path) -> str:
    """Fewer rows, fewer and smaller summaries."""
    return _section(QUICK)


def _section(sizes: Sizes) -> str:
    with threadpool_limits(limits=1):
        return "## P1 and P4: measuring rows, fusing summaries\n\n" + _release_text(sizes) + "\n" + _fuse_text(sizes)


# --- P1 ---------------------------------------------------------------------------------------------------------


def _release_text(sizes: Sizes) -> str:
    rows = []
    for dimension in sizes.dimensions:
        for name, task in (("numbers", number_task(dimension)), ("categories", category_task(dimension))):
            whole, encoding = _against_product(task, sizes.rows)
            rows.append(f"| {dimension} | {name} | {whole:.2f} | {encoding:.2f} | {whole - encoding:.2f} |")
    few, many = sizes.memory_rows
    few_mb, many_mb = _peak_mb(few), _peak_mb(many)
    return (
        f"P1. Time from rows to sums as a multiple of one float64 matrix product X^T X of the same size, "
        f"{sizes.rows:,} rows. Target: at most {RELEASE_TARGET}.\n\n"
        "| d | columns | encode and sum | of which encoding | of which sums |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n\n"
        f"Memory: a process that measures a Parquet file of {few:,} rows peaks at {few_mb:.0f} MB, one of {many:,} at "
        f"{many_mb:.0f} MB.\n"
    )


def _against_product(task: Task, rows: int) -> tuple[float, float]:
    """Measuring and encoding, each as a multiple of the matrix product."""
    rng = np.random.default_rng(0)
    batch = _random_batch(task, BATCH_ROWS, rng)
    encoder = encoder_for(task)
    x = rng.standard_normal((BATCH_ROWS, encoder.dimension))
    y = x.copy()  # the product of a matrix with itself would be done by halves
    times: tuple[list[float], ...] = ([], [], [])
    for _ in range(rows // BATCH_ROWS):
        for taken, call in zip(
            times,
            (lambda: x.T @ y, lambda: measure(task, [batch]), lambda: [encoder.encode(one) for one in _blocks(batch)]),
            strict=True,
        ):
            taken.append(_cpu_s(call))
    product_s = median(times[0])
    return median(times[1]) / product_s, median(times[2]) / product_s


def _blocks(batch: Batch) -> Iterator[Batch]:
    """As `measure` encodes them."""
    from fusion.summaries.moments import BLOCK_ROWS

    for start in range(0, len(batch), BLOCK_ROWS):
        yield batch.slice(slice(start, start + BLOCK_ROWS))


def _peak_mb(rows: int) -> float:
    """Resident memory at its highest of a process that measures a file of that many rows."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rows.parquet"
        _write_parquet(path, rows)
        command = [sys.executable, "-c", f"from benchmarks.scaling import measure_file; measure_file({str(path)!r})"]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _write_parquet(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    task = number_task(64)
    rng = np.random.default_rng(0)
    schema = pa.schema([*((column.name, pa.float64()) for column in task.columns), ("y", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, BATCH_ROWS):
            batch = _random_batch(task, min(BATCH_ROWS, rows - start), rng)
            assert batch.label is not None
            writer.write_table(pa.table([*batch.numbers.values(), batch.label], schema=schema))


def measure_file(path: str) -> None:
    """For `_peak_mb`: measure, and print the peak in MB."""
    task = number_task(64)
    measure(task, read_batches([Path(path)], task))
    status = Path("/proc/self/status").read_text()  # getrusage would tell of the process that started this one
    print(int(status.split("VmHWM:")[1].split()[0]) / 1000)


# --- P4 ---------------------------------------------------------------------------------------------------------


def _fuse_text(sizes: Sizes) -> str:
    task = category_task(sizes.fused_dimension)
    contributions, files = _contributions(task, sizes)
    times: dict[str, list[float]] = {name: [] for name in ("eigh", *_steps(task, contributions, files))}
    for _ in range(sizes.runs):
        fused = fuse(task, contributions)
        gram = fused.statistics.gram
        for name, call in {
            "eigh": lambda gram=gram: np.linalg.eigh(gram),
            **_steps(task, contributions, files),
        }.items():
            times[name].append(_cpu_s(call))
    unit_s = median(times["eigh"])
    cost = {name: median(taken) / unit_s for name, taken in times.items()}
    targets = {FUSED: f"<= {FUSE_TARGET:g}", CHECKED: f"<= {FUSE_TARGET:g}", ADDED: f"<= {ADD_TARGET:g}"}
    rows = [f"| {name} | {cost[name]:.2f} | {targets.get(name, '')} |" for name in cost if name != "eigh"]
    return (
        f"P4. Fusing {sizes.summaries} summaries of d = {sizes.fused_dimension}, as a multiple of one symmetric "
        f"eigendecomposition ({1e3 * unit_s:.0f} ms). {sizes.draws} draws of the noise stand for all of them.\n\n"
        "| what | times one eigendecomposition | target |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


FUSED = "fuse all, each checked before: add, denoise, fit the ridge head"
CHECKED = "fuse all, with the check of each (a Cholesky factor in single precision)"
ADDED = "one more: check it, add, denoise, fit the ridge head"


def _steps(
    task: Task, contributions: Sequence[Contribution], files: Sequence[bytes]
) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the fusers that get one more are made here, outside the timing."""
    one_less = [_fuser(task, contributions[:-1]) for _ in range(2)]
    return {
        "decode all from their bytes": lambda: _decoded(task, files),
        FUSED: lambda: _fitted(Fused(task, total(contributions), tuple(contributions), ()), "ridge"),
        CHECKED: lambda: _fitted(fuse(task, contributions), "ridge"),
        "the same with the default head, which for two classes takes a second one": lambda: _fitted(
            fuse(task, contributions), DEFAULT_HEAD
        ),
        ADDED: lambda: _with(one_less[0], contributions[-1], "ridge"),
        "one more with the default head, likewise": lambda: _with(one_less[1], contributions[-1], DEFAULT_HEAD),
        "the whole model: as above, head and lambda chosen on left-out summaries": lambda: build_model(
            task, contributions
        ),
    }


def _decoded(task: Task, files: Sequence[bytes]) -> list[Summary]:
    decoder = Decoder(task)
    return [decoder.read(data) for data in files]


def _fuser(task: Task, contributions: Sequence[Contribution]) -> Fuser:
    fuser = Fuser(task)
    for one in contributions:
        fuser.add(one)
    return fuser


def _with(fuser: Fuser, one: Contribution, head: str) -> None:
    fuser.add(one)
    _fitted(fuser.fused(), head)


def _fitted(fused: Fused, head: str) -> None:
    assert not fused.quarantined
    HEADS[head].fit(Cleaned.of(fused.statistics), DEFAULT_MULTIPLIER, SEED)


def _contributions(task: Task, sizes: Sizes) -> tuple[list[Contribution], list[bytes]]:
    """Summaries under ids of their own, and their bytes."""
    rng = np.random.default_rng(0)
    measured = measure(task, [_random_batch(task, 1_000, rng)])
    drawn = [_stamped(task, measured) for _ in range(sizes.draws)]
    ids = [number.to_bytes(32, "big") for number in range(sizes.summaries)]
    contributions = [Contribution(one, one, drawn[place % len(drawn)]) for place, one in enumerate(ids)]
    encoded = [summary.to_bytes() for summary in drawn]
    return contributions, [encoded[place % len(drawn)] for place in range(len(ids))]


def _stamped(task: Task, measured: Measured) -> Summary:
    """Made-up rows, so that bytes may be made without a ledger."""
    drawn = noisy_summary(task, measured, task.privacy.max_epsilon)
    claim = claim_of(plan(task, task.privacy.max_epsilon), 1)
    return Summary(drawn.task_id, drawn.kind, claim, drawn.blocks, drawn.steps, drawn.sigmas)


# --- tasks and rows ---------------------------------------------------------------------------------------------


def number_task(dimension: int) -> Task:
    """Numbers alone, d = `dimension` at least."""
    columns = [f'[[columns]]\nname = "c{i}"\ntype = "number"\nlower = -3\nupper = 3\n' for i in range(dimension // 2)]
    return Task.from_toml(_toml(columns, 2), "benchmarks/scaling.py")


def category_task(dimension: int) -> Task:
    """Categories of at most CATEGORIES values, d = `dimension`."""
    return Task.from_toml(category_toml(dimension, 2), "benchmarks/scaling.py")


def category_toml(dimension: int, classes: int) -> str:
    """The task file of such a task; columns are c0, c1, …, their values v0, v1, …, the label y is 0, 1, …"""
    widths = [CATEGORIES] * ((dimension - 1) // CATEGORIES)
    left = dimension - 1 - sum(widths)
    if left == 1:  # a column has two values at least
        widths[-1], left = widths[-1] - 1, 2
    if left:
        widths.append(left)
    columns = []
    for number, width in enumerate(widths):
        values = ", ".join(f'"v{place}"' for place in range(width))
        columns.append(f'[[columns]]\nname = "c{number}"\ntype = "category"\nvalues = [{values}]\n')
    return _toml(columns, classes)


def _toml(columns: Sequence[str], classes: int) -> str:
    labels = ", ".join(f'{{ name = "class {number}", values = ["{number}"] }}' for number in range(classes))
    return (
        'name = "scaling"\nkind = "classification"\nsummary = "moments"\n'
        f'[label]\ncolumn = "y"\nclasses = [{labels}]\n'
        '[privacy]\nmax_epsilon = 1.0\ndelta = 1e-5\nunit = "record"\n'
        + "".join(columns)
        + '[encoder]\nkind = "tabular"\n'
    )


def _random_batch(task: Task, rows: int, rng: np.random.Generator) -> Batch:
    from fusion.task import NumberColumn

    numbers = {one.name: rng.standard_normal(rows) for one in task.columns if isinstance(one, NumberColumn)}
    categories = {
        one.name: rng.integers(0, len(one.values), rows) for one in task.columns if not isinstance(one, NumberColumn)
    }
    return Batch(numbers, categories, rng.integers(0, 2, rows), rows)


def _cpu_s(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started
