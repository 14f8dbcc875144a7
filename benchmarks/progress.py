"""A line on standard error for every step of a long benchmark."""

from __future__ import annotations

import sys
import time


class Progress:
    """Says what is done, and how long ago the benchmark began."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"  [{self._name} {time.monotonic() - self._started:6.0f} s] {text}", file=sys.stderr, flush=True)
