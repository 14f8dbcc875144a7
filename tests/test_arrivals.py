"""What the log says of bodies on their way."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from crypto.keys import Identity
from node.arrivals import TOLD_AT_ONCE, Arrivals
from node.home import Home
from node.journal import Journal
from node.simulation.store import author_record

MakeHome = Callable[..., Home]
ORIGIN = Identity.from_seed(bytes([1]) * 32)


def test_a_body_that_nobody_has_is_told_once_however_often_a_link_comes_and_goes(
    make_home: MakeHome, caplog: pytest.LogCaptureFixture
) -> None:
    home = make_home("alpha")
    arrivals = Arrivals(Journal(home.me, lambda key: key.short), home.store)
    records = [author_record(ORIGIN, number, bytes(5_000)) for number in range(1, TOLD_AT_ONCE + 11)]
    ids = [record.id for record in records]
    with home.store.batch():
        for record in records:
            home.store.add_record(record)
    with caplog.at_level(logging.INFO, "tidings"):
        for counts in ((TOLD_AT_ONCE, 10, 0), (0, 0, 0)):
            for count in counts:
                caplog.clear()
                arrivals.look(ids, ids)
                assert [one.event for one in caplog.records] == ["fetch_stalled"] * count  # type: ignore[attr-defined]
            arrivals.look(ids, ())
