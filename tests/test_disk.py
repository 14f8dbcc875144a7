"""A disk that fills up: when it counts as low, and what real nodes on a full one do until there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import after

from crypto.sealing import new_epoch_key
from node.author import EpochKey
from node.config import DISK_ENOUGH, DISK_LOW_BYTES, DISK_RETRY_S
from node.disk import DiskWatch, is_low, low_mark
from node.gossip.events import Disk
from node.home import Home
from node.membership import add_peer
from node.records import HeldState, Kind, Record
from node.rehearsal import Site, free_ports

GB = 1_000_000_000
ROOT = Path(__file__).parent.parent


class Shelf:
    """A disk of which the test says how much is free, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 50 * GB
        self.now = 0.0
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(total=100 * GB, free=self.free))
        self.watch = DiskWatch(Path("home"), lambda: self.now)

    def look(self, free: int) -> Disk:
        self.free = free
        return self.watch.look()


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return Shelf(monkeypatch)


def test_a_small_disk_is_low_later_than_a_large_one() -> None:
    assert low_mark(1_000 * GB) == DISK_LOW_BYTES
    assert low_mark(GB) == 0.05 * GB


def test_a_disk_near_its_mark_does_not_switch_to_and_fro(shelf: Shelf) -> None:
    enough = int(DISK_ENOUGH * DISK_LOW_BYTES)
    assert shelf.look(DISK_LOW_BYTES) is Disk.ROOM
    assert shelf.look(DISK_LOW_BYTES - 1) is Disk.LOW
    assert is_low(Path("home"))
    assert shelf.look(enough - 1) is Disk.LOW
    assert shelf.look(enough) is Disk.ROOM
    assert shelf.look(enough - 1) is Disk.ROOM


def test_a_disk_that_was_full_is_tried_again_as_soon_as_there_is_room(shelf: Shelf) -> None:
    assert shelf.look(0) is Disk.LOW
    shelf.watch.refused()
    assert shelf.watch.state is Disk.FULL
    assert shelf.look(DISK_LOW_BYTES) is Disk.FULL
    assert shelf.look(10 * DISK_LOW_BYTES) is Disk.ROOM


def test_a_refusal_that_free_space_does_not_explain_holds_for_a_while(shelf: Shelf) -> None:
    shelf.watch.refused()  # a quota
    shelf.now = DISK_RETRY_S - 1
    assert shelf.look(50 * GB) is Disk.FULL
    shelf.now = DISK_RETRY_S
    assert shelf.look(50 * GB) is Disk.ROOM


def test_a_full_disk_that_stays_full_takes_headers_again_after_a_while(shelf: Shelf) -> None:
    shelf.free = 0
    shelf.watch.refused()
    shelf.now = DISK_RETRY_S
    assert shelf.look(0) is Disk.LOW


def may_mount() -> bool:
    """Whether a tmpfs can be mounted in a namespace of one's own here."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.timeout(240)
def test_a_node_on_a_full_disk_serves_takes_withdrawals_and_recovers(tmp_path: Path) -> None:
    if not may_mount():
        pytest.skip("this machine lets nobody mount a small disk in a namespace of their own")
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", "tests.full_disk"]
    played = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert played.returncode == 0, played.stdout + played.stderr
    assert "Traceback" not in played.stdout
    for state in ("nearly full", "refuses writes", "there is room on the disk again"):
        assert played.stdout.count(state) <= 4, "said when it changes, not over and over"
        assert state in played.stdout


@pytest.mark.timeout(120)
def test_a_node_that_may_write_no_more_stays_up_and_serves_what_it_has(
    make_home: Callable[..., Home], tmp_path: Path
) -> None:
    """Needs no privilege: the kernel refuses to let the files of this process grow, as a quota would."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    source, middle, reader = make_home("source"), make_home("middle", address), make_home("reader")
    for outer, other in ((source, reader), (reader, source)):
        add_peer(outer, middle.me.text, "middle", address, query_only=False)
        add_peer(middle, outer.me.text, outer.settings.name, None, query_only=False)
        add_peer(outer, other.me.text, other.settings.name, None, query_only=False)

    def publish() -> Record:
        return source.author.sealed(Kind.SUMMARY, bytes(32), os.urandom(800_000), EpochKey(1, new_epoch_key()))

    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))"
    log = open(tmp_path / "middle.log", "wb")  # noqa: SIM115 - closed with the process
    sites = [Site("source", source.path, None), Site("reader", reader.path, None)]
    process = subprocess.Popen(
        after(limit, [sys.executable, "-m", "node", "--home", str(middle.path), "serve"]), stdout=log, stderr=log
    )
    try:
        first = publish()
        sites[0].start()
        until(lambda: state(middle, first) is HeldState.COMPLETE)
        for _ in range(10):
            publish()
        until(lambda: "refuses writes" in (tmp_path / "middle.log").read_text())
        sites[1].start()
        until(lambda: state(reader, first) is HeldState.COMPLETE)
        assert process.poll() is None
        assert "Traceback" not in (tmp_path / "middle.log").read_text()
    finally:
        process.kill()
        process.wait()
        log.close()
        for site in sites:
            site.stop()
    whole = [held for held in Home.open(middle.path).store.held() if held.state is HeldState.COMPLETE]
    for held in whole:
        if held.record.header.body_bytes:
            assert middle.store.body(held.record.id)


def state(home: Home, record: Record) -> HeldState | None:
    held = home.store.get(record.id)
    return held.state if held else None


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40.0
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
