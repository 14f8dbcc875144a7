"""What each partner's summaries add to a model, for people and programs: what `contributions` shows and draws."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crypto.keys import PublicKey
from node.errors import UsageError
from node.frames import Query
from node.home import Home
from node.query import fusable
from node.tasks import find

if TYPE_CHECKING:
    from fusion.contributions import Estimate

LINE_CHARS = 100
PLOT_ENDINGS = (".png", ".pdf", ".svg")
PANELS = {"adds": "lost without it", "alone": "explained by it alone"}
GAIN, UNCLEAR, LOSS = "#2a6f97", "#a9c3d3", "#b5523b"
LEAST_POINTS = -100.0  # a model may be worse than base rates by any factor, which would flatten all other bars


def study(home: Home, query: Query, progress: Callable[[int], None]) -> dict[str, Any]:
    """`{task, together, partners}`, the partners by what they add: `{origin, key, records, epsilons, rows, rows_std,
    only_classes, alone, adds, left_out}`, where `left_out` says why a partner's summary could not be used.

    Estimates are `{value, std}` in shares of the variation explained, None where there are too few partners.
    """
    from fusion.contributions import contributions

    task = find(home, query.task_id.hex())
    held = fusable(home, task, query)
    found = contributions(task, held.usable, progress, query.robust)
    listed: list[dict[str, Any]] = [
        {
            "origin": home.peers.name_of(PublicKey(one.origin)),
            "key": PublicKey(one.origin).text,
            "records": [record.hex() for record in one.records],
            "epsilons": [epsilon if math.isfinite(epsilon) else None for epsilon in one.epsilons],
            "rows": one.rows,
            "rows_std": one.rows_std,
            "only_classes": list(one.only_classes),
            "alone": _as_json(one.alone),
            "adds": _as_json(one.adds),
        }
        for one in found.partners
    ]
    listed.sort(key=lambda one: (-(one["adds"] or one["alone"] or {"value": 0.0})["value"], one["origin"]))
    left_out = [(one.origin, one.reason) for one in held.left_out]
    left_out += [(PublicKey(one.origin), reason) for one, reason in found.quarantined]
    return {
        "task": task.name,
        "together": _as_json(found.together),
        "partners": listed,
        "left_out": [{"origin": home.peers.name_of(origin), "reason": reason} for origin, reason in left_out],
    }


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """The table: partner, rows, epsilon, adds, alone, remark."""
    return [
        [
            one["origin"],
            f"{max(one['rows'], 0.0):,.0f} ± {one['rows_std']:,.0f}",
            _span(one["epsilons"]),
            _points(one["adds"]),
            _points(one["alone"]),
            f"the only one with {', '.join(one['only_classes'])}" if one["only_classes"] else "",
        ]
        for one in found["partners"]
    ]


def remarks(found: dict[str, Any]) -> list[str]:
    """What the numbers mean, and what cannot be said, in lines."""
    return [line for text in _remarks(found) for line in textwrap.wrap(text, LINE_CHARS, subsequent_indent="  ")]


def _remarks(found: dict[str, Any]) -> list[str]:
    partners = len(found["partners"])
    lines = [f"not used: {one['origin']}: {one['reason']}" for one in found["left_out"]]
    if partners == 1:
        return [*lines, "With one partner there is nobody to score a model on: ask again when a second has published."]
    lines.append(
        "In points of 100: how much of the differences between other partners' rows a model explains; a model that "
        "knows nothing but how common each answer is has 0, a perfect one 100."
    )
    if partners == 2:
        return [*lines, "Two partners: what one adds to the other is what it explains alone. A third makes the rest."]
    lines.append(
        "adds: what is lost without the partner; alone: what its own summary explains of all others. ± is the "
        "privacy noise in what they are scored on: an estimate within two ± of 0 is not to be told from nothing."
    )
    if found["together"]:
        lines.append(f"A model of all partners explains {_points(found['together'])} of a partner that took no part.")
    return lines


def plot(found: dict[str, Any], path: Path) -> None:
    """Bars of what each partner adds, with two deviations of noise; UsageError without matplotlib."""
    check_plot(path)
    from matplotlib.figure import Figure

    partners = found["partners"][::-1]
    fields = [field for field in PANELS if any(one[field] for one in partners)]
    if not fields:
        raise UsageError("With one partner there is nothing to draw: ask again when a second has published.")
    figure = Figure(figsize=(2.6 + 3.6 * len(fields), 1.5 + 0.3 * len(partners)), layout="constrained")
    grid = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for axes, field in zip(grid, fields, strict=True):
        _draw(axes, PANELS[field], [one[field] for one in partners])
    labels = [f"{one['origin']}  ({max(one['rows'], 0.0):,.0f} rows, ε {_span(one['epsilons'])})" for one in partners]
    grid[0].set_yticks(range(len(partners)), labels, fontsize=8)
    figure.suptitle(f"Contributions to {found['task']}", x=0.01, ha="left", fontsize=11)
    figure.supxlabel(
        "points of variation explained; lines: ± 2 deviations of privacy noise; pale: not to be told from nothing",
        fontsize=8,
    )
    figure.savefig(path, dpi=150)


def _draw(axes: Any, title: str, estimates: list[dict[str, float] | None]) -> None:
    """One bar a partner: pale where it is not to be told from nothing, of another color where it is clearly a loss."""
    shown = [one or {"value": 0.0, "std": 0.0} for one in estimates]
    values = [max(100 * one["value"], LEAST_POINTS) for one in shown]
    noise = [200 * one["std"] for one in shown]
    pairs = zip(values, noise, strict=True)
    colors = [GAIN if value > spread else LOSS if value < -spread else UNCLEAR for value, spread in pairs]
    axes.barh(range(len(shown)), values, height=0.62, color=colors, zorder=2)
    axes.errorbar(
        values, range(len(shown)), xerr=noise, fmt="none", ecolor="#333333", elinewidth=1, capsize=2, zorder=3
    )
    axes.axvline(0.0, color="#333333", linewidth=0.8, zorder=1)
    axes.set_title(title, loc="left", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.6, zorder=0)
    axes.margins(y=0.02)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def check_plot(path: Path) -> None:
    """UsageError, before anything is computed, for a picture that cannot be drawn."""
    try:
        import matplotlib as _  # noqa: F401 - only whether it is there
    except ImportError:
        raise UsageError("A plot needs matplotlib: install tidings[plot], or use --json.") from None
    if path.suffix.lower() not in PLOT_ENDINGS:
        raise UsageError(f"{path} has no known ending; a plot is FILE.png, FILE.pdf or FILE.svg.")


def _as_json(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {"value": estimate.value, "std": estimate.std}


def _points(estimate: dict[str, float] | None) -> str:
    """In points of 100; below 0 a model is worse than base rates, and how much worse says nothing."""
    if estimate is None:
        return "-"
    value, std = 100 * estimate["value"], 100 * estimate["std"]
    return f"{value:.1f} ± {std:.1f}" if value > -100 else "below -100"


def _span(epsilons: list[float | None]) -> str:
    """`1`, or `0.5 to 2` for several summaries; `none` for exact sums."""
    known = sorted({epsilon for epsilon in epsilons if epsilon is not None})
    if not known:
        return "none"
    return f"{known[0]:g}" if len(known) == 1 else f"{known[0]:g} to {known[-1]:g}"
