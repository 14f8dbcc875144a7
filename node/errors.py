"""The errors of the node. `str(error)` is the one sentence that the person sees, and it says what to do
next."""

from __future__ import annotations


class NodeError(Exception):
    """Base of everything the node reports to a person."""


class UsageError(NodeError):
    """What was typed cannot be meant; the sentence says what would be."""


class HomeError(NodeError):
    """The home directory is missing, taken, or unreadable."""


class StoreError(NodeError):
    """The store is missing, corrupt, or of a newer version."""


class StoreFull(StoreError):
    """The disk has no room for a change of the store, which was not made."""


class RecordError(NodeError):
    """A record breaks a rule of the contract: it is refused before anything is stored."""


class WireError(NodeError):
    """Bytes from outside do not decode to what they claim to be."""


class IdentityEnded(NodeError):
    """This node's identity was replaced or revoked: it signs nothing more."""


class NotReadable(NodeError):
    """A sealed body cannot be read here yet, or never: the sentence says which and why."""


class PeerUnreachable(NodeError):
    """A peer could not be reached, in words."""


class PeerRefused(PeerUnreachable):
    """A peer was there, proved its key, and did not want this node."""


class QueryRefused(NodeError):
    """A query has no answer here, in words."""


class AskLater(QueryRefused):
    """A query that may be asked again: the sentence says when."""


class CannotFuse(QueryRefused):
    """This node has nothing that it can fuse into the model asked for, in words."""


class BundleError(NodeError):
    """A bundle cannot be written or taken, in words."""


class RosterError(NodeError):
    """A roster breaks a rule, or does not follow from the one in force: it changes nothing here."""
