"""A finding: one thing that was looked at, how it is, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How bad it is. Only `FAIL` makes the command fail: something does not work, or is not safe. `WARN` is for an
    operator to decide on."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line: the area it is about, its level, what was found, and what to do if that is not fine."""

    area: str
    level: Level
    text: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """For programs."""
        return {"area": self.area, "level": self.level.value, "text": self.text, "advice": self.advice}


def ok(area: str, text: str) -> Finding:
    """All is well."""
    return Finding(area, Level.OK, text)


def warn(area: str, text: str, advice: str = "") -> Finding:
    """Worth knowing."""
    return Finding(area, Level.WARN, text, advice)


def fail(area: str, text: str, advice: str = "") -> Finding:
    """Broken, or not safe."""
    return Finding(area, Level.FAIL, text, advice)
