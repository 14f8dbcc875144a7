"""Queries: summaries held here -> one model file with a signed card.

    query:    store -> verify, decrypt -> check plausibility -> sum -> denoise -> head -> model + card

`answer` only reads the store: a query can never change the state of a node. Everything heavy (torch, ONNX) loads
inside, so a node that is never asked never pays for it; the daemon runs it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crypto.errors import CryptoError
from crypto.keys import PublicKey
from crypto.signing import MODEL_CARD_LABEL, sign, verify
from node.errors import CannotFuse, NotReadable, QueryRefused
from node.frames import Query
from node.home import Home
from node.records import Kind
from node.show import summaries

if TYPE_CHECKING:
    from fusion.fuse import Contribution
    from fusion.task import Task


@dataclass(frozen=True)
class LeftOut:
    """A summary that a model does not use, and why."""

    record_id: bytes
    origin: PublicKey
    reason: str

    def to_card(self) -> dict[str, str]:
        """As the model card lists it."""
        return {"record": self.record_id.hex(), "origin": self.origin.text, "reason": self.reason}


@dataclass(frozen=True)
class Holdings:
    """The summaries of one task held here: those that can be fused, and the others with the reason."""

    usable: tuple[Contribution, ...]
    left_out: tuple[LeftOut, ...]


def holdings(home: Home, task: Task, query: Query) -> Holdings:
    """Decrypt and check what is held of the task, after the query's selection of origins."""
    from fusion.errors import SummaryError
    from fusion.fuse import Contribution
    from fusion.summary import Decoder

    usable, left_out = [], []
    decoder, standing = Decoder(task), home.store.standing()
    for held in home.store.held(kind=Kind.SUMMARY, task_id=task.id):
        record = held.record
        try:
            _select(query, {held.record.header.origin.raw, standing.person(held.record.header.origin).raw})
            summary = decoder.read(home.epochs.open(held))
        except (NotReadable, SummaryError) as reason:
            left_out.append(LeftOut(record.id, record.header.origin, str(reason)))
            continue
        usable.append(Contribution(record.id, record.header.origin.raw, summary))
    return Holdings(tuple(usable), tuple(left_out))


def fusable(home: Home, task: Task, query: Query) -> Holdings:
    """`holdings` with something to fuse; CannotFuse says why there is nothing."""
    held = holdings(home, task, query)
    if not held.usable:
        raise CannotFuse(_nothing_usable(home, task, held))
    return held


def answer(home: Home, query: Query, on_progress: Callable[[str], None] = lambda _: None) -> bytes:
    """The model file for `query`, fused from what is held here and signed by this node; CannotFuse where there is
    nothing to fuse or nothing to fuse with, QueryRefused where it cannot be done as asked."""
    from fusion.errors import FusionError, NothingToFuse
    from fusion.model import build_model, card, card_message, write_onnx, write_safetensors

    task = _task(home, query.task_id)
    held = fusable(home, task, query)
    on_progress(f"fusing {summaries(len(held.usable))}")
    try:
        model = build_model(task, held.usable, query.head or None, query.robust)
    except (NothingToFuse, ModuleNotFoundError) as error:
        raise CannotFuse(f"This node cannot fuse: {error}") from error
    except FusionError as error:
        raise QueryRefused(str(error)) from error
    quarantined = [
        LeftOut(contribution.record_id, PublicKey(contribution.origin), reason)
        for contribution, reason in model.quarantined
    ]
    unused = [left_out.to_card() for left_out in sorted((*held.left_out, *quarantined), key=lambda one: one.record_id)]
    content = card(model, unused, home.me.text, datetime.now(UTC).isoformat(timespec="seconds"))
    signature = sign(home.keystore.identity, MODEL_CARD_LABEL, card_message(content))
    content["attestation"]["signature"] = signature.hex()
    on_progress(f"writing {query.format}")
    return write_onnx(model, content) if query.format == "onnx" else write_safetensors(model, content)


def check_attestation(card: dict[str, Any]) -> PublicKey:
    """The key of the node that signed this card; QueryRefused if the signature is not its own."""
    from fusion.model import card_message

    try:
        node = PublicKey.parse(card["attestation"]["node"])
        signature = bytes.fromhex(card["attestation"]["signature"])
        verify(node, MODEL_CARD_LABEL, card_message(card), signature)
    except (CryptoError, KeyError, TypeError, ValueError) as error:
        raise QueryRefused("The card of this model is not signed by the node that it names; do not use it.") from error
    return node


def _task(home: Home, task_id: bytes) -> Task:
    from fusion.task import Task

    for accepted in home.store.tasks():
        if accepted.task_id == task_id:
            return Task.from_canonical(accepted.canonical)
    raise QueryRefused("This task is not accepted here; its operator can with `tidings task add`.")


def _select(query: Query, partner: set[bytes]) -> None:
    """`partner`: the origin of a summary, and who stands in its place if its identity ended."""
    if (query.only and partner.isdisjoint(query.only)) or not partner.isdisjoint(query.without):
        raise NotReadable("not selected by the query")


def _nothing_usable(home: Home, task: Task, held: Holdings) -> str:
    if not held.left_out:
        return f"No summary of task {task.name} is held here yet; `tidings status` shows the links."
    names = home.peers.name_of
    reasons = "; ".join(f"{names(one.origin)}: {one.reason}" for one in held.left_out)
    return f"No summary of task {task.name} can be fused here ({reasons})."
