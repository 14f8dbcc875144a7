"""Migrations: a store that an older Tidings wrote opens with everything in it, or stays as it was."""

from __future__ import annotations

import gzip
import sqlite3
import threading
from pathlib import Path

import pytest

from crypto.keys import Identity
from node import migrations
from node.database import STORE_FILE
from node.errors import StoreError
from node.local_tables import Peer
from node.records import HeldState
from node.store import Store

VERSION_1 = Path(__file__).parent / "vectors" / "store" / "version-1.db.gz"
"""Written by the code of October 2026, schema 1: two numbers given out; a body that is whole, one of which nothing has
come, one that was taken back; three peers, one of them without an address and one query-only; a task; a link."""

ALICE, BOB, CAROL, DORA = (Identity.from_seed(bytes([number]) * 32).public_key for number in range(1, 5))


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """A home with the store of schema 1."""
    (tmp_path / STORE_FILE).write_bytes(gzip.decompress(VERSION_1.read_bytes()))
    return tmp_path


def version_of(home: Path) -> int:
    database = sqlite3.connect(home / STORE_FILE)
    try:
        return int(database.execute("PRAGMA user_version").fetchone()[0])
    finally:
        database.close()


def columns_of(home: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every table's columns with their types, defaults and keys, and its foreign keys."""
    database = sqlite3.connect(home / STORE_FILE)
    try:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: sorted(row[1:] for row in database.execute(f"PRAGMA table_info({name})"))
            + list(database.execute(f"PRAGMA foreign_key_list({name})"))
            for name in tables
        }
    finally:
        database.close()


def test_everything_that_an_operator_or_a_peer_gave_survives(old_home: Path) -> None:
    assert version_of(old_home) == 1
    store = Store.open(old_home)
    assert store.peers() == [
        Peer(ALICE, "alice", ("10.0.0.7:7410",), query_only=False, added_at=1.0),
        Peer(BOB, "bob", (), query_only=False, added_at=2.0),
        Peer(DORA, "dora", ("[::1]:7410",), query_only=True, added_at=3.0),
    ]
    whole, wanted, buried, withdrawal = store.held()
    states = [held.state for held in (whole, wanted, buried, withdrawal)]
    assert states == [HeldState.COMPLETE, HeldState.FETCHING, HeldState.BURIED, HeldState.COMPLETE]
    assert len(store.body(whole.record.id)) == 5_000
    assert buried.buried_by == withdrawal.record.id
    assert store.record_of_note("release:1") == whole.record.id
    assert [task.name for task in store.tasks()] == ["heart"]
    assert store.reserve_sequence(ALICE)[1] == 3, "no number is given out twice"
    store.close()
    assert version_of(old_home) == migrations.SCHEMA_VERSION


def test_an_old_store_ends_up_with_the_columns_of_a_new_one(old_home: Path, tmp_path: Path) -> None:
    Store.open(old_home).close()
    Store.create(tmp_path / "new").close()
    assert columns_of(old_home) == columns_of(tmp_path / "new")


def test_a_migrated_store_opens_again_without_another_change(old_home: Path) -> None:
    Store.open(old_home).close()
    before = (old_home / STORE_FILE).read_bytes()
    Store.open(old_home).close()
    assert (old_home / STORE_FILE).read_bytes() == before


def test_a_step_that_fails_leaves_the_old_store_whole(old_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = columns_of(old_home)
    broken = "CREATE TABLE half (done INTEGER) STRICT;\nDROP TABLE nowhere;\n"
    monkeypatch.setattr(migrations, "STEPS", (broken,))
    with pytest.raises(StoreError):
        Store.open(old_home)
    assert version_of(old_home) == 1
    assert columns_of(old_home) == before
    monkeypatch.undo()
    assert len(Store.open(old_home).peers()) == 3


def test_several_processes_that_open_an_old_store_at_once_migrate_it_once(old_home: Path) -> None:
    seen: list[object] = []

    def open_it() -> None:
        try:
            store = Store.open(old_home)
            seen.append([peer.name for peer in store.peers()])
            store.close()
        except StoreError as error:
            seen.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["alice", "bob", "dora"]] * 8


def test_a_damaged_old_store_is_refused_and_not_migrated(old_home: Path) -> None:
    data = bytearray((old_home / STORE_FILE).read_bytes())
    data[4096 * 3 : 4096 * 9] = bytes(4096 * 6)
    (old_home / STORE_FILE).write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(old_home)
    assert version_of(old_home) == 1
