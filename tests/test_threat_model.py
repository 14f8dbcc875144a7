"""The threat model's table: every row names tests, and every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "threat-model.md").read_text()
ATTACKERS = (
    "passive network",
    "active network",
    "non-member",
    "member",
    "ex-member",
    "malicious fusion node",
    "stolen disk",
    "quantum adversary",
    "malicious bundle",
    "malicious task",
    "malicious ONNX",
)


def rows() -> list[list[str]]:
    table = PAGE.partition("## Who could try what")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def shown_by(cell: str) -> list[tuple[str, str]]:
    """The file and the words of each test that a cell names."""
    return [
        (part[0], phrase)
        for part in re.findall(r"`(test_\w+\.py)`((?: \"[^\"]+\",?)*)", cell)
        for phrase in re.findall(r"\"([^\"]+)\"", part[1]) or [""]
    ]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]}: {row[1]}"[:70])
def test_every_row_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 4
    named = shown_by(row[3])
    assert named
    for file, phrase in named:
        tests = re.findall(r"def test_(\w+)", (TESTS / file).read_text())
        words = re.sub(r"\W+", "_", phrase.lower())
        assert words, f"{file}: which test?"
        assert any(words in name for name in tests), f"{file} has no test with {phrase!r} in its name"


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_the_table_covers_every_attacker(attacker: str) -> None:
    assert any(row[0].startswith(attacker) for row in rows())
