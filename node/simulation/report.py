"""What a simulated coalition showed: as a table, and as a picture."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from node import show
from node.contributions import check_plot
from node.simulation.simulate import Outcome, command

CURVE: Final = "#0b7a75"
BOUND: Final = "#c8553d"
BARS: Final = "#3d5a80"


def print_outcome(outcome: Outcome) -> None:
    """The table, what stands out, and the command that shows it again."""
    plan = outcome.plan
    show.line(
        f"{plan.nodes:,} nodes, {outcome.links:,} links; {show.summaries(plan.authored)} of "
        f"{show.size(plan.body_bytes)} each; simulated {duration(outcome.simulated_s)} in {outcome.wall_s:.1f} s."
    )
    show.table(["what", "measured"], _rows(outcome), empty="")
    if not outcome.is_complete:
        show.line(
            f"After {duration(outcome.simulated_s)} only {len(outcome.complete_at):,} of {plan.nodes:,} nodes have "
            "everything: give it more --hours, more --degree or a better network."
        )
    show.line(f"The same again: {command(plan)}")


def _rows(outcome: Outcome) -> list[list[str]]:
    sent = outcome.sent_bytes
    rows = [
        [f"{share} of the nodes have everything after", duration(outcome.time_to(fraction))]
        for share, fraction in (("50 %", 0.5), ("99 %", 0.99), ("all", 1.0))
    ]
    rows.append(["bytes sent per node: mean, least, most", ", ".join(map(show.size, (fmean(sent), sent[0], sent[-1])))])
    rows.append(["body bytes sent / needed", _redundancy(outcome)])
    if outcome.idle_bytes_per_link_hour is not None:
        rows.append(["an idle link costs per hour, both ways", show.size(outcome.idle_bytes_per_link_hour)])
    return rows


def _redundancy(outcome: Outcome) -> str:
    text = f"{outcome.redundancy:.3f}"
    if outcome.plan.loss:
        text += f" (with these losses at least {1 / (1 - outcome.plan.loss):.3f})"
    return text


def duration(seconds: float | None) -> str:
    """`3.2 s`, `4.5 min`, `7.1 h`; `not yet` for None."""
    if seconds is None:
        return "not yet"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def draw(outcome: Outcome, path: Path) -> None:
    """Two panels: who has everything when, and what each node sent; UsageError without matplotlib."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1.0))
    _draw_curve(left, outcome)
    _draw_bytes(right, outcome)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e3e3", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.suptitle(textwrap.fill(_title(outcome), 120), x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=150)


def _title(outcome: Outcome) -> str:
    plan = outcome.plan
    parts = [f"{plan.nodes:,} nodes, {plan.authored:,} × {show.size(plan.body_bytes)}"]
    parts.append(f"{plan.degree} addresses a node, {1_000 * plan.latency_s:g} ms one way")
    if plan.bandwidth is not None:
        parts.append(f"{show.size(plan.bandwidth)}/s on a link")
    if plan.loss:
        parts.append(f"{100 * plan.loss:g} % of frames lost")
    if plan.cut_every_s is not None:
        parts.append(f"links cut every {duration(plan.cut_every_s)}")
    if plan.partition_s:
        parts.append(f"in two halves for {duration(plan.partition_s)}")
    if plan.mean_up_s is not None:
        parts.append(f"nodes up {duration(plan.mean_up_s)}, down {duration(plan.mean_down_s)}")
    return ", ".join(parts)


def _draw_curve(axes: Any, outcome: Outcome) -> None:
    """The share of nodes that have everything over time, with the bound for announcing where it is in sight."""
    unit, name = _unit(outcome.simulated_s)
    times = [0.0, *(at / unit for at in outcome.complete_at), outcome.simulated_s / unit]
    shares = [100 * count / outcome.plan.nodes for count in range(len(outcome.complete_at) + 1)]
    axes.step(times, [*shares, shares[-1]], where="post", color=CURVE, linewidth=2)
    for share in (0.5, 0.99):
        at = outcome.time_to(share)
        if at is not None:
            axes.plot(at / unit, 100 * share, "o", color=CURVE, markersize=5)
            axes.annotate(
                f"{100 * share:g} %: {duration(at)}", (at / unit, 100 * share), (8, -11), textcoords="offset points",
                fontsize=8,
            )  # fmt: skip
    if 0.2 * outcome.simulated_s < outcome.rounds < 3 * outcome.simulated_s:
        axes.axvline(outcome.rounds / unit, color=BOUND, linestyle="--", linewidth=1)
        axes.annotate(
            f"log2 N rounds: {duration(outcome.rounds)}", (outcome.rounds / unit, 4), (-4, 0),
            textcoords="offset points", ha="right", fontsize=8, color=BOUND,
        )  # fmt: skip
    axes.set_xlim(left=0.0)
    axes.set_ylim(0, 104)
    axes.set_xlabel(f"{name} since the records were published")
    axes.set_ylabel("nodes that have everything, %")


def _draw_bytes(axes: Any, outcome: Outcome) -> None:
    """How many nodes sent how much."""
    scale, unit = _scale(outcome.sent_bytes[-1])
    sent = [count / scale for count in outcome.sent_bytes]
    axes.hist(sent, bins=min(30, max(5, math.isqrt(len(sent)))), color=BARS)
    axes.axvline(fmean(sent), color=BOUND, linestyle="--", linewidth=1)
    axes.annotate(
        f"mean {fmean(sent):,.3g} {unit}", (fmean(sent), 1.0), (5, -9), xycoords=("data", "axes fraction"),
        textcoords="offset points", fontsize=8, color=BOUND,
    )  # fmt: skip
    axes.set_xlim(left=0.0)
    axes.set_xlabel(f"{unit} sent by a node until then")
    axes.set_ylabel("nodes")


def _unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 4 * 3_600 else (3_600.0, "hours")


def _scale(count: float) -> tuple[float, str]:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return scale, unit
    return 1.0, "bytes"
