"""Records made, carried from home to home and read in process, where a test is not about the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from node.errors import NotReadable
from node.home import Home
from node.membership import add_peer
from node.publish import publish
from node.records import HeldState, Record
from node.tasks import add


def meet(*homes: Home) -> None:
    """Everybody adds everybody, and what each holds reaches all, keys included."""
    for one in homes:
        for other in homes:
            if one is not other:
                add_peer(one, other.me.text, other.settings.name, None, query_only=False)
    gossip(*homes)
    for one in homes:
        one.epochs.grant_missing()
    gossip(*homes)


def gossip(*homes: Home) -> None:
    """Every record reaches every home."""
    for one in homes:
        for other in homes:
            carry(one, other)


def carry(source: Home, target: Home, wanted: Callable[[Record], bool] = lambda _: True) -> None:
    """The wanted records of `source` reach `target`."""
    for held in source.store.held():
        if not wanted(held.record) or target.store.get(held.record.id) is not None:
            continue
        if held.record.header.body_bytes and held.state is HeldState.COMPLETE:
            target.store.add(held.record, source.store.body(held.record.id))
        else:
            target.store.add_record(held.record)


def publish_rows(home: Home, task_file: Path, rows_file: Path, dataset: str = "default") -> bytes:
    """One summary of the rows; returns the record's id."""
    task, _ = add(home, str(task_file))
    return publish(home, task, [rows_file], epsilon=1.0, dataset=dataset, cap_epsilon=None).record.id


def can_read(home: Home, record_id: bytes) -> bool:
    """Whether a home can open a record that it holds."""
    held = home.store.get(record_id)
    assert held is not None
    try:
        home.epochs.open(held)
    except NotReadable:
        return False
    return True
