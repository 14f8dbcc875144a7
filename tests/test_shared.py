"""Shared models: they gossip when told to, serve devices that cannot fuse, and are used only if every check holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusion.model import read_model
from fusion.model_files import write_onnx
from node import publish as publishing
from node.__main__ import run
from node.ask import ask, save, select, verify_model
from node.config import BODY_LIMIT_BYTES
from node.errors import CannotFuse, NotReadable, PeerUnreachable, QueryRefused, UsageError
from node.home import Home
from node.membership import add_peer, remove_peer
from node.records import Held, HeldState, Kind
from node.shared import FORMAT, Shared, listing, newest, open_shared, share
from node.status import records, status
from node.tasks import add, find
from tests.couriers import carry, gossip, meet

TASK = "triage"


@pytest.fixture
def fused(make_home: Callable[..., Home], task_file: Path, rows_file: Path) -> tuple[Home, Home, Home]:
    """alpha and beta have published; device is a member that accepted the task and holds none of their summaries."""
    alpha, beta, device = (make_home(name) for name in ("alpha", "beta", "device"))
    meet(alpha, beta, device)
    for home in (alpha, beta):
        add(home, str(task_file))
        publishing.publish(home, find(home, TASK), [rows_file], epsilon=1.5, dataset="default", cap_epsilon=None)
    gossip(alpha, beta)
    add(device, str(task_file))
    return alpha, beta, device


def shared_by(home: Home, head: str | None = None) -> Shared:
    return share(home, select(home, TASK, None, None, head, FORMAT))


def held_by(home: Home, record_id: bytes) -> Held:
    held = home.store.get(record_id)
    assert held is not None
    return held


def carry_models(source: Home, target: Home) -> None:
    """What reaches a device: keys and shared models, and no summaries."""
    kinds = (Kind.KEY_CARD, Kind.KEY_GRANT, Kind.MODEL, Kind.WITHDRAWAL)
    carry(source, target, lambda record: record.header.kind in kinds)


def asked(home: Home, output: Path, node: str | None = None) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    data = ask(home, TASK, output, node=node, only=None, without=None, head=None, on_progress=said.append)
    return save(home, data, output).card, said


def test_a_device_without_summaries_gets_the_shared_model_in_both_formats_and_is_told_so(
    fused: tuple[Home, Home, Home], tmp_path: Path
) -> None:
    alpha, _, device = fused
    with pytest.raises(CannotFuse, match="No summary"):
        asked(device, tmp_path / "none.onnx")
    made = shared_by(alpha)
    carry_models(alpha, device)
    for ending in ("onnx", "safetensors"):
        card, said = asked(device, tmp_path / f"model.{ending}")
        assert card == made.card
        assert "No summary of task triage is held here yet" in said[0]
        assert "Instead, this is the model of 2 summaries that alpha shared" in said[1]
    assert (tmp_path / "model.onnx").read_bytes() == write_onnx(
        *read_model((tmp_path / "model.safetensors").read_bytes())
    )


def test_where_summaries_are_held_the_model_is_fused_and_not_the_shared_one(
    fused: tuple[Home, Home, Home], tmp_path: Path
) -> None:
    alpha, beta, _ = fused
    shared_by(beta)
    gossip(alpha, beta)
    card, _ = asked(alpha, tmp_path / "model.onnx")
    assert card["attestation"]["node"] == alpha.me.text


def test_the_file_runs_where_torch_cannot_be_imported(
    fused: tuple[Home, Home, Home], rows_file: Path, tmp_path: Path
) -> None:
    alpha, _, device = fused
    shared_by(alpha)
    carry_models(alpha, device)
    script = "import sys; sys.modules['torch'] = None\nfrom node.__main__ import main\nmain(sys.argv[1:])"
    for words in (
        ["query", TASK, "-o", str(tmp_path / "m.onnx")],
        ["predict", str(tmp_path / "m.onnx"), str(rows_file), "-o", str(tmp_path / "out.csv")],
    ):
        command = [sys.executable, "-c", script, "--home", str(device.path), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 201


def test_a_newer_share_takes_the_place_of_the_older_and_the_same_model_is_not_sent_twice(
    fused: tuple[Home, Home, Home],
) -> None:
    alpha, _, device = fused
    first = shared_by(alpha)
    again = shared_by(alpha)
    assert (again.record.id, again.is_new) == (first.record.id, False)
    other = shared_by(alpha, head="ridge")
    assert other.record.header.supersedes == first.record.id
    carry_models(alpha, device)
    live = [held for held in device.store.held(kind=Kind.MODEL) if held.state is not HeldState.BURIED]
    assert [held.record.id for held in live] == [other.record.id]
    found = newest(device, find(device, TASK))
    assert found is not None
    assert found.record.id == other.record.id


def test_the_newest_of_several_is_given_and_a_partner_can_be_named(
    fused: tuple[Home, Home, Home], tmp_path: Path
) -> None:
    alpha, beta, device = fused
    shared_by(alpha)
    shared_by(beta)
    carry_models(alpha, device)
    carry_models(beta, device)
    assert asked(device, tmp_path / "m.onnx")[0]["attestation"]["node"] == beta.me.text
    card, said = asked(device, tmp_path / "m.onnx", node="alpha")  # alpha has no address
    assert card["attestation"]["node"] == alpha.me.text
    assert "alpha has no address here" in said[0]
    with pytest.raises(PeerUnreachable, match="no address"):
        ask(device, TASK, tmp_path / "n.onnx", node="alpha", only="beta", without=None, head=None, on_progress=print)


def test_sharing_costs_no_budget_and_withdrawing_takes_the_model_back(fused: tuple[Home, Home, Home]) -> None:
    alpha, _, device = fused
    before = alpha.ledger().head()
    made = shared_by(alpha)
    assert alpha.ledger().head() == before
    publishing.withdraw(alpha, made.record.id.hex())
    carry_models(alpha, device)
    assert newest(device, find(device, TASK)) is None
    assert listing(device, find(device, TASK).id) == []


def test_a_model_made_of_a_summary_that_was_withdrawn_since_is_not_handed_on(
    fused: tuple[Home, Home, Home], tmp_path: Path
) -> None:
    alpha, beta, device = fused
    shared_by(alpha)
    carry_models(alpha, device)
    (of_beta,) = beta.store.held(kind=Kind.SUMMARY, origin=beta.me)
    publishing.withdraw(beta, of_beta.record.id.hex())
    carry_models(beta, device)
    (entry,) = listing(device, find(device, TASK).id)
    assert entry["reason"] == "beta has withdrawn a summary that it was made of; alpha can share a new one"
    with pytest.raises(CannotFuse):
        asked(device, tmp_path / "m.onnx")


def test_a_relay_that_has_not_accepted_the_task_carries_the_model_and_says_why_it_does_not_use_it(
    fused: tuple[Home, Home, Home], make_home: Callable[..., Home]
) -> None:
    alpha, beta, _ = fused
    relay = make_home("relay")
    meet(alpha, relay)
    made = shared_by(alpha)
    carry_models(alpha, relay)
    assert held_by(relay, made.record.id).state is HeldState.COMPLETE
    (shown,) = [one for one in records(relay, None) if one["kind"] == "model"]
    assert "its task is not accepted here" in shown["reason"]
    carry_models(relay, beta)
    found = newest(beta, find(beta, TASK))
    assert found is not None
    assert found.record.id == made.record.id


def test_a_model_of_a_removed_member_is_not_used(fused: tuple[Home, Home, Home]) -> None:
    alpha, _, device = fused
    shared_by(alpha)
    carry_models(alpha, device)
    remove_peer(device, "alpha")
    (entry,) = listing(device, find(device, TASK).id)
    assert entry["reason"] == "its origin is no member here"


@pytest.fixture
def asker(make_home: Callable[..., Home], task_file: Path) -> Home:
    home = make_home("asker")
    add(home, str(task_file))
    return home


@pytest.fixture
def serving(fused: tuple[Home, Home, Home], asker: Home) -> Iterator[str]:
    """The address of the device, which serves, holds what alpha shared, and can fuse nothing; the asker may ask it."""
    alpha, _, device = fused
    shared_by(alpha)
    carry_models(alpha, device)
    add_peer(device, asker.me.text, "asker", None, query_only=True)
    command = [sys.executable, "-m", "node", "--home", str(device.path), "serve", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = re.search(r"listens on (\S+:\d+)", process.stderr.readline())
    assert found is not None
    yield found[1]
    process.terminate()
    process.wait(20)
    process.stderr.close()


def test_a_node_that_cannot_fuse_answers_with_a_shared_model_and_only_those_who_trust_its_maker_take_it(
    fused: tuple[Home, Home, Home], serving: str, asker: Home, tmp_path: Path
) -> None:
    alpha, _, device = fused
    add_peer(asker, device.me.text, "device", serving, query_only=True)
    with pytest.raises(QueryRefused, match="of a stranger"):
        asked(asker, tmp_path / "m.onnx", node="device")
    assert not (tmp_path / "m.onnx").exists()
    add_peer(asker, alpha.me.text, "maker", None, query_only=False)
    card, said = asked(asker, tmp_path / "m.onnx", node="device")
    assert card["attestation"]["node"] == alpha.me.text
    assert said[-1] == "device cannot fuse; this is a model that maker shared."
    with pytest.raises(QueryRefused, match="No summary of task triage is held here yet"):
        ask(asker, TASK, tmp_path / "n.onnx", node="device", only="maker", without=None, head=None, on_progress=print)


# --- bad models -------------------------------------------------------------------------------------------------


def forged(alpha: Home, beta: Home) -> dict[str, tuple[bytes, str]]:
    """Bodies that alpha could put into a record, and what is wrong with each."""
    made = shared_by(alpha)
    good = open_shared(alpha, held_by(alpha, made.record.id)).file(FORMAT)
    theirs = shared_by(beta)
    by_beta = open_shared(beta, held_by(beta, theirs.record.id)).file(FORMAT)
    at = good.index(b"signature") + len(rb"signature\":\"")
    forged_digit = b"0" if good[at : at + 1] != b"0" else b"1"
    return {
        "no model at all": (b"rubbish", "not a model to use"),
        "one byte more": (good + b"\0", "not a model to use"),
        "a flipped bit in the weights": (good[:-1] + bytes([good[-1] ^ 1]), "not a model to use"),
        "an edited signature": (good[:at] + forged_digit + good[at + 1 :], "not a model to use"),
        "an ONNX file": (write_onnx(*read_model(good)), "not in the form in which models are shared"),
        "signed by another": (by_beta, "its card is signed by beta"),
    }


def test_a_bad_model_is_shown_with_its_reason_and_never_used(fused: tuple[Home, Home, Home], tmp_path: Path) -> None:
    alpha, beta, device = fused
    task = find(device, TASK)
    for name, (body, sentence) in forged(alpha, beta).items():
        record = alpha.author.sealed(Kind.MODEL, task.id, body, alpha.epochs.live())
        carry_models(alpha, device)
        held = held_by(device, record.id)
        with pytest.raises(NotReadable, match=sentence):
            open_shared(device, held)
        shown = next(one for one in records(device, task.id) if one["id"] == record.id.hex())
        assert sentence in shown["reason"], name
        assert "\n" not in shown["reason"]
        (state,) = status(device)["tasks"]
        assert any(sentence in one["reason"] for one in state["models"]), name
        publishing.withdraw(alpha, record.id.hex())
    good = [one for one in listing(device, task.id) if not one["reason"]]
    assert [one["origin"] for one in good] == ["alpha"]
    assert asked(device, tmp_path / "m.onnx")[0]["attestation"]["node"] == alpha.me.text


def test_a_model_under_the_id_of_another_task_is_refused(
    fused: tuple[Home, Home, Home], task_file: Path, tmp_path: Path
) -> None:
    alpha, _, device = fused
    other = tmp_path / "other.toml"
    other.write_text(task_file.read_text().replace("triage", "triage-2"))
    add(device, str(other))
    made = shared_by(alpha)
    body = open_shared(alpha, held_by(alpha, made.record.id)).file(FORMAT)
    record = alpha.author.sealed(Kind.MODEL, find(device, "triage-2").id, body, alpha.epochs.live())
    carry_models(alpha, device)
    with pytest.raises(NotReadable, match="of another task"):
        open_shared(device, held_by(device, record.id))


def test_a_model_too_large_for_a_record_is_refused_in_words(
    fused: tuple[Home, Home, Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha, _, _ = fused
    monkeypatch.setattr("node.shared.answer", lambda *_: bytes(BODY_LIMIT_BYTES))
    with pytest.raises(QueryRefused, match=r"a record carries at most 16\.8 MB"):
        shared_by(alpha)
    assert alpha.store.held(kind=Kind.MODEL) == []


def test_what_cannot_be_fused_cannot_be_shared(fused: tuple[Home, Home, Home]) -> None:
    _, _, device = fused
    with pytest.raises(CannotFuse, match="No summary"):
        shared_by(device)


# --- verify -----------------------------------------------------------------------------------------------------


def test_verify_takes_a_shared_model_by_its_record_and_where_it_cannot_says_who_shared_the_same(
    fused: tuple[Home, Home, Home], tmp_path: Path
) -> None:
    alpha, beta, device = fused
    made = shared_by(alpha)
    shared_by(beta)
    gossip(alpha, beta)
    verdict = verify_model(beta, made.record.id.hex()[:12])
    assert verdict.confirmed
    assert "signed by alpha" in verdict.reason
    carry_models(alpha, device)
    carry_models(beta, device)
    asked(device, tmp_path / "m.onnx")
    verdict = verify_model(device, str(tmp_path / "m.onnx"))
    assert not verdict.confirmed
    assert verdict.reason == ("2 of its 2 summaries cannot be read here; the very same model was shared by alpha, beta")
    with pytest.raises(UsageError, match="neither a model file nor the id"):
        verify_model(device, "abcdef012345")


def test_the_commands_say_what_they_did(fused: tuple[Home, Home, Home], capsys: pytest.CaptureFixture[str]) -> None:
    alpha, _, _ = fused
    capsys.readouterr()
    assert run(["--home", str(alpha.path), "share", TASK, "--json"], debug=False) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["new"], told["replaces"], told["summaries"]) == (True, None, 2)
    assert run(["--home", str(alpha.path), "share", TASK], debug=False) == 0
    assert "this very model already; nothing was sent" in capsys.readouterr().out
    assert run(["--home", str(alpha.path), "status"], debug=False) == 0
    assert "model shared by alpha" in capsys.readouterr().out
    assert run(["--home", str(alpha.path), "withdraw", told["record"]], debug=False) == 0
    assert "is withdrawn" in capsys.readouterr().out
