"""No orphans: a process that a node starts to fuse for it holds the node's keys, so it ends when the node does."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """From now on the kernel kills this process when the one that started it ends, however it ends. Linux only: on
    other systems, and if the node is killed in the moment before this is called, the query runs to its end."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
