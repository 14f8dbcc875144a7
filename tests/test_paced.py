"""What news set off is done soon, once for all of them, and takes no more than its share of the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from daemons import eventually, in_an_event_loop

from node.paced import SHARE, Lookup, Paced

WORK_S = 0.005


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@in_an_event_loop
async def test_work_is_done_once_for_all_news_and_no_more_often_than_it_may_cost() -> None:
    done: list[float] = []
    paced = Paced(lambda: (busy(WORK_S), done.append(time.monotonic())))  # type: ignore[arg-type, func-returns-value]
    began = time.monotonic()
    for _ in range(100):
        paced.soon()
        paced.soon()
        await asyncio.sleep(0.01)
    took_s = time.monotonic() - began
    paced.end()
    assert done[0] - began < 0.1
    assert 2 <= len(done) <= 1 + took_s * SHARE / WORK_S


@in_an_event_loop
async def test_work_that_fails_is_done_again_and_work_that_has_ended_is_not() -> None:
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise ValueError

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    paced = Paced(fail)
    for wanted in (1, 2):
        paced.soon()
        await eventually(lambda wanted=wanted: len(tries) == wanted)  # type: ignore[misc]
    paced.soon(0.01)
    paced.end()
    paced.soon()
    await asyncio.sleep(0.05)
    assert len(tries) == 2


@in_an_event_loop
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_lookup_runs_beside_the_loop_one_at_a_time_and_survives_a_failure() -> None:
    told: list[str] = []
    lookup = Lookup()

    def failing() -> Callable[[], None]:
        raise ValueError

    def slow() -> Callable[[], None]:
        time.sleep(0.2)
        return lambda: told.append("slow")

    assert lookup.begin(failing)
    await eventually(lambda: lookup.begin(slow))
    assert not lookup.begin(slow)
    assert told == []
    await eventually(lambda: told == ["slow"])
