"""What this node has settled, and how two nodes find out what each lacks.

Anti-entropy in the manner of Demers et al., "Epidemic algorithms for replicated database maintenance" (PODC 1987), in
three steps. One digest of everything. If it differs, which origins: those that changed since a digest that both had in
common; or all of them; or, where they are many, first the ranges of keys in which they lie (Meyer, "Range-Based Set
Reconciliation", SRDS 2023, with a fixed division in sixteen, so that digests can be kept: `digest_tree`). For the
origins that differ, ranges of sequences; and only where these agree although the digests do not, the ids. What a node
lacks is then announced to it.

A record is settled when nothing more of it is wanted: it has no body, its body is whole, or it was taken
back. Digests cover ids of settled records and nothing else, so they do not depend on the order in which
records came, nor on who brought them.

Nothing here believes or expands what a peer claims: a range that claims 2^63 sequences costs one comparison, ranges of
keys do not overlap (checked in `wire`), and what a peer claims to have in common only counts if we had it too. Nothing
is kept between two frames but our own earlier digests, so a peer restored from an old copy is simply compared.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Container
from itertools import islice, takewhile
from typing import Final

from crypto.sealing import HASH_BYTES
from node.config import MAX_IDS, MAX_ORIGINS, MAX_RANGES_PER_ORIGIN, GossipSettings
from node.frames import Ids, Origins, OriginVector, Span, Spans
from node.gossip.digest_tree import DIGITS, DigestTree

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
            ids = b"".join(sorted(self._ids.values()))
            self._digest = hashlib.blake2b(ids, digest_size=HASH_BYTES, person=SET_PERSON).digest()
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

    def __init__(self, settings: GossipSettings) -> None:
        self._settings = settings
        self._sets: dict[bytes, OriginSet] = {}
        self._trusted: Container[bytes] = ()
        self._forget_comparisons()

    def _forget_comparisons(self) -> None:
        self._tree = DigestTree()
        self._stale: dict[bytes, None] = {}
        self._changed: dict[bytes, int] = {}
        self._changes = 0
        self._marks: dict[bytes, int] = {}

    def trust(self, origins: Container[bytes]) -> None:
        """From now on, speak of these origins and no others; kept, not copied.

        What was known to be common is forgotten: it says nothing about an origin that was not compared then.
        """
        self._trusted = origins
        self._forget_comparisons()
        self._stale = {origin: None for origin in self._sets if origin in origins}

    def settle(self, origin: bytes, incarnation: bytes, sequence: int, record_id: bytes) -> None:
        """A record of this origin, trusted or not, became settled."""
        self._sets.setdefault(origin, OriginSet()).add(incarnation, sequence, record_id)
        if origin in self._trusted:
            self._stale[origin] = None
            self._changes += 1
            self._changed.pop(origin, None)  # the last to change stands last
            self._changed[origin] = self._changes

    # --------------------------------------------------------------------------------------------------------- the root

    def root(self) -> bytes:
        """The digest of everything settled of trusted origins; an origin without records does not count."""
        return self._current().root()

    def mark(self) -> bytes:
        """The root, remembered together with what has changed until now."""
        root = self.root()
        self._remember(root, self._changes)
        return root

    def knows(self, root: bytes) -> bool:
        """Whether this was marked, and what changed since can be told."""
        return root in self._marks

    def changed_since(self, root: bytes) -> list[bytes] | None:
        """The origins that changed since this was the root, the latest first; None if it is not known, or too many."""
        position = self._marks.get(root)
        if position is None:
            return None
        self._remember(root, position)
        latest = takewhile(lambda entry: entry[1] > position, reversed(self._changed.items()))
        origins = [origin for origin, _ in islice(latest, MAX_ORIGINS + 1)]
        return origins if len(origins) <= MAX_ORIGINS else None

    def _remember(self, root: bytes, position: int) -> None:
        self._marks.pop(root, None)
        self._marks[root] = position
        if len(self._marks) > self._settings.max_marks:
            del self._marks[next(iter(self._marks))]

    def _current(self) -> DigestTree:
        """The tree, with what was settled since it was last looked at."""
        for origin in self._stale:
            self._tree.set(origin, self._sets[origin].digest)
        self._stale.clear()
        return self._tree

    # --------------------------------------------------------------------------------------------- narrowing by origin

    def opening(self) -> Origins | Spans:
        """Our side of a full comparison: every origin if they are few, the sub-ranges of everything otherwise."""
        tree = self._current()
        if len(tree) <= self._settings.list_origins:
            return Origins(tuple(tree.entries(tree.origins(""))))
        return Spans((Span("", tree.split("")),))

    def changes(self, common: bytes) -> Origins | None:
        """What changed since a root that a peer and we had in common; None if a full comparison is called for."""
        tree = self._current()
        origins = self.changed_since(common) if common else None
        if origins is None or 2 * len(origins) > max(len(tree), self._settings.list_origins):
            return None
        return Origins(tuple(tree.entries(sorted(origins))), common=common)

    def narrow(self, theirs: Spans) -> tuple[list[Span], list[str], list[OriginVector]]:
        """What to answer: sub-ranges that differ divided once more, or to be listed if we have few origins there, or
        our vectors if they have none."""
        tree = self._current()
        spans: list[Span] = []
        few: list[str] = []
        vectors: list[OriginVector] = []
        for span in theirs.spans:
            for digit, digest in zip(DIGITS, span.digests, strict=True):
                prefix = span.prefix + digit
                if tree.digest(prefix) == digest:
                    continue
                if not digest:
                    vectors += map(self._vector, tree.origins(prefix))
                elif tree.count(prefix) <= self._settings.list_origins:
                    few.append(prefix)
                else:
                    spans.append(Span(prefix, tree.split(prefix)))
        return spans, few, vectors

    def listed(self, prefix: str) -> list[tuple[bytes, bytes]]:
        """The origins of a range, ascending, with their digests."""
        tree = self._current()
        return tree.entries(tree.origins(prefix))

    def differing(self, theirs: Origins) -> list[OriginVector] | None:
        """Our vectors of the origins that we trust and have other records of; None if we cannot tell what is common.

        What they did not list in a range that they listed completely, they have nothing of, or do not trust.
        """
        tree = self._current()
        known = dict(theirs.digests)
        if theirs.common:
            own = self.changed_since(theirs.common)
            if own is None:
                return None
        else:
            own = [origin for prefix in theirs.prefixes or ("",) for origin in tree.origins(prefix)]
        origins = sorted({*own, *(origin for origin in known if origin in self._trusted)})
        return [self._vector(origin) for origin in origins if known.get(origin) != tree.digest_of(origin)]

    # ----------------------------------------------------------------------------------------- comparing one origin

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

    def count(self, origin: bytes) -> int:
        """How many settled records of this origin are here."""
        return len(self._of(origin))

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
