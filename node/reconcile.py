"""What this node has settled, and how two nodes find out what each lacks.

Anti-entropy in the manner of Demers et al., "Epidemic algorithms for replicated database maintenance" (PODC 1987):
compare one digest; if it differs, one digest per origin; for the origins that differ, ranges of sequences; and only
where the ranges agree although the digests do not, the ids. What a node lacks is then announced to it.

A record is settled when nothing more of it is wanted: it has no body, its body is whole, or it was taken
back. Digests cover ids of settled records and nothing else, so they do not depend on the order in which
records came, nor on who brought them.

Nothing here believes or expands what a peer claims: a range that claims 2^63 sequences costs one comparison.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterable
from typing import Final

from crypto.sealing import HASH_BYTES
from node.config import MAX_IDS, MAX_ORIGINS, MAX_RANGES_PER_ORIGIN
from node.frames import Ids, Origins, OriginVector

ROOT_PERSON: Final = b"tidings-root-v1"
SET_PERSON: Final = b"tidings-set-v1"

Ranges = tuple[tuple[int, int], ...]


class OriginSet:
    """The settled records of one origin."""

    def __init__(self) -> None:
        self._ids: dict[tuple[bytes, int], bytes] = {}
        self._digest: bytes | None = None
        self._ranges: dict[bytes, Ranges] | None = None

    def add(self, incarnation: bytes, sequence: int, record_id: bytes) -> None:
        """A record became settled."""
        self._ids[incarnation, sequence] = record_id
        self._digest = self._ranges = None

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Collection[bytes]:
        """The ids, in no particular order that means anything."""
        return self._ids.values()

    @property
    def digest(self) -> bytes:
        """BLAKE2b-256 over the ids in ascending order."""
        if self._digest is None:
            self._digest = _hash(sorted(self._ids.values()), SET_PERSON)
        return self._digest

    @property
    def ranges(self) -> dict[bytes, Ranges]:
        """Per incarnation, in order of its bytes: the sequences as ascending ranges that do not touch."""
        if self._ranges is None:
            sequences: dict[bytes, list[int]] = {}
            for incarnation, sequence in sorted(self._ids):
                sequences.setdefault(incarnation, []).append(sequence)
            self._ranges = {incarnation: _ranges_of(numbers) for incarnation, numbers in sequences.items()}
        return self._ranges

    def outside(self, theirs: dict[bytes, Ranges]) -> list[bytes]:
        """The ids of our records that these ranges do not cover, in order of incarnation and sequence."""
        return [
            self._ids[incarnation, sequence]
            for incarnation, sequence in sorted(self._ids)
            if not _covers(theirs.get(incarnation, ()), sequence)
        ]


class Index:
    """The settled records of every origin, and which origins are trusted. Origins are raw keys."""

    def __init__(self) -> None:
        self._sets: dict[bytes, OriginSet] = {}
        self._trusted: dict[bytes, None] = {}

    def trust(self, origins: Iterable[bytes]) -> None:
        """From now on, speak of these origins and no others."""
        self._trusted = dict.fromkeys(sorted(origins)[:MAX_ORIGINS])

    def settle(self, origin: bytes, incarnation: bytes, sequence: int, record_id: bytes) -> None:
        """A record of this origin, trusted or not, became settled."""
        self._sets.setdefault(origin, OriginSet()).add(incarnation, sequence, record_id)

    def root(self) -> bytes:
        """The digest of everything settled of trusted origins; an origin without records does not count."""
        parts = [origin + self._sets[origin].digest for origin in self._trusted if origin in self._sets]
        return _hash(parts, ROOT_PERSON)

    def origins(self) -> Origins:
        """Our side of the comparison by origin."""
        return Origins(tuple((origin, self._of(origin).digest) for origin in self._trusted))

    def differing(self, theirs: Origins) -> list[OriginVector]:
        """Our vectors of the origins that both sides trust and have different records of."""
        known = dict(theirs.digests)
        return [
            self._vector(origin)
            for origin in self._trusted
            if origin in known and known[origin] != self._of(origin).digest
        ]

    def lacking(self, theirs: OriginVector) -> list[bytes]:
        """The ids of settled records of this origin that a node with this vector lacks."""
        if theirs.origin not in self._trusted:
            return []
        return self._of(theirs.origin).outside(dict(theirs.ranges))

    def answer(self, theirs: OriginVector) -> OriginVector | Ids | None:
        """What that node must hear to find out what *we* lack; None if we lack nothing of this origin."""
        ours = self._of(theirs.origin)
        if theirs.origin not in self._trusted or theirs.digest == ours.digest:
            return None
        claimed = sum(last - first + 1 for _, ranges in theirs.ranges for first, last in ranges)
        shared = len(ours) - len(self.lacking(theirs))
        if claimed > shared:
            return self._vector(theirs.origin)
        if shared == len(ours):
            return self.ids(theirs.origin, reply=False)
        return None

    def ids(self, origin: bytes, *, reply: bool) -> Ids:
        """Our settled records of one origin, by id."""
        return Ids(origin, tuple(sorted(self._of(origin).ids)[:MAX_IDS]), reply)

    def lacking_ids(self, theirs: Ids) -> list[bytes]:
        """The ids of settled records of this origin that are not in that list, ascending."""
        if theirs.origin not in self._trusted:
            return []
        known = set(theirs.ids)
        return [record_id for record_id in sorted(self._of(theirs.origin).ids) if record_id not in known]

    def _of(self, origin: bytes) -> OriginSet:
        return self._sets.get(origin) or OriginSet()

    def _vector(self, origin: bytes) -> OriginVector:
        """Our vector of one origin; with very many gaps the last ranges are left out, and we hear too much."""
        room = MAX_RANGES_PER_ORIGIN
        entries: list[tuple[bytes, Ranges]] = []
        for incarnation, ranges in self._of(origin).ranges.items():
            if room > 0:
                entries.append((incarnation, ranges[:room]))
                room -= len(ranges)
        return OriginVector(origin, self._of(origin).digest, tuple(entries))


def _hash(parts: Iterable[bytes], person: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=HASH_BYTES, person=person)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _ranges_of(numbers: list[int]) -> Ranges:
    """Ascending, distinct numbers as ranges."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)


def _covers(ranges: Ranges, number: int) -> bool:
    position = bisect_right(ranges, number, key=lambda pair: pair[0])
    return position > 0 and number <= ranges[position - 1][1]
