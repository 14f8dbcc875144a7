"""Reports: what `status` may say of a link, kept so that it tells the truth and the last error stays to be read.

The core says how things stand now (`events.Report`); an operator asks what went wrong, and since when. So a new dial
does not wipe out why the last one failed, and `since` is when the link came up or went down, or was first tried for,
however many different errors came after that.
"""

from __future__ import annotations

from node.gossip.events import LinkState, Report
from node.local_tables import LinkReport

_WITHOUT_LINK = {LinkState.CONNECTING, LinkState.UNREACHABLE, LinkState.REFUSED, LinkState.WAITING}


def follow(before: LinkReport | None, told: Report, now: float, retry_at: float | None) -> LinkReport:
    """The report to keep after the core told one; `now` and `retry_at` in seconds since 1970."""
    state, reason = told.state.value, told.reason
    if before is None:
        return LinkReport(told.peer, state, reason, now, _seen(told, None, now), 0, 0, retry_at)
    if told.state is LinkState.CONNECTING and before.state in _WITHOUT_LINK:
        state, reason = before.state, before.reason
    is_news = (before.state in _WITHOUT_LINK) != (told.state in _WITHOUT_LINK)
    since = now if is_news else before.since
    return LinkReport(told.peer, state, reason, since, _seen(told, before, now), 0, 0, retry_at)


def _seen(told: Report, before: LinkReport | None, now: float) -> float | None:
    if told.state is LinkState.LINKED:
        return now
    return before.last_seen if before else None
