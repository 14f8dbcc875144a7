"""Golden files: every door still refuses and accepts what it did, in the same words, and every refusal has its file."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import sys
import tempfile
import tracemalloc
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from node.pb import tidings_pb2 as pb
from node.records import RULES, Kind, Payload
from tests.doors import ALL, DOORS, Door, Read, opened_by, outcome
from tests.vector_files import Vector, findings_of, vectors_of

REPOSITORY = Path(__file__).parent.parent
REFUSERS = ("fail", "_fail", "_refuse", "_damaged")
"""Functions of the product that raise what a decoder refuses with."""

OUT_OF_REACH = {
    # words of a refusal: why no bytes lead to it
    "A record is signed by its origin": "a record of our own",
    "identity is another": "a record of our own",
    "has another identity since": "a keystore that was replaced while this program ran",
    "never leaves its process": "a summary of our own",
    "name fewer columns in the task": "a summary of our own",
    "raise BudgetError": "`_replan` makes a SummaryError of it, which has files",
    "raise damaged": "what the decompressor should have refused itself",
    "which have no scale": "asked of no model that is read",
    "symmetric key is exactly": "a key of our own",
    "a chunk holds at least": "our own chunks",
    "wrapped stream key is": "a bundle is read in pieces of that size",
    "is text: ": "a value of a file, which is no text; a keystore has it",
    "free memory": "the machine's, not the file's",
    "_not_written": "writing",
    "already a keystore": "writing",
    "the most it can": "writing",
    "became another node's": "writing",
    "another node's than the keys": "two sources of keys",
    "not the passphrase": "a typed passphrase; tests/test_keystore.py",
    "names other keys than it holds": "needs the passphrase; tests/test_keystore.py",
    "KeystoreLocked": "nobody to ask for a passphrase",
    "no keystore at": "no file",
    "check its owner and permissions": "no access",
    "check its permissions": "no access",
    "check the path": "no file",
    "pip install": "a library that is not installed",
    "holds pictures, and": "a task without pictures",
    "holds pictures and labels alone": "a task with more than pictures",
    "cannot hold the pictures": "a task with pictures",
    "files of labels are named for": "how many files are named",
    "is not accepted by version": "every kind of today has its rules",
    "What the store kept": "a row of our own; tests/test_roster_follow.py",
    "is none of its administrators": "version 1 as the first one; tests/test_roster.py",
    "another coalition's": "versions together; tests/test_roster.py",
    "does not follow version": "versions together; tests/test_roster.py",
    "is an administrator neither": "versions together; tests/test_roster.py",
    "another coalition than": "versions together; tests/test_roster.py",
    "not newer than the first": "versions together; tests/test_roster.py",
    "self._gap(roster)": "versions together; tests/test_roster.py",
    "one more proves no more": "versions together; tests/test_roster.py",
    "leave the roster as it is": "a roster of our own",
    "This roster has": "a roster of our own",
    "These versions have": "a file of our own",
    "larger than a roster file": "a golden file of 32 MiB",
    "a task file of over": "`read_file` looks at the size first; tests/test_task.py",
}


@functools.cache
def opened(name: str) -> tuple[Read, str]:
    """The door, and the folder that its sentences may name."""
    folder = tempfile.mkdtemp(prefix="tidings-vectors-")
    return DOORS[name].open(Path(folder)), folder


def came_of(door: Door, data: bytes) -> tuple[str, str]:
    read, folder = opened(door.name)
    error, says = outcome(door, read, data)
    return error, says.replace(folder, "FOLDER")


VECTORS = [vector for door in ALL for vector in vectors_of(door.name)]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector.door}-{vector.name}")
def test_a_golden_input_still_means_what_it_meant(vector: Vector) -> None:
    error, says = came_of(DOORS[vector.door], vector.data)
    assert vector.meets(error, says), (error, says)


@pytest.mark.parametrize("door", ALL, ids=lambda door: door.name)
def test_inputs_that_once_broke_a_door_are_refused_or_accepted_like_others(door: Door) -> None:
    for path in findings_of(door.name):
        came_of(door, path.read_bytes())


@pytest.mark.parametrize("door", ALL, ids=lambda door: door.name)
def test_every_door_has_good_and_wrong_inputs(door: Door) -> None:
    errors = [vector.error for vector in vectors_of(door.name)]
    assert "accepted" in errors
    assert {error for error in errors if error != "accepted"} <= set(door.errors)
    assert callable(opened_by(door))


def test_the_issue_is_met_a_hundred_files_and_every_kind_that_it_names() -> None:
    named = {
        "header": "record",
        "body": "sealed-body",
        "frame": "frame",
        "bundle": "bundle",
        "key card": "key-card",
        "grant": "key-grant",
        "roster": "roster",
        "task": "task",
        "model file": "model-file",
    }
    wrong = {name: [one for one in vectors_of(door) if one.error != "accepted"] for name, door in named.items()}
    assert min(len(one) for name, one in wrong.items()) >= 3
    assert sum(map(len, wrong.values())) >= 100


def test_every_kind_of_frame_record_and_payload_has_a_good_golden_file() -> None:
    good = {door: [one for one in vectors_of(door) if one.error == "accepted"] for door in ("frame", "record")}
    frames = {pb.Frame.FromString(one.data).WhichOneof("frame") for one in good["frame"]}
    assert frames >= {field.name for field in pb.Frame.DESCRIPTOR.fields}
    headers = [pb.SignedRecord.FromString(one.data).header for one in good["record"]]
    assert {Kind(pb.Header.FromString(header).kind) for header in headers} == set(RULES)
    payloads = {kind.label for kind, rule in RULES.items() if rule.payload is not Payload.NONE}
    assert payloads <= set(DOORS)


def test_no_sentence_of_a_refusal_breaks_a_line_or_a_terminal() -> None:
    for vector in VECTORS:
        if vector.error != "accepted":
            assert vector.says.isprintable(), vector.name


@pytest.mark.parametrize("door", ALL, ids=lambda door: door.name)
def test_no_golden_input_takes_more_memory_than_its_door_states(door: Door) -> None:
    """As far as Python and NumPy allocate; what is below them is bounded when fuzzed (`fuzz_door`)."""
    vectors = vectors_of(door.name)
    for vector in vectors[:2]:
        came_of(door, vector.data)  # what is imported or cached at first use
    tracemalloc.start()
    try:
        for vector in vectors:
            if len(vector.data) > 2**18:
                continue  # slow to trace: the few long ones were measured by hand, see docs/decoders.md
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            came_of(door, vector.data)
            assert tracemalloc.get_traced_memory()[1] - before <= door.memory_mb * 2**20, vector.name
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------- every refusal has its file


def refusals(module: str) -> dict[int, str]:
    """Line -> text of every place in a module that refuses: a `raise` of something new, a call of a refuser."""
    source = importlib.import_module(module).__file__
    assert source is not None
    nodes = ast.walk(ast.parse(Path(source).read_text(encoding="utf-8")))
    return {node.lineno: ast.unparse(node) for node in nodes if isinstance(node, ast.stmt) and _is_refusal(node)}


def _is_refusal(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        return isinstance(node.exc, ast.Call | ast.Name)
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    called = node.value.func
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in REFUSERS


def reached(doors: list[Door], modules: list[str]) -> dict[str, set[int]]:
    """The lines of these modules that the golden files of these doors run."""
    files = {str(importlib.import_module(module).__file__): module for module in modules}
    lines: dict[str, set[int]] = {module: set() for module in modules}

    def local(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            lines[files[frame.f_code.co_filename]].add(frame.f_lineno)
        return local

    def trace(frame: FrameType, event: str, _: object) -> Any:
        return local if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    try:
        for door in doors:
            for vector in vectors_of(door.name):
                sys.settrace(trace)  # each time: an input that is nested deeply ends it, as it ends all that it meets
                came_of(door, vector.data)
    finally:
        sys.settrace(before)
    return lines


MODULES = sorted({module for door in ALL for module in door.modules})


def test_every_refusal_of_a_decoder_has_a_golden_file() -> None:
    lines = reached([door for door in ALL if door.modules], MODULES)
    missing = [
        f"{module}:{line}: {text}"
        for module in MODULES
        for line, text in refusals(module).items()
        if line not in lines[module] and not any(words in text for words in OUT_OF_REACH)
    ]
    assert not missing, "\n".join(missing)


# -------------------------------------------------------------------------------------------------------- the documents


def test_the_table_of_doors_in_the_docs_names_these_doors_with_their_functions_and_errors() -> None:
    text = (REPOSITORY / "docs" / "decoders.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| `([A-Za-z_.]+)` \| .* \| ([A-Za-z, ]+) \|$", text, re.MULTILINE)
    told = {name: (opens, tuple(errors.split(", "))) for name, opens, errors in rows}
    assert told == {door.name: (door.opens, door.errors) for door in ALL}
