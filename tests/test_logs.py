"""Logs: one event a line, in text and in JSON; names and fields as documented; words from outside escaped."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import Node, running

from crypto.keys import Identity, PublicKey
from node import logs
from node.errors import AskLater, NodeError, QueryRefused, StoreFull
from node.frames import Query
from node.gossip.events import Disk, LinkState, Offence, Struck
from node.journal import Journal
from node.local_tables import LinkReport
from node.simulation.store import author_record

DOCS = Path(__file__).parent.parent / "docs" / "operations.md"
ALICE = Identity.from_seed(bytes(range(32)))
HOSTILE = "ok\x1b[2Jgone\nFATAL forged\r\u202egnp.exe\x00" + "x" * 2_000


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], io.StringIO]]:
    """Begins to log into a buffer, in a format and from a level; afterwards logging is as it was."""
    root, own = logging.getLogger(), logging.getLogger(logs.LOGGER)
    before = root.handlers[:], root.level, own.level

    def begin(form: str, level: str) -> io.StringIO:
        buffer = io.StringIO()
        monkeypatch.setattr(sys, "stderr", buffer)
        logs.begin(form, level)
        return buffer

    yield begin
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])
    logging.captureWarnings(False)


def told(buffer: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in buffer.getvalue().splitlines()]


def journal() -> Journal:
    return Journal(ALICE.public_key, lambda _: "alice")


def everything(book: Journal) -> None:
    """Every event that a node can log, with words from outside wherever there are some."""
    record = author_record(ALICE, 1, b"x" * 5_000)
    report = LinkReport(ALICE.public_key, LinkState.LINKED, "clock 3 h ahead (harmless)", 0.0, None, 0, 0)
    lost = LinkReport(ALICE.public_key, LinkState.UNREACHABLE, HOSTILE, 0.0, None, 0, 0)
    refused = LinkReport(ALICE.public_key, LinkState.REFUSED, HOSTILE, 0.0, None, 0, 0)
    book.started("alice", "127.0.0.1:7410")
    book.metrics("127.0.0.1:9410")
    book.link(None, report)
    book.link(report, lost)
    book.link(lost, refused)
    book.link(refused, lost)
    for offence in Offence:
        book.struck(Struck(ALICE.public_key, offence, HOSTILE))
    book.settled(record)
    book.stalled(record)
    book.alarm(ALICE.public_key, HOSTILE)
    book.epoch_begun(2, 3)
    for state in (Disk.LOW, Disk.ROOM):
        book.disk("/home", state, "words")
    book.store_failed(StoreFull(HOSTILE))
    book.store_failed(StoreFull("The disk has no room."), away_s=10.0)
    book.port_lost()
    book.grants_locked(StoreFull("locked"))

    async def answers(*parts: bytes | str) -> AsyncGenerator[bytes | str, None]:
        for part in parts:
            if part == "no":
                raise QueryRefused(HOSTILE)
            yield part

    async def ask(*parts: bytes | str) -> None:
        query = Query(bytes(32), "", (), (), "onnx")
        async for _ in book.query(ALICE.public_key, query, answers(*parts)):
            pass

    asyncio.run(ask("fusing", b"1234"))
    with pytest.raises(QueryRefused):
        asyncio.run(ask("no"))
    book.stopping("SIGTERM")
    book.stopped(0.25)
    logs.tell(logging.ERROR, "stop_forced", "words")


def test_every_event_is_documented_with_its_fields(lines: Callable[[str, str], io.StringIO]) -> None:
    buffer = lines("json", "debug")
    everything(journal())
    documented = {
        match[1]: set(re.findall(r"`(\w+)`", match[2]))
        for match in re.finditer(r"^\| `(\w+)` \| \w+ \| ([^|]*) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    }
    seen: dict[str, set[str]] = {}
    for one in told(buffer):
        assert set(one) >= {"time", "level", "event", "message"}
        seen.setdefault(one["event"], set()).update(set(one) - {"time", "level", "event", "message"})
    assert seen.pop("other") < documented.pop("other")  # of libraries; a traceback needs an error
    assert len(seen) >= 20
    for event, fields in seen.items():
        assert documented[event] == fields, event
    written = fields_in_the_source()
    assert set(seen) | set(written) == set(documented)
    for event in documented.keys() - seen.keys():  # what the roster, a fusion, a restored home have to say
        assert documented[event] == written[event], event


def fields_in_the_source() -> dict[str, set[str]]:
    """Of each call `tell(LEVEL, "event", …)` in the node's code."""
    found: dict[str, set[str]] = {}
    for path in Path(logs.__file__).parent.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match call:
                case ast.Call(func=ast.Name("tell"), args=[_, ast.Constant(str(event)), *_]):
                    found.setdefault(event, set()).update(str(one.arg) for one in call.keywords)
    return found


def test_words_from_outside_stay_on_their_line(lines: Callable[[str, str], io.StringIO]) -> None:
    for form in logs.FORMATS:
        buffer = lines(form, "debug")
        everything(journal())
        for line in buffer.getvalue().splitlines():
            assert line.isprintable()
            assert len(line) < 4_000
        assert not [line for line in buffer.getvalue().splitlines() if line.startswith("FATAL")]


@given(st.text(max_size=600))
def test_whatever_is_shown_is_printable_and_short(text: str) -> None:
    shown = logs.shown(text)
    assert shown.isprintable()
    assert len(shown) <= 10 * logs.MAX_TEXT
    if text.isprintable() and len(text) <= logs.MAX_TEXT:
        assert shown == text


def test_a_line_of_text_has_the_time_the_level_and_the_words(lines: Callable[[str, str], io.StringIO]) -> None:
    buffer = lines("text", "info")
    journal().alarm(ALICE.public_key, "it came back with another store")
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ WARNING alice: it came back with another store\n"
    assert re.fullmatch(pattern, buffer.getvalue())


def test_what_repeats_is_told_once(lines: Callable[[str, str], io.StringIO]) -> None:
    buffer = lines("json", "info")
    book = journal()
    down = LinkReport(ALICE.public_key, LinkState.UNREACHABLE, "nothing listens", 0.0, None, 0, 0)
    for _ in range(5):
        book.link(down, down)
    book.link(None, down)
    assert [one["event"] for one in told(buffer)] == ["no_link"]


def test_the_level_is_a_floor(lines: Callable[[str, str], io.StringIO]) -> None:
    counts = {}
    for level in logs.LEVELS:
        buffer = lines("json", level)
        everything(journal())
        counts[level] = Counter(one["level"] for one in told(buffer))
        assert all(logs.LEVELS.index(one) >= logs.LEVELS.index(level) for one in counts[level])
    assert counts["error"]["error"] == counts["debug"]["error"] > 0


def test_what_a_library_logs_or_warns_of_is_a_line_too(lines: Callable[[str, str], io.StringIO]) -> None:
    buffer = lines("json", "info")
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")
    warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    logging.getLogger("asyncio").info("Using selector")
    first, second = told(buffer)
    assert (first["event"], first["logger"]) == ("other", "asyncio")
    assert first["message"].startswith("Task exception was never retrieved (ValueError: ok\\x1b[2Jgone\\nFATAL")
    assert "traceback" not in first
    assert second["logger"] == "py.warnings"
    buffer = lines("json", "debug")
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("asyncio").exception("failed")
    assert "Traceback" in told(buffer)[0]["traceback"]


def test_a_key_is_named_in_full_and_as_people_call_it(lines: Callable[[str, str], io.StringIO]) -> None:
    buffer = lines("json", "info")
    journal().struck(Struck(ALICE.public_key, Offence.CHUNK, "wrong hash"))
    (one,) = told(buffer)
    assert (one["peer"], PublicKey.parse(one["key"]), one["event"]) == ("alice", ALICE.public_key, "invalid")


def test_a_real_node_tells_its_day(tmp_path: Path) -> None:
    node, other = Node.make(tmp_path, "node"), Node.make(tmp_path, "other")
    node.knows(other, str(other.address))
    other.knows(node)

    def in_json(site: Node) -> None:
        with open(site.path / "serve.log", "ab") as log:
            words = [sys.executable, "-m", "node", "--home", str(site.path), "serve", "--log-format", "json"]
            site.process = subprocess.Popen(words, stdout=log, stderr=log)

    def events(site: Node) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (site.path / "serve.log").read_text().splitlines()]

    with running(node, other, start=in_json):
        deadline = time.monotonic() + 40
        while not (node.is_linked_with(other) and other.is_linked_with(node)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        record = other.author(b"x" * 100_000)
        while not any(one["event"] == "record_settled" and one["record"] == record.id.hex() for one in events(node)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        other.kill()
        while not any(one["event"] == "link_down" for one in events(node)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert node.process is not None
        node.process.terminate()
        assert node.process.wait(5) == 0
        node.process = None
    said = [one["event"] for one in events(node)]
    assert said[0] == "started"
    assert said[-2:] == ["stopping", "stopped"]
    assert "link_up" in said
    (settled,) = [one for one in events(node) if one.get("record") == record.id.hex()]
    assert (settled["origin"], settled["kind"], settled["bytes"]) == ("other", "summary", record.header.body_bytes)


def test_a_key_that_asks_too_often_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    key = Identity.generate().public_key
    book = Journal(key, lambda one: one.short)
    query = Query(bytes(32), "", (), (), "onnx")

    async def parts(error: NodeError) -> AsyncGenerator[bytes | str, None]:
        if not isinstance(error, AskLater):
            yield "fusing"
        raise error

    async def ask(error: NodeError) -> None:
        with suppress(NodeError):
            async for _ in book.query(key, query, parts(error)):
                pass

    with caplog.at_level(logging.INFO, "tidings"):
        asyncio.run(ask(AskLater("ask again in a minute")))
        assert caplog.records == []
        asyncio.run(ask(QueryRefused("nothing to fuse")))
    assert [one.event for one in caplog.records] == ["query_begun", "query_refused"]  # type: ignore[attr-defined]
    assert book.counts.queries["refused"] == 2
