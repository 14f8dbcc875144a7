"""Deliberate bugs: real code with a line of it changed, for tests that show that a check fails when it should."""

from __future__ import annotations

import inspect
import textwrap
from types import FunctionType
from typing import Any

import pytest


def rewrite(patch: pytest.MonkeyPatch, owner: Any, name: str, *edits: tuple[str, str]) -> None:
    """Compile the function again with pieces of its text replaced; each piece must be there exactly once."""
    function: FunctionType = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in edits:
        assert source.count(old) == 1, f"{name} has changed: rewrite this mutant"
        source = source.replace(old, new)
    made: dict[str, Any] = {}
    exec(compile(source, "<mutant>", "exec"), function.__globals__, made)  # noqa: S102 - our own source, edited
    patch.setattr(owner, name, made[name])
