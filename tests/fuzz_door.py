"""Coverage-guided fuzzing of one door with Atheris (libFuzzer), in a process of its own.

    python -m tests.fuzz_door DOOR [libFuzzer options] [corpus folder]    fuzz; `-runs=1000000 -seed=1`
    python -m tests.fuzz_door DOOR --replay FILE                          one input, with its traceback

A finding is an error that the door does not declare, more memory than it states (RLIMIT_AS), more time, or a crash of
what is below Python. libFuzzer then writes the input to `crash-...` (`-artifact_prefix=`); replay it, fix the code, and
put it into tests/vectors/findings/DOOR/, which every later run begins with.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.doors import DOORS, Door, Read, opened_by, outcome
from tests.vector_files import inputs_of

SCRATCH = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder of our own is made in it
MUTATED = 0.7  # the rest is for libFuzzer's own mutations of the whole


def main(arguments: list[str]) -> None:
    door = DOORS[arguments[0]]
    with tempfile.TemporaryDirectory(prefix=f"tidings-fuzz-{door.name}-", dir=SCRATCH) as scratch:
        if arguments[1:2] == ["--replay"]:
            print(*outcome(door, door.open(Path(scratch)), Path(arguments[2]).read_bytes()), sep=": ")
        else:
            _fuzz(door, Path(scratch), arguments[1:])


def _fuzz(door: Door, scratch: Path, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=[*door.instrument], enable_loader_override=False):
        opened_by(door)
        read = door.open(scratch)
        _warm_up(door, read)
    seeds = scratch / "seeds"
    seeds.mkdir()
    for name, data in inputs_of(door.name):
        if len(data) <= door.max_bytes:
            (seeds / name).write_bytes(data)
    arguments = [
        sys.argv[0],
        f"-max_len={door.max_bytes}",
        f"-timeout={door.seconds}",
        "-rss_limit_mb=0",  # RLIMIT_AS is the limit: it holds for one input, at once
        "-print_final_stats=1",
        *options,
        str(seeds),
    ]
    atheris.Setup(
        arguments, lambda data: _one(door, read, data), **_mutating(door, lambda part, most: atheris.Mutate(part, most))
    )
    _bound_memory(door.memory_mb)
    atheris.Fuzz()


def _one(door: Door, read: Read, data: bytes) -> None:
    outcome(door, read, data)


def _warm_up(door: Door, read: Read) -> None:
    """So that what is imported at first use is instrumented, and counted before memory is bounded."""
    for _, data in inputs_of(door.name):
        if len(data) <= door.max_bytes:
            outcome(door, read, data)


def _mutating(door: Door, by_bytes: Callable[[bytes, int], bytes]) -> dict[str, Callable[[bytes, int, int], bytes]]:
    if door.mutate is None:
        return {}
    mutate = door.mutate

    def custom(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)  # noqa: S311 - not for secrets

        def change(part: bytes) -> bytes:
            return bytes(by_bytes(part, max(len(part) + 16, 32)))

        if rng.random() < MUTATED:
            try:
                changed = mutate(bytes(data), change, rng)
                if len(changed) <= most:
                    return changed
            except Exception:  # noqa: BLE001, S110 - this input is no such thing: bytes will do
                pass
        return bytes(by_bytes(data, most))

    return {"custom_mutator": custom}


def _bound_memory(megabytes: int) -> None:
    """No input may take more than this beyond what the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(sys.argv[1:])
