"""Run benchmarks and write RESULTS.md: figures, the machine, the command, and what they are compared with.

`python -m benchmarks` runs them all; `python -m benchmarks adult` runs that one. Other sections stay as they are, among
them the one about `make soak`, which is written by hand.

`python -m benchmarks --quick` runs the same code on less, in minutes, and writes build/bench/RESULTS.md: it shows that
everything runs and is roughly where it should be.

A benchmark is a module of this package with `run(out)` and, if it takes long, `quick(out)`. Both return a section of
Markdown (`## heading` first) and put pictures into `out`, which is `plots` beside the page. Give it a line in MODULES.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
QUICK_OUT = HERE.parent / "build" / "bench"
MODULES = (
    "cost",
    "sealing",
    "goodput",
    "flood",
    "noise",
    "scaling",
    "heart",
    "adult",
    "federated_adult",
    "fashion_mnist",
    "fashion_peers",
    "synthesize",
    "fashion_backbone",
    "kinds",
    "model_kind",
    "wisdm",
    "diabetes",
    "regression",
    "sentiment",
    "taiwan",
    "robust",
    "traffic",
    "reconciliation",
    "gossip",
)
INTRODUCTION = (
    "# Results\n\nWritten by `make bench`, each section on the day and machine in its last line. Absolute times depend "
    "on the machine; ratios were measured in one run, side by side.\n"
)
QUICK_INTRODUCTION = (
    "# Quick results\n\nWritten by `make bench-quick` from less of everything: nothing here is a claim.\n"
)


def main(words: list[str]) -> None:
    """Each benchmark returns a section of Markdown, replaced by its heading; pictures go beside it."""
    quick, names = "--quick" in words, [word for word in words if word != "--quick"]
    unknown = set(names) - set(MODULES)
    if unknown:
        sys.exit(f"There is no benchmark {', '.join(sorted(unknown))}; choose from {', '.join(MODULES)}.")
    folder = QUICK_OUT if quick else HERE
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    page = folder / "RESULTS.md"
    introduction = QUICK_INTRODUCTION if quick else INTRODUCTION
    for name in names or MODULES:
        text = _run(name, folder / "plots", quick=quick)
        if quick:
            print(text, flush=True)
        # read again each time: another run may have written its section meanwhile
        sections = _sections(page.read_text(encoding="utf-8")) if page.exists() else {}
        sections |= _sections(text)
        page.write_text("\n".join([introduction, *sections.values()]), encoding="utf-8")


def _run(name: str, plots: Path, *, quick: bool) -> str:
    """The section of one benchmark with its last line; empty where it has nothing quick."""
    started = time.monotonic()
    module = importlib.import_module(f"benchmarks.{name}")
    run = getattr(module, "quick", None) if quick else module.run
    if run is None:
        return ""
    print(f"{name} ...", file=sys.stderr, flush=True)
    text = run(plots)
    took_s = time.monotonic() - started
    print(f"  {took_s:.0f} s", file=sys.stderr, flush=True)
    return f"{text}\n{_colophon(name, took_s, quick=quick)}"


def _sections(text: str) -> dict[str, str]:
    """Heading -> section, in the order of the text; what stands above the first heading is left out."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0]: part.rstrip("\n") + "\n" for part in parts}


def _colophon(name: str, took_s: float, *, quick: bool = False) -> str:
    command = f"python -m benchmarks {'--quick ' if quick else ''}{name}"
    return (
        f"*`{command}`, {datetime.now(UTC):%Y-%m-%d}, {took_s:.0f} s; Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}.*\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
