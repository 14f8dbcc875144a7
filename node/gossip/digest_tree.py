"""A digest for every range of the key space of origins: a hash tree by the hexadecimal digits of the keys.

A range is a prefix: all origins whose keys begin with these digits. Its digest is a hash of the entries in it (origin
and digest of its records), or, where there are many, of the digests of its sixteen sub-ranges (Merkle, "A digital
signature based on a conventional encryption function", CRYPTO '87). So it depends on the entries alone, not on the
order in which they came; and after a change only the digests above it are made anew.

A sum of hashes would be as cheap, and would let an origin make two sets with one digest (Wagner, "A generalized
birthday problem", CRYPTO 2002); a hash of hashes does not. Two nodes narrow down where they differ by comparing the
digests of sub-ranges: `reconcile`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from crypto.sealing import HASH_BYTES

ROOT_PERSON: Final = b"tidings-root-v1"
SPAN_PERSON: Final = b"tidings-span-v1"

LEAF_ENTRIES: Final = 16
"""Part of the contract: ranges of up to so many entries are hashed entry by entry, larger ones by sub-range."""

DIGITS: Final = "0123456789abcdef"
NOTHING: Final = bytes(HASH_BYTES)


class _Range:
    """One range: its origins, or, if they are many, its sub-ranges. The digest is None when it must be made anew."""

    __slots__ = ("children", "count", "digest", "origins")

    def __init__(self) -> None:
        self.origins: dict[bytes, None] = {}
        self.children: list[_Range | None] | None = None
        self.count = 0
        self.digest: bytes | None = None


class DigestTree:
    """Origins (32 bytes) and the digests of their records, with a digest for every range."""

    def __init__(self) -> None:
        self._digests: dict[bytes, bytes] = {}
        self._top = _Range()

    def __len__(self) -> int:
        return len(self._digests)

    def set(self, origin: bytes, digest: bytes) -> None:
        """The records of this origin have this digest now. Touches as many ranges as the tree is deep."""
        is_new = origin not in self._digests
        self._digests[origin] = digest
        here, depth = self._top, 0
        while True:
            here.count += is_new
            here.digest = None
            if here.children is None:
                break
            here, depth = _child(here.children, _digit(origin, depth)), depth + 1
        here.origins[origin] = None
        if here.count > LEAF_ENTRIES:
            _divide(here, depth)

    def digest_of(self, origin: bytes) -> bytes | None:
        """The digest that was set for this origin."""
        return self._digests.get(origin)

    def root(self) -> bytes:
        """The digest of everything; the hash of nothing if there is nothing."""
        return self._digest(self._top) or _hash((), ROOT_PERSON)

    def digest(self, prefix: str) -> bytes:
        """The digest of a range, empty if there is nothing in it."""
        found = self._find(prefix)
        return self._digest(found) if isinstance(found, _Range) else self._hash_of(found)

    def split(self, prefix: str) -> tuple[bytes, ...]:
        """The digests of the sixteen sub-ranges of a range."""
        return tuple(self.digest(prefix + digit) for digit in DIGITS)

    def count(self, prefix: str) -> int:
        """How many origins a range has."""
        found = self._find(prefix)
        return found.count if isinstance(found, _Range) else len(found)

    def origins(self, prefix: str) -> list[bytes]:
        """The origins in a range, ascending."""
        found = self._find(prefix)
        if not isinstance(found, _Range):
            return sorted(found)
        origins: list[bytes] = []
        waiting = [found]
        while waiting:
            here = waiting.pop()
            origins += here.origins
            waiting += [child for child in here.children or () if child is not None]
        return sorted(origins)

    def entries(self, origins: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
        """These origins, as far as they are here, with their digests."""
        return [(origin, self._digests[origin]) for origin in origins if origin in self._digests]

    def _find(self, prefix: str) -> _Range | list[bytes]:
        """The range of a prefix; the origins in it where the tree is not that deep."""
        here = self._top
        for digit in prefix:
            if here.children is None:
                return [origin for origin in here.origins if origin.hex().startswith(prefix)]
            child = here.children[int(digit, 16)]
            if child is None:
                return []
            here = child
        return here

    def _digest(self, here: _Range) -> bytes:
        """The digest of a range that is in the tree; recursion is as deep as the tree, at most 64."""
        if here.digest is None:
            if here.children is None:
                here.digest = self._hash_of(here.origins)
            else:
                parts = [NOTHING if child is None else self._digest(child) for child in here.children]
                here.digest = _hash(parts, SPAN_PERSON)
        return here.digest

    def _hash_of(self, origins: Iterable[bytes]) -> bytes:
        """The digest of these few origins; empty if there are none."""
        parts = [origin + self._digests[origin] for origin in sorted(origins)]
        return _hash(parts, ROOT_PERSON) if parts else b""


def _divide(leaf: _Range, depth: int) -> None:
    """Turn a leaf that has become too large into one with sub-ranges."""
    waiting = [(leaf, depth)]
    while waiting:
        here, depth = waiting.pop()
        children = here.children = [None] * len(DIGITS)
        for origin in here.origins:
            child = _child(children, _digit(origin, depth))
            child.origins[origin] = None
            child.count += 1
        here.origins = {}
        waiting += [(child, depth + 1) for child in children if child and child.count > LEAF_ENTRIES]


def _child(children: list[_Range | None], digit: int) -> _Range:
    child = children[digit]
    if child is None:
        child = children[digit] = _Range()
    return child


def _digit(origin: bytes, depth: int) -> int:
    byte = origin[depth // 2]
    return byte & 15 if depth % 2 else byte >> 4


def _hash(parts: Iterable[bytes], person: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=HASH_BYTES, person=person)
    for part in parts:
        digest.update(part)
    return digest.digest()
