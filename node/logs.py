"""Logs: what a running node tells its operator, one event a line on stderr, for people (`text`) or programs (`json`).

An event has a name and fields that stay what they are from release to release (docs/operations.md, "Logs"). What is
said to people is made of the same fields and may change.

Words from outside (what a peer says, names of hosts, messages of the operating system) are shown with everything that
is not printable escaped: no line breaks that would forge an event, nothing that a terminal obeys or that turns a line
of text around. Nothing here is given keys, rows, or names of datasets, which are private; tests/test_secrets_in_logs.py
looks.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

LOGGER: Final = "tidings"
FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
MAX_TEXT: Final = 500
"""Characters of one field: a peer's words are a few hundred."""
OTHER: Final = "other"
"""The event of a line that a library wrote."""

_log = logging.getLogger(LOGGER)


def tell(level: int, event: str, text: str, /, **fields: object) -> None:
    """Log one event. `text` says it to people; `fields` hold strings, numbers and None."""
    if _log.isEnabledFor(level):
        _log.log(level, "%s", text, extra={"event": event, "fields": fields})


def begin(form: str, level: str) -> None:
    """Send what this process logs to stderr in one of FORMATS, from one of LEVELS up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # What libraries have to say of themselves is for debugging; their warnings are everybody's.
    root.setLevel(logging.DEBUG if level == "debug" else max(logging.WARNING, _number(level)))
    _log.setLevel(_number(level))
    logging.captureWarnings(True)


def shown(text: str, most: int = MAX_TEXT) -> str:
    """A text on one line: what is not printable is escaped as Python would, what is too long is cut."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode("ascii")
        for letter in cut
    )


class TextLines(logging.Formatter):
    """`2026-11-22 18:52:26Z WARNING b is refused: …`; with a traceback below it at debug level."""

    def format(self, record: logging.LogRecord) -> str:
        """One line for a record."""
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        source = "" if record.name == LOGGER else f"{record.name}: "
        line = f"{when} {record.levelname} {source}{shown(record.getMessage())}{_cause(record)}"
        return f"{line}\n{_traceback(self, record)}" if _shows_traceback(record) else line


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `event`, `message`, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """One line for a record."""
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", OTHER),
            "message": shown(record.getMessage() + _cause(record)),
        }
        if record.name != LOGGER:
            content["logger"] = record.name
        content |= {name: _field(value) for name, value in getattr(record, "fields", {}).items()}
        if _shows_traceback(record):
            content["traceback"] = _traceback(self, record)
        return json.dumps(content, ensure_ascii=True)


def _field(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | float) else shown(str(value))


def _cause(record: logging.LogRecord) -> str:
    """What was raised, where a library logs that: its kind and its words."""
    raised = record.exc_info[1] if record.exc_info else None
    return f" ({type(raised).__name__}: {shown(str(raised))})" if raised is not None else ""


def _shows_traceback(record: logging.LogRecord) -> bool:
    return bool(record.exc_info) and _log.isEnabledFor(logging.DEBUG)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _number(level: str) -> int:
    return int(logging.getLevelNamesMapping()[level.upper()])
