"""Import of a bundle: the file is a peer that may be hostile, read twice.

    look      the whole file, storing nothing: does the exporter's signature hold, is every record of a trusted origin?
    admit     from a member: go on. From nobody we know, or cut off, or damaged: only if all its records are trusted
    take      the whole file again: keep what passes every check and is of a trusted origin, batch by batch
    follow    tell of new proofs of equivocation; take the versions of the roster that came; grant epoch keys to members
              whose key cards came

In both passes a record passes the rules of `records` and a chunk has the hash and size that its header says, or it
counts as refused. The second pass trusts nothing that the first one saw: a file that changes in between can bring no
more than valid records of trusted origins. On a disk that is nearly full headers are kept and bodies are not, as in
gossip (`disk`). What a batch kept is on disk, so whatever ends an import, another one, or a
link, goes on from there; importing again changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from crypto.keys import PublicKey
from node.bundle_file import BundleReader, Ending
from node.disk import WORDS, is_low
from node.errors import BundleError, RecordError, WireError
from node.evidence import witness
from node.frames import Chunk
from node.gossip.events import Disk
from node.gossip.intake import MAX_WAITING, MET_ITSELF, NOT_ITS_RECOVERY_KEY, equivocation
from node.gossip.quotas import of_store, sort_of
from node.home import Home
from node.records import Held, HeldState, Kind, Record, Revocation, cut, is_chunk
from node.roster_follow import catch_up
from node.show import moment
from node.succession import ENDINGS
from node.wire import read_payload, read_record

BATCH_BYTES: Final = 1024 * 1024
"""What is kept in one transaction. More waits less often for the disk, and keeps a running daemon waiting longer."""

BATCH_ITEMS: Final = 4_096
"""Frames of which little or nothing is kept take memory too while they wait."""

MAX_ENDINGS: Final = 256
"""Replaced and revoked identities that one bundle may tell of; the rest counts from the next import on."""

NO_RECOVERY_KEY: Final = (
    "a revocation came, and no key card of it with the hash of a recovery key is here: import it again when one is"
)

MAX_TOLD: Final = 10
"""Unfinished records and other findings that are told one by one; the rest is counted."""


@dataclass
class Looked:
    """What a pass over the file found; nothing of it is stored."""

    reader: BundleReader
    trusted: frozenset[PublicKey]
    """The origins that are trusted, those included whom records in the bundle make so."""
    revocable: frozenset[PublicKey]
    """These, and those that are condemned: the REVOKE of a stolen identity must not fail by what its thief signed."""
    endings: list[Record] = field(default_factory=list)
    records: int = 0
    refused: int = 0
    not_trusted: int = 0
    stranger: PublicKey | None = None

    def takes(self, record: Record) -> bool:
        """Whether records of its origin are kept here."""
        is_revoke = record.header.kind is Kind.REVOKE
        return record.header.origin in self.trusted or (is_revoke and record.header.origin in self.revocable)

    @property
    def exporter(self) -> PublicKey | None:
        """Who signed all of it."""
        return self.reader.start.exporter if self.reader.is_signed else None


@dataclass
class Imported:
    """What `import_bundle` did. `exporter` is the member that vouches for the bundle, if one does."""

    path: Path
    looked: Looked
    exporter: PublicKey | None
    exporter_name: str | None = None
    new: int = 0
    known: int = 0
    chunks: int = 0
    completed: int = 0
    unfinished: int = 0
    missing: list[dict[str, Any]] = field(default_factory=list)
    findings: list[dict[str, str]] = field(default_factory=list)
    granted: int = 0
    over_quota: int = 0
    """New records that were left out because their origins have used up their quotas here."""
    was_low: bool = False
    """Whether bodies were left out because the disk is nearly full."""

    def lacks(self, held: Held) -> None:
        """A record of the bundle still lacks chunks when all of it was read."""
        self.unfinished += 1
        if len(self.missing) < MAX_TOLD:
            chunks = len(held.record.header.chunk_hashes)
            self.missing.append({"record": held.record.id.hex(), "missing_chunks": len(held.missing), "chunks": chunks})

    @property
    def is_complete(self) -> bool:
        """Whether everything of trusted origins that the bundle was to bring is here now."""
        return self.looked.reader.ending is Ending.WHOLE and not (
            self.looked.refused or self.unfinished or self.over_quota
        )

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        start = self.looked.reader.start
        return {
            "file": str(self.path),
            "exporter": self.exporter_name,
            "exporter_key": self.exporter.text if self.exporter else None,
            "created": _moment(start.created_unix_ms),
            "complete": self.is_complete,
            "ending": self.looked.reader.ending.value,
            "records": self.looked.records,
            "announced": start.records,
            "new": self.new,
            "known": self.known,
            "chunks": self.chunks,
            "completed": self.completed,
            "unfinished": self.unfinished,
            "missing": self.missing,
            "not_trusted": self.looked.not_trusted,
            "refused": self.looked.refused,
            "over_quota": self.over_quota,
            "disk_low": self.was_low,
            "findings": self.findings,
            "granted": self.granted,
        }

    def describe(self) -> str:
        """For people."""
        when = f" at {when} UTC" if (when := _moment(self.looked.reader.start.created_unix_ms)) else ""
        who = f"exported by {self.exporter_name}{when}" if self.exporter else "vouched for by nobody"
        lines = [f"{self.path}, {who}: {self._gain()}"]
        if self.looked.not_trusted:
            lines.append(f"{_count(self.looked.not_trusted)} of origins that are no members here were left out.")
        if self.granted:
            to = f"{self.granted} {'member' if self.granted == 1 else 'members'}"
            lines.append(f"This node granted its key to {to}: it travels in the next bundle, or over a link.")
        return "\n".join(lines)

    def warnings(self) -> list[str]:
        """What is missing or wrong, a sentence each."""
        told = [f"{one['origin']}: {one['reason']}" for one in self.findings]
        if self.was_low:
            told.append(f"{WORDS[Disk.LOW]}. Make room and import the bundle again.")
        if self.over_quota:
            told.append(
                f"{_count(self.over_quota)} of origins over their quotas here were left out. Import it again tomorrow."
            )
        if self.looked.refused:
            parts, was = ("part", "was") if self.looked.refused == 1 else ("parts", "were")
            told.append(f"{self.looked.refused:,} {parts} of the bundle failed a check and {was} not kept.")
        if self.looked.reader.ending is not Ending.WHOLE:
            told.append(self._ending())
        elif (self.unfinished and not self.was_low) or self.looked.refused:
            told.append(f"{self._lacking()}Ask for the bundle again, or let a link bring what is missing.")
        return told

    def _gain(self) -> str:
        if not self.new and not self.chunks:
            return f"nothing new; {_count(self.known)} known already."
        bodies = f"{self.completed} {'body' if self.completed == 1 else 'bodies'} completed"
        return f"{_count(self.new)} new, {self.known} known already, {bodies}."

    def _ending(self) -> str:
        lost = max(0, self.looked.reader.start.records - self.looked.records)
        of = f"{lost} of its {self.looked.reader.start.records} records are not in it. " if lost else ""
        how = "ends early" if self.looked.reader.ending is Ending.CUT else "is damaged"
        return f"{self.path} {how}: {of}{self._lacking()}Ask for the bundle again, or let a link bring the rest."

    def _lacking(self) -> str:
        if not self.unfinished:
            return ""
        first = self.missing[0]
        one = f"record {first['record'][:12]} lacks {first['missing_chunks']} of {first['chunks']} chunks"
        return f"{one}. " if self.unfinished == 1 else f"{self.unfinished} records lack chunks; {one}. "


def import_bundle(
    home: Home,
    path: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> Imported:
    """Keep what the bundle brings; BundleError, before anything is stored, if it is none or may not be imported.
    `progress` takes the bytes read so far, in both passes together."""
    if not path.is_file():
        raise BundleError(f"{path} is not a file, or not one that can be read twice: check the path and the stick.")
    with path.open("rb") as file:
        looked = _look(home, file, path, progress)
        trusted = looked.trusted
        exporter = looked.exporter if looked.exporter in trusted else None
        if exporter is None and looked.not_trusted:
            raise _refusal(home, looked, path)
        imported = Imported(path, looked, exporter)
        looked_bytes = looked.reader.bytes_read
        _take(home, file, imported, lambda taken: progress(looked_bytes + taken))
    catch_up(home)
    while witness(home):
        pass
    imported.exporter_name = home.peers.name_of(exporter) if exporter else None
    imported.granted = home.epochs.grant_missing()
    return imported


# ----------------------------------------------------------------------------------------------------------- the passes


def _look(home: Home, file: IO[bytes], path: Path, progress: Callable[[int], None]) -> Looked:
    reader = BundleReader(file, path, home.me, home.keystore.encryption_keys)
    looked = Looked(reader, home.trusted, revocable=home.store.standing().trusted)
    for item in _checked(reader):
        progress(reader.bytes_read)
        if isinstance(item, list):
            looked.records += len(item)
            _look_for_successors(home, looked, item)
            strangers = [record.header.origin for record in item if not looked.takes(record)]
            looked.not_trusted += len(strangers)
            looked.stranger = looked.stranger or next(iter(strangers), None)
        elif isinstance(item, str):
            looked.refused += 1
        if looked.not_trusted and reader.start.exporter not in looked.trusted:
            break  # refused, whatever follows
    return looked


def _look_for_successors(home: Home, looked: Looked, records: list[Record]) -> None:
    """A member may have another key since, as a record of its old one says that the bundle brings before all others."""
    news = [record for record in records if record.header.kind in ENDINGS and home.store.get(record.id) is None]
    while named := [record for record in news if looked.takes(record)]:
        news = [record for record in news if record not in named]
        looked.endings += named[: MAX_ENDINGS - len(looked.endings)]
        looked.revocable = home.store.trusted_with(looked.endings)
        looked.trusted = looked.revocable - home.store.condemned()


def _take(
    home: Home,
    file: IO[bytes],
    imported: Imported,
    progress: Callable[[int], None],
) -> None:
    reader = BundleReader(file, imported.path, home.me, home.keystore.encryption_keys)
    keeper = _Keeper(home, imported)
    for item in _checked(reader):
        progress(reader.bytes_read)
        if isinstance(item, list):
            keeper.group([record for record in item if imported.looked.takes(record)])
        elif isinstance(item, Chunk):
            keeper.chunk(item)
    keeper.close()
    if reader.digest != imported.looked.reader.digest:
        raise BundleError(
            f"{imported.path} changed while it was read; what was kept passed every check. Copy it and import it again."
        )


def _checked(reader: BundleReader) -> Iterator[list[Record] | Chunk | str]:
    """Of each frame, the records that pass every rule, or the chunk if it fits a record of the last Records frame; for
    each part that fails, a few words."""
    group: dict[bytes, Record] = {}
    for frame in reader.frames():
        if isinstance(frame, WireError):
            yield str(frame)
        elif isinstance(frame, Chunk):
            yield from _chunks(group.get(frame.id), frame.index, frame.data)
        else:
            group, bodies = {}, {}
            for signed in frame.records:
                try:
                    record = read_record(signed.header_bytes, signed.signature)
                except RecordError as error:
                    yield str(error)
                else:
                    group[record.id] = record
                    bodies[record.id] = signed.body
            yield list(group.values())
            for record_id, body in bodies.items():
                yield from _chunks(group[record_id], 0, body)


def _chunks(record: Record | None, first: int, data: bytes) -> Iterator[Chunk | str]:
    """One chunk after the other of what came together, up to the first that does not fit the record."""
    for index, part in enumerate(cut(data, record.header.chunk_bytes) if record else [data], first):
        if record is None or not is_chunk(record.header, index, part):
            yield "a chunk that fits no record before it"
            return
        yield Chunk(record.id, index, part)


def _refusal(home: Home, looked: Looked, path: Path) -> BundleError:
    named = looked.reader.start.exporter
    if named is not None and named not in home.trusted:
        why = f"names {named.text} as its maker, which is no member here,"
        what = "add it with `tidings peer add` if you trust it, or have a member export the bundle"
    elif looked.reader.ending is Ending.CUT:
        why, what = "ends early, so that nobody vouches for it,", "ask for the bundle again"
    else:
        why, what = "was damaged or changed, so that nobody vouches for it,", "ask for the bundle again"
    stranger = looked.stranger.short if looked.stranger else "?"
    others = f"holds records of origins that are no members here ({stranger}…)"
    return BundleError(f"{path} {why} and {others}: nothing was imported; {what}.")


# -------------------------------------------------------------------------------------------------------------- keeping


class _Keeper:
    """Keeps what was checked, a batch at a time, and counts. `_wanted`: what records of the last group lack."""

    def __init__(self, home: Home, imported: Imported) -> None:
        self._home = home
        self._imported = imported
        self._batch: list[list[Record] | Chunk] = []
        self._batch_bytes = 0
        self._wanted: dict[bytes, set[int]] = {}
        self._is_low = False
        store, times = home.store, home.settings.quotas
        self._quotas = of_store(home.me.raw, len(home.epochs.members()), store.walk(), time.time(), times)
        self._waiting: list[Record] = []
        self._is_last_try = False

    def group(self, records: list[Record]) -> None:
        """The records of one frame; chunks that follow are theirs."""
        self._batch.append(records)
        self._add_bytes(sum(len(record.header_bytes) for record in records))

    def chunk(self, chunk: Chunk) -> None:
        """A chunk of a record of the last group."""
        self._batch.append(chunk)
        self._add_bytes(len(chunk.data))

    def close(self) -> None:
        """Keep the last batch, and the revocations that waited for a key card in this bundle."""
        self._keep()
        self._is_last_try = True
        self._batch.append(self._waiting)
        self._keep()
        self._leave_group()

    def _add_bytes(self, count: int) -> None:
        self._batch_bytes += count
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_ITEMS:
            self._keep()

    def _keep(self) -> None:
        self._look_for_ourselves()
        self._is_low = is_low(self._home.path)
        with self._home.store.batch():
            for item in self._batch:
                if isinstance(item, Chunk):
                    self._keep_chunk(item)
                else:
                    self._leave_group()
                    for record in item:
                        self._keep_record(record)
        self._batch, self._batch_bytes = [], 0

    def _look_for_ourselves(self) -> None:
        """A record of our own that this store did not make shows that another copy of this home is in use: say so. The
        store gives other numbers from then on by itself."""
        store = self._home.store
        for record in (record for item in self._batch if isinstance(item, list) for record in item):
            if record.header.origin == self._home.me and store.get(record.id) is None:
                self._tell(record.header.origin, MET_ITSELF)

    def _keep_record(self, record: Record) -> None:
        store = self._home.store
        held = store.get(record.id)
        if held is None and record.header.kind is Kind.REVOKE and not self._may_revoke(record):
            return
        if held is None and store.is_equivocation(record):
            store.add_conflict(record)
            self._tell(record.header.origin, equivocation(record))
            return
        header = record.header
        sort = sort_of(header.kind, header.body_bytes)
        if held is None and not self._quotas.admits(header.origin.raw, record.id, sort, 0.0):
            self._imported.over_quota += 1
            return
        if held is None:
            held = store.add_record(record)
            self._quotas.add(record, 0.0, is_buried=held.state is HeldState.BURIED)
            self._imported.new += 1
        else:
            self._imported.known += 1
        if held.missing:
            self._wanted[record.id] = set(held.missing)

    def _may_revoke(self, record: Record) -> bool:
        """Whether a revocation is of the recovery key that its origin published; one whose origin has published none so
        far waits until all of the bundle was read."""
        payload = read_payload(record.header)
        published = self._home.store.first_recovery_hash(record.header.origin)
        if isinstance(payload, Revocation) and published == payload.recovery_hash:
            return not self._home.store.is_equivocation(record)
        if not published and not self._is_last_try and len(self._waiting) < MAX_WAITING:
            self._waiting.append(record)
        else:
            self._tell(record.header.origin, NOT_ITS_RECOVERY_KEY if published else NO_RECOVERY_KEY)
        return False

    def _keep_chunk(self, chunk: Chunk) -> None:
        wanted = self._wanted.get(chunk.id, set())
        if chunk.index not in wanted:
            return
        if self._is_low:
            self._imported.was_low = True
            return
        self._home.store.add_chunks([(chunk.id, chunk.index, chunk.data)])
        self._imported.chunks += 1
        wanted.discard(chunk.index)
        if not wanted:
            held = self._home.store.get(chunk.id)
            self._imported.completed += held is not None and held.state is HeldState.COMPLETE
            del self._wanted[chunk.id]

    def _leave_group(self) -> None:
        """No more chunks come for these records: count what is still missing."""
        for record_id in self._wanted:
            held = self._home.store.get(record_id)
            if held is not None and held.state is HeldState.FETCHING:
                self._imported.lacks(held)
        self._wanted = {}

    def _tell(self, origin: PublicKey, reason: str) -> None:
        told = {"origin": self._home.peers.name_of(origin), "reason": reason}
        if told not in self._imported.findings and len(self._imported.findings) < MAX_TOLD:
            self._imported.findings.append(told)


def _count(records: int) -> str:
    return f"{records:,} {'record' if records == 1 else 'records'}"


def _moment(unix_ms: int) -> str | None:
    """When somebody says it was; None for what no calendar has."""
    try:
        return moment(unix_ms / 1000)
    except (ValueError, OverflowError, OSError):
        return None
