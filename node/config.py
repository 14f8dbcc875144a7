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

ROSTER_LIMIT_BYTES: Final = 56 * 1024
"""Largest roster document. It travels in one header, so that whoever has the record has the whole list: 1,000 members
with names of 17 letters and no address, 600 with names of 20 letters and one address each (`node.roster`)."""

ROSTER_PAYLOAD_LIMIT_BYTES: Final = 63 * 1024
"""The payload of a ROSTER: the document, and 64 signatures of 104 bytes. What is left of a header is 1 kB."""

BODY_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""Largest sealed body. A summary of 2,000 dimensions is about 1 MB."""

CHUNK_BYTES: Final = 16 * 1024
"""Size of the chunks this node cuts its own bodies into. What a cut link loses is at most the chunk on the line, and
a chunk that takes longer than the link lives never arrives: 2 s at 64 kbit/s. Smaller ones make larger headers (32
bytes a chunk: 32 kB for 16 MiB), larger ones lose more; every node takes any size between the two limits below."""

CHUNK_MAX_BYTES: Final = 64 * 1024
"""Largest chunk size a header may state: four to a frame's limit, 8 s at 64 kbit/s."""

CHUNKS_MAX_BYTES: Final = 128 * 1024
"""Most bytes of chunks in one frame: eight of the usual size. More saves hardly any CPU time a byte."""

CHUNK_MIN_BYTES: Final = 1024
"""Smallest chunk size a header may state: a body of 1-byte chunks would be all hashes."""

SMALL_BODY_BYTES: Final = 4 * 1024
"""Bodies up to this size travel with their header, in one frame and unasked: a round trip costs more than a rare second
copy. A reader refuses larger ones in that place: they are asked for by chunk, so that a cut line loses little."""

MAX_LIARS: Final = 1_023
"""That a query may ask to withstand: fewer than half of the most origins."""

MAX_ORIGINS: Final = 2_048
MAX_PREFIXES: Final = 2_048
MAX_SPANS: Final = 256
MAX_RANGES: Final = 8_192
MAX_RANGES_PER_ORIGIN: Final = 4_096
MAX_IDS: Final = 4_096
MAX_ADVERTS: Final = 1_024
MAX_WANT: Final = 256
MAX_WANT_CHUNKS: Final = 64
"""Most entries a frame may hold. Each keeps the frame under FRAME_LIMIT_BYTES (256 spans of 600 bytes are 150 kB, 2,048
origins of 72 bytes 144 kB) and what a reader allocates for it proportional to its size. None of them limits how many
members a coalition may have: more origins travel in several frames."""

# --------------------------------------------------------------------------------------------------------------- quotas

QUOTA_RECORDS: Final = 20_000
QUOTA_RECORDS_A_DAY: Final = 10_000
QUOTA_RECORDS_PER_MEMBER: Final = 200
QUOTA_RECORDS_A_DAY_PER_MEMBER: Final = 20
QUOTA_HEADER_BYTES: Final = 4 * 1024
QUOTA_BODY_BYTES: Final = 2 * 1024 * 1024 * 1024
QUOTA_BODY_BYTES_A_DAY: Final = 512 * 1024 * 1024
"""What one origin may have at this node, its own excepted; `node.json` may name a multiple ("quotas": 4).

With a body: 20,000 records and 2 GiB (128 of the largest bodies), of them 10,000 and 512 MiB a day: a summary every
10 s, where one a day is usual. Without one: as many, and 200 (20 a day) for each member on top, because every new epoch
needs a grant for each. A record's header counts with its own size, up to 4 KiB of each on average (most have 0.3 to 1.5
kB). A record costs about 2 kB of memory, so an origin that uses its quota up costs 80 MB and 2.3 GB of disk. Lower
saves that, and makes honest origins wait that publish very much at once."""

# ----------------------------------------------------------------------------------------------------------------- disk

DISK_LOW_BYTES: Final = 256 * 1024 * 1024
DISK_LOW_SHARE: Final = 0.05
"""A disk with less free space than either of these takes no bodies. The first holds sixteen of the largest bodies, what
the daemon writes meanwhile, and leaves a machine that its operator can still log in to; the second is for disks so
small that the first would be most of them."""

DISK_ENOUGH: Final = 1.5
"""Bodies are taken again at so many times the mark, so that a disk near it does not switch with every body."""

DISK_RETRY_S: Final = 60.0
"""How long after a refused write the next one is tried if free space does not say why it was refused."""

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

# -------------------------------------------------------------------------------------------------------------- queries


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """What answering queries may take of one node."""

    burst: int = 20
    per_hour: float = 120.0
    """Queries that one key may ask: so many at once, then one every 30 s (`serve --queries-per-hour`). A person asks
    now and then, a program that wants to be up to date once a minute; what is refused costs the asker a wait, so more
    would serve nobody but who wants to keep this node busy."""

    fusions: int = 1
    """Fusions at a time (`serve --fusions`). Each is a process with torch in it: 300 MB to 1 GB, and a core or more."""

    max_waiting: int = 8
    max_waiting_each: int = 2
    """Fusions that may wait, in all and of one key: four keys at least find room however one behaves. With fits of a
    minute the last of eight waits eight, as long as anybody will."""

    max_open_each: int = 16
    """Queries of one key under way at once, sending included: each holds one stream and 64 KiB, beside the model
    itself, which they share."""

    fusion_limit_s: float = 3600.0
    """A fusion that takes longer is given up, so that it cannot keep the others waiting for ever. The slowest measured
    takes minutes."""

    remembered: int = 32
    remembered_bytes: int = 64 * 1024 * 1024
    """Models kept in memory, in all: most have less than 1 MB. One larger than the second is fused again each time."""


ANSWER_STALL_S: Final = 60.0
ANSWER_PACE: Final = 4_000
"""A reader of an answer is given up if it takes none of it for the first (seconds), or if all of it takes longer than
that and its size at the second (bytes per second): half the pace of the thinnest line that must work, 64 kbit/s."""

# --------------------------------------------------------------------------------------------------------------- gossip


MAX_CONTESTED: Final = 100
"""Numbers of one origin that two records have, and records taken back under them, with which it is condemned: nothing
that it signed is used. Part of the contract: all must come to the same. By accident a home of which two copies run gets
a few, more with every member that both copies grant a key before they meet. A number costs every node 700 bytes for
each node that tells of it, one or two as a rule."""


MAX_LAST_WORDS: Final = 100
"""REVOKEs of one identity that a node keeps, and SUCCESSIONs as many; with so many, nothing that it signed counts, and
nobody has its place. Part of the contract: of more, some nodes would hold these and others those. An operator makes one
or two; whoever makes more fills disks and keeps processors busy. 100 of the largest are 6 MB."""


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

    list_origins: int = 32
    """Ranges of up to so many origins are compared as a list (72 bytes an origin), larger ones by the digests of
    their sixteen sub-ranges (560 bytes). Lower narrows down further before it lists, which takes half a round trip more
    for every sixteenfold; higher lists more of what is equal. Measured: docs/adr/0010, `python -m benchmarks
    reconciliation`."""

    max_marks: int = 256
    """Earlier digests of our own that we can still say what changed since; 100 bytes each. With fewer, a peer whose
    last comparison is long ago is compared from scratch."""

    max_known_peers: int = 4_096
    """Peers of which we remember the last digest that we had in common; 150 bytes each, the longest unused goes."""

    max_fruitless: int = 16
    """Two nodes that trust different origins never have equal digests. The same two digests are compared again in the
    1st, 2nd, 4th, 8th and then in every such round after the first: an idle pair costs a sixteenth of a comparison per
    round, and whatever was lost on the way is still found."""

    compare_burst: int = 100_000
    compare_rate: int = 2_000
    """How many origins, records and ranges a peer may have us look at or name in comparisons: so many at once, and so
    many per second in the long run. A frame that comes while more was spent is left unanswered, and a later round goes
    on. Comparing 10,000 origins that all differ takes 40,000; an entry takes about 20 µs, so a peer that asks for ever
    costs 4 % of a core. Lower slows down the first meeting of nodes with very many records."""

    hello_timeout_s: float = 15.0
    """A link on which no Hello came by then is closed: it is up on one side only."""

    duplicate_window_s: float = 10.0
    """Two links with one peer, both younger than this, are a simultaneous dial: the smaller key's is kept.
    An older one is taken for dead on the other side, since no node dials a peer it is linked with. At least
    CONNECT_TIMEOUT_S."""

    dial_base_s: float = 1.0
    dial_cap_s: float = 60.0
    """Full jitter: the n-th try in a row waits a time drawn evenly from 0 to min(cap, base * 2^n). For ever. A peer
    that returns is met at most CONNECT_TIMEOUT_S + cap later: within the 2 * sync_max_s in which a healed partition of
    any two nodes must be equal again, with 50 s to spare for what they have to send. That costs a try every 30 s and
    unreachable member (three packets of 60 bytes, or one that is refused); a cap of 5 minutes costs a fifth of it."""

    dial_spacing_s: float = 0.5
    """With n members to dial the cap is n times this if that is more: a node that is cut off from 10,000 members makes
    four tries a second, not 333, and meets some member no later."""

    max_dialed: int = 16
    """Links of our own that are wanted; members that dial us come on top, 16 on average. Up to 17 nodes are linked all
    to all. In a larger coalition a node's first round of rumors and its anti-entropy go over about 32 links, so every
    record has more than `fanout` ways to go; the chance that a random graph of this degree falls apart is far below
    n * exp(-32). Raising it costs about 55 bytes a minute, 200 bytes of keepalive and 50 kB of memory per link."""

    explore_min_s: float = 30.0
    explore_max_s: float = 90.0
    """With all of `max_dialed` up, one member more is dialed after a time drawn evenly from here, and one of the others
    given up the next time. Mixes components that know each other and were full when they could meet again: of two
    halves of 20 nodes each somebody tries the other side every few seconds. Costs a handshake (5 kB) per minute."""

    max_unready_links: int = 3
    """Links of one peer on which no Hello came yet; the oldest of more is closed. Honest peers have one, two after a
    cut. All members may dial us at once: a node with an address may be the only one that the others can reach."""

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

    frame_s: float = 0.05
    """As many chunks in a row may share a frame as arrive in this time at the pace of the link, up to CHUNKS_MAX_BYTES:
    two of the usual size from 0.7 MB/s on, eight from 2.6. Larger frames cost less a byte (an eighth of the messages,
    half the CPU time); what is urgent waits so much longer behind them, and more is lost with one when a link is cut: a
    thin line carries one chunk a frame."""

    stall_s: float = 20.0
    """A link that owes data and delivers none for this long, and for four of its usual gaps between
    arrivals, is asked no more for it; the next source is. Shorter finds a better source sooner, and asks
    for things twice on thin lines: the largest chunk takes 8 s at 64 kbit/s."""

    first_try_s: float = 0.3
    least_try_s: float = 0.2
    steady_tries: int = 4
    """A header, or a small body, that does not come is asked for again: after the first while nothing is known of the
    link; then after its usual time to answer and four deviations, never sooner than the second. After this many tries
    in a row that time doubles with each. Shorter overcomes losses sooner, and asks twice where a link was merely late,
    at the price of some hundred bytes up to 4 KiB."""

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

    quotas: float = 1.0
    """Times what `QUOTA_RECORDS` and those below it say."""

    penalty_s: float = 60.0
    penalty_cap_s: float = 3600.0
    """How long a peer with too many strikes is neither dialed nor let in: the first time, and at most. It doubles each
    time; every period of the second that passes without one takes one back. A peer that cannot help it is worth a
    try an hour."""
