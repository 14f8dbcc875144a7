"""`tidings doctor`: problems staged for real, the line that it says for each, and a home that is as before."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import math
import os
import pty
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from commands import eventually
from couriers import carry, meet, publish_rows
from processes import Node, running

from crypto.keystore import LEAST, nobody_to_ask
from node import disk
from node.budget import left_epsilon
from node.config import CONNECT_TIMEOUT_S, DISK_LOW_BYTES
from node.doctor import Finding, Level, examine, machine
from node.errors import HomeError
from node.home import Home
from node.membership import add_peer
from node.publish import publish
from node.rehearsal import free_ports
from node.tasks import add

MakeHome = Callable[..., Home]
PASSPHRASE = "eleven grey herons over the estuary"  # noqa: S105
STORE_V1 = Path(__file__).parent / "vectors" / "store" / "version-1.db.gz"


def found_in(path: Path, area: str) -> list[tuple[str, str]]:
    """The level and words of every finding about an area."""
    return [(one.level.value, one.text) for one in examine(path, nobody_to_ask) if one.area == area]


def of(findings: list[Finding], area: str, start: str = "") -> Finding:
    """The one finding about an area that begins so."""
    (one,) = [one for one in findings if one.area == area and one.text.startswith(start)]
    return one


def contents(home: Path) -> dict[str, tuple[int, str]]:
    """Every file of a home: its mode, and the hash of its bytes."""
    return {
        str(path.relative_to(home)): (path.stat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def doctor(home: Path, *words: str, code: int = 0) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "node", "--home", str(home), "doctor", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout + done.stderr
    assert not done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------------ peers and ports


@contextmanager
def web_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, dict[str, str]]]:
    """A node with peers of every kind, two of which run."""
    directory = tmp_path_factory.mktemp("doctor")
    me, friend, aloof = (Node.make(directory, name) for name in ("me", "friend", "aloof"))
    others = {name: Home.init(directory / name, name, None) for name in ("down", "impostor", "mute", "web", "homeless")}
    friend.knows(me)
    with socket.create_server(("127.0.0.1", 0)) as mute, web_server() as web, running(friend, aloof):
        addresses = {
            "down": f"127.0.0.1:{free_ports(1)[0]}",
            "impostor": str(friend.address),
            "mute": f"127.0.0.1:{mute.getsockname()[1]}",
            "web": web,
        }
        me.knows(friend, str(friend.address))
        me.knows(aloof, str(aloof.address))
        for name, home in others.items():
            add_peer(me.home, home.me.text, name, addresses.get(name), query_only=False)
        for node in (friend, aloof):
            eventually(lambda node=node: "listens on" in (node.path / "serve.log").read_text())
        yield me, addresses


PEERS = {
    "friend": ("ok", "friend answers and knows this node"),
    "aloof": ("fail", "aloof: it has probably not added this node's key yet"),
    "down": ("warn", "down: nothing listens at {at}; check that its node runs"),
    "impostor": ("fail", "impostor: another key answers at {at}; check key and address"),
    "mute": ("warn", "mute: no answer from {at}"),
    "web": ("warn", "web: no Tidings node answers at {at}; check the address"),
    "homeless": ("ok", "homeless has no address here: it dials this node, or is reached through others"),
}


def test_every_peer_is_asked_and_nothing_is_changed(stage: tuple[Node, dict[str, str]]) -> None:
    me, addresses = stage
    before = contents(me.path)
    began = time.monotonic()
    findings = list(examine(me.path, nobody_to_ask))
    took = time.monotonic() - began
    assert contents(me.path) == before
    assert took < 1.5 * CONNECT_TIMEOUT_S, "all are asked at once, each for so long at most"
    said = [(one.level.value, one.text) for one in findings if one.area == "peers"]
    assert sorted(said) == sorted((level, text.format(at=addresses.get(name))) for name, (level, text) in PEERS.items())
    assert of(findings, "peers", "aloof").advice == "send it what `tidings id` prints"
    assert of(findings, "port") == Finding(
        "port", Level.OK, f"{me.address} is free for this node, which is not running"
    )
    assert of(findings, "clock", "as those").text == "as those of 1 peer, within a minute"
    assert of(findings, "node").text == "me is not running; `tidings serve` starts it"
    waiting = {one.text.split(" ")[0] for one in findings if one.area == "key cards"}
    assert waiting == set(PEERS)


def test_a_running_node_answers_for_itself_and_is_not_disturbed(stage: tuple[Node, dict[str, str]]) -> None:
    me, _ = stage
    friend = next(peer for peer in me.home.store.peers() if peer.name == "friend")
    with running(me):
        eventually(lambda: any(link.peer == friend.key and link.state == "linked" for link in me.home.store.links()))
        since = {link.peer: link.since for link in me.home.store.links()}[friend.key]
        kept = {name: one for name, one in contents(me.path).items() if not name.startswith(("node.db", "serve.log"))}
        findings = list(examine(me.path, nobody_to_ask))
        now = {name: one for name, one in contents(me.path).items() if not name.startswith(("node.db", "serve.log"))}
        assert now == kept
        assert of(findings, "node").text == "me is running"
        assert of(findings, "port") == Finding("port", Level.OK, f"this node answers on {me.address}")
        assert of(findings, "peers", "friend").text == "friend is linked"
        assert {link.peer: link.since for link in me.home.store.links()}[friend.key] == since, "the link stayed up"


@pytest.fixture
def lonely(make_home: MakeHome) -> Path:
    """The home of a node of whom one peer is down, and that somebody else may write into."""
    home, other = make_home("lonely"), make_home("other")
    add_peer(home, other.me.text, "a-peer-with-a-rather-long-name", "127.0.0.1:9", query_only=False)
    home.path.chmod(0o777)
    return home.path


def test_the_command_says_one_line_a_finding_and_exits_with_1_if_something_fails(lonely: Path) -> None:
    lines = doctor(lonely, code=1).splitlines()
    assert lines[-1].split(" ")[1] == "failed,"
    assert all(line[:4].strip() in ("ok", "WARN", "FAIL") for line in lines[:-1])
    told = json.loads(doctor(lonely, "--json", code=1))
    assert not told["ok"]
    assert len(told["findings"]) == len(lines) - 1
    assert {"area", "level", "text", "advice"} == set(told["findings"][0])
    quiet = doctor(lonely, "--quiet", code=1).splitlines()
    assert quiet == [line for line in lines[:-1] if not line.startswith("ok")]
    lonely.chmod(0o700)
    assert "FAIL" not in doctor(lonely)


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_long_lines_are_broken_under_themselves(lonely: Path, columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "node", "--home", str(lonely), "doctor"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment) as process:
        os.close(theirs)
        screen = b""
        with closing(os.fdopen(ours, "rb", buffering=0)) as terminal:
            while chunk := _read(terminal.fileno()):
                screen += chunk
        process.wait()
    lines = screen.decode().replace("\r", "").splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line[:4].strip() in ("ok", "WARN", "FAIL", "") for line in lines[:-1])
    assert any(line.startswith(" " * 19) for line in lines)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other end is closed
        return b""


def test_a_port_that_somebody_else_has_is_named(make_home: MakeHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        home = make_home("a", address)
        assert found_in(home.path, "port") == [("fail", f"{address} cannot be listened on: another program has it")]


def test_an_address_of_another_machine_is_named(make_home: MakeHome) -> None:
    home = make_home("a", "192.0.2.7:7410")
    text = "192.0.2.7:7410 cannot be listened on: this machine does not have that address"
    assert found_in(home.path, "port") == [("fail", text)]


def test_who_listens_on_loopback_with_peers_elsewhere_is_told(make_home: MakeHome) -> None:
    home, other = make_home("a", "127.0.0.1:0"), make_home("b")
    add_peer(home, other.me.text, "b", "192.0.2.7:7410", query_only=False)
    (level, text), *_ = [one for one in found_in(home.path, "port") if "reached" in one[1]]
    assert (level, text) == (
        "warn",
        "127.0.0.1:0 can be reached from this machine only, and there are peers elsewhere",
    )


# ------------------------------------------------------------------------------------------------- the machine and home


def test_a_home_open_to_others_is_named(make_home: MakeHome) -> None:
    home = make_home("a").path
    home.chmod(0o755)
    (home / "node.db").chmod(0o640)
    assert ("warn", f"others may list {home}") in found_in(home, "permissions")
    assert ("fail", f"{home}/node.db is open to others") in found_in(home, "permissions")
    home.chmod(0o777)
    assert ("fail", f"others may write into {home}") in found_in(home, "permissions")


def test_a_keystore_open_to_others_is_named_once_and_the_rest_is_looked_at(make_home: MakeHome) -> None:
    home = make_home("a").path
    (home / "keystore.json").chmod(0o644)
    findings = list(examine(home, nobody_to_ask))
    assert ("fail", f"{home}/keystore.json is open to others") in found_in(home, "permissions")
    assert of(findings, "home").level is Level.FAIL
    assert of(findings, "store").level is Level.OK


def test_a_passphrase_file_open_to_others_is_named(make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home("a").path
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE)
    file.chmod(0o644)
    texts = [one.text for one in examine(home, nobody_to_ask, file) if one.level is Level.FAIL]
    assert texts == [f"The passphrase file {file} is open to others than its owner: run `chmod 600 {file}`"]
    assert PASSPHRASE not in str(texts)


def test_a_locked_keystore_leaves_out_what_needs_it(tmp_path: Path) -> None:
    home, other = tmp_path / "a", Home.init(tmp_path / "b", "b", None)
    opened = Home.init(home, "a", None, lambda: PASSPHRASE, LEAST)
    add_peer(opened, other.me.text, "b", "127.0.0.1:9", query_only=False)
    opened.store.close()
    findings = list(examine(home, nobody_to_ask))
    assert of(findings, "keystore").level is Level.WARN
    assert of(findings, "peers", "not asked").level is Level.WARN
    assert not [one for one in findings if one.level is Level.FAIL]
    opened_too = list(examine(home, lambda _: PASSPHRASE))
    assert of(opened_too, "keystore") == Finding("keystore", Level.OK, "opens with its passphrase")
    assert of(opened_too, "peers", "b:").text.startswith("b: nothing listens at 127.0.0.1:9")


def test_a_disk_that_is_nearly_full_or_refuses_writes_is_named(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home("a").path
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=DISK_LOW_BYTES // 2, total=2**40))
    (level, text), *_ = found_in(home, "disk")
    assert level == "warn"
    assert text.startswith("134.2 MB free of 1099.5 GB: the disk is nearly full")

    def refuses(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine.os, "fsync", refuses)
    assert ("fail", f"a write into {home} fails (No space left on device)") in found_in(home, "disk")


def test_a_damaged_store_is_named_and_not_opened(make_home: MakeHome) -> None:
    home = make_home("a")
    home.store.close()
    path = home.path / "node.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:20_000] + os.urandom(30_000) + whole[50_000:])
    findings = list(examine(home.path, nobody_to_ask))
    assert of(findings, "store").level is Level.FAIL
    assert not [one for one in findings if one.area in ("node", "peers")]
    path.write_bytes(b"not a database" * 100)
    assert of(list(examine(home.path, nobody_to_ask)), "store").level is Level.FAIL


def test_a_store_of_an_older_release_is_not_brought_up_to_date(make_home: MakeHome) -> None:
    home = make_home("a")
    home.store.close()
    path = home.path / "node.db"
    path.write_bytes(gzip.decompress(STORE_V1.read_bytes()))
    before = contents(home.path)
    finding = of(list(examine(home.path, nobody_to_ask)), "store")
    assert finding.level is Level.WARN
    assert finding.text.startswith("it is of an older release")
    assert contents(home.path) == before


def test_a_store_of_a_newer_release_is_named(make_home: MakeHome) -> None:
    home = make_home("a")
    home.store.close()
    with closing(sqlite3.connect(home.path / "node.db")) as database:
        database.execute("PRAGMA user_version = 99")
    assert found_in(home.path, "store") == [("fail", "it was written by a newer release")]


def test_a_clock_that_went_back_is_named(make_home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_home("a")
    made.store.close()  # else SQLite touches the file when it is collected
    home = made.path
    later = time.time() + 7_200
    os.utime(home / "node.db", (later, later))
    level, text = found_in(home, "clock")[0]
    assert level == "warn"
    assert text == "this machine's clock was put back: files here were written 2 h from now"
    monkeypatch.setattr(machine.time, "time", lambda: 86_400.0)
    level, text = next(iter((one.level.value, one.text) for one in machine.clock(home)))
    assert (level, text) == ("fail", "this machine's clock shows 1970-01-02 00:00:00 UTC, which is past")


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["grpcio>=1.76", "numpy>=999.0", "no-such-package>=1", 'matplotlib>=3.9; extra == "plot"']
    monkeypatch.setattr(machine.metadata, "requires", lambda _: needed)
    (finding,) = machine.software()
    assert finding.level is Level.FAIL
    assert finding.text == "packages are missing or too old: numpy>=999.0, no-such-package>=1"


def test_where_there_is_no_node_the_doctor_says_so(tmp_path: Path) -> None:
    assert found_in(tmp_path / "nowhere", "home") == [("fail", f"there is no node in {tmp_path}/nowhere")]
    assert not (tmp_path / "nowhere").exists()


def test_a_home_without_its_keystore_is_not_taken_for_none(make_home: MakeHome) -> None:
    home = make_home("a").path
    (home / "keystore.json").unlink()
    assert found_in(home, "home") == [("fail", f"{home}/keystore.json is gone")]
    with pytest.raises(HomeError, match=r"keystore.json is gone: restore it from a backup; without one see"):
        Home.open(home)


def test_a_store_that_cannot_be_opened_is_not_called_damaged(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home("a").path

    def refused(_: Path) -> None:
        sqlite3.connect(f"file:{home}/nowhere/node.db?mode=rw", uri=True)

    monkeypatch.setattr(machine, "_examined", refused)
    (finding,) = machine.store_file(home)
    assert finding.text.endswith("cannot be read (unable to open database file)")
    assert finding.advice == "check disk and permissions first", "a backup is an old copy"


# ------------------------------------------------------------------------------------------- keys, records and budget


def test_what_waits_for_keys_and_what_is_stuck_is_named(make_home: MakeHome, task_file: Path, rows_file: Path) -> None:
    a, b = make_home("a"), make_home("b")
    add_peer(a, b.me.text, "b", None, query_only=False)
    add_peer(b, a.me.text, "a", None, query_only=False)
    assert ("warn", "b cannot read what is published here: its key card has not come yet") in found_in(
        a.path, "key cards"
    )
    publish_rows(b, task_file, rows_file)
    add(a, str(task_file))
    carry(b, a, lambda record: record.header.recipient is None)
    (level, text), *_ = found_in(a.path, "records")
    assert (level, text) == ("warn", "triage, from b: waiting for the key grant of b; it must add this node")
    meet(a, b)
    assert found_in(a.path, "records")[0][0] == "ok"
    assert found_in(a.path, "key cards") == [("ok", "every member can read what is published here")]


def test_a_lost_or_old_ledger_and_a_spent_dataset_are_named(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    home = make_home("a")
    task, _ = add(home, str(task_file))
    publish(home, task, [rows_file], epsilon=1.0, dataset="default", cap_epsilon=1.5)
    ledger = home.path / "ledger.db"
    left = left_epsilon(home, "default", None) or 0.0
    assert found_in(home.path, "budget") == [("ok", f"dataset default: epsilon {left:.3f} of 1.5 left")]
    older = ledger.read_bytes()
    while (left := left_epsilon(home, "default", None) or 0.0) >= 0.01:
        publish(home, task, [rows_file], epsilon=math.floor(1e4 * left) / 1e4, dataset="default", cap_epsilon=None)
    ((level, text),) = found_in(home.path, "budget")
    assert level == "warn"
    assert text.startswith("dataset default is spent: epsilon 1.")
    whole = ledger.read_bytes()
    ledger.write_bytes(older)
    assert ("fail", "this node's privacy ledger is an old copy: nothing is released") in found_in(home.path, "budget")
    ledger.unlink()
    ((level, text),) = found_in(home.path, "budget")
    assert (level, text) == ("fail", "ledger.db is gone, and peers hold proof that this node has spent")
    assert not ledger.exists(), "no empty ledger took its place"
    ledger.write_bytes(whole[:4_096] + bytes(len(whole) - 4_096))
    assert found_in(home.path, "budget")[0][0] == "fail"
