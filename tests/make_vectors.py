"""Writes the golden files of `vector_cases` into tests/vectors: `python -m tests.make_vectors [DOOR ...]`.

A case that does not come out as it says stops this; so does a file that would change, unless `--again` says that the
format itself changed. Golden bytes are promises: later releases must read and refuse as these say.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import tempfile
from pathlib import Path

import tests.vector_cases
from tests.doors import DOORS, outcome
from tests.vector_cases import Cases
from tests.vector_files import Vector, path_of, read, write

THEIRS = ("this is not valid TOML:",)
"""Where a sentence goes on in the words of a library, which change with its version."""


def all_cases() -> dict[str, Cases]:
    """Of every door."""
    found: dict[str, Cases] = {}
    for module in pkgutil.iter_modules(tests.vector_cases.__path__):
        cases = importlib.import_module(f"tests.vector_cases.{module.name}").CASES
        for door, named in cases.items():
            found[door] = found.get(door, {}) | named
    return found


def file_name(case: str) -> str:
    """What the file of a case is called."""
    return re.sub(r"[^a-z0-9.]+", "-", case.lower()).strip("-")


def made(door_name: str, cases: Cases) -> list[Vector]:
    """The golden files of one door; ValueError where a case does not come out as it says."""
    door = DOORS[door_name]
    vectors, wrong = [], []
    with tempfile.TemporaryDirectory() as scratch:
        read_door = door.open(Path(scratch))
        for name, (data, words) in cases.items():
            error, says = outcome(door, read_door, data)
            says = says.replace(scratch, "FOLDER")
            if (error == "accepted") != (not words) or words not in says:
                wrong.append(f"{door_name}, {name}: {error}: {says!r} where {words!r} is expected")
            theirs = next((one for one in THEIRS if one in says), None)
            says = says if theirs is None else says[: says.index(theirs) + len(theirs)]
            about = f"Good: {name.removeprefix('good-').replace('-', ' ')}." if not words else f"Wrong: {name}."
            vectors.append(Vector(door_name, file_name(name), about, data, error, says, theirs is not None))
    if wrong:
        raise ValueError("\n".join(wrong))
    return vectors


def main(arguments: list[str]) -> None:
    again = "--again" in arguments
    wanted = [one for one in arguments if one != "--again"]
    for door, cases in all_cases().items():
        if wanted and door not in wanted:
            continue
        vectors = made(door, cases)
        for vector in vectors:
            path = path_of(vector)
            if path.exists() and not again and read(path) != vector:
                raise SystemExit(f"{path} would change; say --again if the format did")
            write(vector)
        for path in path_of(vectors[0]).parent.glob("*.json"):
            if again and path.stem not in {vector.name for vector in vectors}:
                path.unlink()
        print(f"{door}: {len(vectors)}")


if __name__ == "__main__":
    main(sys.argv[1:])
