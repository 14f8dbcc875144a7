"""Bandwidth: rates as people write them, what passes in how much time, who goes first, and that links share evenly."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.keys import Identity, PublicKey
from node import wire
from node.bandwidth import MAX_OVERTAKEN, Bandwidth, TokenBucket, parse_rate
from node.errors import UsageError
from node.frames import Chunk, Digest, Frame, Missing, Records, SignedRecord
from node.link import Link
from node.pb import tidings_pb2 as pb
from node.simulation.store import author_record

PEERS = [Identity.from_seed(bytes([number]) * 32).public_key for number in range(1, 5)]
CHUNK = 16_384
RATE = 8_000.0
"""64 kbit/s: a chunk takes two seconds."""


class _Jump(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Does not wait: where the loop would sleep, its clock jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


def in_virtual_time(story: Coroutine[Any, Any, None]) -> None:
    """Run the story on the real event loop with a clock that jumps from timer to timer."""
    selector = _Jump()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        loop.run_until_complete(story)
    finally:
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("64kbit/s", 8_000), ("2MB/s", 2_000_000), ("500k", 500_000), ("1.5 MB/s", 1_500_000), ("900", 900)],
)
def test_a_rate_is_read_as_people_write_it(text: str, bytes_per_second: float) -> None:
    assert parse_rate(text) == bytes_per_second


@pytest.mark.parametrize("text", ["", "fast", "-1kB/s", "0", "64 kbit per second", "1e9", "nan"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rate"):
        parse_rate(text)


def test_a_rate_that_is_none_is_told_with_the_option_it_was_given_to() -> None:
    with pytest.raises(UsageError, match="--peer-bandwidth 'much' is not a rate"):
        parse_rate("much", "--peer-bandwidth")


# ---------------------------------------------------------------------------------------------------------- one bucket


@given(sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=60), rate=st.integers(1_000, 1_000_000))
def test_over_any_run_of_frames_no_more_passes_than_the_rate_a_burst_and_one_frame(sizes: list[int], rate: int) -> None:
    async def story() -> None:
        bucket, passed, began = TokenBucket(rate), 0, now()
        for size in sizes:
            async with bucket.turn(lambda: False) as charge:
                assert passed <= rate * (now() - began + 1.0) + 1.5, "what was sent before is paid for"
                charge(size)
            passed += size
        # and nothing is held up longer than the rate asks for
        assert now() - began <= sum(sizes) / rate + 1e-6

    in_virtual_time(story())


@given(st.lists(st.integers(4_000, 40_000), min_size=2, max_size=6), st.integers(0, 2**32))
def test_links_that_always_have_something_to_send_get_a_turn_each_in_order(sizes: list[int], seed: int) -> None:
    turns: list[int] = []

    async def sender(bucket: TokenBucket, number: int, size: int) -> None:
        while True:
            async with bucket.turn(lambda: False) as charge:
                turns.append(number)
                charge(size)
            await asyncio.sleep(0)  # a link hands what it sends to gRPC

    async def story() -> None:
        bucket = TokenBucket(RATE)
        tasks = [asyncio.create_task(sender(bucket, number, size)) for number, size in enumerate(sizes)]
        await asyncio.sleep(50.0 + seed % 100)
        await cancelled(tasks)

    in_virtual_time(story())
    counts = [turns.count(number) for number in range(len(sizes))]
    assert max(counts) - min(counts) <= 1


async def cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_who_gives_up_waiting_leaves_the_line_to_the_others() -> None:
    async def story() -> None:
        bucket = TokenBucket(RATE)

        async def send(size: int) -> float:
            async with bucket.turn(lambda: False) as charge:
                charge(size)
                return now()

        await send(5 * CHUNK)
        impatient = [asyncio.create_task(send(CHUNK)) for _ in range(3)]
        patient = asyncio.create_task(send(CHUNK))
        await asyncio.sleep(1.0)
        for task in impatient:
            task.cancel()
        assert await patient == pytest.approx((5 * CHUNK - RATE) / RATE)
        # Cancelled in the very moment of its turn: the turn goes on to the next.
        late, last = asyncio.create_task(send(1)), asyncio.create_task(send(1))
        asyncio.get_running_loop().call_later(CHUNK / RATE, late.cancel)
        assert await last <= now()

    in_virtual_time(story())


def test_urgent_frames_go_first_and_still_leave_the_others_their_turns() -> None:
    turns: list[str] = []

    async def sender(bucket: TokenBucket, name: str, *, is_urgent: bool) -> None:
        while True:
            async with bucket.turn(lambda: is_urgent) as charge:
                turns.append(name)
                charge(1_000)

    async def story() -> None:
        bucket = TokenBucket(RATE)
        tasks = [asyncio.create_task(sender(bucket, "chunks", is_urgent=False))]
        tasks += [asyncio.create_task(sender(bucket, "flood", is_urgent=True)) for _ in range(2)]
        await asyncio.sleep(100.0)
        await cancelled(tasks)

    in_virtual_time(story())
    share = turns.count("chunks") / len(turns)
    assert 0.5 / MAX_OVERTAKEN < share < 2 / MAX_OVERTAKEN


# --------------------------------------------------------------------------------------------------------------- links


class Source:
    """A hub that has every chunk."""

    def may_exchange(self, peer: PublicKey) -> bool:
        return True

    def link_up(self, link: Link) -> None: ...

    def frame_in(self, link: Link, frame: Frame) -> None: ...

    async def room(self) -> None: ...

    def bad_frame(self, link: Link, reason: str) -> None: ...

    def load_chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[bytes | None]:
        return [bytes(CHUNK) for _ in indexes]

    def link_down(self, link: Link, reason: str) -> None: ...


class Line:
    """A link and what came out at its other end, when."""

    def __init__(self, bandwidth: Bandwidth, peer: PublicKey) -> None:
        self.link = Link(peer, Source(), dialed_by_us=True, allowance=bandwidth.of(peer))
        self.sent: list[tuple[float, str]] = []
        self.task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        async for message in self.link.outgoing():
            self.sent.append((now(), str(pb.Frame.FromString(message).WhichOneof("frame"))))
            await asyncio.sleep(0)  # as gRPC takes it

    def bytes_until(self, at: float) -> int:
        return sum(CHUNK for when, name in self.sent if name == "chunk" and when <= at)


def with_lines(
    bandwidth: Bandwidth, peers: Sequence[PublicKey], story: Callable[[list[Line]], Awaitable[None]]
) -> None:
    """Lines with a thousand chunks to send each, while the story runs."""

    async def run() -> None:
        lines = [Line(bandwidth, peer) for peer in peers]
        for line in lines:
            for index in range(1_000):
                line.link.send_chunk(bytes(32), index)
        await story(lines)
        await cancelled([line.task for line in lines])

    in_virtual_time(run())


@pytest.mark.parametrize("links", [1, 2, 4])
def test_links_share_the_total_evenly_and_keep_to_it(links: int) -> None:
    async def story(lines: list[Line]) -> None:
        await asyncio.sleep(400.0)
        passed = [line.bytes_until(now()) for line in lines]
        assert sum(passed) == pytest.approx(RATE * 400, rel=0.02)
        assert max(passed) - min(passed) <= CHUNK

    with_lines(Bandwidth(RATE), PEERS[:links], story)


def test_each_peer_has_a_limit_of_its_own_over_all_its_links() -> None:
    async def story(lines: list[Line]) -> None:
        await asyncio.sleep(400.0)
        first, second, other = (line.bytes_until(now()) for line in lines)
        assert first + second == pytest.approx(RATE * 400, rel=0.02)
        assert other == pytest.approx(RATE * 400, rel=0.02)

    with_lines(Bandwidth(None, RATE), [PEERS[0], PEERS[0], PEERS[1]], story)


def test_the_smaller_of_both_limits_holds_and_a_limited_peer_holds_up_nobody() -> None:
    async def story(lines: list[Line]) -> None:
        await asyncio.sleep(400.0)
        passed = [line.bytes_until(now()) for line in lines]
        assert sum(passed) == pytest.approx(2.5 * RATE * 400, rel=0.02)
        assert max(passed) <= RATE * 400 * 1.02

    with_lines(Bandwidth(2.5 * RATE, RATE), PEERS[:4], story)


@pytest.mark.parametrize("bandwidth", [(RATE, None), (None, RATE), (RATE, RATE)])
def test_a_withdrawal_waits_for_one_chunk_at_most(bandwidth: tuple[float | None, float | None]) -> None:
    async def story(lines: list[Line]) -> None:
        for moment in range(1, 40):
            await asyncio.sleep(3.7)
            at, sent_before = now(), len(lines[0].sent)
            lines[0].link.send(Digest(bytes(32)))
            await asyncio.sleep(2 * CHUNK / RATE)
            after = [name for _, name in lines[0].sent[sent_before:]]
            assert after[0] == "digest", "it is the next that goes over its own link"
            waited_s = lines[0].sent[sent_before][0] - at
            assert waited_s <= (CHUNK + 100) / RATE + 1e-6, moment

    with_lines(Bandwidth(*bandwidth), PEERS, story)


def test_records_with_small_bodies_go_after_other_frames_and_before_chunks() -> None:
    record = author_record(Identity.from_seed(bytes(32)), 1, bytes(3 * CHUNK), chunk_bytes=CHUNK)

    async def story(lines: list[Line]) -> None:
        await asyncio.sleep(10.0)
        sent_before = len(lines[0].sent)
        lines[0].link.send_records((record,))
        lines[0].link.send(Digest(bytes(32)))
        await asyncio.sleep(30.0)
        names = [name for _, name in lines[0].sent[sent_before:]]
        assert names[:3] == ["digest", "records", "chunk"]

    with_lines(Bandwidth(RATE), PEERS[:1], story)


def test_the_header_of_a_record_whose_body_is_gone_goes_alone() -> None:
    record = author_record(Identity.from_seed(bytes(32)), 1, bytes(3_000), chunk_bytes=1_024)

    class Gone(Source):
        def load_chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[bytes | None]:
            return [bytes(1_024), None, None]

    async def story() -> None:
        link = Link(PEERS[0], Gone(), dialed_by_us=True)
        link.send_records((record,))
        message = await anext(link.outgoing())
        assert wire.decode(message) == Records((SignedRecord(record.header_bytes, record.signature),))

    asyncio.run(story())


def test_chunks_that_were_asked_for_together_share_a_frame() -> None:
    class Numbered(Source):
        def load_chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[bytes | None]:
            return [bytes([index]) if index != 9 else None for index in indexes]

    async def story() -> None:
        link = Link(PEERS[0], Numbered(), dialed_by_us=True)
        for first, count in ((0, 3), (3, 1), (8, 2), (20, 8), (4, 1)):
            link.send_chunk(bytes(32), first, count)
        sending = link.outgoing()
        frames = [wire.decode(await anext(sending)) for _ in range(5)]
        assert frames == [
            Chunk(bytes(32), 0, bytes(range(3))),
            Chunk(bytes(32), 3, bytes([3])),
            Missing(bytes(32)),
            Chunk(bytes(32), 20, bytes(range(20, 28))),
            Chunk(bytes(32), 4, bytes([4])),
        ]

    asyncio.run(story())


def test_a_closed_link_sends_the_frames_that_wait_and_no_chunks() -> None:
    async def story(lines: list[Line]) -> None:
        await asyncio.sleep(10.0)
        chunks = lines[0].bytes_until(now())
        lines[0].link.send(Missing(bytes(32)))
        lines[0].link.close("it was enough")
        await asyncio.wait_for(asyncio.shield(lines[0].task), 10.0)
        assert lines[0].sent[-1][1] == "missing"
        assert lines[0].bytes_until(now()) == chunks

    with_lines(Bandwidth(RATE), PEERS[:1], story)


def test_without_limits_nothing_waits() -> None:
    assert Bandwidth().of(PEERS[0]) is None


def test_a_second_of_real_time_lets_through_what_the_rate_says() -> None:
    """Only bounds that hold on a machine of any speed: never more than the rate, a burst and one frame."""
    rate = 1_000_000.0

    async def story() -> None:
        line = Line(Bandwidth(rate), PEERS[0])
        for index in range(1_000):
            line.link.send_chunk(bytes(32), index)
        began = time.monotonic()
        await asyncio.sleep(1.0)
        took_s = time.monotonic() - began
        passed = sum(CHUNK for _, name in line.sent if name == "chunk")
        await cancelled([line.task])
        assert rate < passed <= rate * (took_s + 1.0) + CHUNK

    asyncio.run(story())
