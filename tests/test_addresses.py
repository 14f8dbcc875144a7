"""Addresses of peers: several of each, IPv6, and changes while the node runs; real processes over real sockets."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_main_job import Machine, eventually, machines

from crypto.keys import Identity
from node.errors import UsageError
from node.home import Home
from node.membership import add_peer
from node.peers import MAX_ADDRESSES, check_address
from node.rehearsal import free_ports
from node.status import status
from node.tasks import add

__all__ = ["machines"]  # a fixture

SOMEBODY = Identity.from_seed(bytes(range(32))).public_key.text


@contextmanager
def silence() -> Iterator[str]:
    """An address where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def nothing() -> str:
    """An address where nothing listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


def link_of(machine: Machine) -> tuple[str, float]:
    """State of the one link of a machine, and since when."""
    home = Home.open(machine.path)
    peer = status(home)["peers"][0]
    home.store.close()
    return peer["state"], peer["since"] or 0.0


def reason_of(machine: Machine) -> str:
    home = Home.open(machine.path)
    reason = status(home)["peers"][0]["reason"]
    home.store.close()
    return str(reason)


def meet(machine: Machine, other: Machine, *addresses: str) -> None:
    """What `peer add` does, in this process: a start of Python for each would be most of the time."""
    home = Home.open(machine.path)
    add_peer(home, other.key, other.name, *addresses, query_only=False)
    home.store.close()


def is_linked(machine: Machine) -> bool:
    return link_of(machine)[0] == "linked"


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.7:7410",
        "node.hospital.example:1",
        "[::1]:7410",
        "[fe80::1%eth0]:7410",
        "a_b:65535",
        "xn--bcher-kva.example:7",
    ],
)
def test_an_address_is_taken_as_it_is_typed(address: str) -> None:
    assert check_address(f" {address} ") == address


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.7", ":7410", "host:", "host:65536", "host:-1", "host:٧", "host:7410x", ""),
        *("::1:7410", "[::1]", "[::1:7410", "[nowhere]:7410", "[10.0.0.1]:7410", "a b:7410", "a/b:7410", "bücher:7410"),
    ],
)
def test_what_is_no_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(UsageError, match=r"HOST:PORT, for example 10.0.0.7:7410 or \[::1\]:7410"):
        check_address(address)


def test_addresses_keep_their_order_are_replaced_as_a_whole_and_stay_if_none_is_given(
    make_home: Callable[..., Home],
) -> None:
    home = make_home("alpha")
    for given, kept in (
        (("b:2", "a:1", "b:2"), ("b:2", "a:1")),
        ((), ("b:2", "a:1")),
        (("c:3",), ("c:3",)),
    ):
        add_peer(home, SOMEBODY, "somebody", *given, query_only=False)
        assert home.store.peers()[0].addresses == kept


def test_a_peer_has_no_endless_list_of_addresses_and_none_without_a_port(make_home: Callable[..., Home]) -> None:
    home = make_home("alpha")
    for addresses, complaint in (
        ([f"host-{number}:1" for number in range(MAX_ADDRESSES + 1)], "at most 8 addresses"),
        (["host:0"], "names no port"),
    ):
        with pytest.raises(UsageError, match=complaint):
            add_peer(home, SOMEBODY, None, *addresses, query_only=False)
    assert home.store.peers() == []


@pytest.mark.timeout(120)
@needs_ipv6
def test_a_peer_is_found_at_the_last_of_its_addresses_which_is_ipv6(machines: Callable[[str], Machine]) -> None:
    a, b = machines("a"), machines("b")
    b.serve("--listen", "[::]:0")
    assert b.address is not None
    port = re.fullmatch(r"\[::\]:(\d+)", b.address)
    assert port is not None
    meet(b, a)
    dead, alive = nothing(), f"[::1]:{port[1]}"
    a.tidings("peer", "add", b.key, "--name", "b", "--address", dead, "--address", alive)
    listed = a.json("peer", "list")[0]
    assert (listed["address"], listed["addresses"]) == (dead, [dead, alive])
    a.serve()
    eventually(lambda: is_linked(a) and is_linked(b))
    assert b.json("status")["node"]["listen"] == b.address


@pytest.mark.timeout(120)
def test_a_new_address_is_used_at_once_and_a_live_link_is_left_alone(machines: Callable[[str], Machine]) -> None:
    a, b = machines("a"), machines("b")
    b.serve("--listen", "127.0.0.1:0")
    meet(b, a)
    with silence() as silent:
        meet(a, b, silent)
        a.serve()
        eventually(lambda: link_of(a)[0] == "connecting")  # and would be for 10 s
        meet(a, b, str(b.address))
        changed_at = time.monotonic()
        eventually(lambda: is_linked(a))
        assert time.monotonic() - changed_at < 5, "it waited for the old address to time out"
        since = link_of(a)[1]
        meet(a, b, silent, nothing())
        time.sleep(2.0)
        assert link_of(a) == ("linked", since)
        b.kill()
        eventually(lambda: link_of(a)[0] != "linked")
        assert "added" not in reason_of(a), "a line that breaks is no refusal"
        meet(a, b, str(b.address))
        b.serve("--listen", str(b.address))
        eventually(lambda: is_linked(a))


@pytest.mark.timeout(120)
def test_a_query_tries_the_addresses_in_turn(
    machines: Callable[[str], Machine], task_file: Path, tmp_path: Path
) -> None:
    a, b = machines("a"), machines("b")
    b.serve("--listen", "127.0.0.1:0")
    meet(b, a)
    for machine in (a, b):
        add(Home.open(machine.path), str(task_file))
    first, second = nothing(), nothing()
    asking = ("query", "triage", "--node", "b", "-o", str(tmp_path / "m.onnx"))

    def answer(*addresses: str) -> str:
        meet(a, b, *addresses)
        return a.complaint(*asking)

    assert answer(first, second) == (
        f"Error: Cannot ask b: nothing listens at {first}; check that its node runs; nothing listens at {second}; "
        "check that its node runs."
    )
    assert "The other node says: No summary of task triage is held here" in answer(first, str(b.address))
