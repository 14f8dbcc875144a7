"""The token bucket behind `serve --bandwidth`: rates as people write them, and what passes in how much time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import bandwidth
from node.bandwidth import TokenBucket, parse_rate
from node.errors import UsageError


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


@given(sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=60), rate=st.integers(1_000, 1_000_000))
def test_over_any_run_of_frames_no_more_passes_than_the_rate_and_one_burst(sizes: list[int], rate: int) -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def pass_all() -> None:
        bucket = TokenBucket(rate, clock=lambda: now)
        passed = 0
        for size in sizes:
            await bucket.take(size)
            passed += size
            assert passed <= rate * (now + 1.0) + 1e-3
        # and nothing is held up longer than the rate asks for
        assert now <= sum(sizes) / rate + 1e-6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bandwidth.asyncio, "sleep", sleep)
        asyncio.run(pass_all())
