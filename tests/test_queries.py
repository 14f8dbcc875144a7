"""Queries that a running node answers: who may ask how often, what is fused how many times, and that nothing changes.

The nodes are real daemons over TLS, and what fuses is the real process; fits are counted, not timed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from daemons import MakeHome, Node, eventually, in_an_event_loop, running
from hypothesis import given
from hypothesis import strategies as st

from crypto.keys import Identity, PublicKey
from fusion.model import read_model
from fusion.task import Task
from node import server
from node.admission import Allowances, Line
from node.client import Dialer
from node.config import QuerySettings
from node.errors import AskLater, PeerUnreachable, QueryRefused, StoreError
from node.frames import Query
from node.home import Home
from node.membership import add_peer
from node.model_cache import ModelCache, basis
from node.pb import tidings_pb2 as pb
from node.pb import tidings_pb2_grpc as rpc
from node.publish import publish, withdraw
from node.query import check_attestation
from node.records import Kind, Record
from node.tasks import add

MANY = QuerySettings(burst=100)


class Asker:
    """A key that may ask for models and no more."""

    def __init__(self, node: Node, name: str) -> None:
        self.identity = Identity.generate()
        self.dialer = Dialer.for_identity(self.identity)
        self._node = node
        add_peer(node.home, self.identity.public_key.text, name, None, query_only=True)

    async def asks(self, query: Query) -> bytes:
        assert self._node.address is not None
        return await self.dialer.ask(self._node.home.me, self._node.address, query, lambda _: None)

    async def sends(self, request: pb.QueryRequest | bytes) -> grpc.StatusCode:
        """What comes of a request that no client of ours would send."""
        assert self._node.address is not None
        async with self.dialer.channel(self._node.home.me, self._node.address) as channel:
            data = request if isinstance(request, bytes) else request.SerializeToString()
            call = channel.unary_stream("/tidings.v1.Node/Query")(data)
            with suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            return await call.code()


@asynccontextmanager
async def fusing_node(
    make_home: MakeHome, task_file: Path, rows_file: Path, queries: QuerySettings = MANY
) -> AsyncIterator[tuple[Node, Task, list[Record]]]:
    """A running node that holds the summaries of two origins, its own and one that came from b."""
    a, b = make_home("a"), make_home("b")
    add_peer(a, b.me.text, "b", None, query_only=False)
    add_peer(b, a.me.text, "a", None, query_only=False)
    for one, other in ((a, b), (b, a)):
        other.store.add(one.epochs.key_card(one.me) or pytest.fail("no key card"))
    summaries = []
    for home in (a, b):
        task, _ = add(home, str(task_file))
        summaries.append(publish(home, task, [rows_file], epsilon=1.0, dataset="d", cap_epsilon=None).record)
    b.epochs.grant_missing()
    for held in b.store.held():
        a.store.add(held.record, b.store.body(held.record.id) if held.record.header.body_bytes else None)
    async with running(a, queries=queries) as node:
        yield node, task, summaries


def plain(task: Task) -> Query:
    return Query(task.id, "", (), (), "onnx")


# -------------------------------------------------------------------------------------------------------- what a fit is


@in_an_event_loop
async def test_ten_queries_for_one_set_cost_one_fit_whoever_asks_and_however(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    async with fusing_node(make_home, task_file, rows_file) as (node, task, summaries):
        askers = [Asker(node, name) for name in ("first", "second", "third")]
        await node.admits_its_peers()
        origins = tuple(record.header.origin.raw for record in summaries)
        ways = [
            plain(task),
            replace(plain(task), only=origins),
            replace(plain(task), only=origins[::-1]),
            replace(plain(task), without=(bytes(32),)),
            replace(plain(task), format="safetensors"),
        ]
        at_once = await asyncio.gather(*(asker.asks(way) for way, asker in zip(ways, askers * 2, strict=False)))
        later = [await asker.asks(way) for way, asker in zip(ways, askers[::-1] * 2, strict=False)]
        assert node.daemon._answers.fits == 1
        assert sorted(at_once) == sorted(later)
        models = [read_model(data) for data in at_once]
        assert len({model.digest for model, _ in models}) == 1
        for _, card in models:
            assert check_attestation(card) == node.home.me
            assert {one["record"] for one in card["manifest"]["summaries"]} == {one.id.hex() for one in summaries}
        await askers[0].asks(replace(plain(task), only=origins[:1]))
        assert node.daemon._answers.fits == 2


@in_an_event_loop
async def test_what_was_fused_of_a_summary_that_is_withdrawn_is_forgotten(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    async with fusing_node(make_home, task_file, rows_file) as (node, task, summaries):
        asker = Asker(node, "asker")
        await node.admits_its_peers()
        await asker.asks(plain(task))
        remembered = node.daemon._answers._cache
        assert len(remembered) == 1
        withdraw(node.home, summaries[0].id.hex())
        await eventually(lambda: len(remembered) == 0)
        _, card = read_model(await asker.asks(plain(task)))
        assert [one["record"] for one in card["manifest"]["summaries"]] == [summaries[1].id.hex()]
        assert node.daemon._answers.fits == 2


def test_a_model_is_looked_for_by_everything_that_it_depends_on(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    home = make_home("a")
    task, _ = add(home, str(task_file))
    query = plain(task)
    seen = {basis(home, query)}

    def is_new(query: Query) -> bool:
        before = len(seen)
        seen.add(basis(home, query))
        return len(seen) > before

    for field in dataclasses.fields(Query):
        if field.name not in ("task_id", "only", "without", "format"):  # also those that queries get later
            assert is_new(replace(query, **{field.name: "other"})), field.name
    assert is_new(replace(query, task_id=bytes(32)))
    first = publish(home, task, [rows_file], epsilon=1.0, dataset="d", cap_epsilon=None).record
    assert is_new(query)
    assert not is_new(replace(query, only=(home.me.raw,)))
    assert not is_new(replace(query, without=(home.me.raw,)))  # as when nothing was here
    withdraw(home, first.id.hex())
    assert is_new(query)
    stranger = make_home("b")
    home.store.add(stranger.store.held()[0].record)
    assert not is_new(query)  # a key card changes no model
    home.store.add(stranger.author.grant(home.me, 1, b"\0" * 1168, home.store.held()[0].record.id))
    assert is_new(query)  # but a grant may open a summary
    add_peer(home, stranger.me.text, "b", None, query_only=False)
    assert is_new(query)


def test_the_models_that_were_asked_for_least_recently_go_first() -> None:
    cache = ModelCache(most=2, most_bytes=100)
    query = Query(bytes(32), "", (), (), "onnx")
    for key in (b"1", b"2"):
        cache.put(key, query, bytes(30))
    assert cache.get(b"1")
    cache.put(b"3", query, bytes(30))
    assert [bool(cache.get(key)) for key in (b"1", b"2", b"3")] == [True, False, True]
    cache.put(b"1", replace(query, format="safetensors"), bytes(60))
    assert (len(cache), cache.size) == (1, 90)
    cache.put(b"4", query, bytes(101))
    assert [bool(cache.get(key)) for key in (b"1", b"4")] == [True, False]


# ------------------------------------------------------------------------------------------------- what a query changes


def state_of(home: Home) -> dict[str, str]:
    """Everything in a home but what the daemon tells `status`: SQLite by content, files by hash."""
    state = {}
    for path in sorted(path for path in home.path.rglob("*") if path.is_file()):
        if path.suffix in (".db-wal", ".db-shm", ".lock") or path.name.endswith(("-wal", "-shm")):
            continue
        if path.suffix == ".db":
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            lines = [
                line
                for line in connection.iterdump()
                if not line.startswith(('INSERT INTO "links"', "INSERT INTO links"))
            ]
            connection.close()
            state[path.name] = "\n".join(lines)
        else:
            state[str(path.relative_to(home.path))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return state


@in_an_event_loop
async def test_a_query_changes_nothing_whatever_it_asks(make_home: MakeHome, task_file: Path, rows_file: Path) -> None:
    async with fusing_node(make_home, task_file, rows_file) as (node, task, summaries):
        asker = Asker(node, "asker")
        await node.admits_its_peers()
        await asyncio.sleep(1.2)  # the daemon has written down its links
        before = state_of(node.home)
        files = sorted(str(path) for path in node.home.path.rglob("*"))
        origin = summaries[0].header.origin.raw
        await asker.asks(plain(task))
        await asker.asks(replace(plain(task), without=(origin,), format="safetensors"))
        for impossible in (
            replace(plain(task), head="no such head"),
            replace(plain(task), only=(bytes(32),)),
            replace(plain(task), task_id=bytes(32)),
        ):
            with pytest.raises(QueryRefused, match="The other node says"):
                await asker.asks(impossible)
        good = pb.QueryRequest(task_id=task.id, format="onnx")
        malformed = [
            pb.QueryRequest(task_id=task.id, format="pickle"),
            pb.QueryRequest(task_id=b"short", format="onnx"),
            pb.QueryRequest(task_id=task.id, format="onnx", head="h" * 65),
            pb.QueryRequest(task_id=task.id, format="onnx", only_origins=[b"short"]),
            pb.QueryRequest(task_id=task.id, format="onnx", without_origins=[bytes(32)] * 2049),
            b"",
        ]
        for request in malformed:
            assert await asker.sends(request) is grpc.StatusCode.INVALID_ARGUMENT
        assert await asker.sends(b"\xff" * 100) is not grpc.StatusCode.OK
        many = [index.to_bytes(32, "big") for index in range(2048)]
        refused = await asker.sends(pb.QueryRequest(task_id=task.id, format="onnx", only_origins=many))
        assert refused is grpc.StatusCode.FAILED_PRECONDITION
        assert (
            await asker.sends(good.SerializeToString() + b"\xfa\x7f\x03abc") is grpc.StatusCode.OK
        )  # a field of later
        assert state_of(node.home) == before
        assert sorted(str(path) for path in node.home.path.rglob("*")) == files


def test_a_store_that_is_only_read_refuses_every_change(make_home: MakeHome) -> None:
    home = make_home("a")
    home.store.refuse_writes()
    with pytest.raises(StoreError):
        home.store.set_notice(home.me, "topic", "words")
    with pytest.raises(StoreError):
        home.store.reserve_sequence(home.me)


# ----------------------------------------------------------------------------------------------------- query-only keys


@in_an_event_loop
async def test_a_query_only_key_gets_models_and_nothing_else(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    """No link, no grant, no word about a task that is not accepted, whether or not records of it are here."""
    async with fusing_node(make_home, task_file, rows_file) as (node, task, _):
        asker = Asker(node, "asker")
        key = asker.identity.public_key
        await node.admits_its_peers()
        read_model(await asker.asks(plain(task)))
        assert node.address is not None
        with pytest.raises(PeerUnreachable, match="may ask for models but not gossip"):
            await asker.dialer.exchange(node.home.me, node.address, node.daemon)
        hidden = bytes(range(32))
        node.home.author.sealed(Kind.SUMMARY, hidden, b"body", node.home.epochs.live())
        refusals = []
        for other in (hidden, bytes(32)):
            with pytest.raises(QueryRefused) as refusal:
                await asker.asks(replace(plain(task), task_id=other))
            refusals.append(str(refusal.value))
        assert refusals[0] == refusals[1]
        grants = node.home.store.held(kind=Kind.KEY_GRANT)
        assert key not in {held.record.header.recipient for held in grants}
        assert key not in node.home.trusted


@in_an_event_loop
async def test_a_key_that_was_taken_away_gets_no_model(make_home: MakeHome, task_file: Path, rows_file: Path) -> None:
    async with fusing_node(make_home, task_file, rows_file) as (node, task, _):
        asker = Asker(node, "asker")
        await node.admits_its_peers()
        await asker.asks(plain(task))
        node.home.store.remove_peer(asker.identity.public_key)
        await node.admits_its_peers()
        with pytest.raises(PeerUnreachable):
            await asker.asks(plain(task))


@in_an_event_loop
async def test_a_key_that_is_taken_away_while_its_query_waits_gets_no_model() -> None:
    me, asker = Identity.generate(), Identity.generate()
    admitted = {asker.public_key}

    async def answer(_peer: PublicKey, _query: Query) -> AsyncGenerator[bytes | str, None]:
        yield "fusing"
        admitted.clear()
        yield b"model"

    serving = server.NodeServer(me, None, server.Doors(lambda: frozenset(admitted), answer))  # type: ignore[arg-type]
    port = await serving.start("127.0.0.1:0")
    try:
        async with Dialer.for_identity(asker).channel(me.public_key, f"127.0.0.1:{port}") as channel:
            call = rpc.NodeStub(channel).Query(pb.QueryRequest(task_id=bytes(32), format="onnx"))
            assert (await call.read()).progress.message == "fusing"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    finally:
        await serving.stop(0.0)


# ------------------------------------------------------------------------------------------------- how often, and when


@in_an_event_loop
async def test_a_key_that_asks_too_often_is_told_when_to_ask_again_and_others_are_not_held_up(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    settings = QuerySettings(burst=2, per_hour=60)
    async with fusing_node(make_home, task_file, rows_file, settings) as (node, task, _):
        eager, other = Asker(node, "eager"), Asker(node, "other")
        await node.admits_its_peers()
        for _ in range(2):
            await eager.asks(plain(task))
        with pytest.raises(AskLater, match=r"60 queries an hour of one key; ask again in \d+ s"):
            await eager.asks(plain(task))
        await other.asks(plain(task))


@in_an_event_loop
async def test_one_key_cannot_take_every_place_in_the_line(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    async with fusing_node(make_home, task_file, rows_file) as (node, task, summaries):
        greedy, other = Asker(node, "greedy"), Asker(node, "other")
        await node.admits_its_peers()
        different = [
            replace(plain(task), only=(summaries[0].header.origin.raw, bytes([number]) * 32), head=head)
            for number, head in enumerate(("", "ridge", "logistic", "none", "nothing", "nobody"))
        ]
        asked = [asyncio.create_task(greedy.asks(query)) for query in different]
        await eventually(lambda: node.daemon._answers._line.waiting == MANY.max_waiting_each)
        await other.asks(plain(task))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        turned_away = [one for one in answers if isinstance(one, AskLater)]
        assert len(turned_away) == len(different) - 1 - MANY.max_waiting_each
        assert "several of your queries waiting" in str(turned_away[0])


@in_an_event_loop
async def test_a_query_that_everybody_gives_up_is_not_worked_on(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    async with fusing_node(make_home, task_file, rows_file) as (node, task, _):
        asker = Asker(node, "asker")
        await node.admits_its_peers()
        asked = [asyncio.create_task(asker.asks(plain(task))) for _ in range(2)]
        answers = node.daemon._answers
        await eventually(lambda: answers.fits == 1)
        asked[0].cancel()
        await asyncio.sleep(0.2)
        assert answers._under_way
        asked[1].cancel()
        await eventually(lambda: not answers._under_way and not answers._asking)
        read_model(await asker.asks(plain(task)))


@in_an_event_loop
async def test_a_reader_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gRPC server of the product, an answer larger than its windows, and a client that does not read it."""
    monkeypatch.setattr(server, "ANSWER_STALL_S", 1.0)
    ended = asyncio.Event()

    async def answer(_peer: PublicKey, _query: Query) -> AsyncGenerator[bytes | str, None]:
        try:
            yield bytes(32 * 1024 * 1024)
        finally:
            ended.set()

    me, asker = Identity.generate(), Identity.generate()
    doors = server.Doors(lambda: frozenset({asker.public_key}), answer)
    serving = server.NodeServer(me, None, doors)  # type: ignore[arg-type] - no link is asked for
    port = await serving.start("127.0.0.1:0")
    try:
        async with Dialer.for_identity(asker).channel(me.public_key, f"127.0.0.1:{port}") as channel:
            call = rpc.NodeStub(channel).Query(pb.QueryRequest(task_id=bytes(32), format="onnx"))
            await call.read()
            async with asyncio.timeout(20):
                await ended.wait()
                with suppress(grpc.aio.AioRpcError):
                    while await call.read() is not grpc.aio.EOF:
                        pass
                assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert "too slowly" in (await call.details() or "")
    finally:
        await serving.stop(0.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 4000), max_size=40), st.integers(1, 10), st.integers(1, 500))
def test_no_key_gets_more_than_its_allowance_and_nobody_is_locked_out(
    pauses: list[float], burst: int, per_hour: int
) -> None:
    clock = Clock()
    allowances = Allowances(burst, per_hour, clock)
    key = Identity.generate().public_key
    granted = 0
    for pause in pauses:
        clock.now += pause
        try:
            allowances.spend(key)
            granted += 1
        except AskLater:
            pass
        assert granted <= burst + clock.now * per_hour / 3600 + 1e-6
    clock.now += 3600 / per_hour + 1
    allowances.spend(key)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 3))
def test_those_that_wait_are_taken_key_by_key(arrivals: list[int], working: int) -> None:
    keys = [Identity.from_seed(bytes([number]) * 32).public_key for number in range(4)]

    async def play() -> list[int]:
        line = Line(working, waiting=8, each=2)
        served: list[int] = []
        at_work = 0

        async def ask(number: int) -> None:
            nonlocal at_work
            try:
                async with line.place(keys[number]):
                    at_work += 1
                    assert at_work <= working
                    served.append(number)
                    for _ in range(50):
                        await asyncio.sleep(0)
                    at_work -= 1
            except AskLater:
                refused.append(number)

        refused: list[int] = []
        async with asyncio.TaskGroup() as group:
            for number in arrivals:
                group.create_task(ask(number))
        assert line.waiting == 0
        assert len(served) + len(refused) == len(arrivals)
        for number in set(arrivals):  # whoever asks gets a place, however many places another wanted
            assert number in served
        return served

    served = asyncio.run(play())
    waited = served[working:]
    first_rounds = waited[: len(set(waited))]
    assert len(set(first_rounds)) == len(first_rounds)


def test_who_leaves_the_line_holds_nobody_up() -> None:
    async def play() -> None:
        line = Line(1, waiting=8, each=2)
        keys = [Identity.generate().public_key for _ in range(3)]
        async with line.place(keys[0]):
            waiting = [asyncio.create_task(stays(line, key)) for key in keys]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
        waiting[1].cancel()  # its turn has just come
        await asyncio.wait_for(waiting[2], 1)
        async with asyncio.timeout(1), line.place(keys[0]):
            pass

    asyncio.run(play())


async def stays(line: Line, key: PublicKey) -> None:
    async with line.place(key):
        pass
