"""Whether a summary that can be read is one that models take, for listings: no model is made here.

Loads what decodes summaries, which a listing without any does not need: import it where there is one.
"""

from __future__ import annotations

from fusion.errors import SummaryError
from fusion.fuse import Sums, problem
from fusion.summary import Decoder
from fusion.task import Task


class Checks:
    """The checks of one accepted task."""

    def __init__(self, canonical: bytes) -> None:
        self._task = Task.from_canonical(canonical)
        self._decoder = Decoder(self._task)

    def problem(self, body: bytes) -> str:
        """Why the summary in these bytes is quarantined, in words; empty if it is not."""
        try:
            reason = problem(self._task, Sums.of(self._decoder.read(body)))
        except SummaryError as error:
            reason = str(error)
        return f"quarantined: {reason}" if reason else ""
