"""The life of a node's keys at the command line and beside a running node: real processes, a real terminal."""

from __future__ import annotations

import json
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import eventually, serving, tidings
from couriers import can_read, carry, gossip, meet, publish_rows

from crypto.errors import CryptoError, KeystoreError
from crypto.keystore import LEAST, MODERATE, Keyring, Keystore, SealedKeystore, read
from node import keys, passphrase
from node.errors import UsageError
from node.home import Home
from node.membership import add_peer, remove_peer
from node.publish import publish
from node.records import Kind
from node.tasks import add

SECRET = "five words drawn by chance"  # noqa: S105
WRONG = "wrong words"
OTHER = "five other words drawn by chance"
MakeHome = Callable[..., Home]


@pytest.fixture
def protected(tmp_path: Path) -> Path:
    """A home whose keystore is sealed at the least cost."""
    Home.init(tmp_path / "alpha", "alpha", "127.0.0.1:0", lambda: SECRET, LEAST).store.close()
    return tmp_path / "alpha"


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    return private(tmp_path / "passphrase", SECRET)


def private(path: Path, text: str) -> Path:
    path.write_text(text + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def opened(home: Path, secret: str = SECRET) -> Home:
    return Home.open(home, lambda _: secret)


# ------------------------------------------------------------------------------------------------- the passphrase


def test_init_seals_the_keystore_at_the_usual_cost(tmp_path: Path, secret_file: Path) -> None:
    key = tidings(tmp_path / "a", "--passphrase-file", str(secret_file), "init").stdout.strip()
    content = read(tmp_path / "a" / "keystore.json")
    assert isinstance(content, SealedKeystore)
    assert content.cost == MODERATE
    assert content.public_key.text == key
    assert opened(tmp_path / "a").keystore.open().public_key.text == key
    tidings(tmp_path / "b", "init", "--passphrase", TIDINGS_PASSPHRASE=SECRET)
    assert Keyring(tmp_path / "b" / "keystore.json").is_protected
    tidings(tmp_path / "c", "init", TIDINGS_PASSPHRASE=SECRET)  # not asked for
    assert not Keyring(tmp_path / "c" / "keystore.json").is_protected


def test_what_needs_no_secret_needs_no_passphrase(protected: Path) -> None:
    key = Keyring(protected / "keystore.json").public_key.text
    assert tidings(protected, "id").stdout.strip() == key
    for words in (["peer", "list"], ["status"], ["records"], ["budget"], ["keys", "show"]):
        tidings(protected, *words, "--json")
    assert "passphrase: yes" in tidings(protected, "keys", "show").stdout


def test_what_needs_a_secret_says_so_in_one_sentence_and_changes_nothing(protected: Path, task_file: Path) -> None:
    stranger = Keystore.generate().public_key.text
    before = [held.record.id for held in opened(protected).store.held()]
    for words in (
        ["serve"],
        ["peer", "add", stranger],
        ["task", "add", str(task_file)],
        ["keys", "rotate"],
        ["keys", "passphrase", "--remove"],
    ):
        for variables, reason in (
            ({}, "none was given"),
            ({"TIDINGS_PASSPHRASE": WRONG}, "not the passphrase"),
        ):
            lines = tidings(protected, *words, code=1, **variables).stderr.strip().splitlines()
            assert len(lines) == 1, lines
            assert reason in lines[0]
            assert WRONG not in lines[0]
    home = opened(protected)
    assert [held.record.id for held in home.store.held()] == before
    assert home.store.peers() == []
    assert home.store.tasks() == []


def test_the_file_comes_before_the_environment_and_both_before_a_prompt(
    protected: Path, secret_file: Path, tmp_path: Path
) -> None:
    tidings(protected, "--passphrase-file", str(secret_file), "keys", "rotate", TIDINGS_PASSPHRASE=WRONG)
    tidings(protected, "keys", "rotate", TIDINGS_PASSPHRASE=SECRET)
    wrong = private(tmp_path / "wrong", OTHER)
    tidings(protected, "--passphrase-file", str(wrong), "keys", "rotate", code=1, TIDINGS_PASSPHRASE=SECRET)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
def test_a_passphrase_file_that_others_can_read_is_refused(protected: Path, secret_file: Path, mode: int) -> None:
    secret_file.chmod(mode)
    line = tidings(protected, "--passphrase-file", str(secret_file), "keys", "rotate", code=1).stderr
    assert "open to others" in line
    assert SECRET not in line


def test_a_credential_of_systemd_may_have_the_group_bit_of_its_access_list(
    protected: Path, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret_file.chmod(0o440)
    ask = passphrase.source(secret_file)
    with pytest.raises(KeystoreError, match="open to others"):
        ask(protected)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secret_file.parent))
    assert ask(protected) == SECRET
    secret_file.chmod(0o444)
    with pytest.raises(KeystoreError, match="open to others"):
        ask(protected)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe secret", b"s" * 5000])
def test_a_file_that_holds_no_passphrase_is_told_without_quoting_it(secret_file: Path, content: bytes) -> None:
    secret_file.write_bytes(content)
    with pytest.raises(CryptoError) as caught:
        passphrase.source(secret_file)(Path("keystore.json"))
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_variable_is_gone_from_the_environment_once_it_was_read(
    protected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDINGS_PASSPHRASE", SECRET)
    Home.open(protected, passphrase.source(None)).keystore.open()
    assert "TIDINGS_PASSPHRASE" not in os.environ


def at_a_terminal(home: Path, answers: list[str], *words: str) -> tuple[int, str]:
    """Run a command on a terminal of its own and type the answers; its exit code and everything that showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "node", "--home", str(home), *words])  # noqa: S606
    shown = b""
    waiting = list(answers)
    while True:
        try:
            read_now = os.read(terminal, 4096)
        except OSError:  # how a terminal says that the other side is gone
            break
        if not read_now:
            break
        shown += read_now
        if waiting and shown.rstrip(b" ").endswith(b":"):
            os.write(terminal, waiting.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


def test_at_a_terminal_the_passphrase_is_asked_for_and_never_shown(protected: Path, tmp_path: Path) -> None:
    code, shown = at_a_terminal(protected, [SECRET], "keys", "rotate")
    assert code == 0, shown
    assert "Passphrase of" in shown
    assert SECRET not in shown
    code, shown = at_a_terminal(protected, [WRONG], "keys", "rotate")
    assert code == 1
    assert "not the passphrase" in shown
    code, shown = at_a_terminal(tmp_path / "new", [SECRET, OTHER], "init", "--passphrase")
    assert code == 2
    assert "two different" in shown
    assert not (tmp_path / "new").exists()
    code, shown = at_a_terminal(tmp_path / "new", [SECRET, SECRET], "init", "--passphrase")
    assert code == 0, shown
    assert SECRET not in shown
    assert opened(tmp_path / "new").keystore.open().encryption_keys


def test_a_passphrase_is_set_changed_and_removed(tmp_path: Path, make_home: MakeHome, secret_file: Path) -> None:
    home = make_home("alpha").path
    key = tidings(home, "id").stdout
    tidings(home, "keys", "passphrase", "--new-passphrase-file", str(secret_file))
    assert opened(home).keystore.open()
    tidings(home, "keys", "rotate", code=1)
    other = private(tmp_path / "other", OTHER)
    tidings(home, "--passphrase-file", str(secret_file), "keys", "passphrase", "--new-passphrase-file", str(other))
    assert opened(home, OTHER).keystore.open()
    with pytest.raises(KeystoreError, match="not the passphrase"):
        opened(home).keystore.open()
    tidings(home, "keys", "passphrase", "--remove", TIDINGS_PASSPHRASE=OTHER)
    tidings(home, "keys", "rotate")
    assert tidings(home, "id").stdout == key


def test_a_new_passphrase_that_is_too_short_or_nowhere_changes_nothing(tmp_path: Path, make_home: MakeHome) -> None:
    home = make_home("alpha").path
    before = (home / "keystore.json").read_bytes()
    short = private(tmp_path / "short", "short")
    assert "characters" in tidings(home, "keys", "passphrase", "--new-passphrase-file", str(short), code=2).stderr
    assert "no terminal" in tidings(home, "keys", "passphrase", code=2, TIDINGS_PASSPHRASE=SECRET).stderr
    tidings(home, "keys", "passphrase", "--remove", "--new-passphrase-file", str(short), code=2)
    assert (home / "keystore.json").read_bytes() == before


@pytest.mark.timeout(180)
def test_a_protected_node_serves_queries_and_hands_its_keys_to_no_argument_and_no_variable(
    protected: Path, secret_file: Path, make_home: MakeHome, task_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    home, asker = opened(protected), make_home("asker")
    task, _ = add(home, str(task_file))
    publish(home, task, [rows_file], epsilon=1.0, dataset="default", cap_epsilon=None)
    add_peer(home, asker.me.text, "asker", query_only=False)
    add(asker, str(task_file))
    with serving(protected, TIDINGS_PASSPHRASE=SECRET) as address:
        add_peer(asker, home.me.text, "alpha", address, query_only=False)
        words = ["query", "triage", "--node", "alpha", "-o", str(tmp_path / "m.onnx"), "--json"]
        card = json.loads(tidings(asker.path, *words).stdout)
    assert card["attestation"]["node"] == home.me.text


# --------------------------------------------------------------------------------------------------- rotation


def shown(home: Home) -> dict[str, Any]:
    return keys.show(home)


def test_a_rotation_begins_an_epoch_that_members_read_and_former_members_do_not(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    origin, stays, leaves = make_home("origin"), make_home("stays"), make_home("leaves")
    meet(origin, stays, leaves)
    before = publish_rows(origin, task_file, rows_file, "first")
    remove_peer(origin, "leaves")
    rotated = keys.rotate(origin, encryption=False)
    assert (rotated.epoch, rotated.granted, rotated.waiting) == (3, ("stays",), ())
    after = publish_rows(origin, task_file, rows_file, "second")
    gossip(origin, stays, leaves)
    assert can_read(stays, before)
    assert can_read(stays, after)
    assert can_read(leaves, before)
    assert not can_read(leaves, after)
    assert shown(origin)["epoch"]["number"] == 3


def test_a_new_encryption_key_gets_the_new_grants_and_the_old_one_keeps_the_old(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    origin, member = make_home("origin"), make_home("member")
    meet(origin, member)
    before = publish_rows(origin, task_file, rows_file, "first")
    gossip(origin, member)
    rotated = keys.rotate(member, encryption=True)
    gossip(origin, member)
    assert origin.epochs.grant_missing() == 1  # to the new card
    after = publish_rows(origin, task_file, rows_file, "second")
    gossip(origin, member)
    again = Home.open(member.path)
    assert can_read(again, before)
    assert can_read(again, after)
    ids = [one["id"] for one in shown(again)["encryption_keys"]]
    assert ids[0] == rotated.encryption_key
    assert [one["state"] for one in shown(again)["encryption_keys"]] == ["newest", "opens earlier grants"]
    # The new key alone opens what was granted since, the old one alone what was granted before.
    newest, oldest = again.keystore.encryption_keys
    for key, opens_before in ((newest, True), (oldest, True)):
        Keystore(again.keystore.identity, (key,)).replace(member.path / "keystore.json", None)
        alone = Home.open(member.path)
        assert can_read(alone, after)  # the epoch is the same, and was granted to both
        assert can_read(alone, before) is opens_before
    keys.rotate(origin, encryption=False)
    latest = publish_rows(origin, task_file, rows_file, "third")
    gossip(origin, member)
    assert not can_read(Home.open(member.path), latest)  # here the oldest is all there is


def test_after_an_older_keystore_is_restored_a_new_card_and_epoch_come_by_themselves(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    origin, member = make_home("origin"), make_home("member")
    meet(origin, member)
    backup = (member.path / "keystore.json").read_bytes()
    keys.rotate(member, encryption=True)
    gossip(origin, member)
    origin.epochs.grant_missing()
    (member.path / "keystore.json").write_bytes(backup)
    restored = Home.open(member.path)
    assert [one["state"] for one in shown(restored)["encryption_keys"]] == ["newest", "lost"]
    restored.epochs.grant_missing()  # what `serve` does first
    gossip(origin, restored)
    assert origin.epochs.grant_missing() == 1
    gossip(origin, restored)
    assert can_read(restored, publish_rows(restored, task_file, rows_file, "mine"))
    published = publish_rows(origin, task_file, rows_file, "first")
    gossip(origin, restored)
    assert can_read(restored, published)


def test_a_rotation_that_stops_after_the_key_was_written_is_finished_by_the_next_grant(make_home: MakeHome) -> None:
    home = make_home("alpha")
    home.keystore.add_encryption_key()
    assert len(home.store.held(kind=Kind.KEY_CARD)) == 1
    Home.open(home.path).epochs.grant_missing()
    cards = home.store.held(kind=Kind.KEY_CARD)
    assert len(cards) == 2
    assert shown(home)["encryption_keys"][0]["since"] is not None


def test_show_says_who_can_read_and_who_waits_for_what(make_home: MakeHome) -> None:
    origin, known, unknown = make_home("origin"), make_home("known"), make_home("unknown")
    for other in (known, unknown):
        add_peer(origin, other.me.text, other.settings.name, query_only=False)
    found = shown(origin)
    assert found["granted"] == []
    assert {one["peer"] for one in found["waiting"]} == {"known", "unknown"}
    carry(known, origin)
    assert keys.rotate(origin, encryption=False).granted == ("known",)
    assert shown(origin)["waiting"] == [{"peer": "unknown", "reason": "its key card has not come yet"}]
    with pytest.raises(UsageError, match="characters"):
        keys.set_passphrase(origin, passphrase.choice(private(origin.path.parent / "short", "abc"), environment=False))


@pytest.mark.timeout(180)
def test_a_running_node_notices_new_keys_and_opens_what_is_granted_to_them(
    protected: Path, secret_file: Path, make_home: MakeHome, task_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    member = opened(protected)
    origin = make_home("origin", "127.0.0.1:0")
    task, _ = add(origin, str(task_file))
    add(member, str(task_file))
    add_peer(origin, member.me.text, "alpha", query_only=False)
    with serving(origin.path) as address:
        add_peer(member, origin.me.text, "origin", address, query_only=False)
        with serving(protected, "--passphrase-file", str(secret_file)):
            eventually(lambda: origin.epochs.key_card(member.me) is not None)
            rotated = json.loads(tidings(protected, "keys", "rotate", "--encryption", "--json",
                                         TIDINGS_PASSPHRASE=SECRET).stdout)  # fmt: skip
            newest = member.epochs.key_card(member.me)
            assert newest is not None
            eventually(lambda: (member.me, newest.id) in origin.epochs.granted())
            publish(origin, task, [rows_file], epsilon=1.0, dataset="default", cap_epsilon=None)
            # The member's daemon answers the origin: its process knows the summary only through the new key.
            eventually(lambda: bool(member.store.held(kind=Kind.SUMMARY, origin=origin.me)))
            (arrived,) = member.store.held(kind=Kind.SUMMARY, origin=origin.me)
            eventually(lambda: can_read(member, arrived.record.id))
    assert shown(member)["encryption_keys"][0]["id"] == rotated["encryption_key"]
