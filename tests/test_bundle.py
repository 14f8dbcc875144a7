"""Bundles: gossip by courier. What goes in comes out, what fails a check does not, and nothing is lost on the way."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.keys import EncryptionKey, Identity
from crypto.sealing import chunk_hashes
from crypto.signing import BUNDLE_LABEL, sign
from node import wire
from node.bundle_export import export_bundle, parse_since
from node.bundle_file import (
    LENGTH_BYTES,
    MAGIC,
    PREAMBLE_BYTES,
    START_BYTES,
    BundleReader,
    BundleWriter,
    Ending,
    Recipient,
    _OpenOut,
    _SealedOut,
)
from node.bundle_import import Imported, import_bundle
from node.config import FRAME_LIMIT_BYTES
from node.errors import BundleError, NotReadable, StoreError, UsageError
from node.frames import Frame, Hello, Records, SignedRecord
from node.home import Home
from node.membership import add_peer, remove_peer
from node.records import Header, HeldState, Kind, Record
from node.store import Store

MakeHome = Callable[..., Home]
REPOSITORY = Path(__file__).parent.parent
TASK = b"t" * 32


def knows(one: Home, *others: Home) -> None:
    for other in others:
        add_peer(one, other.me.text, other.settings.name, None, query_only=False)


def summary(home: Home, body_bytes: int, supersedes: bytes = b"") -> Record:
    """A sealed record of random bytes."""
    return home.author.sealed(Kind.SUMMARY, TASK, os.urandom(body_bytes), home.epochs.live(), supersedes=supersedes)


def by(
    identity: Identity, sequence: int, body: bytes = b"", *, created: int = 0, hashes: tuple[bytes, ...] = ()
) -> Record:
    """A record of somebody without a home: a summary, or a withdrawal of nothing that exists."""
    header = Header(Kind.WITHDRAWAL, identity.public_key, b"incarnat", sequence, created, supersedes=bytes(32))
    if body:
        hashes = hashes or chunk_hashes(body, 1024)
        header = replace(header, kind=Kind.SUMMARY, supersedes=b"", epoch=1, task_id=TASK, body_bytes=len(body))
        header = replace(header, chunk_bytes=1024, chunk_hashes=hashes, key_commitment=bytes(32))
    return wire.author(identity, header)


def written(identity: Identity, *parts: Record | tuple[bytes, int, bytes], announced: int = 0) -> bytes:
    """An open bundle by this identity, of records and (record id, index, data) chunks, whatever they are."""
    file = io.BytesIO()
    writer = BundleWriter(file, identity, None, 0, announced)
    for part in parts:
        if isinstance(part, Record):
            writer.record(part)
        else:
            writer.chunk(*part)
    writer.finish()
    return file.getvalue()


def framed(identity: Identity, *frames: bytes) -> bytes:
    """An open, signed bundle of frames that no writer of ours would write."""
    content = identity.public_key.raw + bytes(48) + b"".join(frames)
    content = MAGIC + b"\1\0" + content + bytes(LENGTH_BYTES)
    digest = hashlib.blake2b(content, digest_size=32, person=b"tidings-bndl-v1").digest()
    return content + sign(identity, BUNDLE_LABEL, digest)


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def boundaries(bundle: bytes) -> list[int]:
    """Where each part of an open bundle begins, and its end."""
    at = PREAMBLE_BYTES + START_BYTES
    found = [0, len(MAGIC), PREAMBLE_BYTES, at]
    while size := int.from_bytes(bundle[at : at + LENGTH_BYTES], "big"):
        at += LENGTH_BYTES + size
        found.append(at)
    return [*found, at + LENGTH_BYTES, len(bundle)]


def contents(home: Home) -> dict[bytes, tuple[bytes, HeldState, tuple[int, ...]]]:
    return {held.record.id: (held.record.header_bytes, held.state, held.missing) for held in home.store.held()}


def same(one: Home, other: Home) -> bool:
    """Whether two stores hold the same, chunks included."""
    ids = contents(one)
    chunks = all(
        one.store.chunk(record_id, index) == other.store.chunk(record_id, index)
        for record_id in ids
        for index in range(len(one.store.get(record_id).record.header.chunk_hashes))  # type: ignore[union-attr]
    )
    return ids == contents(other) and chunks


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    return tmp_path / "news.bundle"


@pytest.fixture
def pair(make_home: MakeHome) -> tuple[Home, Home]:
    """Two members that never meet, as an operator sets them up."""
    a, b = make_home("anna"), make_home("bert")
    knows(a, b)
    knows(b, a)
    return a, b


# ----------------------------------------------------------------------------------------------------------- round trip


def test_everything_settled_comes_out_as_it_went_in(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    for size in (1, 3_000, 5_000, 200_000):
        summary(a, size)
    a.author.withdrawal(summary(a, 100))
    exported = export_bundle(a, stick)
    imported = import_bundle(b, stick)
    of_b = {record_id for record_id, held in contents(b).items() if b.store.get(record_id).record.header.origin == b.me}  # type: ignore[union-attr]
    assert {key: held for key, held in contents(b).items() if key not in of_b} == contents(a)
    assert (exported.records, imported.new, imported.is_complete) == (len(contents(a)), len(contents(a)), True)
    assert imported.exporter == a.me
    assert (imported.completed, imported.granted) == (4, 1)


def test_a_bundle_for_a_peer_comes_out_the_same_and_shows_nothing(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    export_bundle(b, stick)
    import_bundle(a, stick)
    record = summary(a, 200_000)
    export_bundle(a, stick, a.peers.peer_of("bert"))
    found = stick.read_bytes()
    secrets = [a.me.raw, b.me.raw, TASK, record.id, record.signature, a.me.text.encode(), *record.header.chunk_hashes]
    assert not any(secret in found for secret in secrets)
    assert (len(found) - 16 - 1168 - 24) % (64 * 1024 + 17) == 0
    assert import_bundle(b, stick).is_complete
    assert b.store.body(record.id) == a.store.body(record.id)
    assert b.epochs.open(b.store.get(record.id))  # type: ignore[arg-type]


@settings(max_examples=15)
@given(sizes=st.lists(st.integers(0, 70_000), max_size=6), sealed=st.booleans())
def test_any_sizes_survive_either_form(
    sizes: list[int], sealed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    identity, reader, key = Identity.generate(), Identity.generate(), EncryptionKey.generate()
    bodies = {by(identity, number + 1, os.urandom(max(size, 40))): size for number, size in enumerate(sizes)}
    path = folder / "b"
    with path.open("wb") as file:
        recipient = Recipient(reader.public_key, key.public) if sealed else None
        writer = BundleWriter(file, identity, recipient, 5, len(bodies))
        for record in bodies:
            writer.record(record)
            for index in range(len(record.header.chunk_hashes)):
                writer.chunk(record.id, index, bytes([index % 256]) * 1024)
        writer.finish()
    with path.open("rb") as file:
        read = BundleReader(file, path, reader.public_key, [EncryptionKey.generate(), key])
        frames = list(read.frames())
    assert (read.ending, read.is_signed, read.is_sealed) == (Ending.WHOLE, True, sealed)
    assert read.start.exporter == identity.public_key
    assert [signed for one in frames if isinstance(one, Records) for signed in one.records] == [
        SignedRecord(record.header_bytes, record.signature) for record in bodies
    ]


def test_bodies_that_ride_along_are_taken_as_their_chunks_are(pair: tuple[Home, Home], stick: Path) -> None:
    """This node writes chunks; another may write small bodies beside their headers."""
    a, b = pair
    good, wrong = summary(a, 3_000), summary(a, 2_000)
    bodies = {good.id: a.store.body(good.id), wrong.id: bytes(2_000)}
    signed = (
        SignedRecord(h.record.header_bytes, h.record.signature, bodies.get(h.record.id, b"")) for h in a.store.held()
    )
    stick.write_bytes(framed(a.keystore.identity, frame(wire.encode(Records(tuple(signed))))))
    imported = import_bundle(b, stick)
    assert b.store.body(good.id) == bodies[good.id]
    assert (imported.completed, imported.unfinished, imported.looked.refused) == (1, 1, 1)


def test_a_second_import_changes_nothing_and_says_so(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    summary(a, 50_000)
    export_bundle(a, stick)
    import_bundle(b, stick)
    before = contents(b)
    again = import_bundle(b, stick)
    assert contents(b) == before
    assert (again.new, again.chunks, again.is_complete) == (0, 0, True)
    assert "nothing new" in again.describe()


def test_withdrawals_and_headers_come_first_and_large_bodies_last(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    large, small = summary(a, 100_000), summary(a, 1_000)
    taken = summary(a, 10)
    withdrawal = a.author.withdrawal(taken)
    export_bundle(a, stick)
    import_bundle(b, stick)
    order = [held.record.id for held in b.store.held() if held.record.header.origin != b.me]
    assert order[0] == withdrawal.id
    assert order[-3:] == [small.id, large.id, taken.id]


def test_a_courier_who_makes_the_round_twice_lets_everybody_read_everybody(make_home: MakeHome, stick: Path) -> None:
    homes = [make_home(name) for name in ("anna", "bert", "carla", "dora")]
    for home in homes:
        knows(home, *(other for other in homes if other is not home))
    records = [summary(home, 5_000) for home in homes]
    readable = []
    for _ in range(2):
        for home in homes:
            if stick.exists():
                assert import_bundle(home, stick).is_complete
            export_bundle(home, stick)
        readable.append(sum(can_read(home, record) for home in homes for record in records))
    assert readable == [4, 16]  # after one round the grants are on their way


def can_read(home: Home, record: Record) -> bool:
    held = home.store.get(record.id)
    try:
        return held is not None and bool(home.epochs.open(held))
    except NotReadable:
        return False


VECTORS = Path(__file__).parent / "vectors" / "bundle"
SEEDED = Identity.from_seed(bytes([7]) * 32)
SEEDED_KEY = EncryptionKey.from_bytes(bytes(range(96)))
"""Who made the vectors, and for whom: its own key, which anybody may know."""


def seeded_parts() -> tuple[Record | tuple[bytes, int, bytes], ...]:
    body = bytes(range(256)) * 5
    record = by(SEEDED, 2, body)
    return (by(SEEDED, 1), record, (record.id, 0, body[:1024]), (record.id, 1, body[1024:]))


def test_the_bytes_of_an_open_bundle_never_change() -> None:
    data = written(SEEDED, *seeded_parts(), announced=2)
    assert data == (VECTORS / "open.bundle").read_bytes()


@pytest.mark.parametrize("name", ["open", "sealed"])
def test_bundles_that_were_written_once_stay_readable(name: str, stick: Path) -> None:
    stick.write_bytes((VECTORS / f"{name}.bundle").read_bytes())
    with stick.open("rb") as file:
        reader = BundleReader(file, stick, SEEDED.public_key, [SEEDED_KEY])
        frames = list(reader.frames())
    assert (reader.ending, reader.is_signed, reader.is_sealed) == (Ending.WHOLE, True, name == "sealed")
    assert (reader.start.exporter, reader.start.records) == (SEEDED.public_key, 2)
    assert [type(one).__name__ for one in frames] == ["Records", "Chunk", "Chunk"]


# ---------------------------------------------------------------------------------------------------- export, in detail


def test_since_takes_what_arrived_then_and_what_buried_it(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    old = summary(a, 10)
    taken = summary(a, 10)
    withdrawal = a.author.withdrawal(taken)
    with a.store.batch():
        a.store._rows("UPDATE records SET received_at = 1000 WHERE id IN (?, ?)", old.id, withdrawal.id)
    exported = export_bundle(a, stick, since=2000.0)
    import_bundle(b, stick)
    assert b.store.get(old.id) is None
    assert b.store.get(taken.id).state is HeldState.BURIED  # type: ignore[union-attr]
    assert b.store.get(withdrawal.id) is not None
    assert exported.records == len(contents(a)) - 1
    with pytest.raises(BundleError, match="Nothing that arrived here"):
        export_bundle(a, stick, since=time.time() + 60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", 10_000_000 - 7 * 86_400),
        ("12h", 10_000_000 - 12 * 3_600),
        ("1.5 h", 10_000_000 - 5_400),
        ("30min", 10_000_000 - 1_800),
        ("2w", 10_000_000 - 14 * 86_400),
        ("90s", 10_000_000 - 90),
        ("99999w", 0),
        ("1970-01-02", 86_400),
        ("1970-01-02T01:00", 90_000),
        ("1970-01-02T01:00+01:00", 86_400),
        ("1970-01-02T01:00:00Z", 90_000),
    ],
)
def test_since_is_a_duration_or_a_moment(text: str, expected: float) -> None:
    assert parse_since(text, 10_000_000.0) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "7", "d", "-3d", "7 months", "2026-13-01", "12:00", "9" * 400 + "d"])
def test_a_since_that_is_no_time_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="write for example 7d"):
        parse_since(text, 0.0)


def test_a_peer_without_a_key_card_here_cannot_be_sealed_for(pair: tuple[Home, Home], stick: Path) -> None:
    with pytest.raises(BundleError, match="key card of bert is not here yet"):
        export_bundle(pair[0], stick, pair[0].peers.peer_of("bert"))
    assert not stick.exists()


def test_a_query_only_peer_gets_no_bundle(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    add_peer(a, b.me.text, "bert", None, query_only=True)
    with pytest.raises(BundleError, match="takes no part in gossip"):
        export_bundle(a, stick, a.peers.peer_of("bert"))


def test_what_strangers_wrote_and_what_is_not_whole_stays_here(
    pair: tuple[Home, Home], make_home: MakeHome, stick: Path
) -> None:
    a, b = pair
    c = make_home("carla")
    knows(a, c)
    of_c = summary(c, 10)
    a.store.add(of_c, c.store.body(of_c.id))
    half = summary(b, 50_000)
    a.store.add_record(half)
    a.store.add_chunk(half.id, 1, b.store.chunk(half.id, 1) or b"")
    remove_peer(a, "carla")
    export_bundle(a, stick)
    import_bundle(b, stick)
    assert b.store.get(of_c.id) is None
    knows(b, c)
    assert import_bundle(b, stick).looked.records == len(contents(a)) - 2


def test_an_export_leaves_other_files_alone_and_replaces_a_bundle(pair: tuple[Home, Home], tmp_path: Path) -> None:
    a, _ = pair
    notes = tmp_path / "notes.txt"
    notes.write_text("not a bundle")
    with pytest.raises(BundleError, match="is no bundle"):
        export_bundle(a, notes)
    with pytest.raises(BundleError, match="is no bundle"):
        export_bundle(a, tmp_path)
    with pytest.raises(BundleError, match="is the stick mounted"):
        export_bundle(a, tmp_path / "stick" / "news.bundle")
    assert notes.read_text() == "not a bundle"
    export_bundle(a, tmp_path / "b")
    first = (tmp_path / "b").read_bytes()
    summary(a, 10)
    export_bundle(a, tmp_path / "b")
    assert len((tmp_path / "b").read_bytes()) > len(first)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600


def test_an_export_that_fails_leaves_the_old_bundle_and_no_draft(pair: tuple[Home, Home], stick: Path) -> None:
    a, _ = pair
    record = summary(a, 100_000)
    export_bundle(a, stick)
    before, files = stick.read_bytes(), sorted(stick.parent.iterdir())
    a.store._rows("UPDATE chunks SET data = zeroblob(16384) WHERE number = 3")
    assert record.header.chunk_bytes == 16384
    with pytest.raises(StoreError, match="damaged"):
        export_bundle(a, stick)
    assert stick.read_bytes() == before
    assert sorted(stick.parent.iterdir()) == files


def test_what_is_withdrawn_while_it_is_exported_is_left_out(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    kept, taken = summary(a, 50_000), summary(a, 60_000)
    other = Home.open(a.path)  # a daemon, or a command
    withdrawn = False

    def withdraw_once(_: int) -> None:
        nonlocal withdrawn
        if not withdrawn:
            other.author.withdrawal(taken)
            withdrawn = True

    exported = export_bundle(a, stick, progress=withdraw_once)
    assert exported.left_out == 1
    assert import_bundle(b, stick).is_complete
    assert b.store.get(kept.id) is not None
    assert b.store.get(taken.id) is None


def test_a_record_that_is_withdrawn_between_its_chunks_is_still_exported_whole(
    pair: tuple[Home, Home], stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    taken = summary(a, 60_000)
    body = a.store.body(taken.id)
    other, read = Home.open(a.path), Store.chunk

    def withdrawn_meanwhile(store: Store, record_id: bytes, index: int) -> bytes | None:
        if index == 1 and other.store.get(taken.id).state is HeldState.COMPLETE:  # type: ignore[union-attr]
            other.author.withdrawal(taken)
        return read(store, record_id, index)

    monkeypatch.setattr(Store, "chunk", withdrawn_meanwhile)
    export_bundle(a, stick)
    assert a.store.get(taken.id).state is HeldState.BURIED  # type: ignore[union-attr]
    assert import_bundle(b, stick).is_complete
    assert b.store.body(taken.id) == body  # as it stood when its turn came; the withdrawal comes with the next bundle


def test_a_grant_that_is_due_travels_along(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    record = summary(a, 10)
    for held in b.store.held(kind=Kind.KEY_CARD):  # no command has looked at it yet
        a.store.add_record(held.record)
    export_bundle(a, stick)
    import_bundle(b, stick)
    assert can_read(b, record)


# ---------------------------------------------------------------------------------------------------------- who made it


@pytest.fixture
def three(make_home: MakeHome) -> tuple[Home, Home, Home]:
    """Anna knows bert and carla; bert knows anna alone; carla is nobody to bert."""
    a, b, c = make_home("anna"), make_home("bert"), make_home("carla")
    knows(a, b, c)
    knows(b, a)
    knows(c, a)
    return a, b, c


def test_a_strangers_bundle_of_trusted_records_is_taken(three: tuple[Home, Home, Home], stick: Path) -> None:
    a, b, c = three
    record = summary(a, 20_000)
    export_bundle(a, stick)
    import_bundle(c, stick)
    with c.store.batch():  # carla carries what anna wrote, and nothing else
        data = written(c.keystore.identity, *(held.record for held in c.store.held(origin=a.me)))
    stick.write_bytes(data)
    imported = import_bundle(b, stick)
    assert imported.exporter is None
    assert b.store.get(record.id) is not None


def test_a_strangers_bundle_with_records_of_strangers_is_refused_whole(
    three: tuple[Home, Home, Home], stick: Path
) -> None:
    a, b, c = three
    record = summary(a, 20_000)
    export_bundle(a, stick)
    import_bundle(c, stick)
    export_bundle(c, stick)
    before = contents(b)
    with pytest.raises(BundleError, match="which is no member here") as refused:
        import_bundle(b, stick)
    assert c.me.text in str(refused.value)
    assert contents(b) == before
    assert b.store.get(record.id) is None


def test_a_members_bundle_with_records_of_strangers_is_taken_without_them(
    three: tuple[Home, Home, Home], stick: Path
) -> None:
    a, b, c = three
    of_c = summary(c, 20_000)
    export_bundle(c, stick)
    import_bundle(a, stick)
    of_a = summary(a, 20_000)
    export_bundle(a, stick)
    imported = import_bundle(b, stick)
    assert b.store.get(of_c.id) is None
    assert b.store.body(of_a.id) == a.store.body(of_a.id)
    assert imported.looked.not_trusted == 3  # carla's key card, her summary, her grants
    assert imported.is_complete
    assert "no members here were left out" in imported.describe()


def test_who_names_another_as_the_maker_is_nobody(three: tuple[Home, Home, Home], stick: Path) -> None:
    a, b, c = three
    data = written(c.keystore.identity, *(held.record for held in c.store.held()))
    lie = bytearray(data)
    lie[PREAMBLE_BYTES : PREAMBLE_BYTES + 32] = a.me.raw
    stick.write_bytes(bytes(lie))
    before = contents(b)
    with pytest.raises(BundleError, match="nobody vouches for it"):
        import_bundle(b, stick)
    assert contents(b) == before


def test_a_query_only_peer_vouches_for_nothing(three: tuple[Home, Home, Home], stick: Path) -> None:
    _, b, c = three
    add_peer(b, c.me.text, "carla", None, query_only=True)
    export_bundle(c, stick)
    with pytest.raises(BundleError, match="no member here"):
        import_bundle(b, stick)


def test_a_bundle_for_somebody_else_is_refused_in_a_sentence(three: tuple[Home, Home, Home], stick: Path) -> None:
    a, b, c = three
    export_bundle(c, stick)
    import_bundle(a, stick)
    export_bundle(a, stick, a.peers.peer_of("carla"))
    with pytest.raises(BundleError, match="sealed for another node"):
        import_bundle(b, stick)


def test_a_bundle_that_was_sealed_again_for_somebody_else_is_vouched_for_by_nobody(
    three: tuple[Home, Home, Home], stick: Path
) -> None:
    """Carla opens what anna sealed for her and seals the very same bytes, anna's signature included, for bert."""
    a, b, c = three
    file = io.BytesIO()
    writer = BundleWriter(file, a.keystore.identity, Recipient(c.me, c.keystore.encryption_keys[0].public), 0, 0)
    content = io.BytesIO()
    writer._out = _OpenOut(content)
    start = a.me.raw + c.me.raw + bytes(16)
    content.write(start)
    for held in c.store.held():
        writer.record(held.record)
    writer.finish()
    again = io.BytesIO()
    again.write(MAGIC + b"\1\1")
    out = _SealedOut(again, Recipient(b.me, b.keystore.encryption_keys[0].public))
    out.write(content.getvalue())
    out.close()
    stick.write_bytes(again.getvalue())
    with pytest.raises(BundleError, match="nobody vouches for it"):
        import_bundle(b, stick)


# ------------------------------------------------------------------------------------------------------ cut and resumed


def test_a_bundle_that_ends_early_gives_what_is_whole_in_it(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    whole, cut = summary(a, 5_000), summary(a, 100_000)
    export_bundle(a, stick)
    stick.write_bytes(stick.read_bytes()[:-40_000])
    imported = import_bundle(b, stick)
    assert not imported.is_complete
    assert imported.exporter is None
    assert b.store.body(whole.id) == a.store.body(whole.id)
    held = b.store.get(cut.id)
    assert held is not None
    assert 0 < len(held.missing) < 7
    warning = imported.warnings()[-1]
    assert f"ends early: record {cut.id.hex()[:12]} lacks {len(held.missing)} of 7 chunks." in warning


def test_what_is_missing_comes_with_the_next_bundle_and_only_that_is_taken(
    pair: tuple[Home, Home], stick: Path
) -> None:
    a, b = pair
    cut = summary(a, 100_000)
    export_bundle(a, stick)
    whole = stick.read_bytes()
    stick.write_bytes(whole[:-40_000])
    first = import_bundle(b, stick)
    stick.write_bytes(whole)
    second = import_bundle(b, stick)
    assert (first.chunks + second.chunks, second.completed, second.new) == (7, 1, 0)
    assert b.store.body(cut.id) == a.store.body(cut.id)


def test_a_cut_bundle_that_also_holds_strangers_records_is_refused(three: tuple[Home, Home, Home], stick: Path) -> None:
    a, b, c = three
    export_bundle(c, stick)
    import_bundle(a, stick)
    export_bundle(a, stick)
    stick.write_bytes(stick.read_bytes()[:-1])
    with pytest.raises(BundleError, match="ends early, so that nobody vouches for it"):
        import_bundle(b, stick)


def assert_only_good(b: Home, of_a: dict[bytes, bytes], chunks: dict[tuple[bytes, int], bytes]) -> None:
    """Everything in the store but its own records is, byte for byte, what anna wrote."""
    for record_id, (header, _, missing) in contents(b).items():
        held = b.store.get(record_id)
        assert held is not None
        if held.record.header.origin == b.me:
            continue
        assert of_a[record_id] == header
        here = set() if held.state is HeldState.BURIED else set(range(len(held.record.header.chunk_hashes)))
        for index in here - set(missing):
            assert b.store.chunk(record_id, index) == chunks[record_id, index]


class Victim:
    """Bert, who forgets between imports what anna's bundles brought, her key card excepted (granting costs time)."""

    def __init__(self, a: Home, b: Home) -> None:
        self.home = b
        b.store._db.execute("PRAGMA synchronous = OFF")  # thousands of imports
        self.of_a = {held.record.id: held.record.header_bytes for held in a.store.held()}
        self.chunks = {
            (held.record.id, index): a.store.chunk(held.record.id, index) or b""
            for held in a.store.held()
            for index in range(len(held.record.header.chunk_hashes))
        }
        for held in a.store.held(kind=Kind.KEY_CARD):
            b.store.add_record(held.record)
        b.epochs.grant_missing()
        self._kept = [held.record.id for held in b.store.held()]

    def takes(self, data: bytes, stick: Path) -> Imported | None:
        stick.write_bytes(data)
        try:
            imported = import_bundle(self.home, stick)
        except BundleError:
            imported = None
        assert_only_good(self.home, self.of_a, self.chunks)
        if imported is None:
            assert [held.record.id for held in self.home.store.held()] == self._kept
        self.forget()
        return imported

    def forget(self) -> None:
        with self.home.store.batch():
            self.home.store._rows("DELETE FROM chunks")
            for record_id in contents(self.home).keys() - set(self._kept):
                self.home.store._rows("DELETE FROM records WHERE id = ?", record_id)


@pytest.fixture
def victim(pair: tuple[Home, Home]) -> Victim:
    a, b = pair
    for held in b.store.held(kind=Kind.KEY_CARD, origin=b.me):
        a.store.add_record(held.record)
    a.epochs.grant_missing()
    summary(a, 1_500)
    a.author.withdrawal(summary(a, 10))
    return Victim(a, b)


def test_a_bundle_cut_at_any_boundary_gives_what_is_whole_or_is_refused(
    pair: tuple[Home, Home], victim: Victim, stick: Path
) -> None:
    export_bundle(pair[0], stick)
    data = stick.read_bytes()
    places = {at + more for at in boundaries(data) for more in (-1, 0, 1)}
    for end in sorted(place for place in places if 0 <= place < len(data)):
        imported = victim.takes(data[:end], stick)
        assert imported is None or not imported.is_complete, end
        assert (imported is None) == (end < PREAMBLE_BYTES + START_BYTES)


@pytest.mark.parametrize("flips", [400, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_flipped_byte_never_gets_in(
    pair: tuple[Home, Home], victim: Victim, stick: Path, sealed: bool, flips: int
) -> None:
    a, _ = pair
    export_bundle(a, stick, a.peers.peer_of("bert") if sealed else None)
    data = stick.read_bytes()
    critical = range(PREAMBLE_BYTES + START_BYTES + 8) if not sealed else range(16)
    rng = random.Random(1)  # noqa: S311
    places = [*critical, *rng.sample(range(len(data)), min(flips, len(data))), *range(len(data) - 68, len(data))]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        imported = victim.takes(bytes(changed), stick)
        assert imported is None or imported.exporter is None, place


@pytest.mark.parametrize("sealed", [False, True])
def test_a_bundle_cut_anywhere_never_counts_as_whole(
    pair: tuple[Home, Home], stick: Path, sealed: bool, victim: Victim
) -> None:
    a, b = pair
    summary(a, 200_000)
    victim = Victim(a, b)
    export_bundle(a, stick, a.peers.peer_of("bert") if sealed else None)
    data = stick.read_bytes()
    for end in random.Random(2).sample(range(len(data)), 60):  # noqa: S311
        imported = victim.takes(data[:end], stick)
        assert imported is None or not imported.is_complete


# -------------------------------------------------------------------------------------------------------------- hostile


def test_a_length_beyond_every_limit_ends_the_reading_before_anything_is_allocated(
    pair: tuple[Home, Home], stick: Path
) -> None:
    a, b = pair
    good = frame(
        wire.encode(Records(tuple(SignedRecord(h.record.header_bytes, h.record.signature) for h in a.store.held())))
    )
    for length in (FRAME_LIMIT_BYTES + 1, 2**31, 2**32 - 1):
        stick.write_bytes(framed(a.keystore.identity, good, length.to_bytes(LENGTH_BYTES, "big") + bytes(100)))
        imported = import_bundle(b, stick)
        assert imported.looked.reader.ending == "damaged"
        assert "is damaged" in imported.warnings()[-1]


@pytest.mark.parametrize("sealed", [False, True])
def test_nothing_may_follow_the_signature(pair: tuple[Home, Home], victim: Victim, stick: Path, sealed: bool) -> None:
    a, _ = pair
    export_bundle(a, stick, a.peers.peer_of("bert") if sealed else None)
    imported = victim.takes(stick.read_bytes() + b"x", stick)
    assert imported is not None
    assert (imported.looked.reader.ending, imported.exporter) == ("damaged", None)


def test_what_fills_up_a_sealed_bundle_is_zeros(pair: tuple[Home, Home], stick: Path) -> None:
    _, b = pair
    file = io.BytesIO()
    writer = BundleWriter(file, b.keystore.identity, Recipient(b.me, b.keystore.encryption_keys[0].public), 0, 0)
    _finish_with_more(writer)
    stick.write_bytes(file.getvalue())
    imported = import_bundle(b, stick)
    assert (imported.looked.reader.ending, imported.exporter) == ("damaged", None)


def _finish_with_more(writer: BundleWriter) -> None:
    writer._put(bytes(LENGTH_BYTES))
    writer._out.write(sign(writer._identity, BUNDLE_LABEL, writer._hash.digest()) + b"hidden")
    writer._out.close()


def test_a_numberless_crowd_of_tiny_frames_costs_time_and_no_memory(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    nothing = frame(b"\xf8\x07\x00")  # field 127, of no kind that we know
    broken = frame(b"\x52\x00")  # a chunk of nothing
    stick.write_bytes(framed(a.keystore.identity, nothing * 50_000 + broken * 50_000))
    imported = import_bundle(b, stick)
    assert (imported.looked.refused, imported.new, imported.is_complete) == (50_000, 0, False)


def test_chunks_that_fit_no_record_before_them_are_not_kept(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    identity = a.keystore.identity
    body, other = os.urandom(3_000), os.urandom(2_000)
    record, second = by(identity, 900, body), by(identity, 901, other)
    lying = by(identity, 902, other[:50], hashes=chunk_hashes(other, 4096))  # the hash of 2,000 bytes for a body of 50
    assert len(lying.header.chunk_hashes) == 1
    bad = [
        (record.id, 0, body[1024:2048]),  # another chunk of it
        (record.id, 3, body[:1024]),  # beyond its last
        (record.id, 2, body[2048:] + b"x"),  # too long
        (bytes(32), 0, body[:1024]),  # of no record
        (second.id, 0, other[:1024]),  # of one that comes later
    ]
    stick.write_bytes(
        written(
            identity,
            (record.id, 0, body[:1024]),
            record,
            *bad,
            second,
            (record.id, 1, body[1024:2048]),
            lying,
            (lying.id, 0, other),
        )
    )
    imported = import_bundle(b, stick)
    assert (imported.looked.refused, imported.chunks, imported.unfinished) == (8, 0, 3)
    assert imported.exporter == a.me
    assert not imported.is_complete
    assert b.store.get(record.id).missing == (0, 1, 2)  # type: ignore[union-attr]


def test_frames_that_belong_on_a_link_are_refused(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    greeting: Frame = Hello(1, b"my-store")
    stick.write_bytes(framed(a.keystore.identity, frame(wire.encode(greeting))))
    assert import_bundle(b, stick).looked.refused == 1


def test_a_forged_record_of_a_member_is_not_kept_whoever_vouches_for_it(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    good = by(a.keystore.identity, 900)
    forged = replace(good, signature=bytes(64))
    stick.write_bytes(written(a.keystore.identity, forged))
    imported = import_bundle(b, stick)
    assert (imported.looked.refused, imported.new) == (1, 0)
    assert b.store.get(good.id) is None


def test_an_old_bundle_does_not_bring_back_what_was_withdrawn(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    record = summary(a, 50_000)
    export_bundle(a, stick)
    old = stick.read_bytes()
    a.author.withdrawal(record)
    export_bundle(a, stick)
    import_bundle(b, stick)
    stick.write_bytes(old)
    imported = import_bundle(b, stick)
    assert b.store.get(record.id).state is HeldState.BURIED  # type: ignore[union-attr]
    assert b.store.chunk(record.id, 0) is None
    assert (imported.chunks, imported.is_complete) == (0, True)


def test_a_second_record_for_one_sequence_is_kept_as_proof_and_told(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    first, second = (by(a.keystore.identity, 900, created=when) for when in (1, 2))
    stick.write_bytes(written(a.keystore.identity, first))
    import_bundle(b, stick)
    stick.write_bytes(written(a.keystore.identity, second))
    for _ in range(2):
        imported = import_bundle(b, stick)
        assert [record.id for record in b.store.conflicts()] == [second.id]
        assert "anna: it signed two records with sequence 900" in imported.warnings()[0]
    assert b.store.get(second.id) is None


def test_a_record_of_ours_that_we_did_not_make_moves_us_to_other_numbers(pair: tuple[Home, Home], stick: Path) -> None:
    a, b = pair
    lost = wire.author(
        b.keystore.identity, Header(Kind.WITHDRAWAL, b.me, b.store.incarnation, 50, 0, supersedes=bytes(32))
    )
    before = b.store.incarnation
    stick.write_bytes(written(a.keystore.identity, lost))
    imported = import_bundle(b, stick)
    assert b.store.incarnation != before
    assert b.store.get(lost.id) is not None
    assert "restored from a copy" in imported.warnings()[0]


def test_a_file_that_changes_between_the_passes_brings_no_stranger_in(
    three: tuple[Home, Home, Home], stick: Path
) -> None:
    a, b, c = three
    good = written(a.keystore.identity, by(a.keystore.identity, 900))
    bad = written(a.keystore.identity, by(c.keystore.identity, 900))
    assert len(good) == len(bad)
    stick.write_bytes(good)
    passes = itertools.count()

    def swap(_: int) -> None:
        if next(passes) == 0:
            with stick.open("r+b") as file:
                file.write(bad)

    with pytest.raises(BundleError, match="changed while it was read"):
        import_bundle(b, stick, swap)
    assert b.store.held(origin=c.me) == []


@pytest.mark.parametrize(
    "data", [b"", b"tidings", b"PK\3\4" + bytes(100), MAGIC, MAGIC + b"\1\0", MAGIC + b"\1\1" + bytes(50)]
)
def test_what_is_no_bundle_is_told_so(pair: tuple[Home, Home], stick: Path, data: bytes) -> None:
    stick.write_bytes(data)
    with pytest.raises(BundleError, match=r"is not a bundle|ends before its first record"):
        import_bundle(pair[1], stick)


def test_another_version_is_told_so(pair: tuple[Home, Home], stick: Path) -> None:
    stick.write_bytes(MAGIC + b"\2\0" + bytes(200))
    with pytest.raises(BundleError, match="another version"):
        import_bundle(pair[1], stick)


def test_a_pipe_is_refused_without_waiting_for_it(pair: tuple[Home, Home], stick: Path) -> None:
    os.mkfifo(stick)
    with pytest.raises(BundleError, match="not a file"):
        import_bundle(pair[1], stick)
    with pytest.raises(BundleError, match="is no bundle"):
        export_bundle(pair[0], stick)


@settings(max_examples=60)
@given(noise=st.binary(max_size=600), form=st.sampled_from([b"\1\0", b"\1\1"]))
def test_noise_raises_declared_errors_only(noise: bytes, form: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = shared_home(tmp_path_factory)
    path = tmp_path_factory.getbasetemp() / "noise.bundle"
    path.write_bytes(MAGIC + form + noise)
    before = contents(home)
    with contextlib.suppress(BundleError):
        import_bundle(home, path)
    assert contents(home) == before


_SHARED: list[Home] = []


def shared_home(factory: pytest.TempPathFactory) -> Home:
    if not _SHARED:
        _SHARED.append(Home.init(factory.mktemp("shared") / "home", "shared", None))
    return _SHARED[0]


# ------------------------------------------------------------------------------------------------------- real processes


def tidings(home: Path, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "node", "--home", str(home), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def as_json(home: Path, *words: str) -> Any:
    return json.loads(tidings(home, *words, "--json"))


@pytest.mark.timeout(240)
def test_two_sites_that_never_connect_fuse_the_same_model_after_three_trips(
    tmp_path: Path, task_file: Path, rows_file: Path
) -> None:
    """The walk-through of docs/operations.md, "Sites without a network"."""
    north, south, stick = tmp_path / "north", tmp_path / "south", tmp_path / "stick"
    stick.mkdir()
    keys = {home: tidings(home, "init", "--name", home.name).strip() for home in (north, south)}
    tidings(north, "peer", "add", keys[south], "--name", "south")
    tidings(south, "peer", "add", keys[north], "--name", "north")
    for home in (north, south):
        tidings(home, "task", "add", str(task_file))
        tidings(home, "publish", "triage", str(rows_file), "--epsilon", "1")

    bundle = str(stick / "news.bundle")
    assert "key card of south is not here yet" in tidings(north, "bundle", "export", bundle, "--for", "south", code=1)
    assert "Whoever finds it can read who takes part" in tidings(north, "bundle", "export", bundle)
    first = as_json(south, "bundle", "import", bundle)
    assert (first["exporter"], first["granted"], first["complete"]) == ("north", 1, True)

    assert as_json(south, "bundle", "export", bundle, "--for", "north")["sealed_for"] == keys[north]
    assert "granted its key to 1 member" in tidings(north, "bundle", "import", bundle)
    assert as_json(north, "status")["tasks"][0]["summaries"] == 2

    tidings(north, "bundle", "export", bundle, "--for", "south", "--since", "1h")
    third = as_json(south, "bundle", "import", bundle)
    assert third["new"] == 1  # the grant, all that was missing

    digests = {
        as_json(home, "query", "triage", "-o", str(tmp_path / f"{home.name}.onnx"))["attestation"]["digest"]
        for home in (north, south)
    }
    assert len(digests) == 1
    assert "nothing new" in tidings(south, "bundle", "import", bundle)


def large_bundle(make_home: MakeHome, stick: Path, megabytes: int) -> tuple[Path, Path]:
    """A bundle of 2 MB bodies by anna, and the home of bert, who imports it."""
    a, b = make_home("anna"), make_home("bert")
    knows(a, b)
    knows(b, a)
    for _ in range(megabytes // 2):
        summary(a, 2_000_000)
    export_bundle(a, stick)
    a.store.close()
    b.store.close()
    return a.path, b.path


def test_a_disk_that_is_nearly_full_takes_headers_and_a_later_import_brings_the_bodies(
    pair: tuple[Home, Home], stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    record = summary(a, 200_000)
    export_bundle(a, stick)
    real = shutil.disk_usage(b.path)
    with monkeypatch.context() as low:
        low.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=real.total, used=real.used, free=1_000_000))
        imported = import_bundle(b, stick)
    assert not imported.is_complete
    assert "nearly full" in "".join(imported.warnings())
    held = b.store.get(record.id)
    assert held is not None
    assert len(held.missing) == len(record.header.chunk_hashes)
    assert import_bundle(b, stick).is_complete
    assert b.store.body(record.id) == a.store.body(record.id)


@pytest.mark.timeout(200)
def test_an_import_killed_at_any_moment_goes_on_with_the_next_one(make_home: MakeHome, stick: Path) -> None:
    a, b = large_bundle(make_home, stick, 12)
    command = [sys.executable, "-m", "node", "--home", str(b), "bundle", "import", str(stick)]
    rng, watch = random.Random(3), Store.open(b)  # noqa: S311

    def kept() -> int:
        return int(watch._rows("SELECT count(*) FROM chunks")[0][0])

    here, kills = 0, 0
    for _ in range(6):
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and kept() == here:  # it is at work once more is here than before
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert kept() >= here  # what was kept stays
        here = kept()
    assert kills
    assert as_json(b, "bundle", "import", str(stick))["complete"] is True
    theirs = Home.open(a)
    assert all(
        Home.open(b).store.body(held.record.id) == theirs.store.body(held.record.id)
        for held in theirs.store.held(kind=Kind.SUMMARY)
    )


MEASURE = """
import re, sys
from node.__main__ import run
code = run(sys.argv[1:], debug=True)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(code, peak, file=sys.stderr)
"""  # not ru_maxrss: that counts what the parent held when it forked


def peak_kb(home: Path, *words: str) -> int:
    """The most memory that a command held, in kB."""
    command = [sys.executable, "-c", MEASURE, "--home", str(home), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    code, peak = done.stderr.split()[-2:]
    assert code == "0"
    return int(peak)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process its peak memory")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("megabytes", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_memory_stays_flat_however_large_the_bundle_is(make_home: MakeHome, stick: Path, megabytes: int) -> None:
    a, b = large_bundle(make_home, stick, 2)
    small = [peak_kb(a, "bundle", "export", str(stick)), peak_kb(b, "bundle", "import", str(stick))]
    home = Home.open(a)
    for _ in range(megabytes // 2):
        summary(home, 2_000_000)
    home.store.close()
    large = [peak_kb(a, "bundle", "export", str(stick)), peak_kb(b, "bundle", "import", str(stick))]
    assert stick.stat().st_size > megabytes * 1_000_000
    assert max(one - other for one, other in zip(large, small, strict=True)) < 8_000, (small, large)
