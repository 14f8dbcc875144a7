"""What the gossip core is told (events) and what it asks for (actions): frozen values, no behavior.

The shell around the core (the daemon, or the simulator) owns sockets, disk and clock. It calls
`Gossip.handle` with one event at a time and carries out the actions in order before the next event. Links
are numbered by the shell, a number is used once.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crypto.keys import PublicKey
from node.frames import Frame
from node.records import Held, Record, Slot

# --------------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """The members, all of them, each with its addresses, the preferred one first; none if it is not known. The order of
    the mapping is the order in which they are dialed. Query-only peers are not members; this node may be among them.
    `origins` are those whose records are wanted: the members' raw keys, and those of identities that have ended."""

    members: Mapping[PublicKey, tuple[str, ...]]
    origins: frozenset[bytes] = frozenset()
    dialable: Sequence[PublicKey] = ()
    """Those with an address. Both are made from `members` unless they are given. Cores keep all three and copy none, so
    a simulation hands the same to thousands."""

    def __post_init__(self) -> None:
        if not self.origins:
            object.__setattr__(self, "origins", frozenset(peer.raw for peer in self.members))
        if not self.dialable:
            dialable = tuple(peer for peer, addresses in self.members.items() if addresses)
            object.__setattr__(self, "dialable", dialable)


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A stream with an authenticated peer can carry frames. Answers a Dial if `dialed_by_us`.

    `clock_unix_ms` is what this node's own clock shows, milliseconds since 1970, right or wrong; 0 if it has none. It
    is told to the peer and compared with the peer's, for people.
    """

    link: int
    peer: PublicKey
    dialed_by_us: bool
    clock_unix_ms: int = 0


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link is gone, whoever ended it. Also told, or not, after a Close of our own: both are fine."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A Dial came to nothing. Every Dial is answered by this or by a LinkUp, or takes the place of an earlier one for
    the same peer. `is_refusal`: the peer was there and did not want this node."""

    peer: PublicKey
    reason: str
    is_refusal: bool = False


@dataclass(frozen=True, slots=True)
class FrameIn:
    """A well-formed frame arrived."""

    link: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class BadFrame:
    """Something arrived that is not a well-formed frame (WireError)."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class RecordAdded:
    """The store holds a record, or more of its body, that did not come through the core: authored here or imported.
    Again is no change."""

    held: Held


class Disk(enum.StrEnum):
    """How much room the disk has, see `disk`."""

    ROOM = "room"
    LOW = "low"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class DiskChanged:
    """The disk has room, is low (take no bodies), or refuses writes (take withdrawals and evidence only). Room is what
    the core begins with; again is no change."""

    disk: Disk


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `Gossip.next_deadline` named has come. Too early or too late is fine."""


Event = PeersChanged | LinkUp | LinkDown | DialFailed | FrameIn | BadFrame | RecordAdded | DiskChanged | Tick

# -------------------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Dial:
    """Try to open a link to a member at one of its addresses, and give up trying it anywhere else."""

    peer: PublicKey
    address: str


@dataclass(frozen=True, slots=True)
class Close:
    """End a link; `reason` is a few words for a person."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a frame, in order, before any chunk that waits."""

    link: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Load the bodies of these records, all of them small, when their turn comes, after frames and before chunks, and
    send one Records frame. The header of one whose body is gone goes alone."""

    link: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Load this chunk, or so many from it on, when its turn comes, and send a Chunk frame; a Missing frame if any is
    gone."""

    link: int
    record_id: bytes
    index: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Keep:
    """Store a record that passed every check. The store applies what it supersedes, or that it is superseded."""

    record: Record


@dataclass(frozen=True, slots=True)
class KeepChunk:
    """Store a chunk whose hash is right."""

    record_id: bytes
    index: int
    data: bytes


class LinkState(enum.StrEnum):
    """How things stand with a peer, in the words of `status`."""

    LINKED = "linked"
    CONNECTING = "connecting"
    UNREACHABLE = "unreachable"
    WAITING = "waiting"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Report:
    """How things stand with a peer now, and why: the last error, or a remark. `retry_at` is when it is dialed next, in
    the core's time, if a dial waits."""

    peer: PublicKey
    state: LinkState
    reason: str
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something about an origin that its operators must hear of, in a sentence, with the record that proves it if
    that is not kept otherwise."""

    origin: PublicKey
    reason: str
    proof: Record | None = None


class Offence(enum.StrEnum):
    """What a peer got wrong."""

    FRAME = "frame"
    RECORD = "record"
    CHUNK = "chunk"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Struck:
    """A peer sent something invalid, which was refused and counts against it. For the operator: nothing follows."""

    peer: PublicKey
    offence: Offence
    reason: str


@dataclass(frozen=True, slots=True)
class Unheard:
    """A peer goes on without knowing that this number is contested, although it was offered the EVIDENCE that is here:
    it may not trust those who signed it. It trusts this node, or it would not be linked: tell of the proof too."""

    slot: Slot


Action = Dial | Close | Send | SendRecords | SendChunk | Keep | KeepChunk | Report | Alarm | Struck | Unheard
