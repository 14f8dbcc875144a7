"""Finding which origins differ between two nodes: bytes, messages and CPU of a list, of ranges, of what changed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from node import wire
from node.config import MAX_ORIGINS, GossipSettings
from node.frames import Digest, Frame, Origins, Spans
from node.gossip.reconcile import Index

SIZES = (100, 1_000, 10_000)
SHARES = (0.01, 0.1, 1.0)
THRESHOLDS = (16, 32, 64, 128, 256)
EVERYTHING = 1 << 30
RUNS = 5
LINE_BYTES_S = 8_000  # 64 kbit/s
ONE_WAY_S = 0.1
SETTINGS = GossipSettings()


@dataclass(frozen=True)
class Cost:
    """What it took until one side knew all origins that differ."""

    size: int
    messages: int
    cpu_s: float

    @property
    def thin_line_s(self) -> float:
        """On a line of 64 kbit/s with 100 ms one way."""
        return self.size / LINE_BYTES_S + self.messages * ONE_WAY_S


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(SIZES, RUNS)


def quick(_out: Path) -> str:
    """Without the largest coalition, once."""
    return _section(SIZES[:2], 1)


def _section(sizes: tuple[int, ...], runs: int) -> str:
    rows = []
    for n in sizes:
        for changed in _changes(n):
            listed, ranges, since = (
                _measure(n, changed, method, runs)
                for method in (_full(EVERYTHING), _full(SETTINGS.list_origins), _since_common)
            )
            rows.append(f"| {n:,} | {changed:,} | {_cell(listed)} | {_cell(ranges)} | {_cell(since)} |")
    return (
        "## Finding which origins differ\n\n"
        "| origins | changed | one list of all | ranges | since the common digest |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
        "Bytes of both sides, one-way messages and CPU time of both sides until one side knows every origin of which "
        "the other has something else; the changes lie evenly on both sides. A dash: more has changed than is worth a "
        f"list, so ranges are compared. Medians of {runs}.\n\n{_thresholds(sizes[-1], runs)}"
    )


def _thresholds(largest: int, runs: int) -> str:
    """What is lost on a thin line by listing too much, and by dividing once more."""
    sizes = [n for n in (30, 60, 120, 250, 500, 1_000, 2_000, 5_000, 10_000) if n <= largest]
    lines = []
    for changed_share in (0.0, 0.1, 1.0):
        for n in sizes:
            changed = max(1, round(n * changed_share))
            costs = [_measure(n, changed, _full(threshold), runs) for threshold in THRESHOLDS]
            cells = " | ".join(f"{cost.thin_line_s:.2f}" for cost in costs)
            lines.append(f"| {n:,} | {changed:,} | {cells} |")
    head = " | ".join(f"≤ {threshold}" for threshold in THRESHOLDS)
    return (
        f"Seconds on a line of 64 kbit/s with 100 ms one way, if ranges of up to so many origins are listed:\n\n"
        f"| origins | changed | {head} |\n| --- | --- |{' --- |' * len(THRESHOLDS)}\n" + "\n".join(lines) + "\n"
    )


def _changes(n: int) -> list[int]:
    return sorted({1, *(max(1, round(n * share)) for share in SHARES)})


def _cell(cost: Cost | None) -> str:
    return "–" if cost is None else f"{cost.size:,} B, {cost.messages}, {1e3 * cost.cpu_s:.1f} ms"


Method = Callable[[Index, Index, bytes], tuple[int, int] | None]


def _measure(n: int, changed: int, method: Method, runs: int) -> Cost | None:
    """The cost of one method for a pair that was equal before so many origins changed."""
    times: list[float] = []
    found: tuple[int, int] | None = None
    for seed in range(runs):
        rng = random.Random(seed)  # noqa: S311 - chooses what changes, keeps no secret
        origins = [rng.randbytes(32) for _ in range(n)]
        pair = Index(SETTINGS), Index(SETTINGS)
        for index in pair:
            index.trust(frozenset(origins))
            for origin in origins:
                index.settle(origin, bytes(8), 1, origin)
        common, _ = pair[0].mark(), pair[1].mark()
        for number, origin in enumerate(rng.sample(origins, changed)):
            pair[number % 2].settle(origin, bytes(8), 2, rng.randbytes(32))
        began = time.process_time()
        found = method(*pair, common)
        times.append(time.process_time() - began)
    return None if found is None else Cost(*found, median(times))


def _full(list_origins: int) -> Method:
    """Everything is compared: as a list, or by range where there are more than so many."""
    settings = replace(SETTINGS, list_origins=list_origins)

    def compare(ours: Index, theirs: Index, _common: bytes) -> tuple[int, int]:
        ours._settings = theirs._settings = settings
        size = _size(Digest(ours.root()))
        opening = theirs.opening()
        if isinstance(opening, Origins):
            ours.differing(opening)
            return size + sum(map(_size, _parts(opening))), 2
        here, there, spans, messages = ours, theirs, opening, 2
        size += _size(spans)
        while True:
            closer, few, _vectors = here.narrow(spans)
            lists = [Origins(tuple(here.listed(prefix)), (prefix,)) for prefix in few]
            for listed in lists:
                there.differing(listed)
            size += sum(map(_size, lists))
            messages += bool(lists or closer)
            if not closer:
                return size, messages
            spans = Spans(tuple(closer))
            size += _size(spans)
            here, there = there, here

    return compare


def _since_common(ours: Index, theirs: Index, common: bytes) -> tuple[int, int] | None:
    answer = theirs.changes(common)
    if answer is None:
        return None
    ours.differing(answer)
    return _size(Digest(ours.root(), common)) + _size(answer), 2


def _parts(listed: Origins) -> list[Origins]:
    """A list in frames."""
    digests = listed.digests
    return [Origins(digests[start : start + MAX_ORIGINS]) for start in range(0, len(digests), MAX_ORIGINS)]


def _size(frame: Frame) -> int:
    return len(wire.encode(frame))
