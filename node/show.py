"""What people see: tables, JSON, progress. Rich loads only when something is drawn."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

MAX_CELL = 24


def line(text: str = "") -> None:
    """One line on stdout."""
    print(text)


def note(text: str) -> None:
    """One line on stderr: progress and remarks, never results."""
    print(text, file=sys.stderr, flush=True)


def as_json(content: object) -> None:
    """The same content for programs."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """A table, 120 columns wide where the output is no terminal; `empty` is what to say if there are no rows."""
    if not rows:
        line(empty)
        return
    from rich import box
    from rich.table import Table

    drawn = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
    console().print(drawn)


def told(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> list[str]:
    """One line for each row, under a line of headings; `empty` is what to say if there are no rows.

    The last cell says why; it is `fitted` where a table would break the line.
    """
    if not rows:
        return [empty]
    short = [[_cut(cell, MAX_CELL) for cell in row[:-1]] for row in (columns, *rows)]
    widths = [max(map(len, cells)) for cells in zip(*short, strict=True)]
    lines = []
    for cells, row in zip(short, (columns, *rows), strict=True):
        head = "".join(f"{cell:{width}}  " for cell, width in zip(cells, widths, strict=True))
        lines.append(fitted(head, row[-1]).rstrip())
    return lines


def fitted(head: str, reason: str) -> str:
    """A line that ends with a reason. That is made of clauses, divided by `; `, the one that matters most first: on a
    narrow terminal the last ones go."""
    clauses = reason.split("; ")
    while len(clauses) > 1 and len(head) + len("; ".join(clauses)) > console().width:
        clauses.pop()
    return head + "; ".join(clauses)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def console() -> Console:
    """Where results are drawn; 120 columns wide where there is no terminal to ask."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress line on stderr: gives a function that takes how much is done. Silent where there is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """`1,234 rows/s`, over the last half minute."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} " + unit), Rate())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(what, total=None)
        yield lambda done: drawn.update(task, completed=done)


@contextmanager
def moving(what: str) -> Iterator[Callable[[float, float], None]]:
    """A progress line on stderr for something with a clock of its own: gives a function that takes that clock's seconds
    and the share that is done. Silent where there is no terminal."""
    if not sys.stderr.isatty():
        yield lambda at_s, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(what, total=1.0)
        yield lambda at_s, share: drawn.update(task, completed=share, description=f"{what}, {at_s:,.0f} s")


def duration(seconds: float) -> str:
    """A length of time as people say it: `12 s`, `3 h`, `10 years`; 0 s at least."""
    whole = max(0, round(seconds))
    for size, name in ((31_556_952, "years"), (86_400, "days"), (3_600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{round(whole / size):,} {name}"
    return f"{whole} s"


def ago(unix_s: float, now_s: float) -> str:
    """A moment as people say it: `12 s ago`."""
    return f"{duration(now_s - unix_s)} ago"


def one_line(text: str, most: int = 200) -> str:
    """Words from outside as a terminal may show them: printable, without line breaks, not too long."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:most]).strip()


def moment(unix_s: float) -> str:
    """A moment in UTC, to the second."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def counted(count: int, what: str) -> str:
    """`1 signature`, `3 signatures`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def summaries(count: int) -> str:
    """`1 summary`, `3 summaries`."""
    return f"{count:,} {'summary' if count == 1 else 'summaries'}"


def size(count: float) -> str:
    """Bytes for people: `13.4 kB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
