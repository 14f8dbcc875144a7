"""Asking for models and using model files: what `query`, `verify`, `predict` and `evaluate` do.

A model file from outside is read by `fusion.model.read_model`, which checks form, size and digest, before anything else
touches it; then its card must be signed by the node that it names.
"""

from __future__ import annotations

import asyncio
import csv
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from crypto.errors import Malformed
from crypto.keys import PublicKey
from node.client import Dialer
from node.config import MODEL_LIMIT_BYTES
from node.errors import PeerUnreachable, QueryRefused, UsageError
from node.frames import Query
from node.home import Home
from node.query import answer, check_attestation, holdings
from node.show import size, summaries
from node.tasks import find
from node.wire import MODEL_FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator


HEADS = ("ridge", "lda", "synthetic", "distilled", "averaged")


def ask(
    home: Home,
    task_reference: str,
    output: Path,
    *,
    node: str | None,
    only: str | None,
    without: str | None,
    head: str | None,
    on_progress: Callable[[str], None],
) -> bytes:
    """A model file for an accepted task, from this node's own holdings or from the peer `node`."""
    if head is not None and head not in HEADS:
        raise UsageError(f"There is no head {head!r}; choose one of {', '.join(HEADS)}, or leave --head out.")
    query = Query(
        find(home, task_reference).id,
        head or "",
        _keys(home, only),
        _keys(home, without),
        _format_of(output),
    )
    peer_key = home.peers.key_of(node) if node else home.me
    if peer_key == home.me:
        return answer(home, query, on_progress)
    assert node is not None  # noqa: S101 - told to the type checker: only a named node can be another
    peer = home.peers.peer_of(node)
    if peer.address is None:
        raise PeerUnreachable(f"{peer.name} has no address here; give one with `tidings peer add KEY --address`.")
    dialer = Dialer.for_identity(home.keystore.identity)
    try:
        data = asyncio.run(dialer.ask(peer.key, peer.address, query, on_progress))
    except PeerUnreachable as error:
        raise PeerUnreachable(f"Cannot ask {peer.name}: {error}.") from error
    _check_answer(data, query, peer.key)
    return data


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
    with _written_whole(output, "wb") as file:
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


def verify_file(home: Home, path: Path) -> Verdict:
    """Fuse again, from the summaries held here, exactly those that the file names, and compare digests."""
    from fusion.errors import FusionError
    from fusion.model import read_model, rebuild

    model, card = read_model(read_bounded(path))
    node = home.peers.name_of(check_attestation(card))
    task = find(home, card["manifest"]["task_id"])
    wanted = {bytes.fromhex(one["record"]) for one in card["manifest"]["summaries"]}
    held = holdings(home, task, Query(task.id, "", (), (), MODEL_FORMATS[0]))
    usable = [one for one in held.usable if one.record_id in wanted]
    if len(usable) < len(wanted):
        lacking = len(wanted) - len(usable)
        return Verdict(False, f"{lacking} of its {summaries(len(wanted))} cannot be read here", model.digest)
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


def predict_file(model: Path, data: Sequence[Path], output: Path | None, progress: Callable[[int], None]) -> None:
    """Write one CSV row per data row: the class and the probability of each class, or the value."""
    from fusion.model import predict

    batches = predict(read_bounded(model), data)
    with _written_whole(output, "w") if output else _stdout() as file:
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
    if path.stat().st_size > MODEL_LIMIT_BYTES:
        raise UsageError(f"{path} is larger than a model file can be ({size(MODEL_LIMIT_BYTES)}).")
    return path.read_bytes()


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


def _check_answer(data: bytes, query: Query, asked: PublicKey) -> None:
    """What a peer sent must be a model of the task that was asked for, signed by the peer that was asked."""
    from fusion.model import read_model

    _, card = read_model(data)
    if check_attestation(card) != asked or card["manifest"]["task_id"] != query.task_id.hex():
        raise QueryRefused("The answer is a model of another task or of another node; it was not kept.")


def _keys(home: Home, names: str | None) -> tuple[bytes, ...]:
    return tuple(home.peers.key_of(name).raw for name in names.split(",")) if names else ()


def _format_of(output: Path) -> str:
    if output.suffix.lstrip(".") not in MODEL_FORMATS:
        raise UsageError(f"{output} has no known ending; a model file is FILE.onnx or FILE.safetensors.")
    return output.suffix.lstrip(".")


@contextmanager
def _written_whole(path: Path, mode: str) -> Iterator[IO[Any]]:
    """A file beside `path` that takes its place at the end: a crash or an error leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with os.fdopen(handle, mode, **text) as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(draft, 0o666 & ~umask)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


@contextmanager
def _stdout() -> Iterator[IO[str]]:
    yield sys.stdout
