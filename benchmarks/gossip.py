"""P5 and what gossip must survive: convergence up to 4,096 simulated nodes, redundancy, idle links, partitions, a thin
line; and how long the simulator takes for it.

Simulated: the real core and codec on a fake clock (`node.simulation`), the experiments in `gossip_experiments`.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.gossip_experiments import (
    SETTINGS,
    Spread,
    healing_s,
    idle,
    redundancy,
    rounds_s,
    spread,
    thin_line,
)
from benchmarks.plotting import pyplot
from node.simulation.network import Conditions

LOSSES = (0.0, 0.3)
MOST = {0.0: 1.0, 0.3: 1.25}
"""Bars, in log2 N rounds, for 99 % of the nodes."""
TIME_BAR_S = 60.0
COLORS = {0.0: "#0b7a75", 0.3: "#c8553d"}


@dataclass(frozen=True)
class Sizes:
    """How many nodes, how often; seeds count from 0."""

    seeds: dict[int, int]
    redundancy_seeds: int
    partitions: tuple[tuple[int, float, int], ...]
    """Nodes, hours, seeds."""
    thin_seeds: int


FULL = Sizes({16: 100, 64: 50, 256: 20, 1_024: 10, 4_096: 3}, 10, ((16, 1.0, 40), (8, 24.0, 10)), 10)
QUICK = Sizes({16: 20, 64: 5, 256: 2}, 2, ((16, 1.0, 3),), 1)


@dataclass(frozen=True)
class Runs:
    """What one number of nodes showed at one loss."""

    n: int
    loss: float
    found: tuple[Spread, ...]
    cpu_s: float
    """Of one run, on average."""
    peak_mb: float

    @property
    def bar_s(self) -> float:
        """When 99 % must have the record."""
        return MOST[self.loss] * rounds_s(self.n)


def run(out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(FULL, out)


def quick(out: Path) -> str:
    """Fewer nodes and seeds."""
    return _section(QUICK, out)


def _section(sizes: Sizes, out: Path) -> str:
    runs = [_measure(n, loss, seeds) for n, seeds in sizes.seeds.items() for loss in LOSSES]
    drawn = _draw(runs, out / "gossip-convergence.png")
    parts = [
        "## P5: gossip over broken networks, simulated",
        _convergence_text(runs),
        "![99 % of the nodes against log2 N](plots/gossip-convergence.png)\n" if drawn else "",
        _survival_text(sizes),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


# ---------------------------------------------------------------------------------------------------------- convergence


def _measure(n: int, loss: float, seeds: int) -> Runs:
    """Runs in a process of their own, so that its memory is theirs."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_runs, (n, loss, seeds))


def _runs(n: int, loss: float, seeds: int) -> Runs:
    started = time.process_time()
    found = tuple(spread(n, loss, seed) for seed in range(seeds))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000
    return Runs(n, loss, found, (time.process_time() - started) / seeds, peak_mb)


def _convergence_text(runs: Sequence[Runs]) -> str:
    lines = [
        "One node publishes a record with a body of 2 kB; all nodes trust each other, each has the addresses of four. "
        "Latency 10 to 100 ms one way, drawn for each link; settings of a real node, a round is "
        f"{SETTINGS.rumor_round_s:g} s. Lost frames are lost for good, Hello and all, which a stream does not do. "
        "Seconds from publishing until 99 % and all of the nodes have it, mean ± standard deviation over seeds "
        "(slowest). Time and memory are what the simulator takes for one run on one core, connecting (20 s; 3 min with "
        "losses) included.",
        "",
        "| nodes | frames lost | seeds | 99 % have it | in log2 N rounds | bar | runs within | all have it | bar "
        "| body bytes that arrived / needed | announced per node | CPU time | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_convergence_row, runs),
        "",
        "A small body rides with its header, in one frame, so that neither is lost without the other. Bodies over "
        "4 KiB are asked for once their header is here (below). Bytes that were lost are not counted; the bar is 1.2, "
        "and 1.05 without losses.",
    ]
    thousand = [one.cpu_s for one in runs if one.n == 1_024]
    if thousand:
        lines += ["", f"P5: {max(thousand):.1f} s of one core at 1,024 nodes; target below {TIME_BAR_S:.0f} s."]
    return "\n".join(lines)


def _convergence_row(one: Runs) -> str:
    fast = [found.to_99_percent_s for found in one.found]
    whole = [found.to_all_s for found in one.found]
    within = sum(at <= one.bar_s for at in fast)
    cells = [
        f"{one.n:,}",
        f"{100 * one.loss:.0f} %",
        str(len(fast)),
        _spread_text(fast),
        f"{fmean(fast) / rounds_s(one.n):.2f}",
        f"{MOST[one.loss]:g} ({one.bar_s:.1f} s)",
        f"{within} of {len(fast)}",
        _spread_text(whole),
        f"{rounds_s(one.n) + 3 * SETTINGS.sync_max_s:.0f} s",
        f"{fmean(found.redundancy for found in one.found):.2f}",
        f"{fmean(found.announced_bytes for found in one.found):.0f} B",
        f"{one.cpu_s:.1f} s",
        f"{one.peak_mb:.0f} MB",
    ]
    return f"| {' | '.join(cells)} |"


def _spread_text(values: Sequence[float]) -> str:
    if math.inf in values:
        return f"not in {sum(value == math.inf for value in values)} of {len(values)}"
    spread_of = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.1f} ± {spread_of:.1f} s ({max(values):.1f})"


def _draw(runs: Sequence[Runs], path: Path) -> bool:
    """Every run as a point, the means as a line, beside log2 N."""
    plt = pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    sizes = sorted({one.n for one in runs})
    for loss, style in zip(LOSSES, ("--", ":"), strict=True):
        label = f"bar at {100 * loss:.0f} % loss: {MOST[loss]:g} log2 N rounds"
        bars = [MOST[loss] * rounds_s(n) for n in sizes]
        axes.plot(sizes, bars, style, color=COLORS[loss], linewidth=1.2, label=label)
        mine = [one for one in runs if one.loss == loss]
        for one in mine:
            times = [found.to_99_percent_s for found in one.found]
            axes.plot([one.n] * len(times), times, ".", color=COLORS[loss], alpha=0.25, markersize=5)
        means = [fmean(found.to_99_percent_s for found in one.found) for one in mine]
        label = f"{100 * loss:.0f} % of frames lost: mean, and every run"
        axes.plot([one.n for one in mine], means, "o-", color=COLORS[loss], linewidth=1.8, markersize=5, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("simulated nodes N")
    axes.set_ylabel("seconds (rounds) until 99 % have a new record")
    axes.grid(color="#e3e3e3", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


# ------------------------------------------------------------------------------------------------------------- survival


def _survival_text(sizes: Sizes) -> str:
    idles = [idle(seed) for seed in range(3)]
    rows = [
        *_redundancy_rows(sizes.redundancy_seeds),
        f"| equal pair: to connect, Hello and Digest both ways | {max(one.to_connect for one in idles)} B | |",
        f"| equal pair: a round of anti-entropy | {max(one.a_round for one in idles):.0f} B | at most 100 B |",
        f"| equal pair: an idle hour, both ways | {max(one.an_hour for one in idles):,} B | |",
        *(_partition_row(*one) for one in sizes.partitions),
        *_thin_rows(sizes.thin_seeds),
    ]
    return "\n".join(["| what | measured | bar |", "| --- | --- | --- |", *rows])


def _redundancy_rows(seeds: int) -> list[str]:
    weathers = (
        (64, "fair weather", Conditions(), 1.05),
        (64, "links cut every 20 s, one side noticing up to 10 s late", _cut(20.0), 1.2),
        (32, "10 % of frames lost", Conditions(frame_loss=0.1), 1.2),
        (32, "30 % of frames lost", Conditions(frame_loss=0.3), 1.2),
    )
    rows = []
    for n, name, conditions, bar in weathers:
        found = [redundancy(n, seed, conditions) for seed in range(seeds)]
        rows.append(
            f"| body bytes that arrived / needed, 8 bodies of 100 kB, {n} nodes, {name}; {seeds} seeds "
            f"| {fmean(found):.3f} ({max(found):.3f} at most) | at most {bar} |"
        )
    return rows


def _cut(mean_s: float) -> Conditions:
    return Conditions(mean_link_life_s=mean_s, late_notice_s=10.0)


def _partition_row(n: int, hours: float, seeds: int) -> str:
    found = [healing_s(n, hours, seed) for seed in range(seeds)]
    return (
        f"| partition of {hours:g} h healed, {n} nodes, {seeds} seeds: equal after | {_spread_text(found)} "
        f"| {2 * SETTINGS.sync_max_s:.0f} s and transfer |"
    )


def _thin_rows(seeds: int) -> list[str]:
    found = [thin_line(seed) for seed in range(seeds)]
    resent = [one.resent_chunks_per_cut for one in found]
    took = [one.took_s for one in found]
    return [
        f"| 5 MB at 64 kbit/s, cut every 5 s, {seeds} seeds: chunks of 16 KiB sent again per cut "
        f"| {fmean(resent):.2f} ({max(resent):.2f} at most; {found[0].cuts} cuts) | at most 1 |",
        f"| the same: time, {found[0].at_full_rate_s:.0f} s at full rate | {_spread_text(took)} | completes |",
    ]
