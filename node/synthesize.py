"""Synthetic rows from the summaries held here, as a file: what `synthesize` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.errors import UsageError
from node.files import written_whole
from node.frames import Query
from node.home import Home
from node.query import fusable
from node.show import size, summaries
from node.tasks import find

if TYPE_CHECKING:
    from fusion.dataset import Batch

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Synthesized:
    """A file of synthetic rows."""

    path: Path
    rows: int
    summaries: int

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"file": str(self.path), "rows": self.rows, "summaries": self.summaries}

    def describe(self) -> str:
        """For people."""
        return (
            f"{self.path} ({size(self.path.stat().st_size)}): {self.rows:,} synthetic rows from "
            f"{summaries(self.summaries)}. They cost no budget, and no row is anybody's."
        )


def synthesize_file(
    home: Home, query: Query, rows: int, output: Path, seed: int | None, progress: Callable[[int], None]
) -> Synthesized:
    """Write `rows` rows in the task's columns, whole or not at all; the same summaries and seed give the same file."""
    from fusion.synthesize import sampler_of
    from fusion.table_files import SUFFIXES, write_rows

    if output.suffix not in SUFFIXES:
        raise UsageError(f"{output} has no known ending; rows are written to FILE{' or FILE'.join(SUFFIXES)}.")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise UsageError(f"A seed is a whole number from 0 to {MAX_SEED}.")
    task = find(home, query.task_id.hex())
    sampler = sampler_of(task, fusable(home, task, query).usable, seed)
    batches = sampler.batches(rows)
    with written_whole(output, "wb") as file:
        written = write_rows(file, output.suffix, task, _told(batches, progress))
    return Synthesized(output, written, sampler.summaries)


def _told(batches: Iterable[Batch], progress: Callable[[int], None]) -> Iterator[Batch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        progress(done)
