"""Parsed TOML or JSON, read field by field: every check names the file, line and field that it fails at.

A table refuses what nobody read: a field that is misspelled is never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from fusion.task import MAX_BOUND, MAX_NAME_CHARS

FieldPath = tuple[str | int, ...]
Fail = Callable[[FieldPath, str], NoReturn]


class Table:
    """One table of the raw task: reads each field once with its check, then refuses what was not read."""

    def __init__(self, raw: object, path: FieldPath, fail: Fail) -> None:
        if not isinstance(raw, dict):
            fail(path, "must be a table of named fields")
        self._raw: Mapping[str, Any] = raw
        self._path = path
        self._fail = fail
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        return key in self._raw

    def fail(self, key: str, message: str) -> NoReturn:
        self._fail((*self._path, key), message)

    def value(self, key: str) -> Any:
        if key not in self._raw:
            self._fail(self._path, f'the field "{key}" is missing; add it')
        self._read.add(key)
        return self._raw[key]

    def table(self, key: str, *, required: bool = True) -> Table:
        if not required and key not in self._raw:
            return Table({}, (*self._path, key), self._fail)
        return Table(self.value(key), (*self._path, key), self._fail)

    def text(self, key: str, default: str | None = None) -> str:
        if default is not None and key not in self._raw:
            return default
        return self._check_text(key, self.value(key))

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        if default is not None and key not in self._raw:
            return default
        value = self.value(key)
        if value not in allowed:
            self.fail(key, f"must be one of: {', '.join(allowed)}")
        return str(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.value(key) if key in self._raw else default
        if not isinstance(value, bool):
            self.fail(key, "must be true or false")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number of at most MAX_BOUND in magnitude."""
        if default is not None and key not in self._raw:
            return default
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, "must be a number")
        if not abs(value) <= MAX_BOUND:
            self.fail(key, f"must be finite and at most {MAX_BOUND:g} in magnitude")
        return float(value) + 0.0  # + 0.0 turns -0.0 into 0.0: one canonical form

    def numbers(self, key: str, count: int, default: float) -> tuple[float, ...]:
        """A list of `count` finite numbers; without the field, `default` that many times."""
        if key not in self._raw:
            return (default,) * count
        value = self.value(key)
        if not isinstance(value, list) or len(value) != count:
            self.fail(key, f"must be a list of {count} numbers")
        entry = Table({str(i): one for i, one in enumerate(value)}, (*self._path, key), self._fail)
        return tuple(entry.number(str(i)) for i in range(count))

    def texts(self, key: str, limit: int, *, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of at most `limit` distinct non-empty texts."""
        if default is not None and key not in self._raw:
            return default
        value = self.value(key)
        if not isinstance(value, list):
            self.fail(key, 'must be a list of texts in quotes, such as ["a", "b"]')
        if len(value) > limit:
            self.fail(key, f"must not hold more than {limit} entries")
        texts = tuple(self._check_text(key, entry, "every entry ") for entry in value)
        if len(set(texts)) < len(texts):
            self.fail(key, "must not name the same value twice")
        return texts

    def tables(self, key: str, limit: int) -> list[Table]:
        value = self.value(key)
        if not isinstance(value, list) or not value:
            self.fail(key, "must be a list with at least one entry")
        if len(value) > limit:
            self.fail(key, f"must not hold more than {limit} entries")
        return [Table(entry, (*self._path, key, index), self._fail) for index, entry in enumerate(value)]

    def done(self) -> None:
        unknown = sorted(set(self._raw) - self._read)
        if unknown:
            self.fail(unknown[0], "is not a field known here; remove it or correct its spelling")

    def _check_text(self, key: str, value: object, subject: str = "") -> str:
        if not isinstance(value, str):
            self.fail(key, f'{subject}must be a text in quotes, such as "1"')
        if not value or len(value) > MAX_NAME_CHARS:
            self.fail(key, f"{subject}must have 1 to {MAX_NAME_CHARS} characters")
        if not value.isprintable() or value != value.strip():
            self.fail(key, f"{subject}must be printable, without spaces at its ends")
        return value


def whole_number(table: Table, key: str, least: int, most: int, default: int | None = None) -> int:
    """The whole number at `key` from `least` to `most`; `default` where there is none."""
    if default is not None and not table.has(key):
        return default
    value = table.value(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        table.fail(key, f"must be a whole number between {least} and {most}")
    return int(value)


def number_between(table: Table, key: str, default: float, least: float, most: float) -> float:
    """The number at `key` from `least` to `most`; `default` where there is none."""
    value = table.number(key, default=default)
    if not least <= value <= most:
        table.fail(key, f"must be between {least:g} and {most:g}")
    return value


# --- where in the file: lines and names for error messages --------------------------------------------------

_SECTION = re.compile(r"^\s*(\[\[|\[)\s*([A-Za-z0-9_.\"'-]+)\s*\]{1,2}\s*(#.*)?$")
_KEY = re.compile(r"^\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*(?:\.|=)")


def line_of(text: str, path: FieldPath) -> int:
    """The line of the key at `path`, or of the closest table around it that the text shows."""
    best_line, best_depth = 1, -1
    for line, here in _keys_of(text):
        depth = _shared_depth(here, path)
        if depth == len(here) and depth > best_depth:
            best_line, best_depth = line, depth
    return best_line


def _keys_of(text: str) -> list[tuple[int, FieldPath]]:
    """(line, path) of every section and key that starts a line: a small scan, enough to point at a line."""
    found: list[tuple[int, FieldPath]] = []
    section: FieldPath = ()
    counts: dict[str, int] = {}
    for line, content in enumerate(text.splitlines(), start=1):
        header = _SECTION.match(content)
        key = _KEY.match(content)
        if header:
            name = header[2].strip("\"'")
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
                section = (name, counts[name])
            else:
                section = tuple(name.split("."))
            found.append((line, section))
        elif key:
            found.append((line, (*section, key[1])))
    return found


def _shared_depth(a: FieldPath, b: FieldPath) -> int:
    depth = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        depth += 1
    return depth


def field_name(raw: object, path: FieldPath) -> str:
    """`columns[2] "cp": values ` for ("columns", 2, "values"): the field as a person would look for it."""
    if not path:
        return ""
    if len(path) >= 2 and isinstance(path[1], int):
        entry = f"{path[0]}[{path[1]}]"
        name = _entry_name(raw, path[:2])
        entry += f' "{name}"' if name else ""
        return f"{entry}: " + (_dotted(path[2:]) + " " if path[2:] else "")
    return f"{_dotted(path)} "


def _dotted(path: FieldPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    shown = text.lstrip(".")
    return shown if shown.isprintable() and len(shown) <= MAX_NAME_CHARS else "a field"


def _entry_name(raw: object, path: FieldPath) -> str:
    value: Any = raw
    for part in path:
        value = value[part]
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name.isprintable() and len(name) <= MAX_NAME_CHARS else ""


def syntax_message(source: str, detail: str) -> str:
    """tomllib says `Expected '=' after a key (at line 3, column 5)`: put the line first."""
    match = re.search(r"^(.*) \(at line (\d+), column \d+\)$", detail)
    if match:
        return f"{source} line {match[2]}: this is not valid TOML: {match[1]}"
    return f"{source}: this is not valid TOML: {detail}"
