"""Store: what it says it kept is there after a kill, a cut file is refused in one sentence, tombstones hold."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.keys import Identity
from node.database import STORE_FILE
from node.errors import StoreError
from node.local_tables import AcceptedTask, LinkReport, Peer
from node.migrations import SCHEMA_VERSION
from node.pb import tidings_pb2 as pb
from node.records import Held, HeldState, Kind, Record
from node.simulation.network import seeded
from node.simulation.store import MemoryStore, author_record
from node.store import Store

ALICE = Identity.from_seed(bytes([1]) * 32)
BOB = Identity.from_seed(bytes([2]) * 32)
BODY = seeded(0).randbytes(150_000)
CHUNKS = [BODY[start : start + 65_536] for start in range(0, len(BODY), 65_536)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.create(tmp_path / "home")
    yield opened
    opened.close()


def partly(store: Store, record: Record, *indexes: int) -> Held:
    """Keep the record and some of its chunks."""
    held = store.add_record(record)
    for index in indexes:
        held = store.add_chunk(record.id, index, CHUNKS[index])
    return held


# -------------------------------------------------------------------------------------------------- the file


def test_a_new_store_is_for_its_owner_only(tmp_path: Path) -> None:
    os.umask(0)
    try:
        store = Store.create(tmp_path / "home")
        store.reserve_sequence(ALICE.public_key)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "home").iterdir()}
    finally:
        os.umask(0o022)
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert modes == dict.fromkeys([STORE_FILE, f"{STORE_FILE}-wal", f"{STORE_FILE}-shm"], 0o600)


def test_every_change_waits_for_the_disk(store: Store) -> None:
    """A kill cannot show this, only a power cut: so ask SQLite how it was told to work."""
    pragmas = ("journal_mode", "synchronous", "foreign_keys")
    assert [store._rows(f"PRAGMA {name}") for name in pragmas] == [[("wal",)], [(2,)], [(1,)]]


def test_a_store_is_not_made_twice(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="already a store"):
        Store.create(tmp_path / "home")


def test_a_home_without_a_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is gone: restore its home from a backup"):
        Store.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_a_newer_version_is_refused(store: Store, tmp_path: Path) -> None:
    store.close()
    database = sqlite3.connect(tmp_path / "home" / STORE_FILE)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(StoreError, match="a newer version of Tidings"):
        Store.open(tmp_path / "home")


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / STORE_FILE)
    database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.close()
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path)


def full_store(home: Path) -> Path:
    """A closed store with a body in it; returns its file."""
    store = Store.create(home)
    store.add(author_record(ALICE, 1, BODY), BODY)
    for number in range(40):
        key = Identity.from_seed(bytes([number]) * 32).public_key
        store.add_peer(Peer(key, f"peer {number}", (), query_only=False, added_at=1.0))
        store.set_links([LinkReport(key, "waiting", "no address is known for it", 1.0, None, 0, 0)])
    store.close()
    return home / STORE_FILE


def read_everything(home: Path) -> list[tuple[bytes, bytes]]:
    """Touch what any command might touch; returns header bytes and body of every record."""
    store = Store.open(home)
    try:
        store.peers(), store.tasks(), store.links(), store.reserve_sequence(ALICE.public_key)
        return [(held.record.header_bytes, store.body(held.record.id)) for held in store.held()]
    finally:
        store.close()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_a_truncated_store_is_one_clear_error(tmp_path: Path, share: float) -> None:
    path = full_store(tmp_path / "home")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(StoreError, match=r"damaged.*backup"):
        read_everything(tmp_path / "home")


def test_random_bytes_in_a_store_are_found_or_touch_nothing(tmp_path: Path) -> None:
    """No traceback and nothing wrong handed out: all reads as it was written, or a StoreError says what is wrong."""
    path = full_store(tmp_path / "home")
    intact, written = path.read_bytes(), read_everything(tmp_path / "home")
    outcomes = set()
    for seed in range(60):
        rng = seeded(seed)
        damaged = bytearray(intact)
        start = rng.randrange(len(intact) - 512)
        damaged[start : start + 512] = rng.randbytes(512)
        path.write_bytes(damaged)
        outcomes.add(verdict(tmp_path / "home", written))
    assert outcomes == {"as it was written", f"The store {path} is damaged"}


def verdict(home: Path, written: list[tuple[bytes, bytes]]) -> str:
    """What reading a store comes to."""
    try:
        return "as it was written" if read_everything(home) == written else "something else"
    except StoreError as error:
        return str(error).split(":")[0]


def test_a_chunk_that_rots_on_disk_is_not_handed_out(store: Store, tmp_path: Path) -> None:
    record = author_record(ALICE, 1, BODY)
    store.add(record, BODY)
    rot = sqlite3.connect(tmp_path / "home" / STORE_FILE)
    rot.execute("UPDATE chunks SET data = zeroblob(65536) WHERE number = 1")
    rot.commit()
    rot.close()
    with pytest.raises(StoreError, match="damaged"):
        store.body(record.id)
    with pytest.raises(StoreError, match="damaged"):
        store.chunk(record.id, 1)
    assert store.chunk(record.id, 0) == CHUNKS[0]


def test_a_header_that_rots_on_disk_is_not_handed_out(store: Store, tmp_path: Path) -> None:
    """The damage is to the origin's clock, which nothing else would notice."""
    record = author_record(ALICE, 1, BODY)
    store.add(record, BODY)
    message = pb.Header.FromString(record.header_bytes)
    message.created_unix_ms += 1
    rot = sqlite3.connect(tmp_path / "home" / STORE_FILE)
    rot.execute("UPDATE records SET header = ?", (message.SerializeToString(),))
    rot.commit()
    rot.close()
    with pytest.raises(StoreError, match="damaged"):
        store.get(record.id)


def test_damage_where_nothing_reads_yet_is_found_when_the_store_is_opened(tmp_path: Path) -> None:
    path = full_store(tmp_path / "home")
    database = sqlite3.connect(path)
    (page,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'records_by_superseded'").fetchone()
    (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(bytes(16))
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path / "home")


# --------------------------------------------------------------------------------------------------- records


def test_a_whole_record_comes_back_with_its_body(store: Store) -> None:
    record = author_record(ALICE, 1, BODY)
    held = store.add(record, BODY, note="release-1")
    assert (held.record, held.state, held.missing) == (record, HeldState.COMPLETE, ())
    assert store.body(record.id) == BODY
    assert store.chunk(record.id, 2) == CHUNKS[2]
    assert store.chunk(record.id, 3) is None
    assert store.record_of_note("release-1") == record.id
    assert store.record_of_note("release-2") is None


def test_adding_a_record_again_changes_nothing(store: Store) -> None:
    record = author_record(ALICE, 1, BODY)
    first = store.add(record, BODY)
    assert store.add(record, BODY) == first
    assert store.add_record(record) == first
    assert len(store.held()) == 1


def test_another_body_than_the_header_describes_is_refused(store: Store) -> None:
    record = author_record(ALICE, 1, BODY)
    for wrong in (None, BODY[:-1], BODY + b"x", BODY[::-1]):
        with pytest.raises(StoreError, match="not the one"):
            store.add(record, wrong)
    assert store.held() == []


def test_a_record_arrives_in_pieces_across_restarts(store: Store, tmp_path: Path) -> None:
    record = author_record(ALICE, 1, BODY)
    assert partly(store, record, 1).missing == (0, 2)
    store.close()
    reopened = Store.open(tmp_path / "home")
    assert [held.missing for held in reopened.held()] == [(0, 2)]
    with pytest.raises(StoreError, match="not all of it"):
        reopened.body(record.id)
    assert partly(reopened, record, 0).state is HeldState.FETCHING
    assert partly(reopened, record, 2).state is HeldState.COMPLETE
    assert reopened.body(record.id) == BODY


def test_a_chunk_that_comes_twice_changes_nothing(store: Store) -> None:
    record = author_record(ALICE, 1, BODY)
    assert partly(store, record, 1) == partly(store, record, 1)


def test_a_chunk_of_the_wrong_size_or_of_an_unknown_record_is_refused(store: Store) -> None:
    record = author_record(ALICE, 1, BODY)
    store.add_record(record)
    with pytest.raises(StoreError, match="size"):
        store.add_chunk(record.id, 2, CHUNKS[0])
    with pytest.raises(StoreError, match="not held"):
        store.add_chunk(bytes(32), 0, CHUNKS[0])


@pytest.mark.parametrize("first", ["the body", "half of the body", "the header", "the withdrawal"])
def test_a_withdrawn_record_is_buried_whichever_comes_first(store: Store, first: str) -> None:
    record = author_record(ALICE, 1, BODY)
    withdrawal = author_record(ALICE, 2, supersedes=record.id)
    match first:
        case "the body":
            store.add(record, BODY)
        case "half of the body":
            partly(store, record, 0, 1)
        case "the header":
            partly(store, record)
    store.add_record(withdrawal)
    held = store.add_record(record)
    assert (held.state, held.missing, held.buried_by) == (HeldState.BURIED, (), withdrawal.id)
    # Late chunks, and the whole record once more, change nothing.
    assert store.add_chunk(record.id, 0, CHUNKS[0]).state is HeldState.BURIED
    assert store.add(record, BODY).state is HeldState.BURIED
    assert store.chunk(record.id, 0) is None
    with pytest.raises(StoreError, match="not here"):
        store.body(record.id)


def test_a_withdrawal_by_another_origin_takes_nothing_back(store: Store) -> None:
    record = author_record(ALICE, 1, BODY)
    store.add_record(author_record(BOB, 1, supersedes=record.id))
    store.add(record, BODY)
    store.add_record(author_record(BOB, 2, supersedes=record.id))
    assert store.body(record.id) == BODY


def test_a_withdrawal_cannot_itself_be_taken_back(store: Store) -> None:
    record = author_record(ALICE, 1, BODY)
    withdrawal = author_record(ALICE, 2, supersedes=record.id)
    for one in (record, withdrawal, author_record(ALICE, 3, supersedes=withdrawal.id)):
        store.add_record(one)
    states = {held.record.header.sequence: held.state for held in store.held()}
    assert states == {1: HeldState.BURIED, 2: HeldState.COMPLETE, 3: HeldState.COMPLETE}


def test_the_second_record_for_one_sequence_is_refused(store: Store) -> None:
    store.add(author_record(ALICE, 1, BODY), BODY)
    with pytest.raises(StoreError, match="two records with one sequence"):
        store.add(author_record(ALICE, 1, BODY[::-1]), BODY[::-1])
    assert len(store.held()) == 1


def test_records_are_found_by_kind_task_origin_and_prefix(store: Store) -> None:
    summary, withdrawal = author_record(ALICE, 1, BODY), author_record(BOB, 1, supersedes=bytes(32))
    store.add(summary, BODY)
    store.add(withdrawal)
    ids = [summary.id, withdrawal.id]
    assert [held.record.id for held in store.held()] == ids
    assert [held.record.id for held in store.held(kind=Kind.WITHDRAWAL)] == ids[1:]
    assert [held.record.id for held in store.held(task_id=bytes(32))] == ids[:1]
    assert [held.record.id for held in store.held(origin=BOB.public_key)] == ids[1:]
    assert store.held(kind=Kind.SUMMARY, origin=BOB.public_key) == []
    assert [held.record.id for held in store.find(summary.id.hex()[:10].upper())] == ids[:1]
    assert store.find("%") == []


def test_what_arrived_after_a_position_is_told_once(store: Store) -> None:
    store.add_record(author_record(ALICE, 1, BODY))
    held, position = store.held_after(0)
    assert len(held) == 1
    assert store.held_after(position) == ([], position)
    late = author_record(ALICE, 2, BODY)
    store.add_record(late)
    assert [one.record for one in store.held_after(position)[0]] == [late]


def test_a_batch_is_kept_whole_or_not_at_all(store: Store) -> None:
    records = [author_record(ALICE, sequence, BODY) for sequence in (1, 2)]

    def keep_both(second_body: bytes) -> None:
        with store.batch():
            store.add(records[0], BODY)
            store.add(records[1], second_body)

    with pytest.raises(StoreError, match="not the one"):
        keep_both(BODY[::-1])
    assert store.held() == []
    keep_both(BODY)
    assert len(store.held()) == 2


def test_a_note_belongs_to_one_record(store: Store) -> None:
    store.add(author_record(ALICE, 1, BODY), BODY, note="release")
    with pytest.raises(StoreError):
        store.add(author_record(ALICE, 2, BODY), BODY, note="release")
    assert len(store.held()) == 1


Step = tuple[str, int, int]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["record", "chunk", "withdraw"]), st.integers(1, 3), st.integers(0, 2))))
def test_the_simulators_store_means_the_same_as_the_real_one(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    real, memory = Store.create(tmp_path_factory.mktemp("store") / "home"), MemoryStore()
    records = {number: author_record(ALICE, number, BODY) for number in (1, 2, 3)}
    for what, number, index in steps:
        record = records[number]
        withdrawal = author_record(ALICE, 10 + number, supersedes=record.id)
        for store in (real, memory):
            if what == "record":
                store.add_record(record)
            elif what == "withdraw":
                store.add_record(withdrawal)
            elif store.get(record.id):
                store.add_chunk(record.id, index, CHUNKS[index])
    assert [state_of(held) for held in real.held()] == [state_of(held) for held in memory.held()]
    for number, index in ((n, i) for n in records for i in range(3)):
        assert real.chunk(records[number].id, index) == memory.chunk(records[number].id, index)
    real.close()


def state_of(held: Held) -> tuple[bytes, HeldState, tuple[int, ...], bytes | None]:
    return held.record.id, held.state, held.missing, held.buried_by


# ----------------------------------------------------------------------------------------- peers, tasks and links


def test_peers_are_added_changed_and_removed(store: Store) -> None:
    alice = Peer(ALICE.public_key, "alice", ("localhost:1",), query_only=False, added_at=1.0)
    bob = Peer(BOB.public_key, "bob", (), query_only=True, added_at=2.0)
    store.add_peer(bob)
    store.add_peer(alice)
    assert store.peers() == [alice, bob]
    moved = Peer(ALICE.public_key, "Alice", ("localhost:2", "[::1]:2"), query_only=False, added_at=9.0)
    store.add_peer(moved)
    assert store.peers()[0] == Peer(moved.key, moved.name, moved.addresses, moved.query_only, added_at=1.0)
    with pytest.raises(StoreError, match="another peer named ALICE"):
        store.add_peer(Peer(BOB.public_key, "ALICE", (), query_only=False, added_at=3.0))
    assert store.remove_peer(ALICE.public_key)
    assert not store.remove_peer(ALICE.public_key)
    assert store.peers() == [bob]


def test_tasks_are_accepted_once_and_by_one_name(store: Store) -> None:
    store.accept_task(b"a" * 32, "heart", b"{}")
    store.accept_task(b"a" * 32, "heart", b"{}")
    assert [(task.task_id, task.name, task.canonical) for task in store.tasks()] == [(b"a" * 32, "heart", b"{}")]
    assert isinstance(store.tasks()[0], AcceptedTask)
    with pytest.raises(StoreError, match="another task named Heart"):
        store.accept_task(b"b" * 32, "Heart", b"{}")


def test_link_reports_are_replaced_and_cleared(store: Store) -> None:
    first = LinkReport(ALICE.public_key, "linked", "", 1.0, 2.0, 3, 4)
    later = LinkReport(ALICE.public_key, "unreachable", "no answer", 5.0, None, 3, 4, 6.0)
    store.set_links([first])
    store.set_links([later])
    assert store.links() == [later]
    store.clear_reports()
    assert store.links() == []


def test_a_notice_keeps_its_age_until_it_is_dropped(store: Store) -> None:
    store.set_notice(ALICE.public_key, "disk", "the disk is low: 90 MB are left")
    (first,) = store.notices()
    store.set_notice(BOB.public_key, "disk", "another")
    store.set_notice(ALICE.public_key, "disk", "the disk is low: 80 MB are left")
    assert store.notices()[0] == replace(first, reason="the disk is low: 80 MB are left")
    store.drop_notice(ALICE.public_key, "disk")
    store.drop_notice(ALICE.public_key, "disk")
    assert [notice.about for notice in store.notices()] == [BOB.public_key]


def test_what_a_daemon_tells_is_forgotten_when_one_starts_or_ends(store: Store) -> None:
    store.set_links([LinkReport(ALICE.public_key, "linked", "", 1.0, 2.0, 3, 4)])
    store.set_notice(ALICE.public_key, "alarm", "it came back with another store")
    store.set_unsourced([b"r" * 32])
    store.set_listening("[::]:7410")
    store.set_listening("[::1]:7410")
    assert (store.unsourced(), store.listening()) == ({b"r" * 32}, "[::1]:7410")
    store.clear_reports()
    assert (store.links(), store.notices(), store.unsourced(), store.listening()) == ([], [], set(), None)


def test_a_removed_peer_leaves_no_addresses_reports_or_notices(store: Store) -> None:
    store.add_peer(Peer(ALICE.public_key, "alice", ("a:1", "b:2"), query_only=False, added_at=1.0))
    store.set_links([LinkReport(ALICE.public_key, "linked", "", 1.0, 2.0, 3, 4)])
    store.set_notice(ALICE.public_key, "alarm", "it came back with another store")
    store.remove_peer(ALICE.public_key)
    assert (store.links(), store.notices(), store._rows("SELECT * FROM peer_addresses")) == ([], [], [])


# ------------------------------------------------------------------------------------------- several processes


def test_two_connections_see_each_others_changes(store: Store, tmp_path: Path) -> None:
    counter = store.change_counter()
    store.add_peer(Peer(BOB.public_key, "bob", (), query_only=False, added_at=1.0))
    assert store.change_counter() == counter, "our own changes are no news to us"
    other = Store.open(tmp_path / "home")
    other.add(author_record(ALICE, 1, BODY), BODY)
    assert store.change_counter() != counter
    assert len(store.held()) == 1
    assert other.peers() == store.peers()
    other.close()


WRITER = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from crypto.keys import Identity
    from node.store import Store
    from node.simulation.store import author_record

    alice, home = Identity.from_seed(bytes([1]) * 32), Path(sys.argv[1])

    def write():
        store = Store.open(home)
        while True:
            incarnation, sequence = store.reserve_sequence(alice.public_key)
            print("reserved", sequence, flush=True)
            body = sequence.to_bytes(8, "big") * 5_000
            record = author_record(alice, sequence, body, incarnation=incarnation, chunk_bytes=16_384)
            if sequence % 2:
                store.add(record, body)
            else:
                store.add_record(record)
                for index in range(3):
                    store.add_chunk(record.id, index, body[index * 16_384 : (index + 1) * 16_384])
            print("kept", record.id.hex(), flush=True)

    # One process imports everything; each line on stdin forks a writer, which the test kills.
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            write()
        print("started", child, flush=True)
        os.waitpid(child, 0)
        print("ended", child, flush=True)
    """
)


def start_writer(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )


def one_life(writer: subprocess.Popen[str], words: int) -> tuple[list[int], list[str]]:
    """Let a writer live for that many lines, kill it, and return what it said it reserved and kept."""
    commands, said = pipe(writer.stdin), pipe(writer.stdout)
    commands.write("go\n")
    commands.flush()
    reserved: list[int] = []
    kept: list[str] = []
    child = 0
    for line in said:
        word, value = line.split()
        match word:
            case "started":
                child = int(value)
            case "reserved":
                reserved.append(int(value))
            case "kept":
                kept.append(value)
            case "ended":
                return reserved, kept
        if child and len(reserved) + len(kept) >= words:
            os.kill(child, signal.SIGKILL)
            child = 0  # once: what it had still said comes after it is gone, and its number may be taken
    raise AssertionError("the writer's parent died")


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@pytest.mark.parametrize("kills", [60, pytest.param(1_000, marks=pytest.mark.soak)])
def test_kill_dash_9_loses_nothing_acknowledged_and_repeats_no_sequence(tmp_path: Path, kills: int) -> None:
    home = tmp_path / "home"
    Store.create(home).close()
    rng = seeded(9)
    reserved: list[int] = []
    kept: list[str] = []
    with start_writer(home) as writer:
        for _ in range(kills):
            new_reserved, new_kept = one_life(writer, rng.randint(1, 14))
            reserved += new_reserved
            kept += new_kept
            assert_whole(home, new_kept)
        pipe(writer.stdin).close()
    assert_whole(home, kept)
    assert len(kept) > kills
    assert len(reserved) == len(set(reserved)), "a sequence was given out twice"
    store = Store.open(home)
    assert store.reserve_sequence(ALICE.public_key)[1] > max(reserved)
    store.close()


def assert_whole(home: Path, kept: list[str]) -> None:
    """A store that opens clean and has all of these records, body and all."""
    store = Store.open(home)
    for record_id in map(bytes.fromhex, kept):
        held = store.get(record_id)
        assert held is not None
        assert store.body(record_id) == held.record.header.sequence.to_bytes(8, "big") * 5_000
    store.close()


RESERVER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from crypto.keys import Identity
    from node.store import Store

    store, alice = Store.open(Path(sys.argv[1])), Identity.from_seed(bytes([1]) * 32)
    print(*[store.reserve_sequence(alice.public_key)[1] for _ in range(100)])
    """
)


def test_processes_that_reserve_at_once_never_share_a_sequence(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RESERVER, str(tmp_path / "home")]
    root = Path(__file__).parent.parent
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    ours = [store.reserve_sequence(ALICE.public_key)[1] for _ in range(100)]
    theirs = [int(word) for other in others for word in other.communicate()[0].split()]
    assert sorted(ours + theirs) == list(range(1, 401))


def test_a_sequence_is_not_reserved_where_it_could_be_rolled_back(store: Store) -> None:
    with store.batch(), pytest.raises(RuntimeError):
        store.reserve_sequence(ALICE.public_key)


def test_a_record_of_our_own_that_another_copy_signed_begins_a_new_incarnation(store: Store) -> None:
    me = ALICE.public_key
    incarnation, sequence = store.reserve_sequence(me)
    store.add_record(author_record(ALICE, sequence, incarnation=incarnation, supersedes=bytes(32)))
    store.add_record(author_record(BOB, sequence + 5, incarnation=incarnation, supersedes=bytes(32)))
    assert store.reserve_sequence(me) == (incarnation, sequence + 1), "nothing of ours is strange"
    store.add_record(author_record(ALICE, sequence + 3, incarnation=incarnation, supersedes=bytes(32)))
    apart, after = store.reserve_sequence(me)
    assert apart != incarnation
    assert store.reserve_sequence(me) == (apart, after + 1), "the old incarnation's records are no reason for another"


def test_a_record_of_our_own_that_clashes_with_one_here_begins_a_new_incarnation(store: Store) -> None:
    me = ALICE.public_key
    incarnation, sequence = store.reserve_sequence(me)
    store.add_record(author_record(ALICE, sequence, incarnation=incarnation, supersedes=bytes(32)))
    store.add_conflict(author_record(ALICE, sequence, incarnation=incarnation, supersedes=bytes([1]) * 32))
    assert store.reserve_sequence(me)[0] != incarnation
