"""Shared models: the fused model itself as a MODEL record, for devices that do not fuse.

    share:  answer a query from what is held here -> seal -> sign -> store

It happens when a person says so and never by itself. The body is the safetensors file with its signed card: the
smallest form, from which a receiver writes either file format bit for bit, with numpy alone. A node has one live shared
model per task; a newer one takes the place of the older. Sharing is post-processing of summaries that were paid for:
it charges nothing.

What comes from others is checked whenever it is looked at, and used only if all of this holds: the seal opens; the
origin is still a member; the task is accepted here; the file is, byte for byte, one that this software writes; its card
is of that task and signed by the record's own origin; and none of its summaries was withdrawn, as far as is known here.
A model that fails is shown with the reason and never used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crypto.keys import PublicKey
from crypto.sealing import SEAL_OVERHEAD_BYTES
from node.config import BODY_LIMIT_BYTES
from node.errors import NotReadable, QueryRefused
from node.frames import Query
from node.home import Home
from node.query import answer, check_attestation
from node.records import Held, HeldState, Kind, Record
from node.show import moment, size, summaries

if TYPE_CHECKING:
    from fusion.model import Model
    from fusion.task import Task

FORMAT = "safetensors"


@dataclass(frozen=True)
class SharedModel:
    """A shared model that passed every check."""

    record: Record
    received_at: float
    model: Model
    card: dict[str, Any]

    def file(self, file_format: str) -> bytes:
        """The model file in the format asked for, with the card as its origin signed it."""
        from fusion.model import write_onnx, write_safetensors

        return write_onnx(self.model, self.card) if file_format == "onnx" else write_safetensors(self.model, self.card)

    def describe(self, home: Home) -> str:
        """Whose it is, of how many summaries, and when it was made by the clock of its origin."""
        made_of = summaries(len(self.card["manifest"]["summaries"]))
        when = moment(self.record.header.created_unix_ms / 1000)
        return f"the model of {made_of} that {home.peers.name_of(self.record.header.origin)} shared at {when} UTC"

    def _age(self) -> tuple[float, bytes]:
        """By the origin's clock, which cannot make a model newer than its arrival here."""
        return min(self.record.header.created_unix_ms / 1000, self.received_at), self.record.id


@dataclass(frozen=True)
class Shared:
    """What `share` did."""

    record: Record
    card: dict[str, Any]
    is_new: bool

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        header = self.record.header
        return {
            "record": self.record.id.hex(),
            "new": self.is_new,
            "replaces": (header.supersedes.hex() or None) if self.is_new else None,
            "bytes": len(self.record.header_bytes) + header.body_bytes,
            "digest": self.card["attestation"]["digest"],
            "summaries": len(self.card["manifest"]["summaries"]),
        }

    def describe(self) -> str:
        """For people."""
        content = self.to_json()
        shown = content["record"][:12]
        if not self.is_new:
            return f"Record {shown} is this very model already; nothing was sent."
        lines = [
            f"Shared record {shown}: the model of {summaries(content['summaries'])}, {size(content['bytes'])}. "
            "It spreads while this node is running.",
            f"digest {content['digest']}",
        ]
        if content["replaces"]:
            lines.append(f"It replaces record {content['replaces'][:12]}, which everyone drops.")
        return "\n".join(lines)


def share(home: Home, query: Query, on_progress: Callable[[str], None] = lambda _: None) -> Shared:
    """Fuse what `query` selects and put the model into the store, to spread; the same model again is not sent twice.

    QueryRefused where nothing can be fused here, or where the model is too large for a record.
    """
    from fusion.model import read_model

    data = answer(home, query, on_progress)
    if len(data) + SEAL_OVERHEAD_BYTES > BODY_LIMIT_BYTES:
        raise QueryRefused(
            f"The model has {size(len(data))}, and a record carries at most {size(BODY_LIMIT_BYTES)}; "
            "partners can still ask for it with `tidings query --node`."
        )
    model, card = read_model(data)
    with home.author.lock:
        before = _live_of_ours(home, query.task_id)
        if before is not None and _digest_of(home, before) == model.digest:
            return Shared(before.record, card, is_new=False)
        record = home.author.sealed(
            Kind.MODEL,
            query.task_id,
            data,
            home.epochs.live(),
            supersedes=before.record.id if before else b"",
        )
    return Shared(record, card, is_new=True)


def newest(home: Home, task: Task, origin: PublicKey | None = None) -> SharedModel | None:
    """The usable shared model of the task (from `origin`) that was made last; None if there is none."""
    usable = []
    for held in home.store.held(kind=Kind.MODEL, task_id=task.id, origin=origin):
        try:
            usable.append(open_shared(home, held))
        except NotReadable:
            continue
    return max(usable, key=SharedModel._age, default=None)


def open_shared(home: Home, held: Held) -> SharedModel:
    """The shared model in a record, after every check of the module's docstring; NotReadable says which one fails."""
    from fusion.errors import ModelError
    from fusion.model import read_model
    from fusion.model_files import is_onnx

    header = held.record.header
    data = home.epochs.open(held)
    who = home.peers.name_of(header.origin)
    if header.origin not in home.trusted:
        raise NotReadable("its origin is no member here")
    if all(accepted.task_id != header.task_id for accepted in home.store.tasks()):
        raise NotReadable("its task is not accepted here; `tidings task list` shows what is proposed")
    try:
        if is_onnx(data):
            raise ModelError("it is not in the form in which models are shared")
        model, card = read_model(data)
        signed_by = check_attestation(card)
    except (ModelError, QueryRefused) as error:
        raise NotReadable(f"not a model to use: {error}; tell {who}") from error
    if signed_by != header.origin:
        raise NotReadable(f"not a model to use: its card is signed by {home.peers.name_of(signed_by)}; tell {who}")
    if card["manifest"]["task_id"] != header.task_id.hex():
        raise NotReadable(f"not a model to use: it is of another task than its record says; tell {who}")
    _refuse_withdrawn(home, card, who)
    return SharedModel(held.record, held.received_at, model, card)


def listing(home: Home, task_id: bytes) -> list[dict[str, Any]]:
    """The live shared models of a task: `{record, origin, summaries, digest, created, reason}`; `reason` is empty where
    the model can be used."""
    listed = []
    for held in home.store.held(kind=Kind.MODEL, task_id=task_id):
        header = held.record.header
        if held.state is HeldState.BURIED and not home.store.why_unusable(header):
            continue
        one: dict[str, Any] = {"record": held.record.id.hex(), "origin": home.peers.name_of(header.origin)}
        one["created"] = moment(header.created_unix_ms / 1000)
        try:
            found = open_shared(home, held)
            made_of, digest, reason = len(found.card["manifest"]["summaries"]), found.model.digest.hex(), ""
        except NotReadable as error:
            made_of, digest, reason = None, None, str(error)
        listed.append(one | {"summaries": made_of, "digest": digest, "reason": reason})
    return listed


def _refuse_withdrawn(home: Home, card: dict[str, Any], who: str) -> None:
    """Whoever takes a summary back wants no later use of it; a model that is handed on counts as one."""
    standing = home.store.standing()
    gone = {
        (held.record.header.supersedes.hex(), held.record.header.origin)
        for held in home.store.held(kind=Kind.WITHDRAWAL)
        if held.record.header.origin not in standing.impostors
    }
    contested = set()
    for proof in home.store.proofs():
        gone |= {(claim.supersedes.hex(), proof.accused) for claim in proof.claims if claim.kind is Kind.WITHDRAWAL}
        contested |= {claim.id.hex() for claim in proof.claims}
    for one in card["manifest"]["summaries"]:
        if one["record"] in contested:
            raise NotReadable(f"it was made of a record that has a twin under its number; {who} can share a new one")
        origin = PublicKey(bytes.fromhex(one["origin"]))
        if any((one["record"], signer) in gone for signer in (origin, *standing.heirs(origin))):
            partner = home.peers.name_of(origin)
            raise NotReadable(f"{partner} has withdrawn a summary that it was made of; {who} can share a new one")


def _live_of_ours(home: Home, task_id: bytes) -> Held | None:
    """The newest shared model of this node that no other record has taken the place of."""
    ours = home.store.held(kind=Kind.MODEL, task_id=task_id, origin=home.me)
    live = [held for held in ours if held.state is HeldState.COMPLETE]
    return max(live, key=lambda held: held.record.header.sequence, default=None)


def _digest_of(home: Home, held: Held) -> bytes | None:
    try:
        return open_shared(home, held).model.digest
    except NotReadable:
        return None
