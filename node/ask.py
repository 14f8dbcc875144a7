"""Asking for models and using model files: what `query`, `verify`, `predict` and `evaluate` do.

A model file from outside is read by `fusion.model.read_model`, which checks form, size and digest, before anything else
touches it; then its card must be signed by the node that it names.

Where nothing can be fused here, or the peer that was asked cannot be reached, a model that a member shared before
(`node.shared`) takes the place of a fused one, and that is said.
"""

from __future__ import annotations

import asyncio
import csv
import string
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from crypto.errors import Malformed
from crypto.keys import PublicKey
from node.client import Dialer
from node.config import MODEL_LIMIT_BYTES
from node.errors import CannotFuse, PeerUnreachable, QueryRefused, UsageError
from node.files import read_at_most, written_whole
from node.frames import Query
from node.home import Home
from node.local_tables import Peer
from node.query import answer, check_attestation, holdings
from node.records import Kind
from node.shared import FORMAT, listing, newest, open_shared
from node.show import size, summaries
from node.tasks import MIN_ID_PREFIX, find
from node.wire import MODEL_FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion.model import Model
    from fusion.task import Task


def ask(
    home: Home,
    task_reference: str,
    output: Path,
    *,
    node: str | None,
    only: str | None,
    without: str | None,
    head: str | None,
    robust: int = 0,
    on_progress: Callable[[str], None],
) -> bytes:
    """A model file for an accepted task, from this node's own holdings or from the peer `node`, or one that was shared
    before where these have none to give."""
    query = select(home, task_reference, only, without, head, _format_of(output), robust)
    peer = home.peers.peer_of(node) if node and home.peers.key_of(node) != home.me else None
    # What was shared is as it is: nobody's summaries can be left out of it now.
    as_shared = not (query.only or query.without or query.head or query.robust)
    try:
        data = answer(home, query, on_progress) if peer is None else _answer_of(home, query, peer, on_progress)
    except (CannotFuse, PeerUnreachable) as error:
        found = newest(home, find(home, task_reference), peer.key if peer else None) if as_shared else None
        if found is None:
            raise
        on_progress(f"{error}")
        on_progress(f"Instead, this is {found.describe(home)}.")
        return found.file(query.format)
    if as_shared and peer is None:
        _point_to_larger(home, query, data, on_progress)
    return data


def select(
    home: Home,
    task_reference: str,
    only: str | None,
    without: str | None,
    head: str | None,
    file_format: str,
    robust: int = 0,
) -> Query:
    """The query that a person typed; UsageError where it cannot be meant."""
    task = find(home, task_reference)
    if head is not None:
        from fusion.errors import ModelError
        from fusion.model import check_head

        try:
            check_head(task, head)
        except ModelError as error:
            raise UsageError(f"{error}, or leave --head out.") from None
    return Query(
        task.id,
        head or "",
        _keys(home, only),
        _keys(home, without),
        file_format,
        robust,
    )


def _point_to_larger(home: Home, query: Query, data: bytes, on_progress: Callable[[str], None]) -> None:
    """Say so if a member shared a model of more summaries than are here: its partners may be strangers to this node."""
    from fusion.model import read_model

    shared = [one for one in listing(home, query.task_id) if not one["reason"]]
    made_of = len(read_model(data)[1]["manifest"]["summaries"]) if shared else 0
    for one in shared:
        if one["summaries"] > made_of:
            who = one["origin"]
            on_progress(f"{who} shared a model of {summaries(one['summaries'])}; --node {who} asks for it")


def _answer_of(home: Home, query: Query, peer: Peer, on_progress: Callable[[str], None]) -> bytes:
    """What a peer answers over the network, checked."""
    if not peer.addresses:
        raise PeerUnreachable(
            f"The peer {peer.name} has no address here; give one with `tidings peer add KEY --address`."
        )
    data = _first_answer(home, query, peer, on_progress)
    signed_by = _check_answer(home, data, query, peer.key)
    if signed_by != peer.key:
        on_progress(f"{peer.name} cannot fuse; this is a model that {home.peers.name_of(signed_by)} shared.")
    return data


def _first_answer(home: Home, query: Query, peer: Peer, on_progress: Callable[[str], None]) -> bytes:
    """What comes from the first of the peer's addresses at which it answers; PeerUnreachable says what each came to."""
    dialer = Dialer.for_identity(home.keystore.identity)
    failures: list[str] = []
    for address in peer.addresses:
        if failures:
            on_progress(f"{failures[-1]}; trying {address}")
        try:
            return asyncio.run(dialer.ask(peer.key, address, query, on_progress))
        except PeerUnreachable as error:
            failures.append(str(error))
    raise PeerUnreachable(f"Cannot ask {peer.name}: {'; '.join(failures)}.")


@dataclass(frozen=True)
class ModelInHand:
    """A model file that was checked: its card, and who signed that."""

    card: dict[str, Any]
    signed_by: str
    text: str
    """The card as a page of text, partners by the names they have here."""

    def describe(self, path: Path) -> str:
        """What was saved where, and the card."""
        return f"{path} ({size(path.stat().st_size)}), signed by {self.signed_by}\n{self.text}"


def save(home: Home, data: bytes, output: Path) -> ModelInHand:
    """Check a model file and write it, whole or not at all."""
    received = _read(home, data)
    with written_whole(output, "wb") as file:
        file.write(data)
    return received


@dataclass(frozen=True)
class Verdict:
    """Whether a model file is what its card claims, in words."""

    confirmed: bool
    reason: str
    digest: bytes

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"confirmed": self.confirmed, "reason": self.reason, "digest": self.digest.hex()}

    def describe(self) -> str:
        """For people."""
        return f"{'Confirmed' if self.confirmed else 'Not confirmed'}: {self.reason}\ndigest {self.digest.hex()}"


def verify_model(home: Home, reference: str) -> Verdict:
    """Fuse again, from the summaries held here, exactly those that a model names, and compare digests. `reference` is a
    model file, or the beginning of the id of a shared model's record."""
    from fusion.errors import FusionError
    from fusion.model import read_model, rebuild, records_of

    model, card = read_model(_file_or_shared(home, reference))
    node = home.peers.name_of(check_attestation(card))
    task = find(home, card["manifest"]["task_id"])
    wanted = records_of(model)
    held = holdings(home, task, Query(task.id, "", (), (), MODEL_FORMATS[0]))
    usable = [one for one in held.usable if one.record_id in wanted]
    if len(usable) < len(wanted):
        lacking = len(wanted) - len(usable)
        reason = f"{lacking} of its {summaries(len(wanted))} cannot be read here{_attesters(home, task, model)}"
        return Verdict(False, reason, model.digest)
    try:
        again = rebuild(task, usable, model)
    except FusionError as error:
        return Verdict(False, f"its summaries do not fuse: {error}", model.digest)
    if again.digest != model.digest:
        return Verdict(
            False, f"the summaries that it names give another model ({again.digest.hex()[:16]})", model.digest
        )
    return Verdict(
        True, f"fused again from its {summaries(len(wanted))}, it is the very same; signed by {node}", model.digest
    )


def _file_or_shared(home: Home, reference: str) -> bytes:
    path = Path(reference)
    if path.exists() or len(reference) < MIN_ID_PREFIX or set(reference.lower()) - set(string.hexdigits):
        return read_bounded(path)
    found = [held for held in home.store.find(reference) if held.record.header.kind is Kind.MODEL]
    if len(found) != 1:
        raise UsageError(f"{reference} is neither a model file nor the id of one shared model; see `tidings records`.")
    return open_shared(home, found[0]).file(FORMAT)


def _attesters(home: Home, task: Task, model: Model) -> str:
    """Who shared a model of the same digest: the word of each, where nothing can be checked."""
    names = [one["origin"] for one in listing(home, task.id) if one["digest"] == model.digest.hex()]
    return f"; the very same model was shared by {', '.join(names)}" if names else ""


def predict_file(model: Path, data: Sequence[Path], output: Path | None, progress: Callable[[int], None]) -> None:
    """Write one CSV row per data row: the class and the probability of each class, or the value."""
    from fusion.model import predict

    batches = predict(read_bounded(model), data)
    with written_whole(output, "w") if output else _stdout() as file:
        writer = csv.writer(file)
        done = 0
        for batch in batches:
            if done == 0:
                writer.writerow(batch.columns)
            writer.writerows(batch.rows())
            done += len(batch)
            progress(done)


def read_bounded(path: Path) -> bytes:
    """The bytes of a model file, if it is not larger than one can be."""
    data = read_at_most(path, MODEL_LIMIT_BYTES)
    if data is None:
        raise UsageError(f"{path} is larger than a model file can be ({size(MODEL_LIMIT_BYTES)}).")
    return data


def _read(home: Home, data: bytes) -> ModelInHand:
    from fusion.model import describe, read_model

    _, card = read_model(data)
    signed_by = home.peers.name_of(check_attestation(card))
    left_out = [one | {"origin": _name_of_text(home, one["origin"])} for one in card["left_out"]]
    text = describe(card | {"left_out": left_out}, name_of=lambda raw: home.peers.name_of(PublicKey(raw)))
    return ModelInHand(card, signed_by, text)


def _name_of_text(home: Home, origin: str) -> str:
    """The name of an origin that a card lists in text form; the text itself if it is no key."""
    try:
        return home.peers.name_of(PublicKey.parse(origin))
    except Malformed:
        return origin


def _check_answer(home: Home, data: bytes, query: Query, asked: PublicKey) -> PublicKey:
    """Who signed what a peer sent: a model of the task, by the peer that was asked or, shared, by another member."""
    from fusion.model import read_model

    _, card = read_model(data)
    signed_by = check_attestation(card)
    if signed_by not in {asked, *home.epochs.members()} or card["manifest"]["task_id"] != query.task_id.hex():
        raise QueryRefused("The answer is a model of another task or of a stranger; it was not kept.")
    return signed_by


def _keys(home: Home, names: str | None) -> tuple[bytes, ...]:
    return tuple(home.peers.key_of(name).raw for name in names.split(",")) if names else ()


def _format_of(output: Path) -> str:
    if output.suffix.lstrip(".") not in MODEL_FORMATS:
        raise UsageError(f"{output} has no known ending; a model file is FILE.onnx or FILE.safetensors.")
    return output.suffix.lstrip(".")


@contextmanager
def _stdout() -> Iterator[IO[str]]:
    yield sys.stdout
