"""Limits and settings of the node, each with its reason or formula and with what changing it costs.

The limits are part of the wire contract (proto/tidings.proto): every node checks them, and no flag moves them. The
settings of gossip are one node's own business; two nodes with different ones understand each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# ----------------------------------------------------------------------------------------------- limits of the contract

PROTOCOL_VERSION: Final = 1

FRAME_LIMIT_BYTES: Final = 256 * 1024
"""Largest serialized frame. Four chunks' worth: larger ones would delay withdrawals behind them on thin lines."""

HEADER_LIMIT_BYTES: Final = 64 * 1024
"""Largest header. A 16 MiB body has 256 chunk hashes, 9 kB of header; the rest is room for 1 kB chunks and
payloads."""

PAYLOAD_LIMIT_BYTES: Final = 16 * 1024
"""Largest payload inside a header; a wrapped key is 1.2 kB."""

BODY_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""Largest sealed body. A summary of 2,000 dimensions is about 1 MB."""

CHUNK_BYTES: Final = 16 * 1024
"""Size of the chunks this node cuts its own bodies into. What a cut link loses is at most the chunk on the line, and
a chunk that takes longer than the link lives never arrives: 2 s at 64 kbit/s. Smaller ones make larger headers (32
bytes a chunk: 32 kB for 16 MiB), larger ones lose more; every node takes any size between the two limits below."""

CHUNK_MAX_BYTES: Final = 64 * 1024
"""Largest chunk size a header may state: four to a frame's limit, 8 s at 64 kbit/s."""

CHUNK_MIN_BYTES: Final = 1024
"""Smallest chunk size a header may state: a body of 1-byte chunks would be all hashes."""

SMALL_BODY_BYTES: Final = 4 * 1024
"""Bodies up to this size follow their header unasked: a round trip costs more than a rare second copy."""

MAX_ORIGINS: Final = 2_048
MAX_RANGES: Final = 8_192
MAX_RANGES_PER_ORIGIN: Final = 4_096
MAX_IDS: Final = 4_096
MAX_ADVERTS: Final = 1_024
MAX_WANT: Final = 256
MAX_WANT_CHUNKS: Final = 64
"""Most entries a frame may hold. Each keeps the frame under FRAME_LIMIT_BYTES (the largest, 2,048 origins
of 72 bytes, is 144 kB) and what a reader allocates for it proportional to its size."""

# ------------------------------------------------------------------------------------------------------------ transport

CONNECT_TIMEOUT_S: Final = 10.0
"""How long a dial may take: three retransmissions of a lost SYN (1 + 2 + 4 s) and a TLS handshake."""

KEEPALIVE_S: Final = 20
KEEPALIVE_TIMEOUT_S: Final = 20
"""A silent link is probed after the first and given up after the second: a vanished peer is noticed within 40 s.
Shorter notices sooner, costs a packet per period on every idle link, and gives up on lines that are merely slow."""

QUERY_CHUNK_BYTES: Final = 64 * 1024
"""Part of a model file in one reply."""

MODEL_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""Largest model file that a query accepts."""

# --------------------------------------------------------------------------------------------------------------- gossip


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """How the gossip core of one node behaves."""

    fanout: int = 3
    rumor_rounds: int = 3
    """A new record is announced to `fanout` links at once and to as many others in each following round. Expected
    share of nodes that push alone misses: about exp(-fanout * rumor_rounds); anti-entropy reaches those. Raising
    either costs 85 bytes per link and record, and saves at most one anti-entropy period for the last nodes."""

    rumor_round_s: float = 1.0
    """Time between those rounds. Shorter repeats an announcement before the first can have been answered."""

    sync_min_s: float = 30.0
    sync_max_s: float = 60.0
    """Anti-entropy on a link begins a time drawn evenly from here after the last round. An idle, equal pair
    costs about 40 bytes a round. Shorter finds what announcements missed sooner; the draw keeps a swarm
    from moving in step."""

    hello_timeout_s: float = 15.0
    """A link on which no Hello came by then is closed: it is up on one side only."""

    duplicate_window_s: float = 10.0
    """Two links with one peer, both younger than this, are a simultaneous dial: the smaller key's is kept.
    An older one is taken for dead on the other side, since no node dials a peer it is linked with. At least
    CONNECT_TIMEOUT_S."""

    dial_base_s: float = 1.0
    dial_cap_s: float = 300.0
    """Full jitter: the n-th try in a row waits a time drawn evenly from 0 to min(cap, base * 2^n). For
    ever; a cap of 5 minutes means that a peer that returns is met after 2.5 on average."""

    stable_link_s: float = 10.0
    """A link that lived this long ends the row of failed tries; without it a peer that accepts and hangs up
    would be dialed every second."""

    want_window: int = MAX_WANT
    """Headers asked for and not yet received, per link: 0.3 to 1.6 kB each, so 80 to 400 kB in flight."""

    chunk_window: int = 256
    chunk_window_min: int = 8
    chunk_window_s: float = 4.0
    """Chunks asked for and not yet received, per link: as many as arrive in 4 s at the pace of the link, between the
    two limits, and filled up when half of it is free. Whatever is asked for later waits behind them, so on a thin line
    they are few; the least is 128 kB, 16 s at 64 kbit/s. The most is 4 MB, 4 MB/s at 500 ms of round trip; on a fast
    line it bridges the moments in which either side is busy with other things. A longer time fills lines of longer
    round trips, and makes more arrive twice when a slow source is given up."""

    stall_s: float = 20.0
    """A link that owes data and delivers none for this long, and for four of its usual gaps between
    arrivals, is asked no more for it; the next source is. Shorter finds a better source sooner, and asks
    for things twice on thin lines: the largest chunk takes 8 s at 64 kbit/s."""

    hostage_s: float = 120.0
    """A record asked of a link that delivers others but nothing of this one for so long, and for twice what a full
    window of chunks takes on that link, is asked of the next source."""

    max_unknown_adverts: int = 8_192
    """Announced records not yet received, per link, about 2 MB of memory. What is announced beyond is
    dropped and found again by the round of anti-entropy that follows once the others are here."""

    max_refused: int = 1_024
    """Ids remembered as refused for good, so that they are not fetched again and again."""

    max_strikes: int = 3
    """Invalid frames, records or chunks forgiven per peer and `penalty_s`: room for one bug in flight, none
    for a flood."""

    penalty_s: float = 60.0
    """How long a peer with too many strikes is neither dialed nor let in."""
