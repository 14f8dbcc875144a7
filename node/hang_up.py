"""Hanging up: ending a whole connection of the gRPC server, for which gRPC has no call in Python.

The server knows the address at the other end of a call. Of this process's sockets, the one that is connected to it is
shut down, and gRPC finds it closed as if the peer had done it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import Final
from urllib.parse import unquote

DESCRIPTORS: Final = Path("/dev/fd")


def hang_up(call_peer: str) -> bool:
    """End the connection whose other end gRPC calls `call_peer` (`ipv4:10.0.0.7:50312`); whether it was there."""
    wanted = _address_of(call_peer)
    for descriptor in _descriptors() if wanted else ():
        connection = _connection(descriptor)
        if connection is not None:
            with connection:
                if _other_end(connection) == wanted:
                    connection.shutdown(socket.SHUT_RDWR)
                    return True
    return False


def _address_of(call_peer: str) -> tuple[str, int] | None:
    family, _, rest = unquote(call_peer).partition(":")
    host, _, port = rest.rpartition(":")
    try:
        return (str(_plain(host.strip("[]"))), int(port)) if family in ("ipv4", "ipv6") else None
    except ValueError:
        return None


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir(DESCRIPTORS) if name.isdigit()]
    except OSError:
        return []  # this system does not tell: the connection ends when its owner lets go


def _connection(descriptor: int) -> socket.socket | None:
    """A second handle of the same socket, so that the number cannot come to mean another one meanwhile."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        return socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return None  # closed this very moment


def _other_end(connection: socket.socket) -> tuple[str, int] | None:
    try:
        name = connection.getpeername()
        return (str(_plain(name[0])), int(name[1])) if isinstance(name, tuple) else None
    except (OSError, ValueError):
        return None  # not connected, or no address of the internet


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as it is written plainly: without a zone, and IPv4 as IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
