"""Telling a service manager how the node is: systemd's notification protocol (sd_notify(3)), which is datagrams to a
socket that NOTIFY_SOCKET names. Without that variable nothing is sent."""

from __future__ import annotations

import os
import socket
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
ALIVE: Final = "WATCHDOG=1"


def notify(state: str) -> None:
    """Send one state, or nothing where nobody listens: a node runs as well without a manager."""
    address = os.environ.get(SOCKET_VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux' abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(1.0)
            channel.sendto(state.encode("utf-8"), address)
    except OSError:
        return
