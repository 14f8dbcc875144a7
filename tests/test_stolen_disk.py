"""A disk is stolen, a keystore is copied, a member leaves: what real files give away, byte by byte.

docs/threat-model.md, "What a stolen disk gives away", says the same in words.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from couriers import carry, gossip, meet, publish_rows
from secret_search import bytes_of, found_in, secrets_of

from crypto.errors import KeystoreLocked, WrongPassphrase
from crypto.keystore import LEAST
from node import keys
from node.errors import NotReadable
from node.home import Home
from node.membership import add_peer, remove_peer
from node.publish import withdraw
from node.records import HeldState, Kind

PASSPHRASE = "five words drawn by chance"  # noqa: S105
MakeHome = Callable[..., Home]


@dataclass
class Victim:
    """A home with a past, and what its summaries say."""

    home: Home
    partner: Home
    summaries: dict[bytes, bytes]
    """Plaintext by record, withdrawn ones and the partner's included."""
    withdrawn: bytes
    chunks_withdrawn: list[bytes]

    def stolen(self, directory: Path) -> Path:
        """A copy of the disk."""
        return Path(shutil.copytree(self.home.path, directory / "stolen"))


def plaintext(home: Home, record_id: bytes) -> bytes:
    held = home.store.get(record_id)
    assert held is not None
    return home.epochs.open(held)


def readable(home: Home) -> set[bytes]:
    """The sealed records that this home opens."""
    opened = set()
    for held in home.store.held():
        if held.record.header.body_bytes:
            try:
                home.epochs.open(held)
                opened.add(held.record.id)
            except NotReadable:
                continue
    return opened


@pytest.fixture(params=["open", "sealed"])
def victim(request: pytest.FixtureRequest, tmp_path: Path, task_file: Path, rows_file: Path) -> Victim:
    choose = (lambda: PASSPHRASE) if request.param == "sealed" else None
    home = Home.init(tmp_path / "victim", "victim", None, choose, LEAST)
    partner = Home.init(tmp_path / "partner", "Saint Elsewhere", None)
    meet(home, partner)
    add_peer(home, partner.me.text, "Saint Elsewhere", "10.11.12.13:7410", query_only=False)
    ids = [publish_rows(home, task_file, rows_file, name) for name in ("oncology", "cardiology")]
    theirs = publish_rows(partner, task_file, rows_file, "theirs")
    gossip(home, partner)
    said = {one: plaintext(home, one) for one in (*ids, theirs)}
    chunks = [home.store.body(ids[0])]
    withdraw(home, ids[0].hex())
    keys.rotate(home, encryption=True)
    return Victim(home, partner, said, ids[0], chunks)


def is_sealed(victim: Victim) -> bool:
    return victim.home.keystore.is_protected


def windows(data: bytes, size: int = 12) -> list[bytes]:
    """Pieces long enough never to stand anywhere by chance."""
    return [data[at : at + size] for at in range(0, len(data) - size + 1, size)]


def noisy_sums(summary: bytes) -> bytes:
    """What the privacy budget was spent on; the claim before it is public, and stands in the ledger too."""
    return summary[summary.index(b"\x28\xb5\x2f\xfd") + 8 :]  # the compressed part (RFC 8878)


def test_no_file_but_the_keystore_holds_a_secret_or_a_word_of_a_summary(victim: Victim, tmp_path: Path) -> None:
    disk = bytes_of(victim.stolen(tmp_path))  # while the node is open: with its write-ahead log
    secrets = secrets_of(victim.home)
    assert len([name for name in secrets if name.startswith("epoch key")]) >= 3
    assert found_in(disk, secrets) == []
    assert len(victim.summaries) == 3
    for said in victim.summaries.values():
        pieces = windows(noisy_sums(said))
        assert len(pieces) >= 2
        assert [piece for piece in pieces if piece in disk] == []
    whole = bytes_of(victim.stolen(tmp_path / "again"), but=())
    found = found_in(whole, secrets)
    assert found == [] if is_sealed(victim) else "seed" in found  # the search finds what is there


def test_without_the_passphrase_a_stolen_disk_opens_nothing_and_signs_nothing(victim: Victim, tmp_path: Path) -> None:
    stolen = victim.stolen(tmp_path)
    thief = Home.open(stolen)
    if not is_sealed(victim):
        live = {one for one in victim.summaries if one != victim.withdrawn}
        assert live <= readable(thief)  # the whole node is the thief's
        thief.author.key_card()
        return
    assert readable(thief) == set()
    for use in (thief.author.key_card, thief.epochs.live, thief.keystore.open):
        with pytest.raises(KeystoreLocked):
            use()
    with pytest.raises(WrongPassphrase):
        Home.open(stolen, lambda _: "a guess").keystore.open()
    assert readable(Home.open(stolen, lambda _: PASSPHRASE)) >= {
        one for one in victim.summaries if one != victim.withdrawn
    }


def test_what_a_stolen_disk_tells_in_the_clear_is_what_the_documents_say(victim: Victim, tmp_path: Path) -> None:
    thief = Home.open(victim.stolen(tmp_path))
    assert thief.me == victim.home.me
    (peer,) = thief.store.peers()
    assert (peer.name, peer.addresses[0]) == ("Saint Elsewhere", "10.11.12.13:7410")
    (task,) = thief.store.tasks()
    assert b"arrival" in task.canonical
    accounts = {one.dataset: one for one in thief.ledger().statement()}
    assert accounts.keys() == {"oncology", "cardiology"}
    assert accounts["oncology"].entries[0].epsilon == 1.0
    headers = [held.record.header for held in thief.store.held(kind=Kind.SUMMARY)]
    assert {header.origin for header in headers} == {victim.home.me, victim.partner.me}
    assert all(header.created_unix_ms and header.body_bytes for header in headers)


def test_a_withdrawn_body_is_overwritten_on_the_disk(victim: Victim, tmp_path: Path) -> None:
    """Ciphertext, and whoever has the keystore has its key: what was taken back must not lie around."""
    pieces = [window for chunk in victim.chunks_withdrawn for window in windows(chunk)]
    assert len(pieces) > 5
    victim.home.store.close()
    Home.open(victim.home.path).store.close()  # the last one to close folds the write-ahead log in
    disk = bytes_of(victim.stolen(tmp_path))
    assert [piece for piece in pieces if piece in disk] == []
    held = Home.open(victim.home.path).store.get(victim.withdrawn)
    assert held is not None
    assert held.state is HeldState.BURIED


def test_a_former_member_opens_exactly_what_was_sealed_before_it_left(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    origin, leaves, stays = make_home("origin"), make_home("leaves"), make_home("stays")
    meet(origin, leaves, stays)
    before = {publish_rows(origin, task_file, rows_file, name) for name in ("one", "two")}
    keys.rotate(origin, encryption=False)
    before.add(publish_rows(origin, task_file, rows_file, "three"))
    tasks = {held.record.id for held in origin.store.held(kind=Kind.TASK)}
    remove_peer(origin, "leaves")
    after = {publish_rows(origin, task_file, rows_file, "four")}
    keys.rotate(origin, encryption=True)
    after.add(publish_rows(origin, task_file, rows_file, "five"))
    # It gets every byte there is, from the one who stays, and tries with new keys of its own too.
    gossip(origin, stays)
    carry(stays, leaves)
    keys.rotate(leaves, encryption=True)
    for one in (origin, stays):
        carry(leaves, one)
        one.epochs.grant_missing()
    carry(origin, leaves)
    assert readable(Home.open(leaves.path)) == before | tasks
    assert readable(Home.open(stays.path)) == before | after | tasks
    everything = bytes_of(leaves.path, but=())
    assert found_in(everything, {"epoch key of later": origin.epochs.live().key}) == []


def test_a_copied_keystore_opens_nothing_that_is_sealed_after_both_sides_rotated(
    make_home: MakeHome, task_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    origin, robbed = make_home("origin"), make_home("robbed")
    meet(origin, robbed)
    first = publish_rows(origin, task_file, rows_file, "one")
    copied = (robbed.path / "keystore.json").read_bytes()

    keys.rotate(robbed, encryption=True)
    gossip(origin, robbed)
    origin.epochs.grant_missing()
    second = publish_rows(
        origin, task_file, rows_file, "two"
    )  # the epoch is still the one that was granted to the old key
    keys.rotate(origin, encryption=False)
    third = publish_rows(origin, task_file, rows_file, "three")
    gossip(origin, robbed)

    thief = Path(shutil.copytree(robbed.path, tmp_path / "thief"))
    (thief / "keystore.json").write_bytes(copied)
    by_thief = readable(Home.open(thief))
    assert {first, second} <= by_thief
    assert third not in by_thief
    assert {first, second, third} <= readable(Home.open(robbed.path))
