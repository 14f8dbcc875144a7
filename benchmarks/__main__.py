"""Run every benchmark and write RESULTS.md: figures, the machine, the command, and what they are compared with."""

from __future__ import annotations

import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import cost, heart, noise, sealing

HERE = Path(__file__).parent


def main() -> None:
    """Each benchmark returns a section of Markdown; pictures go beside it."""
    sections = [
        "# Results\n\n"
        f"Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}: Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, {platform.machine()}. Absolute times depend on the machine; ratios were measured in "
        "one run, side by side.\n"
    ]
    for benchmark in (cost, sealing, noise, heart):
        started = time.monotonic()
        print(f"{benchmark.__name__} ...", file=sys.stderr, flush=True)
        sections.append(benchmark.run(HERE))
        print(f"  {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    (HERE / "RESULTS.md").write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
