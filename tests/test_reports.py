"""Reports: the last error stays to be read while a peer is dialed again, and never outlives a link that came up."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.keys import Identity
from node.client import failure, lost
from node.errors import PeerRefused
from node.gossip.events import LinkState, Report
from node.local_tables import LinkReport
from node.reports import follow

ALICE = Identity.from_seed(bytes([1]) * 32).public_key


def told(*reports: tuple[LinkState, str]) -> list[LinkReport]:
    """What is kept after each of these, one a second."""
    kept: list[LinkReport] = []
    for second, (state, reason) in enumerate(reports):
        kept.append(follow(kept[-1] if kept else None, Report(ALICE, state, reason), float(second), None))
    return kept


def test_the_last_error_stays_while_the_next_dial_is_under_way() -> None:
    *_, last = told((LinkState.CONNECTING, ""), (LinkState.UNREACHABLE, "no answer"), (LinkState.CONNECTING, ""))
    assert (last.state, last.reason, last.since) == ("unreachable", "no answer", 0.0)


def test_since_is_when_the_link_went_whatever_has_failed_since() -> None:
    *_, last = told(
        (LinkState.LINKED, ""),
        (LinkState.UNREACHABLE, "the connection was lost"),
        (LinkState.CONNECTING, ""),
        (LinkState.REFUSED, "it has not added this node's key"),
        (LinkState.UNREACHABLE, "no answer"),
    )
    assert (last.state, last.reason, last.since, last.last_seen) == ("unreachable", "no answer", 1.0, 0.0)


def test_a_second_link_with_a_linked_peer_does_not_make_the_first_one_young() -> None:
    *_, last = told((LinkState.LINKED, ""), (LinkState.LINKED, "clock 3 h ahead (harmless)"))
    assert (last.state, last.reason, last.since) == ("linked", "clock 3 h ahead (harmless)", 0.0)


@given(st.lists(st.tuples(st.sampled_from(LinkState), st.text()), min_size=1))
def test_a_link_is_called_one_when_it_is_and_only_then(reports: list[tuple[LinkState, str]]) -> None:
    for (state, reason), kept in zip(reports, told(*reports), strict=True):
        assert (kept.state == "linked") == (state is LinkState.LINKED)
        if state is not LinkState.CONNECTING:
            assert (kept.state, kept.reason) == (state.value, reason)


def test_what_a_peer_says_reaches_a_terminal_as_one_printable_line_of_bounded_length() -> None:
    said = failure(grpc.StatusCode.PERMISSION_DENIED, "no\x1b[2J\r\nhere" + "x" * 9_000, "10.0.0.7:1")
    assert isinstance(said, PeerRefused)
    assert str(said).startswith("it says: no [2J  herexxx")
    assert len(str(said)) < 250


@pytest.mark.parametrize(
    "details",
    [
        "Socket closed",
        "recvmsg:Connection reset by peer (104)",
        "Stream removed",
        "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:35039: Socket closed",
    ],
)
def test_a_link_that_was_up_and_is_cut_is_lost_and_not_refused(details: str) -> None:
    assert lost(grpc.StatusCode.UNAVAILABLE, details) == "the connection was lost"
    assert lost(grpc.StatusCode.UNAVAILABLE, "ping timeout") == "it fell silent"
