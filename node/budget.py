"""The privacy budget as its steward sees and changes it: statement, raise, plot, and accepting a roll-back.

What is spent is decided in `fusion.ledger`; here it is read, and what the steward decides is written down and told to
peers in a HEAD.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node import heads
from node.errors import UsageError
from node.home import Home
from node.show import moment

if TYPE_CHECKING:
    from fusion.ledger import BudgetMoment
    from fusion.parts import Part


def statement(home: Home, dataset: str | None = None) -> list[dict[str, Any]]:
    """What was spent of each dataset, on what and when, and what is left; empty before the first release."""
    if not home.has_ledger:
        return []
    ledger = home.ledger()
    names = {task.task_id: task.name for task in home.store.tasks()}
    accounts = []
    for account in ledger.statement(dataset):
        history = ledger.history(account.dataset)
        after = {one.release_id: one for one in history if one.release_id}
        accounts.append(
            {
                "dataset": account.dataset,
                "cap_epsilon": account.cap_epsilon,
                "spent_epsilon": account.spent_epsilon,
                "left_epsilon": account.left_epsilon,
                "delta": account.delta,
                "accountant": account.accountant,
                "parts": [
                    {"part": one.part, "spent_epsilon": one.spent_epsilon, "left_epsilon": one.left_epsilon}
                    for one in account.parts
                ],
                "releases": [
                    {
                        "task": entry.task_id.hex(),
                        "task_name": names.get(entry.task_id, entry.note),
                        "part": entry.part,
                        "epsilon": entry.epsilon,
                        "delta": entry.delta,
                        "state": entry.state.lower(),
                        "record": entry.record_id.hex() if entry.record_id else None,
                        "at": moment(entry.created_s),
                        "spent_epsilon_after": after[entry.release_id].spent_epsilon,
                    }
                    for entry in account.entries
                ],
                "changes": [
                    {"at": moment(one.created_s), "what": one.what, "cap_epsilon": one.cap_epsilon,
                     "spent_epsilon": one.spent_epsilon}
                    for one in history if one.what != "release"
                ],
            }
        )  # fmt: skip
    return accounts


def left_epsilon(home: Home, dataset: str, part: Part | None) -> float | None:
    """The largest epsilon of one more release about this part (or the whole dataset); None before its first use."""
    return home.ledger().left_epsilon(dataset, part) if home.has_ledger else None


def raise_cap(home: Home, dataset: str, cap_epsilon: float) -> None:
    """Lift the lifetime cap of a dataset, on record, and tell peers; BudgetError unless it is a raise."""
    ledger = home.ledger()
    heads.refuse_if_behind(home, ledger)
    ledger.raise_cap(dataset, cap_epsilon)
    heads.tell(home, ledger)


def accept_rollback(home: Home) -> list[dict[str, Any]]:
    """Charge what another copy of this node spent; returns each dataset with what is left of it."""
    ledger = home.ledger()
    burned = [ledger.dataset_of(total.tag) for total in heads.accept_rollback(home, ledger)]
    accounts = {account.dataset: account for account in ledger.statement()}
    return [
        {
            "dataset": dataset,
            "spent_epsilon": accounts[dataset].spent_epsilon if dataset else None,
            "left_epsilon": accounts[dataset].left_epsilon if dataset else None,
        }
        for dataset in burned
    ]


def plot(home: Home, dataset: str | None, path: Path) -> None:
    """A picture of what was spent of each dataset over time, against its cap; UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("A plot needs matplotlib: install tidings[plot], or use --json.") from None
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UsageError(f"{path} has no known ending; a plot is FILE.png, FILE.pdf or FILE.svg.")
    ledger = home.ledger()
    histories = {one.dataset: ledger.history(one.dataset) for one in ledger.statement(dataset)}
    if not histories:
        raise UsageError("Nothing was spent yet, so there is nothing to plot.")
    figure = Figure(figsize=(8, 2.8 * len(histories)), layout="constrained")
    grid = figure.subplots(len(histories), squeeze=False)
    for axes, (name, history) in zip(grid[:, 0], histories.items(), strict=True):
        _draw(axes, name, history)
    figure.savefig(path, dpi=150)


def _draw(axes: Any, dataset: str, history: list[BudgetMoment]) -> None:
    now = datetime.now(UTC)
    times = [datetime.fromtimestamp(one.created_s, UTC) for one in history]
    spent, caps = [one.spent_epsilon for one in history], [one.cap_epsilon for one in history]
    axes.step([times[0], *times, now], [0.0, *spent, spent[-1]], where="post", color="tab:blue", label="spent")
    axes.step([*times, now], [*caps, caps[-1]], where="post", color="tab:red", linestyle="--", label="cap")
    releases = [(at, one.spent_epsilon) for at, one in zip(times, history, strict=True) if one.what == "release"]
    axes.plot(*zip(*releases, strict=True), "o", color="tab:blue", markersize=4)
    axes.set_title(f"dataset {dataset}: epsilon {spent[-1]:.3f} of {caps[-1]:g} spent", loc="left", fontsize=10)
    axes.set_ylim(0, 1.15 * max(*spent, *caps))
    axes.set_ylabel("epsilon")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=8)
    axes.set_xlabel("UTC", fontsize=8)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
