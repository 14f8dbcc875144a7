"""The proxy that other tests put between nodes does what it says: bytes, delays, losses, cuts."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from commands import eventually
from proxy import SEGMENT_BYTES, Cut, Faults, Line, Proxy, both_ways

LIMIT_S = 20.0


class Pair:
    """Both ends of a connection through a proxy."""

    def __init__(self, proxy: Proxy, server: socket.socket) -> None:
        self.proxy = proxy
        self.near = dial(proxy.address)
        self.far, _ = server.accept()
        self.far.settimeout(LIMIT_S)


def dial(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=LIMIT_S)


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        server.settimeout(LIMIT_S)
        port = server.getsockname()[1]
        yield server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def connected(faults: Faults | None = None, seed: int = 0) -> Iterator[Pair]:
    with listening() as (server, address), Proxy(address, faults, seed=seed) as proxy:
        pair = Pair(proxy, server)
        with pair.near, pair.far:
            yield pair


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - test data


def read(end: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, fewer only where the stream ends."""
    parts = []
    while size > 0 and (part := end.recv(min(size, 65_536))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def in_background(do: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


def is_silent(end: socket.socket, for_s: float) -> bool:
    """Whether neither bytes nor an end nor a reset comes."""
    end.settimeout(for_s)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(LIMIT_S)
    return False


def test_bytes_cross_both_ways_unchanged_and_each_end_of_stream_by_itself() -> None:
    out, back = noise(1, 500_000), noise(2, 300_000)
    with connected() as pair:
        sending = [in_background(lambda: pair.near.sendall(out)), in_background(lambda: pair.far.sendall(back))]
        received = []
        reading = in_background(lambda: received.append(read(pair.near, len(back))))
        assert read(pair.far, len(out)) == out
        for thread in (*sending, reading):
            thread.join()
        assert received == [back]
        pair.near.shutdown(socket.SHUT_WR)
        assert pair.far.recv(1) == b""
        pair.far.sendall(b"still here")
        assert read(pair.near, 10) == b"still here"
        pair.far.close()
        assert pair.near.recv(1) == b""
        eventually(lambda: pair.proxy.live == 0)
        assert pair.proxy.out.delivered_bytes == len(out)
        assert pair.proxy.back.delivered_bytes == len(back) + 10


def test_ipv6_is_carried_too() -> None:
    try:
        context = listening("::1")
        with context as (server, address), Proxy(address, host="::1") as proxy:
            pair = Pair(proxy, server)
            with pair.near, pair.far:
                pair.near.sendall(b"six")
                assert read(pair.far, 3) == b"six"
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")


def test_delay_is_added_to_each_way_and_keeps_the_order() -> None:
    with connected(both_ways(Line(delay_s=0.1, jitter_s=0.05))) as pair:
        started = time.monotonic()
        for number in range(50):
            pair.near.sendall(bytes([number]))
        assert read(pair.far, 50) == bytes(range(50))
        pair.far.sendall(b"!")
        assert read(pair.near, 1) == b"!"
        assert 0.2 <= time.monotonic() - started < 5.0


def test_a_thin_line_carries_its_rate_each_way() -> None:
    with connected(both_ways(Line(bytes_per_s=100_000))) as pair:
        started = time.monotonic()
        sending = [in_background(lambda end=end: end.sendall(bytes(80_000))) for end in (pair.near, pair.far)]
        reading = in_background(lambda: read(pair.near, 80_000))
        read(pair.far, 80_000)
        for thread in (*sending, reading):
            thread.join()
        assert 0.79 <= time.monotonic() - started < 4.0


def fill(end: socket.socket, for_s: float) -> int:
    """How many bytes it takes until it has taken none for so long."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    end.settimeout(for_s)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 10_000_000:
            sent += end.send(bytes(2000))
    return sent


def test_a_sender_is_held_back_by_who_does_not_read() -> None:
    with connected() as pair:
        pair.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = fill(pair.near, 0.3)
        assert sent < 400_000
        assert read(pair.far, sent) == bytes(sent)


def test_a_sender_is_held_back_by_a_thin_line() -> None:
    with connected(both_ways(Line(bytes_per_s=1000))) as pair:
        assert fill(pair.near, 0.3) - pair.proxy.out.delivered_bytes < 50_000


def test_lost_segments_cost_time_and_never_bytes() -> None:
    data = noise(3, 50 * SEGMENT_BYTES)
    with connected(Faults(out=Line(loss=0.2)), seed=5) as pair:
        started = time.monotonic()
        in_background(lambda: pair.near.sendall(data))
        assert read(pair.far, len(data)) == data
        took = time.monotonic() - started
        traffic = pair.proxy.out
        assert traffic.delivered_bytes == len(data)
        assert 0.05 < traffic.lost / traffic.segments < 0.4
        assert took >= 0.2 * traffic.lost
        pair.far.sendall(b"!")
        assert read(pair.near, 1) == b"!"
        assert pair.proxy.back.lost == 0


def test_the_same_seed_loses_the_same_segments_and_another_seed_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.RETRANSMIT_S", 0.01)

    def lost(seed: int) -> list[int]:
        counts = []
        with connected(Faults(out=Line(loss=0.3)), seed=seed) as pair:
            for _ in range(15):
                pair.near.sendall(b"x")
                assert read(pair.far, 1) == b"x"
                counts.append(pair.proxy.out.lost)
        return counts

    first = lost(1)
    assert lost(1) == first
    assert lost(2) != first


def test_a_segment_that_is_lost_again_and_again_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.RETRANSMISSIONS", 2)
    with connected() as pair:
        pair.proxy.faults = Faults(out=Line(loss=1.0))
        started = time.monotonic()
        pair.near.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            pair.near.recv(1)
        assert time.monotonic() - started >= 0.2 + 0.4 + 0.8
        with pytest.raises(ConnectionResetError):
            pair.far.recv(1)
        assert pair.proxy.out.delivered_bytes == 0


def test_a_lost_handshake_is_tried_again_after_a_second() -> None:
    with listening() as (server, address), Proxy(address, both_ways(Line(loss=1.0))) as proxy:
        server.settimeout(0.5)
        started = time.monotonic()
        with dial(proxy.address):
            with pytest.raises(TimeoutError):
                server.accept()
            proxy.faults = Faults()
            server.settimeout(LIMIT_S)
            server.accept()[0].close()
        assert 0.9 < time.monotonic() - started < 5.0


def test_a_dead_direction_tells_nothing_and_delivers_once_it_is_back() -> None:
    with connected() as pair:
        pair.proxy.faults = Faults(out=Line(is_dead=True))
        pair.near.sendall(b"lost?")
        pair.far.sendall(b"other way")
        assert read(pair.near, 9) == b"other way"
        assert is_silent(pair.far, 0.3)
        pair.near.shutdown(socket.SHUT_WR)
        assert is_silent(pair.far, 0.3)
        pair.proxy.faults = Faults()
        assert read(pair.far, 6) == b"lost?"


def test_a_reset_does_not_cross_a_dead_line() -> None:
    with connected() as pair:
        pair.proxy.faults = both_ways(Line(is_dead=True))
        pair.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        pair.near.close()
        pair.far.sendall(b"anybody?")
        assert is_silent(pair.far, 0.3)
        pair.proxy.faults = Faults()
        with pytest.raises(ConnectionResetError):
            pair.far.recv(1)


def test_a_dial_into_a_dead_line_hears_nothing() -> None:
    with listening() as (server, address), Proxy(address, both_ways(Line(is_dead=True))) as proxy:
        server.settimeout(0.3)
        with dial(proxy.address) as near:
            assert is_silent(near, 0.3)
            with pytest.raises(TimeoutError):
                server.accept()


@pytest.mark.parametrize("by", Cut)
def test_a_cut_ends_both_sides(by: Cut) -> None:
    with connected() as pair:
        pair.near.sendall(b"x")
        assert read(pair.far, 1) == b"x"
        pair.proxy.cut(by)
        for end in (pair.near, pair.far):
            if by is Cut.FIN:
                assert end.recv(1) == b""
                end.close()
            else:
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
        assert pair.proxy.cuts == 1
        eventually(lambda: pair.proxy.live == 0)


def test_a_line_is_cut_again_and_again() -> None:
    with listening() as (server, address), Proxy(address, Faults(cut_every_s=0.3)) as proxy:
        started = time.monotonic()
        for _ in range(3):
            with dial(proxy.address) as near, server.accept()[0], pytest.raises(ConnectionResetError):
                near.recv(1)
        assert 0.8 < time.monotonic() - started < 5.0
        assert proxy.cuts == 3
        proxy.faults = Faults()
        with dial(proxy.address) as near, server.accept()[0]:
            assert is_silent(near, 0.6)


def test_a_proxy_that_refuses_leaves_live_connections_alone() -> None:
    with connected() as pair:
        pair.proxy.faults = Faults(refuses=True)
        with pytest.raises(ConnectionRefusedError):
            dial(pair.proxy.address)
        pair.near.sendall(b"x")
        assert read(pair.far, 1) == b"x"
        pair.proxy.faults = Faults()
        dial(pair.proxy.address).close()


def test_who_dials_an_upstream_that_is_gone_is_reset() -> None:
    with listening() as (_, address):
        pass
    with Proxy(address) as proxy, pytest.raises(ConnectionResetError), dial(proxy.address) as near:
        near.recv(1)


def test_corruption_flips_one_bit_of_a_segment() -> None:
    data = bytes(40 * SEGMENT_BYTES)
    with connected(Faults(out=Line(corruption=0.5)), seed=9) as pair:
        in_background(lambda: pair.near.sendall(data))
        received = read(pair.far, len(data))
        flipped = [byte for byte in received if byte]
        assert all(byte.bit_count() == 1 for byte in flipped)
        assert 10 <= len(flipped) == pair.proxy.out.corrupted


def test_a_mistake_in_the_proxy_is_told_and_never_taken_for_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy._Flow._corrupted", lambda self, data: data + 1)

    def run() -> None:
        with connected() as pair:
            pair.near.sendall(b"x")
            eventually(lambda: pair.proxy.live == 0)

    with pytest.raises(TypeError):
        run()
