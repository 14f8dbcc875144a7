"""What the project builds on: the page about it, the locks and pyproject.toml say the same."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "dependencies.md").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-dev.lock")
PERMISSIVE = (
    "apache",
    "mit",
    "bsd",
    "isc",
    "psf",
    "python software foundation",
    "mpl",
    "cc0",
    "zlib",
    "unlicense",
    "kiwi",
)
SAID_ELSEWHERE = {"atheris"}
"""Names no license in its wheel; its repository says Apache-2.0."""


def name_of(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement)[0].lower().replace("_", "-")


def locked(lock: str) -> dict[str, str]:
    lines = [line.split(";")[0].strip() for line in (REPOSITORY / lock).read_text().splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line) for line in found), lock
    return {name_of(line): line.partition("==")[2] for line in found}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_one_exact_version(lock: str) -> None:
    assert locked(lock)


def test_the_page_names_every_direct_dependency_and_nothing_that_went() -> None:
    extras = PROJECT["optional-dependencies"]
    direct = {name_of(one) for one in [*PROJECT["dependencies"], *extras["plot"], *extras["image"], *extras["text"]]}
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1]) if name not in extras}
    assert named == direct


def test_every_direct_dependency_is_locked_at_a_version_that_its_range_allows() -> None:
    versions = locked("requirements.lock")
    for requirement in PROJECT["dependencies"]:
        name, _, least = requirement.partition(">=")
        have = tuple(int(part) for part in re.findall(r"\d+", versions[name_of(name)]))
        assert have >= tuple(int(part) for part in least.split(".")), requirement


def test_what_is_locked_has_a_permissive_license() -> None:
    for name in {name for lock in LOCKS for name in locked(lock)} - SAID_ELSEWHERE:
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # made for another platform
        declared = " ".join(
            [metadata.get("License-Expression") or "", (metadata.get("License") or "")[:2000]]
            + [one for one in metadata.get_all("Classifier") or [] if one.startswith("License")]
        ).lower()
        assert any(word in declared for word in PERMISSIVE), f"{name}: {declared[:200]}"
