"""Run benchmarks and write RESULTS.md: figures, the machine, the command, and what they are compared with.

`python -m benchmarks` runs them all; `python -m benchmarks adult` runs that one. Other sections stay as they are, among
them the one about `make soak`, which is written by hand.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import adult, cost, heart, kinds, noise, sealing

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
BENCHMARKS = {"cost": cost, "sealing": sealing, "noise": noise, "heart": heart, "adult": adult, "kinds": kinds}
INTRODUCTION = (
    "# Results\n\nWritten by `make bench`, each section on the day and machine in its last line. Absolute times depend "
    "on the machine; ratios were measured in one run, side by side.\n"
)


def main(names: list[str]) -> None:
    """Each benchmark returns a section of Markdown, replaced by its heading; pictures go beside it."""
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"There is no benchmark {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}.")
    sections = _sections(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in names or BENCHMARKS:
        started = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        text = BENCHMARKS[name].run(HERE)
        took_s = time.monotonic() - started
        print(f"  {took_s:.0f} s", file=sys.stderr, flush=True)
        sections |= _sections(f"{text}\n{_colophon(name, took_s)}")
        RESULTS.write_text("\n".join([INTRODUCTION, *sections.values()]), encoding="utf-8")


def _sections(text: str) -> dict[str, str]:
    """Heading -> section, in the order of the text; what stands above the first heading is left out."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0]: part.rstrip("\n") + "\n" for part in parts}


def _colophon(name: str, took_s: float) -> str:
    return (
        f"*`python -m benchmarks {name}`, {datetime.now(UTC):%Y-%m-%d}, {took_s:.0f} s; Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}.*\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
