"""The walk of a coalition's operators through a roster: real homes, real commands, real nodes that gossip."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from processes import Node, running

from node.__main__ import run
from node.rehearsal import wait_until
from node.status import notices, status

SECRET = "five words drawn by chance"  # noqa: S105


def tidings(home: Path, *words: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """One command; its error line is one sentence."""
    command = [sys.executable, "-m", "node", "--home", str(home), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, env=os.environ | variables
    )
    assert done.returncode == code, done.stderr
    if code:
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 1
    return done


def in_this_process(home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The same without a process of its own, which takes most of a second to start."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        done = run(["--home", str(home), *words], debug=False)
    assert done == code, err.getvalue()
    return subprocess.CompletedProcess(words, done, out.getvalue(), err.getvalue())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process; nodes that serve have theirs."""
    monkeypatch.setattr(sys.modules[__name__], "tidings", in_this_process)


def roster(node: Node, *words: str, code: int = 0) -> str:
    """`tidings roster …`; what it printed, or its error line."""
    done = tidings(node.path, "roster", *words, code=code)
    return done.stderr if code else done.stdout


def state(node: Node) -> dict[str, Any]:
    """What is followed, as programs see it."""
    found: dict[str, Any] = json.loads(roster(node, "status", "--json"))["followed"]
    return found


def peer_names(node: Node) -> set[str]:
    return {peer.name for peer in node.home.store.peers()}


def follows(node: Node, version: int) -> Callable[[], bool]:
    return lambda: bool(state(node)["version"] == version)


@pytest.fixture
def nodes(tmp_path: Path) -> dict[str, Node]:
    return {name: Node.make(tmp_path, name) for name in ("ann", "bea", "cid", "dan")}


def listed(*nodes: Node) -> list[str]:
    """Members for `create` and `propose`, with their addresses."""
    words = []
    for node in nodes:
        words += ["--member", f"{node.home.me.text}={node.name}", "--address", f"{node.name}={node.address}"]
    return words


def create(nodes: dict[str, Node], path: Path, *members: str) -> None:
    """Version 1 of heart, administered by ann, bea and cid, two of whom must sign, and do."""
    keys = [nodes[name].home.me.text for name in ("ann", "bea", "cid")]
    admins = [word for key in keys for word in ("--admin", key)]
    words = listed(*(nodes[name] for name in members))
    roster(nodes["ann"], "create", "--name", "heart", *admins, "--threshold", "2", *words, "-o", str(path))
    assert "Still needed: 1 signature." in roster(nodes["ann"], "sign", str(path), "--yes")
    assert "It is complete" in roster(nodes["bea"], "sign", str(path), "--yes")


def signed_change(nodes: dict[str, Node], path: Path, signers: str, *words: str) -> None:
    """A proposal of ann's, signed."""
    roster(nodes["ann"], "propose", *words, "-o", str(path))
    for name in signers.split():
        roster(nodes[name], "sign", str(path), "--yes")


def test_members_come_and_go_at_every_node_once_two_of_three_administrators_have_signed(
    nodes: dict[str, Node], tmp_path: Path
) -> None:
    one, two, three = (tmp_path / f"{number}.roster" for number in (1, 2, 3))
    create(nodes, one, "ann", "bea", "cid")
    for name in ("ann", "bea", "cid"):
        told = roster(nodes[name], "follow", str(one))
        assert "This node follows heart, version 1" in told
        assert "Compare the coalition's id" in told
    assert len({state(nodes[name])["coalition"] for name in ("ann", "bea", "cid")}) == 1
    with running(*nodes.values()):
        trio = [nodes[name] for name in ("ann", "bea", "cid")]
        wait_until("the three are linked", lambda: all(a.is_linked_with(b) for a in trio for b in trio if a is not b))
        signed_change(nodes, two, "ann cid", *listed(nodes["dan"]))
        roster(nodes["ann"], "follow", str(two))
        for name in ("bea", "cid"):
            wait_until(f"{name} follows version 2", follows(nodes[name], 2))
            assert "dan" in peer_names(nodes[name])
        roster(nodes["dan"], "follow", str(two))
        wait_until("dan is linked with all", lambda: all(nodes["dan"].is_linked_with(one) for one in trio))
        body = nodes["dan"].author(b"what dan has to say")
        wait_until("all have what dan published", lambda: all(one.has_whole(body) for one in trio))

        signed_change(nodes, three, "bea cid", "--remove", "bea")
        roster(nodes["cid"], "follow", str(three))
        for name in ("ann", "dan"):
            wait_until(f"{name} removes bea", lambda name=name: "bea" not in peer_names(nodes[name]))  # type: ignore[misc]
        wait_until("bea is cut off", lambda: not any(nodes["bea"].is_linked_with(one) for one in (nodes["ann"],)))
    by = {one["name"]: one["via"] for one in json.loads(tidings(nodes["ann"].path, "peer", "list", "--json").stdout)}
    assert by == {"cid": "roster version 1", "dan": "roster version 2"}
    assert "roster version 2" in tidings(nodes["ann"].path, "peer", "list").stdout


@pytest.mark.usefixtures("quick")
def test_a_node_that_denies_a_member_keeps_it_out_while_the_roster_goes_on(
    nodes: dict[str, Node], tmp_path: Path
) -> None:
    one, two = tmp_path / "1.roster", tmp_path / "2.roster"
    create(nodes, one, "ann", "bea", "cid")
    for name in ("ann", "bea", "cid"):
        roster(nodes[name], "follow", str(one))
    assert "stays out whatever the roster says" in roster(nodes["bea"], "deny", "cid")
    assert "cannot read" not in roster(nodes["bea"], "deny", nodes["dan"].home.me.text)
    with running(nodes["ann"], nodes["bea"]):
        signed_change(nodes, two, "ann cid", *listed(nodes["dan"]), "--rename", "ann=anna")
        roster(nodes["ann"], "follow", str(two))
        wait_until("bea follows version 2", follows(nodes["bea"], 2))
        wait_until("bea calls ann by her new name", lambda: peer_names(nodes["bea"]) == {"anna"})
        table = roster(nodes["bea"], "status")
        assert "denied" in table
        assert roster(nodes["bea"], "allow", "cid").startswith("cid is denied no longer: cid came in")
        assert "dan" not in peer_names(nodes["bea"])


@pytest.mark.usefixtures("quick")
def test_two_versions_that_both_count_freeze_every_node_until_its_operator_chooses(
    nodes: dict[str, Node], tmp_path: Path
) -> None:
    one, two, rival = tmp_path / "1.roster", tmp_path / "2.roster", tmp_path / "rival.roster"
    create(nodes, one, "ann", "bea", "cid")
    for name in ("ann", "bea", "cid"):
        roster(nodes[name], "follow", str(one))
    signed_change(nodes, two, "ann bea", *listed(nodes["dan"]))
    roster(nodes["bea"], "propose", "--rename", "cid=sid", "-o", str(rival))
    refused = roster(nodes["bea"], "sign", str(rival), "--yes", code=1)
    assert "has signed another version 2" in refused
    roster(nodes["bea"], "sign", str(rival), "--yes", "--again")
    roster(nodes["cid"], "sign", str(rival), "--yes")
    roster(nodes["ann"], "follow", str(two))
    roster(nodes["cid"], "follow", str(rival))
    with running(nodes["ann"], nodes["bea"], nodes["cid"]):
        trio = [nodes[name] for name in ("ann", "bea", "cid")]
        wait_until("all three are frozen", lambda: all(state(node)["frozen"] for node in trio))
        for node in trio:
            assert state(node)["version"] == 1
            assert peer_names(node) == {"ann", "bea", "cid"} - {node.name}
            (told,) = [one["reason"] for one in notices(node.home) if "frozen" in one["reason"]]
            assert "more than one of them is signed by bea" in told
        assert roster(nodes["ann"], "propose", "--remove", "cid", "-o", str(tmp_path / "4"), code=1)
        assert not (tmp_path / "4").exists()
        shown = roster(nodes["ann"], "status")
        assert "FROZEN" in shown
        meant = next(line["hash"] for line in state(nodes["ann"])["rivals"] if "ann" in line["signed_by"])
        assert meant[:12] in shown
        told = roster(nodes["ann"], "choose", meant[:12], "--yes")
        assert "This node follows heart, version 2: dan came in" in told
        assert state(nodes["bea"])["frozen"], "the choice of one operator is nobody else's"
    assert status(nodes["ann"].home)["notices"] == []


@pytest.mark.usefixtures("quick")
def test_refusals_are_one_clear_sentence(nodes: dict[str, Node], tmp_path: Path) -> None:
    one, two, odd = tmp_path / "1.roster", tmp_path / "2.roster", tmp_path / "odd"
    create(nodes, one, "ann", "bea", "cid")
    roster(nodes["ann"], "follow", str(one))
    signed_change(nodes, two, "ann", "--remove", "cid")
    odd.write_bytes(b"hello")
    assert "lacks 1 of the 2 signatures" in roster(nodes["ann"], "follow", str(two), code=1)
    assert "is not a roster file" in roster(nodes["ann"], "follow", str(odd), code=1)
    assert "neither a file nor" in roster(nodes["ann"], "follow", "nowhere", code=2)
    assert "no administrator" in roster(nodes["dan"], "sign", str(two), "--yes", code=1)
    assert "no terminal to ask at" in roster(nodes["bea"], "sign", str(two), code=2)
    assert "exists already" in roster(nodes["ann"], "propose", "--remove", "bea", "-o", str(two), code=2)
    assert "follows no roster" in roster(nodes["dan"], "propose", "--remove", "bea", "-o", str(odd) + "2", code=1)
    roster(nodes["bea"], "sign", str(two), "--yes")
    roster(nodes["ann"], "follow", str(two))
    assert "older than version 2" in roster(nodes["ann"], "follow", str(one), code=1)
    assert "cid left" in roster(nodes["cid"], "follow", str(two)) or state(nodes["cid"])["is_member"] is False
    assert "no member of it itself" in roster(nodes["cid"], "status")
    assert "ann, bea left" in roster(nodes["cid"], "unfollow")
    assert "follows no roster" in roster(nodes["cid"], "status")


def test_a_person_at_a_terminal_sees_what_changes_before_signing_with_a_passphrase(
    nodes: dict[str, Node], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n", encoding="utf-8")
    secret.chmod(0o600)
    tidings(nodes["bea"].path, "keys", "passphrase", "--new-passphrase-file", str(secret))
    path = tmp_path / "1.roster"
    words = listed(nodes["ann"], nodes["bea"])
    roster(nodes["ann"], "create", "--name", "heart", "--admin", nodes["bea"].home.me.text, *words, "-o", str(path))
    before = path.read_bytes()
    assert b"passphrase" in at_a_terminal(nodes["bea"].path, str(path), [SECRET, "n"]).lower()
    assert path.read_bytes() == before
    shown = at_a_terminal(nodes["bea"].path, str(path), [SECRET, "y"])
    assert f"+ ann  {nodes['ann'].home.me.text}".encode() in shown
    assert b"Signed. It is complete" in shown
    assert "signed by: bea" in roster(nodes["ann"], "status", str(path))


def at_a_terminal(home: Path, file: str, answers: list[str]) -> bytes:
    """`roster sign FILE`, by a person who types these lines; returns what the terminal showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "node", "--home", str(home), "roster", "sign", file])  # noqa: S606
    shown = b""
    waiting = list(answers)
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
        if waiting and part.rstrip().endswith((b":", b"]:")):
            os.write(terminal, waiting.pop(0).encode() + b"\n")
    os.waitpid(child, 0)
    os.close(terminal)
    return shown
