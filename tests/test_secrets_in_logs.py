"""Secrets never leave the keystore: a full run with --debug, errors included, and every byte that came of it.

One of the two nodes logs in text, the other in JSON, both at debug level; neither log holds a cell of the data or the
name of a dataset either."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import eventually
from secret_search import bytes_of, found_in, secrets_of

from crypto.keystore import LEAST
from crypto.recovery import RecoveryKey
from node.home import Home
from node.records import Kind

PASSPHRASE = "twelve grey herons over the estuary"  # noqa: S105
GUESS = "thirteen grey herons over the estuary"
DATASET = "maternity-ward-7731"
CELLS = ("Philomena Canary-Wharton", "41.73164", "83.26157")
"""A column that the task does not name, and two ages."""
ROWS = "".join(
    f"{CELLS[0]},{CELLS[1 + number % 2]},{'ambulance' if number % 3 else 'walk'},{number % 2}\n"
    for number in range(200)
)


class Run:
    """Commands with --debug, and everything that they wrote."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.written = b""
        self.recovery_keys: list[RecoveryKey] = []
        directory.mkdir()
        self.passphrase_file = directory / "passphrase"
        self.passphrase_file.write_text(PASSPHRASE)
        self.passphrase_file.chmod(0o600)

    def command(self, home: Path, *words: str) -> list[str]:
        chosen = ["--passphrase-file", str(self.passphrase_file)]
        return [sys.executable, "-m", "node", "--home", str(home), "--debug", *chosen, *words]

    def tidings(self, home: Path, *words: str, code: int = 0, typed: str = "", shown_once: bool = False) -> str:
        done = subprocess.run(self.command(home, *words), capture_output=True, timeout=120, input=typed.encode())
        stderr = done.stderr
        if shown_once:
            (shown,) = [line for line in stderr.splitlines() if line.startswith(b"tidings-recovery1")]
            self.recovery_keys.append(RecoveryKey.parse(shown.decode()))
            stderr = stderr.replace(shown, b"")
        self.written += done.stdout + stderr
        assert done.returncode == code, done.stderr.decode()
        return done.stdout.decode()

    @contextmanager
    def serving(self, home: Path) -> Iterator[None]:
        with open(self.directory / f"{home.name}.log", "ab") as log:
            words = ["serve", "--log-level", "debug", "--log-format", "json" if home.name == "b" else "text"]
            process = subprocess.Popen(self.command(home, *words), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            try:
                yield
            finally:
                process.terminate()
                process.wait(15)


@contextmanager
def watching_processes(home: Path, seen: set[bytes]) -> Iterator[None]:
    """What the processes on a home show of themselves to others of their user: arguments and environment."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    arguments = (process / "cmdline").read_bytes()
                    if str(home).encode() in arguments:
                        seen.update({arguments, (process / "environ").read_bytes()})
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def test_the_search_finds_a_secret_in_every_form() -> None:
    import base64

    secret = {"a key": secrets.token_bytes(32)}
    raw = secret["a key"]
    written = (
        raw,
        raw.hex().encode(),
        raw.hex().upper().encode(),
        base64.b64encode(raw),
        base64.b64encode(b"x" + raw),
        base64.b64encode(b"xy" + raw),
        base64.urlsafe_b64encode(raw),
        base64.b32encode(raw),
        base64.b32encode(raw).lower(),
        repr(raw).encode(),
        repr(list(raw)).encode(),
        raw[:16],
    )
    for form in written:
        assert found_in(b"some log line " + form + b" and more", secret) == ["a key"]
    assert found_in(secrets.token_bytes(100_000), secret) == []


@pytest.mark.timeout(280)
def test_a_full_run_with_debug_writes_no_secret_anywhere_but_into_the_keystore(tmp_path: Path, task_file: Path) -> None:
    rows_file = tmp_path / "rows.csv"
    rows_file.write_text(f"name,age,arrival,outcome\n{ROWS}")
    run = Run(tmp_path / "run")
    a, b = tmp_path / "a", tmp_path / "b"
    for home in (a, b):
        Home.init(home, home.name, "127.0.0.1:0", lambda: PASSPHRASE, LEAST).store.close()
    known = secrets_of(Home.open(a, lambda _: PASSPHRASE))  # those that a rotation replaces, too
    key_of = {home: run.tidings(home, "id").strip() for home in (a, b)}
    recovery_of = {home: RecoveryKey.generate() for home in (a, b)}  # what `init` shows, and nothing else may
    run.tidings(tmp_path / "c", "init", shown_once=True)  # at the usual cost
    run.tidings(a, "task", "add", str(task_file))
    run.tidings(a, "peer", "add", key_of[b], "--name", "b")

    shown_by_processes: set[bytes] = set()
    with run.serving(a):
        eventually(lambda: b"listens on" in (run.directory / "a.log").read_bytes())
        address = (run.directory / "a.log").read_text().split("listens on ")[1].split(". ")[0]
        run.tidings(b, "peer", "add", key_of[a], "--name", "a", "--address", address)
        with run.serving(b):
            run.tidings(a, "publish", "triage", str(rows_file), "--epsilon", "1", "--dataset", DATASET)
            run.tidings(a, "keys", "rotate", "--encryption", "--json")
            run.tidings(a, "publish", "triage", str(rows_file), "--epsilon", "1", "--dataset", DATASET)
            theirs = Home.open(b)
            eventually(lambda: len(theirs.store.held(kind=Kind.SUMMARY)) == 2)
            eventually(
                lambda: any(one["state"] == "proposed" for one in json.loads(run.tidings(b, "task", "list", "--json")))
            )
            run.tidings(b, "task", "add", "triage")
            with watching_processes(a, shown_by_processes):
                run.tidings(b, "query", "triage", "--node", "a", "-o", str(tmp_path / "m.onnx"))
            for words in (["status"], ["records"], ["budget"], ["keys", "show"], ["peer", "list"], ["doctor"]):
                run.tidings(a, *words)
    assert any(b"--keys-on-stdin" in one for one in shown_by_processes)
    wrong_ones(run, a)
    for home in (a, b):  # the epoch keys of identities that are replaced below
        known |= named(home, "before")
    a_new_identity(run, a, recovery_of[a])
    a_new_identity(run, b, recovery_of[b])
    known |= {f"recovery key of {home.name}": key.identity.seed for home, key in recovery_of.items()}
    known |= {f"recovery key {number}": key.identity.seed for number, key in enumerate(run.recovery_keys)}
    assert len(run.recovery_keys) == 3

    for home in (a, b, tmp_path / "c"):
        known |= named(home, "after")
    known |= {"passphrase": PASSPHRASE.encode(), "guess": GUESS.encode()}
    assert sum("epoch key" in name for name in known) >= 4
    logs = b"".join(path.read_bytes() for path in run.directory.glob("*.log"))
    assert logs.count(b" is linked") >= 2  # the logs did say something
    told = [json.loads(line) for line in (run.directory / "b.log").read_text().splitlines()]
    assert {"started", "link_up", "record_settled", "stopping", "stopped"} <= {one["event"] for one in told}
    assert b"b got a model" in logs
    assert b" has begun; granted to " in logs
    assert [private for private in (DATASET, *CELLS) if private.encode() in logs] == []
    assert b"Traceback" in run.written
    # The models and the files of the homes, store, ledger and logs of SQLite; the keystores are sealed, so they too.
    everything = run.written + logs + b"".join(shown_by_processes) + bytes_of(tmp_path, but=("passphrase",))
    assert found_in(everything, known) == []


def named(home: Path, when: str) -> dict[str, bytes]:
    opened = Home.open(home, lambda _: PASSPHRASE)
    return {f"{home.name} {when}: {name}": one for name, one in secrets_of(opened).items()}


def a_new_identity(run: Run, home: Path, recovery: RecoveryKey) -> None:
    """A recovery key is published, typed wrong and right, and a new one shown."""
    opened = Home.open(home, lambda _: PASSPHRASE)
    opened.store.set_recovery_hash(opened.me, recovery.hash)
    opened.author.key_card()
    opened.store.close()
    run.tidings(home, "keys", "replace")
    run.tidings(home, "keys", "revoke", typed=recovery.text[:-1], code=2)
    run.tidings(home, "keys", "revoke", typed=RecoveryKey.generate().text, code=2)
    run.tidings(home, "keys", "revoke", "--new-recovery-key", typed=recovery.text, shown_once=True)
    run.tidings(home, "keys", "show")


def wrong_ones(run: Run, home: Path) -> None:
    """Errors with their tracebacks: a guess, files that are damaged in many ways."""
    run.passphrase_file.write_text(GUESS)
    run.tidings(home, "keys", "rotate", code=1)
    run.passphrase_file.write_text(PASSPHRASE)
    run.tidings(home, "publish", "triage", "nowhere.csv", "--epsilon", "1", code=1)
    run.tidings(home, "query", "triage", "--node", "b", "-o", str(run.directory / "n.onnx"), code=1)
    keystore = home / "keystore.json"
    whole = keystore.read_bytes()
    for damaged in (whole[:-40], whole.replace(b"salt", b"malt"), whole.replace(b'"version": 2', b'"version": 1')):
        keystore.write_bytes(damaged)
        run.tidings(home, "keys", "rotate", code=1)
    keystore.write_bytes(whole)
    os.chmod(keystore, 0o644)
    run.tidings(home, "serve", code=1)
    os.chmod(keystore, 0o600)
